//! The first 256 bytes of every WAL segment: whose it is, where it continues from.

use super::FORMAT_VERSION;
use super::checksum::{Salt, crc32c};
use super::fields::Fields;
use crate::ids::{CoreId, Epoch, Incarnation, SegmentNumber, Sequence, StoreId, TimestampNs, WalPosition};
use crate::sabotage::{Sabotage, sabotaged};

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"LMNRWAL1";
/// Bytes before the first frame.
pub const SEGMENT_HEADER_LEN: usize = 256;
const CRC_AT: usize = SEGMENT_HEADER_LEN - 4;

/// Who acknowledges what in this incarnation; it decides what a reopening may cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalMode {
    /// Low-level use: a `sync` acknowledges every record before it.
    Plain,
    /// Used by `Store`: only a durable epoch acknowledges.
    Epochs,
}

/// The segment a segment continues, as it stood when this one was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predecessor {
    /// Incarnation that wrote it; 0 when there is no predecessor.
    pub incarnation: Incarnation,
    /// Its number within the core.
    pub number: SegmentNumber,
    /// Bytes of it that count, its header included. Whatever follows was cut.
    pub len: u64,
}

impl Predecessor {
    /// True when the segment continues another one.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.incarnation != Incarnation::ZERO
    }
}

/// Decoded segment header. `docs/FORMAT.md` draws the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which log this belongs to.
    pub store_id: StoreId,
    /// Which open of the log wrote it.
    pub incarnation: Incarnation,
    /// Number within the core, growing across incarnations.
    pub number: SegmentNumber,
    /// Whose segment.
    pub core: CoreId,
    /// Cores of the log while this incarnation writes.
    pub core_count: u16,
    /// Who acknowledges what.
    pub mode: WalMode,
    /// Position of the first byte after the header in the core's log.
    pub base_position: WalPosition,
    /// Every record here has a larger sequence.
    pub last_sequence: Sequence,
    /// Every record before this segment has an epoch of at most this.
    pub last_epoch: Epoch,
    /// Last epoch that this core had closed, in any incarnation, before this segment.
    pub sealed_epoch: Epoch,
    /// Timestamps here are larger.
    pub last_timestamp: TimestampNs,
    /// Records of *earlier incarnations* with a larger epoch were discarded by recovery and stay so.
    pub void_above: Epoch,
    /// The segment it continues.
    pub previous: Predecessor,
    /// The file had been another segment before. What zeros cut off behind the last frame is left from then.
    pub reused: bool,
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Fewer bytes than a header, or all of them zero.
    Blank,
    /// The checksum does not fit the bytes.
    Checksum,
    /// Written by a later version of the format.
    Newer {
        /// The version found.
        version: u32,
    },
    /// The checksum fits but a field has no meaning.
    Field,
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut fields = Vec::with_capacity(SEGMENT_HEADER_LEN);
        fields.extend_from_slice(&SEGMENT_MAGIC);
        fields.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        fields.extend_from_slice(&self.number.0.to_le_bytes());
        fields.extend_from_slice(&self.store_id.0.to_le_bytes());
        fields.extend_from_slice(&self.incarnation.0.to_le_bytes());
        fields.extend_from_slice(&self.core.0.to_le_bytes());
        fields.extend_from_slice(&self.core_count.to_le_bytes());
        let mode: u32 = match self.mode {
            WalMode::Plain => 1,
            WalMode::Epochs => 2,
        };
        fields.extend_from_slice(&mode.to_le_bytes());
        for number in [
            self.base_position.0,
            self.last_sequence.0,
            self.last_epoch.0,
            self.sealed_epoch.0,
            self.last_timestamp.0,
            self.void_above.0,
            self.previous.incarnation.0,
            u64::from(self.previous.number.0),
            self.previous.len,
            u64::from(self.reused),
        ] {
            fields.extend_from_slice(&number.to_le_bytes());
        }
        fields.resize(CRC_AT, 0);
        fields.extend_from_slice(&crc32c(&fields).to_le_bytes());
        let mut out = [0; SEGMENT_HEADER_LEN];
        out.copy_from_slice(&fields);
        out
    }

    /// Decodes and checks a header.
    ///
    /// # Errors
    /// The fault. A newer version is told by its number, under the checksum that all versions share.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_LEN) else {
            return Err(HeaderFault::Blank);
        };
        if bytes.iter().all(|b| *b == 0) {
            return Err(HeaderFault::Blank);
        }
        let (body, crc) = bytes.split_at(CRC_AT);
        let sound = crc == crc32c(body).to_le_bytes();
        let mut fields = Fields::new(body);
        if fields.array() != Some(SEGMENT_MAGIC) {
            return Err(HeaderFault::Checksum);
        }
        let version = fields.u32().unwrap_or(0);
        if sound && version > FORMAT_VERSION {
            return Err(HeaderFault::Newer { version });
        }
        if !sound {
            return Err(HeaderFault::Checksum);
        }
        Self::decode_fields(&mut fields).ok_or(HeaderFault::Field)
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let number = SegmentNumber(fields.u32()?);
        let store_id = StoreId(fields.u64()?);
        let incarnation = Incarnation(fields.u64()?);
        let core = CoreId(fields.u16()?);
        let core_count = fields.u16()?;
        let mode = match fields.u32()? {
            1 => WalMode::Plain,
            2 => WalMode::Epochs,
            _ => return None,
        };
        let header = Self {
            store_id,
            incarnation,
            number,
            core,
            core_count,
            mode,
            base_position: WalPosition(fields.u64()?),
            last_sequence: Sequence(fields.u64()?),
            last_epoch: Epoch(fields.u64()?),
            sealed_epoch: Epoch(fields.u64()?),
            last_timestamp: TimestampNs(fields.u64()?),
            void_above: Epoch(fields.u64()?),
            previous: Predecessor {
                incarnation: Incarnation(fields.u64()?),
                number: SegmentNumber(u32::try_from(fields.u64()?).ok()?),
                len: fields.u64()?,
            },
            reused: match fields.u64()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        };
        (core.0 < core_count).then_some(header)
    }

    /// Bytes of the core's log before the byte of this segment at `offset`. At most [`u64::MAX`], whatever a header
    /// from a disk says.
    #[must_use]
    pub fn position_at(&self, offset: u64) -> u64 {
        self.base_position.0.saturating_add(offset.saturating_sub(SEGMENT_HEADER_LEN as u64))
    }

    /// The salt of this segment's frames.
    #[must_use]
    pub fn salt(&self) -> Salt {
        frame_salt(self.store_id, self.incarnation, self.core, self.number)
    }
}

