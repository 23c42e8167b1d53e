//! The OpenAPI 3.1 document of what is served, built from the route table and from nothing else.
//!
//! Paths, methods, roles, headers, bodies and statuses follow from the table; [`describe`] adds what each call is
//! for, its fields and an example. A route without a description is in the document all the same.

mod describe;
mod refusals;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::Method;
use serde_json::{Map, Value as Json, json};

use crate::http::{Access, BodyKind, Route};
use crate::problem::Code;
use describe::{Description, Field};
use refusals::may_answer;

/// The document as text; it never changes while the program runs.
pub(crate) static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// The routes that the document tells of: Hrana has a specification of its own.
fn documented() -> impl Iterator<Item = Route> {
    crate::routes::table()
        .into_iter()
        .filter(|route| !route.hrana)
}

/// The document.
pub fn document() -> Json {
    let mut paths: BTreeMap<&'static str, Map<String, Json>> = BTreeMap::new();
    for route in documented() {
        let method = route.method.as_str().to_ascii_lowercase();
        paths
            .entry(route.path)
            .or_default()
            .insert(method, operation(&route));
    }
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidelog",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "SQLite databases over HTTP, every commit kept, any of them restorable.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "A token of this server, or a signed token (JWT)." },
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "description": "RFC 9457",
                    "required": ["type", "title", "status", "detail", "instance", "code", "request_id", "retryable"],
                    "properties": {
                        "type": { "type": "string" },
                        "title": { "type": "string" },
                        "status": { "type": "integer" },
                        "detail": { "type": "string" },
                        "instance": { "type": "string" },
                        "code": { "type": "string", "examples": codes },
                        "request_id": { "type": "string" },
                        "retryable": { "type": "boolean" },
                        "required": { "type": "string" },
                        "errors": { "type": "array", "items": { "type": "object" } },
                    },
                },
                "Value": {
                    "description": "null, a number, a string, a boolean, {\"base64\": \"...\"} or {\"real\": \"inf\"}",
                },
            },
        },
    })
}

fn operation(route: &Route) -> Json {
    let told = describe::of(&route.method, route.path);
    let mut operation = json!({
        "operationId": id(route),
        "summary": told.summary,
        "tags": [tag(route.path)],
        "parameters": parameters(route, &told),
        "responses": responses(route, &told),
    });
    let role = match route.access {
        Access::Public => None,
        Access::Role(role) => Some(role.as_str()),
        Access::Server => Some("server"),
    };
    if let Some(role) = role {
        operation["security"] = json!([{ "token": [] }]);
        operation["x-required-role"] = json!(role);
    }
    match route.body {
        BodyKind::None | BodyKind::Raw => {}
        BodyKind::Json => {
            let mut content = json!({ "schema": object(told.body) });
            if let Some(example) = told.example {
                // An example that is no JSON is a defect, which a test finds.
                content["example"] = serde_json::from_str(example).unwrap_or_default();
            }
            let required = told.body.iter().any(|field| field.required);
            operation["requestBody"] =
                json!({ "required": required, "content": { "application/json": content } });
        }
        BodyKind::File => {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } },
            });
        }
    }
    operation
}

fn id(route: &Route) -> String {
    let words = route
        .path
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let words: Vec<&str> = words
        .filter(|word| !matches!(*word, "v1" | "namespaces" | "ns"))
        .collect();
    let words = if words.is_empty() {
        vec!["namespaces"]
    } else {
        words
    };
    let mut words = words;
    if route.access == Access::Server && route.path != "/v1/namespaces" {
        words.insert(0, "server");
    }
    let short = if route.path.starts_with("/v1/db/") {
        "_short"
    } else {
        ""
    };
    format!(
        "{}_{}{short}",
        route.method.as_str().to_ascii_lowercase(),
        words.join("_")
    )
}

fn tag(path: &str) -> &str {
    let mut segments = path
        .split('/')
        .filter(|segment| !segment.is_empty() && !segment.starts_with('{'));
    let last = segments.next_back();
    match last {
        Some("query" | "batch") => "sql",
        Some("healthz" | "readyz" | "metrics" | "openapi.json") | None => "server",
        Some(word) => word,
    }
}

fn parameters(route: &Route, told: &Description) -> Vec<Json> {
    let mut found = Vec::new();
    for name in route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
    {
        found.push(
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
        );
    }
    for field in told.query {
        found.push(json!({
            "name": field.name,
            "in": "query",
            "required": field.required,
            "description": field.about,
            "schema": schema(field.kind),
        }));
    }
    if route.method == Method::POST && route.access != Access::Public {
        found.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "description": if route.key_required { "Required unless dry_run is true." } else { "Makes a retry safe." },
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
        }));
    }
    if route.conditional {
        found.push(json!({
            "name": "If-Match",
            "in": "header",
            "required": false,
            "description": "A bookmark in quotes: only if the database has not moved.",
            "schema": { "type": "string", "pattern": "^\"[0-9a-f]{8}-[0-9a-f]{16}-[0-9a-f]{32}\"$" },
        }));
    }
    found
}

