//! A history in a store: segments, images, journal sections and the manifest that lists them. Where the suites run
//! sealed all of them are, each database's with a data key of its own; the first database is the bucket's own.

use std::sync::Arc;

use tidelog_archive::SystemEntropy;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::image::{ImageMeta, ImageWriter};
use tidelog_archive::journal::{JournalObject, JournalObjectBuilder};
use tidelog_archive::key::{Key, KeyNonce, NonceSource, Seq};
use tidelog_archive::manifest::{
    ImageEntry, Loaded, Manifest, ManifestStore, PublishError, SegmentEntry,
};
use tidelog_archive::plan::{History as Known, Layer, Plan, PlanError, TailSection, Target, Terms};
use tidelog_archive::restore::{MemorySink, RestoreError, RestoreSettings, execute};
use tidelog_archive::seal::{KeyObject, Keyring, SealKey, Stamp};
use tidelog_archive::segment::SegmentWriter;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_testkit::sealing;
use tidelog_wal::block::Compressor;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, PageNo, Position, Term, Timestamp};

use super::manifests::empty;
use super::{History, NAMESPACE, SEED, count, digest};

pub(crate) const TERMS: Terms = Terms {
    highest_claimed: Term::new(3),
    present: Some(Term::new(3)),
};

/// A history and what of it stands where.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) history: History,
    pub(crate) manifests: ManifestStore,
    pub(crate) manifest: Manifest,
    pub(crate) tail: Vec<TailSection>,
    /// The layers below: parents.
    pub(crate) parents: Vec<Layer>,
    counter: u64,
}

impl World {
    pub(crate) fn new(history: History) -> Self {
        let store = Store::open("memory:", StoreOptions::default()).expect("memory");
        Self::in_store(store, history)
    }

    pub(crate) fn in_store(store: Store, history: History) -> Self {
        let store = keyed(store, history.database);
        let mut manifest = empty();
        manifest.database = history.database;
        manifest.page_size = history.page_size;
        let manifests = ManifestStore::new(
            store.clone(),
            NAMESPACE,
            history.database,
            Arc::new(SystemEntropy),
        );
        Self {
            store,
            manifests,
            manifest,
            history,
            tail: Vec::new(),
            parents: Vec::new(),
            counter: 0,
        }
    }

    /// A stamp for an object of the database.
    pub(crate) fn stamp(&self, id: WriteId) -> Stamp {
        match self.key() {
            None => Stamp::plain(id),
            key => Stamp::shared(&SystemEntropy, key),
        }
    }

    fn key(&self) -> Option<Arc<SealKey>> {
        let keys = self.store.keys();
        let key = keys.sealing(NAMESPACE, self.history.database);
        key.expect("the data key is at hand")
    }

    fn nonce(&mut self) -> KeyNonce {
        self.counter += 1;
        super::manifests::nonce(self.counter)
    }

    /// Writes a segment object without listing it.
    pub(crate) async fn write_segment(&mut self, first: u64, last: u64) -> SegmentEntry {
        let ids = (NAMESPACE, self.history.database);
        let chain = self.history.at(first).chain_before;
        let size = self.history.page_size;
        let mut writer = SegmentWriter::new(
            ids,
            size,
            SEED,
            chain,
            self.stamp(WriteId([7; 16])),
            Compressor::new(1),
        );
        for txid in first..=last {
            writer.push(&self.history.at(txid).bytes).expect("record");
        }
        let (finished, meta, _) = writer.finish().expect("finish");
        let entry = SegmentEntry {
            run: meta.run,
            nonce: self.nonce(),
            len: finished.len,
            blake3: finished.blake3,
        };
        let key = entry.key(NAMESPACE, self.history.database).to_string();
        self.store
            .create(&key, finished.bytes)
            .await
            .expect("create");
        entry
    }

    /// Writes and lists a segment.
    pub(crate) async fn settle(&mut self, first: u64, last: u64) -> SegmentEntry {
        let entry = self.write_segment(first, last).await;
        self.manifest.append_segment(entry);
        entry
    }

    /// Writes an image object without listing it.
    pub(crate) async fn write_image(&mut self, txid: u64) -> ImageEntry {
        let position = self.history.at(txid).position;
        self.write_image_at(txid, position).await
    }

    /// Writes an image of commit `txid` that says it is at `position`.
    pub(crate) async fn write_image_at(&mut self, txid: u64, position: Position) -> ImageEntry {
        let commit = self.history.at(txid).clone();
        let meta = ImageMeta {
            namespace: NAMESPACE,
            database: self.history.database,
            page_size: self.history.page_size,
            seed: SEED,
            position,
            time: commit.header.time,
            n: count(commit.pages.len()),
            digest: digest(self.history.page_size, &commit.pages),
        };
        let stamp = self.stamp(WriteId([7; 16]));
        let mut writer = ImageWriter::new(meta, stamp, Compressor::new(1));
        for (number, page) in (1..).zip(&commit.pages) {
            writer
                .page(PageNo::new(number).expect("from 1"), page)
                .expect("page");
        }
        let finished = writer.finish().expect("finish").0;
        let entry = ImageEntry {
            position: meta.position,
            time: meta.time,
            n: meta.n,
            digest: meta.digest,
            nonce: self.nonce(),
            len: finished.len,
            blake3: finished.blake3,
        };
        let key = entry.key(NAMESPACE, self.history.database).to_string();
        self.store
            .create(&key, finished.bytes)
            .await
            .expect("create");
        entry
    }

