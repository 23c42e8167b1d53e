//! Sealed objects: what stands in a bucket opens with its key in its place, and is refused by name otherwise.
//!
//! Golden files of sealed objects are written and read as those of plain ones (`format_golden`): master key, data
//! keys and nonces are fixed here. Damage is tried twice: as it happens, and by somebody who makes checksums good
//! again but has no key.

mod format_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use format_support::manifests::{empty, full, image, nonce, segment};
use format_support::{DATABASE, Dice, History, NAMESPACE, SEED, count, digest, refuses_all_damage};
use object_store::memory::InMemory;
use tidelog_archive::envelope::{
    Expect, Finished, FormatError, HEADER_LEN, KeyId, Object, ObjectKind, ObjectNonce, TRAILER_LEN,
    WriteId,
};
use tidelog_archive::export::{
    SealedArchive, SealedArchiveWriter, is_sealed, open_document, seal_document,
};
use tidelog_archive::image::{Image, ImageMeta, ImageWriter};
use tidelog_archive::index::IndexObject;
use tidelog_archive::journal::{JournalObject, JournalObjectBuilder};
use tidelog_archive::key::{ArchiveId, Key, NonceSource, Seq};
use tidelog_archive::manifest::{IndexEntry, Manifest, ManifestError, ManifestStore, PublishError};
use tidelog_archive::seal::{
    BlockSealer, DataKey, KeyError, KeyObject, KeyStore, Keyring, Known, MasterKey, MasterKeys,
    SEAL_OVERHEAD, SealKey, Stamp,
};
use tidelog_archive::segment::{Segment, SegmentWriter};
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_archive::{Entropy, ErrorKind, SystemEntropy};
use tidelog_wal::block::Compressor;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId, PageNo, Term, Timestamp};

const ID: WriteId = WriteId([0x1d; 16]);
const TERM: Term = Term::new(3);
const OTHER: DatabaseId = DatabaseId::from_bytes([0x0b; 16]);
const SYSTEM: (NamespaceId, DatabaseId) = (
    NamespaceId::from_bytes([0x51; 16]),
    DatabaseId::from_bytes([0x52; 16]),
);
const MADE: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

/// Counts up instead of drawing: for fixtures.
#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, buf: &mut [u8]) {
        for byte in buf {
            *byte = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes()[0];
        }
    }
}

fn master(id: &str, first: u8) -> MasterKey {
    let bytes: Vec<u8> = (first..first + 32).collect();
    MasterKey::parse(id, &bytes).expect("a master key")
}

fn masters(keys: &[(&str, u8)]) -> MasterKeys {
    let keys = keys.iter().map(|(id, first)| master(id, *first)).collect();
    MasterKeys::new(keys).expect("master keys")
}

fn data_key(fill: u8) -> SealKey {
    SealKey {
        id: KeyId([fill; 16]),
        key: DataKey::from_bytes([fill ^ 0xa5; 32]),
        created: MADE,
    }
}

fn key_object(ids: (NamespaceId, DatabaseId), fill: u8) -> KeyObject {
    let mut object = KeyObject::new(ids.0, ids.1, MADE, false);
    object.add(&data_key(fill), &master("k1", 1), &Counting::default());
    object
}

/// The keys of the tenant's database, of another one and of the system's.
fn ring() -> Keyring {
    let ring = Keyring::new(masters(&[("k1", 1)]));
    for (ids, fill) in [
        ((NAMESPACE, DATABASE), 1),
        ((NAMESPACE, OTHER), 2),
        (SYSTEM, 3),
    ] {
        ring.admit(&key_object(ids, fill)).expect("its own master");
    }
    ring.set_system(SYSTEM.0, SYSTEM.1);
    ring
}

fn stamp(nonce: u8, key: u8) -> Stamp {
    Stamp::fixed(ID, ObjectNonce([nonce; 16]), Some(Arc::new(data_key(key))))
}

/// The golden file of this name, which must be what is written today; written now if it is missing and
/// `TIDELOG_WRITE_GOLDEN` asks for it.
fn same(name: &str, written: &Bytes) -> Bytes {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.push(format!("tests/golden/{name}.v1"));
    if !path.exists() && std::env::var_os("TIDELOG_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, written).expect("write the golden file");
    }
    let golden: Bytes = std::fs::read(&path).expect("a golden file").into();
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

fn segment_with(history: &History, stamp: Stamp) -> (Finished, ObjectRef) {
    let (ids, size) = ((NAMESPACE, DATABASE), history.page_size);
    let mut writer = SegmentWriter::new(ids, size, SEED, history.start, stamp, Compressor::new(3));
    for commit in &history.commits {
        writer.push(&commit.bytes).expect("record");
    }
    let (finished, meta, _) = writer.finish().expect("finish");
    let key = Key::segment(NAMESPACE, DATABASE, meta.run.first, meta.run.last, nonce(1));
    let named = finished.object_ref(&key);
    (finished, named)
}

fn read_segment(
    bytes: &Bytes,
    named: &ObjectRef,
    keys: &Keyring,
) -> Result<Vec<Vec<u8>>, FormatError> {
    let segment = Segment::decode(bytes, NAMESPACE, DATABASE, named, keys)?;
    let span = segment.all().expect("records");
    let range = usize::try_from(span.range.start).expect("small")
        ..usize::try_from(span.range.end).expect("small");
    let stored = bytes.slice(range);
    let mut reader = segment.records(&span, &stored);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record.bytes.to_vec());
    }
    Ok(records)
}

