//! Promises of segments.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod format_support;

use std::sync::Arc;

use bytes::Bytes;
use format_support::{Commit, DATABASE, Dice, History, NAMESPACE, SEED, refuses_all_damage};
use tidelog_archive::envelope::{Finished, FormatError, KeyId, ObjectNonce, WriteId};
use tidelog_archive::key::{Key, KeyNonce};
use tidelog_archive::records::{ChainList, ChainWalk, RecordHead, RecordScanner, RecordVisitor};
use tidelog_archive::seal::{DataKey, Keyring, SealKey, Stamp};
use tidelog_archive::segment::{Segment, SegmentMeta, SegmentWriter};
use tidelog_wal::block::Compressor;
use tidelog_wal::codec::put_varint;
use tidelog_wal::delta::PageDelta;
use tidelog_wal::record::{ObjectRef, RecordBody};
use tidelog_wal::{Chain, DatabaseId, NamespaceId, Position, Timestamp, TxId};

fn writer(history: &History, chain_before: Chain) -> SegmentWriter {
    let ids = (NAMESPACE, history.database);
    let id = Stamp::plain(WriteId([7; 16]));
    SegmentWriter::new(
        ids,
        history.page_size,
        SEED,
        chain_before,
        id,
        Compressor::new(3),
    )
}

fn write(history: &History, first: u64, last: u64) -> (Finished, SegmentMeta, ObjectRef) {
    let mut writer = writer(history, history.at(first).chain_before);
    for txid in first..=last {
        writer.push(&history.at(txid).bytes).expect("record");
    }
    let (finished, meta, _) = writer.finish().expect("finish");
    let key = Key::segment(
        NAMESPACE,
        DATABASE,
        meta.run.first,
        meta.run.last,
        KeyNonce::default(),
    );
    let named = finished.object_ref(&key);
    (finished, meta, named)
}

/// Checks heads and applies pages, and compares each state with the history's.
struct Replay<'h> {
    history: &'h History,
    pages: Vec<Vec<u8>>,
    seen: Vec<Position>,
    n: usize,
}

impl<'h> Replay<'h> {
    fn after(history: &'h History, txid: u64) -> Self {
        let pages = match txid {
            0 => Vec::new(),
            txid => history.at(txid).pages.clone(),
        };
        Self {
            history,
            pages,
            seen: Vec::new(),
            n: 0,
        }
    }
}

impl RecordVisitor for Replay<'_> {
    type Error = FormatError;

    fn begin(&mut self, head: &RecordHead) -> Result<(), FormatError> {
        assert_eq!(head.header, self.history.at(head.header.txid.get()).header);
        self.n = head.header.n_after.get() as usize;
        let most = self.n.max(self.pages.len());
        self.pages
            .resize(most, vec![0; self.history.page_size.bytes()]);
        Ok(())
    }

    fn page(&mut self, page: &PageDelta<'_>) -> Result<(), FormatError> {
        page.apply(&mut self.pages[page.page.get() as usize - 1]);
        Ok(())
    }

    fn end(&mut self, position: &Position) -> Result<(), FormatError> {
        self.pages.truncate(self.n);
        let commit = self.history.at(position.txid.get());
        assert_eq!(*position, commit.position);
        assert_eq!(self.pages, commit.pages);
        self.seen.push(*position);
        Ok(())
    }
}

fn open(finished: &Finished, named: &ObjectRef) -> Segment {
    Segment::decode(&finished.bytes, NAMESPACE, DATABASE, named, &Keyring::off()).expect("decode")
}

fn read(bytes: Vec<u8>, named: &ObjectRef) -> Result<usize, FormatError> {
    let bytes = Bytes::from(bytes);
    let segment = Segment::decode(&bytes, NAMESPACE, DATABASE, named, &Keyring::off())?;
    let span = segment.all().expect("a segment has records");
    let stored = bytes.slice(span.range.start as usize..span.range.end as usize);
    let mut reader = segment.records(&span, &stored);
    let mut seen = 0;
    while reader.next_record()?.is_some() {
        seen += 1;
    }
    Ok(seen)
}

/// Commits of about `bytes` random bytes each.
fn wide(commits: usize, bytes: usize) -> History {
    let mut history = History::new(4096);
    let mut dice = Dice(5);
    let mut pages: Vec<Vec<u8>> = Vec::new();
    for _ in 0..commits {
        pages = (0..bytes.div_ceil(4096))
            .map(|_| dice.bytes(4096))
            .collect();
        history.commit(pages.clone());
    }
    assert!(!pages.is_empty());
    history
}

#[test]
fn every_flip_and_truncation_of_a_segment_is_refused() {
    let history = History::random(512, 6, &mut Dice(2));
    let (finished, _, named) = write(&history, 1, 6);
    refuses_all_damage(&finished.bytes, |bytes| read(bytes, &named));
}

