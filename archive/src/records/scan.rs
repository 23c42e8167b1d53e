//! Reads a stream page by page, records of any size in bounded memory.
//!
//! A record of up to 2 MiB is looked at in one piece; of a longer one only its head and one page at a time
//! are held. Either way the chain runs over all of its bytes, and its end is announced only once it is
//! proven to be whole; that it is the right record is proven where the chain is compared.

use tidelog_wal::chain::ChainHasher;
use tidelog_wal::codec::Reader;
use tidelog_wal::delta::{PageDelta, PageReader};
use tidelog_wal::record::{ObjectRef, POSITION_LEN, RecordBody, RecordHeader};
use tidelog_wal::{
    Chain, CommitRecord, DatabaseId, DecodeError, PageCount, PageSize, Position, RecordKind, TxId,
};

use super::walk::ChainWalk;
use super::{RECORD_LEN_MAX, RECORD_WHOLE_MAX};
use crate::envelope::FormatError;

/// Everything of a record but its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// The header.
    pub header: RecordHeader,
    /// The rest.
    pub body: BodyHead,
}

/// A record's body without its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyHead {
    /// Pages follow.
    Delta,
    /// Every page stands in an image object.
    Image(ObjectRef),
    /// The first commit of a fork.
    Fork {
        /// The parent.
        parent: DatabaseId,
        /// Its Position.
        at: Position,
    },
    /// A rewind; pages follow.
    Restore {
        /// Where it started.
        from: Position,
        /// Whose state it restored.
        to: Position,
        /// What an undo goes back to.
        undo: Position,
    },
    /// The record stands in a segment part.
    Reference {
        /// Which.
        object: ObjectRef,
        /// The chain after it.
        chain: Chain,
    },
}

impl RecordHead {
    /// The head of a whole record.
    pub fn of(record: CommitRecord<'_>) -> Self {
        let body = match record.body {
            RecordBody::Delta(_) => BodyHead::Delta,
            RecordBody::Image(object) => BodyHead::Image(object),
            RecordBody::Fork { parent, at } => BodyHead::Fork { parent, at },
            RecordBody::Restore { from, to, undo, .. } => BodyHead::Restore { from, to, undo },
            RecordBody::Reference { object, chain } => BodyHead::Reference { object, chain },
        };
        Self {
            header: record.header,
            body,
        }
    }
}

/// Sees the records of a stream.
pub trait RecordVisitor {
    /// Why it stops.
    type Error: From<FormatError>;

    /// Whether pages are shown. Pages that are not shown are not proven either, beyond what the chain proves.
    const PAGES: bool = true;

    /// A record begins.
    fn begin(&mut self, head: &RecordHead) -> Result<(), Self::Error>;

    /// One page of it.
    fn page(&mut self, page: &PageDelta<'_>) -> Result<(), Self::Error>;

    /// All of its pages were seen.
    fn end(&mut self, position: &Position) -> Result<(), Self::Error>;
}

/// The chain after each record that ends in the bytes at hand, in order: what a [`ChainList`] was told of the same
/// bytes.
pub type KnownChains = std::vec::IntoIter<Chain>;

/// Where the chain after a record comes from.
enum Chains<'c> {
    Hashed,
    Known(&'c mut KnownChains),
}

impl Chains<'_> {
    /// The chain after the next record that ends, if it need not be hashed.
    fn known(&mut self) -> Result<Option<Chain>, FormatError> {
        match self {
            Self::Hashed => Ok(None),
            Self::Known(chains) => {
                let missing = FormatError::invalid(0, "end of the records");
                chains.next().map(Some).ok_or(missing)
            }
        }
    }
}

/// Hears the chain after every record: what [`RecordScanner::feed_known`] takes, so that one thread hashes and another
/// one applies.
#[derive(Debug, Default)]
pub struct ChainList(pub Vec<Chain>);

impl RecordVisitor for ChainList {
    type Error = FormatError;

    const PAGES: bool = false;

    fn begin(&mut self, _: &RecordHead) -> Result<(), FormatError> {
        Ok(())
    }

    fn page(&mut self, _: &PageDelta<'_>) -> Result<(), FormatError> {
        Ok(())
    }

    fn end(&mut self, position: &Position) -> Result<(), FormatError> {
        self.0.push(position.chain);
        Ok(())
    }
}

