//! Reads committed transactions from a WAL, in one of two ways of knowing where the committed log ends.
//!
//! - [`PublishedCursor`] trusts the wal-index header ([`crate::shm`]): the frames up to the published one are
//!   committed, and only salts, the last checksum and the page count are compared. It is the path of capture.
//! - [`ProvenCursor`] walks the checksum chain from the WAL header as SQLite's own recovery does: for a file
//!   that nobody has open.
//!
//! Both cut at commit frames and hand out one [`Commit`] at a time: its pages in ascending order, of each
//! page the newest frame, no page above the size after the commit (spilled frames of the transaction may
//! lie there, HAZARDS W17), and never the lock page.
//!
//! # Memory
//!
//! Frames are read through a window of bounded bytes, which is kept: in the steady state a commit allocates
//! nothing. A transaction longer than the window is walked through it once, and its images are then read
//! singly. What grows with a transaction is eight bytes a frame.
//!
//! # What ends a log
//!
//! Frames are not append-only inside a transaction, rollbacks leave whole valid-looking frames behind
//! (HAZARDS W3 to W5), and a commit frame on disk is not yet a commit (W6). So nothing behind the published
//! frame is ever looked at, and a broken chain means "end for now", never "end of life".
//!
//! # Commit frames that repeat
//!
//! With synchronous=FULL on a device without power-safe overwrite SQLite repeats the commit frame up to a
//! sector boundary, commit mark included (HAZARDS W7); iChange counts one commit for all of them, mxFrame
//! counts every one. A statement that changes nothing, alone in its transaction, leaves the same bytes and
//! does count in iChange. So the published cursor takes every commit frame for a commit: its caller never
//! runs synchronous=FULL and compares the number with iChange. The proven cursor has no iChange and takes
//! repeats for padding: either way the states are the same, only their number is not.

mod window;

use std::io;

pub use window::ReadAt;
use window::Window;

use crate::checksum::Checksum;
use crate::codec::DecodeError;
use crate::frame::{FRAME_HEADER_LEN, FrameHeader, FrameNo};
use crate::header::{Salts, WAL_HEADER_LEN, WalHeader};
use crate::page::{PageCount, PageNo, PageSize};
use crate::shm::WalIndexHeader;

/// Why a WAL could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Reading failed.
    #[error("read WAL at offset {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The header is of a format this program does not know.
    #[error("read WAL header")]
    Header(#[from] DecodeError),
    /// A frame is not what the wal-index published: a discontinuity.
    #[error("WAL frame {frame} at offset {offset}: {what}")]
    Frame {
        /// Which frame.
        frame: FrameNo,
        /// Where it starts.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Where the newest image of a page stands within a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FramePage {
    /// The page.
    pub page: PageNo,
    /// Its newest frame of the commit.
    pub frame: FrameNo,
}

/// One committed transaction.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'c> {
    /// Pages of the database after it.
    pub n_after: PageCount,
    /// Its first frame.
    pub first: FrameNo,
    /// Its commit frame.
    pub last: FrameNo,
    /// The checksum that stands in the commit frame.
    pub checksum: Checksum,
    /// The pages it wrote, ascending.
    pub pages: &'c [FramePage],
    window: &'c Window,
}

impl<'c> Commit<'c> {
    /// The page of any frame up to this commit's last: from the window, else read into `scratch`, which is
    /// one page long.
    ///
    /// # Panics
    ///
    /// If `scratch` is not one page long.
    pub fn image<'b>(
        &self,
        wal: &(impl ReadAt + ?Sized),
        frame: FrameNo,
        scratch: &'b mut [u8],
    ) -> Result<&'b [u8], WalError>
    where
        'c: 'b,
    {
        match self.windowed(frame) {
            Some(image) => Ok(image),
            None => read_image(wal, self.window.page_size(), frame, scratch),
        }
    }

    /// The page of a frame, if the window holds it.
    pub fn windowed(&self, frame: FrameNo) -> Option<&'c [u8]> {
        self.window.frame(frame)?.get(FRAME_HEADER_LEN..)
    }
}

fn read_image<'b>(
    wal: &(impl ReadAt + ?Sized),
    page_size: PageSize,
    frame: FrameNo,
    image: &'b mut [u8],
) -> Result<&'b [u8], WalError> {
    assert_eq!(image.len(), page_size.bytes(), "an image is one page");
    let offset = frame.image_offset(page_size);
    let have = wal
        .read_full_at(offset, image)
        .map_err(|source| WalError::Io { offset, source })?;
    if have < image.len() {
        return Err(bad_frame(frame, page_size, "the file ends inside it"));
    }
    Ok(image)
}

fn bad_frame(frame: FrameNo, page_size: PageSize, what: &'static str) -> WalError {
    WalError::Frame {
        frame,
        offset: frame.offset(page_size),
        what,
    }
}

