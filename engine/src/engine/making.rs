//! New databases: empty ones, and those made of a SQLite file.
//!
//! A database is made in this order: its manifest, its first commit (the record before the files), its row. Until the row
//! names it nobody meets it: what a crash leaves before that is a history without a name. A [`Draft`] stands between the
//! last two, for callers that write the row together with something else.

use std::sync::Arc;

use tidelog_wal::delta::Delta;
use tidelog_wal::record::{RecordHeader, RecordKind, TimeFlag};
use tidelog_wal::{
    DatabaseId, Digest, DigestSeed, NamespaceId, PageCount, PageNo, PageSize, TxId, chain,
};

use super::{Database, Engine};
use crate::boxed;
use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::database::state::DbState;
use crate::database::{DbMeta, incarnation_name};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::files::DbPaths;
use crate::import;
use crate::journal::chunk::{ChunkDatabase, WalPosition};
use crate::journal::{Append, Payload};
use crate::sql::connection::{AutoVacuum, create};
use crate::system::databases::DatabaseRow;
use crate::system::names::check_name;
use crate::system::requests::Record;

/// A database to be made.
#[derive(Debug, Clone)]
pub struct NewDatabase {
    /// Its name.
    pub name: String,
    /// Its page size.
    pub page_size: PageSize,
    /// How it gives pages back.
    pub auto_vacuum: AutoVacuum,
}

impl NewDatabase {
    /// A database with SQLite's defaults.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            page_size: PageSize::DEFAULT,
            auto_vacuum: AutoVacuum::None,
        }
    }
}

/// A database whose history exists and whose name does not: dropped, nobody ever meets it.
#[derive(Debug)]
pub struct Draft(pub(crate) Database);

impl Draft {
    /// The database it will be.
    pub const fn database(&self) -> &Database {
        &self.0
    }

    /// Gives it its name, in one transaction with `record`, the answer to repeat.
    #[boxed]
    pub async fn publish(self, record: Option<Record>) -> Result<Database, Error> {
        let system = &self.0.engine.inner.system;
        system.database_add(&self.0.row, record).await?;
        Ok(self.0)
    }
}

impl Engine {
    /// Makes a database.
    #[boxed]
    pub async fn database_create(
        &self,
        namespace: NamespaceId,
        new: NewDatabase,
    ) -> Result<Database, Error> {
        self.database_draft(namespace, new)
            .await?
            .publish(None)
            .await
    }

    /// Makes the history of a database that has no name yet: [`Draft::publish`] gives it one.
    #[boxed]
    pub async fn database_draft(
        &self,
        namespace: NamespaceId,
        new: NewDatabase,
    ) -> Result<Draft, Error> {
        check_name("database", &new.name)?;
        self.check_free(namespace, &new.name).await?;
        let id = DatabaseId::from_bytes(self.inner.core.parts.entropy.bytes16());
        let meta = self.make_database(namespace, id, &new).await?;
        Ok(self.draft(meta, &new.name))
    }

    /// Makes a database of an existing SQLite file, of any page size: its state becomes TxId 1. A WAL or
    /// rollback journal beside the file is recovered into the copy; the file itself is not touched.
    ///
    /// [`Code::ImportInvalid`] says what is wrong with the file; nothing is created then.
    #[boxed]
    pub async fn database_import(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
    ) -> Result<Database, Error> {
        self.database_import_draft(namespace, name, file)
            .await?
            .publish(None)
            .await
    }

    /// The same without its name yet: [`Draft::publish`] gives it.
    #[boxed]
    pub async fn database_import_draft(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
    ) -> Result<Draft, Error> {
        self.check_new(namespace, name).await?;
        let id = DatabaseId::from_bytes(self.inner.core.parts.entropy.bytes16());
        self.import_as(namespace, name, file, id).await
    }

    /// Refuses a name for a new database that is not allowed or in use.
    pub(crate) async fn check_new(&self, namespace: NamespaceId, name: &str) -> Result<(), Error> {
        check_name("database", name)?;
        self.check_free(namespace, name).await
    }

    /// Makes a database with this id of an existing SQLite file.
    pub(crate) async fn import_as(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
        id: DatabaseId,
    ) -> Result<Draft, Error> {
        let core = Arc::clone(&self.inner.core);
        let mut seed = [0; 8];
        core.parts.entropy.fill(&mut seed);
        let seed = DigestSeed::new(u64::from_le_bytes(seed));
        let (proving, from) = (Arc::clone(&core), file.to_owned());
        let proven = blocking(core.executor(), move || import::prove(&proving, id, &from)).await?;
        let meta = DbMeta {
            id,
            namespace,
            page_size: proven.page_size,
            seed,
        };
        core.remote.create_manifest(&meta, name).await?;
        self.inner.registry.note_made(id);
        import::commit(&core, meta, proven).await?;
        crash_point!("import.before_row");
        Ok(self.draft(meta, name))
    }

