//! The keys at hand: what encoding and decoding ask.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::cipher::BlockSealer;
use super::error::KeyError;
use super::keys::{SealKey, Stamp};
use super::master::MasterKeys;
use super::object::KeyObject;
use crate::Entropy;
use crate::envelope::{Cipher, FormatError, Header, KeyId, ObjectKind, ObjectNonce};

/// What is known of how a database is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing: its key object was not read.
    Nothing,
    /// It has no key, and may be without one.
    Plain,
    /// This key seals new objects of it.
    Key(Arc<SealKey>),
    /// It is sealed, and its key object is gone.
    Lost,
    /// Its keys were destroyed.
    Shredded,
}

#[derive(Debug)]
enum Held {
    Plain,
    Sealed {
        newest: KeyId,
        plain_before: bool,
        ids: Vec<KeyId>,
    },
    Lost,
    Shredded,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<KeyId, Arc<SealKey>>,
    databases: HashMap<DatabaseId, Held>,
    system: Option<(NamespaceId, DatabaseId)>,
}

impl State {
    /// Whether the bucket was sealed from its first object on: the system database is the first that is made.
    fn sealed_from_first(&self) -> bool {
        self.system
            .is_some_and(|(_, system)| self.sealed_from(system))
    }

    /// Whether the database was sealed from its first object on.
    fn sealed_from(&self, database: DatabaseId) -> bool {
        matches!(
            self.databases.get(&database),
            Some(Held::Sealed {
                plain_before: false,
                ..
            })
        )
    }
}

#[derive(Debug)]
struct Inner {
    masters: MasterKeys,
    state: RwLock<State>,
}

/// The keys at hand. Cheap to clone; all clones share what was unwrapped.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    inner: Option<Arc<Inner>>,
}

impl Keyring {
    /// No keys: plain objects only.
    pub const fn off() -> Self {
        Self { inner: None }
    }

    /// A ring that unwraps with `masters`; [`Keyring::off`] if there are none.
    pub fn new(masters: MasterKeys) -> Self {
        if masters.is_empty() {
            return Self::off();
        }
        let state = RwLock::default();
        Self {
            inner: Some(Arc::new(Inner { masters, state })),
        }
    }

