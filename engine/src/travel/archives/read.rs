//! Reading an archive back: its compressed frame, whole or in ranges, and proven. That of a sealed archive is fetched
//! and opened block by block: a range costs its own blocks and the index.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::{FormatError, HEADER_LEN, TAIL_GUESS, TailRange};
use tidelog_archive::export::SealedArchive;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{Digest, DigestSeed, PageCount, PageNo, PageSize};
use tokio::sync::mpsc;

use super::{Archive, Format, PIECE, rfc3339};
use crate::boxed;
use crate::core::Core;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::executor::{blocking, piped};
use crate::node::start::store_error;
use crate::operations::{Begins, Handle, NewOperation, OperationType, Task};
use crate::scratch;
use crate::sealing::{key_error, refused};
use crate::travel::inspect::{Check, hex, integrity};
use crate::travel::verify::Outcome;

/// Bytes fetched at a time.
const FETCH: u64 = 4 << 20;

/// An archive's compressed frame, and what to tell of it.
#[derive(Debug)]
pub struct Content {
    /// The archive.
    pub archive: Archive,
    core: std::sync::Arc<Core>,
}

impl Content {
    /// The bytes of a range, fetched as they are taken.
    pub fn stream(
        &self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static + use<> {
        stored(&self.core, &self.archive, range)
    }
}

/// Where a stream of a frame stands.
struct Fetch {
    core: std::sync::Arc<Core>,
    archive: Archive,
    /// What is left to give.
    range: Range<u64>,
    /// The index of a sealed archive, once it was read.
    index: Option<SealedArchive>,
}

fn stored(
    core: &std::sync::Arc<Core>,
    archive: &Archive,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static + use<> {
    let fetch = Fetch {
        core: std::sync::Arc::clone(core),
        archive: archive.clone(),
        range,
        index: None,
    };
    futures::stream::try_unfold(fetch, |mut fetch| async move {
        if fetch.range.is_empty() {
            return Ok(None);
        }
        let bytes = match fetch.archive.sealed()? {
            None => fetch.plain().await?,
            Some(named) => fetch.sealed(&named).await?,
        };
        fetch.range.start += bytes.len() as u64;
        Ok(Some((bytes, fetch)))
    })
}

impl Fetch {
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let bytes = self.core.remote.store.get_range(key, range).await;
        bytes.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt => {
                Error::new(Code::ObjectCorrupt, format!("{key}: {error}")).caused_by(error)
            }
            _ => store_error("read an archive", error),
        })
    }

    async fn plain(&self) -> Result<Bytes, Error> {
        let end = self.range.end.min(self.range.start + FETCH);
        let key = self.archive.key().to_string();
        self.get(&key, self.range.start..end).await
    }

    async fn sealed(&mut self, named: &ObjectRef) -> Result<Bytes, Error> {
        let key = &named.key;
        let index = match self.index.take() {
            Some(index) => index,
            None => self.open(named).await?,
        };
        let short = || {
            let what = format!("{key} holds {} bytes of a frame", index.raw_len());
            Error::new(Code::ObjectCorrupt, what)
        };
        let (blocks, at) = index.blocks(&self.range, FETCH).ok_or_else(short)?;
        let stored = self.get(key, at).await?;
        let opened = index.open_blocks(&blocks, &stored, &self.range);
        let opened = opened.map_err(|error| refused(key, error))?;
        if opened.is_empty() {
            return Err(short());
        }
        self.index = Some(index);
        Ok(opened.into())
    }

    /// Reads the index of a sealed archive, its key fetched if need be.
    async fn open(&self, named: &ObjectRef) -> Result<SealedArchive, Error> {
        let store = &self.core.remote.store;
        let head = self.get(&named.key, 0..HEADER_LEN as u64).await?;
        store.unlock_head(&head).await.map_err(key_error)?;
        let ids = (self.archive.namespace, self.archive.database);
        let mut from = named.len.saturating_sub(TAIL_GUESS);
        loop {
            let tail = self.get(&named.key, from..named.len).await?;
            let opened =
                SealedArchive::open_tail(&head, &tail, ids, self.archive.id, named, store.keys());
            match opened.map_err(|error| refused(&named.key, error))? {
                Ok(index) => return Ok(index),
                Err(TailRange(range)) if range.start < from => from = range.start,
                Err(_) => {
                    let what = format!("{}: its index is out of reach", named.key);
                    return Err(Error::new(Code::ObjectCorrupt, what));
                }
            }
        }
    }
}

/// Reads, hashing.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hash.update(buf.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read)
    }
}

/// What is wrong with an archive.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

