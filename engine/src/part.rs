//! Segment parts: a large commit uploaded on its own, as a segment of one record.
//!
//! The journal object then holds a `reference` record for it (key, length, BLAKE3, and the chain after the
//! record itself). Settling lists the part as what it is, a segment: its bytes are never uploaded again.

use std::path::Path;
use std::sync::Arc;

use tidelog_archive::envelope::Finished;
use tidelog_archive::key::{DatabaseObject, Key};
use tidelog_archive::manifest::SegmentEntry;
use tidelog_archive::records::Run;
use tidelog_archive::segment::SegmentWriter;
use tidelog_wal::block::Compressor;
use tidelog_wal::codec::Reader;
use tidelog_wal::record::{CommitRecord, ObjectRef, RecordBody, RecordHeader, RecordKind};
use tidelog_wal::{Chain, TxId};

use crate::core::Core;
use crate::crash_point;
use crate::error::{Code, Error};
use crate::journal::chunk::{ChunkDatabase, Entries, Entry};
use crate::spool::{read_pieces, spool_path};
use crate::upload::{self, Pieces};

/// A spooled record of a chunk.
#[derive(Debug, Clone)]
pub(crate) struct SpooledRecord {
    pub(crate) lsn: u64,
    database: ChunkDatabase,
    chain_before: Chain,
    txid: TxId,
    header: Vec<u8>,
    len: u64,
    blake3: [u8; 32],
}

fn header_of(bytes: &[u8]) -> Result<(RecordHeader, RecordKind), Error> {
    RecordHeader::decode(&mut Reader::new(bytes))
        .map_err(|e| Error::new(Code::DatabaseCorrupt, "a spooled record").caused_by(e))
}

/// The spooled records of a chunk.
pub(crate) fn spooled_records(core: &Core, chunk: &Path) -> Result<Vec<SpooledRecord>, Error> {
    let io = |e| Error::io(format!("read {}", chunk.display()), e);
    let file = core.parts.disk.read(chunk).map_err(io)?;
    let mut databases: Vec<(ChunkDatabase, Chain)> = Vec::new();
    let mut found = Vec::new();
    for entry in Entries::new(&file) {
        let at = match entry {
            Entry::Database { database, .. } => {
                databases.push((database, database.chain_before));
                continue;
            }
            Entry::Record { at, .. } | Entry::Spooled { at, .. } => at,
        };
        let Some((database, chain)) = databases.get_mut(at.slot as usize) else {
            return Err(Error::new(
                Code::DatabaseCorrupt,
                "a record of an unnamed database",
            ));
        };
        let chain_before = std::mem::replace(chain, at.chain);
        if let Entry::Spooled {
            len,
            blake3,
            header,
            ..
        } = entry
        {
            found.push(SpooledRecord {
                lsn: at.lsn,
                database: *database,
                chain_before,
                txid: header_of(header)?.0.txid,
                header: header.to_vec(),
                len,
                blake3,
            });
        }
    }
    Ok(found)
}

/// Uploads a spooled record as a segment of its database, in pieces.
pub(crate) async fn upload(core: &Arc<Core>, record: &SpooledRecord) -> Result<ObjectRef, Error> {
    let database = &record.database;
    let nonce = core.remote.nonces.next();
    let key = Key::segment(
        database.namespace,
        database.id,
        record.txid,
        record.txid,
        nonce,
    );
    crash_point!("part.before_put");
    let (writer_core, spooled) = (Arc::clone(core), record.clone());
    let write = move |pieces: &Pieces| write(&writer_core, &spooled, pieces);
    let finished = upload::upload(core, &key.to_string(), write).await?;
    crash_point!("part.after_put");
    Ok(finished.object_ref(&key))
}

fn write(core: &Core, record: &SpooledRecord, pieces: &Pieces) -> Result<Finished, Error> {
    let database = &record.database;
    let format = |e| Error::internal("write a segment part").caused_by(e);
    let mut writer = SegmentWriter::new(
        (database.namespace, database.id),
        database.page_size,
        database.seed,
        record.chain_before,
        core.remote.part_stamp(database.namespace, database.id)?,
        Compressor::new(core.settings.settle_level.min(core.settings.journal_level)),
    );
    let (header, kind) = header_of(&record.header)?;
    let len = record.header.len() as u64 + record.len;
    writer.begin(&header, kind, len).map_err(format)?;
    writer.part(&record.header).map_err(format)?;
    let path = spool_path(core.journal.folder(), database.id, record.txid);
    let mut hasher = blake3::Hasher::new();
    read_pieces(core.parts.disk.as_ref(), &path, record.len, |piece| {
        hasher.update(piece);
        writer.part(piece).map_err(format)?;
        pieces.push(writer.take())
    })?;
    if *hasher.finalize().as_bytes() != record.blake3 {
        let what = format!("spool file {} is damaged", path.display());
        return Err(Error::new(Code::DatabaseCorrupt, what));
    }
    let (finished, _, _) = writer.finish().map_err(format)?;
    pieces.push(finished.bytes.clone())?;
    Ok(finished)
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::io("read a spool file", error)
    }
}

/// The record that stands in the journal for a spooled one whose header is `header`.
pub(crate) fn reference(header: &[u8], object: ObjectRef, chain: Chain) -> Result<Vec<u8>, Error> {
    let (header, _) = header_of(header)?;
    let record = CommitRecord {
        header,
        body: RecordBody::Reference { object, chain },
    };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    Ok(bytes)
}

/// The manifest entry of the part that a reference record names.
pub(crate) fn entry(
    header: &RecordHeader,
    object: &ObjectRef,
    chain_before: Chain,
    chain_after: Chain,
) -> Result<SegmentEntry, Error> {
    let named = Key::parse(&object.key);
    let Some(Key::Database(_, _, DatabaseObject::Segment { nonce, .. })) = named else {
        let what = format!("a reference names {:?}, which is no segment", object.key);
        return Err(Error::new(Code::ObjectCorrupt, what));
    };
    Ok(SegmentEntry {
        run: Run::of(header, chain_before, chain_after),
        nonce,
        len: object.len,
        blake3: object.blake3,
    })
}