fn image_with(history: &History, stamp: Stamp) -> (Finished, ObjectRef, ImageMeta) {
    let pages = history.state();
    let last = history.commits.last().expect("a commit");
    let meta = ImageMeta {
        namespace: NAMESPACE,
        database: DATABASE,
        page_size: history.page_size,
        seed: SEED,
        position: last.position,
        time: last.header.time,
        n: count(pages.len()),
        digest: digest(history.page_size, &pages),
    };
    let mut writer = ImageWriter::new(meta, stamp, Compressor::new(3));
    for (number, page) in (1..).zip(&pages) {
        let page_no = PageNo::new(number).expect("from 1");
        writer.page(page_no, page).expect("page");
    }
    let finished = writer.finish().expect("finish").0;
    let key = Key::image(NAMESPACE, DATABASE, meta.position.txid, nonce(1));
    let named = finished.object_ref(&key);
    (finished, named, meta)
}

fn read_image(bytes: &Bytes, named: &ObjectRef, keys: &Keyring) -> Result<Vec<u8>, FormatError> {
    let image = Image::decode(bytes, NAMESPACE, DATABASE, named, keys)?;
    let mut pages = Vec::new();
    for (number, entry) in image.table.blocks.iter().enumerate() {
        let range = usize::try_from(entry.offset).expect("small")
            ..usize::try_from(entry.range().end).expect("small");
        pages.extend(image.open_block(number, &bytes[range])?.into_raw());
    }
    Ok(pages)
}

/// A journal object of two databases.
fn journal_with(a: &History, b: &History, stamp: Stamp, keys: Option<(u8, u8)>) -> Bytes {
    let (seq, locals) = (Seq::new(9), (20, 30));
    let mut builder = JournalObjectBuilder::new(TERM, seq, locals, stamp, Compressor::new(3));
    let fills = keys.map_or([None, None], |(a, b)| [Some(a), Some(b)]);
    for (history, fill) in [a, b].into_iter().zip(fills) {
        let last = history.commits.len() as u64;
        let key = fill.map(data_key);
        builder
            .section(history.section(1, last), key.as_ref())
            .expect("section");
        for commit in &history.commits {
            builder.push(&commit.bytes).expect("record");
        }
    }
    builder.finish().expect("finish").0.bytes
}

fn read_section(bytes: &Bytes, keys: &Keyring, number: usize) -> Result<Vec<Vec<u8>>, FormatError> {
    let object = JournalObject::decode(bytes, TERM, Seq::new(9), keys)?;
    let section = &object.sections[number];
    let stored = object.section_bytes(section).expect("whole");
    let mut reader = object.records(section, &stored);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record.bytes.to_vec());
    }
    Ok(records)
}

fn two() -> (History, History) {
    let a = noise(4);
    let mut b = History {
        database: OTHER,
        start: tidelog_wal::chain::genesis(OTHER),
        ..History::new(512)
    };
    let mut dice = Dice(5);
    for _ in 0..3 {
        b.commit(vec![dice.bytes(512)]);
    }
    (a, b)
}

/// Makes the checksums of a changed object good again, as anybody can.
fn checksummed(mut bytes: Vec<u8>) -> Bytes {
    let at = bytes.len() - TRAILER_LEN;
    let index = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let index = usize::try_from(index).expect("small");
    let crc = crc32fast::hash(&bytes[index..at]);
    bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    let hash = blake3::hash(&bytes[..at]);
    bytes[at + 16..at + 48].copy_from_slice(hash.as_bytes());
    bytes.into()
}

fn named_by_trailer(bytes: &Bytes) -> ObjectRef {
    let trailer = &bytes[bytes.len() - TRAILER_LEN..];
    ObjectRef {
        key: String::new(),
        len: bytes.len() as u64,
        blake3: trailer[16..48].try_into().expect("32 bytes"),
    }
}

fn index_object() -> (IndexObject, IndexEntry, Bytes) {
    let index = IndexObject {
        children: Vec::new(),
        images: vec![image(0)],
        segments: vec![segment(0), segment(1)],
    };
    let finished = index
        .encode(NAMESPACE, DATABASE, 0, stamp(5, 1))
        .expect("encode");
    let (segments, images, bytes) = index.totals();
    let entry = IndexEntry {
        level: 0,
        run: index.run().expect("entries"),
        segments,
        images,
        bytes,
        nonce: nonce(4),
        len: finished.len,
        blake3: finished.blake3,
    };
    (index, entry, finished.bytes)
}

#[test]
fn sealed_objects_are_read_and_written_as_ever() {
    let ring = ring();
    let object = key_object((NAMESPACE, DATABASE), 1);
    let bytes = same("key", &object.encode(ID).expect("encode").bytes);
    assert_eq!(KeyObject::decode(&bytes, NAMESPACE, DATABASE), Ok(object));

    let history = noise(7);
    let (written, named) = segment_with(&history, stamp(1, 1));
    let bytes = same("segment_sealed", &written.bytes);
    let want: Vec<_> = history.commits.iter().map(|c| c.bytes.clone()).collect();
    assert_eq!(read_segment(&bytes, &named, &ring), Ok(want));

    let (written, named, _) = image_with(&noise(3), stamp(2, 1));
    let bytes = same("image_sealed", &written.bytes);
    let pages = read_image(&bytes, &named, &ring).expect("read");
    assert_eq!(pages.len(), 3 * 512);

    let manifest = full();
    let encoded = manifest.encode(stamp(3, 1)).expect("encode");
    let bytes = same("manifest_sealed", &encoded.bytes);
    let decoded = Manifest::decode(&bytes, NAMESPACE, DATABASE, &ring);
    assert_eq!(decoded, Ok((manifest, ID)));

    let (index, entry, written) = index_object();
    let bytes = same("index_sealed", &written);
    let decoded = IndexObject::decode(&bytes, NAMESPACE, DATABASE, &entry, &ring);
    assert_eq!(decoded, Ok(index));

    let (a, b) = two();
    let bytes = same(
        "journal_sealed",
        &journal_with(&a, &b, stamp(4, 3), Some((1, 2))),
    );
    for (number, history) in [a, b].iter().enumerate() {
        let want: Vec<_> = history.commits.iter().map(|c| c.bytes.clone()).collect();
        assert_eq!(read_section(&bytes, &ring, number), Ok(want));
    }
}

