//! Capture: turns committed WAL frames into commit records, one a commit, in commit order.
//!
//! Runs under the database's capture lock. The end of the log is what the wal-index header publishes; frames
//! up to it are cut at commit frames (DESIGN 5.2). Nothing is guessed: whatever does not fit is a
//! [`Discontinuity`], and the database then starts anew from an image.
//!
//! Checked at every pass: salts of every frame, last checksum and page count (by the cursor); the number of
//! commits against the change counter; `nBackfill <= captured frame`; a new WAL life begins only after our
//! own checkpoint backfilled exactly the captured frame; growth has a frame for every page; a commit that is to lead to
//! a state has led there.
//!
//! # The old image of a page
//!
//! Zeros if the page lies above the size before the commit, whatever WAL or file hold (HAZARDS W17); else
//! its newest captured frame of this WAL life, which the index knows; else the database file. The index
//! forgets pages above the size after each commit, so that a later growth cannot resurrect them. A backfill
//! that runs beside a capture only copies captured frames, and those pages are found in the index.

mod encode;
mod present;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, PoisonError};

use tidelog_wal::chain;
use tidelog_wal::cursor::{Commit, PublishedCursor, WalError};
use tidelog_wal::digest::PageHash;
use tidelog_wal::frame::FrameNo;
use tidelog_wal::header::Salts;
use tidelog_wal::record::{Annotation, RecordHeader, RecordKind, RestoreNote, TimeFlag};
use tidelog_wal::shm::WalIndexHeader;
use tidelog_wal::{
    Chain, Digest, DigestSeed, PageCount, PageNo, PageSize, Position, Term, Timestamp, TxId,
};

use crate::files::DbFiles;
use crate::journal::chunk::WalPosition;
use crate::rules::rule;
use crate::spool::{Spool, Spooled, Spools, chain_after};
use encode::Encoding;

/// Bytes of frames read at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Bytes that are kept from one commit to the next for what is encoded of it.
const BODY_KEPT: usize = 2 << 20;

/// Why capture cannot go on from where it was.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Reading the files failed: the same pass may succeed later.
    #[error("read the files of the database")]
    Io(#[from] io::Error),
    /// The files are not what the engine left: history has a gap here.
    #[error("discontinuity: {0}")]
    Discontinuity(String),
    /// A commit is not what it was to be ([`CommitNote::leads_to`]).
    #[error("unproven: {0}")]
    Unproven(String),
}

impl From<WalError> for CaptureError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Io { source, .. } => Self::Io(source),
            other => Self::Discontinuity(other.to_string()),
        }
    }
}

/// A state of a database: its Position and what proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The process life that committed it.
    pub term: Term,
    /// Its number.
    pub txid: TxId,
    /// The chain up to it.
    pub chain: Chain,
    /// Pages.
    pub pages: PageCount,
    /// Its digest.
    pub digest: Digest,
    /// Its ordered time.
    pub time: Timestamp,
}

impl Head {
    /// Its Position.
    pub const fn position(&self) -> Position {
        Position {
            term: self.term,
            txid: self.txid,
            chain: self.chain,
        }
    }
}

/// A state that a commit is to lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its pages.
    pub n: PageCount,
    /// Its digest.
    pub digest: Digest,
}

/// A commit that was captured.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The state after it.
    pub head: Head,
    /// Where the WAL stood.
    pub wal: WalPosition,
    /// Where its canonical record stands in [`Batch::bytes`]; of a spooled one, its header.
    pub range: std::ops::Range<usize>,
    /// The file that holds the rest of a large record.
    pub spooled: Option<Spooled>,
}

/// The records of one pass over one database.
#[derive(Debug, Default)]
pub struct Batch {
    /// Canonical records, one after the other.
    pub bytes: Vec<u8>,
    /// The commits.
    pub commits: Vec<Captured>,
}

/// Buffers that passes share, whatever the database.
#[derive(Debug)]
pub struct Scratch {
    cursor: PublishedCursor,
    pages: Encoding,
    /// The thread beside encodes into this one, where a commit is large.
    beside: Option<Box<Encoding>>,
    /// What the pass made.
    pub batch: Batch,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            cursor: PublishedCursor::new(WINDOW_BYTES),
            pages: Encoding::new(PageSize::DEFAULT),
            beside: None,
            batch: Batch::default(),
        }
    }
}

impl Scratch {
    fn prepare(&mut self, size: PageSize) {
        if self.pages.size != size {
            self.pages = Encoding::new(size);
        }
        // One that failed may have left it, for pages of another size.
        self.beside = None;
        self.batch.bytes.clear();
        self.batch.commits.clear();
    }