/// What both cursors share: the window, and the pages of the commit being cut.
#[derive(Debug)]
struct Scan {
    window: Window,
    pages: Vec<FramePage>,
    /// The last frame of the commits handed out.
    at: FrameNo,
}

/// What a cursor makes of the next frame.
enum Verdict {
    Take,
    /// The committed log ends before it.
    End,
}

impl Scan {
    fn new(window_bytes: usize) -> Self {
        Self {
            window: Window::new(window_bytes),
            pages: Vec::new(),
            at: FrameNo::ZERO,
        }
    }

    fn start(&mut self, page_size: PageSize, at: FrameNo) {
        self.window.reset(page_size);
        self.at = at;
    }

    /// Collects frames behind `at`, none behind `last`, up to the next commit frame, which it returns.
    /// `None` if the frames end, or `judge` ends them, before one; `at` then stays.
    fn next(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
        last: FrameNo,
        mut judge: impl FnMut(FrameNo, &FrameHeader, &[u8]) -> Result<Verdict, WalError>,
    ) -> Result<Option<(FrameNo, FrameHeader, PageCount)>, WalError> {
        self.pages.clear();
        let size = self.window.page_size();
        let mut frame = self.at;
        while let Some(number) = frame.next().filter(|number| *number <= last) {
            frame = number;
            if self.window.frame(frame).is_none() {
                self.refill(wal, frame, last)?;
            }
            let Some((head, image)) = self
                .window
                .frame(frame)
                .and_then(|bytes| bytes.split_at_checked(FRAME_HEADER_LEN))
            else {
                return Ok(None);
            };
            // Page 0 is what an end looks like to SQLite too.
            let Ok(header) = FrameHeader::decode(head) else {
                return Ok(None);
            };
            if matches!(judge(frame, &header, image)?, Verdict::End) {
                return Ok(None);
            }
            self.pages.push(FramePage {
                page: header.page,
                frame,
            });
            if let Some(n_after) = header.commit {
                self.cut(n_after, size.lock_page());
                return Ok(Some((frame, header, n_after)));
            }
        }
        Ok(None)
    }

    /// Moves the window to `frame`: back to the start of its commit if the window was not there already, so
    /// that a commit which fits is held whole.
    fn refill(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
        frame: FrameNo,
        last: FrameNo,
    ) -> Result<(), WalError> {
        let start = self.at.next().unwrap_or(frame);
        let mut from = frame;
        if self.window.frame(start).is_some() && self.window.first() < start {
            from = start;
        }
        let offset = from.offset(self.window.page_size());
        self.window
            .fill(wal, from, last)
            .map_err(|source| WalError::Io { offset, source })
    }

    /// Of each page the newest frame, in page order, up to the size after the commit.
    fn cut(&mut self, n_after: PageCount, lock: PageNo) {
        self.pages.sort_unstable();
        self.pages.dedup_by(|later, kept| {
            let same = later.page == kept.page;
            if same {
                kept.frame = later.frame;
            }
            same
        });
        self.pages
            .retain(|entry| n_after.contains(entry.page) && entry.page != lock);
    }

    fn commit(&self, first: FrameNo, header: &FrameHeader, n_after: PageCount) -> Commit<'_> {
        Commit {
            n_after,
            first,
            last: self.at,
            checksum: header.checksum,
            pages: &self.pages,
            window: &self.window,
        }
    }
}

/// Reads the commits that the wal-index has published. One serves many databases, one after the other.
#[derive(Debug)]
pub struct PublishedCursor {
    scan: Scan,
    to: Option<WalIndexHeader>,
}

impl PublishedCursor {
    /// A cursor with a window of at most `window_bytes`, and at least of one frame of the largest pages.
    pub fn new(window_bytes: usize) -> Self {
        Self {
            scan: Scan::new(window_bytes),
            to: None,
        }
    }

    /// Turns to the frames behind `from` up to the header's `max_frame`. The caller knows `from` to be of
    /// the header's WAL life.
    pub fn begin(&mut self, from: FrameNo, header: &WalIndexHeader) -> Result<(), WalError> {
        let size = header.page_size.unwrap_or(PageSize::DEFAULT);
        self.to = None;
        if from > header.max_frame {
            return Err(bad_frame(from, size, "lies behind the published end"));
        }
        self.scan.start(size, from);
        self.to = Some(*header);
        Ok(())
    }