/// A record longer than what is held at once.
#[derive(Debug)]
struct Long {
    head: RecordHeader,
    hasher: ChainHasher,
    /// Bytes of it that have not arrived yet.
    missing: u64,
    last_page: u32,
    max: PageCount,
}

/// Takes raw blocks and shows a visitor the records in them.
#[derive(Debug)]
pub struct RecordScanner {
    page_size: PageSize,
    walk: ChainWalk,
    carry: Vec<u8>,
    long: Option<Long>,
}

impl RecordScanner {
    /// A scanner at the start of a record, the one that `walk` expects.
    pub const fn new(page_size: PageSize, walk: ChainWalk) -> Self {
        Self {
            page_size,
            walk,
            carry: Vec::new(),
            long: None,
        }
    }

    /// How far the stream was proven.
    pub const fn walk(&self) -> ChainWalk {
        self.walk
    }

    /// Takes the next bytes of the stream. Offsets in errors are of no block in particular: callers shift
    /// them to where the bytes came from.
    pub fn feed<V: RecordVisitor>(&mut self, raw: &[u8], visitor: &mut V) -> Result<(), V::Error> {
        self.feed_from(raw, &mut Chains::Hashed, visitor)
    }

    /// The same for bytes whose chains another scanner hashed: nothing is hashed, and each record that ends takes the
    /// next of `chains`. Every scanner of one stream must be fed this way from its start, or none of its bytes.
    pub fn feed_known<V: RecordVisitor>(
        &mut self,
        raw: &[u8],
        chains: &mut KnownChains,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        self.feed_from(raw, &mut Chains::Known(chains), visitor)
    }

    fn feed_from<V: RecordVisitor>(
        &mut self,
        raw: &[u8],
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        if self.carry.is_empty() {
            let used = self.scan(raw, 0, chains, visitor)?;
            self.carry
                .extend_from_slice(raw.get(used..).unwrap_or_default());
            return Ok(());
        }
        let held = self.carry.len();
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(raw);
        let used = self.scan(&bytes, held, chains, visitor)?;
        bytes.drain(..used);
        self.carry = bytes;
        Ok(())
    }

    /// Refuses a stream that does not end here, with `last` and the chain after it.
    pub fn finish(&self, last: TxId, chain_after: Chain, offset: u64) -> Result<(), FormatError> {
        if !self.carry.is_empty() || self.long.is_some() || self.walk.next != last.next() {
            return Err(FormatError::invalid(0, "end of the records").shifted(offset));
        }
        self.check_chain(chain_after, offset)
    }

    /// Refuses a stream whose chain so far is another.
    pub fn check_chain(&self, expected: Chain, offset: u64) -> Result<(), FormatError> {
        if self.walk.chain == expected {
            return Ok(());
        }
        Err(FormatError::Chain {
            offset,
            txid: self.walk.next.prev().unwrap_or_default(),
            found: self.walk.chain,
            expected,
        })
    }

    /// Consumes what it can of `bytes`, of which the first `held` were seen before; answers how many.
    fn scan<V: RecordVisitor>(
        &mut self,
        bytes: &[u8],
        held: usize,
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<usize, V::Error> {
        let mut used = 0;
        let mut held = held;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            let now = if self.long.is_some() {
                self.continue_long(rest, held, chains, visitor)?
            } else {
                self.next_record(rest, chains, visitor)?
            };
            // Of a long record, everything at hand was hashed by now.
            held = if self.long.is_some() {
                rest.len() - now
            } else {
                0
            };
            used += now;
            if now == 0 || used == bytes.len() {
                return Ok(used);
            }
        }
    }

