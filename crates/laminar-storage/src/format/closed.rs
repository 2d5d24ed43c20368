//! `CLOSED`: the last epoch that was acknowledged when a store was closed in order.
//!
//! Evidence against damage, and nothing depends on it: a log whose end was cut off, or that was replaced
//! by an older copy, looks like a log that never got further. A later opening that lands on an earlier
//! epoch than this knows better. It may be missing, damaged or old, and then it proves less.

use super::FORMAT_VERSION;
use super::checksum::crc32c;
use super::fields::Fields;
use crate::ids::{Epoch, StoreId};

const MAGIC: [u8; 8] = *b"LMNRCLSD";
/// Bytes of the file.
pub const CLOSED_LEN: usize = 32;

/// Decoded `CLOSED` file. `docs/FORMAT.md` draws the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which log was closed.
    pub store_id: StoreId,
    /// Everything up to this epoch was durable then.
    pub epoch: Epoch,
}

impl Closed {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CLOSED_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.store_id.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out
    }

    /// Decodes and checks the file; `None` when it is not one, or of another version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(CLOSED_LEN - 4)?;
        let mut fields = Fields::new(body);
        let ours = crc == crc32c(body).to_le_bytes()
            && fields.array() == Some(MAGIC)
            && fields.u32() == Some(FORMAT_VERSION);
        let (store_id, epoch) = (StoreId(fields.u64()?), Epoch(fields.u64()?));
        ours.then_some(Self { store_id, epoch })
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flipped_bit_is_seen() {
        let closed = Closed { store_id: StoreId(5), epoch: Epoch(7) };
        let good = closed.encode();
        assert_eq!(good.len(), CLOSED_LEN);
        assert_eq!(Closed::decode(&good), Some(closed));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Closed::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(Closed::decode(&good[1..]), None);
    }
}
