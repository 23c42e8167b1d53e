//! Bounded reading and writing of bytes: the one place where untrusted lengths are checked.
//!
//! Fixed-width integers are little-endian. A *varint* is LEB128: seven bits a byte, low bits first, the top
//! bit set on all but the last; at most ten bytes, and the tenth holds one bit. A *signed varint* is the
//! zigzag form of it. Encoders write the shortest form; decoders accept it alone, so that equal values have
//! equal bytes.

/// Why bytes are not what they should be. Offsets count from the start of the buffer that was handed to the
/// decoder; callers add the object key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("need {need} bytes at offset {offset}, have {have}")]
    Short {
        /// Where reading began.
        offset: usize,
        /// Bytes wanted.
        need: usize,
        /// Bytes left.
        have: usize,
    },
    /// A magic number is another.
    #[error("wrong magic at offset {offset}, expected {expected}")]
    Magic {
        /// Where it stands.
        offset: usize,
        /// What the format calls itself.
        expected: &'static str,
    },
    /// The format is newer than this program.
    #[error("{what} has format version {found}, this program reads up to {supported}")]
    Version {
        /// The format's name.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version known.
        supported: u32,
    },
    /// A value is outside its range.
    #[error("invalid {what} at offset {offset}")]
    Invalid {
        /// Where it stands.
        offset: usize,
        /// What it is.
        what: &'static str,
    },
    /// A length or count exceeds what the format allows: refused before memory is taken for it.
    #[error("{what} of {found} at offset {offset} exceeds the limit of {limit}")]
    TooLarge {
        /// Where it stands.
        offset: usize,
        /// What it is.
        what: &'static str,
        /// The value found.
        found: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A checksum or digest differs.
    #[error("{what} at offset {offset} is {found}, expected {expected}")]
    Checksum {
        /// Where the covered bytes begin.
        offset: usize,
        /// Which checksum.
        what: &'static str,
        /// What was computed, in hex.
        found: String,
        /// What stands in the bytes, in hex.
        expected: String,
    },
    /// Bytes follow where none may.
    #[error("{count} unexpected bytes at offset {offset}")]
    Trailing {
        /// Where they begin.
        offset: usize,
        /// How many.
        count: usize,
    },
}

/// The longest varint in bytes.
pub const VARINT_LEN_MAX: usize = 10;

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits are taken")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 128")]
    out.push(value as u8);
}

/// Appends `value` as a zigzag varint.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    #[expect(clippy::cast_sign_loss, reason = "zigzag works on the bit pattern")]
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length as varint and then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads untrusted bytes front to back; every read is checked and every error carries its offset.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes left.
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// Whether all bytes were read.
    pub const fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// The bytes left, without reading them.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let taken = self.rest().get(..len).ok_or(DecodeError::Short {
            offset: self.offset,
            need: len,
            have: self.remaining(),
        })?;
        self.offset += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// The next two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next varint.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let offset = self.offset;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "varint",
                });
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid {
            offset,
            what: "varint",
        })
    }

    /// The next zigzag varint.
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        let coded = self.varint()?;
        #[expect(clippy::cast_possible_wrap, reason = "zigzag works on the bit pattern")]
        Ok((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    /// The next varint, as a number of things of which at most `limit` are allowed.
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let offset = self.offset;
        let found = self.varint()?;
        match usize::try_from(found) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(DecodeError::TooLarge {
                offset,
                what,
                found,
                limit: limit as u64,
            }),
        }
    }

    /// The next varint that must fit 32 bits.
    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let offset = self.offset;
        let found = self.varint()?;
        u32::try_from(found).map_err(|_| DecodeError::TooLarge {
            offset,
            what,
            found,
            limit: u64::from(u32::MAX),
        })
    }

    /// A varint length of at most `limit`, and that many bytes.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.count(what, limit)?;
        self.take(len)
    }

    /// Refuses bytes that are left over.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing {
                offset: self.offset,
                count: self.remaining(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_ok() {}
            let _ = reader.bytes("test", 16);
        }
    }

    #[test]
    fn only_the_shortest_varint_is_accepted() {
        for bytes in [
            &[0x80, 0x00][..],
            &[0xff; 11],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02],
        ] {
            assert!(Reader::new(bytes).varint().is_err(), "{bytes:x?}");
        }
        assert_eq!(Reader::new(&[0x00]).varint(), Ok(0));
    }
}
