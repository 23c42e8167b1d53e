//! Promises of manifests and index objects.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod format_support;

use std::collections::HashMap;

use bytes::Bytes;
use format_support::manifests::{empty, fork, full, image, nonce, segment, with_segments};
use format_support::{DATABASE, NAMESPACE, refuses_all_damage};
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::index::IndexObject;
use tidelog_archive::key::Key;
use tidelog_archive::manifest::{
    IndexEntry, MANIFEST_LEN_MAX, Manifest, ManifestError, Marked, SegmentEntry, State, TermStart,
};
use tidelog_archive::seal::{Keyring, Stamp};
use tidelog_wal::{DatabaseId, NamespaceId, NodeId, Term, Timestamp, TxId};

const ID: WriteId = WriteId([7; 16]);

/// Folds with fresh nonces and keeps what would be uploaded.
fn fold(manifest: &mut Manifest, store: &mut HashMap<String, Bytes>, counter: &mut u64) {
    let mut next = || {
        *counter += 1;
        nonce(1 << 40 | *counter)
    };
    for object in manifest.fold(&mut next, || Stamp::plain(ID)).expect("fold") {
        store.insert(object.key.to_string(), object.bytes);
    }
}

/// All segments below an index entry, in order, and how deep the tree is.
fn unfold(entry: &IndexEntry, store: &HashMap<String, Bytes>) -> (Vec<SegmentEntry>, usize) {
    let key = entry.key(NAMESPACE, DATABASE).to_string();
    let object = IndexObject::decode(&store[&key], NAMESPACE, DATABASE, entry, &Keyring::off())
        .expect("index object");
    let mut segments = object.segments;
    let mut depth = 0;
    for child in &object.children {
        let (below, deep) = unfold(child, store);
        segments.extend(below);
        depth = depth.max(deep);
    }
    (segments, depth + 1)
}

#[test]
fn a_manifest_round_trips_and_refuses_all_damage() {
    let mut manifest = full();
    let store = &mut HashMap::new();
    fold(&mut manifest, store, &mut 0);
    let bytes = manifest.encode(Stamp::plain(ID)).expect("encode").bytes;
    let read = |bytes: Vec<u8>| match Manifest::decode(
        &bytes.into(),
        NAMESPACE,
        DATABASE,
        &Keyring::off(),
    ) {
        Ok((manifest, id)) => {
            assert_eq!(id, ID);
            Ok(manifest)
        }
        Err(ManifestError::Format(error)) => Err(error),
        Err(other) => panic!("BLAKE3 comes before meaning: {other}"),
    };
    assert_eq!(read(bytes.to_vec()), Ok(manifest));
    refuses_all_damage(&bytes, read);
    let child = fork(segment(0).run.end());
    let bytes = child.encode(Stamp::plain(ID)).expect("encode").bytes;
    let (found, _) =
        Manifest::decode(&bytes, NAMESPACE, child.database, &Keyring::off()).expect("decode");
    assert_eq!(found, child);
    assert_eq!(found.settled_position(), Some(segment(0).run.end()));
}

#[test]
fn a_manifest_of_another_database_or_tenant_is_refused() {
    let bytes = full().encode(Stamp::plain(ID)).expect("encode").bytes;
    let decode =
        |namespace, database| Manifest::decode(&bytes, namespace, database, &Keyring::off());
    assert!(decode(NAMESPACE, DATABASE).is_ok());
    assert!(decode(NAMESPACE, DatabaseId::from_bytes([9; 16])).is_err());
    assert!(decode(NamespaceId::from_bytes([9; 16]), DATABASE).is_err());
}

