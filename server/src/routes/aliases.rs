//! Routes under the names they have elsewhere: D1's time travel, sqld's fork. Each says in other words what a route of
//! ours says, and calls its handler: role, `If-Match`, limits, operation and record are those of that route.
//!
//! Their clients cannot send an Idempotency-Key, so none is asked for; one that is sent counts.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value as Json, json};

use super::{forks, restores, time};
use crate::fields::Fields;
use crate::http::answer::Content;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// How long these clients, who look at no operation, are kept waiting for one if they do not say.
const WAIT: Duration = Duration::from_secs(30);

fn patient(call: &mut Call) {
    if !call.headers.contains_key("prefer") {
        call.wait = WAIT.min(call.app.limits.request_deadline / 2);
    }
}

/// D1's `GET time_travel/bookmark`: the present one, or that of `timestamp`.
pub(super) async fn bookmark(call: Call) -> Result<Answer, Problem> {
    if call.query.names().iter().any(|name| name == "timestamp") {
        time::at(call).await
    } else {
        time::current(call).await
    }
}

/// D1's `POST time_travel/restore`, to `bookmark` or `timestamp` of the query.
pub(super) async fn restore(mut call: Call) -> Result<Answer, Problem> {
    std::mem::take(&mut call.body).finish()?;
    let target: Map<String, Json> = ["bookmark", "timestamp"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), call.query.take(name)?)))
        .collect();
    if target.len() != 1 {
        let detail = "give exactly one of bookmark and timestamp in the query";
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    call.body = Fields::of_value(json!({ "target": target }), "")?;
    patient(&mut call);
    restores::create(call).await
}

/// What both of D1's routes answer, bare and in the envelope of its API.
pub(super) fn as_d1(mut answer: Answer) -> Answer {
    let Content::Json(document) = &answer.content else {
        return answer;
    };
    let mut result = Map::new();
    for name in ["bookmark", "previous_bookmark"] {
        if let Some(value) = document.get(name) {
            result.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(id) = document["operation"]["id"].as_str() {
        let message = if answer.status == StatusCode::ACCEPTED {
            format!("the restore goes on as operation {id}")
        } else {
            "the database is put back; restore to previous_bookmark to undo it".to_owned()
        };
        result.insert("message".to_owned(), json!(message));
    }
    let mut whole = result.clone();
    whole.insert("result".to_owned(), Json::Object(result));
    whole.insert("success".to_owned(), json!(true));
    whole.insert("errors".to_owned(), json!([]));
    whole.insert("messages".to_owned(), json!([]));
    answer.content = Content::Json(Json::Object(whole));
    answer
}

/// sqld's `POST fork/{to}`: of the newest state, or that of `timestamp`, which is UTC without saying so.
pub(super) async fn fork(mut call: Call) -> Result<Answer, Problem> {
    let timestamp = call.body.text("timestamp")?.map(|text| {
        if crate::time::parse(&text).is_ok() {
            text
        } else {
            format!("{text}Z")
        }
    });
    std::mem::take(&mut call.body).finish()?;
    let mut fields = json!({ "name": call.name("to")? });
    if let Some(timestamp) = timestamp {
        fields["target"] = json!({ "timestamp": timestamp });
    }
    call.body = Fields::of_value(fields, "")?;
    patient(&mut call);
    forks::create(call).await
}

/// sqld knows 200 alone for what is done.
pub(super) fn as_sqld(mut answer: Answer) -> Answer {
    if answer.status == StatusCode::CREATED {
        answer.status = StatusCode::OK;
    }
    answer
}
