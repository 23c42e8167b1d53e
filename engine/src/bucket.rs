//! What can be done with the bucket alone, no server running: list, history, restore, verify.
//!
//! Nothing here writes to the bucket. Names live in the system database, which is restored into a scratch file
//! first; the unsettled tails come from walking the journals of the terms that are not settled.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};
use tidelog_archive::ErrorKind;
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::manifest::{Loaded, Manifest, ManifestStore};
use tidelog_archive::plan::{
    self, CommitInfo, History, Layer, Plan, PlanError, TailSection, Target,
};
use tidelog_archive::restore::{FileSink, PageSink, Report, RestoreSettings, execute};
use tidelog_archive::root::Root;
use tidelog_archive::seal::MasterKeys;
use tidelog_archive::store::Store;
use tidelog_archive::term::{End, Step, Terms};
use tidelog_wal::{DatabaseId, NamespaceId, NodeId, Position, Term, Timestamp, TxId};

use crate::boxed;
use crate::core::Parts;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::node::keys::unlock_bucket;
use crate::node::start::{open_store, store_error};
use crate::node::terms::term_error;
use crate::rebuild::{plan_error, replanned, restore_error};
use crate::remote::publish_error;
use crate::travel::labels::{self, Snapshot};

/// A database as the bucket knows it.
#[derive(Debug, Clone)]
pub struct BucketDatabase {
    /// Name of its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Id of its namespace.
    pub namespace_id: NamespaceId,
    /// Its id.
    pub id: DatabaseId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was deleted, if it is hidden.
    pub deleted_at: Option<Timestamp>,
}

/// Which state is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The newest stored commit.
    Latest,
    /// Exactly this commit.
    Bookmark(Position),
    /// The last commit at or before this time.
    Time(Timestamp),
    /// The commit that the snapshot of this name names.
    Snapshot(String),
}

impl At {
    /// What is meant, by the labels of `manifest`.
    pub(crate) fn target(&self, manifest: &Manifest) -> Result<Target, Error> {
        Ok(match self {
            Self::Latest => Target::Head,
            Self::Bookmark(position) => Target::Position(*position),
            Self::Time(time) => Target::Time(*time),
            Self::Snapshot(name) => Target::Position(labels::find(manifest, name)?.position),
        })
    }
}

/// A bucket opened for reading.
#[derive(Debug)]
pub struct Bucket {
    store: Store,
    parts: Parts,
    root: Root,
    terms: plan::Terms,
    tails: HashMap<DatabaseId, Vec<TailSection>>,
}

impl Bucket {
    /// Opens the bucket at a store URL, reading its root and the unsettled journals. A sealed one is refused.
    #[boxed]
    pub async fn open(url: &str) -> Result<Self, Error> {
        Self::open_with_keys(url, &MasterKeys::default()).await
    }

    /// As [`Bucket::open`], with the master keys of a sealed bucket.
    #[boxed]
    pub async fn open_with_keys(url: &str, keys: &MasterKeys) -> Result<Self, Error> {
        let parts = Parts::production();
        let store = open_store(url, &parts)?;
        Self::open_on(store, parts, keys).await
    }

