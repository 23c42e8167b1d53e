//! An image's index, and its blocks.

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{
    Chain, DatabaseId, DecodeError, Digest, DigestSeed, NamespaceId, PageCount, PageNo, PageSize,
    Position, Term, Timestamp, TxId,
};

use crate::envelope::{BlockTable, Expect, FormatError, Object, ObjectKind};
use crate::seal::Keyring;

/// What an image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMeta {
    /// Whose database it is.
    pub namespace: NamespaceId,
    /// Which database's pages they are.
    pub database: DatabaseId,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
    /// Whose state it is.
    pub position: Position,
    /// Ordered time of that commit.
    pub time: Timestamp,
    /// Page count.
    pub n: PageCount,
    /// State digest.
    pub digest: Digest,
}

/// Pages that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The first.
    pub first: PageNo,
    /// How many.
    pub pages: u32,
}

/// An image whose index was read, and its bytes if it was read whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it says of itself.
    pub meta: ImageMeta,
    /// Its blocks.
    pub table: BlockTable,
    /// The runs of all blocks, one after another.
    runs: Vec<PageRun>,
    /// Where each block's runs begin, and one more for the end.
    starts: Vec<usize>,
    object: Object,
}

/// An opened block of an image.
#[derive(Debug, Clone)]
pub struct ImageBlock<'a> {
    runs: &'a [PageRun],
    page_size: PageSize,
    raw: Vec<u8>,
}

impl ImageBlock<'_> {
    /// Runs of pages with their bytes, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (PageNo, &[u8])> {
        let mut rest = self.raw.as_slice();
        self.runs.iter().map(move |run| {
            let (now, later) = rest.split_at(run.pages as usize * self.page_size.bytes());
            rest = later;
            (run.first, now)
        })
    }

    /// The bytes of its pages, one after another.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    /// Pages with their bytes, ascending.
    pub fn pages(&self) -> impl Iterator<Item = (PageNo, &[u8])> {
        let numbers = self
            .runs
            .iter()
            .flat_map(|run| run.first.get()..run.first.get() + run.pages)
            .filter_map(PageNo::new);
        numbers.zip(self.raw.chunks_exact(self.page_size.bytes()))
    }
}

impl Image {
    /// Reads a whole image, proving every byte of it.
    pub fn decode(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let expect = Expect::database(ObjectKind::Image, namespace, database);
        Self::from_object(Object::open_named(bytes, expect, named, keys)?)
    }

    /// Reads the index of an opened image.
    pub fn from_object(object: Object) -> Result<Self, FormatError> {
        let header = object.header;
        let expect = Expect::database(ObjectKind::Image, header.namespace, header.database);
        header.check(expect)?;
        let base = object.trailer.index_offset;
        decode_index(object).map_err(|error| FormatError::from(error).shifted(base))
    }

    /// Refuses an image that is not the state a manifest or record says it is. An image whose chain is zero
    /// was written before its commit record, which names its bytes.
    pub fn check_state(
        &self,
        position: &Position,
        n: PageCount,
        digest: Digest,
    ) -> Result<(), FormatError> {
        let meta = &self.meta;
        let unchained = Position {
            chain: Chain::default(),
            ..*position
        };
        let placed = meta.position == *position || meta.position == unchained;
        if placed && meta.n == n && meta.digest == digest {
            return Ok(());
        }
        let state = |position, n: PageCount, digest| {
            format!("{position} of {} pages with digest {digest}", n.get())
        };
        Err(FormatError::Foreign {
            what: "state of the image",
            found: state(meta.position, meta.n, meta.digest),
            expected: state(*position, n, digest),
        })
    }

    /// Its bytes, if it was read whole.
    pub const fn whole(&self) -> Option<&Bytes> {
        self.object.whole.as_ref()
    }

    /// The pages of block number `block`.
    pub fn runs(&self, block: usize) -> &[PageRun] {
        let bounds = self.starts.get(block).zip(self.starts.get(block + 1));
        bounds
            .and_then(|(from, to)| self.runs.get(*from..*to))
            .unwrap_or_default()
    }

