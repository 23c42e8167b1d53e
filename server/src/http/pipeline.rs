//! From a request to its answer, in the one order that every route has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tidelog_engine::system::requests;
use tidelog_engine::system::tokens::{Principal, token_id_text};
use tidelog_wal::Position;

use super::answer::positions;
use super::caller::caller;
use super::edge::RequestId;
use super::idempotency::Recorder;
use super::peer::Peer;
use super::rates::{Key, Standing};
use super::staging::stage;
use super::{Answer, BodyKind, Call, Route, audit, auth, idempotency, peer, prefer};
use crate::app::App;
use crate::fields::Fields;
use crate::hrana::{errors, place};
use crate::problem::{Code, Problem};

/// Answers one request of a route.
///
/// The work runs in a task of its own: a client that hangs up does not stop it half-way, and a panic in it
/// becomes a problem document.
pub(crate) async fn dispatch(route: Arc<Route>, app: Arc<App>, request: Request) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let id = parts
        .extensions
        .get::<RequestId>()
        .map_or_else(|| app.request_id(), |id| id.0.clone());
    let instance = parts.uri.path().to_owned();
    let refuse = |problem: &Problem| {
        if route.hrana {
            errors::of_request(problem, &instance, &id)
        } else {
            problem.response(&instance, &id)
        }
    };
    let mut names = match path_names(&mut parts).await {
        Ok(names) => names,
        Err(problem) => return refuse(&problem),
    };
    if route.hrana && !names.contains_key("db") {
        let (suffixes, default) = (&app.database_hosts, app.default_database.as_deref());
        if let Some(name) = place::database(&parts.uri, &parts.headers, suffixes, default) {
            names.insert("db".to_owned(), name);
        }
    }
    let origin = peer::origin(&parts.extensions, &parts.headers, &app.trusted_proxies);
    let deadline = app.limits.request_deadline + patience(&parts);
    let request = Incoming {
        route: Arc::clone(&route),
        app: Arc::clone(&app),
        parts,
        names,
        origin,
        id: id.clone(),
    };
    let mut task = tokio::spawn(request.answer(body));
    let done = if route.has_deadline() {
        match tokio::time::timeout(deadline, &mut task).await {
            Ok(done) => done,
            Err(_) => {
                let ms = deadline.as_millis();
                let detail = format!("no answer within {ms} ms; what the call does goes on");
                return refuse(&Problem::new(Code::OutcomeUnknown, detail));
            }
        }
    } else {
        task.await
    };
    let done = done.unwrap_or_else(|failure| {
        tracing::error!(%failure, request_id = %id, route = route.path, "a handler panicked");
        let detail = "the server met a defect of its own";
        Done::refused(Problem::new(Code::Internal, detail))
    });
    let mut response = match done.outcome {
        Ok(answer) => answer.into_response(),
        Err(problem) => refuse(&problem),
    };
    if let Some(place) = done.place {
        positions(response.headers_mut(), place.now, place.durable);
    }
    if let Some(standing) = done.standing {
        standing.write(response.headers_mut());
    }
    if done.hangs_up {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// A request that has been answered.
struct Done {
    outcome: Result<Answer, Problem>,
    place: Option<Place>,
    standing: Option<Standing>,
    /// Whether the connection ends with the answer.
    hangs_up: bool,
}

impl Done {
    fn refused(problem: Problem) -> Self {
        Self {
            outcome: Err(problem),
            place: None,
            standing: None,
            hangs_up: false,
        }
    }
}

/// What a caller asked to wait comes on top of the deadline.
fn patience(parts: &Parts) -> Duration {
    let waits = parts
        .uri
        .query()
        .is_some_and(|query| query.contains("wait_durable_ms"));
    if waits || parts.headers.contains_key("prefer") {
        LONGEST_WAIT
    } else {
        Duration::ZERO
    }
}

async fn path_names(parts: &mut Parts) -> Result<BTreeMap<String, String>, Problem> {
    let names = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|_| Problem::new(Code::InvalidRequest, "the path is not UTF-8"))?;
    Ok(names
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Where a database stands, for the headers.
struct Place {
    now: Option<Position>,
    durable: Option<Position>,
}

/// A request on its way through the layer.
struct Incoming {
    route: Arc<Route>,
    app: Arc<App>,
    parts: Parts,
    names: BTreeMap<String, String>,
    origin: Option<IpAddr>,
    id: String,
}

impl Incoming {
    async fn answer(self, body: Body) -> Done {
        let began = self.app.clock.monotonic_micros();
        let admitted = auth::admit(
            &self.app,
            &self.route,
            &self.parts.headers,
            self.origin,
            &self.names,
        );
        let (principal, done) = match admitted.await {
            Err((principal, problem)) => (principal.map(|one| *one), Done::refused(problem)),
            Ok(principal) => {
                self.note_use(principal.as_ref());
                let done = Box::pin(self.bounded(principal.clone(), body)).await;
                (principal, done)
            }
        };
        let micros = self.app.clock.monotonic_micros().saturating_sub(began);
        self.note(
            principal.as_ref(),
            &done.outcome,
            Duration::from_micros(micros),
        );
        done
    }

    /// Behind authentication: rates, requests at once, maintenance.
    async fn bounded(&self, principal: Option<Principal>, body: Body) -> Done {
        let keyed = self.parts.headers.contains_key("idempotency-key");
        let (mut standing, mut _running) = (None, None);
        if let Some(principal) = &principal {
            let (limits, token) = (&self.app.limits, &principal.token);
            let caller = caller(token);
            let (own, tenant) = (Key::Caller(caller), Key::Namespace(token.namespace));
            let of_all = limits.requests_per_minute_token;
            // A token whose rate is higher than everybody's may use it.
            let of_own = token.rate.filter(|_| of_all != 0).unwrap_or(0);
            let mut rates = vec![
                (Key::Token(token.id), token.rate.unwrap_or(0)),
                (own, of_all.max(of_own)),
                (tenant, limits.requests_per_minute_namespace),
            ];
            if let Some(origin) = self.origin {
                rates.push((Key::Peer(origin, caller), limits.requests_per_minute_peer));
            }
            match self.app.guards.rates.take(&rates, self.app.clock.wall()) {
                Ok(taken) => standing = taken,
                Err(refused) => {
                    let mut done = Done::refused(refused.problem());
                    done.standing = Some(refused.standing);
                    return done;
                }
            }
            if let Some(peer) = self.parts.extensions.get::<Peer>()
                && let Err(problem) = peer.used_by(token, &self.app)
            {
                let mut done = Done::refused(problem);
                done.hangs_up = true;
                return done;
            }
            let at_once = [
                (own, limits.in_flight_per_principal),
                (tenant, limits.in_flight_per_namespace),
            ];
            match self.app.guards.in_flight.enter(&at_once) {
                Ok(entered) => _running = Some(entered),
                Err(problem) => return Done::refused(problem),
            }
        }
        let outcome = Box::pin(self.admitted(principal.clone(), body)).await;
        let outcome = outcome.map(self.route.reshape);
        let outcome = outcome.map_err(|problem| if keyed { problem.keyed() } else { problem });
        let place = match &outcome {
            Ok(answer) if answer.bookmark.is_some() || answer.status == StatusCode::NO_CONTENT => {
                None
            }
            Err(problem) if !says_position(problem.status()) => None,
            _ => self.place(principal.as_ref()).await,
        };
        Done {
            outcome,
            place,
            standing,
            hangs_up: false,
        }
    }

    fn known<'a>(&'a self, principal: Option<&'a Principal>) -> audit::Known<'a> {
        audit::Known {
            route: &self.route,
            request_id: &self.id,
            names: &self.names,
            headers: &self.parts.headers,
            origin: self.origin,
            principal,
        }
    }

    /// Puts the first use of a token in a while on record.
    fn note_use(&self, principal: Option<&Principal>) {
        let Some(principal) = principal else { return };
        let (uses, now) = (&self.app.guards.uses, self.app.clock.wall());
        if uses.is_news(principal.token.id, self.origin, now) {
            let line = self.known(Some(principal)).first_use();
            self.app.engine.audit(line);
        }
    }

    /// Counts the outcome, and puts it on record where that is due.
    fn note(
        &self,
        principal: Option<&Principal>,
        outcome: &Result<Answer, Problem>,
        took: Duration,
    ) {
        let event = audit::event(&self.route, self.parts.uri.query());
        let ended = match outcome {
            Ok(answer) => audit::Ended::Done {
                schema_changed: answer.schema_changed,
            },
            Err(problem) => audit::Ended::Refused(problem),
        };
        self.known(principal).note(&self.app, event, &ended, took);
    }

    /// Everything behind authentication.
    async fn admitted(&self, principal: Option<Principal>, body: Body) -> Result<Answer, Problem> {
        let headers = &self.parts.headers;
        let key = idempotency::key(headers, &self.parts.method)?;
        if key.is_some() && self.route.hrana {
            let detail = "Hrana takes no Idempotency-Key: nothing would be kept under it";
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        if let Some(namespace) = principal.as_ref().and_then(|one| one.token.namespace)
            && self.route.pauses()
        {
            self.app.engine.check_maintenance(namespace)?;
        }
        let if_match = self.guard(principal.as_ref()).await?;
        let query = Fields::of_query(self.parts.uri.query().unwrap_or_default())?;
        let (bytes, file) = match self.route.body {
            BodyKind::File => (Bytes::new(), Some(stage(&self.app, body).await?)),
            BodyKind::Json => (self.json_body(body).await?, None),
            BodyKind::None | BodyKind::Raw => (self.read(body).await?, None),
        };
        if self.route.body == BodyKind::None && !bytes.is_empty() {
            return Err(Problem::new(
                Code::InvalidRequest,
                "this call takes no body",
            ));
        }
        let path = self.parts.uri.path().to_owned();
        let token = principal
            .as_ref()
            .map(|principal| token_id_text(&principal.token.id));
        let record = key.zip(token).map(|(key, token)| {
            let uri = self
                .parts
                .uri
                .path_and_query()
                .map_or(path.as_str(), |uri| uri.as_str());
            let body = file.as_ref().map_or(&bytes[..], |file| &file.digest[..]);
            idempotency::record(key, &token, self.route.path, uri, body)
        });
        let (raw, body) = match self.route.body {
            BodyKind::Raw => (bytes, Fields::default()),
            _ if bytes.len() < BODY_PARSED_ASIDE => (Bytes::new(), Fields::of_body(&bytes)?),
            _ => {
                let parsed = tokio::task::spawn_blocking(move || Fields::of_body(&bytes)).await;
                let parsed = parsed
                    .map_err(|failure| Problem::new(Code::Internal, failure.to_string()))??;
                (Bytes::new(), parsed)
            }
        };
        // A preview acts not at all.
        let acts = !body.says("dry_run");
        let event = audit::event(&self.route, self.parts.uri.query());
        let before = event
            .filter(|event| acts && audit::is_grave(event))
            .map(|event| self.known(principal.as_ref()).before(event));
        let mut call = Call {
            app: Arc::clone(&self.app),
            route: Arc::clone(&self.route),
            origin: self.origin,
            request_id: self.id.clone(),
            path,
            headers: headers.clone(),
            names: self.names.clone(),
            principal,
            query,
            body,
            raw,
            file,
            if_match,
            wait: prefer::wait(headers)?,
            idempotency: None,
            recorder: Recorder::default(),
        };
        let Some(record) = record else {
            if self.route.key_required && acts {
                let detail =
                    "send an Idempotency-Key: repeated without one, this call would act twice";
                return Err(Problem::new(Code::IdempotencyKeyRequired, detail));
            }
            if let Some(line) = before {
                self.app.engine.audit_now(line).await?;
            }
            return (self.route.handler)(call).await;
        };
        if self.route.keyed_by_handler {
            call.idempotency = Some(record);
            return (self.route.handler)(call).await;
        }
        let _running = self.app.guards.running.begin(&record)?;
        if let Some(kept) = self.app.engine.request_find(&record).await? {
            return match idempotency::began(&kept) {
                // Whatever was answered then, the operation tells how it stands now.
                Some(id) => crate::routes::operations::repeated(&call, &id)
                    .await
                    .map(Answer::replayed),
                None => idempotency::replay(&kept),
            };
        }
        if let Some(line) = before {
            self.app.engine.audit_now(line).await?;
        }
        let recorder = Recorder::new(record.clone());
        call.recorder = recorder.clone();
        let answer = requests::keyed(record, (self.route.handler)(call)).await?;
        // What the handler has not handed to the engine with its effect needs no transaction with it.
        if let Some(record) = recorder.record(&answer) {
            self.app.engine.request_keep(record).await?;
        }
        Ok(answer)
    }

    /// `If-Match`: only if the database has not moved.
    async fn guard(&self, principal: Option<&Principal>) -> Result<Option<Position>, Problem> {
        let Some(value) = self.parts.headers.get(header::IF_MATCH) else {
            return Ok(None);
        };
        if !self.route.conditional {
            return Err(Problem::new(
                Code::InvalidRequest,
                "this call takes no If-Match",
            ));
        }
        let text = value.to_str().unwrap_or_default().trim();
        let text = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let wanted: Position = text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            Problem::new(
                Code::BookmarkMalformed,
                "If-Match must be one bookmark in quotes",
            )
        })?;
        let current = self.place(principal).await.and_then(|place| place.now);
        if current == Some(wanted) {
            return Ok(Some(wanted));
        }
        let detail = format!("the database is no longer at {wanted}");
        let current = current.map(|current| current.to_string());
        Err(Problem::new(Code::DatabaseMoved, detail).with("current_bookmark", current))
    }

    /// The present positions of the database of the path; a database that cannot be opened has none to tell.
    async fn place(&self, principal: Option<&Principal>) -> Option<Place> {
        let namespace = principal?.token.namespace?;
        if !self.route.on_database() {
            return None;
        }
        let database = self
            .app
            .engine
            .database(namespace, self.names.get("db")?)
            .await
            .ok()?;
        let at = database.bookmark().await.ok()?;
        Some(Place {
            now: Some(at.bookmark),
            durable: at.durable_bookmark,
        })
    }

    async fn json_body(&self, body: Body) -> Result<Bytes, Problem> {
        let bytes = self.read(body).await?;
        if !bytes.is_empty() && !is_json(&self.parts.headers) {
            let detail = "send the body as `Content-Type: application/json`";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
        Ok(bytes)
    }

    /// The whole body, counted while it is read, within its time.
    async fn read(&self, body: Body) -> Result<Bytes, Problem> {
        let limit = self.app.limits.body_bytes_max;
        let too_large = || {
            let detail = format!("a body has at most {limit} bytes");
            Problem::new(Code::BodyTooLarge, detail).with("limit", limit)
        };
        // One that says beforehand that it is too long is not asked for.
        let announced = body.size_hint().lower();
        if usize::try_from(announced).map_or(true, |announced| announced > limit) {
            return Err(too_large());
        }
        let collected = Limited::new(body, limit).collect();
        let collected = tokio::time::timeout(self.app.limits.body_deadline, collected)
            .await
            .map_err(|_| Problem::new(Code::RequestTimeout, "the body did not arrive in time"))?;
        match collected {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
            Err(_) => Err(Problem::new(Code::InvalidRequest, "the body broke off")),
        }
    }
}

/// A body of this many bytes is parsed aside: it takes a moment in which the thread could serve others.
const BODY_PARSED_ASIDE: usize = 256 << 10;

/// The longest that a caller may ask to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Whether a refusal of that status still tells where the database stands: one that reached the database does.
fn says_position(status: StatusCode) -> bool {
    matches!(status.as_u16(), 409 | 412 | 413 | 422 | 504)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    kind.eq_ignore_ascii_case("application/json")
}
