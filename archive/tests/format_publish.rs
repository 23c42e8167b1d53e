//! Promises of publishing manifests.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod format_support;

use std::sync::Arc;

use format_support::manifests::{empty, full, segment};
use format_support::{DATABASE, NAMESPACE};
use tidelog_archive::envelope::WriteId;
use tidelog_archive::key::{Key, NonceSource};
use tidelog_archive::manifest::{Label, Loaded, Manifest, ManifestStore, Owner, PublishError};
use tidelog_archive::seal::Stamp;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_archive::{ErrorKind, SystemEntropy};
use tidelog_wal::{NodeId, Term};

fn store() -> Store {
    Store::open("memory:", StoreOptions::default()).expect("memory")
}

fn manifests(store: &Store) -> ManifestStore {
    ManifestStore::new(store.clone(), NAMESPACE, DATABASE, Arc::new(SystemEntropy))
}

fn owner(term: u32) -> Owner {
    Owner {
        term: Term::new(term),
        node: NodeId::from_bytes([1; 16]),
    }
}

async fn publish(
    manifests: &ManifestStore,
    current: &Loaded,
    term: u32,
    change: impl Fn(&mut Manifest),
) -> Result<Loaded, PublishError> {
    let nonces = NonceSource::new(Term::new(term), current.manifest.version << 20);
    let change = |manifest: &mut Manifest| -> Result<(), PublishError> {
        change(manifest);
        Ok(())
    };
    manifests
        .publish(current, owner(term), &nonces, change)
        .await
}

fn label(name: &str) -> Label {
    Label {
        name: name.into(),
        ..full().labels[0].clone()
    }
}

#[tokio::test]
async fn a_lost_swap_is_merged_with_what_was_written_meanwhile() {
    let store = store();
    let manifests = manifests(&store);
    let mut first = full();
    first.version = 1;
    let created = manifests.create(first.clone()).await.expect("create");
    let error = manifests.create(first).await.expect_err("it exists");
    assert!(matches!(error, PublishError::Exists { .. }), "{error}");
    // Both start from the same version: the second loses the swap, and keeps both labels.
    let one = |m: &mut Manifest| m.labels.push(label("one"));
    let two = |m: &mut Manifest| m.labels.push(label("two"));
    publish(&manifests, &created, 3, one).await.expect("one");
    let merged = publish(&manifests, &created, 3, two).await.expect("two");
    let names: Vec<&str> = merged
        .manifest
        .labels
        .iter()
        .map(|l| l.name.as_str())
        .collect();
    assert_eq!(names, ["before the migration", "one", "two"]);
    assert_eq!(merged.manifest.version, 3);
    let loaded = manifests.load().await.expect("load");
    assert_eq!(loaded.manifest, merged.manifest);
    assert_eq!(loaded.write_id, merged.write_id);
}

#[tokio::test]
async fn an_older_owner_is_fenced_and_changes_nothing() {
    let store = store();
    let manifests = manifests(&store);
    let created = manifests.create(empty()).await.expect("create");
    let taken = publish(&manifests, &created, 4, |_| ())
        .await
        .expect("a newer term takes over");
    let error = publish(&manifests, &created, 3, |m| m.append_segment(segment(0)))
        .await
        .expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(matches!(error, PublishError::Fenced { by, .. } if by == owner(4)));
    assert_eq!(
        manifests.load().await.expect("load").manifest,
        taken.manifest
    );
}

#[tokio::test]
async fn entries_that_do_not_fit_are_found_through_index_objects() {
    let store = store();
    let manifests = manifests(&store);
    let mut current = manifests.create(empty()).await.expect("create");
    for round in 0..30_u64 {
        let add = |m: &mut Manifest| {
            (round * 20..round * 20 + 20).for_each(|i| m.append_segment(segment(i)));
        };
        current = publish(&manifests, &current, 3, add)
            .await
            .expect("publish");
    }
    let loaded = manifests.load().await.expect("load").manifest;
    assert!(!loaded.index.is_empty());
    let mut all = Vec::new();
    for entry in &loaded.index {
        all.extend(
            manifests
                .load_index(entry)
                .await
                .expect("index object")
                .segments,
        );
    }
    all.extend(&loaded.segments);
    let want: Vec<_> = (0..600).map(segment).collect();
    assert_eq!(all, want);
    let missing = loaded.index[0].key(NAMESPACE, DATABASE).to_string();
    store.delete(&missing).await.expect("delete");
    let error = manifests
        .load_index(&loaded.index[0])
        .await
        .expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&missing), "{error}");
}

#[tokio::test]
async fn unsound_manifests_never_reach_the_store() {
    let store = store();
    let manifests = manifests(&store);
    let created = manifests.create(empty()).await.expect("create");
    let skip = publish(&manifests, &created, 3, |m| m.append_segment(segment(1))).await;
    assert_eq!(skip.expect_err("a hole").kind(), ErrorKind::Corrupt);
    assert_eq!(
        manifests.load().await.expect("load").write_id,
        created.write_id
    );
    let key = Key::manifest(NAMESPACE, DATABASE).to_string();
    let foreign = full()
        .encode(Stamp::plain(WriteId([1; 16])))
        .expect("encode")
        .bytes;
    let mut damaged = foreign.to_vec();
    damaged[200] ^= 1;
    store.delete(&key).await.expect("delete");
    store.create(&key, damaged.into()).await.expect("create");
    let error = manifests.load().await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    store.delete(&key).await.expect("delete");
    assert_eq!(
        manifests.load().await.expect_err("gone").kind(),
        ErrorKind::NotFound
    );
}
