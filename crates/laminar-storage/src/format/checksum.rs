//! CRC-32C with a salt.
//!
//! A salt is the CRC of an identity (store, incarnation, core, segment, …). Starting a checksum
//! from it means that bytes which were valid somewhere else, or in an earlier life of the same
//! place, do not validate here (invariant I7 in `docs/INVARIANTS.md`).

use crc_fast::{CrcAlgorithm, Digest};

/// The starting state of a salted CRC-32C.
#[derive(Clone, Copy)]
pub struct Salt(Digest);

impl Salt {
    /// A salt from the numbers that identify the place.
    #[must_use]
    pub fn new(identity: &[u64]) -> Self {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        for number in identity {
            digest.update(&number.to_le_bytes());
        }
        Self(digest)
    }

    /// CRC-32C of the concatenation of `parts`, after the salt.
    #[must_use]
    pub fn crc(&self, parts: &[&[u8]]) -> u32 {
        let mut digest = self.0;
        for part in parts {
            digest.update(part);
        }
        let [a, b, c, d, ..] = digest.finalize().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Salt({:08x})", self.crc(&[]))
    }
}

/// CRC-32C without a salt.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    Salt::new(&[]).crc(&[bytes])
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn is_the_castagnoli_crc() {
        // The check value of CRC-32/ISCSI in the CRC catalogue.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn parts_concatenate_and_salts_differ() {
        let salt = Salt::new(&[1, 2]);
        assert_eq!(salt.crc(&[b"ab", b"c"]), salt.crc(&[b"abc"]));
        assert_ne!(salt.crc(&[b"abc"]), Salt::new(&[1, 3]).crc(&[b"abc"]));
        assert_ne!(salt.crc(&[]), crc32c(&[]));
    }
}
