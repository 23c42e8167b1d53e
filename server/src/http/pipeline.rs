//! From a request to its answer, in the one order that every route has.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tidelog_engine::system::tokens::{Principal, token_id_text};
use tidelog_wal::Position;

use super::answer::positions;
use super::edge::RequestId;
use super::idempotency::Recorder;
use super::staging::stage;
use super::{Answer, BodyKind, Call, Route, auth, idempotency, prefer};
use crate::app::App;
use crate::fields::Fields;
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
    let names = match path_names(&mut parts).await {
        Ok(names) => names,
        Err(problem) => return problem.response(&instance, &id),
    };
    let request = Incoming {
        route: Arc::clone(&route),
        app: Arc::clone(&app),
        parts,
        names,
        id: id.clone(),
    };
    let done = tokio::spawn(request.answer(body)).await;
    let (outcome, place) = done.unwrap_or_else(|failure| {
        tracing::error!(%failure, request_id = %id, route = route.path, "a handler panicked");
        let detail = "the server met a defect of its own";
        (Err(Problem::new(Code::Internal, detail)), None)
    });
    let here = place.map(|place| (place.now, place.durable));
    match outcome {
        Ok(answer) => {
            let mut response = answer.into_response();
            if let Some((now, durable)) = here {
                positions(response.headers_mut(), now, durable);
            }
            response
        }
        Err(problem) => {
            let mut response = problem.response(&instance, &id);
            if let Some((now, durable)) = here {
                positions(response.headers_mut(), now, durable);
            }
            response
        }
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
    id: String,
}

impl Incoming {
    async fn answer(self, body: Body) -> (Result<Answer, Problem>, Option<Place>) {
        let keyed = self.parts.headers.contains_key("idempotency-key");
        let admitted = auth::admit(
            &self.app,
            &self.route,
            &self.parts.headers,
            self.names.get("ns").map(String::as_str),
            self.names.get("db").map(String::as_str),
        );
        let principal = match admitted.await {
            Ok(principal) => principal,
            Err(problem) => return (Err(problem), None),
        };
        let outcome = Box::pin(self.admitted(principal.clone(), body)).await;
        let outcome = outcome.map_err(|problem| if keyed { problem.keyed() } else { problem });
        let place = match &outcome {
            Ok(answer) if answer.bookmark.is_some() || answer.status == StatusCode::NO_CONTENT => {
                None
            }
            Err(problem) if !says_position(problem.status()) => None,
            _ => self.place(principal.as_ref()).await,
        };
        (outcome, place)
    }

    /// Everything behind authentication.
    async fn admitted(&self, principal: Option<Principal>, body: Body) -> Result<Answer, Problem> {
        let headers = &self.parts.headers;
        let key = idempotency::key(headers, &self.parts.method)?;
        let if_match = self.guard(principal.as_ref()).await?;
        let query = Fields::of_query(self.parts.uri.query().unwrap_or_default())?;
        let (bytes, file) = match self.route.body {
            BodyKind::File => (Bytes::new(), Some(stage(&self.app, body).await?)),
            BodyKind::Json => (self.json_body(body).await?, None),
            BodyKind::None => (self.read(body).await?, None),
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
        let mut call = Call {
            app: Arc::clone(&self.app),
            request_id: self.id.clone(),
            path,
            names: self.names.clone(),
            principal,
            query,
            body: Fields::of_body(&bytes)?,
            file,
            if_match,
            wait: prefer::wait(headers)?,
            idempotency: None,
            recorder: Recorder::default(),
        };
        let Some(record) = record else {
            if self.route.key_required {
                let detail =
                    "send an Idempotency-Key: repeated without one, this call would act twice";
                return Err(Problem::new(Code::IdempotencyKeyRequired, detail));
            }
            return (self.route.handler)(call).await;
        };
        if self.route.keyed_by_handler {
            call.idempotency = Some(record);
            return (self.route.handler)(call).await;
        }
        let _running = self.app.guards.running.begin(&record)?;
        if let Some(kept) = self.app.engine.request_find(&record).await? {
            return idempotency::replay(&kept);
        }
        let recorder = Recorder::new(record);
        call.recorder = recorder.clone();
        let answer = (self.route.handler)(call).await?;
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
        let collected = Limited::new(body, limit).collect();
        let collected = tokio::time::timeout(self.app.limits.body_deadline, collected)
            .await
            .map_err(|_| Problem::new(Code::InvalidRequest, "the body did not arrive in time"))?;
        match collected {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Problem::new(
                Code::BodyTooLarge,
                format!("a body has at most {limit} bytes"),
            )
            .with("limit", limit)),
            Err(_) => Err(Problem::new(Code::InvalidRequest, "the body broke off")),
        }
    }
}

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