#[test]
fn a_segment_says_of_itself_what_was_written() {
    let history = History::random(512, 40, &mut Dice(3));
    let (finished, meta, named) = write(&history, 5, 40);
    let section = history.section(5, 40);
    assert_eq!(meta.run, section.run());
    let segment = open(&finished, &named);
    assert_eq!(segment.meta, meta);
    assert_eq!(segment.check_run(&meta.run), Ok(()));
    let other = write(&history, 1, 4).1;
    assert!(segment.check_run(&other.run).is_err());
    assert!(other.run.is_followed_by(&meta.run));
}

#[test]
fn any_range_of_txids_is_read_from_its_blocks_alone_and_proven() {
    let history = wide(60, 40_000);
    let (finished, _, named) = write(&history, 1, 60);
    let segment = open(&finished, &named);
    assert!(segment.marks.len() > 5);
    for (first, last) in [(1, 1), (1, 60), (60, 60), (17, 23), (30, 30), (2, 59)] {
        let span = segment
            .span(TxId::new(first), TxId::new(last))
            .expect("inside");
        let stored = finished
            .bytes
            .slice(span.range.start as usize..span.range.end as usize);
        let mut replay = Replay::after(&history, span.walk.next.get() - 1);
        segment.scan(&span, &stored, &mut replay).expect("scan");
        let seen: Vec<u64> = replay.seen.iter().map(|p| p.txid.get()).collect();
        assert!(
            seen[0] <= first && *seen.last().expect("one") >= last,
            "{first} to {last}"
        );
        assert!(
            seen.len() as u64 <= last - first + 1 + 2 * 14,
            "no more than two blocks around"
        );
        let mut reader = segment.records(&span, &stored);
        let mut count = 0;
        while let Some(record) = reader.next_record().expect("record") {
            assert_eq!(
                record.position,
                history.at(record.position.txid.get()).position
            );
            count += 1;
        }
        assert_eq!(count, seen.len());
    }
    assert_eq!(segment.span(TxId::new(5), TxId::new(61)), None);
    assert_eq!(segment.span(TxId::new(6), TxId::new(5)), None);
}

#[test]
fn a_time_is_found_through_the_marks() {
    let history = wide(60, 40_000);
    let (finished, _, named) = write(&history, 1, 60);
    let segment = open(&finished, &named);
    let time = |txid: u64| history.at(txid).header.time;
    for txid in 1..=60 {
        for off in [0, 999] {
            let at = Timestamp::from_micros(time(txid).micros() + off);
            let (first, last) = segment.run_at(at).expect("old enough");
            assert!(
                first.get() <= txid && txid <= last.get(),
                "{txid}: {first} to {last}"
            );
        }
    }
    assert_eq!(
        segment.run_at(Timestamp::from_micros(time(1).micros() - 1)),
        None
    );
}

#[test]
fn a_record_of_many_blocks_streams_in_both_directions() {
    let history = wide(3, 6 << 20);
    let mut writer = writer(&history, history.start);
    let mut out = Vec::new();
    for Commit { bytes, header, .. } in &history.commits {
        let kind = tidelog_wal::RecordKind::Delta;
        writer
            .begin(header, kind, bytes.len() as u64)
            .expect("begin");
        for piece in bytes.chunks(100_001) {
            writer.part(piece).expect("part");
            let drained = writer.take();
            assert!(drained.len() < 1 << 20, "bounded by what was just written");
            out.extend(drained);
        }
    }
    let (finished, meta, _) = writer.finish().expect("finish");
    out.extend_from_slice(&finished.bytes);
    let bytes = Bytes::from(out);
    let key = Key::segment(
        NAMESPACE,
        DATABASE,
        meta.run.first,
        meta.run.last,
        KeyNonce::default(),
    );
    let segment = Segment::decode(
        &bytes,
        NAMESPACE,
        DATABASE,
        &finished.object_ref(&key),
        &Keyring::off(),
    )
    .expect("decode");
    let span = segment.all().expect("records");
    let stored = bytes.slice(span.range.start as usize..span.range.end as usize);
    let mut replay = Replay::after(&history, 0);
    segment.scan(&span, &stored, &mut replay).expect("scan");
    assert_eq!(replay.seen.len(), 3);
    // One alone, from the middle: found by its mark, proven by its chain.
    let span = segment.span(TxId::new(2), TxId::new(2)).expect("inside");
    let stored = bytes.slice(span.range.start as usize..span.range.end as usize);
    let mut replay = Replay::after(&history, span.walk.next.get() - 1);
    segment.scan(&span, &stored, &mut replay).expect("scan");
    assert!(replay.seen.contains(&history.at(2).position));
}

