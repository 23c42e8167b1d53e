//! What a manifest lists, index objects read where they may hold something that expires.

use std::pin::Pin;

use tidelog_archive::index::IndexObject;
use tidelog_archive::manifest::{
    ImageEntry, IndexEntry, Manifest, ManifestStore, PublishError, SegmentEntry,
};
use tidelog_wal::{Timestamp, TxId};

/// An index object and all below it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) entry: IndexEntry,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) segments: Vec<SegmentEntry>,
    pub(crate) children: Vec<Self>,
}

impl Node {
    /// Hands out every segment and image below.
    pub(crate) fn visit(
        &self,
        segment: &mut dyn FnMut(&SegmentEntry),
        image: &mut dyn FnMut(&ImageEntry),
    ) {
        for child in &self.children {
            child.visit(segment, image);
        }
        self.segments.iter().for_each(segment);
        self.images.iter().for_each(image);
    }
}

/// A manifest, with the index objects that begin before some time.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    pub(crate) manifest: Manifest,
    /// The oldest index objects of the root, in its order.
    pub(crate) nodes: Vec<Node>,
}

type Loading<'a> = Pin<Box<dyn Future<Output = Result<Node, PublishError>> + Send + 'a>>;

fn load_node(manifests: &ManifestStore, entry: IndexEntry) -> Loading<'_> {
    Box::pin(async move {
        let IndexObject {
            children,
            images,
            segments,
        } = manifests.load_index(&entry).await?;
        let mut below = Vec::with_capacity(children.len());
        for child in children {
            below.push(load_node(manifests, child).await?);
        }
        Ok(Node {
            entry,
            images,
            segments,
            children: below,
        })
    })
}

impl Catalog {
    /// Reads the index objects of `manifest` that begin at or before `cutoff`.
    pub(crate) async fn load(
        manifests: &ManifestStore,
        manifest: &Manifest,
        cutoff: Timestamp,
    ) -> Result<Self, PublishError> {
        let mut nodes = Vec::new();
        let old = |entry: &&IndexEntry| entry.run.first_time <= cutoff;
        for entry in manifest.index.iter().take_while(old) {
            nodes.push(load_node(manifests, *entry).await?);
        }
        Ok(Self {
            manifest: manifest.clone(),
            nodes,
        })
    }

    /// Reads one index object and all below it.
    pub(crate) async fn node(
        manifests: &ManifestStore,
        entry: IndexEntry,
    ) -> Result<Node, PublishError> {
        load_node(manifests, entry).await
    }

    /// Every known segment and image, ascending.
    pub(crate) fn entries(&self) -> (Vec<SegmentEntry>, Vec<ImageEntry>) {
        let (mut segments, mut images) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            node.visit(&mut |entry| segments.push(*entry), &mut |entry| {
                images.push(*entry);
            });
        }
        // The root goes on behind what was read only if nothing was left out.
        if self.nodes.len() == self.manifest.index.len() {
            segments.extend(&self.manifest.segments);
        }
        images.extend(&self.manifest.images);
        segments.sort_by_key(|entry| entry.run.first);
        images.sort_by_key(|entry| entry.position.txid);
        (segments, images)
    }

    /// The newest commit at or before `cutoff` at which a known run or image ends.
    pub(crate) fn end_before(&self, cutoff: Timestamp) -> TxId {
        let (segments, images) = self.entries();
        let run = segments.iter().rev().find(|e| e.run.last_time <= cutoff);
        let image = images.iter().rev().find(|e| e.time <= cutoff);
        let run = run.map_or(TxId::ZERO, |e| e.run.last);
        run.max(image.map_or(TxId::ZERO, |e| e.position.txid))
    }
}
