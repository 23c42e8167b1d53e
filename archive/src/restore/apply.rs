//! Applying records to a sink.

use std::collections::VecDeque;

use tidelog_wal::delta::PageDelta;
use tidelog_wal::digest::PageHash;
use tidelog_wal::merged::MergedDeltas;
use tidelog_wal::page::{mask_page1, unmask_page1};
use tidelog_wal::parallel::both;
use tidelog_wal::{Chain, DatabaseId, Digest, PageCount, PageNo, PageSize, Position, TxId, chain};

use super::error::RestoreError;
use super::sink::PageSink;
use crate::envelope::FormatError;
use crate::plan::{Direction, Plan, Step};
use crate::records::{BodyHead, RecordHead, RecordVisitor};

/// Bytes read at once when the finished file is proven.
const PROOF_CHUNK: usize = 1 << 20;
/// A file of fewer bytes is proven by one thread.
const ALONE_BYTES: u64 = 8 << 20;

/// A record whose pages stand in another object, seen while records were scanned.
#[derive(Debug, Clone)]
pub(super) struct Elsewhere {
    pub(super) head: RecordHead,
    pub(super) position: Position,
}

/// What the sink holds when the image comes that the plan starts with.
#[derive(Debug, Clone, Copy)]
enum InSink {
    /// Nothing: its pages are written.
    Nothing,
    /// Deltas that did not fit into memory: its pages are added to them.
    Deltas,
    /// An image that takes the place of everything before it: its pages no longer count.
    AnotherImage,
}

impl InSink {
    /// Something is written that is not of that image.
    fn add(&mut self) {
        if matches!(self, Self::Nothing) {
            *self = Self::Deltas;
        }
    }
}

/// Gathers deltas by page and applies them.
#[derive(Debug)]
pub(super) struct Applier<S> {
    pub(super) sink: S,
    page_size: PageSize,
    /// Deltas that are not in the sink yet.
    deltas: MergedDeltas,
    bytes_max: usize,
    in_sink: InSink,
    /// The state before the next record that counts, `None` before the first commit of all.
    joint: Option<Position>,
    /// Where the stretch of records that is read ends, and those that follow it.
    end: Option<Position>,
    ahead: VecDeque<(Option<Position>, Position)>,
    /// The step being read.
    first: TxId,
    last: TxId,
    database: DatabaseId,
    key: String,
    /// The chain before the next record, whether it counts or not.
    chain_before: Chain,
    /// The record being read, if it counts.
    current: Option<RecordHead>,
    /// Records whose pages must be fetched, in order.
    pub(super) elsewhere: Vec<Elsewhere>,
    pub(super) commits: u64,
    backward: bool,
    /// Deltas are wanted, not a state: there is no base in the sink.
    merging: bool,
}

impl<S: PageSink> Applier<S> {
    pub(super) fn new(sink: S, plan: &Plan, memory_bytes: usize, merging: bool) -> Self {
        let mut ahead = VecDeque::from(plan.stretches());
        let (joint, end) = match ahead.pop_front() {
            Some((from, to)) => (from, Some(to)),
            None => (None, None),
        };
        Self {
            sink,
            page_size: plan.page_size,
            deltas: MergedDeltas::default(),
            bytes_max: memory_bytes.min(MergedDeltas::BYTES_MAX),
            in_sink: InSink::Nothing,
            joint,
            end,
            ahead,
            first: TxId::ZERO,
            last: TxId::ZERO,
            database: DatabaseId::default(),
            key: String::new(),
            chain_before: Chain::default(),
            current: None,
            elsewhere: Vec::new(),
            commits: 0,
            backward: plan.direction == Direction::Backward,
            merging,
        }
    }

    /// Begins the span of a step, whose first record follows `chain_before`.
    pub(super) fn begin_step(&mut self, step: &Step, chain_before: Chain) {
        self.first = step.first;
        self.last = step.last;
        self.database = step.piece.database;
        step.piece.source.key().clone_into(&mut self.key);
        self.chain_before = chain_before;
    }

    fn broken(&self, what: &'static str, txid: TxId) -> RestoreError {
        RestoreError::Broken {
            what,
            txid,
            key: self.key.clone(),
        }
    }

