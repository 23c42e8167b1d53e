//! Sealed archives show nothing, outlive every rotation, go with their database, and are refused where they were changed.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tidelog_engine::bucket::Bucket;
use tidelog_engine::travel::archives::{self, Archive, Format};
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{Code, Database, MasterKeys};

use super::world::{
    PLANTED, archived, count, files, fill, find, make, masters, run, start, succeeded, url,
};

async fn content(database: &Database, id: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    let content = database.archive_content(id).await.expect("content");
    let pieces: Vec<_> = content.stream(range).try_collect().await.expect("a stream");
    pieces.concat()
}

fn sha256(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_archives_show_nothing_outlive_rotations_and_go_with_their_database() {
    // Goal: an archive of a sealed database is worthless to a thief, and to its owner all that a plain one is, over
    // rotations of data keys and master keys, until the database is purged. Method: what lies in the bucket is
    // scanned; what is read back is compared by SHA-256, whole, in ranges, as a new database and by decrypting the file.
    let folder = tempfile::tempdir().expect("tempdir");
    let (one, two) = (masters(&[("k1", 1)]), masters(&[("k2", 90)]));
    let both = masters(&[("k1", 1), ("k2", 90)]);
    let engine = start(folder.path(), &one).await;
    let a = make(&engine, "a").await;
    fill(&a).await;
    // Several blocks of 256 KiB.
    run(&a, "INSERT INTO t(b) VALUES(randomblob(900000))").await;
    let (namespace, id) = (a.row().namespace, a.row().id);
    let first = archived(&a, Format::Sqlite).await;
    engine.rotate_data_key(namespace, id).await.expect("rotate");
    let second = archived(&a, Format::Sql).await;
    let keys = [&first, &second].map(|archive| archive.document.key_id.clone().expect("sealed"));
    assert_ne!(keys[0], keys[1], "each by the newest key of its time");
    let place = folder
        .path()
        .join(format!("store/tenants/{namespace}/{id}"));
    let stored = files(&place.join("archives"));
    assert_eq!(stored.len(), 4);
    for path in &stored {
        let bytes = std::fs::read(path).expect("read");
        assert!(bytes.starts_with(b"TIDELOG\0"), "{}", path.display());
        for plain in [
            PLANTED.as_bytes(),
            b"stored_sha256",
            b"SQLite format 3",
            &[0x28, 0xb5, 0x2f, 0xfd],
        ] {
            let shown = bytes.windows(plain.len()).any(|window| window == plain);
            assert!(!shown, "{}: {plain:?}", path.display());
        }
    }
    engine.shutdown().await.expect("shutdown");
    drop((a, engine));
    let bucket = Bucket::open_with_keys(&url(folder.path()), &both)
        .await
        .expect("bucket");
    assert!(bucket.rewrap_keys().await.expect("rewrap") >= 3);
    drop(bucket);
    // A start with both wraps the data folder's own key anew.
    let engine = start(folder.path(), &both).await;
    engine.shutdown().await.expect("shutdown");
    drop(engine);

    let engine = start(folder.path(), &two).await;
    let a = find(&engine, "a").await.expect("a");
    for archive in [&first, &second] {
        let document = &archive.document;
        let frame = content(&a, &document.id, 0..document.stored_bytes).await;
        assert_eq!(sha256(&frame), document.stored_sha256);
        let plain = zstd::decode_all(&frame[..]).expect("unpack");
        assert_eq!(sha256(&plain), document.sha256);
        let block = 256 << 10;
        let end = document.stored_bytes;
        for (from, to) in [
            (0, 1),
            (block - 3, block + 3),
            (end - 5, end),
            (17, end - 17),
        ] {
            let part = content(&a, &document.id, from..to).await;
            let (from, to) = (usize::try_from(from), usize::try_from(to));
            assert_eq!(part, frame[from.expect("small")..to.expect("small")]);
        }
        let verified = succeeded(a.archive_verify(&document.id, None).await).await;
        assert_eq!(verified["outcome"], "verified", "{verified}");
    }
    let name = first.document.id.clone();
    succeeded(
        engine
            .database_from_archive(namespace, "again", &name, None)
            .await,
    )
    .await;
    let again = find(&engine, "again").await.expect("again");
    assert_eq!(count(&again).await, 81);
    run(&a, "DELETE FROM t").await;
    let back = Rewind::to(RestoreTarget::Archive(name.clone()));
    succeeded(a.rewind(back).await).await;
    assert_eq!(count(&a).await, 81);

    // The file alone, as it lies in the bucket, with the key object beside it.
    let file = place.join(format!("archives/{name}.db.zst"));
    let key_object = |place: &Path| Bytes::from(std::fs::read(place.join("key")).expect("keys"));
    let (out, keys) = (folder.path().join("out"), key_object(&place));
    let opened = |compressed, masters: &MasterKeys, keys: &Bytes| {
        let _ = std::fs::remove_file(&out);
        archives::decrypt(&file, &out, keys, masters, compressed, &|_, _| ())
    };
    for (compressed, sum) in [
        (false, &first.document.sha256),
        (true, &first.document.stored_sha256),
    ] {
        let decrypted = opened(compressed, &two, &keys).expect("it opens");
        assert_eq!(decrypted.id, name);
        assert_eq!(sha256(&std::fs::read(&out).expect("read")), *sum);
    }
    for masters in [&one, &MasterKeys::default()] {
        let refused = opened(false, masters, &keys).expect_err("no key");
        assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    }

    // Damage, and one archive in another's place, are found by name and make nothing.
    let good = std::fs::read(&file).expect("read");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, &flipped).expect("write");
    let refused = opened(false, &two, &keys).expect_err("damaged");
    assert_eq!(refused.code(), Code::ObjectCorrupt, "{refused}");
    let verified = succeeded(a.archive_verify(&name, None).await).await;
    assert_eq!(verified["outcome"], "mismatch", "{verified}");
    let made = engine
        .database_from_archive(namespace, "never", &name, None)
        .await;
    let failed = made.expect("begun").wait(Duration::from_mins(1)).await;
    assert_eq!(failed.error.expect("an error").code, "object-corrupt");
    let missing = find(&engine, "never").await.expect_err("nothing was made");
    assert_eq!(missing.code(), Code::DatabaseNotFound);
    std::fs::write(&file, &good).expect("put it back");

    // Purged: the archives are gone, and a thief's copies open no more.
    let copy = folder.path().join("copy");
    std::fs::write(&copy, &good).expect("write");
    let said = succeeded(
        engine
            .database_purge(namespace, "a", Purge::default())
            .await,
    )
    .await;
    assert_eq!(said["archives_deleted"], 2, "{said}");
    assert!(files(&place.join("archives")).is_empty());
    let keys = key_object(&place);
    let refused = archives::decrypt(
        &copy,
        &out.with_extension("2"),
        &keys,
        &both,
        false,
        &|_, _| (),
    );
    let refused = refused.expect_err("its key is destroyed");
    assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_archive_that_was_changed_is_refused_by_name() {
    // Goal: no byte of a sealed archive changes, goes or is another's unnoticed. Method: flips, cuts, additions, an
    // archive of another moment and one of another database in its place; a verification, a database made of it, a
    // download and the decryption of the file alone each refuse it; put back, it is whole.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let (a, b) = (make(&engine, "a").await, make(&engine, "b").await);
    run(&a, "INSERT INTO t(b) VALUES(randomblob(700000))").await;
    let first = archived(&a, Format::Sqlite).await;
    run(&a, "INSERT INTO t(b) VALUES('later')").await;
    let second = archived(&a, Format::Sqlite).await;
    run(&b, "INSERT INTO t(b) VALUES(randomblob(700000))").await;
    let foreign = archived(&b, Format::Sqlite).await;
    let namespace = a.row().namespace;
    let file = |archive: &Archive| folder.path().join("store").join(archive.key().to_string());
    let read = |archive: &Archive| std::fs::read(file(archive)).expect("read");
    let good = read(&first);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let end = good.len();
    let changed = [
        ("a flip in the header", flipped(70)),
        ("a flip in a block", flipped(end / 2)),
        ("a flip at the end", flipped(end - 1)),
        ("the last byte gone", good[..end - 1].to_vec()),
        ("half of it", good[..end / 2].to_vec()),
        ("nothing", Vec::new()),
        ("a byte more", [&good[..], &[0]].concat()),
        ("another moment's", read(&second)),
        ("another database's", read(&foreign)),
    ];
    let id = first.document.id.clone();
    let key_object = file(&first).with_file_name("../key");
    let key_object = Bytes::from(std::fs::read(key_object).expect("the key object"));
    let out = folder.path().join("out");
    for (what, bytes) in changed {
        std::fs::write(file(&first), &bytes).expect("write");
        let verified = succeeded(a.archive_verify(&id, None).await).await;
        assert_eq!(verified["outcome"], "mismatch", "{what}: {verified}");
        let made = engine.database_from_archive(namespace, "never", &id, None);
        let mut made = made.await.expect("begun");
        let failed = made.wait(Duration::from_mins(1)).await;
        let why = failed.error.expect("an error");
        assert_eq!(why.code, "object-corrupt", "{what}");
        assert!(why.detail.contains(&id), "{what}: {}", why.detail);
        // What is given out is read in ranges: a byte behind the last one is in none of them.
        if let Ok(content) = a.archive_content(&id).await {
            let whole = 0..first.document.stored_bytes;
            let pieces: Result<Vec<_>, _> = content.stream(whole).try_collect().await;
            match pieces {
                Ok(pieces) => {
                    assert_eq!(what, "a byte more", "it was given out");
                    assert_eq!(sha256(&pieces.concat()), first.document.stored_sha256);
                }
                Err(error) => assert!(!error.to_string().is_empty(), "{what}"),
            }
        }
        let _ = std::fs::remove_file(&out);
        let decrypted =
            archives::decrypt(&file(&first), &out, &key_object, &keys, false, &|_, _| ());
        // The file alone is what it says it is: an archive of another moment, whole.
        if what != "another moment's" {
            let refused = decrypted.expect_err(what);
            assert_ne!(refused.code(), Code::Internal, "{what}: {refused:?}");
            assert!(!out.exists(), "{what}: something was written");
        }
    }
    std::fs::write(file(&first), &good).expect("put it back");
    let verified = succeeded(a.archive_verify(&id, None).await).await;
    assert_eq!(verified["outcome"], "verified", "{verified}");
    engine.shutdown().await.expect("shutdown");
}
