//! The engine's own descriptors of a database's files, and the only place that holds any.
//!
//! Closing *any* descriptor of a database file, its WAL or its wal-index drops the POSIX locks that SQLite
//! holds for this whole process (HAZARDS W0a). So the engine opens each once, after the first connection,
//! and closes them after the last connection is closed: [`DbFiles`] is dropped last.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidelog_wal::cursor::ReadAt;
use tidelog_wal::frame::{FRAME_HEADER_LEN, FrameHeader, FrameNo};
use tidelog_wal::page::{PageNo, PageSize};
use tidelog_wal::shm::{SHM_HEADER_LEN, ShmError, WalIndexHeader};

/// Name of the SQLite file in a database's folder.
pub const DATABASE_FILE: &str = "db.sqlite";

/// How often an unstable wal-index header is read again at once: a writer publishes it within microseconds.
const HEADER_TRIES: u32 = 1_000;
/// How often it is read again after a pause: a machine that is busy may leave a writer's thread standing in the middle
/// of it for long, and a database whose header cannot be read is closed.
const HEADER_PAUSES: u32 = 10_000;
const HEADER_PAUSE: Duration = Duration::from_millis(1);

/// The paths of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbPaths {
    /// The SQLite file.
    pub database: PathBuf,
    /// Its WAL.
    pub wal: PathBuf,
    /// Its wal-index.
    pub shm: PathBuf,
}

impl DbPaths {
    /// The paths in this folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self::of(&folder.join(DATABASE_FILE))
    }

    /// The paths of this SQLite file.
    pub fn of(database: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        Self {
            database: database.to_owned(),
            wal: beside("-wal"),
            shm: beside("-shm"),
        }
    }
}

/// Open descriptors of the files of a database that has at least one connection.
#[derive(Debug)]
pub struct DbFiles {
    database: File,
    wal: File,
    shm: File,
}

impl DbFiles {
    /// Opens the three files, which the first connection has made.
    pub fn open(paths: &DbPaths) -> io::Result<Self> {
        Ok(Self {
            database: File::open(&paths.database)?,
            wal: File::open(&paths.wal)?,
            shm: File::open(&paths.shm)?,
        })
    }

    /// The WAL.
    pub const fn wal(&self) -> &File {
        &self.wal
    }

    /// Makes every frame that was written durable.
    pub fn sync_wal(&self) -> io::Result<()> {
        self.wal.sync_data()
    }

    /// What the wal-index publishes now. Safe while writers run.
    #[expect(
        clippy::disallowed_methods,
        reason = "no condition tells when the thread that publishes it goes on; where there is one thread nobody waits"
    )]
    pub fn header(&self) -> io::Result<WalIndexHeader> {
        let mut bytes = [0; SHM_HEADER_LEN];
        let mut last = None;
        for attempt in 0..HEADER_TRIES + HEADER_PAUSES {
            let have = self.shm.read_full_at(0, &mut bytes)?;
            match WalIndexHeader::decode(bytes.get(..have).unwrap_or_default()) {
                Ok(header) => return Ok(header),
                Err(error @ ShmError::Unstable { .. }) => last = Some(error),
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            if attempt >= HEADER_TRIES {
                std::thread::sleep(HEADER_PAUSE);
            } else if attempt > 16 {
                std::thread::yield_now();
            }
        }
        let reason = last.map_or_else(|| "never read".to_owned(), |error| error.to_string());
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("wal-index header: {reason}"),
        ))
    }

    /// Reads a page from the database file; what lies beyond the file's end is zeros.
    pub fn page(&self, page: PageNo, size: PageSize, image: &mut [u8]) -> io::Result<()> {
        self.pages(page, size, image)
    }

    /// Reads the pages from `first` on that fill `run`; what lies beyond the file's end is zeros.
    pub fn pages(&self, first: PageNo, size: PageSize, run: &mut [u8]) -> io::Result<()> {
        let have = self.database.read_full_at(first.offset(size), run)?;
        if let Some(rest) = run.get_mut(have..) {
            rest.fill(0);
        }
        Ok(())
    }

    /// Reads the page of a WAL frame.
    pub fn frame(&self, frame: FrameNo, size: PageSize, image: &mut [u8]) -> io::Result<()> {
        let have = self.wal.read_full_at(frame.image_offset(size), image)?;
        if have == image.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// The cumulative checksum that stands in a WAL frame.
    pub fn frame_checksum(&self, frame: FrameNo, size: Option<PageSize>) -> io::Result<[u32; 2]> {
        let size = size.unwrap_or(PageSize::DEFAULT);
        let mut head = [0; FRAME_HEADER_LEN];
        if self.wal.read_full_at(frame.offset(size), &mut head)? != head.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = FrameHeader::decode(&head)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok([header.checksum.s0, header.checksum.s1])
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Goal: a writer that stands still in the middle of publishing is waited for. Method: the first copy of a real
    /// header is made unlike the second, and put right only after so many milliseconds as no number of reads at once
    /// takes.
    #[test]
    fn a_header_that_is_being_published_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = DbPaths::in_folder(folder.path());
        let connection = rusqlite::Connection::open(&paths.database).expect("open");
        let made = connection.execute_batch("pragma journal_mode=wal; create table t(a)");
        made.expect("a commit");
        let files = DbFiles::open(&paths).expect("the files");
        let published = files.header().expect("nobody writes");
        let shm = File::options().read(true).write(true).open(&paths.shm);
        let (shm, mut byte) = (shm.expect("open"), [0]);
        shm.read_exact_at(&mut byte, 8).expect("of iChange");
        shm.write_all_at(&[!byte[0]], 8).expect("torn");
        std::thread::scope(|scope| {
            let header = scope.spawn(|| files.header());
            let (_sender, nothing) = std::sync::mpsc::channel::<()>();
            let waited = nothing.recv_timeout(Duration::from_millis(300));
            waited.expect_err("nobody sends");
            assert!(!header.is_finished(), "it does not give up");
            shm.write_all_at(&byte, 8).expect("published");
            let read = header.join().expect("no panic").expect("read");
            assert_eq!(read, published);
        });
    }
}
