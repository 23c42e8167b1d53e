//! Operations: long work as a resource. Every call that may be long answers through [`outcome`]: the finished
//! operation if it ends in time, else 202 and where to look.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use futures::stream;
use serde_json::{Value as Json, json};
use tidelog_engine::Role;
use tidelog_engine::operations::{
    Handle, Operation, OperationFilter, OperationState, OperationType,
};
use tidelog_engine::system::tokens::Principal;

use crate::app::App;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// How long an event stream is silent at most: a proxy closes one that says nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The least time between two events of one stream.
const EVENT_PAUSE: Duration = Duration::from_millis(100);

/// An operation as the API shows it.
pub(super) fn shown(operation: &Operation) -> Json {
    let error = operation.error.as_ref().map(|failure| {
        let mut document = failure.members.clone();
        document.insert("code".to_owned(), json!(failure.code));
        document.insert("detail".to_owned(), json!(failure.detail));
        Json::Object(document)
    });
    json!({
        "id": operation.id,
        "type": operation.kind.as_str(),
        "state": operation.state.as_str(),
        "phase": operation.phase,
        "progress_percent": operation.progress_percent(),
        "bytes_done": operation.bytes_done,
        "bytes_total": operation.bytes_total,
        "eta_seconds": operation.eta_seconds(),
        "started_at": time::format(operation.started_at),
        "heartbeat_at": time::format(operation.heartbeat_at),
        "ended_at": operation.ended_at.map(time::format),
        "cancellable": operation.cancellable,
        "result": operation.result,
        "error": error,
        "links": { "database": operation.database_name },
    })
}

fn location(call: &Call, operation: &Operation) -> Option<HeaderValue> {
    let implied = call.principal.as_ref();
    let implied = implied.and_then(|principal| principal.namespace_name.as_ref());
    let namespace = call.names.get("ns").or(implied)?;
    let path = format!("/v1/namespaces/{namespace}/operations/{}", operation.id);
    HeaderValue::try_from(path).ok()
}

/// Waits for an operation as long as the caller prefers (5 s unless it says) and answers it: 200 or `done` with
/// `{operation, ...result}` once it succeeded, its own problem once it failed, else 202 with where to look.
pub(super) async fn outcome(
    call: &Call,
    mut handle: Handle,
    done: StatusCode,
) -> Result<Answer, Problem> {
    let operation = handle.wait(call.wait).await;
    told(call, &operation, done)
}

/// The answer to a repeated call that began an operation: how that stands now.
pub(crate) async fn repeated(call: &Call, id: &str) -> Result<Answer, Problem> {
    let operation = call.app.engine.operation(call.namespace()?, id).await?;
    told(call, &operation, StatusCode::OK)
}

fn told(call: &Call, operation: &Operation, done: StatusCode) -> Result<Answer, Problem> {
    let mut answer = match operation.state {
        OperationState::Failed | OperationState::Cancelled => {
            return Err(problem(operation));
        }
        OperationState::Succeeded => {
            let mut document = json!({ "operation": shown(operation) });
            if let (Some(all), Some(Json::Object(result))) =
                (document.as_object_mut(), operation.result.clone())
            {
                all.extend(result);
            }
            let mut answer = Answer::ok(document);
            answer.status = done;
            answer
        }
        OperationState::Running | OperationState::Cancelling => {
            let mut answer = Answer::ok(json!({ "operation": shown(operation) }));
            answer.status = StatusCode::ACCEPTED;
            answer
        }
    };
    if let Some(place) = location(call, operation) {
        answer = answer.header(header::LOCATION, place);
    }
    Ok(answer)
}

