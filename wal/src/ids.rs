//! Names of points and things: terms, TxIds, chains, Positions, and 128-bit ids.
//!
//! A [`Position`] is the only exact name of a database state: the pair (term, TxId) says where it stands,
//! the chain says which history it belongs to. Its text form is the bookmark of the API,
//! `term(8)-txid(16)-chain(32)` in lower-case hex, whose byte order is commit order within a database.
//!
//! The types carry no arithmetic operators: a step is [`TxId::next`], a distance is [`TxId::since`].

use std::fmt;
use std::str::FromStr;

/// Why a text is not a [`Position`] or an id. Says what was expected, never guesses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text has the wrong length.
    #[error("expected {want} characters, found {have}")]
    Length {
        /// Characters the text form has.
        want: usize,
        /// Characters that were given.
        have: usize,
    },
    /// A character is not lower-case hex, or a dash is missing.
    #[error("unexpected character at offset {offset}")]
    Character {
        /// Where it stands.
        offset: usize,
    },
}

fn hex_digit(byte: u8, offset: usize) -> Result<u8, ParseIdError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(ParseIdError::Character { offset }),
    }
}

/// Fills `out` from lower-case hex text; `base` is the offset of the text for error messages.
fn hex_into(text: &[u8], base: usize, out: &mut [u8]) -> Result<(), ParseIdError> {
    debug_assert_eq!(text.len(), out.len() * 2, "callers check the length first");
    for (i, (pair, byte)) in text.chunks_exact(2).zip(out.iter_mut()).enumerate() {
        let [high, low] = pair else {
            unreachable!("chunks of exactly two")
        };
        *byte = (hex_digit(*high, base + 2 * i)? << 4) | hex_digit(*low, base + 2 * i + 1)?;
    }
    Ok(())
}

/// A process life, unique in a bucket, from 1. 0 means "no term yet" and is never claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(u32);

impl Term {
    /// No term: what precedes the first claim.
    pub const NONE: Self = Self(0);
    /// The first term of a bucket.
    pub const FIRST: Self = Self(1);

    /// The term with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The following term, or `None` after the last of the four billion.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The dense number of a commit in one database, from 1. [`TxId::ZERO`] names the empty state before the
/// first commit, which is not addressable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TxId(u64);

impl TxId {
    /// The state before the first commit.
    pub const ZERO: Self = Self(0);
    /// The commit that creates or imports a database.
    pub const FIRST: Self = Self(1);

    /// The TxId with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The following TxId.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The TxId `commits` later.
    #[must_use]
    pub const fn plus(self, commits: u64) -> Self {
        Self(
            self.0
                .checked_add(commits)
                .expect("a database has fewer than 2^64 commits"),
        )
    }

    /// The TxId before this one, or `None` for [`TxId::ZERO`].
    pub const fn prev(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// How many commits lie after `earlier` up to and including this one, or `None` when `earlier` is
    /// later.
    pub const fn since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The running hash over a database's commit records, 128 bits of BLAKE3 (see [`crate::chain`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chain([u8; 16]);

impl Chain {
    /// The chain with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The exact name of one database state: which process life committed it, its number, and the hash of all
/// history up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The process life that committed it.
    pub term: Term,
    /// Its number in the database.
    pub txid: TxId,
    /// The hash of all history up to and including it.
    pub chain: Chain,
}

impl Position {
    /// Length of the text form: `term(8)-txid(16)-chain(32)`.
    pub const TEXT_LEN: usize = 8 + 1 + 16 + 1 + 32;
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.txid, self.chain)
    }
}

impl FromStr for Position {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bytes = text.as_bytes();
        if bytes.len() != Self::TEXT_LEN {
            return Err(ParseIdError::Length {
                want: Self::TEXT_LEN,
                have: bytes.len(),
            });
        }
        for offset in [8, 25] {
            if bytes.get(offset) != Some(&b'-') {
                return Err(ParseIdError::Character { offset });
            }
        }
        let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
        let (mut term, mut txid, mut chain) = ([0; 4], [0; 8], [0; 16]);
        hex_into(part(0, 8), 0, &mut term)?;
        hex_into(part(9, 25), 9, &mut txid)?;
        hex_into(part(26, 58), 26, &mut chain)?;
        Ok(Self {
            term: Term(u32::from_be_bytes(term)),
            txid: TxId(u64::from_be_bytes(txid)),
            chain: Chain(chain),
        })
    }
}

/// Microseconds since 1970-01-01 UTC. What a commit record carries is the *ordered* time,
/// `max(previous + 1 us, wall clock)`: it never runs backwards within a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 1970-01-01 UTC.
    pub const ZERO: Self = Self(0);
    /// The latest time there is: later than every commit.
    pub const MAX: Self = Self(u64::MAX);

    /// The time `micros` microseconds after 1970-01-01 UTC.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01 UTC.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// The ordered time of a commit at wall time `wall` that follows one at `self`.
    #[must_use]
    pub fn ordered_next(self, wall: Self) -> Self {
        Self(wall.0.max(self.0.saturating_add(1)))
    }

    /// Microseconds from `earlier` to this time, 0 if `earlier` is later.
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if text.len() != 32 {
                    return Err(ParseIdError::Length { want: 32, have: text.len() });
                }
                let mut bytes = [0; 16];
                hex_into(text.as_bytes(), 0, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}

id128! {
    /// A database: one SQLite file and its one history. Random, never reused, unknown to callers' names.
    DatabaseId
}
id128! {
    /// A tenant: what a credential is bound to.
    NamespaceId
}
id128! {
    /// A server with a data folder.
    NodeId
}
id128! {
    /// A bucket prefix with its root object.
    ClusterId
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            term: Term::new(0x1a),
            txid: TxId::new(0x0102_0304_0506_0708),
            chain: Chain::from_bytes([0xab; 16]),
        }
    }

    #[test]
    fn bookmark_text_is_fixed_width_and_round_trips() {
        let text = position().to_string();
        assert_eq!(
            text,
            format!("0000001a-0102030405060708-{}", "ab".repeat(16))
        );
        assert_eq!(text.len(), Position::TEXT_LEN);
        assert_eq!(text.parse(), Ok(position()));
    }

    #[test]
    fn bookmark_text_orders_as_commits_do() {
        let later = Position {
            txid: position().txid.next(),
            ..position()
        };
        let later_term = Position {
            term: Term::new(0x1b),
            txid: TxId::FIRST,
            ..position()
        };
        assert!(position().to_string() < later.to_string());
        assert!(later.to_string() < later_term.to_string());
    }

    #[test]
    fn malformed_bookmarks_are_refused() {
        let text = position().to_string();
        let refused = [
            text.to_uppercase(),
            text.replace('-', "_"),
            text[1..].to_string(),
            format!("{text}0"),
            text.replace("ab", "zz"),
            String::new(),
            "\u{e9}".repeat(29),
        ];
        for bad in refused {
            assert!(bad.parse::<Position>().is_err(), "{bad:?} must not parse");
        }
    }

    #[test]
    fn ids_round_trip_and_refuse_other_text() {
        let id = DatabaseId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("g".repeat(32).parse::<DatabaseId>().is_err());
        assert!("00".parse::<DatabaseId>().is_err());
    }

    #[test]
    fn ordered_time_never_runs_backwards() {
        let now = Timestamp::from_micros(1_000);
        assert_eq!(now.ordered_next(Timestamp::from_micros(5)).micros(), 1_001);
        assert_eq!(
            now.ordered_next(Timestamp::from_micros(9_000)).micros(),
            9_000
        );
    }
}
