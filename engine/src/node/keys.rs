//! Keys at start: those of the bucket, and that of the data folder.
//!
//! Before a term is claimed, so that a start with a wrong or missing key changes nothing: the system database's key
//! object must open with the master keys given. A bucket without one gets it now, before anything else of the system
//! database is stored; a data folder that knows the bucket as sealed refuses it without one. Then sealing is tried
//! once on an object of its own: sealed, stored, read back, opened.
//!
//! The data folder has a key of its own, wrapped in `local.key` (the form of a `key` object), which seals journal
//! chunks and spools. Both are wrapped anew if an older master key wraps them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::{
    Cipher, Expect, Header, ObjectKind, WriteId, decode_payload, encode_payload,
};
use tidelog_archive::key::Key;
use tidelog_archive::root::Root;
use tidelog_archive::seal::{KeyObject, KeyStore, Keyring, Known, MasterKeys, SealKey};
use tidelog_archive::store::{Store, StoreError};
use tidelog_wal::{DatabaseId, NamespaceId};

use super::start::store_error;
use crate::core::Parts;
use crate::crash_point;
use crate::disk::Disk;
use crate::error::{Code, Error};
use crate::sealed::SealedDisk;
use crate::sealing::key_error;

const LOCAL_KEY: &str = "local.key";

/// A bucket's store with the keys at hand, the system's among them. Changes nothing.
pub(crate) async fn unlock_bucket(
    store: Store,
    masters: &MasterKeys,
    root: &Root,
) -> Result<Store, Error> {
    let store = store.with_keys(Keyring::new(masters.clone()));
    let (namespace, id) = (root.system_namespace, root.system_database);
    store.keys().set_system(namespace, id);
    let keys = KeyStore::new(store.clone(), namespace, id);
    match keys.load().await.map_err(key_error)? {
        Some((object, _)) if store.keys().is_on() => {
            store.keys().admit(&object).map_err(key_error)?;
        }
        Some((object, _)) => return Err(keys_wanted(store.url(), &object)),
        None => store.keys().note_plain(id),
    }
    Ok(store)
}

fn keys_wanted(url: &str, object: &KeyObject) -> Error {
    let newest = object.keys.last();
    let master = newest.map_or("?", |key| key.master.as_str());
    let place = KeyObject::place(object.namespace, object.database);
    let what = format!(
        "{url} is sealed ({place} is wrapped by master key {master:?}), and no master key was given: \
         --master-key-file {master}=PATH, or [encryption] in the settings file"
    );
    let mut error = Error::new(Code::KeyUnavailable, what).with("object", place);
    if let Some(key) = newest {
        error = error
            .with("key_id", key.id.to_string())
            .with("master", key.master.as_str());
    }
    error
}

/// Whether the bucket is sealed: the system database has a key, and it is at hand.
pub(crate) fn is_sealed(store: &Store, root: &Root) -> bool {
    matches!(store.keys().known(root.system_database), Known::Key(_))
}

/// Refuses a bucket that this data folder knows as sealed and whose system database has no key object: whoever can
/// write the bucket can delete that, and put a plain history of their own in place of the sealed one.
pub(crate) fn refuse_unsealed(store: &Store, root: &Root, data: &Path) -> Result<(), Error> {
    if is_sealed(store, root) {
        return Ok(());
    }
    let object = KeyObject::place(root.system_namespace, root.system_database);
    let what = format!(
        "the data folder {} was served from a sealed bucket, and {object}, which holds the key of its system \
         database, is missing from {}: put it back",
        data.display(),
        store.url()
    );
    Err(Error::new(Code::KeyUnavailable, what).with("object", object))
}

/// Sees to it that the system database has a key if there are master keys, that it is wrapped by the newest, and that
/// sealing works on this store.
pub(crate) async fn prepare_bucket(
    store: &Store,
    parts: &Parts,
    root: &Root,
    notices: &mut Vec<String>,
) -> Result<(), Error> {
    if !store.keys().is_on() {
        return Ok(());
    }
    let (namespace, id) = (root.system_namespace, root.system_database);
    let keys = KeyStore::new(store.clone(), namespace, id);
    if store.keys().known(id) == Known::Plain {
        let place = Key::manifest(namespace, id).to_string();
        let plain_before = match store.get(&place).await {
            Ok(bytes) => {
                refuse_sealed(&place, &bytes)?;
                true
            }
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(store_error("read the system manifest", error)),
        };
        store.keys().forget(id);
        let now = parts.clock.wall();
        keys.create(now, parts.entropy.as_ref(), plain_before)
            .await
            .map_err(key_error)?;
        if plain_before {
            notices.push(
                "encryption is on from here: new databases are sealed; those made before stay plain until \
                 `tidelog keys rotate --data-keys` gives them a key"
                    .to_owned(),
            );
        }
    } else {
        keys.rewrap(parts.entropy.as_ref())
            .await
            .map_err(key_error)?;
    }
    self_test(store, parts, (namespace, id)).await
}

