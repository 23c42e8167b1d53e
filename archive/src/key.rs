//! Object keys: the grammar of everything that stands in a bucket.
//!
//! ```text
//! root                                                          cluster, format version, nodes
//! journal/{term:08x}/0000000000000000                           the claim of a term
//! journal/{term:08x}/{seq:016x}                                 journal object, or the fence; seq from 1
//! journal/{term:08x}/state                                      trimmed-below, inherited terms
//! tenants/{namespace}/{database}/manifest                       root of a database's history
//! tenants/{namespace}/{database}/key                            its wrapped data keys
//! tenants/{namespace}/{database}/index/{first:016x}-{last:016x}-{nonce}
//! tenants/{namespace}/{database}/segments/{first:016x}-{last:016x}-{nonce}
//! tenants/{namespace}/{database}/images/{txid:016x}-{nonce}
//! tenants/{namespace}/{database}/archives/{id}.db.zst           or {id}.sql.zst, and {id}.json
//! tenants/{namespace}/audit/{yyyy-mm-dd}/{nonce}.jsonl
//! ```
//!
//! Ids are 32 lower-case hex digits. A *nonce* is (term, counter), 8 and 16 hex digits: whoever judges an
//! unlisted object reads from its key which process life wrote it. Keys are built by [`Key`]'s `Display`
//! and read back by [`Key::parse`], which accepts exactly what the former writes: a key that does not parse
//! is none of ours and is never deleted.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use tidelog_wal::{DatabaseId, NamespaceId, Term, TxId};

/// Makes the keys of immutable objects unique: the process life that writes, and a number counted up in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyNonce {
    /// The process life that wrote the object.
    pub term: Term,
    /// Never used twice within the term.
    pub counter: u64,
}

impl fmt::Display for KeyNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", self.term, self.counter)
    }
}

impl KeyNonce {
    fn parse(text: &str) -> Option<Self> {
        let (term, counter) = text.split_at_checked(8)?;
        Some(Self {
            term: term_from(term)?,
            counter: hex_u64(counter)?,
        })
    }
}

/// Counts up the nonces of one process life.
#[derive(Debug)]
pub struct NonceSource {
    term: Term,
    next: AtomicU64,
}

impl NonceSource {
    /// Nonces of `term`, from counter `start` on. A process that goes on under a term it had before starts
    /// above all counters used then.
    pub const fn new(term: Term, start: u64) -> Self {
        Self {
            term,
            next: AtomicU64::new(start),
        }
    }

