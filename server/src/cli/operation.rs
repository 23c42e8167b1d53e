//! Following an operation of a server until it has ended.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value as Json, json};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{Output, cell};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Seconds that the server is to wait for the end of an operation before its progress is shown.
const FIRST_LOOK: &str = "wait=2";

/// Sends a request that begins an operation, and answers what came of it: the members of its result, and the id of the
/// `operation`.
///
/// One that fails is told apart by the code of its error, as a call that is refused is: whether it took long makes no
/// difference.
pub(super) async fn followed(
    client: &Client,
    namespace: &str,
    request: RequestBuilder,
    output: &Output,
) -> Result<Json, Failure> {
    let answer = client.json(request.header("prefer", FIRST_LOOK)).await?;
    let mut operation = answer["operation"].clone();
    let Some(id) = operation["id"].as_str().map(str::to_owned) else {
        return Ok(answer);
    };
    let bar = output.bar(100, "working");
    loop {
        bar.set_message(cell(&operation["phase"]));
        bar.set_position(operation["progress_percent"].as_u64().unwrap_or(0));
        match operation["state"].as_str() {
            Some("succeeded") => {
                bar.finish_and_clear();
                let mut done = operation["result"].take();
                done["operation"] = json!(id);
                return Ok(done);
            }
            Some("failed" | "cancelled") => {
                bar.finish_and_clear();
                return Err(failure(&operation));
            }
            _ => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let path = ["namespaces", namespace, "operations", &id];
        operation = client.json(client.request(Method::GET, &path)).await?;
    }
}

fn failure(operation: &Json) -> Failure {
    let error = &operation["error"];
    let code = error["code"].as_str().unwrap_or("operation-cancelled");
    let detail = match error["detail"].as_str() {
        Some(detail) => detail.to_owned(),
        None => "the operation was cancelled".to_owned(),
    };
    let status = crate::problem::Code::parse(code).map_or(500, |code| code.status().as_u16());
    let mut failure = Failure::new(
        Exit::of_problem(status, code),
        format!("{detail} ({code}); operation {}", cell(&operation["id"])),
    );
    // As the problem of a call that waited for the end: code, detail and what belongs to the code.
    let mut document = error.as_object().cloned().unwrap_or_default();
    document.insert("code".to_owned(), json!(code));
    document.insert("detail".to_owned(), json!(detail));
    document.insert("status".to_owned(), json!(status));
    document.insert("operation".to_owned(), operation["id"].clone());
    failure.document = Json::Object(document);
    failure
}
