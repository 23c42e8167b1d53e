//! `docs/features.md` against the tests: what is called done names tests that exist, and no row is without a word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names of all functions of the tests and the unit tests.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut words = text
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .filter(|word| !word.is_empty());
            while let Some(word) = words.next() {
                if word == "fn" {
                    found.extend(words.next().map(str::to_owned));
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
        functions(&root().join(folder), &mut known);
    }
    let (mut rows, mut ids) = (0, BTreeSet::new());
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
        let tests: Vec<&str> = proof
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|text| {
                // A prefix of tokens is no test.
                text.contains('_')
                    && !text.ends_with('_')
                    && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            })
            .collect();
        match state {
            "done" => {
                assert!(!tests.is_empty(), "{id} is called done without a test");
                for test in tests {
                    assert!(
                        known.contains(test),
                        "{id} names {test}, which does not exist"
                    );
                }
            }
            "partly" => assert!(!proof.is_empty(), "{id} does not say what is missing"),
            "not yet" => {}
            _ => panic!("{id} has the state {state:?}"),
        }
    }
    assert!(rows > 100, "{rows} rows");
}
