//! The OpenAPI document against the server, both ways: every answer that any test here gets must be declared, every
//! path and method of the document must be served, and every answer that is declared must have been seen.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;

use reqwest::Method;
use serde_json::Value as Json;
use tidelog_server::Served;

use crate::world::{Got, World, fill, read};

static DOCUMENT: LazyLock<Json> = LazyLock::new(tidelog_server::openapi::document);

/// Names the file that takes every answer down, one a line.
const SEEN: &str = "TIDELOG_TEST_ANSWERS";

/// An answer as the document declares it; one that succeeded has no code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    code: String,
    status: u16,
    method: String,
    path: String,
}

impl Told {
    /// Its code, or its status.
    fn key(&self) -> String {
        if self.code.is_empty() {
            return self.status.to_string();
        }
        self.code.clone()
    }

    fn line(&self) -> String {
        format!("{} {} {}", self.key(), self.method, self.path)
    }
}

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

/// The template of a path. The literal one is meant where a placeholder would fit, too.
fn template_of(path: &str) -> Option<&'static str> {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let templates = paths.keys().filter(|template| fits(template, path));
    let template = templates.min_by_key(|template| template.matches('{').count());
    template.map(String::as_str)
}

/// The body that the document shows as an example.
pub(crate) fn example(served: &Served) -> Option<Json> {
    let operation = &DOCUMENT["paths"][served.path][served.method.to_ascii_lowercase()];
    let example = &operation["requestBody"]["content"]["application/json"]["example"];
    (!example.is_null()).then(|| example.clone())
}

/// Fails on an answer that the document does not declare.
pub(crate) fn declared(method: &Method, path: &str, got: &Got) {
    let Some(template) = template_of(path) else {
        return;
    };
    let operation = &DOCUMENT["paths"][template][method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        assert!(
            matches!(got.status, 204 | 405),
            "{method} {template}: {got:?}"
        );
        return;
    }
    let code = match got.status {
        400.. => got.body["code"].as_str().unwrap_or_default(),
        _ => "",
    };
    // A path that looks like one and is none: the router says so before any route is asked.
    if code == "not-found" {
        return;
    }
    // Whoever only looks what there is judges it afterwards.
    if let Some(file) = std::env::var_os(SEEN) {
        use std::io::Write as _;
        let line = format!("{method} {template} {} {code}\n", got.status);
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("the answer is taken down");
        return;
    }
    let response = &operation["responses"][got.status.to_string()];
    assert!(
        !response.is_null(),
        "{method} {template} answered {}: {got:?}",
        got.status
    );
    if got.status >= 400 {
        let listed = response["description"].as_str().unwrap_or_default();
        let known = listed.split(", ").any(|one| one == code);
        assert!(known, "{method} {template}: {code} is not among {listed:?}");
    }
}

/// Every answer that the document declares.
fn told() -> BTreeSet<Told> {
    let mut all = BTreeSet::new();
    for (path, methods) in DOCUMENT["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let responses = operation["responses"].as_object().expect("responses");
            for (status, response) in responses {
                let status: u16 = status.parse().expect("a status");
                let listed = response["description"].as_str().unwrap_or_default();
                let listed = if status < 400 { "" } else { listed };
                all.extend(listed.split(", ").map(|code| Told {
                    code: code.to_owned(),
                    status,
                    method: method.to_ascii_uppercase(),
                    path: path.clone(),
                }));
            }
        }
    }
    all
}

/// Every answer that the tests of this program get, all of them run.
fn seen() -> BTreeSet<Told> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("answers");
    // Behind everything else that runs: others measure.
    let ran = Command::new("nice")
        .arg(std::env::current_exe().expect("this executable"))
        .args([
            "--skip",
            "contract::",
            "--skip",
            "neighbours::",
            "--skip",
            "slow::",
        ])
        .env(SEEN, &file)
        .output()
        .expect("the tests run");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");
    read_seen(&file)
}

/// What was taken down.
fn read_seen(file: &std::path::Path) -> BTreeSet<Told> {
    let text = std::fs::read_to_string(file).expect("what they were answered");
    let told = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let mut next = || words.next().expect("a word");
        let (method, path, status, code) = (next(), next(), next(), next());
        let status = status.parse().expect("a status");
        Told {
            code,
            status,
            method,
            path,
        }
    };
    text.lines().map(told).collect()
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

/// What no call of this program gets, and why. Stale once one does.
const NEVER: &[(&str, &str)] = &[
    (
        "internal",
        "a defect of the server's own: whoever can provoke one mends it",
    ),
    (
        "database-corrupt",
        "the files of a database are damaged under a server that runs",
    ),
    ("writer-fenced", "another server takes over meanwhile"),
    ("key-unavailable", "a server that runs loses its master key"),
    (
        "database-busy",
        "the write gate is held for longer than anybody but a client of Hrana holds it",
    ),
    (
        "journal-full",
        "the store is away until the disk's share is full",
    ),
    (
        "durability-timeout",
        "the store is slower than a commit waits; `hrana_durable` has it, of the same commits",
    ),
    (
        "operation-interrupted",
        "the server stops, and with it the connection of whoever would be told",
    ),
    (
        "overloaded",
        "more at once than there is room for; `neighbours` has it, which is left out here",
    ),
];

/// What some calls get here and not each that declares it, since it arises in one place beneath all of them. Stale once
/// it is seen everywhere or nowhere. Success is named by its status.
const BENEATH: &[(&str, &str)] = &[
    (
        "202",
        "whether an operation outlasts the patience of its caller",
    ),
    (
        "object-corrupt",
        "whatever is read of the store may be damaged",
    ),
    (
        "storage-unavailable",
        "whatever asks the store may find it away",
    ),
    ("disk-full", "whatever writes may find no room"),
    (
        "outcome-unknown",
        "whatever takes longer than a request may; `hrana_bad` has it, too",
    ),
    (
        "request-timeout",
        "a GET that sends a body can be late with it, too",
    ),
    (
        "idempotency-key-reused",
        "what was asked under a key is compared before any handler",
    ),
    (
        "idempotency-in-progress",
        "two calls with one key meet before any handler",
    ),
    (
        "operation-in-progress",
        "two operations of a database meet before either begins",
    ),
    (
        "operation-cancelled",
        "whoever waits for an operation is told that somebody cancelled it",
    ),
];

/// Goal: the document declares nothing that no call ever gets. Method: the whole program runs once more and takes every
/// answer down; what is declared and was not seen must be among what says why.
#[test]
#[ignore = "it runs the whole program once more, and wants the machine: scripts/test has it"]
fn every_answer_that_is_declared_has_been_seen() {
    let (told, seen) = (told(), seen());
    let unseen: BTreeSet<&Told> = told.difference(&seen).collect();
    let is_seen = |key: &str| {
        seen.iter()
            .any(|one| one.key() == key && told.contains(one))
    };
    let lacks = |key: &str| unseen.iter().any(|one| one.key() == key);
    let mut wrong = Vec::new();
    for one in &unseen {
        let key = one.key();
        let any = NEVER.iter().chain(BENEATH).any(|(known, _)| *known == key);
        if !any {
            wrong.push(format!("never seen: {}", one.line()));
        }
    }
    for one in seen.difference(&told) {
        wrong.push(format!("not declared: {}", one.line()));
    }
    for (key, why) in NEVER {
        if is_seen(key) || !lacks(key) {
            wrong.push(format!("{key} is seen, or declared nowhere: {why}"));
        }
    }
    for (key, why) in BENEATH {
        if !is_seen(key) || !lacks(key) {
            wrong.push(format!("{key} is seen everywhere or nowhere: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
