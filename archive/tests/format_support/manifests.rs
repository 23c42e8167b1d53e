//! Manifests of invented segments: runs, chains and digests that join, without any objects.

use tidelog_archive::key::KeyNonce;
use tidelog_archive::manifest::{
    Gap, GapReason, ImageEntry, Label, Manifest, Owner, Parent, Pin, SegmentEntry, State, TermStart,
};
use tidelog_archive::records::Run;
use tidelog_wal::{
    Chain, DatabaseId, Digest, NamespaceId, NodeId, PageCount, PageSize, Position, Term, Timestamp,
    TxId,
};

use super::{DATABASE, NAMESPACE, SEED};

const PER_SEGMENT: u64 = 3000;

fn chain(txid: u64) -> Chain {
    let mut bytes = [0x11; 16];
    bytes[..8].copy_from_slice(&txid.to_be_bytes());
    Chain::from_bytes(bytes)
}

pub(crate) fn nonce(counter: u64) -> KeyNonce {
    KeyNonce {
        term: Term::new(3),
        counter,
    }
}

/// The invented segment number `i`, from 0.
pub(crate) fn segment(i: u64) -> SegmentEntry {
    let (before, last) = (i * PER_SEGMENT, (i + 1) * PER_SEGMENT);
    let time = |txid: u64| Timestamp::from_micros(1_700_000_000_000_000 + txid * 10_000);
    SegmentEntry {
        run: Run {
            first: TxId::new(before + 1),
            last: TxId::new(last),
            first_term: Term::new(3),
            last_term: Term::new(3),
            first_time: time(before + 1),
            last_time: time(last),
            chain_before: chain(before),
            chain_after: chain(last),
            digest_after: Digest::from_u64(last * 77),
            n_before: PageCount::new(before as u32),
            n_after: PageCount::new(last as u32),
        },
        nonce: nonce(i),
        len: 1 << 20,
        blake3: [i as u8; 32],
    }
}

/// An image at the end of segment number `i`.
pub(crate) fn image(i: u64) -> ImageEntry {
    let run = segment(i).run;
    ImageEntry {
        position: run.end(),
        time: run.last_time,
        n: run.n_after,
        digest: run.digest_after,
        nonce: nonce(1 << 32 | i),
        len: 5 << 20,
        blake3: [i as u8 + 1; 32],
    }
}

pub(crate) fn empty() -> Manifest {
    Manifest {
        namespace: NAMESPACE,
        database: DATABASE,
        version: 1,
        owner: Owner {
            term: Term::new(3),
            node: NodeId::from_bytes([1; 16]),
        },
        state: State::Active(Timestamp::from_micros(8)),
        name_hint: "orders".into(),
        page_size: PageSize::DEFAULT,
        seed: SEED,
        created: Timestamp::from_micros(7),
        retention_micros: 30 * 24 * 3600 * 1_000_000,
        horizon: TxId::ZERO,
        key_ids: Vec::new(),
        parent: None,
        settled: None,
        terms: vec![TermStart {
            term: Term::new(3),
            first: TxId::FIRST,
        }],
        labels: Vec::new(),
        pins: Vec::new(),
        gaps: Vec::new(),
        index: Vec::new(),
        images: Vec::new(),
        segments: Vec::new(),
        marked: Vec::new(),
    }
}

/// A manifest with segments 0 to `count`.
pub(crate) fn with_segments(count: u64) -> Manifest {
    let mut manifest = empty();
    for i in 0..count {
        manifest.append_segment(segment(i));
    }
    manifest
}

/// A manifest with something in every list.
pub(crate) fn full() -> Manifest {
    let mut manifest = with_segments(3);
    manifest.version = 9;
    manifest.add_image(image(1));
    manifest.labels.push(Label {
        name: "before the migration".into(),
        note: "by hand".into(),
        position: segment(0).run.end(),
        time: segment(0).run.last_time,
        created: Timestamp::from_micros(9),
        expires: Some(Timestamp::from_micros(99)),
    });
    manifest.pins.push(Pin {
        id: [4; 16],
        position: segment(1).run.end(),
        created: Timestamp::from_micros(9),
        child: Some(DatabaseId::from_bytes([0xcc; 16])),
    });
    manifest.gaps.push(Gap {
        after: TxId::new(10),
        resumes: TxId::new(11),
        from: Timestamp::from_micros(5),
        to: Timestamp::from_micros(6),
        reason: GapReason::Discontinuity,
    });
    manifest
}

/// A manifest of a fork without commits of its own.
pub(crate) fn fork(at: Position) -> Manifest {
    let mut manifest = empty();
    manifest.database = DatabaseId::from_bytes([0xcc; 16]);
    manifest.terms = Vec::new();
    manifest.parent = Some(Parent {
        namespace: NamespaceId::from_bytes([0xa1; 16]),
        database: DATABASE,
        at,
        pin: [4; 16],
    });
    manifest
}
