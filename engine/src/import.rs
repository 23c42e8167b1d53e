//! Importing a SQLite file: it becomes TxId 1 of a new database, as an image.
//!
//! The file is hostile until it is proven: its header is read first, so that what is no database is refused
//! with the reason; then SQLite opens a private copy with untrusted schema and cell size checks, recovers a WAL
//! or rollback journal that lay beside it, and must call it sound. Nothing is created before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tidelog_archive::image::{ImageMeta, ImageWriter};
use tidelog_archive::key::Key;
use tidelog_wal::block::Compressor;
use tidelog_wal::record::{CommitRecord, ObjectRef, RecordBody, RecordHeader, TimeFlag};
use tidelog_wal::{Chain, Digest, PageCount, PageNo, PageSize, Position, Timestamp, TxId, chain};

use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::database::state::DbState;
use crate::database::{DbMeta, incarnation_name};
use crate::error::{Code, Error};
use crate::files::DbPaths;
use crate::gap::Break;
use crate::journal::chunk::{ChunkDatabase, WalPosition};
use crate::journal::{Append, Payload};
use crate::upload::{Pieces, upload};

const HEADER: &[u8; 16] = b"SQLite format 3\0";

/// A file that was proven, in the folder of the database it will be.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) incarnation: String,
    pub(crate) page_size: PageSize,
    pub(crate) pages: PageCount,
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::ImportInvalid, why)
}

/// Reads the header of a file and says why it is no database, if it is none.
pub(crate) fn check_header(file: &Path) -> Result<PageSize, Error> {
    use std::io::Read as _;
    let io = |e| Error::io(format!("read {}", file.display()), e);
    let mut opened = std::fs::File::open(file).map_err(io)?;
    let len = opened.metadata().map_err(io)?.len();
    if len == 0 {
        return Err(invalid(
            "the file is empty: a SQLite database has at least one page",
        ));
    }
    let mut header = [0; 100];
    if len < 100 {
        return Err(invalid(format!(
            "the file has {len} bytes: it is cut off or no SQLite database"
        )));
    }
    opened.read_exact(&mut header).map_err(io)?;
    if header[..16] != *HEADER {
        return Err(invalid(
            "the file does not begin as a SQLite database does: it is none, or it is encrypted",
        ));
    }
    let coded = u16::from_be_bytes([header[16], header[17]]);
    let size = PageSize::from_header(coded).ok_or_else(|| {
        invalid(format!(
            "the file names the page size {coded}, which SQLite has not"
        ))
    })?;
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let valid_for = header[92..96] == header[24..28];
    let wal = DbPaths::of(file).wal.exists() || journal_of(file).exists();
    if valid_for && !wal && len < PageCount::new(pages).bytes(size) {
        return Err(invalid(format!(
            "the file has {len} bytes where its header says {} pages of {}: it is cut off",
            pages,
            size.get()
        )));
    }
    Ok(size)
}

fn journal_of(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push("-journal");
    PathBuf::from(path)
}

/// Copies the file into the folder of database `meta`'s id, recovers and proves it.
pub(crate) fn prove(
    core: &Core,
    id: tidelog_wal::DatabaseId,
    file: &Path,
) -> Result<Proven, Error> {
    check_header(file)?;
    let proven = prove_beside(core, id, file);
    if proven.is_err() {
        // Nothing is left of what was refused.
        let _ = std::fs::remove_dir_all(core.database_folder(id));
    }
    proven
}

/// As [`prove`], in the folder of a database that is there: what stands in it stays.
pub(crate) fn prove_beside(
    core: &Core,
    id: tidelog_wal::DatabaseId,
    file: &Path,
) -> Result<Proven, Error> {
    let folder = core.database_folder(id);
    let incarnation = incarnation_name(core);
    let files = folder.join(&incarnation);
    let io = |e| Error::io("import a file", e);
    core.parts.disk.create_folder(&folder).map_err(io)?;
    core.parts.disk.create_folder(&files).map_err(io)?;
    let proven = prove_at(file, &DbPaths::in_folder(&files).database);
    if proven.is_err() {
        let _ = std::fs::remove_dir_all(&files);
    }
    let (page_size, pages) = proven?;
    Ok(Proven {
        incarnation,
        page_size,
        pages,
    })
}