    /// The next commit, or `None` once the published end is reached.
    ///
    /// An error means that the WAL is not what the header says: no later commit may be taken from it.
    pub fn next_commit(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
    ) -> Result<Option<Commit<'_>>, WalError> {
        let Some(to) = self.to else { return Ok(None) };
        let size = self.scan.window.page_size();
        let before = self.scan.at;
        if before == to.max_frame {
            return Ok(None);
        }
        let found = self.scan.next(wal, to.max_frame, |frame, header, _| {
            if header.salts == to.salts {
                Ok(Verdict::Take)
            } else {
                Err(bad_frame(frame, size, "salts of another WAL life"))
            }
        })?;
        let Some((last, header, n_after)) = found else {
            return Err(bad_frame(to.max_frame, size, "no commit frame"));
        };
        if last == to.max_frame && header.checksum != to.checksum {
            return Err(bad_frame(last, size, "checksum is not the published one"));
        }
        if last == to.max_frame && n_after != to.n_pages {
            return Err(bad_frame(last, size, "page count is not the published one"));
        }
        self.scan.at = last;
        let first = before.next().unwrap_or(last);
        Ok(Some(self.scan.commit(first, &header, n_after)))
    }
}

/// Reads the commits whose frames continue the checksum chain from the WAL header on.
#[derive(Debug)]
pub struct ProvenCursor {
    scan: Scan,
    header: WalHeader,
    /// The chain up to `scan.at`.
    chain: Checksum,
    /// The commit frame handed out last, to know a repeat by.
    previous: Option<(PageNo, PageCount, FrameNo)>,
    scratch: [Vec<u8>; 2],
}

impl ProvenCursor {
    /// A cursor at the start of `wal`. `None` where SQLite finds no valid data: no bytes behind the header,
    /// another magic or page size, a header checksum that differs. A version it does not know is an error,
    /// as it is to SQLite.
    pub fn open(
        wal: &(impl ReadAt + ?Sized),
        window_bytes: usize,
    ) -> Result<Option<Self>, WalError> {
        let mut bytes = [0; WAL_HEADER_LEN + 1];
        let have = wal
            .read_full_at(0, &mut bytes)
            .map_err(|source| WalError::Io { offset: 0, source })?;
        if have <= WAL_HEADER_LEN {
            return Ok(None);
        }
        match WalHeader::decode(&bytes) {
            Ok(header) => Ok(Some(Self::from_header(header, window_bytes))),
            Err(error @ DecodeError::Version { .. }) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// A cursor behind a proven header.
    pub fn from_header(header: WalHeader, window_bytes: usize) -> Self {
        Self::resume(header, FrameNo::ZERO, header.checksum, window_bytes)
    }

    /// A cursor behind the commit frame `at`, whose checksum was proven to be `chain`.
    pub fn resume(header: WalHeader, at: FrameNo, chain: Checksum, window_bytes: usize) -> Self {
        let mut scan = Scan::new(window_bytes);
        scan.start(header.page_size, at);
        Self {
            scan,
            header,
            chain,
            previous: None,
            scratch: [Vec::new(), Vec::new()],
        }
    }

    /// The WAL's header.
    pub const fn header(&self) -> &WalHeader {
        &self.header
    }

    /// Salts, last frame and checksum of what was proven so far.
    pub const fn position(&self) -> (Salts, FrameNo, Checksum) {
        (self.header.salts, self.scan.at, self.chain)
    }

    /// The next commit, or `None` at the end for now: a later call looks again.
    pub fn next_commit(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
    ) -> Result<Option<Commit<'_>>, WalError> {
        loop {
            let before = self.scan.at;
            let WalHeader { order, salts, .. } = self.header;
            let mut chain = self.chain;
            let found = self
                .scan
                .next(wal, FrameNo::new(u32::MAX), |_, header, image| {
                    if header.salts != salts || !header.continues(image, order, chain) {
                        return Ok(Verdict::End);
                    }
                    chain = header.checksum;
                    Ok(Verdict::Take)
                })?;
            let Some((last, header, n_after)) = found else {
                // What was seen behind the end may be overwritten before the next look.
                self.scan.start(self.header.page_size, before);
                return Ok(None);
            };
            self.scan.at = last;
            self.chain = chain;
            let first = before.next().unwrap_or(last);
            let repeats = first == last && self.repeats(wal, header.page, n_after, last)?;
            self.previous = Some((header.page, n_after, last));
            if !repeats {
                return Ok(Some(self.scan.commit(first, &header, n_after)));
            }
        }
    }

    /// Whether the commit of one frame `last` says what the commit frame before it said.
    fn repeats(
        &mut self,
        wal: &(impl ReadAt + ?Sized),
        page: PageNo,
        n_after: PageCount,
        last: FrameNo,
    ) -> Result<bool, WalError> {
        let Some((old_page, old_n, old)) = self.previous else {
            return Ok(false);
        };
        if (old_page, old_n) != (page, n_after) {
            return Ok(false);
        }
        let size = self.header.page_size;
        for (scratch, frame) in self.scratch.iter_mut().zip([old, last]) {
            scratch.resize(size.bytes(), 0);
            read_image(wal, size, frame, scratch)?;
        }
        Ok(self.scratch[0] == self.scratch[1])
    }
}
