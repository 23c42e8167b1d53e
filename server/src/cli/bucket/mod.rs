//! The commands that read the bucket alone: no server, no data folder, nothing written to the store but by
//! `store check`.
//!
//! What a bucket holds is found in this order: the root names the system database; every term's journal is
//! walked for the sections that stand in no segment yet; only then are manifests read, so that what was settled
//! and trimmed meanwhile is in them. Names come from the system database, restored to a temporary file.

pub(super) mod check;
pub(super) mod history;
pub(super) mod list;
pub(super) mod restore;
pub(super) mod verify;

use std::sync::Arc;

use tidelog_archive::journal::JournalObject;
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::manifest::{ManifestStore, PublishError};
use tidelog_archive::plan::{self, History, Layer, PlanError, TailSection, Target};
use tidelog_archive::restore::{FileSink, RestoreError, RestoreSettings, execute};
use tidelog_archive::root::Root;
use tidelog_archive::store::{Store, StoreError, StoreOptions, StoreSettings};
use tidelog_archive::term::{Step, TermError, Terms};
use tidelog_archive::{Clock, Entropy, ErrorKind, SystemClock, SystemEntropy};
use tidelog_engine::system::catalog;
use tidelog_engine::system::databases::{DatabaseRow, Namespace};
use tidelog_wal::{DatabaseId, NamespaceId, NodeId, Position, Term};

use super::args::{At, Name};
use super::exit::{Exit, Failure};

/// A failure of something that answers `kind()`, with its causes.
fn failure(kind: ErrorKind, error: &dyn std::error::Error) -> Failure {
    let causes = crate::problem::causes(error);
    let message = if causes.is_empty() {
        error.to_string()
    } else {
        format!("{error}: {causes}")
    };
    Failure::new(Exit::of_kind(kind), message)
}

macro_rules! failures {
    ($($error:ty)*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                failure(error.kind(), &error)
            }
        }
    )* };
}

failures! { StoreError TermError PublishError RestoreError }

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let mut made = failure(error.kind(), &error);
        let nearest = match &error {
            PlanError::Foreign { nearest, .. }
            | PlanError::Expired { nearest, .. }
            | PlanError::BeforeHistory { nearest, .. } => *nearest,
            PlanError::Lost {
                nearest_earlier, ..
            }
            | PlanError::Gap {
                nearest_earlier, ..
            } => *nearest_earlier,
            PlanError::InFuture { head, .. } => *head,
            _ => None,
        };
        if let Some(nearest) = nearest {
            made.message = format!("{}; the nearest usable bookmark is {nearest}", made.message);
            made.document["nearest"] = serde_json::json!(nearest.to_string());
        }
        match error {
            PlanError::Gap { .. } => made.exit = Exit::Damaged,
            PlanError::Unknown { .. }
            | PlanError::Lost { .. }
            | PlanError::Expired { .. }
            | PlanError::BeforeHistory { .. } => made.exit = Exit::NotFound,
            _ => {}
        }
        made
    }
}

/// Opens the store of a URL.
fn open_store(url: &str) -> Result<Store, Failure> {
    let options = StoreOptions {
        settings: StoreSettings::default(),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SystemEntropy),
    };
    Ok(Store::open(url, options)?)
}

/// A bucket as it stood when it was opened.
struct Bucket {
    store: Store,
    entropy: Arc<dyn Entropy>,
    root: Root,
    highest: Term,
    tail: Vec<TailSection>,
}

impl Bucket {
    async fn open(url: &str) -> Result<Self, Failure> {
        let store = open_store(url)?;
        let bytes = match store.get(&Key::Root.to_string()).await {
            Err(StoreError::NotFound { .. }) => {
                let text = format!("{url} holds no Tidelog history: there is no root in it");
                return Err(Failure::new(Exit::NotFound, text));
            }
            read => read?,
        };
        let (root, _) = Root::decode(&bytes).map_err(|error| {
            let causes = crate::problem::causes(&error);
            Failure::new(
                Exit::Damaged,
                format!("the root of {url}: {error}: {causes}"),
            )
        })?;
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        // A node of no name: it reads terms and claims none.
        let nobody = NodeId::from_bytes([0; 16]);
        let terms = Terms::new(
            store.clone(),
            nobody,
            root.cluster,
            clock,
            Arc::clone(&entropy),
        );
        let highest = terms.highest(root.highest_term).await?;
        let tail = tail(&terms, highest).await?;
        Ok(Self {
            store,
            entropy,
            root,
            highest,
            tail,
        })
    }

