//! Following an operation of a server until it has ended.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::Value as Json;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{Output, cell};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Sends a request that begins an operation, and answers what came of it: the members of its result.
pub(super) async fn followed(
    client: &Client,
    namespace: &str,
    request: RequestBuilder,
    output: &Output,
) -> Result<Json, Failure> {
    let answer = client.json(request).await?;
    let mut operation = answer["operation"].clone();
    let Some(id) = operation["id"].as_str().map(str::to_owned) else {
        return Ok(answer);
    };
    let bar = output.bar(100, "working");
    loop {
        bar.set_position(operation["progress_percent"].as_u64().unwrap_or(0));
        match operation["state"].as_str() {
            Some("succeeded") => {
                bar.finish_and_clear();
                return Ok(operation["result"].take());
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
    failure.document = operation.clone();
    failure
}
