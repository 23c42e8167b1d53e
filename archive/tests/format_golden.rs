//! Golden objects: what version 1 wrote must be read for ever, and version 1 must still write it.
//!
//! `TIDELOG_WRITE_GOLDEN=1 cargo test -p tidelog-archive --test format_golden` writes files that are
//! missing; it never changes one. Fixtures hold noise, so that no block depends on the compressor's version;
//! `segment_zstd` is compressed, and is only read.

mod format_support;

use std::path::PathBuf;

use bytes::Bytes;
use format_support::manifests::{full, image, nonce, segment};
use format_support::{DATABASE, Dice, History, NAMESPACE, SEED, count, digest};
use tidelog_archive::envelope::WriteId;
use tidelog_archive::image::{Image, ImageMeta, ImageWriter};
use tidelog_archive::index::IndexObject;
use tidelog_archive::journal::{
    Claim, Fence, Inherited, JournalObject, JournalObjectBuilder, TermState,
};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::manifest::{IndexEntry, Manifest};
use tidelog_archive::root::Root;
use tidelog_archive::seal::{Keyring, Stamp};
use tidelog_archive::segment::{Segment, SegmentWriter};
use tidelog_wal::block::Compressor;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{ClusterId, NodeId, PageNo, Term, Timestamp};

const ID: WriteId = WriteId([0x1d; 16]);
const TERM: Term = Term::new(3);

/// The golden file of this name, written now if it is missing and that was asked for.
fn golden(name: &str, written: &Bytes) -> Bytes {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.push("tests/golden");
    path.push(format!("{name}.v1"));
    if !path.exists() && std::env::var_os("TIDELOG_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, written).expect("write the golden file");
    }
    std::fs::read(&path)
        .expect("a golden file is part of the repository")
        .into()
}

/// The golden file of this name, which must be what is written today.
fn same(name: &str, written: &Bytes) -> Bytes {
    let golden = golden(name, written);
    assert_eq!(golden, *written, "version 1 of {name} must not change");
    golden
}

fn noise(commits: usize) -> History {
    let mut history = History::new(512);
    let mut dice = Dice(77);
    for n in 0..commits {
        history.commit((0..=n % 3).map(|_| dice.bytes(512)).collect());
    }
    history
}

fn segment_of(history: &History) -> (Bytes, ObjectRef) {
    let ids = (NAMESPACE, DATABASE);
    let size = history.page_size;
    let mut writer = SegmentWriter::new(
        ids,
        size,
        SEED,
        history.start,
        Stamp::plain(ID),
        Compressor::new(3),
    );
    for commit in &history.commits {
        writer.push(&commit.bytes).expect("record");
    }
    let (finished, meta, _) = writer.finish().expect("finish");
    let key = Key::segment(NAMESPACE, DATABASE, meta.run.first, meta.run.last, nonce(1));
    (finished.bytes.clone(), finished.object_ref(&key))
}

fn records_of(bytes: &Bytes, named: &ObjectRef) -> Vec<Vec<u8>> {
    let segment =
        Segment::decode(bytes, NAMESPACE, DATABASE, named, &Keyring::off()).expect("decode");
    let span = segment.all().expect("records");
    let range = usize::try_from(span.range.start).expect("small")
        ..usize::try_from(span.range.end).expect("small");
    let stored = bytes.slice(range);
    let mut reader = segment.records(&span, &stored);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().expect("record") {
        records.push(record.bytes.to_vec());
    }
    records
}

#[test]
fn objects_of_the_node_are_read_and_written_as_ever() {
    let node = NodeId::from_bytes([1; 16]);
    let wall = Timestamp::from_micros(1_700_000_000_000_000);
    let cluster = ClusterId::from_bytes([2; 16]);
    let mut root = Root {
        cluster,
        format_version: 1,
        system_namespace: NAMESPACE,
        system_database: DATABASE,
        highest_term: Term::NONE,
        nodes: Vec::new(),
    };
    root.note_claim(node, TERM);
    let bytes = same("root", &root.encode(ID).expect("encode").bytes);
    assert_eq!(Root::decode(&bytes), Ok((root, ID)));

    let claim = Claim {
        term: TERM,
        previous: Some(Term::new(2)),
        node,
        cluster,
        wall,
    };
    let bytes = same("claim", &claim.encode(ID).expect("encode").bytes);
    assert_eq!(Claim::decode(&bytes, TERM), Ok(claim));

    let fence = Fence {
        term: TERM,
        seq: Seq::new(9),
        by_term: Term::new(4),
        by_node: node,
        wall,
    };
    let bytes = same("fence", &fence.encode(ID).expect("encode").bytes);
    assert_eq!(Fence::decode(&bytes, TERM, Seq::new(9)), Ok(fence));

    let state = TermState {
        term: TERM,
        trimmed_below: Seq::new(4),
        inherited: vec![Inherited {
            term: Term::new(2),
            fence: Some(Seq::new(8)),
        }],
    };
    let bytes = same("state", &state.encode(ID).expect("encode").bytes);
    assert_eq!(TermState::decode(&bytes, TERM), Ok((state, ID)));
}