    /// As [`Bucket::open_with_keys`], on a store of the caller's.
    #[boxed]
    pub async fn open_on(store: Store, parts: Parts, keys: &MasterKeys) -> Result<Self, Error> {
        let root = read_root(&store).await?;
        let store = unlock_bucket(store, keys, &root).await?;
        let terms = Terms::new(
            store.clone(),
            NodeId::default(),
            root.cluster,
            Arc::clone(&parts.clock),
            Arc::clone(&parts.entropy),
        );
        let failed = |e| term_error("read the journals", e);
        let highest = terms.highest(root.highest_term).await.map_err(failed)?;
        let mut open: BTreeSet<Term> = root.nodes.iter().map(|node| node.last_term).collect();
        for claim in terms
            .claims(root.highest_term, highest)
            .await
            .map_err(failed)?
        {
            open.insert(claim.term);
        }
        // Whoever closed a term has inherited it, so that the chain from the last terms reaches every tail.
        let mut tails: HashMap<DatabaseId, Vec<TailSection>> = HashMap::new();
        let mut seen = BTreeSet::new();
        let mut present = None;
        while let Some(term) = open.pop_last() {
            if !seen.insert(term) {
                continue;
            }
            let state = terms.state(term).await.map_err(failed)?;
            open.extend(state.inherited.iter().map(|inherited| inherited.term));
            let end = walk(&terms, term, &mut tails).await?;
            if matches!(end, End::Open(_)) {
                present = present.max(Some(term));
            }
        }
        let terms = plan::Terms {
            highest_claimed: highest,
            present,
        };
        Ok(Self {
            store,
            parts,
            root,
            terms,
            tails,
        })
    }

    pub(crate) const fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The store.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// The databases, by namespace and name.
    #[boxed]
    pub async fn databases(&self) -> Result<Vec<BucketDatabase>, Error> {
        let scratch = tempfile::tempdir().map_err(|e| Error::io("make a scratch folder", e))?;
        let file = scratch.path().join("system.db");
        let (namespace, id) = (self.root.system_namespace, self.root.system_database);
        self.restore_id(namespace, id, At::Latest, &file).await?;
        let failed = |e| Error::new(Code::DatabaseCorrupt, "read the names").caused_by(e);
        let executor = Arc::clone(&self.parts.executor);
        blocking(executor, move || list(&file).map_err(failed)).await
    }

    /// The live database `namespace/name`.
    #[boxed]
    pub async fn find(&self, namespace: &str, name: &str) -> Result<BucketDatabase, Error> {
        let mut all = self.databases().await?;
        all.retain(|found| found.namespace == namespace && found.name == name);
        all.sort_by_key(|found| {
            (
                found.deleted_at.is_some(),
                std::cmp::Reverse(found.created_at),
            )
        });
        all.into_iter().next().ok_or_else(|| {
            let what = format!("the bucket holds no database {namespace}/{name}");
            Error::new(Code::DatabaseNotFound, what)
        })
    }