    /// The history of a database.
    async fn history(&self, namespace: NamespaceId, id: DatabaseId) -> Result<History, Failure> {
        let entropy = Arc::clone(&self.entropy);
        let manifests = ManifestStore::new(self.store.clone(), namespace, id, entropy);
        let manifest = manifests.load().await?.manifest;
        let tail = self
            .tail
            .iter()
            .filter(|section| section.meta.database == id)
            .cloned()
            .collect();
        History::new(vec![Layer {
            manifests,
            manifest,
            tail,
        }])
        .ok_or_else(|| Failure::failed("a history without a database"))
    }

    /// Every database with its namespace, deleted ones among them, by name.
    async fn catalog(&self) -> Result<Vec<(Namespace, DatabaseRow)>, Failure> {
        let (namespace, id) = (self.root.system_namespace, self.root.system_database);
        let mut history = self.history(namespace, id).await?;
        let target = history
            .resolve(&self.store, Target::Head, self.terms())
            .await?;
        let plan = history.plan(target, None).await?;
        let folder = tempfile::tempdir()
            .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
        let file = folder.path().join("system");
        let sink = FileSink::create(&file).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", file.display()))
        })?;
        execute(&self.store, &plan, sink, RestoreSettings::default()).await?;
        Ok(catalog::read(&file)?)
    }

    /// The database of a name; a deleted one only if no other has the name.
    async fn find(&self, name: &Name) -> Result<DatabaseRow, Failure> {
        let mut found: Vec<DatabaseRow> = self
            .catalog()
            .await?
            .into_iter()
            .filter(|(owner, row)| owner.name == name.namespace && row.name == name.database)
            .map(|(_, row)| row)
            .collect();
        found.sort_by_key(|row| (row.deleted_at.is_some(), std::cmp::Reverse(row.deleted_at)));
        let missing = || {
            Failure::new(
                Exit::NotFound,
                format!("the bucket holds no database {name}"),
            )
        };
        found.into_iter().next().ok_or_else(missing)
    }

    fn terms(&self) -> plan::Terms {
        plan::Terms {
            highest_claimed: self.highest,
            present: Some(self.highest),
        }
    }
}

/// Every section of every journal object that is still there.
async fn tail(terms: &Terms, highest: Term) -> Result<Vec<TailSection>, Failure> {
    let mut found = Vec::new();
    for term in (1..=highest.get()).map(Term::new) {
        let mut walk = terms.walk(term, Seq::FIRST).await?;
        loop {
            match walk.step().await? {
                Step::Object(seq, bytes) => {
                    let object = JournalObject::decode(&bytes, term, seq).map_err(|error| {
                        let key = Key::Journal(term, seq);
                        Failure::new(Exit::Damaged, format!("journal object {key}: {error}"))
                    })?;
                    let sections = object.sections.iter();
                    found.extend(sections.map(|section| TailSection::of(&object, section)));
                }
                Step::Trimmed(_) => {}
                Step::End(_) => break,
            }
        }
    }
    Ok(found)
}

impl At {
    /// The point in time that is meant; the newest when none is given.
    fn target(&self) -> Target {
        let time = self.at.map(Target::Time);
        self.bookmark
            .map(Target::Position)
            .or(time)
            .unwrap_or(Target::Head)
    }
}

/// A position as JSON.
fn text(position: Option<Position>) -> serde_json::Value {
    position.map_or(serde_json::Value::Null, |position| {
        serde_json::json!(position.to_string())
    })
}
