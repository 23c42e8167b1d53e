//! Promises of journal objects, claims, fences, term states and roots.

#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod format_support;

use bytes::Bytes;
use format_support::{DATABASE, Dice, History, NAMESPACE, refuses_all_damage};
use tidelog_archive::envelope::{Expect, FormatError, Object, ObjectKind, WriteId};
use tidelog_archive::journal::{
    Claim, Fence, Inherited, JournalObject, JournalObjectBuilder, TermState, slot_kind,
};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::root::{Root, RootNode};
use tidelog_archive::seal::{Keyring, Stamp};
use tidelog_wal::block::Compressor;
use tidelog_wal::record::{ObjectRef, RecordBody};
use tidelog_wal::{Chain, ClusterId, DatabaseId, NodeId, RecordKind, Term, Timestamp};

const TERM: Term = Term::new(3);

fn build(histories: &[(&History, u64, u64)]) -> Bytes {
    let mut builder = JournalObjectBuilder::new(
        TERM,
        Seq::new(5),
        (10, 99),
        Stamp::plain(WriteId([7; 16])),
        Compressor::new(3),
    );
    for (history, first, last) in histories {
        builder
            .section(history.section(*first, *last), None)
            .expect("section");
        for txid in *first..=*last {
            builder.push(&history.at(txid).bytes).expect("record");
        }
    }
    builder.finish().expect("finish").0.bytes
}

