//! `docs/features.md` against the tests: what is called done names tests that exist, and no row is without a word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Groups of rows that make the surface: what is CORE there is not put off.
const SURFACE: [&str; 11] = [
    "AUTH", "ISO", "LOG", "ROLE", "Q", "RL", "HDR", "OBS", "SEC", "INC", "SUP",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What is CORE, by id: no row of these may go, nor become less.
const CORE: [&str; 30] = [
    "AUTH-2", "ISO-1", "ISO-2", "ISO-4", "ISO-5", "ISO-6", "ISO-7", "ENC-3", "RES-2", "RES-3",
    "BAK-1", "BAK-2", "BAK-3", "BAK-4", "BAK-5", "BAK-6", "BAK-7", "BAK-8", "BAK-9", "BAK-10",
    "BAK-11", "BAK-13", "BAK-14", "BAK-15", "Q-1", "Q-11", "JOB-1", "JOB-2", "OBS-1", "CMP-1",
];
/// Rows of the page, at least.
const ROWS: usize = 132;

/// The names of all tests and unit tests.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let function = line.split_once("fn ").filter(|_| is_test);
                if let Some((_, rest)) = function {
                    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                    found.extend(end.and_then(|end| rest.get(..end)).map(str::to_owned));
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_row_of_the_features_page_is_proven_or_says_what_is_missing() {
    let page = std::fs::read_to_string(root().join("docs/features.md")).expect("docs/features.md");
    let mut known = BTreeSet::new();
    for folder in ["server", "engine", "archive", "wal", "tests"] {
        tests(&root().join(folder), &mut known);
    }
    let (mut rows, mut core, mut ids) = (0, BTreeSet::new(), BTreeSet::new());
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, name, class, state, proof] = cells[..] else {
            panic!("a row has five cells: {line}");
        };
        if id == "id" || id.starts_with("---") {
            continue;
        }
        rows += 1;
        assert!(ids.insert(id.to_owned()), "{id} twice");
        assert!(
            !name.is_empty() && matches!(class, "CORE" | "SHOULD"),
            "{line}"
        );
        let named: Vec<&str> = proof
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|text| {
                // A prefix of tokens is no test.
                text.contains('_')
                    && !text.ends_with('_')
                    && text
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            })
            .collect();
        let group = id.split('-').next().unwrap_or_default();
        if class == "CORE" {
            assert!(!named.is_empty(), "{id} is CORE and names no test");
            assert!(
                state == "done" || !SURFACE.contains(&group),
                "{id} is CORE and belongs to the HTTP surface"
            );
            core.insert(id);
        }
        for test in &named {
            assert!(known.contains(*test), "{id} names {test}, which is no test");
        }
        match state {
            "done" => assert!(!named.is_empty(), "{id} is called done without a test"),
            "partly" => assert!(!proof.is_empty(), "{id} does not say what is missing"),
            "not yet" => {}
            _ => panic!("{id} has the state {state:?}"),
        }
    }
    assert!(rows >= ROWS, "{rows} rows");
    for id in CORE {
        assert!(core.contains(id), "{id} is no CORE row any more");
    }
}

/// Goal: SEC-5. The files that run a server for somebody never run it as root, and keep what they may not reach
/// away from it.
#[test]
fn a_deployed_server_is_nobody_in_particular() {
    let read = |name: &str| {
        let text = std::fs::read_to_string(root().join("deploy").join(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let unit = read("tidelog.service");
    let lines: BTreeSet<&str> = unit.lines().collect();
    for line in [
        "User=tidelog",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateDevices=yes",
        "UMask=0077",
    ] {
        assert!(lines.contains(line), "{line} is missing");
    }
    let image = read("Dockerfile");
    let last_user = image.lines().rfind(|line| line.starts_with("USER "));
    assert_eq!(last_user, Some("USER 10001:10001"));
    assert!(image.contains("cargo build --release --locked"));
    for from in image.lines().filter(|line| line.starts_with("FROM ")) {
        let name = from.split(' ').nth(1).unwrap_or_default();
        let tag = name.split_once(':').map(|(_, tag)| tag);
        assert!(
            tag.is_some_and(|tag| tag.contains(|c: char| c.is_ascii_digit())),
            "{from}"
        );
    }
}

/// Goal: SUP-3. Updates come weekly and together.
#[test]
fn updates_come_weekly_and_grouped() {
    let file = std::fs::read_to_string(root().join(".github/dependabot.yml")).expect("the file");
    for word in ["package-ecosystem: cargo", "interval: weekly", "groups:"] {
        assert!(file.contains(word), "{word}");
    }
}
