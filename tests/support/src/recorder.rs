//! Follows a live plain SQLite database in WAL mode and says what each commit changed.
//!
//! A model of capture, slow and obvious: it holds every page of the database in memory, so that an old image
//! is a look-up. Two hosts need it: tests, as what capture must equal, and benches, as a source of real pages.

use std::fs::File;
use std::io;
use std::path::Path;

use rusqlite::Connection;
use tidelog_wal::cursor::{PublishedCursor, ReadAt, WalError};
use tidelog_wal::delta::DeltaEncoder;
use tidelog_wal::frame::FrameNo;
use tidelog_wal::page::mask_page1;
use tidelog_wal::shm::{SHM_HEADER_LEN, ShmError, WalIndexHeader};
use tidelog_wal::{PageCount, PageNo, PageSize};

use crate::oltp::Oltp;

const WINDOW_BYTES: usize = 1 << 20;

/// Why a database could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// A file could not be read.
    #[error("read a file of the database")]
    Io(#[from] io::Error),
    /// The wal-index header was not to be had.
    #[error("read the wal-index")]
    Shm(#[from] ShmError),
    /// The WAL is not what the wal-index says.
    #[error("read the WAL")]
    Wal(#[from] WalError),
    /// More or fewer commits were made than frames tell.
    #[error("{cut} commits were cut, {published} were published")]
    Discontinuity {
        /// Commit frames seen.
        cut: u32,
        /// Commits by iChange.
        published: u32,
    },
}

/// One page a commit changed; images are whole pages, page 1 masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagePair {
    /// Which page.
    pub page: PageNo,
    /// Its image before, zeros above the page count.
    pub old: Vec<u8>,
    /// Its image after, zeros above the page count.
    pub new: Vec<u8>,
}

/// What one commit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Pages before.
    pub n_before: PageCount,
    /// Pages after.
    pub n_after: PageCount,
    /// Pages written or cut off, ascending; some may be unchanged.
    pub pages: Vec<PagePair>,
}

impl Recorded {
    /// The encoded pages of the commit's delta.
    pub fn delta(&self, page_size: PageSize) -> Vec<u8> {
        let mut encoder = DeltaEncoder::new(page_size);
        let mut out = Vec::new();
        for pair in &self.pages {
            encoder.page(pair.page, &pair.old, &pair.new, &mut out);
        }
        out
    }
}

/// Follows one database, whose connections must stay open: it keeps its own descriptors, because closing
/// one would drop the connections' locks (HAZARDS W0a). Drop it after them.
#[derive(Debug)]
pub struct Recorder {
    wal: File,
    shm: File,
    _db: File,
    cursor: PublishedCursor,
    page_size: PageSize,
    pages: Vec<Vec<u8>>,
    header: WalIndexHeader,
    frame: FrameNo,
}

fn beside(db: &Path, suffix: &str) -> io::Result<File> {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    File::open(name)
}

fn published(shm: &File) -> Result<WalIndexHeader, RecorderError> {
    let mut bytes = [0; SHM_HEADER_LEN];
    shm.read_full_at(0, &mut bytes)?;
    Ok(WalIndexHeader::decode(&bytes)?)
}

fn count(pages: usize) -> PageCount {
    PageCount::new(u32::try_from(pages).expect("SQLite counts pages in 32 bits"))
}