    /// A nonce no other call has given.
    pub fn next(&self) -> KeyNonce {
        KeyNonce {
            term: self.term,
            counter: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// The number of an object in a term's journal. 0 is the claim, journal objects begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

impl Seq {
    /// Where the claim of a term stands.
    pub const CLAIM: Self = Self(0);
    /// The first journal object of a term.
    pub const FIRST: Self = Self(1);

    /// The number `seq`.
    pub const fn new(seq: u64) -> Self {
        Self(seq)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The following number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("a term has fewer than 2^64 objects"),
        )
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The id of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveId(u128);

impl ArchiveId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Its bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id whose text this is.
    pub fn parse(text: &str) -> Option<Self> {
        archive_from(text)
    }
}

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A UTC day in an audit key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditDate {
    year: u16,
    month: u8,
    day: u8,
}

impl AuditDate {
    /// The day, if year is at most 9999, month 1 to 12 and day 1 to 31.
    pub const fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        if year <= 9999 && month >= 1 && month <= 12 && day >= 1 && day <= 31 {
            Some(Self { year, month, day })
        } else {
            None
        }
    }

    /// The day of a time; the last of the year 9999 for what is later.
    pub fn of(time: tidelog_wal::Timestamp) -> Self {
        // Days since 0000-03-01: then the leap day is the last of its year, and the months have a pattern.
        let days = time.micros() / 86_400_000_000 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let small = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
        let date = u16::try_from(year)
            .ok()
            .and_then(|year| Self::new(year, small(month), small(day)));
        date.unwrap_or(Self {
            year: 9999,
            month: 12,
            day: 31,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut part = |len: usize| {
            let part = parts.next()?;
            let digits = part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        };
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        let date = Self::new(year, u8::try_from(month).ok()?, u8::try_from(day).ok()?)?;
        parts.next().is_none().then_some(date)
    }
}

impl fmt::Display for AuditDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// An object below `tenants/{namespace}/{database}/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatabaseObject {
    /// The root of the database's history.
    Manifest,
    /// Its wrapped data keys.
    Key,
    /// Entries that do not fit the manifest.
    Index {
        /// First TxId of the entries.
        first: TxId,
        /// Last TxId of the entries.
        last: TxId,
        /// Who wrote it.
        nonce: KeyNonce,
    },
    /// A contiguous run of commit records.
    Segment {
        /// First TxId inside.
        first: TxId,
        /// Last TxId inside.
        last: TxId,
        /// Who wrote it.
        nonce: KeyNonce,
    },
    /// Every page at one Position.
    Image {
        /// Which commit's state it is.
        txid: TxId,
        /// Who wrote it.
        nonce: KeyNonce,
    },
    /// A self-contained export: the SQLite file, compressed.
    Archive(ArchiveId),
    /// A self-contained export: the text of a dump, compressed.
    ArchiveText(ArchiveId),
    /// What an archive holds.
    ArchiveMetadata(ArchiveId),
}

/// The key of any object of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The root of a bucket prefix.
    Root,
    /// The claim of a term.
    Claim(Term),
    /// A journal object, or the fence that closes the term.
    Journal(Term, Seq),
    /// A term's state.
    TermState(Term),
    /// An object of a database.
    Database(NamespaceId, DatabaseId, DatabaseObject),
    /// Audit lines of a namespace.
    Audit(NamespaceId, AuditDate, KeyNonce),
}

impl Key {
    /// The manifest of a database.
    pub const fn manifest(namespace: NamespaceId, database: DatabaseId) -> Self {
        Self::Database(namespace, database, DatabaseObject::Manifest)
    }

    /// A segment of a database.
    pub const fn segment(
        namespace: NamespaceId,
        database: DatabaseId,
        first: TxId,
        last: TxId,
        nonce: KeyNonce,
    ) -> Self {
        let object = DatabaseObject::Segment { first, last, nonce };
        Self::Database(namespace, database, object)
    }

    /// An image of a database.
    pub const fn image(
        namespace: NamespaceId,
        database: DatabaseId,
        txid: TxId,
        nonce: KeyNonce,
    ) -> Self {
        Self::Database(namespace, database, DatabaseObject::Image { txid, nonce })
    }

    /// An index object of a database.
    pub const fn index(
        namespace: NamespaceId,
        database: DatabaseId,
        first: TxId,
        last: TxId,
        nonce: KeyNonce,
    ) -> Self {
        let object = DatabaseObject::Index { first, last, nonce };
        Self::Database(namespace, database, object)
    }

    /// The prefix of all journal objects of a term, for LIST.
    pub fn journal_prefix(term: Term) -> String {
        format!("journal/{term}/")
    }

    /// The prefix of all objects of a database, for LIST.
    pub fn database_prefix(namespace: NamespaceId, database: DatabaseId) -> String {
        format!("tenants/{namespace}/{database}/")
    }

    /// Reads a key; `None` for every text that [`Key`]'s `Display` does not write.
    pub fn parse(key: &str) -> Option<Self> {
        let parts: Vec<&str> = key.split('/').collect();
        match *parts.as_slice() {
            ["root"] => Some(Self::Root),
            ["journal", term, object] => Self::parse_journal(term_from(term)?, object),
            ["tenants", namespace, "audit", date, file] => Some(Self::Audit(
                namespace.parse().ok()?,
                AuditDate::parse(date)?,
                KeyNonce::parse(file.strip_suffix(".jsonl")?)?,
            )),
            ["tenants", namespace, database, ref rest @ ..] => Some(Self::Database(
                namespace.parse().ok()?,
                database.parse().ok()?,
                DatabaseObject::parse(rest)?,
            )),
            _ => None,
        }
    }

    fn parse_journal(term: Term, object: &str) -> Option<Self> {
        if object == "state" {
            return Some(Self::TermState(term));
        }
        Some(match Seq(hex_u64(object)?) {
            Seq::CLAIM => Self::Claim(term),
            seq => Self::Journal(term, seq),
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Claim(term) => write!(f, "journal/{term}/{}", Seq::CLAIM),
            Self::Journal(term, seq) => write!(f, "journal/{term}/{seq}"),
            Self::TermState(term) => write!(f, "journal/{term}/state"),
            Self::Database(namespace, database, object) => {
                write!(f, "tenants/{namespace}/{database}/{object}")
            }
            Self::Audit(namespace, date, nonce) => {
                write!(f, "tenants/{namespace}/audit/{date}/{nonce}.jsonl")
            }
        }
    }
}

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        Self::parse(text).ok_or_else(|| UnknownKey(text.to_owned()))
    }
}

/// A key that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the key of an object of ours")]
pub struct UnknownKey(pub String);

impl DatabaseObject {
    fn parse(parts: &[&str]) -> Option<Self> {
        match *parts {
            ["manifest"] => Some(Self::Manifest),
            ["key"] => Some(Self::Key),
            ["index", name] => {
                let (first, last, nonce) = run_from(name)?;
                Some(Self::Index { first, last, nonce })
            }
            ["segments", name] => {
                let (first, last, nonce) = run_from(name)?;
                Some(Self::Segment { first, last, nonce })
            }
            ["images", name] => {
                let (txid, nonce) = name.split_once('-')?;
                Some(Self::Image {
                    txid: txid_from(txid)?,
                    nonce: KeyNonce::parse(nonce)?,
                })
            }
            ["archives", name] => {
                if let Some(id) = name.strip_suffix(".db.zst") {
                    Some(Self::Archive(archive_from(id)?))
                } else if let Some(id) = name.strip_suffix(".sql.zst") {
                    Some(Self::ArchiveText(archive_from(id)?))
                } else {
                    let id = name.strip_suffix(".json")?;
                    Some(Self::ArchiveMetadata(archive_from(id)?))
                }
            }
            _ => None,
        }
    }
}

impl fmt::Display for DatabaseObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest => f.write_str("manifest"),
            Self::Key => f.write_str("key"),
            Self::Index { first, last, nonce } => write!(f, "index/{first}-{last}-{nonce}"),
            Self::Segment { first, last, nonce } => write!(f, "segments/{first}-{last}-{nonce}"),
            Self::Image { txid, nonce } => write!(f, "images/{txid}-{nonce}"),
            Self::Archive(id) => write!(f, "archives/{id}.db.zst"),
            Self::ArchiveText(id) => write!(f, "archives/{id}.sql.zst"),
            Self::ArchiveMetadata(id) => write!(f, "archives/{id}.json"),
        }
    }
}