const ARCHIVE: ArchiveId = ArchiveId::from_bytes([0xa7; 16]);

/// The sealed object of an archive whose frame is `frame`.
fn archive_with(frame: &[u8], stamp: Stamp) -> (Bytes, ObjectRef) {
    let mut writer = SealedArchiveWriter::new((NAMESPACE, DATABASE), ARCHIVE, stamp);
    let mut written = Vec::new();
    for piece in frame.chunks(100_000) {
        writer.push(piece);
        written.extend(writer.take());
    }
    let finished = writer.finish().expect("finish");
    written.extend_from_slice(&finished.bytes);
    assert_eq!(written.len() as u64, finished.len);
    let named = ObjectRef {
        key: String::new(),
        len: finished.len,
        blake3: finished.blake3,
    };
    (written.into(), named)
}

fn open_archive(
    bytes: &Bytes,
    named: &ObjectRef,
    keys: &Keyring,
) -> Result<SealedArchive, FormatError> {
    let ids = (NAMESPACE, DATABASE);
    let opened = SealedArchive::open_tail(bytes, bytes, ids, ARCHIVE, named, keys)?;
    Ok(opened.expect("all of it is at hand"))
}

/// The whole frame, as it is fetched block by block; and that the file opens alike.
fn read_archive(bytes: &Bytes, named: &ObjectRef, keys: &Keyring) -> Result<Vec<u8>, FormatError> {
    let opened = open_archive(bytes, named, keys)?;
    let frame = read_range(&opened, bytes, 0..u64::MAX, 1 << 19)?;
    let mut file = std::io::Cursor::new(bytes.clone());
    let opened = SealedArchive::open_file(&mut file, keys).expect("no disk fails")?;
    assert_eq!(opened.id, ARCHIVE);
    assert_eq!(read_range(&opened, bytes, 0..u64::MAX, u64::MAX)?, frame);
    Ok(frame)
}

fn read_range(
    archive: &SealedArchive,
    bytes: &Bytes,
    range: std::ops::Range<u64>,
    at_once: u64,
) -> Result<Vec<u8>, FormatError> {
    let (mut read, mut rest) = (Vec::new(), range);
    while let Some((blocks, at)) = archive.blocks(&rest, at_once) {
        let at = usize::try_from(at.start).expect("small")..usize::try_from(at.end).expect("small");
        let stored = bytes.get(at.clone()).ok_or(DecodeError::Short {
            offset: 0,
            need: at.end,
            have: bytes.len(),
        })?;
        let opened = archive.open_blocks(&blocks, stored, &rest)?;
        assert!(!opened.is_empty(), "a step that goes nowhere");
        rest.start += opened.len() as u64;
        read.extend(opened);
    }
    Ok(read)
}

fn frame(len: usize) -> Vec<u8> {
    Dice(5).bytes(len)
}

#[test]
fn sealed_archives_are_read_and_written_as_ever() {
    let ring = ring();
    let frame = frame(700);
    let (written, named) = archive_with(&frame, stamp(7, 1));
    let bytes = same("archive_sealed", &written);
    assert!(is_sealed(&bytes));
    assert_eq!(read_archive(&bytes, &named, &ring), Ok(frame));

    let text = br#"{"version":1}"#.to_vec();
    let ids = (NAMESPACE, DATABASE);
    let sealed = seal_document(ids, stamp(8, 1), text.clone()).expect("seal");
    let bytes = same("archive_side_sealed", &sealed.bytes);
    assert_eq!(open_document(&bytes, ids, &ring), Ok(text));
}

#[test]
fn a_range_of_a_sealed_archive_is_opened_by_its_blocks_alone() {
    let ring = ring();
    let block = 256 * 1024;
    // Over several blocks, at the edge of one, and nothing at all.
    for len in [3 * block + 17, 2 * block, block - 1, 0] {
        let frame = frame(len);
        let (bytes, named) = archive_with(&frame, stamp(7, 1));
        assert_eq!(
            read_archive(&bytes, &named, &ring),
            Ok(frame.clone()),
            "{len}"
        );
        let archive = open_archive(&bytes, &named, &ring).expect("open");
        assert_eq!(archive.raw_len(), len as u64);
        for (from, to) in [
            (0, 1),
            (block - 1, block + 1),
            (block, 2 * block),
            (10, 2 * block + 5),
            (len.saturating_sub(1), len),
            (len, len + 9),
        ] {
            let found = read_range(&archive, &bytes, from as u64..to as u64, 300_000);
            let want = frame.get(from.min(len)..to.min(len)).unwrap_or_default();
            assert_eq!(found.as_deref(), Ok(want), "{len}: {from}..{to}");
        }
        if len > 2 * block {
            let (blocks, at) = archive
                .blocks(&(block as u64..block as u64 + 1), 1)
                .expect("one");
            assert_eq!((blocks, at.end - at.start), (1..2, block as u64 + 16));
        }
    }
}