#[test]
fn two_hundred_thousand_segments_fit_a_root_of_64_kib() {
    const COUNT: u64 = 200_000;
    let mut manifest = empty();
    let (mut store, mut counter) = (HashMap::new(), 0);
    let mut largest = 0;
    for i in 0..COUNT {
        manifest.append_segment(segment(i));
        if i % 40 == 0 {
            manifest.add_image(image(i));
        }
        // As a settle does. Encoding every time would only make the test slow.
        if manifest.segments.len() > 256 {
            let before = manifest.clone();
            fold(&mut manifest, &mut store, &mut counter);
            manifest.version += 1;
            assert_eq!(manifest.check_follows(&before), Ok(()));
            largest = largest.max(
                manifest
                    .encode(Stamp::plain(ID))
                    .expect("encode")
                    .bytes
                    .len(),
            );
        }
    }
    let bytes = manifest.encode(Stamp::plain(ID)).expect("encode").bytes;
    assert!(bytes.len().max(largest) <= MANIFEST_LEN_MAX, "{largest}");
    let (manifest, _) =
        Manifest::decode(&bytes, NAMESPACE, DATABASE, &Keyring::off()).expect("decode");
    let mut all = Vec::new();
    for entry in &manifest.index {
        let (segments, depth) = unfold(entry, &store);
        assert_eq!(segments.len() as u64, entry.segments);
        assert!(depth <= 3, "at most two index objects above the last");
        all.extend(segments);
    }
    all.extend(&manifest.segments);
    assert_eq!(all.len() as u64, COUNT);
    assert!(
        all.iter()
            .enumerate()
            .all(|(i, entry)| *entry == segment(i as u64))
    );
    let folded: u64 = manifest.index.iter().map(|entry| entry.images).sum();
    assert_eq!(folded + manifest.images.len() as u64, COUNT / 40);
}

#[test]
fn many_images_and_labels_make_it_fold_earlier() {
    let mut manifest = with_segments(250);
    for i in 0..250 {
        manifest.add_image(image(i));
    }
    for i in 0..300 {
        let mut label = full().labels.remove(0);
        label.name = format!("label {i}, with a name of some length that takes room in the root");
        manifest.labels.push(label);
    }
    let before = manifest.clone();
    assert!(matches!(
        before.encode(Stamp::plain(ID)),
        Err(ManifestError::TooLarge { .. })
    ));
    fold(&mut manifest, &mut HashMap::new(), &mut 0);
    manifest.version += 1;
    assert_eq!(manifest.check_follows(&before), Ok(()));
    assert!(
        manifest
            .encode(Stamp::plain(ID))
            .expect("encode")
            .bytes
            .len()
            <= MANIFEST_LEN_MAX
    );
}

#[test]
fn every_flip_and_swap_of_an_index_object_is_refused() {
    let mut manifest = with_segments(4);
    let object = IndexObject {
        segments: manifest.segments.drain(..2).collect(),
        images: vec![image(1)],
        children: Vec::new(),
    };
    let finished = object
        .encode(NAMESPACE, DATABASE, 0, Stamp::plain(ID))
        .expect("encode");
    let (segments, images, bytes) = object.totals();
    let entry = IndexEntry {
        level: 0,
        run: object.run().expect("entries"),
        segments,
        images,
        bytes,
        nonce: nonce(1),
        len: finished.len,
        blake3: finished.blake3,
    };
    let read = |bytes: Vec<u8>| {
        IndexObject::decode(&bytes.into(), NAMESPACE, DATABASE, &entry, &Keyring::off())
    };
    assert_eq!(read(finished.bytes.to_vec()), Ok(object.clone()));
    refuses_all_damage(&finished.bytes, read);
    let mut other = object;
    other.images.clear();
    let swapped = other
        .encode(NAMESPACE, DATABASE, 0, Stamp::plain(ID))
        .expect("encode");
    assert!(read(swapped.bytes.to_vec()).is_err());
    let foreign = DatabaseId::from_bytes([9; 16]);
    assert!(
        IndexObject::decode(&finished.bytes, NAMESPACE, foreign, &entry, &Keyring::off()).is_err()
    );
    other.segments.swap(0, 1);
    assert!(
        other
            .encode(NAMESPACE, DATABASE, 0, Stamp::plain(ID))
            .is_err(),
        "out of order"
    );
}

/// Changes a sound manifest into one that contradicts itself.
type Break = fn(&mut Manifest);