/// Fetches an archive, decompresses it into a new file at `path`, synced, and proves length and SHA-256 of both sides.
/// The inner error says what is wrong with the archive; the outer one, why that cannot be told.
pub(crate) async fn unpack(
    core: &std::sync::Arc<Core>,
    archive: &Archive,
    path: &Path,
    task: &Task,
) -> Result<Result<(), Wrong>, Error> {
    let io = |e| Error::io("unpack an archive", e);
    let file = File::create_new(path).map_err(io)?;
    match unpack_into(core, archive, file, task).await? {
        Ok(file) => {
            let synced = move || file.sync_all().map_err(io);
            blocking(core.executor(), synced).await.map(Ok)
        }
        Err(wrong) => Ok(Err(wrong)),
    }
}

/// The same into something to write to, which is handed back.
pub(crate) async fn unpack_into<W: io::Write + Send + 'static>(
    core: &std::sync::Arc<Core>,
    archive: &Archive,
    out: W,
    task: &Task,
) -> Result<Result<W, Wrong>, Error> {
    let document = archive.document.clone();
    let key = archive.key().to_string();
    let head = match core.remote.store.head(&key).await {
        Ok(head) => head,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(
                Error::new(Code::ObjectCorrupt, format!("{key} is missing")).caused_by(error)
            );
        }
        Err(error) => return Err(store_error("read an archive", error)),
    };
    if head.length != archive.object_bytes() {
        let (found, wanted) = (head.length, archive.object_bytes());
        return Ok(Err(Wrong(format!("{key} has {found} bytes of {wanted}"))));
    }
    task.phase("reading", document.bytes)?;
    let mut fetched = Box::pin(stored(core, archive, 0..document.stored_bytes));
    let (pieces, taken) = mpsc::channel(2);
    let fetching = async move {
        while let Some(piece) = fetched.next().await {
            if pieces.send(piece).await.is_err() {
                break;
            }
        }
    };
    let watched = task.clone();
    let reader = Pieces {
        taken,
        at: Bytes::new(),
    };
    let writing = piped(move || Ok(write_plain(reader, &document, out, &watched)));
    let ((), unpacked) = futures::join!(fetching, writing);
    task.check()?;
    match unpacked? {
        Ok(proven) => Ok(proven),
        // A failure of the store comes back as what it was.
        Err(error) => match error.downcast::<Error>() {
            // The object is there, and is not what was sealed.
            Ok(ours) if is_refusal(&ours) => Ok(Err(Wrong(ours.to_string()))),
            Ok(ours) => Err(ours),
            Err(error) => Err(Error::io("unpack an archive", error)),
        },
    }
}

/// Whether an error says that the bytes of a sealed object are not what was written.
fn is_refusal(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    error.code() == Code::ObjectCorrupt
        && source.is_some_and(<dyn std::error::Error>::is::<FormatError>)
}

/// Pieces of a fetch as something to read from.
struct Pieces {
    taken: mpsc::Receiver<Result<Bytes, Error>>,
    at: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at.is_empty() {
            match self.taken.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.at = piece.map_err(io::Error::other)?,
            }
        }
        let taken = self.at.split_to(self.at.len().min(buf.len()));
        if let Some(to) = buf.get_mut(..taken.len()) {
            to.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}

fn write_plain<W: io::Write>(
    reader: impl Read,
    document: &super::Document,
    mut out: W,
    task: &Task,
) -> io::Result<Result<W, Wrong>> {
    let mut stored = Hashing::new(reader);
    let (mut bytes, mut hash) = (0_u64, Sha256::new());
    let mut piece = vec![0; PIECE];
    {
        let mut decoder = zstd::Decoder::new(&mut stored)?;
        loop {
            let read = match decoder.read(&mut piece) {
                Ok(read) => read,
                // The store's failures come with an error inside; what zstd refuses has none of ours.
                Err(error)
                    if error
                        .get_ref()
                        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) =>
                {
                    return Err(error);
                }
                Err(error) => return Ok(Err(Wrong(format!("it does not decompress: {error}")))),
            };
            let Some(plain) = piece.get(..read).filter(|plain| !plain.is_empty()) else {
                break;
            };
            bytes += plain.len() as u64;
            if bytes > document.bytes {
                let what = format!("it holds more than the {} bytes recorded", document.bytes);
                return Ok(Err(Wrong(what)));
            }
            hash.update(plain);
            out.write_all(plain)?;
            task.progress(bytes);
            if task.check().is_err() {
                return Ok(Ok(out));
            }
        }
    }
    // Bytes behind the compressed frame are part of what was recorded, too.
    io::copy(&mut stored, &mut io::sink())?;
    let sums = [
        (
            "stored bytes",
            hex(&stored.hash.finalize()),
            &document.stored_sha256,
        ),
        ("plain file", hex(&hash.finalize()), &document.sha256),
    ];
    for (what, found, wanted) in sums {
        if found != *wanted {
            let what = format!("SHA-256 of the {what} is {found}, recorded is {wanted}");
            return Ok(Err(Wrong(what)));
        }
    }
    Ok(Ok(out))
}