#[test]
fn a_plain_envelope_is_no_sealed_archive() {
    // Anybody can write one: it would stand for what its owner sealed.
    let ring = ring();
    let (bytes, named) = archive_with(&frame(700), Stamp::plain(ID));
    let refused = read_archive(&bytes, &named, &ring);
    assert_eq!(refused, Err(FormatError::NotSealed));
    let ids = (NAMESPACE, DATABASE);
    let side = seal_document(ids, Stamp::plain(ID), b"{}".to_vec()).expect("encode");
    assert_eq!(
        open_document(&side.bytes, ids, &ring),
        Err(FormatError::NotSealed)
    );
    // Nor is that of another archive or database, or one whose key is not at hand.
    let (bytes, named) = archive_with(&frame(700), stamp(7, 1));
    let other = ArchiveId::from_bytes([1; 16]);
    for (database, id) in [(DATABASE, other), (OTHER, ARCHIVE)] {
        let ids = (NAMESPACE, database);
        let refused = SealedArchive::open_tail(&bytes, &bytes, ids, id, &named, &ring);
        assert!(
            matches!(refused, Err(FormatError::Foreign { .. })),
            "{refused:?}"
        );
    }
    let refused = read_archive(&bytes, &named, &Keyring::off());
    assert!(
        matches!(refused, Err(FormatError::KeyUnavailable { .. })),
        "{refused:?}"
    );
}

#[test]
fn every_flip_and_truncation_of_a_sealed_object_is_refused() {
    let ring = ring();
    let (bytes, named) = archive_with(&frame(700), stamp(7, 1));
    refuses_all_damage(&bytes, |bytes| read_archive(&bytes.into(), &named, &ring));
    let ids = (NAMESPACE, DATABASE);
    let side = seal_document(ids, stamp(8, 1), b"{}".to_vec()).expect("seal");
    refuses_all_damage(&side.bytes, |bytes| {
        open_document(&bytes.into(), ids, &ring)
    });
    let history = noise(2);
    let (written, named) = segment_with(&history, stamp(1, 1));
    refuses_all_damage(&written.bytes, |bytes| {
        read_segment(&bytes.into(), &named, &ring)
    });
    let (written, named, _) = image_with(&history, stamp(2, 1));
    refuses_all_damage(&written.bytes, |bytes| {
        read_image(&bytes.into(), &named, &ring)
    });
    let (a, b) = two();
    let bytes = journal_with(&a, &b, stamp(4, 3), Some((1, 2)));
    refuses_all_damage(&bytes, |bytes| {
        let bytes = Bytes::from(bytes);
        read_section(&bytes, &ring, 0)?;
        read_section(&bytes, &ring, 1)
    });
    let (_, entry, bytes) = index_object();
    refuses_all_damage(&bytes, |bytes| {
        IndexObject::decode(&bytes.into(), NAMESPACE, DATABASE, &entry, &ring)
    });
    let lines = tidelog_archive::audit::seal(NAMESPACE, stamp(7, 3), "{}\n").expect("seal");
    refuses_all_damage(&lines.bytes, |bytes| {
        tidelog_archive::audit::open(&bytes.into(), NAMESPACE, &ring)
    });
    let bytes = empty().encode(stamp(3, 1)).expect("encode").bytes;
    refuses_all_damage(&bytes, |bytes| {
        match Manifest::decode(&bytes.into(), NAMESPACE, DATABASE, &ring) {
            Ok(_) => Ok(()),
            Err(_) => Err(FormatError::NotSealed),
        }
    });
    let bytes = key_object((NAMESPACE, DATABASE), 1)
        .encode(ID)
        .expect("encode")
        .bytes;
    refuses_all_damage(&bytes, |bytes| {
        KeyObject::decode(&bytes.into(), NAMESPACE, DATABASE)
    });
}

#[test]
fn flips_with_good_checksums_are_refused_by_the_seal() {
    // Goal: whoever can write the bucket and has no key cannot change a byte that counts. Method: each byte of
    // header ids, payload and index is changed and every checksum made good again.
    let ring = ring();
    let bytes = full().encode(stamp(3, 1)).expect("encode").bytes;
    // Key id, nonce, namespace, database, payload: all but magic, version, kind, cipher and write id.
    for at in 32..bytes.len() - TRAILER_LEN {
        let mut changed = bytes.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let refused = Manifest::decode(&changed, NAMESPACE, DATABASE, &ring);
        let Err(ManifestError::Format(error)) = refused else {
            panic!("byte {at}: {refused:?}");
        };
        let by_name = matches!(
            error,
            FormatError::Unauthentic { .. }
                | FormatError::KeyUnavailable { .. }
                | FormatError::Foreign { .. }
        );
        assert!(by_name, "byte {at}: {error:?}");
    }
    let (written, _) = archive_with(&frame(700), stamp(7, 1));
    for at in 32..written.len() - TRAILER_LEN {
        let mut changed = written.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let named = named_by_trailer(&changed);
        assert!(read_archive(&changed, &named, &ring).is_err(), "byte {at}");
    }
    let (written, _) = segment_with(&noise(3), stamp(1, 1));
    for at in HEADER_LEN..written.bytes.len() - TRAILER_LEN {
        let mut changed = written.bytes.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let named = named_by_trailer(&changed);
        assert!(read_segment(&changed, &named, &ring).is_err(), "byte {at}");
    }
}

/// The same bytes with `count` bytes from `at` on of `other`, and good checksums.
fn grafted(bytes: &Bytes, other: &Bytes, at: usize, count: usize) -> Bytes {
    let mut changed = bytes.to_vec();
    changed[at..at + count].copy_from_slice(&other[at..at + count]);
    checksummed(changed)
}

#[test]
fn a_journals_flips_with_good_checksums_are_refused_by_the_seal() {
    // As above, of a shared object: in whichever section or in the index a byte is changed, one of them does not open.
    let ring = ring();
    let (a, b) = two();
    let written = journal_with(&a, &b, stamp(4, 3), Some((1, 2)));
    for at in HEADER_LEN..written.len() - TRAILER_LEN {
        let mut changed = written.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let read = (0..2).try_for_each(|n| read_section(&changed, &ring, n).map(drop));
        let refused = read.expect_err("changed");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "byte {at}: {refused:?}");
    }
    let (written, _, _) = image_with(&noise(3), stamp(2, 1));
    let (_, entry, index) = index_object();
    for at in HEADER_LEN..written.bytes.len() - TRAILER_LEN {
        let mut changed = written.bytes.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let refused =
            read_image(&changed, &named_by_trailer(&changed), &ring).expect_err("changed");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "byte {at}: {refused:?}");
    }
    for at in HEADER_LEN..index.len() - TRAILER_LEN {
        let mut changed = index.to_vec();
        changed[at] ^= 0x20;
        let changed = checksummed(changed);
        let named = named_by_trailer(&changed);
        let entry = IndexEntry {
            blake3: named.blake3,
            ..entry
        };
        let refused = IndexObject::decode(&changed, NAMESPACE, DATABASE, &entry, &ring);
        let refused = refused.expect_err("changed");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "byte {at}: {refused:?}");
    }
}

