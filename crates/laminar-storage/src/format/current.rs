//! `CURRENT`: the newest incarnation of a log that was completely established.
//!
//! It is replaced after the first segments of all cores of an incarnation are durable and before any
//! of them takes a frame. A segment of an established incarnation that is missing or unreadable is
//! therefore damage, never an interrupted start.

use super::FORMAT_VERSION;
use super::checksum::crc32c;
use super::fields::Fields;
use super::segment_header::SegmentHeader;
use crate::ids::{Incarnation, StoreId};

const MAGIC: [u8; 8] = *b"LMNRCURR";
/// Bytes of the file.
pub const CURRENT_LEN: usize = 36;

/// Decoded `CURRENT` file. `docs/FORMAT.md` draws the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Which log this directory holds.
    pub store_id: StoreId,
    /// Its newest established incarnation.
    pub incarnation: Incarnation,
    /// Cores of that incarnation.
    pub core_count: u16,
}

/// Why the bytes are not a `CURRENT` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentFault {
    /// Not as long as the file must be, or the checksum does not fit.
    Damaged,
    /// Written by a later version of the format.
    Newer {
        /// The version found.
        version: u32,
    },
}

impl Current {
    /// Whether it names the incarnation that wrote a segment.
    pub(crate) fn is_of(&self, header: &SegmentHeader) -> bool {
        (self.store_id, self.incarnation) == (header.store_id, header.incarnation)
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CURRENT_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&u32::from(self.core_count).to_le_bytes());
        out.extend_from_slice(&self.store_id.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out
    }

    /// Decodes and checks the file.
    ///
    /// # Errors
    /// The fault.
    pub fn decode(bytes: &[u8]) -> Result<Self, CurrentFault> {
        let (body, crc) = bytes.split_at_checked(CURRENT_LEN - 4).ok_or(CurrentFault::Damaged)?;
        if crc != crc32c(body).to_le_bytes() {
            return Err(CurrentFault::Damaged);
        }
        let mut fields = Fields::new(body);
        if fields.array() != Some(MAGIC) {
            return Err(CurrentFault::Damaged);
        }
        match fields.u32() {
            Some(version) if version > FORMAT_VERSION => return Err(CurrentFault::Newer { version }),
            _ => {}
        }
        (|| {
            let core_count = u16::try_from(fields.u32()?).ok()?;
            let store_id = StoreId(fields.u64()?);
            let incarnation = Incarnation(fields.u64()?);
            Some(Self { store_id, incarnation, core_count })
        })()
        .ok_or(CurrentFault::Damaged)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flipped_bit_is_seen() {
        let current = Current { store_id: StoreId(5), incarnation: Incarnation(2), core_count: 3 };
        let good = current.encode();
        assert_eq!(good.len(), CURRENT_LEN);
        assert_eq!(Current::decode(&good), Ok(current));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Current::decode(&bad), Err(CurrentFault::Damaged), "bit {bit}");
        }
        assert!(Current::decode(&good[..CURRENT_LEN - 1]).is_err());
    }
}