    /// Gives back what a large commit took.
    fn let_go(&mut self) {
        self.beside = None;
        if self.pages.body.capacity() > BODY_KEPT {
            self.pages.body = Vec::new();
            self.pages.changed = Vec::new();
        }
    }
}

/// Buffers kept for the next pass, so that a commit that is awaited allocates none.
#[derive(Debug, Default)]
pub(crate) struct Scratches {
    kept: Mutex<Vec<Scratch>>,
}

/// Buffers kept at most: one for each thread that captures at once.
const SCRATCHES_KEPT: usize = 8;

impl Scratches {
    /// Runs `work` with buffers.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        let result = work(&mut scratch);
        let mut kept = lock();
        if kept.len() < SCRATCHES_KEPT {
            kept.push(scratch);
        }
        result
    }
}

/// What the engine knows of a commit beside its pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitNote {
    /// Goes into the record as it is.
    pub annotations: Vec<Annotation>,
    /// The commit is a rewind.
    pub restore: Option<RestoreNote>,
    /// The commit puts the database to this state. One that does not ends the pass that finds it: neither it nor what
    /// stands behind it is recorded, and so nobody's write behind it is acknowledged.
    pub leads_to: Option<Wanted>,
}

impl From<Vec<Annotation>> for CommitNote {
    fn from(annotations: Vec<Annotation>) -> Self {
        Self {
            annotations,
            ..Self::default()
        }
    }
}

/// Notes of commits that are not captured yet, in order of TxId.
pub type Notes = VecDeque<(TxId, CommitNote)>;

/// What a pass is told beside the files.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The running process life.
    pub term: Term,
    /// The wall clock now.
    pub wall: Timestamp,
    /// What the time is worth.
    pub flag: TimeFlag,
    /// Where large commits go.
    pub spools: &'a Spools,
    /// What is known of commits to come, in order of TxId.
    pub notes: &'a mut Notes,
    /// The files were just opened: SQLite's change counter began anew and proves nothing yet.
    pub recovering: bool,
}

/// One WAL life as far as it was captured.
#[derive(Debug, Clone, Copy)]
struct Life {
    salts: Salts,
    frame: FrameNo,
    change: u32,
    /// The life is fully backfilled at `frame`: the next may begin.
    ended: bool,
}

/// What capture knows of one open database.
#[derive(Debug)]
pub struct Capture {
    page_size: PageSize,
    seed: DigestSeed,
    head: Head,
    life: Life,
    index: HashMap<PageNo, (FrameNo, PageHash)>,
}

impl Capture {
    /// Capture of a database whose file and WAL, up to frame `from` of the life that `header` publishes,
    /// are at `head`.
    pub fn new(
        page_size: PageSize,
        seed: DigestSeed,
        head: Head,
        header: &WalIndexHeader,
        from: FrameNo,
    ) -> Self {
        let life = Life {
            salts: header.salts,
            frame: from,
            change: header.change,
            ended: false,
        };
        Self {
            page_size,
            seed,
            head,
            life,
            index: HashMap::new(),
        }
    }

    /// The newest captured state.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The last captured frame of the WAL life.
    pub const fn frame(&self) -> FrameNo {
        self.life.frame
    }

    /// The number of the commit after which SQLite's change counter is `change`.
    ///
    /// Dense numbers and the change counter go in step (that is the continuity rule), so that a commit's
    /// TxId is known before it is captured.
    pub const fn txid_at(&self, change: u32) -> TxId {
        self.head
            .txid
            .plus(change.wrapping_sub(self.life.change) as u64)
    }

    /// Says that a checkpoint of ours left `header`; fails if it went past what is captured.
    pub fn checkpointed(&mut self, header: &WalIndexHeader) -> Result<bool, CaptureError> {
        if header.salts != self.life.salts {
            return Ok(false);
        }
        self.check_backfill(header)?;
        self.life.ended =
            header.backfilled == header.max_frame && header.max_frame == self.life.frame;
        Ok(self.life.ended)
    }

    fn check_backfill(&self, header: &WalIndexHeader) -> Result<(), CaptureError> {
        if header.backfilled <= self.life.frame {
            return Ok(());
        }
        Err(CaptureError::Discontinuity(format!(
            "frame {} was checkpointed, captured is frame {}",
            header.backfilled, self.life.frame
        )))
    }