    /// Names a database that was made; if its name was taken meanwhile, it is kept as a deleted one, so that
    /// nothing stands in the store without a row.
    pub(crate) async fn publish_or_hide(&self, draft: Draft) -> Result<Database, Error> {
        let row = draft.0.row.clone();
        let published = draft.publish(None).await;
        if let Err(error) = &published
            && error.code() == Code::NameTaken
        {
            self.inner.system.database_add_hidden(&row).await?;
        }
        published
    }

    pub(crate) async fn check_free(&self, namespace: NamespaceId, name: &str) -> Result<(), Error> {
        match self.inner.system.database(namespace, name).await {
            Ok(_) => {
                let what = format!("there is a database {name:?} already");
                Err(Error::new(Code::NameTaken, what))
            }
            Err(error) if error.code() == Code::DatabaseNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn draft(&self, meta: DbMeta, name: &str) -> Draft {
        let ids = (meta.namespace, meta.id);
        let row = DatabaseRow::plain(ids, name.to_owned(), meta.page_size, self.now());
        Draft(Database {
            engine: self.clone(),
            row,
        })
    }

    /// Makes the files and the first commit of a database: TxId 1, the change from nothing.
    pub(crate) async fn make_database(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        new: &NewDatabase,
    ) -> Result<DbMeta, Error> {
        let core = Arc::clone(&self.inner.core);
        let mut seed = [0; 8];
        core.parts.entropy.fill(&mut seed);
        let seed = DigestSeed::new(u64::from_le_bytes(seed));
        let meta = DbMeta {
            id,
            namespace,
            page_size: new.page_size,
            seed,
        };
        let auto_vacuum = new.auto_vacuum;
        self.inner
            .core
            .remote
            .create_manifest(&meta, &new.name)
            .await?;
        self.inner.registry.note_made(id);
        blocking(core.executor(), move || {
            first_commit(&core, meta, auto_vacuum)
        })
        .await?;
        Ok(meta)
    }
}

/// Makes an empty database and journals its creation.
pub(super) fn first_commit(
    core: &Core,
    meta: DbMeta,
    auto_vacuum: AutoVacuum,
) -> Result<(), Error> {
    let folder = core.database_folder(meta.id);
    let incarnation = incarnation_name(core);
    let files = folder.join(&incarnation);
    let io = |e| Error::io("make a database", e);
    core.parts.disk.create_folder(&files).map_err(io)?;
    let path = DbPaths::in_folder(&files).database;
    create(&path, meta.page_size, auto_vacuum)
        .map_err(|e| Error::new(Code::Internal, "make a database").caused_by(e))?;
    std::fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| crate::disk::sync_parent(&path))
        .map_err(io)?;
    let bytes = std::fs::read(&path).map_err(io)?;
    let size = meta.page_size;
    let pages = PageCount::new(u32::try_from(bytes.len() / size.bytes()).unwrap_or(0));
    let image = |page: PageNo| {
        let start = usize::try_from(page.offset(size)).unwrap_or(usize::MAX);
        bytes.get(start..start + size.bytes()).unwrap_or_default()
    };
    let delta = Delta::between(size, (PageCount::ZERO, image), (pages, image));
    let digest = Digest::of(size, pages, |page| {
        Ok::<_, std::convert::Infallible>(meta.seed.page(page, image(page)))
    })
    .unwrap_or_else(|never| match never {});
    let wall = core.parts.clock.wall();
    let header = RecordHeader {
        term: core.term(),
        txid: TxId::FIRST,
        time: wall,
        wall,
        flag: TimeFlag::Live,
        n_before: PageCount::ZERO,
        n_after: pages,
        digest,
        annotations: Vec::new(),
    };
    let mut record = Vec::new();
    header.encode(RecordKind::Delta, &mut record);
    record.extend_from_slice(&delta.pages);
    let chain_before = chain::genesis(meta.id);
    let chain = chain::step(chain_before, &record);
    let database = ChunkDatabase {
        id: meta.id,
        namespace: meta.namespace,
        page_size: size,
        seed: meta.seed,
        chain_before,
    };
    let head = Head {
        term: core.term(),
        txid: TxId::FIRST,
        chain,
        pages,
        digest,
        time: wall,
    };
    let state = DbState {
        meta,
        incarnation,
        head,
        wal: None,
        clean: true,
        stamp: None,
        durable: None,
    };
    // The record first: files without it would be a history that begins with a hole.
    let append = Append {
        txid: TxId::FIRST,
        wal: WalPosition::default(),
        chain,
        payload: Payload::Record(&record),
    };
    crash_point!("create.before_append");
    core.journal.append(&database, &[append])?;
    crash_point!("create.before_state");
    state.write(core.parts.disk.as_ref(), &folder)?;
    core.journal.set_checkpointed(meta.id, TxId::FIRST);
    Ok(())
}