/// The number in exactly `width` lower-case hex digits.
fn hex(text: &str, width: usize) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != width || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

fn hex_u64(text: &str) -> Option<u64> {
    u64::try_from(hex(text, 16)?).ok()
}

fn term_from(text: &str) -> Option<Term> {
    Some(Term::new(u32::try_from(hex(text, 8)?).ok()?))
}

fn txid_from(text: &str) -> Option<TxId> {
    hex_u64(text).map(TxId::new)
}

fn archive_from(text: &str) -> Option<ArchiveId> {
    hex(text, 32).map(ArchiveId)
}

fn run_from(name: &str) -> Option<(TxId, TxId, KeyNonce)> {
    let (first, rest) = name.split_once('-')?;
    let (last, nonce) = rest.split_once('-')?;
    Some((txid_from(first)?, txid_from(last)?, KeyNonce::parse(nonce)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_utc_day() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (4_102_444_800, "2100-01-01"),
            (4_107_542_400, "2100-03-01"),
            (u64::MAX / 1_000_000, "9999-12-31"),
        ] {
            let time = tidelog_wal::Timestamp::from_micros(seconds * 1_000_000);
            assert_eq!(AuditDate::of(time).to_string(), day);
        }
    }

    fn every_key() -> Vec<Key> {
        let namespace = NamespaceId::from_bytes([0xa; 16]);
        let database = DatabaseId::from_bytes([0xd; 16]);
        let nonce = KeyNonce {
            term: Term::new(7),
            counter: 0x1234,
        };
        let (first, last) = (TxId::new(1), TxId::new(0xff));
        let archive = ArchiveId::from_bytes([0xee; 16]);
        let date = AuditDate::new(2026, 11, 22).expect("a day");
        vec![
            Key::Root,
            Key::Claim(Term::FIRST),
            Key::Journal(Term::FIRST, Seq::new(9)),
            Key::TermState(Term::FIRST),
            Key::manifest(namespace, database),
            Key::Database(namespace, database, DatabaseObject::Key),
            Key::index(namespace, database, first, last, nonce),
            Key::segment(namespace, database, first, last, nonce),
            Key::image(namespace, database, last, nonce),
            Key::Database(namespace, database, DatabaseObject::Archive(archive)),
            Key::Database(namespace, database, DatabaseObject::ArchiveText(archive)),
            Key::Database(
                namespace,
                database,
                DatabaseObject::ArchiveMetadata(archive),
            ),
            Key::Audit(namespace, date, nonce),
        ]
    }

    #[test]
    fn every_key_parses_back_to_itself() {
        for key in every_key() {
            assert_eq!(Key::parse(&key.to_string()), Some(key), "{key}");
        }
    }

    #[test]
    fn the_text_of_a_segment_key_is_fixed() {
        let text = every_key()[7].to_string();
        assert_eq!(
            text,
            format!(
                "tenants/{}/{}/segments/0000000000000001-00000000000000ff-000000070000000000001234",
                "0a".repeat(16),
                "0d".repeat(16)
            )
        );
    }

    #[test]
    fn no_other_text_parses() {
        for key in every_key() {
            let text = key.to_string();
            for at in 0..text.len() {
                for bad in ["G", "/", "", "00"] {
                    let other = format!("{}{bad}{}", &text[..at], &text[at + 1..]);
                    if let Some(parsed) = Key::parse(&other) {
                        assert_eq!(parsed.to_string(), other, "a key has one text");
                    }
                }
            }
            assert_eq!(Key::parse(&format!("{text}/")), None);
            assert_eq!(Key::parse(&format!("/{text}")), None);
        }
        for bad in [
            "",
            "journal/00000001",
            "tenants/x/y/manifest",
            "journal/0000001A/state",
        ] {
            assert_eq!(Key::parse(bad), None, "{bad}");
        }
    }
}