    /// Indexes the frames of this life up to the captured one, for a database that is opened with a WAL:
    /// the newest images of their pages stand there.
    pub fn index_wal(
        &mut self,
        files: &DbFiles,
        header: &WalIndexHeader,
        scratch: &mut Scratch,
    ) -> Result<(), CaptureError> {
        scratch.prepare(self.page_size);
        scratch.cursor.begin(FrameNo::ZERO, header)?;
        let mut newest: HashMap<PageNo, FrameNo> = HashMap::new();
        while let Some(commit) = scratch.cursor.next_commit(files.wal())? {
            if commit.last > self.life.frame {
                break;
            }
            newest.extend(commit.pages.iter().map(|found| (found.page, found.frame)));
            newest.retain(|page, _| commit.n_after.contains(*page));
        }
        let image = &mut scratch.pages.old;
        for (page, frame) in newest {
            files.frame(frame, self.page_size, image)?;
            self.index
                .insert(page, (frame, self.seed.page(page, image)));
        }
        Ok(())
    }

    /// The digest of everything captured, computed from the files: what proves an open.
    pub fn full_digest(
        &self,
        files: &DbFiles,
        scratch: &mut Scratch,
    ) -> Result<Digest, CaptureError> {
        scratch.prepare(self.page_size);
        Digest::of(self.page_size, self.head.pages, |page| {
            if let Some((_, hash)) = self.index.get(&page) {
                return Ok(*hash);
            }
            let image = &mut scratch.pages.old;
            files.page(page, self.page_size, image)?;
            Ok(self.seed.page(page, image))
        })
    }

    /// Captures every commit that `header` publishes and that is not captured yet into `scratch.batch`.
    ///
    /// An error leaves the capture unusable: the database must be opened anew.
    pub fn pass(
        &mut self,
        files: &DbFiles,
        header: WalIndexHeader,
        scratch: &mut Scratch,
        pass: &mut Pass<'_>,
    ) -> Result<(), CaptureError> {
        scratch.prepare(self.page_size);
        if header.salts != self.life.salts {
            self.begin_life(&header)?;
        }
        if header.max_frame == self.life.frame {
            return Ok(());
        }
        self.check_backfill(&header)?;
        if header.page_size.is_some_and(|size| size != self.page_size) {
            return Err(CaptureError::Discontinuity(
                "the page size changed".to_owned(),
            ));
        }
        let mut cursor = std::mem::replace(&mut scratch.cursor, PublishedCursor::new(0));
        let mut cut = 0_u32;
        let walked = (|| {
            cursor.begin(self.life.frame, &header)?;
            while let Some(commit) = cursor.next_commit(files.wal())? {
                cut = cut.wrapping_add(1);
                let wal = WalPosition {
                    salts: salt_words(header.salts),
                    frame: commit.last.get(),
                    checksum: [commit.checksum.s0, commit.checksum.s1],
                    change: self.life.change.wrapping_add(cut),
                    pages: commit.n_after.get(),
                };
                self.commit(files, &commit, wal, scratch, pass)?;
            }
            Ok::<_, CaptureError>(())
        })();
        scratch.cursor = cursor;
        walked?;
        let published = header.change.wrapping_sub(self.life.change);
        if published != cut && !pass.recovering {
            return Err(CaptureError::Discontinuity(format!(
                "SQLite counted {published} commits, the WAL holds {cut}"
            )));
        }
        self.life.frame = header.max_frame;
        self.life.change = header.change;
        self.life.ended = false;
        Ok(())
    }

    fn begin_life(&mut self, header: &WalIndexHeader) -> Result<(), CaptureError> {
        if self.life.frame != FrameNo::ZERO && !self.life.ended {
            return Err(CaptureError::Discontinuity(format!(
                "a new WAL life began while the last one was backfilled only in part (frame {})",
                self.life.frame
            )));
        }
        self.index.clear();
        self.life = Life {
            salts: header.salts,
            frame: FrameNo::ZERO,
            change: self.life.change,
            ended: false,
        };
        Ok(())
    }

    fn commit(
        &mut self,
        files: &DbFiles,
        commit: &Commit<'_>,
        wal: WalPosition,
        scratch: &mut Scratch,
        pass: &mut Pass<'_>,
    ) -> Result<(), CaptureError> {
        let (n_before, n_after) = (self.head.pages, commit.n_after);
        let mut digest = self.head.digest.resize(n_before, n_after, self.page_size);
        let (txid, mut spool) = (self.head.txid.next(), None);
        scratch.pages.begin();
        let mut left = commit.pages;
        while !left.is_empty() {
            self.encode_some(files, commit, &mut left, scratch)?;
            for (changed, old, new) in &scratch.pages.changed {
                digest = digest.replace(*old, *new);
                self.index.insert(changed.page, (changed.frame, *new));
            }
            spill(&mut scratch.pages.body, &mut spool, txid, pass.spools)?;
        }
        let pages = commit.pages.iter();
        let grown = pages
            .filter(|changed| !n_before.contains(changed.page))
            .count();
        let expected = n_before.grown_to(n_after, self.page_size).count();
        if grown != expected {
            return Err(CaptureError::Discontinuity(format!(
                "the database grew by {expected} pages, the WAL holds {grown} of them"
            )));
        }
        for page in n_after.grown_to(n_before, self.page_size) {
            let Encoding {
                encoder,
                old,
                new,
                body,
                ..
            } = &mut scratch.pages;
            let old_hash = self.old_image(files, commit, page, old)?;
            digest = digest.replace(old_hash, PageHash::ABSENT);
            new.fill(0);
            encoder.page(page, old, new, body);
            self.index.remove(&page);
            spill(body, &mut spool, txid, pass.spools)?;
        }
        self.record(n_after, digest, wal, spool, scratch, pass)?;
        scratch.let_go();
        Ok(())
    }

