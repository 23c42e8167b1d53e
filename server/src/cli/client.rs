//! The HTTP client of the commands that ask a server.

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value as Json;
use tidelog_archive::{Entropy as _, SystemEntropy};

use super::exit::{Exit, Failure};

/// Paths that take nothing without an Idempotency-Key.
const KEYED: [&str; 6] = [
    "restores", "undo", "forks", "branches", "archives", "erasures",
];

/// A server and a token for it.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
}

impl Client {
    pub(crate) fn new(url: &str, token: String) -> Result<Self, Failure> {
        let base = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && !url.cannot_be_a_base())
            .ok_or_else(|| Failure::usage(format!("{url:?} is not an http:// or https:// URL")))?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("tidelog/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::failed(format!("cannot set up HTTP: {error}")))?;
        Ok(Self { http, base, token })
    }

    /// A request for a path given by its segments, each of which is encoded.
    pub(crate) fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(segments);
        }
        // What must not be done twice carries a key: a retry by the HTTP client then does no harm.
        let keyed =
            method == Method::POST && segments.iter().any(|segment| KEYED.contains(segment));
        let request = self.http.request(method, url).bearer_auth(&self.token);
        if keyed {
            let key = format!("cli-{:032x}", u128::from_be_bytes(SystemEntropy.bytes16()));
            return request.header("idempotency-key", key);
        }
        request
    }

    /// Sends a request; a refusal becomes a failure with the exit code that fits it.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(refusal(status, &text))
    }

    /// Sends a request and reads a document; an empty answer reads as null.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Json, Failure> {
        let response = self.send(request).await?;
        let text = response
            .text()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if text.is_empty() {
            return Ok(Json::Null);
        }
        serde_json::from_str(&text)
            .map_err(|error| Failure::failed(format!("the server's answer is not JSON: {error}")))
    }

    /// Why no answer came, with its causes: the text of the error alone seldom says.
    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let causes = crate::problem::causes(error);
        Failure::failed(format!("no answer from {}: {error}: {causes}", self.base))
    }
}

fn refusal(status: StatusCode, text: &str) -> Failure {
    let Ok(document) = serde_json::from_str::<Json>(text) else {
        return Failure::new(
            Exit::of_problem(status.as_u16(), ""),
            format!("the server answered {status}"),
        );
    };
    let code = document["code"].as_str().unwrap_or_default();
    let detail = document["detail"].as_str().unwrap_or_default();
    let mut message = format!("{detail} ({status}, {code})");
    for near in [
        "current_bookmark",
        "nearest_earlier",
        "oldest_available",
        "latest",
        "required",
        "limit",
    ] {
        if let Some(value) = document.get(near) {
            message.push_str("; ");
            message.push_str(near);
            message.push_str(": ");
            message.push_str(&super::output::cell(value));
        }
    }
    Failure {
        exit: Exit::of_problem(status.as_u16(), code),
        message,
        document,
    }
}