/// What a caller is told of an operation that did not succeed.
fn problem(operation: &Operation) -> Problem {
    let (code, detail) = match &operation.error {
        Some(failure) => (failure.code.as_str(), failure.detail.clone()),
        None => (
            "operation-cancelled",
            "the operation was cancelled".to_owned(),
        ),
    };
    let code = Code::parse(code).unwrap_or(Code::Internal);
    let members = operation.error.iter().flat_map(|failure| &failure.members);
    members
        .fold(Problem::new(code, detail), |problem, (name, value)| {
            problem.with(name, value.clone())
        })
        .with("operation", operation.id.clone())
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    let filter = OperationFilter {
        state: call.query.word("state", |word| {
            OperationState::parse(word)
                .ok_or_else(|| format!("{word:?} is not a state of an operation"))
        })?,
        kind: call.query.word("type", |word| {
            OperationType::parse(word).ok_or_else(|| format!("{word:?} is not a type of operation"))
        })?,
        database: call.query.text("database")?,
    };
    call.finish()?;
    let engine = &call.app.engine;
    let found = engine.operations(call.namespace()?, filter, page).await?;
    let mut items: Vec<Json> = Vec::new();
    for operation in &found.items {
        if admit(&call, operation, Role::Viewer).await.is_ok() {
            items.push(shown(operation));
        }
    }
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

/// Refuses an operation of a database that is not the caller's: the path names none, so that only the operation tells
/// whose it is. To a token for other databases it does not exist; what is asked needs the role in its database.
async fn admit(call: &Call, operation: &Operation, needed: Role) -> Result<(), Problem> {
    let principal = call.principal()?;
    let database = operation.database_name.as_deref();
    if let Some(listed) = &principal.token.databases
        && !database.is_some_and(|name| listed.iter().any(|one| one == name))
    {
        let detail = format!("there is no operation {:?}", operation.id);
        return Err(Problem::new(Code::OperationNotFound, detail));
    }
    let role = call.app.engine.role_of(principal, database).await?;
    if role < needed {
        let detail = format!("this call needs {} in its database", needed.as_str());
        let problem = Problem::new(Code::InsufficientPermissions, detail);
        return Err(problem.with("required", needed.as_str()));
    }
    Ok(())
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("operation")?;
    let operation = call.app.engine.operation(call.namespace()?, &id).await?;
    admit(&call, &operation, Role::Viewer).await?;
    Ok(Answer::ok(shown(&operation)))
}

pub(super) async fn cancel(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("operation")?;
    let engine = &call.app.engine;
    let asked = engine.operation(call.namespace()?, &id).await?;
    admit(&call, &asked, Role::Operator).await?;
    let operation = engine.operation_cancel(call.namespace()?, &id).await?;
    Ok(Answer::ok(shown(&operation)))
}

/// The changes of an operation as server-sent events, until it has ended.
pub(super) async fn events(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("operation")?;
    let engine = &call.app.engine;
    let handle = engine.operation_watch(call.namespace()?, &id).await?;
    admit(&call, &handle.current(), Role::Viewer).await?;
    let max = call.app.limits.streams_per_principal_max;
    let place = call.app.event_streams.enter(call.principal()?, max)?;
    let first = event(&handle.current());
    let listener = Listener {
        app: Arc::clone(&call.app),
        principal: call.principal()?.clone(),
        database: handle.current().database_name,
        judged: call.app.engine.rights_epoch(),
    };
    let changes = stream::unfold(
        (handle, (place, listener), Some(first)),
        async |(mut handle, (place, mut listener), now)| {
            if let Some(first) = now {
                let rest = (handle, (place, listener), None);
                return Some((Ok::<_, std::io::Error>(first), rest));
            }
            let piece = match tokio::time::timeout(KEEP_ALIVE, handle.changed()).await {
                Err(_) => Bytes::from_static(b": still here\n\n"),
                Ok(None) => return None,
                Ok(Some(operation)) => {
                    if !operation.state.is_final() {
                        tokio::time::sleep(EVENT_PAUSE).await;
                    }
                    event(&handle.current())
                }
            };
            if !listener.may_listen().await {
                return None;
            }
            Some((Ok(piece), (handle, (place, listener), None)))
        },
    );
    let buffering = HeaderName::from_static("x-accel-buffering");
    Ok(
        Answer::other("text/event-stream", Body::from_stream(changes))
            .header(buffering, HeaderValue::from_static("no")),
    )
}

/// Who listens to a stream of events: judged anew before each piece, so that a right that ends takes the stream along.
struct Listener {
    app: Arc<App>,
    principal: Principal,
    database: Option<String>,
    judged: u64,
}

impl Listener {
    async fn may_listen(&mut self) -> bool {
        let (engine, now) = (&self.app.engine, self.app.clock.wall());
        let epoch = engine.rights_epoch();
        let expires = self.principal.token.expires_at;
        if epoch == self.judged && expires.is_none_or(|at| at > now) {
            return true;
        }
        let role = engine.judge_again(&self.principal, self.database.as_deref());
        self.judged = epoch;
        role.await.is_ok_and(|role| role >= Role::Viewer)
    }
}

fn event(operation: &Operation) -> Bytes {
    Bytes::from(format!("event: operation\ndata: {}\n\n", shown(operation)))
}