#[test]
fn journal_objects_are_read_and_written_as_ever() {
    let history = noise(5);
    let (seq, locals) = (Seq::new(9), (20, 24));
    let mut builder =
        JournalObjectBuilder::new(TERM, seq, locals, Stamp::plain(ID), Compressor::new(3));
    builder
        .section(history.section(1, 5), None)
        .expect("section");
    for commit in &history.commits {
        builder.push(&commit.bytes).expect("record");
    }
    let written = builder.finish().expect("finish").0.bytes;
    let bytes = same("journal", &written);
    let object = JournalObject::decode(&bytes, TERM, seq, &Keyring::off()).expect("decode");
    let section = &object.sections[0];
    assert_eq!(section.meta, history.section(1, 5));
    let stored = object.section_bytes(section).expect("whole");
    let mut reader = object.records(section, &stored);
    let mut seen = 0;
    while let Some(record) = reader.next_record().expect("record") {
        assert_eq!(record.bytes, history.commits[seen].bytes);
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn segments_are_read_and_written_as_ever() {
    let history = noise(7);
    let (written, named) = segment_of(&history);
    let bytes = same("segment", &written);
    let want: Vec<_> = history.commits.iter().map(|c| c.bytes.clone()).collect();
    assert_eq!(records_of(&bytes, &named), want);
}

#[test]
fn compressed_segments_are_read_as_ever() {
    let mut history = History::new(4096);
    for byte in 1..9 {
        history.commit(vec![vec![byte; 4096]; 2]);
    }
    let (written, _) = segment_of(&history);
    let bytes = golden("segment_zstd", &written);
    let trailer = &bytes[bytes.len() - 64..];
    let named = ObjectRef {
        key: String::new(),
        len: bytes.len() as u64,
        blake3: trailer[16..48].try_into().expect("32 bytes"),
    };
    let want: Vec<_> = history.commits.iter().map(|c| c.bytes.clone()).collect();
    assert_eq!(records_of(&bytes, &named), want);
}

#[test]
fn images_are_read_and_written_as_ever() {
    let history = noise(3);
    let mut pages = history.state();
    pages.insert(1, vec![0; 512]);
    let meta = ImageMeta {
        namespace: NAMESPACE,
        database: DATABASE,
        page_size: history.page_size,
        seed: SEED,
        position: history.at(3).position,
        time: history.at(3).header.time,
        n: count(pages.len()),
        digest: digest(history.page_size, &pages),
    };
    let mut writer = ImageWriter::new(meta, Stamp::plain(ID), Compressor::new(3));
    for (number, page) in (1..).zip(&pages) {
        writer
            .page(PageNo::new(number).expect("from 1"), page)
            .expect("page");
    }
    let finished = writer.finish().expect("finish").0;
    let bytes = same("image", &finished.bytes);
    let key = Key::image(NAMESPACE, DATABASE, meta.position.txid, nonce(1));
    let named = finished.object_ref(&key);
    let image =
        Image::decode(&bytes, NAMESPACE, DATABASE, &named, &Keyring::off()).expect("decode");
    assert_eq!(image.meta, meta);
    let entry = &image.table.blocks[0];
    let range = usize::try_from(entry.offset).expect("small")
        ..usize::try_from(entry.range().end).expect("small");
    let block = image.open_block(0, &bytes[range]).expect("block");
    let found: Vec<(u32, &[u8])> = block
        .pages()
        .map(|(page, bytes)| (page.get(), bytes))
        .collect();
    let want: Vec<(u32, &[u8])> = [1, 3, 4]
        .into_iter()
        .map(|page: u32| (page, pages[page as usize - 1].as_slice()))
        .collect();
    assert_eq!(found, want);
}

#[test]
fn manifests_and_index_objects_are_read_and_written_as_ever() {
    let manifest = full();
    let bytes = same(
        "manifest",
        &manifest.encode(Stamp::plain(ID)).expect("encode").bytes,
    );
    let decoded = Manifest::decode(&bytes, NAMESPACE, DATABASE, &Keyring::off());
    assert_eq!(decoded, Ok((manifest, ID)));

    let index = IndexObject {
        children: Vec::new(),
        images: vec![image(0)],
        segments: vec![segment(0), segment(1)],
    };
    let finished = index
        .encode(NAMESPACE, DATABASE, 0, Stamp::plain(ID))
        .expect("encode");
    let (segments, images, total) = index.totals();
    let entry = IndexEntry {
        level: 0,
        run: index.run().expect("entries"),
        segments,
        images,
        bytes: total,
        nonce: nonce(5),
        len: finished.len,
        blake3: finished.blake3,
    };
    let bytes = same("index", &finished.bytes);
    let decoded = IndexObject::decode(&bytes, NAMESPACE, DATABASE, &entry, &Keyring::off());
    assert_eq!(decoded, Ok(index));
}