fn schema(kind: &str) -> Json {
    match kind {
        "integer" => json!({ "type": "integer", "minimum": 0 }),
        "integer or null" => json!({ "type": ["integer", "null"], "minimum": 0 }),
        "text or null" => json!({ "type": ["string", "null"] }),
        "boolean" => json!({ "type": "boolean" }),
        "texts" => json!({ "type": "array", "items": { "type": "string" } }),
        "object" => json!({ "type": "object" }),
        "objects" => json!({ "type": "array", "items": { "type": "object" } }),
        "time" => json!({ "type": "string", "description": "RFC 3339 or Unix milliseconds" }),
        "params" => json!({ "oneOf": [
            { "type": "array", "items": { "$ref": "#/components/schemas/Value" } },
            { "type": "object", "additionalProperties": { "$ref": "#/components/schemas/Value" } },
        ] }),
        _ => json!({ "type": "string" }),
    }
}

fn object(fields: &[Field]) -> Json {
    let properties: Map<String, Json> = fields
        .iter()
        .map(|field| {
            let mut schema = schema(field.kind);
            schema["description"] = json!(field.about);
            (field.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<&str> = fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": fields.is_empty() })
}

/// The codes of refusals that a route can answer, by status.
fn refusals(route: &Route) -> BTreeMap<u16, Vec<&'static str>> {
    let mut found: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for code in Code::ALL.iter().filter(|code| may_answer(route, **code)) {
        let status = code.status().as_u16();
        found.entry(status).or_default().push(code.as_str());
    }
    found
}

fn responses(route: &Route, told: &Description) -> Json {
    let mut found = Map::new();
    for status in told.success {
        let mut response = json!({ "description": told.summary });
        if let Some(kind) = told.answer
            && *status != 204
        {
            response["content"] = json!({ kind: {} });
        }
        found.insert(status.to_string(), response);
    }
    let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    for (status, codes) in refusals(route) {
        let response = json!({ "description": codes.join(", "), "content": problem });
        found.insert(status.to_string(), response);
    }
    Json::Object(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_once_with_an_id_of_its_own() {
        let document = document();
        let routes: Vec<Route> = documented().collect();
        let mut ids = BTreeSet::new();
        for route in &routes {
            let method = route.method.as_str().to_ascii_lowercase();
            let operation = &document["paths"][route.path][&method];
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(
                operation["responses"]
                    .as_object()
                    .is_some_and(|all| all.len() > 3),
                "{id}"
            );
        }
        let count: usize = document["paths"]
            .as_object()
            .expect("paths")
            .values()
            .map(|path| path.as_object().map_or(0, Map::len))
            .sum();
        assert_eq!(count, routes.len());
    }

    /// Goal: what is listed under a status tells something: a route does not list what others alone can answer.
    #[test]
    fn a_route_lists_no_code_of_another_kind_of_route() {
        let document = document();
        let listed = |method: &str, path: &str, status: &str| {
            let response = &document["paths"][path][method]["responses"][status];
            let text = response["description"].as_str().unwrap_or_default();
            text.split(", ").map(str::to_owned).collect::<Vec<_>>()
        };
        let token = "/v1/namespaces/{ns}/tokens/{token}";
        let missing = listed("get", token, "404");
        assert!(missing.contains(&"token-not-found".to_owned()));
        assert!(
            !missing
                .iter()
                .any(|code| code.contains("snapshot") || code.contains("archive"))
        );
        let database = "/v1/namespaces/{ns}/databases/{db}";
        assert_eq!(
            listed("get", database, "412"),
            [""],
            "nothing is conditional there"
        );
        assert_eq!(listed("get", database, "415"), [""], "no body");
        let query = format!("{database}/query");
        assert_eq!(listed("post", &query, "412"), [""]);
        assert!(listed("post", &query, "504").contains(&"query-timeout".to_owned()));
        let restores = format!("{database}/restores");
        let moved = listed("post", &restores, "412");
        assert_eq!(moved, ["database-moved", "plan-stale"]);
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let text = operation["responses"].to_string();
                assert!(
                    !text.contains("baton-invalid"),
                    "{method} {path}: Hrana's alone"
                );
            }
        }
    }

    #[test]
    fn every_description_belongs_to_a_route_and_every_example_is_json() {
        let routes: Vec<Route> = documented().collect();
        for (method, path, told) in describe::all() {
            let known = routes
                .iter()
                .any(|route| route.method.as_str() == method && route.path == path);
            assert!(known, "{method} {path} is described and not served");
            if let Some(example) = told.example {
                let value: Json = serde_json::from_str(example).unwrap_or_default();
                let fields = value
                    .as_object()
                    .unwrap_or_else(|| panic!("{method} {path}: {example}"));
                for name in fields.keys() {
                    let known = told.body.iter().any(|field| field.name == name);
                    assert!(known, "{method} {path}: {name} is in the example alone");
                }
            }
        }
    }
}
