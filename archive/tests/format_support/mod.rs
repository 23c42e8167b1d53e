//! A small database history made by hand, with every state remembered, and the damage done to objects.
#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "each test file uses its part; test sizes are small"
)]

pub(crate) mod manifests;
pub(crate) mod world;

use std::collections::BTreeMap;

use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::{FormatError, KeyId};
use tidelog_archive::journal::SectionMeta;
use tidelog_wal::chain;
use tidelog_wal::delta::DeltaEncoder;
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::mask_page1;
use tidelog_wal::record::{CommitRecord, RecordBody, RecordHeader, TimeFlag};
use tidelog_wal::{
    Chain, DatabaseId, Digest, DigestSeed, NamespaceId, PageCount, PageNo, PageSize, Position,
    Term, Timestamp, TxId,
};

pub(crate) const SEED: DigestSeed = DigestSeed::new(0x5eed);
pub(crate) const NAMESPACE: NamespaceId = NamespaceId::from_bytes([0xa1; 16]);
pub(crate) const DATABASE: DatabaseId = DatabaseId::from_bytes([0xdb; 16]);

/// One commit and the state after it.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub bytes: Vec<u8>,
    pub position: Position,
    pub header: RecordHeader,
    pub chain_before: Chain,
    pub pages: Vec<Vec<u8>>,
}

/// A history of commits.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub database: DatabaseId,
    pub page_size: PageSize,
    pub start: Chain,
    pub term: Term,
    pub commits: Vec<Commit>,
}

/// A small deterministic random source.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll(256) as u8).collect()
    }
}

impl History {
    pub(crate) fn new(page_size: u32) -> Self {
        Self {
            database: DATABASE,
            page_size: PageSize::new(page_size).expect("a page size"),
            start: chain::genesis(DATABASE),
            term: Term::new(3),
            commits: Vec::new(),
        }
    }

    /// A history of random commits: growing, shrinking, rewriting, doing nothing.
    pub(crate) fn random(page_size: u32, commits: usize, dice: &mut Dice) -> Self {
        let mut history = Self::new(page_size);
        for _ in 0..commits {
            let mut pages = history.state();
            let size = page_size as usize;
            match dice.roll(8) {
                0 | 1 => pages.push(vec![0; size]),
                2 if pages.len() > 1 => pages.truncate(pages.len() - 1),
                3 => {}
                _ => pages.push(dice.bytes(size)),
            }
            for _ in 0..dice.roll(3) {
                if pages.is_empty() {
                    break;
                }
                let page = dice.roll(pages.len() as u64) as usize;
                let at = dice.roll(page_size.into()) as usize;
                pages[page][at] ^= 1 + dice.roll(255) as u8;
            }
            history.commit(pages);
        }
        history
    }

    pub(crate) fn state(&self) -> Vec<Vec<u8>> {
        self.commits
            .last()
            .map_or_else(Vec::new, |c| c.pages.clone())
    }

    pub(crate) fn chain(&self) -> Chain {
        self.commits.last().map_or(self.start, |c| c.position.chain)
    }

    pub(crate) fn next_header(&self, n_after: usize, digest: Digest) -> RecordHeader {
        let txid = self
            .commits
            .last()
            .map_or(TxId::FIRST, |c| c.position.txid.next());
        RecordHeader {
            term: self.term,
            txid,
            time: Timestamp::from_micros(1_700_000_000_000_000 + txid.get() * 1_000),
            wall: Timestamp::from_micros(1_700_000_000_000_000 + txid.get() * 1_000),
            flag: TimeFlag::Live,
            n_before: count(self.commits.last().map_or(0, |c| c.pages.len())),
            n_after: count(n_after),
            digest,
            annotations: Vec::new(),
        }
    }

    /// Commits the state `pages`.
    pub(crate) fn commit(&mut self, mut pages: Vec<Vec<u8>>) {
        if let Some(one) = pages.first_mut() {
            mask_page1(one);
        }
        let before = self.state();
        let mut encoder = DeltaEncoder::new(self.page_size);
        let mut delta = Vec::new();
        let zeros = vec![0; self.page_size.bytes()];
        for i in 0..before.len().max(pages.len()) {
            let page = PageNo::new(i as u32 + 1).expect("from 1");
            if page == self.page_size.lock_page() {
                continue;
            }
            encoder.page(
                page,
                before.get(i).unwrap_or(&zeros),
                pages.get(i).unwrap_or(&zeros),
                &mut delta,
            );
        }
        let digest = digest(self.page_size, &pages);
        let header = self.next_header(pages.len(), digest);
        self.push(header, RecordBody::Delta(&delta), pages);
    }