/// Copies the file to `to`, recovers and proves the copy: everything stands in the one file then, synced.
pub(crate) fn prove_at(file: &Path, to: &Path) -> Result<(PageSize, PageCount), Error> {
    let page_size = check_header(file)?;
    let io = |e| Error::io("import a file", e);
    let to = DbPaths::of(to);
    let copied = (|| {
        std::fs::copy(file, &to.database)?;
        // What a program that died left beside it belongs to it: SQLite recovers it into the copy.
        for (from, to) in [
            (DbPaths::of(file).wal, to.wal.clone()),
            (journal_of(file), journal_of(&to.database)),
        ] {
            if from.exists() {
                std::fs::copy(from, to)?;
            }
        }
        Ok(())
    })();
    copied.map_err(io)?;
    let pages = check(&to.database)?;
    std::fs::File::open(&to.database)
        .and_then(|f| f.sync_all())
        .and_then(|()| crate::disk::sync_parent(&to.database))
        .map_err(io)?;
    Ok((page_size, pages))
}

/// Has SQLite recover, prove and switch the copy to WAL mode, with everything in the one file.
fn check(file: &Path) -> Result<PageCount, Error> {
    let refused = |e: rusqlite::Error| match &e {
        rusqlite::Error::SqliteFailure(f, _) if f.code == rusqlite::ErrorCode::DiskFull => {
            Error::new(Code::DiskFull, "no room to look at the file").caused_by(e)
        }
        _ => invalid(format!("SQLite refuses the file: {e}")),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(refused)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
        .and_then(|_| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true))
        .and_then(|_| connection.execute_batch("PRAGMA cell_size_check=ON; PRAGMA mmap_size=0"))
        .map_err(refused)?;
    let verdict: String = last(&connection, "PRAGMA quick_check(1)").map_err(refused)?;
    if verdict != "ok" {
        return Err(invalid(format!("the database is damaged: {verdict}")));
    }
    let mode: String = last(&connection, "PRAGMA journal_mode=WAL").map_err(refused)?;
    if mode != "wal" {
        return Err(invalid(format!(
            "the database stays in journal mode {mode}"
        )));
    }
    let pages: u32 = last(&connection, "PRAGMA page_count").map_err(refused)?;
    // Closing the only connection moves everything into the file and removes the WAL.
    connection.close().map_err(|(_, e)| refused(e))?;
    if DbPaths::of(file).wal.exists() {
        return Err(invalid(
            "the WAL beside the file could not be moved into it",
        ));
    }
    Ok(PageCount::new(pages))
}

/// Stores the proven file as an image and journals TxId 1, which names it. The manifest exists already.
pub(crate) async fn commit(core: &Arc<Core>, meta: DbMeta, proven: Proven) -> Result<(), Error> {
    let before = Before {
        txid: TxId::ZERO,
        chain: chain::genesis(meta.id),
        pages: PageCount::ZERO,
        time: None,
    };
    record_image(core, meta, proven, before).await.map(drop)
}

/// What an image record follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    /// The commit before, zero before the first.
    pub(crate) txid: TxId,
    /// The chain up to it.
    pub(crate) chain: Chain,
    /// Pages before.
    pub(crate) pages: PageCount,
    /// The ordered time of the commit before.
    pub(crate) time: Option<Timestamp>,
}