    /// Refuses a record that does not go on where the one before ended.
    fn check_joint(&mut self, txid: TxId) -> Result<(), RestoreError> {
        if self.joint == self.end
            && let Some((from, to)) = self.ahead.pop_front()
        {
            (self.joint, self.end) = (from, Some(to));
        }
        let joins = match &self.joint {
            None => txid == TxId::FIRST && self.chain_before == chain::genesis(self.database),
            Some(before) => {
                before.txid.get().checked_add(1) == Some(txid.get())
                    && (self.chain_before == before.chain
                        || self.chain_before == chain::fork(self.database, before))
            }
        };
        if joins {
            Ok(())
        } else {
            Err(self.broken("records do not join", txid))
        }
    }

    /// Refuses records that ended elsewhere than they should.
    pub(super) fn check_end(&self, plan: &Plan) -> Result<(), RestoreError> {
        if self.joint == self.end && self.ahead.is_empty() {
            return Ok(());
        }
        let expected = self.end.unwrap_or(plan.target.position);
        Err(self.broken("records do not lead to the target", expected.txid))
    }

    /// XORs a page of a delta into what is gathered.
    pub(super) fn gather(&mut self, page: &PageDelta<'_>) -> Result<(), RestoreError> {
        if self.merging && self.sink.add(page)? {
            return Ok(());
        }
        if self.deltas.bytes_with(page) > self.bytes_max {
            self.deltas.fold(self.page_size);
            if self.deltas.bytes() > self.bytes_max / 2 {
                self.spill()?;
            }
        }
        self.deltas.add(page);
        Ok(())
    }

    /// Applies what is gathered to the sink.
    pub(super) fn spill(&mut self) -> Result<(), RestoreError> {
        let deltas = std::mem::take(&mut self.deltas);
        let size = self.page_size.bytes();
        let (mut xor, mut image) = (vec![0; size], vec![0; size]);
        for page in deltas.pages() {
            xor.fill(0);
            deltas.apply(page, &mut xor);
            if xor.iter().all(|byte| *byte == 0) {
                continue;
            }
            let offset = page.offset(self.page_size);
            self.sink.read(offset, &mut image)?;
            for (x, y) in image.iter_mut().zip(&xor) {
                *x ^= y;
            }
            self.in_sink.add();
            self.sink.write(offset, &image)?;
        }
        Ok(())
    }

    /// Takes pages of the image that the plan starts with, from `first` on, and all that is gathered of them.
    pub(super) fn start_pages(
        &mut self,
        first: PageNo,
        images: &mut [u8],
    ) -> Result<(), RestoreError> {
        if matches!(self.in_sink, InSink::AnotherImage) {
            return Ok(());
        }
        let numbers = (first.get()..).filter_map(PageNo::new);
        let images_of = images.chunks_exact_mut(self.page_size.bytes());
        for (image, page) in images_of.zip(numbers) {
            self.deltas.take(page, image);
        }
        let offset = first.offset(self.page_size);
        match self.in_sink {
            InSink::Deltas => self.xor_at(offset, images),
            InSink::Nothing | InSink::AnotherImage => Ok(self.sink.write(offset, images)?),
        }
    }

    /// Forgets the state so far: an image of every page follows. The state is all zeros until it came, so
    /// that it may come after deltas that follow it.
    fn reset(&mut self) -> Result<(), RestoreError> {
        self.deltas = MergedDeltas::default();
        self.elsewhere.clear();
        self.in_sink = InSink::AnotherImage;
        self.sink.set_len(0)?;
        Ok(())
    }