    /// Commits small changes of (page, offset, length), keeping the state in the newest commit alone.
    pub(crate) fn change(&mut self, changes: &[(u64, u64, u64)]) {
        let last = self.commits.last_mut().expect("a first commit");
        let mut pages = std::mem::take(&mut last.pages);
        let n = count(pages.len());
        let mut digest = last.header.digest;
        let mut touched: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (i, (page, at, len)) in changes.iter().enumerate() {
            let image = touched
                .entry(*page)
                .or_insert_with(|| pages[*page as usize].clone());
            for byte in &mut image[*at as usize..(*at + *len * 5) as usize] {
                *byte = byte.wrapping_mul(5).wrapping_add(i as u8 + 1);
            }
            if *page == 0 {
                mask_page1(image);
            }
        }
        let mut encoder = DeltaEncoder::new(self.page_size);
        let mut delta = Vec::new();
        for (page, image) in touched {
            let number = PageNo::new(page as u32 + 1).expect("from 1");
            let old = std::mem::replace(&mut pages[page as usize], image);
            let new = &pages[page as usize];
            encoder.page(number, &old, new, &mut delta);
            digest = digest.replace(SEED.page(number, &old), SEED.page(number, new));
        }
        let mut header = self.next_header(0, digest);
        (header.n_before, header.n_after) = (n, n);
        self.push(header, RecordBody::Delta(&delta), pages);
    }

    pub(crate) fn push(&mut self, header: RecordHeader, body: RecordBody<'_>, pages: Vec<Vec<u8>>) {
        let record = CommitRecord {
            header: header.clone(),
            body,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let chain_before = self.chain();
        let position = Position {
            term: header.term,
            txid: header.txid,
            chain: record.chain_after(chain_before, &bytes),
        };
        self.commits.push(Commit {
            bytes,
            position,
            header,
            chain_before,
            pages,
        });
    }

    pub(crate) fn at(&self, txid: u64) -> &Commit {
        &self.commits[txid as usize - 1]
    }

    pub(crate) fn section(&self, first: u64, last: u64) -> SectionMeta {
        let (a, b) = (self.at(first), self.at(last));
        SectionMeta {
            namespace: NAMESPACE,
            database: self.database,
            page_size: self.page_size,
            seed: SEED,
            key_id: KeyId::default(),
            first: a.position.txid,
            last: b.position.txid,
            first_term: a.position.term,
            last_term: b.position.term,
            first_time: a.header.time,
            last_time: b.header.time,
            chain_before: a.chain_before,
            chain_after: b.position.chain,
            digest_after: b.header.digest,
            n_before: a.header.n_before,
            n_after: b.header.n_after,
        }
    }
}

pub(crate) fn count(pages: usize) -> PageCount {
    PageCount::new(u32::try_from(pages).expect("few pages"))
}

pub(crate) fn digest(page_size: PageSize, pages: &[Vec<u8>]) -> Digest {
    Digest::of(page_size, count(pages.len()), |page| {
        Ok::<PageHash, std::convert::Infallible>(SEED.page(page, &pages[page.get() as usize - 1]))
    })
    .expect("infallible")
}

/// Every single bit flip and every truncation of `object` must be refused by `decode`, as damaged, as of a version or
/// cipher of the future, or as sealed with a key that is not at hand.
pub(crate) fn refuses_all_damage<T>(
    object: &[u8],
    decode: impl Fn(Vec<u8>) -> Result<T, FormatError>,
) {
    assert!(
        decode(object.to_vec()).is_ok(),
        "the undamaged object is read"
    );
    let refused = |damaged: Vec<u8>, what: String| {
        let Err(error) = decode(damaged) else {
            panic!("{what} is read");
        };
        let by_name = matches!(
            error.kind(),
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::KeyUnavailable
        );
        let written = matches!(error, FormatError::Unwritable { .. });
        assert!(by_name && !written, "{what}: {error:?}");
    };
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut damaged = object.to_vec();
            damaged[at] ^= 1 << bit;
            refused(damaged, format!("flip of bit {bit} of byte {at}"));
        }
    }
    for len in 0..object.len() {
        refused(object[..len].to_vec(), format!("truncation to {len}"));
    }
    let mut longer = object.to_vec();
    longer.push(0);
    refused(longer, "one byte more".to_owned());
}