/// Stores the proven file as an image, journals the next commit, which names it, and has the state file name the
/// proven file.
pub(crate) async fn record_image(
    core: &Arc<Core>,
    meta: DbMeta,
    proven: Proven,
    before: Before,
) -> Result<DbState, Error> {
    let nonce = core.remote.nonces.next();
    let txid = before.txid.next();
    let key = Key::image(meta.namespace, meta.id, txid, nonce).to_string();
    let file =
        DbPaths::in_folder(&core.database_folder(meta.id).join(&proven.incarnation)).database;
    let wall = core.parts.clock.wall();
    let time = before.time.map_or(wall, |time| time.ordered_next(wall));
    let (writer_core, pages) = (Arc::clone(core), proven.pages);
    let write = move |pieces: &Pieces| {
        let digest = digest_of(&file, &meta, pages)?;
        let image = ImageMeta {
            namespace: meta.namespace,
            database: meta.id,
            page_size: meta.page_size,
            seed: meta.seed,
            // The image comes before its record, whose chain it cannot know.
            position: Position {
                term: writer_core.term(),
                txid,
                chain: Chain::default(),
            },
            time,
            n: pages,
            digest,
        };
        let stamp = writer_core.remote.stamp(meta.namespace, meta.id)?;
        let compressor = Compressor::new(writer_core.settings.settle_level);
        let mut writer = ImageWriter::new(image, stamp, compressor);
        each_page(&file, &meta, pages, |page, bytes| {
            writer
                .page(page, bytes)
                .map_err(|e| Error::internal("write an image").caused_by(e))?;
            pieces.push(writer.take())
        })?;
        let (finished, _, _) = writer
            .finish()
            .map_err(|e| Error::internal("write an image").caused_by(e))?;
        pieces.push(finished.bytes.clone())?;
        Ok((finished, digest))
    };
    crash_point!("import.before_image");
    let (finished, digest) = upload(core, &key, write).await?;
    crash_point!("import.after_image");
    let header = RecordHeader {
        term: core.term(),
        txid,
        time,
        wall,
        flag: TimeFlag::Live,
        n_before: before.pages,
        n_after: proven.pages,
        digest,
        annotations: Vec::new(),
    };
    let object = ObjectRef {
        key,
        len: finished.len,
        blake3: finished.blake3,
    };
    let record = CommitRecord {
        header,
        body: RecordBody::Image(object),
    };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let chain = chain::step(before.chain, &bytes);
    if let RecordBody::Image(object) = &record.body {
        let found = Break::of_record(&record.header, object, chain, before.time)?;
        core.breaks.add(meta.id, found);
    }
    let head = Head {
        term: core.term(),
        txid,
        chain,
        pages: proven.pages,
        digest,
        time,
    };
    let state = DbState {
        meta,
        incarnation: proven.incarnation,
        head,
        clean: true,
        stamp: None,
        wal: None,
        durable: None,
    };
    let database = ChunkDatabase {
        id: meta.id,
        namespace: meta.namespace,
        page_size: meta.page_size,
        seed: meta.seed,
        chain_before: before.chain,
    };
    let append = Append {
        txid,
        wal: WalPosition::default(),
        chain,
        payload: Payload::Record(&bytes),
    };
    crash_point!("import.before_append");
    core.journal.append(&database, &[append])?;
    crash_point!("import.before_state");
    state.write(core.parts.disk.as_ref(), &core.database_folder(meta.id))?;
    core.journal.set_checkpointed(meta.id, txid);
    Ok(state)
}

/// The last value a pragma answers, stepped to its end: an unfinished one holds its transaction open.
fn last<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> rusqlite::Result<T> {
    let mut prepared = connection.prepare(sql)?;
    let mut rows = prepared.query([])?;
    let mut value = None;
    while let Some(row) = rows.next()? {
        value = Some(row.get(0)?);
    }
    value.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

fn each_page(
    file: &Path,
    meta: &DbMeta,
    pages: PageCount,
    mut each: impl FnMut(PageNo, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    use std::os::unix::fs::FileExt as _;
    let io = |e| Error::io(format!("read {}", file.display()), e);
    let opened = std::fs::File::open(file).map_err(io)?;
    let mut image = vec![0; meta.page_size.bytes()];
    for page in pages.pages(meta.page_size) {
        opened
            .read_exact_at(&mut image, page.offset(meta.page_size))
            .map_err(io)?;
        each(page, &image)?;
    }
    Ok(())
}

fn digest_of(file: &Path, meta: &DbMeta, pages: PageCount) -> Result<Digest, Error> {
    let mut digest = Digest::empty(meta.page_size).resize(PageCount::ZERO, pages, meta.page_size);
    each_page(file, meta, pages, |page, image| {
        digest = digest.replace(
            tidelog_wal::digest::PageHash::ABSENT,
            meta.seed.page(page, image),
        );
        Ok(())
    })?;
    Ok(digest)
}
