//! The first 96 bytes of every object. The layout stands in [`super`].

use std::fmt;

use tidelog_wal::codec::Reader;
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId};

use super::error::FormatError;
use crate::seal::Stamp;

/// How every object begins.
pub const MAGIC: [u8; 8] = *b"TIDELOG\0";
/// The newest format version this program reads, and the one it writes.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 96;
const _: () = assert!(HEADER_LEN == 8 + 2 + 1 + 1 + 4 + 5 * 16);

macro_rules! bytes16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

bytes16! {
    /// Random for every PUT that may be ambiguous: tells our bytes from another writer's.
    WriteId
}
bytes16! {
    /// Names the key an object is sealed with; zero when plain.
    KeyId
}
bytes16! {
    /// Random for every sealed object; zero when plain.
    ObjectNonce
}

/// How blocks are sealed. Codes are kept stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// Not at all.
    #[default]
    Plain,
    /// AES-256-GCM ([`crate::seal`]).
    Aes256Gcm,
}

impl Cipher {
    /// Its code in a header.
    pub const fn code(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Aes256Gcm => 1,
        }
    }

    fn from_code(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Aes256Gcm),
            cipher => Err(FormatError::Cipher { cipher }),
        }
    }
}

/// What an object is. Codes are kept stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// The root of a bucket prefix.
    Root = 1,
    /// The claim of a term.
    Claim = 2,
    /// A journal object.
    Journal = 3,
    /// The fence that closes a term.
    Fence = 4,
    /// A term's state.
    TermState = 5,
    /// The root of a database's history.
    Manifest = 6,
    /// Entries that do not fit a manifest.
    Index = 7,
    /// A run of commit records.
    Segment = 8,
    /// Every page at one Position.
    Image = 9,
    /// Wrapped data keys.
    Key = 10,
    /// What an archive holds.
    ArchiveMetadata = 11,
    /// Audit lines.
    Audit = 12,
    /// An archive.
    Archive = 13,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::Root,
        Self::Claim,
        Self::Journal,
        Self::Fence,
        Self::TermState,
        Self::Manifest,
        Self::Index,
        Self::Segment,
        Self::Image,
        Self::Key,
        Self::ArchiveMetadata,
        Self::Audit,
        Self::Archive,
    ];

    /// Its code in a header.
    pub const fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Result<Self, DecodeError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or(DecodeError::Invalid {
                offset: 10,
                what: "object kind",
            })
    }
}

/// Which object a reader asked for: an intact object that is another one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// The kind.
    pub kind: ObjectKind,
    /// The namespace, zero for objects of the node.
    pub namespace: NamespaceId,
    /// The database, zero for objects of the node.
    pub database: DatabaseId,
}

impl Expect {
    /// An object of the node.
    pub fn node(kind: ObjectKind) -> Self {
        Self {
            kind,
            namespace: NamespaceId::default(),
            database: DatabaseId::default(),
        }
    }

    /// An object of a database.
    pub const fn database(kind: ObjectKind, namespace: NamespaceId, database: DatabaseId) -> Self {
        Self {
            kind,
            namespace,
            database,
        }
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// How it is sealed.
    pub cipher: Cipher,
    /// Which PUT wrote it.
    pub write_id: WriteId,
    /// The key it is sealed with.
    pub key_id: KeyId,
    /// What makes its sealing unique.
    pub nonce: ObjectNonce,
    /// Whose it is.
    pub namespace: NamespaceId,
    /// Which database's it is.
    pub database: DatabaseId,
}

impl Header {
    /// The header of the object that `stamp` is for.
    pub fn new(expect: Expect, stamp: &Stamp) -> Self {
        let plain = stamp.nonce == ObjectNonce::default();
        Self {
            kind: expect.kind,
            cipher: if plain {
                Cipher::Plain
            } else {
                Cipher::Aes256Gcm
            },
            write_id: stamp.write_id,
            key_id: stamp.key.as_ref().map_or(KeyId::default(), |key| key.id),
            nonce: stamp.nonce,
            namespace: expect.namespace,
            database: expect.database,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = self.kind.code();
        out[11] = self.cipher.code();
        let ids = [
            &self.write_id.0,
            &self.key_id.0,
            &self.nonce.0,
            self.namespace.as_bytes(),
            self.database.as_bytes(),
        ];
        for (slot, id) in out[16..].chunks_exact_mut(16).zip(ids) {
            slot.copy_from_slice(id);
        }
        out
    }

    /// Reads the header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Magic {
                offset: 0,
                expected: "TIDELOG",
            }
            .into());
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(DecodeError::Version {
                what: "object",
                found: u32::from(version),
                supported: u32::from(VERSION),
            }
            .into());
        }
        let kind = ObjectKind::from_code(reader.u8()?)?;
        let cipher = Cipher::from_code(reader.u8()?)?;
        if reader.u32()? != 0 {
            return Err(FormatError::invalid(12, "reserved header bytes"));
        }
        let write_id = WriteId(reader.array()?);
        let key_id = KeyId(reader.array()?);
        let nonce = ObjectNonce(reader.array()?);
        let keyed = key_id != KeyId::default() || nonce != ObjectNonce::default();
        let sound = match cipher {
            Cipher::Plain => !keyed,
            Cipher::Aes256Gcm => nonce != ObjectNonce::default(),
        };
        if !sound {
            return Err(FormatError::invalid(32, "key id or object nonce"));
        }
        Ok(Self {
            kind,
            cipher,
            write_id,
            key_id,
            nonce,
            namespace: NamespaceId::from_bytes(reader.array()?),
            database: DatabaseId::from_bytes(reader.array()?),
        })
    }

    /// Refuses an object that is not the one asked for.
    pub fn check(&self, expect: Expect) -> Result<(), FormatError> {
        let foreign = |what, found: String, expected: String| FormatError::Foreign {
            what,
            found,
            expected,
        };
        if self.kind != expect.kind {
            let (found, expected) = (format!("{:?}", self.kind), format!("{:?}", expect.kind));
            return Err(foreign("object kind", found, expected));
        }
        if self.namespace != expect.namespace {
            let (found, expected) = (self.namespace.to_string(), expect.namespace.to_string());
            return Err(foreign("namespace", found, expected));
        }
        if self.database != expect.database {
            let (found, expected) = (self.database.to_string(), expect.database.to_string());
            return Err(foreign("database", found, expected));
        }
        Ok(())
    }
}
