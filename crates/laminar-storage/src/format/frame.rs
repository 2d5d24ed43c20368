//! A frame: the unit that the WAL writes and checks, a batch of records of one epoch.
//!
//! Every byte of a frame is covered: the header by its own checksum, which also covers the payload's
//! checksum and the frame's place in the file; the payload and its padding by theirs. Both start from
//! the segment's salt. All-zero bytes are never a frame.

use super::checksum::Salt;
use super::fields::Fields;
use super::record;
use crate::ids::{CoreId, Epoch, Sequence, TimestampNs};
use crate::sabotage::{Sabotage, sabotaged};

/// Bytes before a frame's payload.
pub const FRAME_HEADER_LEN: usize = 48;
/// Frames begin at multiples of this.
pub const FRAME_ALIGN: usize = 8;
/// Longest payload a reader accepts: room for the largest record, with the batch before it.
pub const MAX_FRAME_PAYLOAD: usize = 20 << 20;
/// A writer closes a frame once its payload is this long.
pub const FRAME_TARGET: usize = 256 << 10;
const KIND_BATCH: u8 = 1;

const _: () = assert!(MAX_FRAME_PAYLOAD > FRAME_TARGET + record::MAX_RECORD_LEN);

/// Decoded frame header. `docs/FORMAT.md` draws the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Checksum of the padded payload.
    pub payload_crc: u32,
    /// Bytes of records, without padding.
    pub payload_len: u32,
    /// Whose log.
    pub core: CoreId,
    /// Number of records.
    pub records: u32,
    /// Bytes of this segment that had been synced before this frame was written. Bytes below it
    /// that do not validate are damage; bytes above it may be a torn tail (invariant I9).
    pub synced_len: u64,
    /// Epoch of every record in it.
    pub epoch: Epoch,
    /// Sequence of the first record; the others follow one by one.
    pub first_sequence: Sequence,
    /// Timestamp of the first record.
    pub first_timestamp: TimestampNs,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// The header's bytes are zero: space written ahead, nothing there yet.
    Zero,
    /// The header's checksum does not fit.
    HeaderChecksum {
        /// Checksum in the header.
        stored: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// The header's checksum fits but a field has no meaning.
    Field,
    /// The file ends before the frame does.
    Short,
    /// The payload's checksum does not fit.
    PayloadChecksum {
        /// Checksum in the header.
        stored: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
}

impl std::fmt::Display for FrameFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => f.write_str("no frame, only zeros"),
            Self::HeaderChecksum { stored, computed } => {
                write!(f, "frame header checksum {stored:#010x} stored, {computed:#010x} computed")
            }
            Self::Field => f.write_str("a frame header field has no meaning"),
            Self::Short => f.write_str("the file ends inside a frame"),
            Self::PayloadChecksum { stored, computed } => {
                write!(f, "frame payload checksum {stored:#010x} stored, {computed:#010x} computed")
            }
        }
    }
}

/// Bytes of a frame on disk, header and padding included.
#[must_use]
pub fn frame_len(payload_len: usize) -> usize {
    FRAME_HEADER_LEN + payload_len.next_multiple_of(FRAME_ALIGN)
}

impl FrameHeader {
    /// The header's bytes, for a frame that stands at `offset` of its file.
    #[must_use]
    pub fn encode(&self, salt: &Salt, offset: u64) -> [u8; FRAME_HEADER_LEN] {
        // Frames and synced lengths are multiples of 8, which brings 32 GiB of segment into 32 bits.
        let synced_units = u32::try_from(self.synced_len / FRAME_ALIGN as u64).unwrap_or(0);
        let mut out = [0; FRAME_HEADER_LEN];
        let mut at = 4;
        let mut put = |bytes: &[u8]| {
            if let Some(room) = out.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&self.payload_crc.to_le_bytes());
        put(&self.payload_len.to_le_bytes());
        put(&[KIND_BATCH, 0]);
        put(&self.core.0.to_le_bytes());
        put(&self.records.to_le_bytes());
        put(&synced_units.to_le_bytes());
        put(&self.epoch.0.to_le_bytes());
        put(&self.first_sequence.0.to_le_bytes());
        put(&self.first_timestamp.0.to_le_bytes());
        let crc = header_crc(salt, offset, &out);
        if let Some(room) = out.first_chunk_mut() {
            *room = crc.to_le_bytes();
        }
        out
    }

    /// Decodes and checks a header that stands at `offset` of a segment of `core`.
    ///
    /// # Errors
    /// The fault.
    pub fn decode(
        bytes: &[u8; FRAME_HEADER_LEN],
        salt: &Salt,
        offset: u64,
        core: CoreId,
    ) -> Result<Self, FrameFault> {
        if !may_be_header(bytes, core) {
            if bytes.iter().all(|b| *b == 0) {
                return Err(FrameFault::Zero);
            }
            let stored = Fields::new(bytes).u32().unwrap_or(0);
            let computed = header_crc(salt, offset, bytes);
            return Err(if stored == computed {
                FrameFault::Field
            } else {
                FrameFault::HeaderChecksum { stored, computed }
            });
        }
        let mut fields = Fields::new(bytes);
        let stored = fields.u32().unwrap_or(0);
        let computed = header_crc(salt, offset, bytes);
        if stored != computed {
            return Err(FrameFault::HeaderChecksum { stored, computed });
        }
        Self::decode_fields(&mut fields, offset).ok_or(FrameFault::Field)
    }