#[test]
fn what_is_taken_over_from_another_object_is_refused() {
    // Goal: no piece of one stored object serves in another, of the same database and key either. Method: objects of
    // equal form and other nonces; payload or index of one is put into the other and the checksums made good; whole
    // objects get the header of another database.
    let ring = ring();
    let history = noise(3);
    let (one, _) = segment_with(&history, stamp(1, 1));
    let (two_, _) = segment_with(&history, stamp(9, 1));
    assert_eq!(one.len, two_.len, "the same records under another nonce");
    let at = one.bytes.len() - TRAILER_LEN;
    let index = u64::from_le_bytes(one.bytes[at..at + 8].try_into().expect("8 bytes"));
    let index = usize::try_from(index).expect("small");
    for (what, from, to) in [
        ("the payload", HEADER_LEN, index),
        ("the index", index, at),
        ("both", HEADER_LEN, at),
    ] {
        let changed = grafted(&one.bytes, &two_.bytes, from, to - from);
        assert_ne!(changed, one.bytes);
        let refused = read_segment(&changed, &named_by_trailer(&changed), &ring);
        let refused = refused.expect_err(what);
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{what}: {refused:?}");
    }
    // Whole, under another database's name and key id.
    let mut moved = one.bytes.to_vec();
    moved[80..96].copy_from_slice(OTHER.as_bytes());
    for key_id in [1, 2] {
        moved[32..48].copy_from_slice(&[key_id; 16]);
        let moved = checksummed(moved.clone());
        let named = named_by_trailer(&moved);
        let refused = Segment::decode(&moved, NAMESPACE, OTHER, &named, &ring);
        assert!(
            matches!(refused, Err(FormatError::Unauthentic { .. })),
            "{refused:?}"
        );
    }
    // A section that another journal object holds of the same database.
    let (a, b) = two();
    let (here, there) = (
        journal_with(&a, &b, stamp(4, 3), Some((1, 2))),
        journal_with(&a, &b, stamp(5, 3), Some((1, 2))),
    );
    let object = JournalObject::decode(&here, TERM, Seq::new(9), &ring).expect("whole");
    for (number, section) in object.sections.iter().enumerate() {
        let range = section.range();
        let from = usize::try_from(range.start).expect("small");
        let to = usize::try_from(range.end).expect("small");
        let changed = grafted(&here, &there, from, to - from);
        let refused = read_section(&changed, &ring, number).expect_err("of another object");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{number}: {refused:?}");
    }
}

#[test]
fn a_block_opens_in_its_own_place_alone() {
    let key = data_key(1).key;
    let nonce = ObjectNonce([9; 16]);
    let ids = (NAMESPACE, DATABASE);
    let sealer = BlockSealer::new(&key, ObjectKind::Segment, nonce, ids);
    let mut block = b"a block".to_vec();
    sealer.seal(4, &mut block);
    assert_eq!(block.len(), 7 + SEAL_OVERHEAD);
    assert_eq!(sealer.open(4, &block).as_deref(), Some(&b"a block"[..]));
    assert_eq!(sealer.open(5, &block), None, "another number");
    let elsewhere = [
        BlockSealer::new(&key, ObjectKind::Image, nonce, ids),
        BlockSealer::new(&key, ObjectKind::Segment, ObjectNonce([8; 16]), ids),
        BlockSealer::new(&key, ObjectKind::Segment, nonce, (NAMESPACE, OTHER)),
        BlockSealer::new(&key, ObjectKind::Segment, nonce, (SYSTEM.0, DATABASE)),
        BlockSealer::new(&data_key(2).key, ObjectKind::Segment, nonce, ids),
    ];
    for other in &elsewhere {
        assert_eq!(other.open(4, &block), None);
    }
    // The same bytes in another place never look the same.
    let mut again = b"a block".to_vec();
    sealer.seal(5, &mut again);
    assert_ne!(block, again);
}

#[test]
fn objects_swapped_between_databases_are_refused() {
    let ring = ring();
    let manifest = full().encode(stamp(3, 1)).expect("encode").bytes;
    let plainly = Manifest::decode(&manifest, NAMESPACE, OTHER, &ring);
    assert!(matches!(
        plainly,
        Err(ManifestError::Format(FormatError::Foreign { .. }))
    ));
    // Even if its header says that it belongs there, and whose key it has.
    let mut moved = manifest.to_vec();
    moved[80..96].copy_from_slice(OTHER.as_bytes());
    let moved = checksummed(moved);
    let refused = Manifest::decode(&moved, NAMESPACE, OTHER, &ring);
    assert!(matches!(
        refused,
        Err(ManifestError::Format(FormatError::Unauthentic { .. }))
    ));
    // A wrapped key opens for the database it was made for alone.
    let mut bytes = key_object((NAMESPACE, DATABASE), 1)
        .encode(ID)
        .expect("encode")
        .bytes
        .to_vec();
    bytes[80..96].copy_from_slice(OTHER.as_bytes());
    let moved = KeyObject::decode(&checksummed(bytes), NAMESPACE, OTHER).expect("well formed");
    let refused = Keyring::new(masters(&[("k1", 1)])).admit(&moved);
    assert!(matches!(refused, Err(KeyError::MasterWrong { .. })));
}