    async fn history_of(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<(Loaded, History), Error> {
        let entropy = Arc::clone(&self.parts.entropy);
        let manifests = ManifestStore::new(self.store.clone(), namespace, id, entropy);
        let loaded = manifests
            .load()
            .await
            .map_err(|e| publish_error("read a manifest", e))?;
        let tail = |id| self.tails.get(&id).cloned().unwrap_or_default();
        let mut parent = loaded.manifest.parent;
        let mut layers = vec![Layer {
            manifests,
            manifest: loaded.manifest.clone(),
            tail: tail(id),
        }];
        while let Some(from) = parent {
            let entropy = Arc::clone(&self.parts.entropy);
            let store = self.store.clone();
            let manifests = ManifestStore::new(store, from.namespace, from.database, entropy);
            let read = manifests.load().await;
            let manifest = read
                .map_err(|e| publish_error("read the manifest of a fork's parent", e))?
                .manifest;
            parent = manifest.parent;
            layers.push(Layer {
                manifests,
                manifest,
                tail: tail(from.database),
            });
        }
        let history =
            History::new(layers).ok_or_else(|| Error::internal("a history without a database"))?;
        Ok((loaded, history))
    }

    /// The system database, which holds the names.
    pub fn system(&self) -> BucketDatabase {
        BucketDatabase {
            namespace: "tidelog".to_owned(),
            name: "system".to_owned(),
            namespace_id: self.root.system_namespace,
            id: self.root.system_database,
            created_at: Timestamp::ZERO,
            deleted_at: None,
        }
    }

    /// Everything that is known of a database's history.
    #[boxed]
    pub async fn history(&self, database: &BucketDatabase) -> Result<History, Error> {
        let (_, history) = self.history_of(database.namespace_id, database.id).await?;
        Ok(history)
    }

    /// The newest stored commit of a database.
    #[boxed]
    pub async fn head(&self, database: &BucketDatabase) -> Result<Option<Position>, Error> {
        Ok(self
            .history_of(database.namespace_id, database.id)
            .await?
            .1
            .head())
    }

    /// The snapshots of a database, by name.
    #[boxed]
    pub async fn snapshots(&self, database: &BucketDatabase) -> Result<Vec<Snapshot>, Error> {
        let (loaded, history) = self.history_of(database.namespace_id, database.id).await?;
        let (manifest, head) = (&loaded.manifest, history.head());
        let now = self.parts.clock.wall();
        let all = manifest.labels.iter();
        let mut found: Vec<Snapshot> = all
            .map(|label| labels::shown(manifest, label, head, now))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The newest commits of a database from `from` to `to`, which must be commits of it, oldest first.
    #[boxed]
    pub async fn commits(
        &self,
        database: &BucketDatabase,
        from: Option<Position>,
        to: Option<Position>,
        limit: u64,
    ) -> Result<Vec<CommitInfo>, Error> {
        replanned!(self.commits_once(database, from, to, limit))
    }

    async fn commits_once(
        &self,
        database: &BucketDatabase,
        from: Option<Position>,
        to: Option<Position>,
        limit: u64,
    ) -> Result<Vec<CommitInfo>, Error> {
        let (_, mut history) = self.history_of(database.namespace_id, database.id).await?;
        for position in [from, to].into_iter().flatten() {
            let target = Target::Position(position);
            let found = history.resolve(&self.store, target, self.terms).await;
            found.map_err(plan_error)?;
        }
        let txid = |position: Position| position.txid;
        let last = to.or(history.head()).map_or(TxId::ZERO, txid);
        let newest = TxId::new(last.get().saturating_sub(limit)).next();
        let first = from.map_or(TxId::FIRST, txid).max(newest);
        let first = first.max(history.horizon);
        let commits = history.commits(&self.store, first, last).await;
        commits.map_err(plan_error)
    }

    /// The plan to a state of a database.
    #[boxed]
    pub async fn plan(&self, database: &BucketDatabase, at: At) -> Result<Plan, Error> {
        self.plan_id(database.namespace_id, database.id, at).await
    }

    /// Restores a state of a database into a sink, which `make` makes for the plan: anew if an object was gone and the
    /// manifest leads there by others.
    pub async fn restore_into<S: PageSink + 'static>(
        &self,
        database: &BucketDatabase,
        at: At,
        mut make: impl FnMut(&Plan) -> std::io::Result<S>,
    ) -> Result<(Plan, S, Report), Error> {
        let (namespace, id) = (database.namespace_id, database.id);
        replanned!(self.restore_once(namespace, id, at.clone(), &mut make))
    }

    async fn plan_id(&self, namespace: NamespaceId, id: DatabaseId, at: At) -> Result<Plan, Error> {
        let (loaded, mut history) = self.history_of(namespace, id).await?;
        let target = at.target(&loaded.manifest)?;
        let found: Result<_, PlanError> = history.resolve(&self.store, target, self.terms).await;
        let resolved = found.map_err(|error| labels::unreachable(&at, plan_error(error)))?;
        history.plan(resolved, None).await.map_err(plan_error)
    }

    /// Restores a state of a database into a file. One that exists is replaced only if `force`, and only once
    /// the new one is proven.
    #[boxed]
    pub async fn restore(
        &self,
        database: &BucketDatabase,
        at: At,
        out: &Path,
        force: bool,
    ) -> Result<(Plan, Report), Error> {
        let exists = out
            .try_exists()
            .map_err(|e| Error::io("look at the output file", e))?;
        if exists && !force {
            let what = format!("{} exists; --force replaces it", out.display());
            return Err(Error::new(Code::Refused, what));
        }
        if !exists {
            return self
                .restore_id(database.namespace_id, database.id, at, out)
                .await;
        }
        let mut beside = out.as_os_str().to_owned();
        beside.push(".restored");
        let beside = std::path::PathBuf::from(beside);
        let restored = self
            .restore_id(database.namespace_id, database.id, at, &beside)
            .await?;
        // A WAL that belonged to the old file would be replayed into the new one (HAZARDS W25).
        for suffix in ["-wal", "-shm", "-journal"] {
            let mut left = out.as_os_str().to_owned();
            left.push(suffix);
            match std::fs::remove_file(&left) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove what belonged to the old file", e));
                }
                _ => {}
            }
        }
        std::fs::rename(&beside, out).map_err(|e| Error::io("name the restored file", e))?;
        crate::disk::sync_parent(out).map_err(|e| Error::io("sync the folder", e))?;
        Ok(restored)
    }

    async fn restore_id(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        at: At,
        out: &Path,
    ) -> Result<(Plan, Report), Error> {
        let mut make = |_: &Plan| FileSink::create(out);
        let restored = replanned!(self.restore_once(namespace, id, at.clone(), &mut make));
        restored.map(|(plan, _, report)| (plan, report))
    }

    async fn restore_once<S: PageSink + 'static>(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        at: At,
        make: &mut impl FnMut(&Plan) -> std::io::Result<S>,
    ) -> Result<(Plan, S, Report), Error> {
        let plan = self.plan_id(namespace, id, at).await?;
        let sink = make(&plan).map_err(|e| Error::io("create the output file", e))?;
        let executed = execute(&self.store, &plan, sink, RestoreSettings::default()).await;
        let (sink, report) = executed.map_err(restore_error)?;
        Ok((plan, sink, report))
    }
}