/// A sealed manifest without a key object: the key is lost, and another must not take its place.
pub(crate) fn refuse_sealed(place: &str, bytes: &Bytes) -> Result<(), Error> {
    match Header::decode(bytes) {
        Ok(header) if header.cipher != Cipher::Plain => {
            let object = KeyObject::place(header.namespace, header.database);
            let what = format!(
                "{place} is sealed with data key {}, and {object}, which holds it, is missing: put it back",
                header.key_id
            );
            Err(Error::new(Code::KeyUnavailable, what)
                .with("object", object)
                .with("key_id", header.key_id.to_string()))
        }
        _ => Ok(()),
    }
}

/// Seals an object, stores it, reads it back, opens it; and proves that it does not open elsewhere.
async fn self_test(
    store: &Store,
    parts: &Parts,
    (namespace, id): (NamespaceId, DatabaseId),
) -> Result<(), Error> {
    let entropy = parts.entropy.as_ref();
    let failed = |what: String| {
        let what = format!(
            "the self-test of encryption failed on {}: {what}",
            store.url()
        );
        Error::new(Code::Refused, what)
    };
    let mut secret = entropy.bytes16().to_vec();
    secret.extend(entropy.bytes16());
    let expect = Expect::database(ObjectKind::Index, namespace, id);
    let stamp = store
        .keys()
        .stamp(namespace, id, entropy)
        .map_err(key_error)?;
    let sealed = encode_payload(expect, stamp, secret.clone())
        .map_err(|e| failed(e.to_string()))?
        .bytes;
    let key = format!(
        "probe/{:032x}-sealed",
        u128::from_be_bytes(entropy.bytes16())
    );
    let stored = store.create(&key, sealed).await;
    stored.map_err(|e| store_error("store the object of the encryption self-test", e))?;
    let read = store.get(&key).await;
    let deleted = store.delete(&key).await;
    let read = read.map_err(|e| store_error("read the object of the encryption self-test", e))?;
    deleted.map_err(|e| store_error("delete the object of the encryption self-test", e))?;
    if read.windows(secret.len()).any(|window| window == secret) {
        return Err(failed("the stored bytes show the plain ones".to_owned()));
    }
    let opened = decode_payload(&read, expect, store.keys(), |_, bytes| Ok(bytes.to_vec()))
        .map_err(|e| failed(e.to_string()))?
        .0;
    if opened != secret {
        return Err(failed("other bytes came back".to_owned()));
    }
    let without = decode_payload(
        &read,
        expect,
        &Keyring::off(),
        |_, bytes| Ok(bytes.to_vec()),
    );
    match without {
        Err(error) if error.kind() == ErrorKind::KeyUnavailable => Ok(()),
        _ => Err(failed("the object opens without a key".to_owned())),
    }
}

/// The disk of a data folder: sealed if there are master keys.
pub(crate) fn seal_disk(
    parts: &Parts,
    data: &Path,
    masters: &MasterKeys,
) -> Result<Arc<dyn Disk>, Error> {
    let path = data.join(LOCAL_KEY);
    let ids = (NamespaceId::default(), DatabaseId::default());
    let entropy = parts.entropy.as_ref();
    let write = |object: &KeyObject| {
        let encoded = object
            .encode(WriteId(entropy.bytes16()))
            .map_err(|e| Error::internal("encode the folder's key").caused_by(e))?;
        parts
            .disk
            .write_atomic(&path, &encoded.bytes)
            .map_err(|e| Error::io(format!("write {}", path.display()), e))
    };
    let ring = Keyring::new(masters.clone());
    let unavailable = |error: tidelog_archive::seal::KeyError| {
        let what = format!("the key of the data folder, {}: {error}", path.display());
        Error::new(Code::KeyUnavailable, what)
            .with("object", path.display().to_string())
            .caused_by(error)
    };
    let mut object = match parts.disk.read(&path) {
        Ok(bytes) => {
            let damaged = |e| {
                let what = format!("{} is damaged", path.display());
                Error::new(Code::DatabaseCorrupt, what).caused_by(e)
            };
            KeyObject::decode(&bytes.into(), ids.0, ids.1).map_err(damaged)?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let Some(master) = masters.newest() else {
                return Ok(Arc::clone(&parts.disk));
            };
            let now = parts.clock.wall();
            let mut object = KeyObject::new(ids.0, ids.1, now, false);
            object.add(&SealKey::draw(entropy, now), master, entropy);
            write(&object)?;
            object
        }
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    ring.admit(&object).map_err(unavailable)?;
    if object.rewrap(masters, entropy).map_err(unavailable)? > 0 {
        crash_point!("keys.before_local");
        write(&object)?;
        crash_point!("keys.after_local");
    }
    let key = ring
        .sealing(ids.0, ids.1)
        .map_err(unavailable)?
        .ok_or_else(|| Error::internal("the key of the data folder"))?;
    Ok(Arc::new(SealedDisk::new(
        Arc::clone(&parts.disk),
        key,
        ring,
        Arc::clone(&parts.entropy),
    )))
}
