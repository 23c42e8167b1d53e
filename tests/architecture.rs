//! The house keeps its shape: arrows between the crates point down, the layers know only what they may know,
//! and the sources are safe and ASCII. Read from `cargo metadata` and from the files themselves.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// The crates from the bottom up: each may depend on those before it.
const LAYERS: [&str; 4] = [
    "tidelog-wal",
    "tidelog-archive",
    "tidelog-engine",
    "tidelog-server",
];
/// What a crate must not name outside its tests, and why.
const FORBIDDEN: [(&str, &str, &str); 7] = [
    ("tidelog-wal", "tokio", "wal is pure bytes"),
    ("tidelog-wal", "object_store", "wal is pure bytes"),
    (
        "tidelog-wal",
        "rusqlite",
        "wal reads the bytes of SQLite, never through it",
    ),
    (
        "tidelog-archive",
        "rusqlite",
        "archive knows objects, not databases",
    ),
    (
        "tidelog-engine",
        "object_store",
        "engine reaches the store through archive",
    ),
    (
        "tidelog-server",
        "object_store",
        "server reaches the store through engine and archive",
    ),
    (
        "tidelog-server",
        "rusqlite",
        "server reaches SQLite through engine",
    ),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata reads the workspace")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> &'a Package {
    metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == name)
        .unwrap_or_else(|| panic!("the workspace has a package {name}"))
}

fn rust_files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).expect("a folder of the repository can be listed") {
        let path = entry.expect("a folder entry can be read").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Goal: DESIGN's order of the crates. Method: every dependency of a layer on a package of this workspace,
/// outside tests, must stand below it.
#[test]
fn dependency_arrows_point_down_only() {
    let metadata = metadata();
    let members: Vec<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    for (layer, name) in LAYERS.iter().enumerate() {
        for dependency in &package(&metadata, name).dependencies {
            let below = LAYERS[..layer].contains(&dependency.name.as_str());
            // Tests may name the test kit, and their own package once more, with the features that only tests use.
            let tests_only = dependency.kind == DependencyKind::Development
                && (dependency.name == "tidelog-testkit" || dependency.name == *name);
            assert!(
                below || tests_only || !members.contains(&dependency.name.as_str()),
                "{name} must not depend on {}",
                dependency.name
            );
        }
    }
}

#[test]
fn layers_name_only_what_they_may() {
    let metadata = metadata();
    for (name, forbidden, reason) in FORBIDDEN {
        for dependency in &package(&metadata, name).dependencies {
            assert!(
                dependency.kind != DependencyKind::Normal || dependency.name != forbidden,
                "{name} names {forbidden}: {reason}"
            );
        }
    }
}

#[test]
fn no_dependency_comes_from_outside_the_registry_or_the_workspace() {
    for package in metadata().workspace_packages() {
        for dependency in &package.dependencies {
            let source = dependency.source.as_ref().map(ToString::to_string);
            assert!(
                source
                    .as_deref()
                    .is_none_or(|source| source.starts_with("registry+")),
                "{} takes {} from {source:?}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn every_layer_forbids_unsafe_code() {
    let metadata = metadata();
    for name in LAYERS {
        for target in &package(&metadata, name).targets {
            if target.is_lib() || target.is_bin() {
                let path = target.src_path.as_std_path();
                let text = fs::read_to_string(path).expect("a crate root can be read");
                assert!(
                    text.contains("#![forbid(unsafe_code)]"),
                    "{} does not say #![forbid(unsafe_code)]",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn sources_are_ascii() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    assert!(
        files.len() > LAYERS.len(),
        "the sources were not found below {}",
        root().display()
    );
    for file in files {
        let text = fs::read(&file).expect("a source file can be read");
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            assert!(
                line.is_ascii(),
                "{}:{} is not ASCII",
                file.display(),
                number + 1
            );
        }
    }
}
