//! Unlisted objects of process lives that are over: what a settle wrote and never listed, what an upload left
//! behind when its process died.
//!
//! An object is garbage when all of this holds: its key says that an older term wrote it; this life owns the
//! manifest; nothing of the database is unsettled any more, in the store or in the local journal, so that no
//! `reference` or `image` record can name the object; no manifest, index object or marked index object lists it;
//! and the store says that it is older than the grace. A listing only says where to look. Objects of the
//! running term are its own business and are left to the next one.

use std::collections::HashSet;
use std::sync::Arc;

use tidelog_archive::ErrorKind;
use tidelog_archive::key::{DatabaseObject, Key};
use tidelog_archive::manifest::{IndexEntry, Manifest, ManifestStore, Marked};
use tidelog_wal::{DatabaseId, NamespaceId, Term, Timestamp};

use super::GRACE_MICROS;
use super::catalog::{Catalog, Node};
use super::run::{ObjectGone, read_error};
use crate::core::Core;
use crate::error::Error;
use crate::node::start::store_error;

/// Collects the keys of everything an index object lists, itself last: deleted in this order, what is gone
/// never hides what is still there.
fn keys_of(node: &Node, (namespace, id): (NamespaceId, DatabaseId), into: &mut Vec<String>) {
    for child in &node.children {
        keys_of(child, (namespace, id), into);
    }
    let segments = node.segments.iter();
    into.extend(segments.map(|e| e.key(namespace, id).to_string()));
    let images = node.images.iter();
    into.extend(images.map(|e| e.key(namespace, id).to_string()));
    into.push(node.entry.key(namespace, id).to_string());
}

/// The keys that the root names: listed and marked.
fn keys_of_root(manifest: &Manifest, into: &mut HashSet<String>) {
    let (namespace, id) = (manifest.namespace, manifest.database);
    let segments = manifest.segments.iter();
    into.extend(segments.map(|e| e.key(namespace, id).to_string()));
    let images = manifest.images.iter();
    into.extend(images.map(|e| e.key(namespace, id).to_string()));
    let index = manifest.index.iter();
    into.extend(index.map(|e| e.key(namespace, id).to_string()));
    let marked = manifest.marked.iter();
    into.extend(marked.map(|m| Key::Database(namespace, id, m.object).to_string()));
}

/// Everything reachable from a manifest's index objects.
pub(crate) async fn keys_below(
    manifests: &ManifestStore,
    manifest: &Manifest,
    wanted: impl Fn(&IndexEntry) -> bool,
) -> Result<HashSet<String>, Error> {
    let of = (manifest.namespace, manifest.database);
    let mut below = Vec::new();
    for entry in manifest.index.iter().filter(|entry| wanted(entry)) {
        let node = Catalog::node(manifests, *entry).await.map_err(read_error)?;
        keys_of(&node, of, &mut below);
    }
    let mut known: HashSet<String> = below.into_iter().collect();
    keys_of_root(manifest, &mut known);
    Ok(known)
}

/// The keys of everything below a marked index object, as far as it is still there, in the order in which they
/// are to be deleted.
pub(crate) async fn keys_under(
    manifests: &ManifestStore,
    of: (NamespaceId, DatabaseId),
    marked: &Marked,
) -> Result<Vec<String>, Error> {
    let mut known = Vec::new();
    if !matches!(marked.object, DatabaseObject::Index { .. }) {
        return Ok(known);
    }
    let read = manifests.load_marked(marked).await.map_err(read_error)?;
    let Some(object) = read else {
        return Ok(known);
    };
    let (namespace, id) = of;
    for child in object.children {
        match Catalog::node(manifests, child).await {
            Ok(node) => keys_of(&node, of, &mut known),
            // A sweep that was cut off had come to it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                known.push(child.key(namespace, id).to_string());
            }
            Err(error) => return Err(read_error(error)),
        }
    }
    let segments = object.segments.iter();
    known.extend(segments.map(|e| e.key(namespace, id).to_string()));
    let images = object.images.iter();
    known.extend(images.map(|e| e.key(namespace, id).to_string()));
    Ok(known)
}

const fn writer(object: &DatabaseObject) -> Option<Term> {
    match object {
        DatabaseObject::Segment { nonce, .. }
        | DatabaseObject::Image { nonce, .. }
        | DatabaseObject::Index { nonce, .. } => Some(nonce.term),
        DatabaseObject::Manifest
        | DatabaseObject::Key
        | DatabaseObject::Archive(_)
        | DatabaseObject::ArchiveText(_)
        | DatabaseObject::ArchiveMetadata(_) => None,
    }
}

/// Finds what is garbage at `now`.
pub(crate) async fn find(
    core: &Arc<Core>,
    namespace: NamespaceId,
    id: DatabaseId,
    now: Timestamp,
) -> Result<Vec<ObjectGone>, Error> {
    // In this order: what is owed becomes a stored section, and that a segment the manifest lists.
    if core.journal.owes(id) || !core.tails.of(id).is_empty() {
        return Ok(Vec::new());
    }
    let loaded = core.remote.owned_manifest(namespace, id).await?;
    let manifest = &loaded.manifest;
    let manifests = core.remote.manifests(namespace, id);
    let prefix = Key::database_prefix(namespace, id);
    let listed = core.remote.store.list(&prefix).await;
    let listed = listed.map_err(|e| store_error("list the objects of a database", e))?;
    let mut known = HashSet::new();
    keys_of_root(manifest, &mut known);
    let old = |entry: &tidelog_archive::store::Entry| {
        let ours = match Key::parse(&entry.key) {
            Some(Key::Database(ns, db, object)) if (ns, db) == (namespace, id) => object,
            _ => return false,
        };
        let written = entry.last_modified.micros().saturating_add(GRACE_MICROS);
        writer(&ours).is_some_and(|term| term < core.term()) && written <= now.micros()
    };
    let mut found: Vec<_> = listed.into_iter().filter(old).collect();
    found.retain(|entry| !known.contains(&entry.key));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut known = keys_below(&manifests, manifest, |_| true).await?;
    for marked in &manifest.marked {
        known.extend(keys_under(&manifests, (namespace, id), marked).await?);
    }
    found.retain(|entry| !known.contains(&entry.key));
    let gone = |entry: tidelog_archive::store::Entry| ObjectGone {
        key: entry.key,
        bytes: entry.length,
    };
    Ok(found.into_iter().map(gone).collect())
}