    pub(crate) async fn image(&mut self, txid: u64) -> ImageEntry {
        let entry = self.write_image(txid).await;
        self.manifest.add_image(entry);
        entry
    }

    /// Ships the records as a journal object.
    pub(crate) async fn ship(&mut self, seq: u64, first: u64, last: u64) {
        let (term, seq) = (Term::new(3), Seq::new(seq));
        let (keys, section) = (self.store.keys(), self.history.section(first, last));
        let stamp = keys.journal_stamp(&SystemEntropy).expect("a stamp");
        let mut builder = JournalObjectBuilder::new(term, seq, (0, 1), stamp, Compressor::new(1));
        builder
            .section(section, self.key().as_deref())
            .expect("section");
        for txid in first..=last {
            builder.push(&self.history.at(txid).bytes).expect("record");
        }
        let bytes = builder.finish().expect("finish").0.bytes;
        let journal = JournalObject::decode(&bytes, term, seq, keys).expect("decode");
        self.tail
            .push(TailSection::of(&journal, &journal.sections[0]));
        let key = Key::Journal(term, seq).to_string();
        self.store.create(&key, bytes).await.expect("create");
    }

    /// Publishes the manifest with old entries folded away, as `publish` does.
    pub(crate) async fn fold(&mut self) {
        let mut first = self.manifest.clone();
        first.segments.clear();
        first.images.clear();
        first.settled = None;
        first.version = 1;
        let current: Loaded = self.manifests.create(first).await.expect("create");
        let nonces = NonceSource::new(Term::new(3), 1 << 50);
        let (segments, images) = (self.manifest.segments.clone(), self.manifest.images.clone());
        let owner = self.manifest.owner;
        let change = |manifest: &mut Manifest| -> Result<(), PublishError> {
            for entry in &segments {
                manifest.append_segment(*entry);
            }
            for entry in &images {
                manifest.add_image(*entry);
            }
            Ok(())
        };
        let published = self
            .manifests
            .publish(&current, owner, &nonces, change)
            .await;
        self.manifest = published.expect("publish").manifest;
    }

    pub(crate) fn layer(&self) -> Layer {
        assert_eq!(self.manifest.check_self(), Ok(()), "a sound manifest");
        Layer {
            manifests: self.manifests.clone(),
            manifest: self.manifest.clone(),
            tail: self.tail.clone(),
        }
    }

    pub(crate) fn known(&self) -> Known {
        let mut layers = vec![self.layer()];
        layers.extend(self.parents.iter().cloned());
        Known::new(layers).expect("at least one layer")
    }

    pub(crate) async fn plan(
        &self,
        target: Target,
        base: Option<Position>,
    ) -> Result<Plan, PlanError> {
        let mut known = self.known();
        let resolved = known.resolve(&self.store, target, TERMS).await?;
        known.plan(resolved, base).await
    }

    /// Executes a plan and compares the file with the state remembered.
    pub(crate) async fn check(&self, plan: &Plan, base: Option<MemorySink>) {
        let bytes = base.unwrap_or_default().bytes;
        let commit = self.history.at(plan.target.position.txid.get());
        let expected = file(commit.position.txid.get(), &commit.pages);
        // Deltas that spill, and such as all fit into memory, are led to the file in different ways.
        for settings in [self.little_memory(), RestoreSettings::default()] {
            let sink = MemorySink {
                bytes: bytes.clone(),
            };
            let restored = execute(&self.store, plan, sink, settings).await;
            let (restored, _) = restored.unwrap_or_else(|error| panic!("{error:?}\n{plan}"));
            assert!(restored.bytes == expected, "{settings:?}: {plan}");
        }
    }

    /// So little that gathered deltas spill.
    fn little_memory(&self) -> RestoreSettings {
        RestoreSettings {
            gather_bytes_max: 4 * self.history.page_size.bytes(),
            fetches: 3,
        }
    }

    pub(crate) async fn restore(
        &self,
        plan: &Plan,
        sink: MemorySink,
    ) -> Result<MemorySink, RestoreError> {
        let settings = self.little_memory();
        Ok(execute(&self.store, plan, sink, settings).await?.0)
    }

    /// The object of a listed segment as it is named.
    pub(crate) fn named(&self, entry: &SegmentEntry) -> ObjectRef {
        entry.object(NAMESPACE, self.history.database)
    }

    pub(crate) fn time(&self, txid: u64) -> Timestamp {
        self.history.at(txid).header.time
    }
}

/// The store with a data key for a database, if the suites run sealed.
fn keyed(store: Store, database: DatabaseId) -> Store {
    if !sealing::sealed() {
        return store;
    }
    let ring = if store.keys().is_on() {
        store.keys().clone()
    } else {
        Keyring::new(sealing::masters())
    };
    let (masters, now) = (ring.masters(), Timestamp::from_micros(1));
    let master = masters.newest().expect("the test master key");
    let mut object = KeyObject::new(NAMESPACE, database, now, false);
    object.add(&SealKey::draw(&SystemEntropy, now), master, &SystemEntropy);
    ring.admit(&object).expect("a key that was just wrapped");
    if ring.system().is_none() {
        ring.set_system(NAMESPACE, database);
    }
    store.with_keys(ring)
}

/// The file of a state: page 1 carries the TxId.
pub(crate) fn file(txid: u64, pages: &[Vec<u8>]) -> Vec<u8> {
    let mut file: Vec<u8> = pages.concat();
    for at in [24, 92] {
        if let Some(slot) = file.get_mut(at..at + 4) {
            slot.copy_from_slice(&(txid as u32).to_be_bytes());
        }
    }
    file
}