#[test]
fn a_plain_manifest_in_place_of_a_sealed_one_is_refused() {
    let plain = full().encode(Stamp::plain(ID)).expect("encode").bytes;
    let refused = Manifest::decode(&plain, NAMESPACE, DATABASE, &ring());
    assert_eq!(refused, Err(ManifestError::Format(FormatError::NotSealed)));
    // A database that was plain before its first key may still have one.
    let later = Keyring::new(masters(&[("k1", 1)]));
    let mut object = KeyObject::new(NAMESPACE, DATABASE, MADE, true);
    object.add(&data_key(1), &master("k1", 1), &Counting::default());
    later.admit(&object).expect("its own master");
    assert!(Manifest::decode(&plain, NAMESPACE, DATABASE, &later).is_ok());
}

/// The keys of a bucket whose system database was, or was not, plain before.
fn bucket_ring(plain_before: bool) -> Keyring {
    let ring = Keyring::new(masters(&[("k1", 1)]));
    ring.set_system(SYSTEM.0, SYSTEM.1);
    for (ids, fill) in [((NAMESPACE, DATABASE), 1), (SYSTEM, 3)] {
        let mut object = KeyObject::new(ids.0, ids.1, MADE, plain_before);
        object.add(&data_key(fill), &master("k1", 1), &Counting::default());
        ring.admit(&object).expect("its own master");
    }
    ring
}

#[test]
fn nothing_plain_is_taken_in_a_bucket_that_was_sealed_from_its_first_object_on() {
    // Goal: whoever can write the bucket and has no key forges neither journals nor audit lines, and makes no
    // database plain by deleting its key object. Method: plain ones of each kind, in such a bucket and in one in which
    // encryption was turned on later.
    use tidelog_archive::audit;
    let (a, b) = two();
    let lines = Bytes::from("{\"event\":\"forged\"}\n");
    let plain = journal_with(&a, &b, Stamp::plain(ID), None);
    let unkeyed = Stamp::fixed(ID, ObjectNonce([6; 16]), None);
    let unkeyed = journal_with(&a, &b, unkeyed, None);
    let section = journal_with(&a, &b, stamp(4, 3), None);
    let manifest = full().encode(Stamp::plain(ID)).expect("encode").bytes;

    let first = bucket_ring(false);
    let not_sealed = Some(FormatError::NotSealed);
    assert_eq!(audit::open(&lines, NAMESPACE, &first).err(), not_sealed);
    for bytes in [&plain, &unkeyed, &section] {
        assert_eq!(read_section(bytes, &first, 0).err(), not_sealed);
    }
    first.note_plain(OTHER);
    assert_eq!(first.known(OTHER), Known::Lost);
    let refused = first.sealing(NAMESPACE, OTHER);
    assert!(
        matches!(refused, Err(KeyError::Missing { .. })),
        "{refused:?}"
    );
    let mut moved = full();
    moved.database = OTHER;
    let moved = moved.encode(Stamp::plain(ID)).expect("encode").bytes;
    let refused = Manifest::decode(&moved, NAMESPACE, OTHER, &first);
    assert_eq!(refused, Err(ManifestError::Format(FormatError::NotSealed)));

    let later = bucket_ring(true);
    assert!(audit::open(&lines, NAMESPACE, &later).is_ok());
    for bytes in [&plain, &unkeyed, &section] {
        assert!(read_section(bytes, &later, 0).is_ok());
    }
    later.note_plain(OTHER);
    assert_eq!(later.known(OTHER), Known::Plain);
    assert!(Manifest::decode(&manifest, NAMESPACE, DATABASE, &later).is_ok());
}

#[test]
fn an_older_key_object_changes_nothing_in_a_ring() {
    // Goal: while a process runs, a key object that somebody put back neither drops the newest key nor undoes the
    // destruction of all. Method: the versions of one object, admitted in the wrong order.
    let (ids, master) = ((NAMESPACE, DATABASE), master("k1", 1));
    let older = key_object(ids, 1);
    let mut newer = older.clone();
    newer.add(&data_key(2), &master, &Counting::default());
    let mut gone = newer.clone();
    gone.shred(MADE);
    let ring = Keyring::new(masters(&[("k1", 1)]));
    let newest = |ring: &Keyring| match ring.known(DATABASE) {
        Known::Key(key) => Some(key.id),
        _ => None,
    };
    ring.admit(&older).expect("the first");
    ring.admit(&newer).expect("rotated");
    ring.admit(&older).expect("put back");
    assert_eq!(newest(&ring), Some(KeyId([2; 16])));
    ring.admit(&gone).expect("destroyed");
    for object in [&newer, &older] {
        ring.admit(object).expect("put back");
        assert_eq!(ring.known(DATABASE), Known::Shredded);
        assert!(ring.get(KeyId([1; 16])).is_none() && ring.get(KeyId([2; 16])).is_none());
    }
}

#[test]
fn without_its_key_an_object_is_refused_by_name() {
    let (written, named) = segment_with(&noise(2), stamp(1, 1));
    let key_id = KeyId([1; 16]);
    for ring in [Keyring::off(), Keyring::new(masters(&[("k1", 1)]))] {
        let refused = read_segment(&written.bytes, &named, &ring).expect_err("no key");
        assert_eq!(refused, FormatError::KeyUnavailable { key_id });
        assert_eq!(refused.kind(), ErrorKind::KeyUnavailable);
        let text = refused.in_object("tenants/x").to_string();
        assert!(
            text.contains("tenants/x") && text.contains(&key_id.to_string()),
            "{text}"
        );
    }
}