    /// The block that holds `page`, or `None` if the page is all zeros.
    pub fn block_of(&self, page: PageNo) -> Option<usize> {
        let after = self.runs.partition_point(|run| run.first <= page);
        let at = after.checked_sub(1)?;
        let run = self.runs.get(at)?;
        let inside = page.get() - run.first.get() < run.pages;
        let block = self.starts.partition_point(|start| *start <= at);
        inside.then(|| block.checked_sub(1)).flatten()
    }

    /// Opens block number `block` from its stored bytes.
    pub fn open_block(&self, block: usize, stored: &[u8]) -> Result<ImageBlock<'_>, FormatError> {
        let entry = self.table.blocks.get(block).ok_or(DecodeError::Invalid {
            offset: 0,
            what: "block number",
        })?;
        Ok(ImageBlock {
            runs: self.runs(block),
            page_size: self.meta.page_size,
            raw: entry.open(self.object.sealer.as_deref(), block as u64, stored)?,
        })
    }
}

fn decode_index(object: Object) -> Result<Image, DecodeError> {
    let index = object.index.clone();
    let mut reader = Reader::new(&index);
    let page_size = PageSize::from_log2(reader.u8()?, 0)?;
    let seed = DigestSeed::new(reader.u64()?);
    let meta = ImageMeta {
        namespace: object.header.namespace,
        database: object.header.database,
        page_size,
        seed,
        position: Position {
            term: Term::new(reader.varint_u32("term")?),
            txid: TxId::new(reader.varint()?),
            chain: Chain::from_bytes(reader.array()?),
        },
        time: Timestamp::from_micros(reader.varint()?),
        n: PageCount::new(reader.varint_u32("page count")?),
        digest: Digest::from_u64(reader.u64()?),
    };
    let table = BlockTable::decode(&mut reader, &object.body())?;
    let (runs, starts) = decode_runs(&mut reader, &table, &meta)?;
    reader.finish()?;
    Ok(Image {
        meta,
        table,
        runs,
        starts,
        object,
    })
}

fn decode_runs(
    reader: &mut Reader<'_>,
    table: &BlockTable,
    meta: &ImageMeta,
) -> Result<(Vec<PageRun>, Vec<usize>), DecodeError> {
    let lock = meta.page_size.lock_page().get();
    let mut runs = Vec::new();
    let mut starts = vec![0];
    let mut next = 1_u32;
    for block in &table.blocks {
        let start = reader.offset();
        let invalid = DecodeError::Invalid {
            offset: start,
            what: "run of pages",
        };
        let count = reader.count("runs of pages", reader.remaining() / 2)?;
        let mut bytes = 0;
        for _ in 0..count {
            let gap = reader.varint_u32("page gap")?;
            let pages = reader.varint_u32("pages of a run")?;
            let first = next.checked_add(gap).and_then(PageNo::new);
            let end = first.and_then(|first| first.get().checked_add(pages));
            let (Some(first), Some(end)) = (first, end) else {
                return Err(invalid);
            };
            let lock_inside = first.get() <= lock && lock < end;
            if pages == 0 || end - 1 > meta.n.get() || lock_inside {
                return Err(invalid);
            }
            runs.push(PageRun { first, pages });
            bytes += u64::from(pages) * u64::from(meta.page_size.get());
            next = end;
        }
        if bytes != u64::from(block.raw_len) {
            return Err(invalid);
        }
        starts.push(runs.len());
    }
    Ok((runs, starts))
}

pub(super) fn encode_index(meta: &ImageMeta, table: &BlockTable, runs: &[Vec<PageRun>]) -> Vec<u8> {
    let mut out = Vec::new();
    out.push(meta.page_size.log2());
    out.extend_from_slice(&meta.seed.get().to_le_bytes());
    put_varint(&mut out, u64::from(meta.position.term.get()));
    put_varint(&mut out, meta.position.txid.get());
    out.extend_from_slice(meta.position.chain.as_bytes());
    put_varint(&mut out, meta.time.micros());
    put_varint(&mut out, u64::from(meta.n.get()));
    out.extend_from_slice(&meta.digest.get().to_le_bytes());
    table.encode(&mut out);
    let mut next = 1;
    for block in runs {
        put_varint(&mut out, block.len() as u64);
        for run in block {
            put_varint(&mut out, u64::from(run.first.get() - next));
            put_varint(&mut out, u64::from(run.pages));
            next = run.first.get() + run.pages;
        }
    }
    out
}
