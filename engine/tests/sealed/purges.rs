//! A purge destroys the key: what old versions and copies of a bucket still hold is noise, and the answer says what is left.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tidelog_archive::key::Key;
use tidelog_engine::bucket::Bucket;
use tidelog_engine::travel::archives::Format;
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::{Code, Engine, MasterKeys, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, Op, script};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_wal::{DatabaseId, NamespaceId};

use super::world::{
    archived, copy, count, faulty, files, fill, find, make, masters, run, settings, settled, start,
    succeeded, url,
};

/// How many objects and journal sections of a database open from the raw bytes of a bucket, and how many are refused
/// for want of a key.
async fn opened(
    folder: &Path,
    keys: &MasterKeys,
    (namespace, id): (NamespaceId, DatabaseId),
) -> (usize, usize) {
    use tidelog_archive::envelope::{Expect, FormatError, Header, Object, ObjectKind};
    use tidelog_archive::journal::{JournalObject, slot_kind};
    let bucket = Bucket::open_with_keys(&url(folder), keys)
        .await
        .expect("bucket");
    let store = bucket.store();
    let root = folder.join("store");
    let (mut opens, mut refused) = (0, 0);
    let mut judge = |result: Result<(), FormatError>| match result {
        Ok(()) => opens += 1,
        Err(FormatError::KeyUnavailable { .. }) => refused += 1,
        Err(error) => panic!("{error}"),
    };
    for file in files(&root) {
        let key = file.strip_prefix(&root).expect("below");
        // The running node may have removed it meanwhile.
        let Ok(bytes) = std::fs::read(&file) else {
            continue;
        };
        let bytes = Bytes::from(bytes);
        match Key::parse(&key.to_string_lossy()) {
            Some(Key::Journal(term, seq)) if slot_kind(&bytes) == Ok(ObjectKind::Journal) => {
                store.unlock_head(&bytes).await.expect("the system's key");
                let journal =
                    JournalObject::decode(&bytes, term, seq, store.keys()).expect("index");
                for section in &journal.sections {
                    let meta = &section.meta;
                    if meta.database != id {
                        continue;
                    }
                    store
                        .unlock(meta.namespace, meta.database, meta.key_id)
                        .await
                        .expect("read the key object");
                    let stored = journal.section_bytes(section).expect("whole");
                    let mut blocks = journal.blocks(section, &stored);
                    judge(blocks.next().expect("a block").map(drop));
                }
            }
            Some(Key::Database(_, database, _)) if database == id => {
                let header = Header::decode(&bytes).expect("header");
                if header.kind == ObjectKind::Key {
                    continue;
                }
                store
                    .unlock_head(&bytes)
                    .await
                    .expect("read the key object");
                let expect = Expect::database(header.kind, namespace, id);
                judge(Object::open(&bytes, expect, store.keys()).map(drop));
            }
            _ => {}
        }
    }
    (opens, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_says_whether_and_until_when_old_versions_live() {
    // Goal: nobody takes a purge for more than it is. Method: one in a bucket that keeps versions, without and with
    // the rule that removes them said, and one in a bucket that keeps none.
    for (versions, rule) in [(true, None), (true, Some(3)), (false, Some(3))] {
        let folder = tempfile::tempdir().expect("tempdir");
        let (faults, store) = faulty(script(|_| Fault::None));
        if versions {
            faults.keep_versions();
        }
        let settings = Settings {
            old_versions: rule.map(|days| Duration::from_secs(days * 86_400)),
            ..settings(folder.path(), &masters(&[("k1", 1)]))
        };
        let engine = Engine::start_on(settings, Parts::production(), store).await;
        let engine = engine.expect("start");
        let database = make(&engine, "orders").await;
        let namespace = database.row().namespace;
        drop(database);
        let said = succeeded(
            engine
                .database_purge(namespace, "orders", Purge::default())
                .await,
        )
        .await;
        let old = &said["old_versions"];
        assert_eq!(old["kept"], versions, "{said}");
        assert_eq!(old["gone_at"].is_string(), versions && rule.is_some());
        if let Some(gone) = old["gone_at"].as_str() {
            let now = said["objects_gone_at"].as_str().expect("a time");
            assert!(gone[..10] > now[..10], "{said}");
        }
        let copies = said["copies"].as_str().expect("words");
        assert_eq!(copies.contains("open with the master key"), versions);
        let said = succeeded(engine.namespace_purge(namespace, None).await).await;
        assert_eq!(said["old_versions"]["kept"], versions, "{said}");
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_may_not_delete_says_so_and_is_ended_once_it_may() {
    // Goal: a bucket that refuses deletions, by its policy or a lock, keeps noise alone, and the answer says what was
    // refused. Method: deletions below the database are forbidden; its keys are destroyed all the same; then they are
    // allowed, and the purge is asked for again.
    let folder = tempfile::tempdir().expect("tempdir");
    let (faults, store) = faulty(script(|call| {
        if call.op == Op::Delete && call.key.starts_with("tenants/") {
            Fault::Denied
        } else {
            Fault::None
        }
    }));
    let settings = settings(folder.path(), &masters(&[("k1", 1)]));
    let engine = Engine::start_on(settings, Parts::production(), store).await;
    let engine = engine.expect("start");
    let database = make(&engine, "orders").await;
    archived(&database, Format::Sqlite).await;
    let (namespace, id) = (database.row().namespace, database.row().id);
    drop(database);
    let begun = engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let ended = begun.expect("begun").wait(Duration::from_mins(1)).await;
    let why = ended.error.expect("it may not delete");
    assert_eq!(why.code, "storage-unavailable", "{}", why.detail);
    assert!(why.detail.contains("not permitted"), "{}", why.detail);
    let status = engine.key_status(namespace, id).await.expect("status");
    assert!(status.expect("it was sealed").shredded.is_some());
    faults.set_plan(script(|_| Fault::None));
    let said = succeeded(
        engine
            .database_purge(namespace, "orders", Purge::default())
            .await,
    )
    .await;
    assert_eq!(said["purged"], "orders", "{said}");
    find(&engine, "orders").await.expect_err("gone");
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shredded_database_opens_from_no_copy_of_the_bucket() {
    // Goal: one write makes a deleted tenant unreadable. Method: its keys are destroyed; then, from the raw bytes of
    // the bucket and every master key, each of its objects and journal sections is tried. Before, all open.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = sealed_masters();
    let engine = start(folder.path(), &keys).await;
    let (gone, stays) = (make(&engine, "gone").await, make(&engine, "stays").await);
    fill(&gone).await;
    fill(&stays).await;
    settled(folder.path()).await;
    let (namespace, id) = (gone.row().namespace, gone.row().id);
    let refused = engine
        .destroy_keys(namespace, id)
        .await
        .expect_err("in use");
    assert_eq!(refused.code(), Code::Refused);
    let before = tempfile::tempdir().expect("tempdir");
    copy(&folder.path().join("store"), &before.path().join("store"));
    engine
        .database_delete(namespace, "gone")
        .await
        .expect("delete");
    engine.destroy_keys(namespace, id).await.expect("destroy");
    engine.destroy_keys(namespace, id).await.expect("twice");
    // Only the key object was written: everything else still lies there.
    assert_eq!(opened(before.path(), &keys, (namespace, id)).await.1, 0);
    let (opens, refused) = opened(folder.path(), &keys, (namespace, id)).await;
    assert_eq!(opens, 0, "of {refused} objects and sections");
    assert!(refused >= 3, "there was something to open: {refused}");
    // Nobody else notices.
    run(&stays, "INSERT INTO t(b) VALUES('on')").await;
    assert_eq!(count(&stays).await, 81);
    engine.shutdown().await.expect("shutdown");
    drop((gone, stays, engine));
    let engine = start(folder.path(), &keys).await;
    let stays = find(&engine, "stays").await.expect("stays");
    assert_eq!(count(&stays).await, 81);
    engine.shutdown().await.expect("shutdown");
}