/// Goal: however a record comes, and however many of its blocks are compressed at once, the object is the same. Method:
/// records of many blocks, half of them noise, in pieces of every kind, plain and sealed.
#[test]
fn a_record_is_written_the_same_whatever_its_pieces() {
    let mut history = History::new(4096);
    let mut dice = Dice(6);
    for _ in 0..2 {
        let pages = (0..700).map(|page| match page % 128 {
            0..64 => dice.bytes(4096),
            _ => dice.bytes(64).repeat(64),
        });
        history.commit(pages.collect());
    }
    let key = Arc::new(SealKey {
        id: KeyId([1; 16]),
        key: DataKey::from_bytes([2; 32]),
        created: Timestamp::from_micros(1),
    });
    for key in [None, Some(key)] {
        let written = [1, 9, 1 << 18, 300_000, 1 << 20, usize::MAX].map(|piece| {
            let ids = (NAMESPACE, history.database);
            let stamp = Stamp::fixed(WriteId([7; 16]), ObjectNonce([3; 16]), key.clone());
            let (size, compressor) = (history.page_size, Compressor::new(3));
            let mut writer = SegmentWriter::new(ids, size, SEED, history.start, stamp, compressor);
            for Commit { bytes, header, .. } in &history.commits {
                let kind = tidelog_wal::RecordKind::Delta;
                writer
                    .begin(header, kind, bytes.len() as u64)
                    .expect("begin");
                for piece in bytes.chunks(piece.min(bytes.len())) {
                    writer.part(piece).expect("part");
                }
            }
            writer.finish().expect("finish").0
        });
        assert!(written[0].len > 5 << 18, "{} bytes", written[0].len);
        for other in &written {
            assert!(written[0] == *other, "{} bytes", other.len);
        }
    }
}

/// Goal: one thread may hash and another apply. Method: the same pieces of a stream, cut anywhere, records of many
/// blocks too, to a scanner that hashes and to one that takes its chains; and chains that are too few or wrong.
#[test]
fn chains_hashed_ahead_show_the_same_records() {
    for (history, most) in [
        (History::random(512, 40, &mut Dice(4)), 700),
        (wide(3, 3 << 20), 900_000),
    ] {
        let mut stream = Vec::new();
        for commit in &history.commits {
            put_varint(&mut stream, commit.bytes.len() as u64);
            stream.extend_from_slice(&commit.bytes);
        }
        let first = &history.commits[0];
        let walk = ChainWalk {
            next: first.header.txid,
            chain: first.chain_before,
        };
        let mut dice = Dice(5);
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        while !rest.is_empty() {
            let (piece, left) = rest.split_at((1 + dice.roll(most) as usize).min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        let mut ahead = RecordScanner::new(history.page_size, walk);
        let mut behind = RecordScanner::new(history.page_size, walk);
        let mut replay = Replay::after(&history, 0);
        for piece in &pieces {
            let mut chains = ChainList::default();
            ahead.feed(piece, &mut chains).expect("hashed");
            let mut chains = chains.0.into_iter();
            behind
                .feed_known(piece, &mut chains, &mut replay)
                .expect("applied");
            assert_eq!(chains.len(), 0, "one chain a record that ended");
        }
        assert_eq!(replay.seen.len(), history.commits.len());
        let last = history.commits.last().expect("commits");
        let end = (last.header.txid, last.position.chain);
        for scanner in [&ahead, &behind] {
            scanner.finish(end.0, end.1, 0).expect("whole");
        }
        // Only compared, never believed: the end is another one.
        let mut believing = RecordScanner::new(history.page_size, walk);
        let mut wrong = vec![Chain::default(); history.commits.len()].into_iter();
        let mut seen = ChainList::default();
        believing
            .feed_known(&stream, &mut wrong, &mut seen)
            .expect("taken");
        assert!(believing.finish(end.0, end.1, 0).is_err());
        let mut short = RecordScanner::new(history.page_size, walk);
        let mut none = Vec::new().into_iter();
        assert!(short.feed_known(&stream, &mut none, &mut seen).is_err());
    }
}

#[test]
fn objects_swapped_between_keys_databases_and_tenants_are_refused() {
    let history = History::random(512, 6, &mut Dice(2));
    let (finished, _, named) = write(&history, 1, 6);
    let (other, _, _) = write(&history, 1, 5);
    let decode = |bytes: &Bytes, namespace, database| {
        Segment::decode(bytes, namespace, database, &named, &Keyring::off())
    };
    assert!(decode(&finished.bytes, NAMESPACE, DATABASE).is_ok());
    assert!(
        decode(&other.bytes, NAMESPACE, DATABASE).is_err(),
        "another key's object"
    );
    assert!(decode(&finished.bytes, NAMESPACE, DatabaseId::from_bytes([1; 16])).is_err());
    assert!(decode(&finished.bytes, NamespaceId::from_bytes([1; 16]), DATABASE).is_err());
}

#[test]
fn a_writer_refuses_records_that_do_not_follow() {
    let mut history = History::random(512, 6, &mut Dice(2));
    let mut skipping = writer(&history, history.start);
    skipping.push(&history.at(1).bytes).expect("first");
    assert!(
        skipping.push(&history.at(3).bytes).is_err(),
        "txid 2 is missing"
    );
    assert!(
        writer(&history, history.start).finish().is_err(),
        "no records"
    );
    let object = ObjectRef {
        key: "k".into(),
        len: 1,
        blake3: [0; 32],
    };
    let header = history.next_header(3, history.at(6).header.digest);
    let chain = Chain::default();
    history.push(header, RecordBody::Reference { object, chain }, Vec::new());
    let mut referring = writer(&history, history.at(6).chain_before);
    referring.push(&history.at(6).bytes).expect("six");
    assert!(
        referring.push(&history.at(7).bytes).is_err(),
        "references stay in the journal"
    );
}