    /// Whether there are master keys.
    pub const fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// The master keys.
    pub fn masters(&self) -> MasterKeys {
        self.inner
            .as_ref()
            .map(|inner| inner.masters.clone())
            .unwrap_or_default()
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Option<T> {
        let inner = self.inner.as_ref()?;
        let state = inner.state.read().unwrap_or_else(PoisonError::into_inner);
        Some(look(&state))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        let inner = self.inner.as_ref()?;
        let mut state = inner.state.write().unwrap_or_else(PoisonError::into_inner);
        Some(change(&mut state))
    }

    /// Says which database is the system's: its key seals what belongs to no tenant.
    pub fn set_system(&self, namespace: NamespaceId, database: DatabaseId) {
        self.write(|state| state.system = Some((namespace, database)));
    }

    /// The system database.
    pub fn system(&self) -> Option<(NamespaceId, DatabaseId)> {
        self.read(|state| state.system).flatten()
    }

    /// Takes the keys of a database in. Old ones whose master key is not at hand are left out: what they seal
    /// is refused by name. The newest must open.
    ///
    /// Keys are only ever added, and destroyed keys never come back: an object that lacks the newest key known, or
    /// has keys again, is an older version of it and changes nothing.
    pub fn admit(&self, object: &KeyObject) -> Result<(), KeyError> {
        let Some(inner) = &self.inner else {
            return Err(KeyError::Off {
                object: object.name(),
            });
        };
        let database = object.database;
        let Some(newest) = object.keys.last() else {
            self.forget(database);
            self.write(|state| state.databases.insert(database, Held::Shredded));
            return Ok(());
        };
        let first = object.unwrap(newest, &inner.masters)?;
        let rest = object.keys.iter().rev().skip(1);
        let opened = rest.filter_map(|wrapped| object.unwrap(wrapped, &inner.masters).ok());
        let opened: Vec<SealKey> = std::iter::once(first).chain(opened).collect();
        self.write(|state| {
            let older = match state.databases.get(&database) {
                Some(Held::Sealed { newest, .. }) => {
                    object.keys.iter().all(|key| key.id != *newest)
                }
                Some(Held::Shredded) => true,
                Some(Held::Plain | Held::Lost) | None => false,
            };
            if older {
                return;
            }
            let held = Held::Sealed {
                newest: newest.id,
                plain_before: object.plain_before,
                ids: opened.iter().map(|key| key.id).collect(),
            };
            state.databases.insert(database, held);
            for key in opened {
                state.keys.insert(key.id, Arc::new(key));
            }
        });
        Ok(())
    }

    /// Says that a database has no key object. In a bucket that was sealed from its first object on every database
    /// was made with a key: there it is not plain, its key is lost.
    pub fn note_plain(&self, database: DatabaseId) {
        self.write(|state| {
            let held = if state.sealed_from_first() {
                Held::Lost
            } else {
                Held::Plain
            };
            state.databases.entry(database).or_insert(held);
        });
    }

    /// Says that a database is sealed and its key object is gone.
    pub fn note_lost(&self, database: DatabaseId) {
        self.write(|state| {
            state.databases.insert(database, Held::Lost);
        });
    }

    /// How many databases with a key are known here, and when the oldest of the keys that seal new objects was made.
    pub fn ages(&self) -> (u64, Option<Timestamp>) {
        let ages = self.read(|state| {
            let newest = state.databases.values().filter_map(|held| match held {
                Held::Sealed { newest, .. } => state.keys.get(newest),
                Held::Plain | Held::Lost | Held::Shredded => None,
            });
            newest.fold((0, None), |(count, oldest), key| {
                let oldest =
                    oldest.map_or(key.created, |oldest: Timestamp| oldest.min(key.created));
                (count + 1, Some(oldest))
            })
        });
        ages.unwrap_or_default()
    }

    /// Forgets what is known of a database, its keys wiped.
    pub fn forget(&self, database: DatabaseId) {
        self.write(|state| {
            if let Some(Held::Sealed { ids, .. }) = state.databases.remove(&database) {
                for id in ids {
                    state.keys.remove(&id);
                }
            }
        });
    }

    /// The key of an id.
    pub fn get(&self, id: KeyId) -> Option<Arc<SealKey>> {
        self.read(|state| state.keys.get(&id).cloned()).flatten()
    }

    /// How new objects of a database are sealed.
    pub fn known(&self, database: DatabaseId) -> Known {
        let known = self.read(|state| match state.databases.get(&database) {
            None => Known::Nothing,
            Some(Held::Plain) => Known::Plain,
            Some(Held::Lost) => Known::Lost,
            Some(Held::Shredded) => Known::Shredded,
            Some(Held::Sealed { newest, .. }) => match state.keys.get(newest) {
                Some(key) => Known::Key(Arc::clone(key)),
                None => Known::Nothing,
            },
        });
        known.unwrap_or(Known::Plain)
    }

    /// The key that seals new objects of a database; `None` if they are plain. Refused where nothing is known:
    /// a sealed database never gets a plain object by mistake.
    pub fn sealing(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
    ) -> Result<Option<Arc<SealKey>>, KeyError> {
        let object = || KeyObject::place(namespace, database);
        match self.known(database) {
            Known::Plain => Ok(None),
            Known::Key(key) => Ok(Some(key)),
            Known::Nothing => Err(KeyError::Unread { object: object() }),
            Known::Lost => Err(KeyError::Missing { object: object() }),
            Known::Shredded => Err(KeyError::Shredded { object: object() }),
        }
    }

    /// A stamp for a new object of a database.
    pub fn stamp(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
        entropy: &dyn Entropy,
    ) -> Result<Stamp, KeyError> {
        let key = self.sealing(namespace, database)?;
        Ok(Stamp::draw(entropy, key))
    }

    /// A stamp for a new journal object.
    pub fn journal_stamp(&self, entropy: &dyn Entropy) -> Result<Stamp, KeyError> {
        match self.system() {
            Some((namespace, database)) => {
                let key = self.sealing(namespace, database)?;
                Ok(Stamp::shared(entropy, key))
            }
            None => Ok(Stamp::draw(entropy, None)),
        }
    }

    /// What opens the blocks of the object with this header that belong to its own database, and its index.
    pub(crate) fn opening(&self, header: &Header) -> Result<Option<BlockSealer>, FormatError> {
        let unkeyed = header.cipher == Cipher::Plain || header.key_id == KeyId::default();
        if unkeyed && header.kind == ObjectKind::Journal {
            return if self.bucket_must_be_sealed() {
                Err(FormatError::NotSealed)
            } else {
                Ok(None)
            };
        }
        if header.cipher == Cipher::Plain {
            if header.kind == ObjectKind::Manifest && self.manifest_must_be_sealed(header.database)
            {
                return Err(FormatError::NotSealed);
            }
            return Ok(None);
        }
        let ids = (header.namespace, header.database);
        self.opener(header.kind, header.nonce, ids, header.key_id)
            .map(Some)
    }

    /// What opens the blocks that `key_id` sealed for a database.
    pub(crate) fn opener(
        &self,
        kind: ObjectKind,
        nonce: ObjectNonce,
        ids: (NamespaceId, DatabaseId),
        key_id: KeyId,
    ) -> Result<BlockSealer, FormatError> {
        let key = self
            .get(key_id)
            .ok_or(FormatError::KeyUnavailable { key_id })?;
        Ok(BlockSealer::new(&key.key, kind, nonce, ids))
    }

    /// Whether the database was sealed from its first object on: nothing plain is its own.
    pub(crate) fn must_be_sealed(&self, database: DatabaseId) -> bool {
        self.read(|state| state.sealed_from(database))
            .unwrap_or(false)
    }

    /// Whether the bucket was sealed from its first object on: journals and audit lines, which belong to all, too.
    pub(crate) fn bucket_must_be_sealed(&self) -> bool {
        self.read(State::sealed_from_first).unwrap_or(false)
    }

    /// Whether a plain manifest is none of the database's own. One whose keys were destroyed has a plain tombstone.
    fn manifest_must_be_sealed(&self, database: DatabaseId) -> bool {
        let lost = self.read(|state| matches!(state.databases.get(&database), Some(Held::Lost)));
        lost.unwrap_or(false) || self.must_be_sealed(database)
    }
}
