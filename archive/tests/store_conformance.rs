//! One suite for every kind of store: what the protocol relies on holds in memory, in a folder, and on each
//! S3 server that `TIDELOG_TEST_S3` names.

mod store_common;

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use store_common::envelope;
use tidelog_archive::ErrorKind;
use tidelog_archive::store::{Outcome, Store, StoreOptions, StoreSettings, Verb};
use tidelog_testkit::s3;

/// A store, and how many clients may race on it: losers wait for seconds on some servers.
struct Subject {
    name: String,
    store: Store,
    racers: u8,
    _folder: Option<tempfile::TempDir>,
}

fn options() -> StoreOptions {
    StoreOptions {
        settings: StoreSettings {
            part_bytes: 5 << 20,
            read_chunk_bytes: 1 << 20,
            ..StoreSettings::default()
        },
        ..StoreOptions::default()
    }
}

/// Says once that the S3 part does not run.
static NOTICE: std::sync::Once = std::sync::Once::new();

fn subjects() -> Vec<Subject> {
    let open = |url: &str| Store::open(url, options()).expect("the store opens");
    let folder = tempfile::tempdir().expect("a folder is made");
    let url = format!("file://{}", folder.path().display());
    let mut subjects = vec![
        Subject {
            name: "memory".into(),
            store: open("memory:"),
            racers: 50,
            _folder: None,
        },
        Subject {
            name: "file".into(),
            store: open(&url),
            racers: 50,
            _folder: Some(folder),
        },
    ];
    NOTICE.call_once(|| {
        s3::notice();
    });
    subjects.extend(s3::stores().into_iter().map(|url| Subject {
        store: open(&url),
        racers: if url.contains("/ministack/") { 50 } else { 4 },
        name: url,
        _folder: None,
    }));
    subjects
}

/// Runs one check on every subject, one after another, and says which one failed.
async fn on_all<F, Fut>(check: F)
where
    F: Fn(Store, u8) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    for subject in subjects() {
        let run = tokio::spawn(check(subject.store.clone(), subject.racers));
        assert!(run.await.is_ok(), "failed on {}", subject.name);
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, tidelog_archive::store::StoreError>) -> ErrorKind {
    result.expect_err("must fail").kind()
}