/// The salt of the frames of the segment that these ids name (invariant I7).
#[must_use]
pub fn frame_salt(store: StoreId, incarnation: Incarnation, core: CoreId, number: SegmentNumber) -> Salt {
    if sabotaged(Sabotage::SaltConstant) {
        return Salt::new(&[]);
    }
    Salt::new(&[store.0, incarnation.0, u64::from(core.0), u64::from(number.0)])
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            store_id: StoreId(0x1122_3344_5566_7788),
            incarnation: Incarnation(3),
            number: SegmentNumber(9),
            core: CoreId(1),
            core_count: 4,
            mode: WalMode::Epochs,
            base_position: WalPosition(1 << 33),
            last_sequence: Sequence(77),
            last_epoch: Epoch(12),
            sealed_epoch: Epoch(11),
            last_timestamp: TimestampNs(1_700_000_000_000_000_000),
            void_above: Epoch(11),
            previous: Predecessor { incarnation: Incarnation(2), number: SegmentNumber(8), len: 4096 },
            reused: false,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(SegmentHeader::decode(&sample().encode()), Ok(sample()));
        let reused = SegmentHeader { reused: true, ..sample() };
        assert_eq!(SegmentHeader::decode(&reused.encode()), Ok(reused));
    }

    #[test]
    fn a_file_is_used_for_the_first_time_or_again() {
        let mut neither = sample().encode();
        neither[112] = 2;
        let crc = crc32c(&neither[..CRC_AT]);
        neither[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&neither), Err(HeaderFault::Field));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_core_that_its_incarnation_does_not_have_makes_no_sense() {
        let last = SegmentHeader { core: CoreId(3), ..sample() };
        assert_eq!(SegmentHeader::decode(&last.encode()), Ok(last));
        for core in [4, 5] {
            let beyond = SegmentHeader { core: CoreId(core), ..sample() };
            assert_eq!(SegmentHeader::decode(&beyond.encode()), Err(HeaderFault::Field));
        }
    }

    #[test]
    fn zeros_short_files_and_newer_versions_are_told_apart() {
        assert_eq!(SegmentHeader::decode(&[0; 256]), Err(HeaderFault::Blank));
        assert_eq!(SegmentHeader::decode(&sample().encode()[..255]), Err(HeaderFault::Blank));
        let mut newer = sample().encode();
        newer[8] = 2;
        let crc = crc32c(&newer[..CRC_AT]);
        newer[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&newer), Err(HeaderFault::Newer { version: 2 }));
    }
}