    /// Fills `image` with the page before the commit and answers its hash.
    fn old_image(
        &self,
        files: &DbFiles,
        commit: &Commit<'_>,
        page: PageNo,
        image: &mut [u8],
    ) -> Result<PageHash, CaptureError> {
        let Some((frame, hash)) = self.index.get(&page) else {
            files.page(page, self.page_size, image)?;
            return Ok(self.seed.page(page, image));
        };
        match commit.windowed(*frame) {
            Some(bytes) => image.copy_from_slice(bytes),
            None => files.frame(*frame, self.page_size, image)?,
        }
        Ok(*hash)
    }

    fn record(
        &mut self,
        pages: PageCount,
        digest: Digest,
        wal: WalPosition,
        spool: Option<Spool>,
        scratch: &mut Scratch,
        pass: &mut Pass<'_>,
    ) -> Result<(), CaptureError> {
        let txid = self.head.txid.next();
        let note = take_note(pass.notes, txid);
        if let Some(wanted) = note.leads_to {
            prove(wanted, pages, digest)?;
        }
        let header = RecordHeader {
            term: pass.term,
            txid,
            time: self.head.time.ordered_next(pass.wall),
            wall: pass.wall,
            flag: pass.flag,
            n_before: self.head.pages,
            n_after: pages,
            digest,
            annotations: note.annotations,
        };
        let batch = &mut scratch.batch;
        let start = batch.bytes.len();
        match note.restore {
            None => header.encode(RecordKind::Delta, &mut batch.bytes),
            Some(restore) => {
                header.encode(RecordKind::Restore, &mut batch.bytes);
                restore.encode(&mut batch.bytes);
            }
        }
        let (chain, spooled) = match spool {
            None => {
                batch.bytes.extend_from_slice(&scratch.pages.body);
                (chain::step(self.head.chain, &batch.bytes[start..]), None)
            }
            Some(mut spool) => {
                spool.append(&mut scratch.pages.body)?;
                let spooled = spool.finish()?;
                let (disk, head) = (pass.spools.disk.as_ref(), &batch.bytes[start..]);
                (
                    chain_after(disk, self.head.chain, head, &spooled)?,
                    Some(spooled),
                )
            }
        };
        let range = start..batch.bytes.len();
        self.head = Head {
            term: pass.term,
            txid,
            chain,
            pages,
            digest,
            time: header.time,
        };
        batch.commits.push(Captured {
            head: self.head,
            wal,
            range,
            spooled,
        });
        Ok(())
    }
}

/// A commit that was to lead to a state must have led there.
fn prove(wanted: Wanted, n: PageCount, digest: Digest) -> Result<(), CaptureError> {
    if wanted == (Wanted { n, digest }) || !rule!("rewind.state_proven") {
        return Ok(());
    }
    Err(CaptureError::Unproven(format!(
        "a change of state led to digest {digest} of {} pages, asked for were {} of {}",
        n.get(),
        wanted.digest,
        wanted.n.get()
    )))
}

/// Moves the encoded pages to the commit's spool file once they are long.
fn spill(
    body: &mut Vec<u8>,
    spool: &mut Option<Spool>,
    txid: TxId,
    spools: &Spools,
) -> Result<(), CaptureError> {
    if body.len() <= spools.limit {
        return Ok(());
    }
    if spool.is_none() {
        *spool = Some(spools.begin(txid)?);
    }
    match spool {
        Some(spool) => Ok(spool.append(body)?),
        None => Ok(()),
    }
}

/// The salts as the two words they are in the WAL header.
pub fn salt_words(salts: Salts) -> [u32; 2] {
    let bytes = salts.to_bytes();
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_be_bytes(word)
    };
    [word(0), word(4)]
}

fn take_note(queue: &mut Notes, txid: TxId) -> CommitNote {
    while queue.front().is_some_and(|(at, _)| *at < txid) {
        queue.pop_front();
    }
    match queue.front() {
        Some((at, _)) if *at == txid => queue.pop_front().map(|(_, note)| note).unwrap_or_default(),
        _ => CommitNote::default(),
    }
}