impl Recorder {
    /// Begins with the state `db` is in now, answered as one commit from the empty state. A connection in WAL
    /// mode must have read from it; no writer may run meanwhile.
    pub fn start(db: &Path, page_size: PageSize) -> Result<(Self, Recorded), RecorderError> {
        let (wal, shm) = (beside(db, "-wal")?, beside(db, "-shm")?);
        let header = published(&shm)?;
        let file = File::open(db)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_full_at(0, &mut bytes)?;
        let mut recorder = Self {
            wal,
            shm,
            _db: file,
            cursor: PublishedCursor::new(WINDOW_BYTES),
            page_size,
            pages: bytes
                .chunks(page_size.bytes())
                .map(<[u8]>::to_vec)
                .collect(),
            header,
            frame: FrameNo::ZERO,
        };
        recorder.cut(&header)?;
        let n_after = count(recorder.pages.len());
        let zeros = vec![0; page_size.bytes()];
        let pages = n_after
            .pages(page_size)
            .map(|page| PagePair {
                page,
                new: recorder.masked(page),
                old: zeros.clone(),
            })
            .collect();
        let import = Recorded {
            n_before: PageCount::ZERO,
            n_after,
            pages,
        };
        Ok((recorder, import))
    }

    /// A page of the shadow, page 1 masked.
    fn masked(&self, page: PageNo) -> Vec<u8> {
        let mut image = self.pages[index(page)].clone();
        if page == PageNo::ONE {
            mask_page1(&mut image);
        }
        image
    }

    /// What was committed since the last call, oldest first. No writer may run meanwhile.
    pub fn record(&mut self) -> Result<Vec<Recorded>, RecorderError> {
        let header = published(&self.shm)?;
        if self.header.salts != header.salts {
            self.frame = FrameNo::ZERO;
        }
        let found = self.cut(&header)?;
        let published = header.change.wrapping_sub(self.header.change);
        self.header = header;
        match u32::try_from(found.len()) {
            Ok(cut) if cut == published => Ok(found),
            cut => Err(RecorderError::Discontinuity {
                cut: cut.unwrap_or(u32::MAX),
                published,
            }),
        }
    }

    fn cut(&mut self, header: &WalIndexHeader) -> Result<Vec<Recorded>, RecorderError> {
        self.cursor.begin(self.frame, header)?;
        let size = self.page_size.bytes();
        let mut found = Vec::new();
        let mut scratch = vec![0; size];
        while let Some(commit) = self.cursor.next_commit(&self.wal)? {
            let n_before = count(self.pages.len());
            let longest = n_before.max(commit.n_after).get() as usize;
            self.pages.resize(longest, vec![0; size]);
            let mut images = Vec::new();
            for entry in commit.pages {
                let image = commit.image(&self.wal, entry.frame, &mut scratch)?;
                images.push((entry.page, image.to_vec()));
            }
            let gone = commit.n_after.grown_to(n_before, self.page_size);
            images.extend(gone.map(|page| (page, vec![0; size])));
            let pages = images
                .into_iter()
                .map(|(page, mut new)| {
                    if page == PageNo::ONE {
                        mask_page1(&mut new);
                    }
                    let mut old = std::mem::replace(&mut self.pages[index(page)], new.clone());
                    if page == PageNo::ONE {
                        mask_page1(&mut old);
                    }
                    PagePair { page, old, new }
                })
                .collect();
            self.pages.truncate(commit.n_after.get() as usize);
            self.frame = commit.last;
            found.push(Recorded {
                n_before,
                n_after: commit.n_after,
                pages,
            });
        }
        Ok(found)
    }
}

fn index(page: PageNo) -> usize {
    page.get() as usize - 1
}

/// Records `commits` transactions of the OLTP mix over `rows` orders, after `warm_up` of them, on pages of
/// SQLite's default size. What benches run on.
pub fn record_oltp(
    rows: u32,
    warm_up: u64,
    commits: u64,
) -> Result<Vec<Recorded>, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("oltp.db");
    let conn = Connection::open(&path)?;
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0",
    )?;
    let mut mix = Oltp::new(1, rows);
    mix.load(&conn)?;
    for i in 0..warm_up {
        mix.transaction(&conn, i)?;
    }
    conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")?;
    let (mut recorder, _) = Recorder::start(&path, PageSize::DEFAULT)?;
    let mut recorded = Vec::new();
    for i in warm_up..warm_up + commits {
        mix.transaction(&conn, i)?;
        recorded.extend(recorder.record()?);
    }
    drop(conn);
    Ok(recorded)
}