async fn read_root(store: &Store) -> Result<Root, Error> {
    match store.get(&Key::Root.to_string()).await {
        Ok(bytes) => Root::decode(&bytes).map(|(root, _)| root).map_err(|e| {
            Error::new(Code::ObjectCorrupt, format!("the root of {}", store.url())).caused_by(e)
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("{} holds no history: there is no root object", store.url());
            Err(Error::new(Code::DatabaseNotFound, what).caused_by(error))
        }
        Err(error) => Err(store_error("read the root", error)),
    }
}

async fn walk(
    terms: &Terms,
    term: Term,
    tails: &mut HashMap<DatabaseId, Vec<TailSection>>,
) -> Result<End, Error> {
    let failed = |e| term_error("walk a journal", e);
    let mut walk = terms.walk(term, Seq::FIRST).await.map_err(failed)?;
    loop {
        match walk.step().await.map_err(failed)? {
            Step::Trimmed(_) => {}
            Step::End(end) => return Ok(end),
            Step::Object(seq, bytes) => {
                let object = crate::sealing::journal(terms.store(), &bytes, term, seq).await?;
                for section in &object.sections {
                    let tail = tails.entry(section.meta.database).or_default();
                    tail.push(TailSection::of(&object, section));
                }
            }
        }
    }
}

fn list(file: &Path) -> rusqlite::Result<Vec<BucketDatabase>> {
    use crate::system::{id16, timestamp};
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut select = connection.prepare(
        "SELECT n.name, d.name, n.id, d.id, d.created, d.deleted \
         FROM databases d JOIN namespaces n ON n.id = d.namespace ORDER BY n.name, d.name",
    )?;
    let rows = select.query_map([], |row| {
        Ok(BucketDatabase {
            namespace: row.get(0)?,
            name: row.get(1)?,
            namespace_id: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(2)?)?),
            id: DatabaseId::from_bytes(id16(&row.get::<_, Vec<u8>>(3)?)?),
            created_at: timestamp(row.get(4)?),
            deleted_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        })
    })?;
    rows.collect()
}