/// The state digest of a finished file.
pub(crate) fn digest_of_file(
    file: &Path,
    size: PageSize,
    pages: PageCount,
    seed: DigestSeed,
) -> Result<Digest, Error> {
    use std::os::unix::fs::FileExt as _;
    let io = |e| Error::io("read a scratch file", e);
    let opened = File::open(file).map_err(io)?;
    let mut image = vec![0; size.bytes()];
    Digest::of(size, pages, |page: PageNo| {
        opened
            .read_exact_at(&mut image, page.offset(size))
            .map_err(io)?;
        Ok(seed.page(page, &image))
    })
}

impl Database {
    /// The content of an archive: its compressed frame.
    #[boxed]
    pub async fn archive_content(&self, id: &str) -> Result<Content, Error> {
        Ok(Content {
            archive: self.archive(id).await?,
            core: std::sync::Arc::clone(&self.engine().inner.core),
        })
    }

    /// Begins to prove an archive: every byte of it, its state digest, and what SQLite says of it.
    #[boxed]
    pub async fn archive_verify(&self, id: &str, token: Option<String>) -> Result<Handle, Error> {
        let archive = self.archive(id).await?;
        let row = self.row();
        let operation = NewOperation {
            kind: OperationType::Verification,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: false,
            token,
            note: json!({ "archive": archive.id.to_string() }),
            begins: Begins::Stored,
        };
        let database = self.clone();
        let work = |task| async move { database.verify_archive(archive, task).await };
        self.engine().operate(operation, work).await
    }

    async fn verify_archive(&self, archive: Archive, task: Task) -> Result<Json, Error> {
        let inner = &self.engine().inner;
        let mut covers = Vec::new();
        let (outcome, detail) = match prove(&inner.core, &archive, &task, &mut covers).await {
            Ok(None) => (Outcome::Verified, None),
            Ok(Some(Wrong(what))) => (Outcome::Mismatch, Some(what)),
            Err(error) if error.code() == Code::ObjectCorrupt => {
                (Outcome::Error, Some(error.to_string()))
            }
            Err(error) => {
                task.check()?;
                (Outcome::Inconclusive, Some(error.to_string()))
            }
        };
        let at = rfc3339(self.engine().now());
        let said = json!({ "at": at, "outcome": outcome.as_str(), "detail": detail });
        inner.system.archive_verified(archive.id, &said).await?;
        Ok(json!({
            "archive": archive.id.to_string(),
            "outcome": outcome.as_str(),
            "detail": detail,
            "covers": covers,
        }))
    }
}

/// What is wrong with an archive, if anything is. What was looked at is added to `covers`.
async fn prove(
    core: &std::sync::Arc<Core>,
    archive: &Archive,
    task: &Task,
    covers: &mut Vec<&'static str>,
) -> Result<Option<Wrong>, Error> {
    let folder = scratch::folder(core, "a verification", archive.document.bytes)?;
    let file = folder.path().join("plain");
    let unpacked = unpack(core, archive, &file, task).await?;
    covers.extend(["stored bytes", "plain bytes"]);
    if let Err(wrong) = unpacked {
        return Ok(Some(wrong));
    }
    if archive.document.format == Format::Sql {
        return Ok(None);
    }
    task.phase("checking", 0)?;
    covers.extend(["state digest", "integrity_check"]);
    let (document, watched) = (archive.document.clone(), task.clone());
    blocking(core.executor(), move || look(&file, &document, &watched)).await
}

fn look(file: &Path, document: &super::Document, task: &Task) -> Result<Option<Wrong>, Error> {
    let seed = u64::from_str_radix(&document.digest_seed, 16).ok();
    let size = PageSize::new(document.page_size);
    let (Some(seed), Some(size)) = (seed, size) else {
        return Ok(Some(Wrong(
            "the side file has no page size or seed".to_owned(),
        )));
    };
    let pages = PageCount::new(document.page_count);
    let found = digest_of_file(file, size, pages, DigestSeed::new(seed))?.to_string();
    if found != document.digest {
        let wanted = &document.digest;
        let what = format!("the state has digest {found}, recorded is {wanted}");
        return Ok(Some(Wrong(what)));
    }
    let found = integrity(file, Check::Full, task)?;
    let fine = found == "ok" || found == document.integrity;
    Ok((!fine).then(|| Wrong(format!("SQLite finds it damaged: {found}"))))
}