    /// Decodes what [`may_be_header`] lets through, without looking at its checksum; `None` when a field has no meaning.
    #[must_use]
    pub fn unchecked(bytes: &[u8; FRAME_HEADER_LEN], offset: u64) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        fields.u32()?;
        Self::decode_fields(&mut fields, offset)
    }

    fn decode_fields(fields: &mut Fields<'_>, offset: u64) -> Option<Self> {
        let payload_crc = fields.u32()?;
        let payload_len = fields.u32()?;
        let [_kind, flags] = fields.array()?;
        let header = Self {
            payload_crc,
            payload_len,
            core: CoreId(fields.u16()?),
            records: fields.u32()?,
            synced_len: u64::from(fields.u32()?) * FRAME_ALIGN as u64,
            epoch: Epoch(fields.u64()?),
            first_sequence: Sequence(fields.u64()?),
            first_timestamp: TimestampNs(fields.u64()?),
        };
        let sound = flags == 0
            && header.records > 0
            && payload_len as usize <= MAX_FRAME_PAYLOAD
            && header.synced_len <= offset;
        sound.then_some(header)
    }

    /// Checks the padded payload.
    ///
    /// # Errors
    /// The fault.
    pub fn check_payload(&self, salt: &Salt, padded: &[u8]) -> Result<(), FrameFault> {
        let computed = salt.crc(&[padded]);
        if computed == self.payload_crc || sabotaged(Sabotage::PayloadUnchecked) {
            Ok(())
        } else {
            Err(FrameFault::PayloadChecksum { stored: self.payload_crc, computed })
        }
    }

    /// Bytes of the whole frame on disk.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        frame_len(self.payload_len as usize)
    }
}

/// A cheap look that spares most checksums when searching for frames in arbitrary bytes.
#[must_use]
pub fn may_be_header(bytes: &[u8; FRAME_HEADER_LEN], core: CoreId) -> bool {
    let [low, high] = core.0.to_le_bytes();
    matches!(bytes, [_, _, _, _, _, _, _, _, _, _, _, _, KIND_BATCH, 0, a, b, ..] if *a == low && *b == high)
}

fn header_crc(salt: &Salt, offset: u64, header: &[u8; FRAME_HEADER_LEN]) -> u32 {
    let covered = if sabotaged(Sabotage::HeaderHalfChecked) { 4..24 } else { 4..FRAME_HEADER_LEN };
    salt.crc(&[&offset.to_le_bytes(), header.get(covered).unwrap_or_default()])
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn sample() -> FrameHeader {
        FrameHeader {
            payload_crc: 0xdead_beef,
            payload_len: 1234,
            core: CoreId(2),
            records: 3,
            synced_len: 256,
            epoch: Epoch(7),
            first_sequence: Sequence(41),
            first_timestamp: TimestampNs(99),
        }
    }

    #[test]
    fn round_trip_only_at_its_own_place() {
        let salt = Salt::new(&[1]);
        let bytes = sample().encode(&salt, 512);
        assert_eq!(FrameHeader::decode(&bytes, &salt, 512, CoreId(2)), Ok(sample()));
        assert!(FrameHeader::decode(&bytes, &salt, 520, CoreId(2)).is_err());
        assert!(FrameHeader::decode(&bytes, &Salt::new(&[2]), 512, CoreId(2)).is_err());
        assert!(FrameHeader::decode(&bytes, &salt, 512, CoreId(1)).is_err());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let salt = Salt::new(&[1]);
        let good = sample().encode(&salt, 512);
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad, &salt, 512, CoreId(2)).is_err(), "bit {bit}");
        }
    }

    /// A value that changed on the disk is seen before anybody reads it, padding included.
    #[test]
    fn every_flipped_bit_of_a_payload_is_seen() {
        let salt = Salt::new(&[1]);
        let good = *b"a record of some length\0";
        let header = FrameHeader { payload_crc: salt.crc(&[&good]), payload_len: 23, ..sample() };
        assert_eq!(header.check_payload(&salt, &good), Ok(()));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let fault = header.check_payload(&salt, &bad);
            assert!(matches!(fault, Err(FrameFault::PayloadChecksum { .. })), "bit {bit}: {fault:?}");
        }
    }

    #[test]
    fn zeros_are_never_a_frame() {
        let zero = [0; FRAME_HEADER_LEN];
        for salt in [Salt::new(&[]), Salt::new(&[0]), Salt::new(&[0, 0])] {
            assert_eq!(FrameHeader::decode(&zero, &salt, 0, CoreId(0)), Err(FrameFault::Zero));
        }
    }
}