/// Reads every record: what a reader proves of an object.
fn read(bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, FormatError> {
    let object = JournalObject::decode(&Bytes::from(bytes), TERM, Seq::new(5), &Keyring::off())?;
    let mut records = Vec::new();
    for section in &object.sections {
        let stored = object.section_bytes(section).expect("read whole");
        let mut reader = object.records(section, &stored);
        while let Some(record) = reader.next_record()? {
            records.push(record.bytes.to_vec());
        }
    }
    Ok(records)
}

fn two_histories() -> (History, History) {
    let mut dice = Dice(1);
    let a = History::random(512, 30, &mut dice);
    let mut b = History::random(512, 10, &mut dice);
    b.database = DatabaseId::from_bytes([0xbb; 16]);
    (a, b)
}

#[test]
fn records_of_all_sections_come_back_verbatim() {
    let (a, b) = two_histories();
    let records = read(build(&[(&a, 3, 30), (&b, 1, 10)]).to_vec()).expect("read");
    let want: Vec<_> = a.commits[2..]
        .iter()
        .chain(&b.commits)
        .map(|c| c.bytes.clone())
        .collect();
    assert_eq!(records, want);
}

#[test]
fn every_flip_and_truncation_of_a_journal_object_is_refused() {
    let (a, b) = two_histories();
    refuses_all_damage(&build(&[(&a, 1, 4), (&b, 1, 2)]), read);
}

#[test]
fn a_record_may_span_blocks() {
    let mut history = History::new(65_536);
    let mut dice = Dice(9);
    let pages: Vec<_> = (0..12).map(|_| dice.bytes(65_536)).collect();
    history.commit(pages.clone());
    history.commit(pages[..3].to_vec());
    let bytes = build(&[(&history, 1, 2)]);
    let object = JournalObject::decode(&bytes, TERM, Seq::new(5), &Keyring::off()).expect("decode");
    assert!(object.sections[0].table.blocks.len() > 3);
    let records = read(bytes.to_vec()).expect("read");
    assert_eq!(
        records,
        [history.at(1).bytes.clone(), history.at(2).bytes.clone()]
    );
}

#[test]
fn a_section_is_read_from_one_range_alone() {
    let (a, b) = two_histories();
    let bytes = build(&[(&a, 1, 30), (&b, 1, 10)]);
    let whole =
        Object::open(&bytes, Expect::node(ObjectKind::Journal), &Keyring::off()).expect("open");
    let named = ObjectRef {
        key: Key::Journal(TERM, Seq::new(5)).to_string(),
        len: bytes.len() as u64,
        blake3: whole.trailer.blake3,
    };
    let tail = bytes.slice(bytes.len() - 64..);
    let expect = Expect::node(ObjectKind::Journal);
    let wanted = Object::open_tail(&bytes[..96], &tail, expect, &named, &Keyring::off())
        .expect("trailer")
        .expect_err("64 bytes do not hold the index");
    let tail = bytes.slice(wanted.0.start as usize..);
    let object = Object::open_tail(&bytes[..96], &tail, expect, &named, &Keyring::off())
        .expect("trailer")
        .expect("index");
    let object =
        JournalObject::from_object(&object, TERM, Seq::new(5), &Keyring::off()).expect("index");
    let section = &object.sections[1];
    let range = section.range();
    let stored = bytes.slice(range.start as usize..range.end as usize);
    let mut reader = object.records(section, &stored);
    let mut seen = 0;
    while let Some(record) = reader.next_record().expect("record") {
        seen += 1;
        assert_eq!(record.position, b.at(seen).position);
    }
    assert_eq!(seen, 10);
}

#[test]
fn a_section_that_belies_its_records_is_refused() {
    let (a, _) = two_histories();
    let mut metas = vec![a.section(1, 4); 6];
    metas[0].chain_after = Chain::default();
    metas[1].chain_before = Chain::default();
    metas[2].n_after = metas[2].n_after.max(format_support::count(77));
    metas[3].digest_after = a.at(1).header.digest;
    metas[4].first_term = Term::new(9);
    metas[5].last_time = Timestamp::from_micros(u64::MAX / 2);
    for meta in metas {
        let mut builder = JournalObjectBuilder::new(
            TERM,
            Seq::new(5),
            (1, 4),
            Stamp::plain(WriteId([7; 16])),
            Compressor::new(3),
        );
        builder.section(meta, None).expect("section");
        for commit in &a.commits[..4] {
            builder.push(&commit.bytes).expect("record");
        }
        let bytes = builder.finish().expect("finish").0.bytes;
        assert!(read(bytes.to_vec()).is_err(), "{meta:?}");
    }
}

#[test]
fn a_builder_refuses_what_does_not_fit() {
    let (a, _) = two_histories();
    let new = || {
        JournalObjectBuilder::new(
            TERM,
            Seq::new(5),
            (1, 4),
            Stamp::plain(WriteId([7; 16])),
            Compressor::new(3),
        )
    };
    assert!(new().push(b"x").is_err(), "no section");
    let mut short = new();
    short.section(a.section(1, 4), None).expect("section");
    short.push(&a.at(1).bytes).expect("record");
    assert!(short.finish().is_err(), "one record instead of four");
    let mut large = new();
    large.section(a.section(1, 1), None).expect("section");
    assert!(
        large.push(&vec![0; 3 << 20]).is_err(),
        "too large for a journal"
    );
}

#[test]
fn a_reference_steps_the_chain_to_that_of_the_record_it_names() {
    let mut history = History::random(512, 2, &mut Dice(4));
    let chain = Chain::from_bytes([0x77; 16]);
    let object = ObjectRef {
        key: "tenants/x".into(),
        len: 9,
        blake3: [1; 32],
    };
    let pages = history.state();
    let digest = history.at(2).header.digest;
    let header = history.next_header(pages.len(), digest);
    history.push(
        header,
        RecordBody::Reference { object, chain },
        pages.clone(),
    );
    history.commit(pages);
    assert_eq!(history.at(3).position.chain, chain);
    assert_eq!(history.at(4).chain_before, chain);
    let bytes = build(&[(&history, 1, 4)]);
    let object = JournalObject::decode(&bytes, TERM, Seq::new(5), &Keyring::off()).expect("decode");
    let section = &object.sections[0];
    let stored = object.section_bytes(section).expect("whole");
    let mut reader = object.records(section, &stored);
    let mut kinds = Vec::new();
    while let Some(record) = reader.next_record().expect("record") {
        kinds.push(record.record.kind());
    }
    assert_eq!(kinds[2], RecordKind::Reference);
    assert_eq!(kinds.len(), 4);
}

#[test]
fn an_object_of_another_place_is_refused() {
    let (a, _) = two_histories();
    let bytes = build(&[(&a, 1, 4)]);
    assert!(JournalObject::decode(&bytes, Term::new(4), Seq::new(5), &Keyring::off()).is_err());
    assert!(JournalObject::decode(&bytes, TERM, Seq::new(6), &Keyring::off()).is_err());
    assert_eq!(slot_kind(&bytes), Ok(ObjectKind::Journal));
    let error = Claim::decode(&bytes, TERM).expect_err("no claim");
    assert_eq!(error.to_string(), "object kind is Journal, expected Claim");
}

fn claim() -> Claim {
    Claim {
        term: TERM,
        previous: Some(Term::new(2)),
        node: NodeId::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        wall: Timestamp::from_micros(5),
    }
}

fn fence() -> Fence {
    Fence {
        term: TERM,
        seq: Seq::new(5),
        by_term: Term::new(4),
        by_node: NodeId::from_bytes([1; 16]),
        wall: Timestamp::from_micros(5),
    }
}

fn state() -> TermState {
    let inherited = |term, fence: Option<u64>| Inherited {
        term: Term::new(term),
        fence: fence.map(Seq::new),
    };
    TermState {
        term: TERM,
        trimmed_below: Seq::new(4),
        inherited: vec![inherited(1, Some(8)), inherited(2, None)],
    }
}

fn root() -> Root {
    let mut root = Root {
        cluster: ClusterId::from_bytes([2; 16]),
        format_version: 1,
        system_namespace: NAMESPACE,
        system_database: DATABASE,
        highest_term: Term::NONE,
        nodes: Vec::new(),
    };
    root.note_claim(NodeId::from_bytes([9; 16]), Term::new(1));
    root.note_claim(NodeId::from_bytes([3; 16]), Term::new(2));
    root.note_claim(NodeId::from_bytes([9; 16]), Term::new(3));
    root
}

#[test]
fn small_objects_round_trip_and_refuse_all_damage() {
    let id = WriteId([7; 16]);
    let bytes = claim().encode(id).expect("encode").bytes;
    assert_eq!(Claim::decode(&bytes, TERM), Ok(claim()));
    assert!(Claim::decode(&bytes, Term::new(4)).is_err());
    refuses_all_damage(&bytes, |b| Claim::decode(&b.into(), TERM));

    let bytes = fence().encode(id).expect("encode").bytes;
    assert_eq!(Fence::decode(&bytes, TERM, Seq::new(5)), Ok(fence()));
    assert!(Fence::decode(&bytes, TERM, Seq::new(6)).is_err());
    assert_eq!(slot_kind(&bytes), Ok(ObjectKind::Fence));
    refuses_all_damage(&bytes, |b| Fence::decode(&b.into(), TERM, Seq::new(5)));

    let bytes = state().encode(id).expect("encode").bytes;
    assert_eq!(TermState::decode(&bytes, TERM), Ok((state(), id)));
    assert!(TermState::decode(&bytes, Term::new(4)).is_err());
    refuses_all_damage(&bytes, |b| TermState::decode(&b.into(), TERM));

    let bytes = root().encode(id).expect("encode").bytes;
    assert_eq!(Root::decode(&bytes), Ok((root(), id)));
    refuses_all_damage(&bytes, |b| Root::decode(&b.into()));
}

#[test]
fn the_root_remembers_each_node_once_with_its_highest_term() {
    let node = |byte, term| RootNode {
        node: NodeId::from_bytes([byte; 16]),
        last_term: Term::new(term),
    };
    assert_eq!(root().nodes, [node(3, 2), node(9, 3)]);
    assert_eq!(root().highest_term, Term::new(3));
}

#[test]
fn newer_versions_and_sealed_objects_are_refused_by_name() {
    let bytes = claim().encode(WriteId([7; 16])).expect("encode").bytes;
    let mut newer = bytes.to_vec();
    newer[8] = 2;
    let error = Claim::decode(&newer.into(), TERM).expect_err("version 2");
    assert_eq!(
        error.to_string(),
        "object has format version 2, this program reads up to 1"
    );
    let mut sealed = bytes.to_vec();
    sealed[11] = 2;
    let error = Claim::decode(&sealed.into(), TERM).expect_err("sealed");
    assert!(
        error.to_string().starts_with("sealed with cipher 2"),
        "{error}"
    );
    let mut newer_bucket = root();
    newer_bucket.format_version = 2;
    let bytes = newer_bucket.encode(WriteId([7; 16])).expect("encode").bytes;
    let error = Root::decode(&bytes).expect_err("version 2");
    assert!(
        error.to_string().contains("bucket has format version 2"),
        "{error}"
    );
}
