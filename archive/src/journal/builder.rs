//! Builds a journal object from the records of a sealed chunk.

use tidelog_wal::Term;
use tidelog_wal::block::Compressor;
use tidelog_wal::codec::put_varint;

use super::SECTIONS_MAX;
use super::section::{Section, SectionMeta};
use crate::envelope::{
    BlockTable, BlockWriter, Expect, Finished, FormatError, KeyId, ObjectKind, ObjectNonce,
    ObjectWriter,
};
use crate::key::Seq;
use crate::records::{RECORD_WHOLE_MAX, RecordCutter};
use crate::seal::{BlockSealer, SealKey, Stamp};

/// Builds a journal object: [`section`](Self::section), its records by [`push`](Self::push), the next
/// section, and [`finish`](Self::finish).
#[derive(Debug)]
pub struct JournalObjectBuilder {
    term: Term,
    seq: Seq,
    first_local: u64,
    last_local: u64,
    object: ObjectWriter,
    blocks: BlockWriter,
    sections: Vec<Section>,
    open: Option<OpenSection>,
    next_block: u64,
}

#[derive(Debug)]
struct OpenSection {
    meta: SectionMeta,
    cutter: RecordCutter,
    table: BlockTable,
    records: u64,
}

impl JournalObjectBuilder {
    /// The object `seq` of `term`, holding the local records from `first_local` to `last_local`.
    pub fn new(
        term: Term,
        seq: Seq,
        (first_local, last_local): (u64, u64),
        stamp: Stamp,
        compressor: Compressor,
    ) -> Self {
        Self {
            term,
            seq,
            first_local,
            last_local,
            object: ObjectWriter::new(Expect::node(ObjectKind::Journal), stamp),
            blocks: BlockWriter::new(compressor),
            sections: Vec::new(),
            open: None,
            next_block: 0,
        }
    }

    /// Ends the section before and begins one, sealed with `key`, or plain without one.
    pub fn section(&mut self, meta: SectionMeta, key: Option<&SealKey>) -> Result<(), FormatError> {
        self.close()?;
        let header = *self.object.header();
        if key.is_some() && header.nonce == ObjectNonce::default() {
            return Err(FormatError::Unwritable {
                what: "a sealed section in a plain journal object",
            });
        }
        let meta = SectionMeta {
            key_id: key.map_or(KeyId::default(), |key| key.id),
            ..meta
        };
        let ids = (meta.namespace, meta.database);
        self.object
            .set_sealer(key.map(|key| BlockSealer::new(&key.key, header.kind, header.nonce, ids)));
        if meta.records().is_none() || self.sections.len() >= SECTIONS_MAX {
            return Err(FormatError::Unwritable {
                what: "a section's txids are out of order, or there are too many sections",
            });
        }
        self.open = Some(OpenSection {
            meta,
            cutter: RecordCutter::new(),
            table: BlockTable::default(),
            records: 0,
        });
        Ok(())
    }

    /// Adds the canonical bytes of the section's next record.
    pub fn push(&mut self, record: &[u8]) -> Result<(), FormatError> {
        let Some(open) = &mut self.open else {
            return Err(FormatError::Unwritable {
                what: "a record outside any section",
            });
        };
        if record.len() > RECORD_WHOLE_MAX {
            return Err(FormatError::Unwritable {
                what: "a record above 2 MiB belongs into a segment part",
            });
        }
        let table = &mut open.table;
        let mut written = |entry| table.blocks.push(entry);
        let (object, blocks) = (&mut self.object, &mut self.blocks);
        open.cutter
            .begin(record.len() as u64, object, blocks, &mut written);
        open.cutter.part(record, object, blocks, &mut written);
        open.records += 1;
        Ok(())
    }

    /// Raw bytes that [`push`](Self::push) took so far, roughly: stored blocks and the open one.
    pub fn stored_len(&self) -> u64 {
        self.object.offset()
    }

    fn close(&mut self) -> Result<(), FormatError> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if Some(open.records) != open.meta.records() {
            return Err(FormatError::Unwritable {
                what: "a section holds another number of records than it says",
            });
        }
        let table = &mut open.table;
        open.cutter
            .flush(&mut self.object, &mut self.blocks, &mut |entry| {
                table.blocks.push(entry);
            });
        let count = open.table.blocks.len() as u64;
        self.sections.push(Section {
            meta: open.meta,
            table: open.table,
            first_block: self.next_block,
        });
        self.next_block += count;
        Ok(())
    }

    /// Ends the object. The compressor is handed back for the next one.
    pub fn finish(mut self) -> Result<(Finished, Compressor), FormatError> {
        self.close()?;
        let locals = self.last_local.checked_sub(self.first_local);
        let (Some(locals), true) = (locals, self.seq >= Seq::FIRST) else {
            return Err(FormatError::Unwritable {
                what: "local records out of order, or journal object 0",
            });
        };
        let mut index = Vec::new();
        put_varint(&mut index, u64::from(self.term.get()));
        put_varint(&mut index, self.seq.get());
        put_varint(&mut index, self.first_local);
        put_varint(&mut index, locals);
        put_varint(&mut index, self.sections.len() as u64);
        for section in &self.sections {
            section.encode(&mut index);
        }
        let finished = self.object.finish(&index)?;
        Ok((finished, self.blocks.into_compressor()))
    }
}