    /// Consumes the next whole record, or the head of a long one; 0 if more bytes are needed.
    fn next_record<V: RecordVisitor>(
        &mut self,
        bytes: &[u8],
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<usize, V::Error> {
        let mut reader = Reader::new(bytes);
        let len = match reader.varint() {
            Ok(len) => len,
            Err(DecodeError::Short { .. }) => return Ok(0),
            Err(error) => return Err(FormatError::from(error).into()),
        };
        if len > RECORD_LEN_MAX {
            return Err(FormatError::invalid(0, "record length").into());
        }
        let prefix = reader.offset();
        let have = reader.remaining() as u64;
        if len <= have {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let record = reader.take(len).map_err(FormatError::from)?;
            self.whole(record, chains, visitor)?;
            return Ok(prefix + len);
        }
        if have < RECORD_WHOLE_MAX as u64 {
            return Ok(0);
        }
        let used = self.begin_long(reader.rest(), len, chains, visitor)?;
        Ok(prefix + used)
    }

    fn whole<V: RecordVisitor>(
        &mut self,
        bytes: &[u8],
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let stepped = match chains.known()? {
            None => self.walk.step(bytes),
            Some(chain) => self.walk.step_known(bytes, chain),
        };
        let (record, position) = stepped.map_err(FormatError::from)?;
        let pages = record.pages(self.page_size).filter(|_| V::PAGES);
        visitor.begin(&RecordHead::of(record))?;
        if let Some(mut pages) = pages {
            while let Some(page) = pages.next_page().map_err(FormatError::from)? {
                visitor.page(&page)?;
            }
        }
        visitor.end(&position)
    }

    fn begin_long<V: RecordVisitor>(
        &mut self,
        bytes: &[u8],
        len: u64,
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<usize, V::Error> {
        let mut reader = Reader::new(bytes);
        let (header, kind) = RecordHeader::decode(&mut reader).map_err(FormatError::from)?;
        self.walk.expect(header.txid).map_err(FormatError::from)?;
        let body = match kind {
            RecordKind::Delta => BodyHead::Delta,
            RecordKind::Restore => {
                let mut record = bytes
                    .get(..reader.offset() + 3 * POSITION_LEN)
                    .map(CommitRecord::decode)
                    .unwrap_or(Err(DecodeError::Short {
                        offset: 0,
                        need: 3 * POSITION_LEN,
                        have: reader.remaining(),
                    }))
                    .map(RecordHead::of)
                    .map_err(FormatError::from)?;
                reader.take(3 * POSITION_LEN).map_err(FormatError::from)?;
                std::mem::replace(&mut record.body, BodyHead::Delta)
            }
            RecordKind::Image | RecordKind::Fork | RecordKind::Reference => {
                return Err(FormatError::invalid(0, "length of a record without pages").into());
            }
        };
        let used = reader.offset();
        let mut hasher = ChainHasher::after(self.walk.chain);
        if matches!(chains, Chains::Hashed) {
            hasher.update(bytes);
        }
        let head = RecordHead { header, body };
        visitor.begin(&head)?;
        let max = head.header.n_before.max(head.header.n_after);
        self.long = Some(Long {
            head: head.header,
            hasher,
            missing: len - bytes.len() as u64,
            last_page: 0,
            max,
        });
        // The bytes behind the head were hashed already: they count as held.
        let rest = bytes.get(used..).unwrap_or_default();
        Ok(used + self.continue_long(rest, rest.len(), chains, visitor)?)
    }

    /// Consumes pages of the long record from `bytes`, of which the first `held` were hashed already.
    fn continue_long<V: RecordVisitor>(
        &mut self,
        bytes: &[u8],
        held: usize,
        chains: &mut Chains<'_>,
        visitor: &mut V,
    ) -> Result<usize, V::Error> {
        let Some(mut long) = self.long.take() else {
            return Ok(0);
        };
        let fresh = bytes.get(held..).unwrap_or_default();
        let fresh_len = usize::try_from(long.missing)
            .unwrap_or(usize::MAX)
            .min(fresh.len());
        if matches!(chains, Chains::Hashed) {
            long.hasher
                .update(fresh.get(..fresh_len).unwrap_or_default());
        }
        long.missing -= fresh_len as u64;
        let ours = bytes.get(..held + fresh_len).unwrap_or_default();
        let used = if V::PAGES {
            let mut pages = PageReader::resume(ours, self.page_size, long.max, long.last_page);
            loop {
                match pages.next_page() {
                    Ok(Some(page)) => visitor.page(&page)?,
                    Ok(None) => break,
                    Err(DecodeError::Short { .. }) if long.missing > 0 => break,
                    Err(error) => return Err(FormatError::from(error).into()),
                }
            }
            long.last_page = PageReader::last(&pages);
            pages.consumed()
        } else {
            ours.len()
        };
        if long.missing == 0 {
            let chain = match chains.known()? {
                None => long.hasher.finish(),
                Some(chain) => chain,
            };
            let position = self.walk.advance(&long.head, chain);
            visitor.end(&position)?;
        } else {
            self.long = Some(long);
        }
        Ok(used)
    }
}