#[tokio::test]
async fn a_missing_object_is_not_found_and_deleting_it_succeeds() {
    on_all(|store, _| async move {
        assert_eq!(kind(store.get("a/missing").await), ErrorKind::NotFound);
        assert_eq!(
            kind(store.get_range("a/missing", 0..4).await),
            ErrorKind::NotFound
        );
        assert_eq!(kind(store.head("a/missing").await), ErrorKind::NotFound);
        assert_eq!(
            kind(store.get_stream("a/missing").try_collect::<Vec<_>>().await),
            ErrorKind::NotFound
        );
        store.delete("a/missing").await.unwrap();
        assert!(store.list("a").await.unwrap().is_empty());
        assert!(store.folders("a").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn create_writes_once_and_never_overwrites() {
    on_all(|store, _| async move {
        let (ours, theirs) = (envelope(1, "ours"), envelope(2, "theirs"));
        let version = store.create("a/b", ours.clone()).await.unwrap();
        assert_eq!(
            store.get_versioned("a/b").await.unwrap(),
            (ours.clone(), version.clone())
        );
        assert_eq!(kind(store.create("a/b", theirs).await), ErrorKind::Conflict);
        assert_eq!(store.get("a/b").await.unwrap(), ours);
        // The same write again is our own: it stands there.
        assert_eq!(store.create("a/b", ours).await.unwrap(), version);
        // A deleted key can be written again.
        store.delete("a/b").await.unwrap();
        store.create("a/b", envelope(3, "again")).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn replace_succeeds_on_the_current_version_alone() {
    on_all(|store, _| async move {
        let body = |n: u8| envelope(n, "same length");
        let first = store.create("m", body(1)).await.unwrap();
        let second = store.replace("m", body(2), &first).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(
            kind(store.replace("m", body(3), &first).await),
            ErrorKind::Conflict
        );
        assert_eq!(
            store.get_versioned("m").await.unwrap(),
            (body(2), second.clone())
        );
        assert_eq!(store.head("m").await.unwrap().version, second);
        // Back to older content is another write, and its version another one.
        let third = store.replace("m", body(4), &second).await.unwrap();
        assert_eq!(
            kind(store.replace("m", body(5), &second).await),
            ErrorKind::Conflict
        );
        store.delete("m").await.unwrap();
        assert_eq!(
            kind(store.replace("m", body(6), &third).await),
            ErrorKind::Conflict
        );
        assert_eq!(kind(store.get("m").await), ErrorKind::NotFound);
    })
    .await;
}

#[tokio::test]
async fn ranges_are_exact_or_a_typed_error() {
    on_all(|store, _| async move {
        let body: Bytes = (0..=255_u8).cycle().take(3_000).collect();
        store.create("r", body.clone()).await.unwrap();
        for (start, end) in [
            (0, 1),
            (0, 3_000),
            (1_000, 1_001),
            (2_999, 3_000),
            (7, 2_048),
            (5, 5),
        ] {
            let read = store
                .get_range("r", start as u64..end as u64)
                .await
                .unwrap();
            assert_eq!(read, body.slice(start..end));
        }
        for range in [2_999..3_001, 3_000..3_001, 9_000..9_001] {
            assert_eq!(kind(store.get_range("r", range).await), ErrorKind::Corrupt);
        }
        let head = store.head("r").await.unwrap();
        assert_eq!(head.length, 3_000);
        assert!(head.last_modified.micros() > 1_600_000_000_000_000);
    })
    .await;
}

#[tokio::test]
async fn listings_are_sorted_by_key_and_end_at_the_folder() {
    on_all(|store, _| async move {
        let mut keys: Vec<String> = [
            "l/a", "l/a-b", "l/a.c/x", "l/b/1", "l/b/10", "l/b/2", "l/b0/1",
        ]
        .map(str::to_owned)
        .to_vec();
        keys.extend((0..30).map(|n| format!("l/n/{n:04}")));
        for key in keys.iter().rev() {
            store.create(key, Bytes::from(key.clone())).await.unwrap();
        }
        store
            .create("l2/other", Bytes::from_static(b"x"))
            .await
            .unwrap();
        keys.sort_unstable();
        let listed = store.list("l").await.unwrap();
        let names: Vec<&String> = listed.iter().map(|entry| &entry.key).collect();
        assert_eq!(names, keys.iter().collect::<Vec<_>>());
        assert!(
            listed
                .iter()
                .all(|entry| entry.length == entry.key.len() as u64)
        );
        assert!(listed.iter().all(|entry| entry.last_modified.micros() > 0));
        assert_eq!(store.list("l/b").await.unwrap().len(), 3);
        assert_eq!(store.folders("l").await.unwrap(), ["a.c", "b", "b0", "n"]);
        assert_eq!(store.folders("").await.unwrap(), ["l", "l2"]);
        let pages: Vec<_> = store
            .list_pages("l/n")
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(pages.concat().len(), 30);
        store.delete_all(&keys).await.unwrap();
        assert!(store.list("l").await.unwrap().is_empty());
        assert_eq!(store.list("").await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn malformed_keys_are_refused_before_any_request() {
    on_all(|store, _| async move {
        for key in ["", "/a", "a//b", "../a", "a b", ".tidelog/locks/00"] {
            assert_eq!(kind(store.get(key).await), ErrorKind::Invalid, "{key:?}");
            assert_eq!(
                kind(store.create(key, Bytes::from_static(b"x")).await),
                ErrorKind::Invalid
            );
        }
        assert_eq!(store.meter().snapshot().total(), 0);
    })
    .await;
}

#[tokio::test]
async fn large_objects_go_up_in_parts_and_come_down_in_chunks() {
    on_all(|store, _| async move {
        let piece = Bytes::from(vec![0x5a_u8; 700_000]);
        let length: u64 = 700_000 * 33;
        let source = stream::iter((0..33).map({
            let piece = piece.clone();
            move |_| Ok::<_, std::io::Error>(piece.clone())
        }));
        let before = store.meter().snapshot();
        let head = store.put_unique("big/1", source).await.unwrap();
        assert_eq!(head.length, length);
        let spent = store.meter().snapshot().since(&before);
        // Begun, five parts of 5 MiB, completed, verified.
        assert_eq!(spent.requests(Verb::Part, Outcome::Ok), 7);
        assert_eq!(spent.bytes(Verb::Part), length);
        assert_eq!(spent.total(), 8);

        let mut hasher = blake3::Hasher::new();
        let mut chunks = std::pin::pin!(store.get_stream("big/1"));
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert!(chunk.len() <= 1 << 20);
            hasher.update(&chunk);
        }
        let mut expected = blake3::Hasher::new();
        (0..33).for_each(|_| {
            expected.update(&piece);
        });
        assert_eq!(hasher.finalize(), expected.finalize());

        // One part, and none at all.
        let small = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"small"))]);
        assert_eq!(store.put_unique("big/2", small).await.unwrap().length, 5);
        // A source that fails leaves no object.
        let failing = stream::iter((0..20).map(|n| match n {
            15 => Err(std::io::Error::other("gone")),
            _ => Ok(Bytes::from(vec![1; 1 << 20])),
        }));
        assert_eq!(
            kind(store.put_unique("big/3", failing).await),
            ErrorKind::Internal
        );
        assert_eq!(kind(store.get("big/3").await), ErrorKind::NotFound);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creators_of_one_key_exactly_one_wins() {
    on_all(|store, racers| async move {
        for round in 0..3 {
            let key = format!("race/create/{round}");
            let racing = (0..racers).map(|racer| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move {
                    let body = envelope(racer, &format!("racer {racer}"));
                    store.create(&key, body.clone()).await.map(|_| body)
                })
            });
            let results = futures::future::join_all(racing).await;
            let mut winners = Vec::new();
            for result in results {
                match result.unwrap() {
                    Ok(body) => winners.push(body),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                }
            }
            assert_eq!(winners, [store.get(&key).await.unwrap()]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_replacers_of_one_version_exactly_one_wins() {
    on_all(|store, racers| async move {
        let key = "race/replace";
        let mut version = store.create(key, envelope(255, "begin")).await.unwrap();
        for round in 0..3 {
            let racing = (0..racers).map(|racer| {
                let (store, version) = (store.clone(), version.clone());
                tokio::spawn(async move {
                    let body = envelope(racer, &format!("round {round} racer {racer}"));
                    store
                        .replace(key, body.clone(), &version)
                        .await
                        .map(|won| (body, won))
                })
            });
            let mut winners = Vec::new();
            for result in futures::future::join_all(racing).await {
                match result.unwrap() {
                    Ok(won) => winners.push(won),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                }
            }
            assert_eq!(winners, [store.get_versioned(key).await.unwrap()]);
            version = winners.remove(0).1;
        }
    })
    .await;
}

#[tokio::test]
async fn a_fit_store_passes_the_probe_and_keeps_nothing_of_it() {
    on_all(|store, _| async move {
        let fitness = store.probe().await.unwrap();
        let skew = fitness.wall.micros().abs_diff(fitness.store_time.micros());
        assert!(skew < 60_000_000, "servers on this machine share its clock");
        assert!(store.list("").await.unwrap().is_empty());
        assert_eq!(store.meter().snapshot().in_flight, 0);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused() {
    let Some(url) = s3::refused_store() else {
        return;
    };
    let store = Store::open(&url, options()).unwrap();
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}

#[tokio::test]
async fn several_handles_on_one_folder_are_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let open = || Arc::new(Store::open(&url, options()).unwrap());
    let (one, other) = (open(), open());
    let version = one.create("a/b", envelope(1, "x")).await.unwrap();
    assert_eq!(
        kind(other.create("a/b", envelope(2, "y")).await),
        ErrorKind::Conflict
    );
    let next = other
        .replace("a/b", envelope(3, "z"), &version)
        .await
        .unwrap();
    assert_eq!(
        kind(one.replace("a/b", envelope(4, "w"), &version).await),
        ErrorKind::Conflict
    );
    drop(other);
    assert_eq!(
        one.get_versioned("a/b").await.unwrap(),
        (envelope(3, "z"), next)
    );
    // Nothing of ours is listed, and nothing is left staged.
    assert_eq!(one.list("").await.unwrap().len(), 1);
    drop(one);
    let staged = folder.path().join(".tidelog/staging");
    let left: Vec<_> = std::fs::read_dir(staged)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "turn")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