#[test]
fn a_shared_journal_object_opens_database_by_database() {
    let (a, b) = two();
    let bytes = journal_with(&a, &b, stamp(4, 3), Some((1, 2)));
    let one = Keyring::new(masters(&[("k1", 1)]));
    one.admit(&key_object((NAMESPACE, DATABASE), 1))
        .expect("admit");
    assert!(
        matches!(
            read_section(&bytes, &one, 0),
            Err(FormatError::KeyUnavailable { key_id }) if key_id == KeyId([3; 16])
        ),
        "the index is sealed with the system's key"
    );
    one.admit(&key_object(SYSTEM, 3)).expect("admit");
    assert_eq!(
        read_section(&bytes, &one, 0).map(|records| records.len()),
        Ok(4)
    );
    let refused = read_section(&bytes, &one, 1).expect_err("another tenant's key");
    assert_eq!(
        refused,
        FormatError::KeyUnavailable {
            key_id: KeyId([2; 16])
        }
    );
    // Sections of plain and of sealed databases stand side by side, and an index that is not sealed.
    let mixed = Stamp::fixed(ID, ObjectNonce([6; 16]), None);
    let seq = Seq::new(9);
    let mut builder = JournalObjectBuilder::new(TERM, seq, (1, 7), mixed, Compressor::new(3));
    for (history, key) in [(&a, Some(data_key(1))), (&b, None)] {
        let last = history.commits.len() as u64;
        builder
            .section(history.section(1, last), key.as_ref())
            .expect("section");
        for commit in &history.commits {
            builder.push(&commit.bytes).expect("record");
        }
    }
    let bytes = builder.finish().expect("finish").0.bytes;
    assert_eq!(
        read_section(&bytes, &one, 0).map(|records| records.len()),
        Ok(4)
    );
    assert_eq!(
        read_section(&bytes, &Keyring::off(), 1).map(|r| r.len()),
        Ok(3)
    );
    assert!(read_section(&bytes, &Keyring::off(), 0).is_err());
}

#[test]
fn sealing_costs_sixteen_bytes_a_block_and_shows_nothing() {
    // Noise, which the compressor leaves as it is.
    let mut history = History::new(4096);
    let page = Dice(9).bytes(4096);
    history.commit(vec![page.clone(); 2]);
    let text = &page[200..232];
    let (plain, _) = segment_with(&history, Stamp::plain(ID));
    let (sealed, _) = segment_with(&history, stamp(1, 1));
    let blocks = 1;
    assert_eq!(sealed.len - plain.len, (blocks + 1) * SEAL_OVERHEAD as u64);
    let shows = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(shows(&plain.bytes), "the plain one shows it");
    assert!(!shows(&sealed.bytes));
    let (sealed, _, _) = image_with(&history, stamp(2, 1));
    assert!(!shows(&sealed.bytes));
    let name = "a tenant's name for it";
    let mut manifest = full();
    manifest.name_hint = name.to_owned();
    let shows = |bytes: &[u8]| bytes.windows(name.len()).any(|w| w == name.as_bytes());
    let encoded = |stamp| manifest.encode(stamp).expect("encode").bytes;
    assert!(shows(&encoded(Stamp::plain(ID))));
    assert!(!shows(&encoded(stamp(3, 1))));
}

#[test]
fn audit_lines_are_sealed_with_the_systems_key() {
    use tidelog_archive::audit;
    let lines = "{\"event\":\"a database was made\"}\n";
    let plain = Bytes::from(lines);
    assert_eq!(
        audit::open(&plain, NAMESPACE, &Keyring::off()).as_deref(),
        Ok(lines)
    );
    let sealed = audit::seal(NAMESPACE, stamp(7, 3), lines)
        .expect("seal")
        .bytes;
    assert!(
        !sealed
            .windows(8)
            .any(|window| window == &lines.as_bytes()[..8])
    );
    assert_eq!(
        audit::open(&sealed, NAMESPACE, &ring()).as_deref(),
        Ok(lines)
    );
    let refused = audit::open(&sealed, NAMESPACE, &Keyring::off()).expect_err("no key");
    assert_eq!(refused.kind(), ErrorKind::KeyUnavailable);
    assert!(
        audit::open(&sealed, SYSTEM.0, &ring()).is_err(),
        "of another namespace"
    );
}

#[test]
fn an_index_is_found_by_the_tail_and_opened() {
    let ring = ring();
    let (written, named) = segment_with(&noise(4), stamp(1, 1));
    let (head, tail) = (&written.bytes[..HEADER_LEN], written.bytes.slice(100..));
    let expect = Expect::database(ObjectKind::Segment, NAMESPACE, DATABASE);
    let opened = Object::open_tail(head, &tail, expect, &named, &ring).expect("proven");
    let segment = Segment::from_object(opened.expect("the tail reaches the index")).expect("index");
    assert_eq!(segment.meta.run.last.get(), 4);
    let refused = Object::open_tail(head, &tail, expect, &named, &Keyring::off());
    assert!(matches!(refused, Err(FormatError::KeyUnavailable { .. })));
}

fn store() -> Store {
    let options = StoreOptions::default();
    Store::from_object_store(Arc::new(InMemory::new()), "", options).expect("a store")
}

