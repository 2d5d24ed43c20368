//! `SYNCED`: how far the newest segment of every core was synced, one slot per core.
//!
//! Evidence against damage, and nothing depends on it: the last frame of a log has no later one to testify
//! for it, so that damage to it looks like a write that a crash tore. A slot is written in place after each
//! sync and before the sync is acknowledged, and never synced itself: it outlives the process, and after a power
//! cut it may be older than the log. It may be missing, damaged or old, and then it proves less.

use super::FORMAT_VERSION;
use super::checksum::crc32c;
use super::fields::Fields;
use super::segment_header::SegmentHeader;
use crate::ids::{CoreId, Incarnation, SegmentNumber, StoreId};

const MAGIC: [u8; 8] = *b"LMNRSYNC";
/// Bytes of a core's slot; a sector holds whole ones.
pub const SLOT_LEN: usize = 64;

/// Decoded slot of `SYNCED`. `docs/FORMAT.md` draws the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Which log.
    pub store_id: StoreId,
    /// Incarnation of the segment.
    pub incarnation: Incarnation,
    /// Whose log.
    pub core: CoreId,
    /// Number of the segment.
    pub number: SegmentNumber,
    /// Bytes of that segment, its header included, that were synced.
    pub len: u64,
}

impl Synced {
    /// So many bytes of the segment with this header were synced.
    pub(crate) fn of(header: &SegmentHeader, len: u64) -> Self {
        let SegmentHeader { store_id, incarnation, core, number, .. } = *header;
        Self { store_id, incarnation, core, number, len }
    }

    /// Whether it is about the segment with this header.
    pub(crate) fn is_of(&self, header: &SegmentHeader) -> bool {
        *self == Self::of(header, self.len)
    }

    /// Offset of a core's slot in the file.
    #[must_use]
    pub fn offset(core: CoreId) -> u64 {
        core.index() as u64 * SLOT_LEN as u64
    }

    /// The slot's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = Vec::with_capacity(SLOT_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.store_id.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.number.0.to_le_bytes());
        out.extend_from_slice(&self.core.0.to_le_bytes());
        out.resize(SLOT_LEN - 4, 0);
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().unwrap_or([0; SLOT_LEN])
    }

    /// Decodes and checks a slot; `None` when it is not one, or of another version.
    #[must_use]
    pub fn decode(slot: &[u8]) -> Option<Self> {
        let (body, crc) = slot.split_at_checked(SLOT_LEN - 4)?;
        let mut fields = Fields::new(body);
        let ours = crc == crc32c(body).to_le_bytes()
            && fields.array() == Some(MAGIC)
            && fields.u32() == Some(FORMAT_VERSION);
        let (store_id, incarnation) = (StoreId(fields.u64()?), Incarnation(fields.u64()?));
        let (len, number, core) = (fields.u64()?, SegmentNumber(fields.u32()?), CoreId(fields.u16()?));
        ours.then_some(Self { store_id, incarnation, core, number, len })
    }

    /// The slots of a file that are good.
    pub fn decode_all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.chunks_exact(SLOT_LEN).filter_map(Self::decode)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn sample() -> Synced {
        Synced {
            store_id: StoreId(5),
            incarnation: Incarnation(2),
            core: CoreId(3),
            number: SegmentNumber(7),
            len: 4096,
        }
    }

    #[test]
    fn round_trip_and_every_flipped_bit_is_seen() {
        let good = sample().encode();
        assert_eq!(Synced::decode(&good), Some(sample()));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Synced::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(Synced::decode(&good[1..]), None);
    }

    /// The bytes as `docs/FORMAT.md` has them.
    #[test]
    fn a_slot_is_laid_out_as_documented() {
        let slot = sample().encode();
        let number = |at: std::ops::Range<usize>| {
            slot[at].iter().rev().fold(0_u64, |number, byte| number.wrapping_mul(256) + u64::from(*byte))
        };
        assert_eq!(&slot[..8], b"LMNRSYNC");
        let fields = [8..12, 12..20, 20..28, 28..36, 36..40, 40..42, 42..60].map(number);
        assert_eq!(fields, [1, 5, 2, 4096, 7, 3, 0]);
        assert_eq!(slot[60..], crc32c(&slot[..60]).to_le_bytes());
    }

    #[test]
    fn a_damaged_slot_costs_only_itself() {
        let other = Synced { core: CoreId(4), ..sample() };
        let mut bytes = [sample().encode(), other.encode()].concat();
        bytes[0] ^= 1;
        bytes.extend_from_slice(&[1; 10]);
        assert_eq!(Synced::decode_all(&bytes).collect::<Vec<_>>(), [other]);
        assert_eq!(Synced::offset(CoreId(4)), 256);
    }
}