    /// XORs `bytes` into the sink, from `offset` on.
    pub(super) fn xor_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut image = vec![0; bytes.len()];
        self.sink.read(offset, &mut image)?;
        for (x, y) in image.iter_mut().zip(bytes) {
            *x ^= y;
        }
        self.in_sink.add();
        self.sink.write(offset, &image)?;
        Ok(())
    }

    /// Zeroes the bytes of page 1 that the log does not carry.
    pub(super) fn mask(&mut self) -> Result<(), RestoreError> {
        let mut page = vec![0; self.page_size.bytes()];
        self.sink.read(0, &mut page)?;
        mask_page1(&mut page);
        self.sink.write(0, &page)?;
        Ok(())
    }

    /// Applies the rest, proves the file's digest, unmasks page 1 and gives the file its name.
    pub(super) fn finish(&mut self, plan: &Plan) -> Result<(), RestoreError> {
        self.spill()?;
        let target = &plan.target;
        self.sink.set_len(target.n.bytes(self.page_size))?;
        let found = self.digest(plan, target.n)?;
        if found != target.digest {
            return Err(RestoreError::Digest {
                txid: target.position.txid,
                found,
                expected: target.digest,
            });
        }
        if target.n > PageCount::ZERO {
            let mut page = vec![0; self.page_size.bytes()];
            self.sink.read(0, &mut page)?;
            unmask_page1(&mut page, target.position.txid);
            self.sink.write(0, &page)?;
        }
        self.sink.finish()?;
        Ok(())
    }

    /// The digest of the pages as they stand in the sink; of many, half are hashed by a thread of its own.
    fn digest(&self, plan: &Plan, n: PageCount) -> Result<Digest, RestoreError> {
        let pages = || n.pages(self.page_size);
        let hash = if n.bytes(self.page_size) < ALONE_BYTES {
            self.hash_of(plan, pages())?
        } else {
            let last = n.get() / 2;
            let (first, second) = both(
                || self.hash_of(plan, pages().take_while(|page| page.get() <= last)),
                || self.hash_of(plan, pages().skip_while(|page| page.get() <= last)),
            );
            first?.and(second?)
        };
        let empty = Digest::empty(self.page_size).resize(PageCount::ZERO, n, self.page_size);
        Ok(empty.replace(PageHash::ABSENT, hash))
    }

    /// What `pages`, ascending, come to as they stand in the sink.
    fn hash_of(
        &self,
        plan: &Plan,
        mut pages: impl Iterator<Item = PageNo>,
    ) -> Result<PageHash, RestoreError> {
        let size = self.page_size.bytes();
        let mut chunk = vec![0; PROOF_CHUNK.max(size)];
        let mut loaded = 0..0_u64;
        pages.try_fold(PageHash::ABSENT, |sum, page| {
            let offset = page.offset(self.page_size);
            if !loaded.contains(&offset) {
                loaded = offset..offset + chunk.len() as u64;
                self.sink.read(offset, &mut chunk)?;
            }
            let at = usize::try_from(offset - loaded.start).unwrap_or(usize::MAX);
            let image = chunk.get(at..at.saturating_add(size)).unwrap_or_default();
            Ok(sum.and(plan.seed.page(page, image)))
        })
    }
}

impl<S: PageSink> RecordVisitor for Applier<S> {
    type Error = RestoreError;

    fn begin(&mut self, head: &RecordHead) -> Result<(), RestoreError> {
        let txid = head.header.txid;
        self.current = None;
        if self.first <= txid && txid <= self.last {
            self.check_joint(txid)?;
            self.current = Some(head.clone());
        }
        Ok(())
    }

    fn page(&mut self, page: &PageDelta<'_>) -> Result<(), RestoreError> {
        if self.current.is_some() {
            self.gather(page)?;
        }
        Ok(())
    }

    fn end(&mut self, position: &Position) -> Result<(), RestoreError> {
        self.chain_before = position.chain;
        let Some(head) = self.current.take() else {
            return Ok(());
        };
        self.joint = Some(*position);
        self.commits += 1;
        match head.body {
            BodyHead::Delta | BodyHead::Restore { .. } | BodyHead::Fork { .. } => {}
            BodyHead::Image(_) if self.backward || self.merging => {
                return Err(self.broken("an image is no delta to step over", position.txid));
            }
            BodyHead::Image(_) | BodyHead::Reference { .. } => {
                if matches!(head.body, BodyHead::Image(_)) {
                    self.reset()?;
                }
                self.elsewhere.push(Elsewhere {
                    head,
                    position: *position,
                });
            }
        }
        Ok(())
    }
}

/// Applies the one record of a segment part, which must be the one that was referred to.
#[derive(Debug)]
pub(super) struct PartApplier<'a, S> {
    pub(super) applier: &'a mut Applier<S>,
    pub(super) expected: Position,
}

impl<S: PageSink> RecordVisitor for PartApplier<'_, S> {
    type Error = RestoreError;

    fn begin(&mut self, head: &RecordHead) -> Result<(), RestoreError> {
        if head.header.txid == self.expected.txid {
            return Ok(());
        }
        Err(FormatError::invalid(0, "record of a part").into())
    }

    fn page(&mut self, page: &PageDelta<'_>) -> Result<(), RestoreError> {
        self.applier.gather(page)
    }

    fn end(&mut self, position: &Position) -> Result<(), RestoreError> {
        if *position == self.expected {
            return Ok(());
        }
        Err(FormatError::invalid(0, "record of a part").into())
    }
}