#[tokio::test]
async fn keys_are_rotated_wrapped_anew_and_destroyed() {
    let entropy = SystemEntropy;
    let bucket = store();
    let ids = (NAMESPACE, DATABASE);
    let first = bucket
        .clone()
        .with_keys(Keyring::new(masters(&[("k1", 1)])));
    let keys = KeyStore::new(first.clone(), ids.0, ids.1);
    let old = keys.create(MADE, &entropy, false).await.expect("create");
    assert_eq!(
        keys.create(MADE, &entropy, false).await.expect("again").id,
        old.id,
        "a key that stands there is kept"
    );
    let history = noise(2);
    let seal =
        |key: &Arc<SealKey>| segment_with(&history, Stamp::draw(&entropy, Some(Arc::clone(key))));
    let before = seal(&old);

    // A data key is rotated: new objects use the new one, the old ones stay readable.
    let new = keys.rotate(MADE, &entropy).await.expect("rotate");
    assert_ne!(old.id, new.id);
    assert_eq!(first.keys().known(DATABASE), Known::Key(Arc::clone(&new)));
    let after = seal(&new);

    // The master key is rotated: nothing but the key object is rewritten.
    let both = bucket
        .clone()
        .with_keys(Keyring::new(masters(&[("k1", 1), ("k2", 90)])));
    let keys = KeyStore::new(both, ids.0, ids.1);
    assert_eq!(keys.rewrap(&entropy).await.expect("rewrap"), 2);
    assert_eq!(keys.rewrap(&entropy).await.expect("again"), 0);
    let status = keys.status().await.expect("status").expect("keys");
    assert_eq!(
        (status.keys, status.masters.as_slice()),
        (2, &["k2".to_owned()][..])
    );
    assert_eq!(status.newest, Some((new.id, MADE)));
    for (masters, opens) in [
        (masters(&[("k2", 90)]), true),
        (masters(&[("k1", 1)]), false),
    ] {
        let fresh = bucket.clone().with_keys(Keyring::new(masters));
        let admitted = KeyStore::new(fresh.clone(), ids.0, ids.1).admit().await;
        assert_eq!(admitted.is_ok(), opens, "{admitted:?}");
        for (written, named) in [&before, &after] {
            assert_eq!(
                read_segment(&written.bytes, named, fresh.keys()).is_ok(),
                opens
            );
        }
    }
    let imposter = Keyring::new(masters(&[("k2", 33)]));
    let refused = KeyStore::new(bucket.clone().with_keys(imposter), ids.0, ids.1)
        .admit()
        .await;
    let error = refused.expect_err("another key of that name");
    assert!(matches!(error, KeyError::MasterWrong { .. }));
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);

    // Destroyed: from the raw bytes and every master key nothing opens.
    let all = bucket
        .clone()
        .with_keys(Keyring::new(masters(&[("k1", 1), ("k2", 90)])));
    let keys = KeyStore::new(all.clone(), ids.0, ids.1);
    keys.admit().await.expect("before");
    keys.shred(MADE, &entropy).await.expect("shred");
    keys.shred(MADE, &entropy).await.expect("twice is no error");
    assert_eq!(all.keys().known(DATABASE), Known::Shredded);
    assert!(
        keys.rotate(MADE, &entropy).await.is_err(),
        "nor is it ever sealed anew"
    );
    let raw = bucket
        .get(&KeyObject::place(ids.0, ids.1))
        .await
        .expect("a tombstone");
    assert!(
        KeyObject::decode(&raw, ids.0, ids.1)
            .expect("decode")
            .keys
            .is_empty()
    );
    let thief = bucket
        .clone()
        .with_keys(Keyring::new(masters(&[("k1", 1), ("k2", 90)])));
    KeyStore::new(thief.clone(), ids.0, ids.1)
        .admit()
        .await
        .expect("nothing to unwrap");
    for (written, named) in [&before, &after] {
        let refused = read_segment(&written.bytes, named, thief.keys()).expect_err("destroyed");
        assert_eq!(refused.kind(), ErrorKind::KeyUnavailable);
    }
}

#[tokio::test]
async fn an_older_manifest_that_was_put_back_is_refused() {
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let bucket = store().with_keys(Keyring::new(masters(&[("k1", 1)])));
    let keys = KeyStore::new(bucket.clone(), NAMESPACE, DATABASE);
    keys.create(MADE, entropy.as_ref(), false)
        .await
        .expect("create");
    let manifests = ManifestStore::new(bucket.clone(), NAMESPACE, DATABASE, entropy);
    let mut current = manifests.create(empty()).await.expect("create");
    assert_eq!(
        current.manifest.key_ids.len(),
        1,
        "the manifest names its key"
    );
    let place = Key::manifest(NAMESPACE, DATABASE).to_string();
    let older = bucket.get(&place).await.expect("the first version");
    let (owner, nonces) = (current.manifest.owner, NonceSource::new(TERM, 1));
    for name in ["one", "two"] {
        current = manifests
            .publish::<PublishError, _>(&current, owner, &nonces, |manifest| {
                name.clone_into(&mut manifest.name_hint);
                Ok(())
            })
            .await
            .expect("publish");
    }
    bucket
        .replace(&place, older, &current.version)
        .await
        .expect("put back");
    let refused = manifests
        .publish::<PublishError, _>(&current, owner, &nonces, |_| Ok(()))
        .await
        .expect_err("it went back");
    assert!(
        matches!(
            refused,
            PublishError::WentBack {
                known: 3,
                found: 1,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    // An immutable object that was put back is not the one that is named.
    let (old, _) = segment_with(&noise(2), stamp(1, 1));
    let (_, named) = segment_with(&noise(2), stamp(2, 1));
    let refused = read_segment(&old.bytes, &named, &ring()).expect_err("another sealing");
    assert!(matches!(refused, FormatError::Foreign { .. }));
}

#[test]
fn a_cipher_of_the_future_is_refused_by_name() {
    let (written, named) = segment_with(&noise(1), stamp(1, 1));
    let mut bytes = written.bytes.to_vec();
    bytes[11] = 2;
    let refused = read_segment(&bytes.into(), &named, &ring()).expect_err("unknown");
    assert_eq!(refused, FormatError::Cipher { cipher: 2 });
    let mut bytes = written.bytes.to_vec();
    bytes[11] = 0;
    let refused = read_segment(&bytes.into(), &named, &ring()).expect_err("plain with a nonce");
    assert!(matches!(
        refused,
        FormatError::Decode(DecodeError::Invalid { .. })
    ));
}