#[test]
fn a_manifest_that_contradicts_itself_is_neither_written_nor_read() {
    let breaks: [(&str, Break); 12] = [
        ("a hole", |m| m.segments.drain(1..2).for_each(drop)),
        ("another chain", |m| {
            m.segments[1].run.chain_before = segment(7).run.chain_after;
        }),
        ("a missing beginning", |m| {
            m.segments.drain(..1).for_each(drop);
        }),
        ("settled elsewhere", |m| m.settled = None),
        ("an image of another state", |m| {
            m.images[0].n = segment(0).run.n_after;
        }),
        ("an image beyond", |m| {
            m.images[0].position.txid = TxId::new(1 << 40);
        }),
        ("two labels of one name", |m| {
            m.labels.push(m.labels[0].clone());
        }),
        ("two pins of one id", |m| m.pins.push(m.pins[0])),
        ("overlapping gaps", |m| m.gaps.push(m.gaps[0])),
        ("a term above the owner's", |m| m.owner.term = Term::new(2)),
        ("a listed mark", |m| {
            m.marked
                .push(Marked::segment(&m.segments[2], Timestamp::ZERO));
        }),
        ("no version", |m| m.version = 0),
    ];
    for (what, change) in breaks {
        let mut manifest = full();
        assert_eq!(manifest.check_self(), Ok(()));
        change(&mut manifest);
        let error = manifest.encode(Stamp::plain(ID)).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
    }
}

#[test]
fn expired_history_may_have_holes() {
    let mut manifest = with_segments(5);
    manifest.segments.remove(1);
    assert!(manifest.check_self().is_err());
    manifest.horizon = segment(1).run.last;
    assert_eq!(manifest.check_self(), Ok(()));
    manifest.segments.remove(0);
    assert_eq!(manifest.check_self(), Ok(()), "the front may be gone");
}

#[test]
fn a_manifest_that_does_not_follow_is_refused() {
    let mut previous = full();
    previous
        .marked
        .push(Marked::image(&image(0), Timestamp::ZERO));
    let next = |change: Break| {
        let mut next = previous.clone();
        next.version += 1;
        change(&mut next);
        next.check_follows(&previous)
    };
    assert_eq!(next(|_| ()), Ok(()));
    assert_eq!(next(|m| m.append_segment(segment(3))), Ok(()));
    assert_eq!(next(|m| m.parent = None), Ok(()));
    assert_eq!(
        next(|m| {
            m.owner.term = Term::new(4);
            m.owner.node = NodeId::from_bytes([2; 16]);
        }),
        Ok(())
    );
    let refused: [(&str, Break); 11] = [
        ("the same version", |m| m.version -= 1),
        ("another node in one term", |m| {
            m.owner.node = NodeId::from_bytes([2; 16]);
        }),
        ("an older owner", |m| m.owner.term = Term::new(2)),
        ("shorter history", |m| {
            m.segments.pop();
            m.settled = None;
        }),
        ("a segment lost", |m| m.segments.drain(..1).for_each(drop)),
        ("an image lost", |m| m.images.clear()),
        ("a mark undone", |m| m.images.insert(0, image(0))),
        ("a term lost", |m| m.terms.clear()),
        ("another seed", |m| m.seed = tidelog_wal::DigestSeed::new(1)),
        ("a parent from nowhere", |m| {
            m.parent = fork(segment(0).run.end()).parent;
        }),
        ("another first commit of a term", |m| {
            m.terms[0] = TermStart {
                term: Term::new(3),
                first: TxId::new(2),
            };
        }),
    ];
    for (what, change) in refused {
        let error = next(change).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Internal, "{what}");
    }
    previous.horizon = TxId::new(9);
    let mut back = previous.clone();
    back.version += 1;
    back.horizon = TxId::new(8);
    assert!(
        back.check_follows(&previous).is_err(),
        "the horizon went back"
    );
    let mut purged = previous.clone();
    purged.state = State::Purged(Timestamp::ZERO);
    let mut revived = purged.clone();
    revived.version += 1;
    revived.state = State::Active(Timestamp::ZERO);
    assert!(
        revived.check_follows(&purged).is_err(),
        "a tombstone stays one"
    );
}

#[test]
fn marked_objects_may_leave_the_lists() {
    let previous = full();
    let mut next = previous.clone();
    next.version += 1;
    next.horizon = segment(0).run.last;
    let gone = next.segments.remove(0);
    assert!(next.check_follows(&previous).is_err());
    next.marked
        .push(Marked::segment(&gone, Timestamp::from_micros(5)));
    assert_eq!(next.check_self(), Ok(()));
    assert_eq!(next.check_follows(&previous), Ok(()));
    let key = gone.key(NAMESPACE, DATABASE);
    assert_eq!(
        key,
        Key::Database(NAMESPACE, DATABASE, next.marked[0].object)
    );
}
