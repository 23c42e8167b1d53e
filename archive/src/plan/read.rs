//! Opening the objects of a plan.

use bytes::Bytes;
use futures::try_join;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, NamespaceId, TxId};

use super::history::{ImageSource, Piece, PieceSource};
use crate::ErrorKind;
use crate::envelope::{
    CorruptObject, Expect, FormatError, HEADER_LEN, Object, ObjectKind, TAIL_GUESS,
};
use crate::journal::{JournalObject, Section};
use crate::records::{RecordScanner, RecordVisitor};
use crate::seal::KeyError;
use crate::segment::Segment;
use crate::store::{Store, StoreError};

/// Objects up to this size are fetched whole: one request, and every byte proven.
const WHOLE_MAX: u64 = 2 << 20;

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store did not give it.
    #[error("reading {key} failed")]
    Store {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Its key could not be read.
    #[error("the key of {key} is not at hand")]
    Key {
        /// The object.
        key: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// Its bytes are refused.
    #[error(transparent)]
    Corrupt(#[from] CorruptObject),
}

impl ReadError {
    /// The object that could not be read.
    pub fn key(&self) -> &str {
        match self {
            Self::Store { key, .. } | Self::Key { key, .. } => key,
            Self::Corrupt(error) => &error.key,
        }
    }

    /// What it means for the caller. A missing object that is listed is corruption for whoever asked for the
    /// state, but the caller tells: it may have been settled or expired meanwhile.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Key { source, .. } => source.kind(),
            Self::Corrupt(error) => error.kind(),
        }
    }
}

/// An object that holds a piece.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A segment, perhaps without its body.
    Segment(Segment),
    /// A journal object, whole.
    Section(JournalObject, Section),
}

pub(crate) async fn get(store: &Store, key: &str) -> Result<Bytes, ReadError> {
    store.get(key).await.map_err(|source| ReadError::Store {
        key: key.to_owned(),
        source,
    })
}

pub(crate) async fn get_range(
    store: &Store,
    key: &str,
    range: std::ops::Range<u64>,
) -> Result<Bytes, ReadError> {
    let got = store.get_range(key, range).await;
    got.map_err(|source| ReadError::Store {
        key: key.to_owned(),
        source,
    })
}

/// Sees to it that the key of the object beginning with `head` is at hand, if it can be had.
async fn unlock(store: &Store, key: &str, head: &[u8]) -> Result<(), ReadError> {
    let unlocked = store.unlock_head(head).await;
    unlocked.map_err(|source| ReadError::Key {
        key: key.to_owned(),
        source,
    })
}

/// Opens the object that `named` names: whole if it is small, else by head and tail.
pub(crate) async fn open_object(
    store: &Store,
    named: &ObjectRef,
    expect: Expect,
) -> Result<Object, ReadError> {
    let refused = |error: FormatError| error.in_object(&named.key);
    let keys = store.keys();
    if named.len <= WHOLE_MAX {
        let bytes = get(store, &named.key).await?;
        unlock(store, &named.key, &bytes).await?;
        return Ok(Object::open_named(&bytes, expect, named, keys).map_err(refused)?);
    }
    let guess = named.len - TAIL_GUESS..named.len;
    let (head, tail) = try_join!(
        get_range(store, &named.key, 0..HEADER_LEN as u64),
        get_range(store, &named.key, guess),
    )?;
    unlock(store, &named.key, &head).await?;
    match Object::open_tail(&head, &tail, expect, named, keys).map_err(refused)? {
        Ok(object) => Ok(object),
        Err(wanted) => {
            let tail = get_range(store, &named.key, wanted.0).await?;
            let opened = Object::open_tail(&head, &tail, expect, named, keys).map_err(refused)?;
            let short = || FormatError::invalid(0, "index offset").in_object(&named.key);
            Ok(opened.map_err(|_| short())?)
        }
    }
}

pub(crate) async fn open_segment(
    store: &Store,
    named: &ObjectRef,
    namespace: NamespaceId,
    database: DatabaseId,
) -> Result<Segment, ReadError> {
    let expect = Expect::database(ObjectKind::Segment, namespace, database);
    let object = open_object(store, named, expect).await?;
    Ok(Segment::from_object(object).map_err(|error| error.in_object(&named.key))?)
}

pub(crate) async fn open_image(store: &Store, source: &ImageSource) -> Result<Object, ReadError> {
    let expect = Expect::database(ObjectKind::Image, source.namespace, source.database);
    open_object(store, &source.object, expect).await
}

/// Opens the object of a piece, and proves that it holds the run it should.
pub(crate) async fn open_piece(store: &Store, piece: &Piece) -> Result<Opened, ReadError> {
    match &piece.source {
        PieceSource::Segment(named) => {
            let segment = open_segment(store, named, piece.namespace, piece.database).await?;
            let checked = segment.check_run(&piece.run);
            checked.map_err(|error| error.in_object(&named.key))?;
            Ok(Opened::Segment(segment))
        }
        PieceSource::Section { key, term, seq } => {
            let bytes = get(store, key).await?;
            unlock(store, key, &bytes).await?;
            let journal = JournalObject::decode(&bytes, *term, *seq, store.keys())
                .map_err(|error| error.in_object(key))?;
            let section = journal.sections.iter().find(|section| {
                section.meta.database == piece.database && section.meta.run() == piece.run
            });
            let Some(section) = section.cloned() else {
                let error = FormatError::Foreign {
                    what: "section",
                    found: "none of that run".into(),
                    expected: format!("{} of {}", piece.run.end(), piece.database),
                };
                return Err(error.in_object(key).into());
            };
            let meta = &section.meta;
            let unlocked = store
                .unlock(meta.namespace, meta.database, meta.key_id)
                .await;
            unlocked.map_err(|source| ReadError::Key {
                key: key.clone(),
                source,
            })?;
            Ok(Opened::Section(journal, section))
        }
    }
}

/// Shows `visitor` the records of `piece` around `first` to `last`.
pub(crate) async fn scan_piece<V>(
    store: &Store,
    piece: &Piece,
    (first, last): (TxId, TxId),
    visitor: &mut V,
) -> Result<(), ReadError>
where
    V: RecordVisitor<Error = FormatError>,
{
    let key = piece.source.key();
    let refused = |error: FormatError| error.in_object(key);
    match open_piece(store, piece).await? {
        Opened::Segment(segment) => {
            let outside = || refused(FormatError::invalid(0, "run of txids"));
            let span = segment.span(first, last).ok_or_else(outside)?;
            let stored = get_range(store, key, span.range.clone()).await?;
            Ok(segment.scan(&span, &stored, visitor).map_err(refused)?)
        }
        Opened::Section(journal, section) => {
            let stored = journal.section_bytes(&section).unwrap_or_default();
            let meta = &section.meta;
            let mut scanner = RecordScanner::new(meta.page_size, meta.walk());
            for raw in journal.blocks(&section, &stored) {
                let raw = raw.map_err(refused)?;
                scanner.feed(&raw, visitor).map_err(refused)?;
            }
            let end = scanner.finish(meta.last, meta.chain_after, section.range().start);
            Ok(end.map_err(refused)?)
        }
    }
}
