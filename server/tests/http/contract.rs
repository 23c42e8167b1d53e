//! The OpenAPI document against the server: every answer that any test here gets must be declared, every path and
//! method of the document must be served, and nothing else is.

use std::sync::LazyLock;

use reqwest::Method;
use serde_json::Value as Json;

use crate::world::{Got, World, fill, read};

static DOCUMENT: LazyLock<Json> = LazyLock::new(tidelog_server::openapi::document);

/// Whether a path is one of a template.
fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(wanted), Some(given)) if wanted == given => {}
            (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
            _ => return false,
        }
    }
}

/// Fails on an answer that the document does not declare.
pub(crate) fn declared(method: &Method, path: &str, got: &Got) {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let templates: Vec<&String> = paths
        .keys()
        .filter(|template| fits(template, path))
        .collect();
    // The literal one is meant where a placeholder would fit, too.
    let Some(template) = templates
        .iter()
        .min_by_key(|template| template.matches('{').count())
    else {
        return;
    };
    let operation = &paths[*template][method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        assert!(
            matches!(got.status, 204 | 405),
            "{method} {template}: {got:?}"
        );
        return;
    }
    let response = &operation["responses"][got.status.to_string()];
    assert!(
        !response.is_null(),
        "{method} {template} answered {}: {got:?}",
        got.status
    );
    if got.status >= 400 {
        let code = got.body["code"].as_str().unwrap_or_default();
        let listed = response["description"].as_str().unwrap_or_default();
        let known = listed.split(", ").any(|one| one == code);
        assert!(known, "{method} {template}: {code} is not among {listed:?}");
    }
}

/// Goal: the served document is the one of the code, and whatever it says is served is.
#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_document_is_served_and_every_route_is_in_it() {
    let world = World::start().await;
    let served = read(world.client.get(format!("{}/v1/openapi.json", world.base))).await;
    assert_eq!(
        (served.status, served.header("content-type")),
        (200, Some("application/json"))
    );
    assert_eq!(served.body, *DOCUMENT);
    assert_eq!(served.body["openapi"], "3.1.0");
    let mut count = 0;
    for (path, methods) in served.body["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            count += 1;
            let method: Method = method.to_ascii_uppercase().parse().expect("a method");
            let url = format!("{}{}", world.base, fill(path, "default", "none"));
            let got = read(world.client.request(method.clone(), url)).await;
            let public = methods[method.as_str().to_ascii_lowercase()]["security"].is_null();
            assert_eq!(got.status == 401, !public, "{method} {path}: {got:?}");
        }
    }
    assert_eq!(count, tidelog_server::surface().len());
    world.stop().await;
}
