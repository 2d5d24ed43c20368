//! Records: what frames are made of.
//!
//! A record begins with an op byte. Its high bit says that a timestamp difference follows; without
//! it the record is one nanosecond after the one before, which is what a batch drained from Ring 0
//! looks like, and which keeps the cost of a put at 7 bytes.

use std::collections::HashMap;

use super::digest::StateDigest;
use super::fields::Fields;
use super::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CheckpointId, Epoch, SegmentNumber};

/// Longest record: a put with the longest key and value.
pub const MAX_RECORD_LEN: usize = 16 + MAX_KEY_LEN + MAX_VALUE_LEN;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const COMMIT: u8 = 3;
const CHECKPOINT: u8 = 4;
const BARRIER: u8 = 5;
const CONFIRM: u8 = 6;
const SEGMENT_END: u8 = 7;
const HAS_TIME: u8 = 0x80;

/// A record, borrowed from where it is encoded or to be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// `key` has `value` from here on.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// `key` is gone from here on.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Source offsets and watermark that belong to the state at this place.
    Commit(CommitBody<'a>),
    /// A checkpoint of everything before was published.
    Checkpoint {
        /// Its id.
        id: CheckpointId,
    },
    /// Closes the epoch of its frame on this core.
    Barrier {
        /// The durable epoch known when this was written: evidence of what was acknowledged.
        durable: Epoch,
        /// Digest of the core's live state at this place, when the writer knows it.
        digest: Option<StateDigest>,
    },
    /// Evidence, written when there is nothing else to do, that everything before it in this file
    /// was synced and that `durable` was acknowledged (invariant I9).
    Confirm {
        /// The durable epoch.
        durable: Epoch,
    },
    /// The log goes on in another segment.
    SegmentEnd {
        /// The number of that segment.
        next: SegmentNumber,
    },
}

/// The encoded body of a commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitBody<'a>(&'a [u8]);

/// Decoded commit: absolute source offsets of a core and its watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Next position to read from each source.
    pub offsets: HashMap<String, u64>,
    /// The core's watermark.
    pub watermark: Option<i64>,
}

/// Appends the body of a commit record to `out`; names longer than 65,535 bytes are cut by the
/// callers' validation, not here. Sorted input gives identical bytes for identical content.
pub fn encode_commit_body<'a>(
    out: &mut Vec<u8>,
    watermark: Option<i64>,
    offsets: impl ExactSizeIterator<Item = (&'a str, u64)>,
) {
    out.push(u8::from(watermark.is_some()));
    out.extend_from_slice(&watermark.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&u32::try_from(offsets.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (name, offset) in offsets {
        out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
}

impl<'a> CommitBody<'a> {
    /// A body made by [`encode_commit_body`].
    #[must_use]
    pub fn new(encoded: &'a [u8]) -> Self {
        Self(encoded)
    }

    /// Bytes of the body.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a body is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The offsets and the watermark, `None` when the bytes make no sense.
    #[must_use]
    pub fn decode(&self) -> Option<Commit> {
        let mut fields = Fields::new(self.0);
        let commit = Self::take(&mut fields, |_, _| {})?;
        let mut offsets = HashMap::new();
        let mut again = Fields::new(self.0);
        Self::take(&mut again, |name, offset| {
            offsets.insert(name.to_owned(), offset);
        })?;
        (fields.remaining() == 0).then_some(Commit { offsets, watermark: commit })
    }

    /// Walks a body; returns the watermark.
    fn take(fields: &mut Fields<'a>, mut each: impl FnMut(&'a str, u64)) -> Option<Option<i64>> {
        let flag = fields.u8()?;
        let watermark = fields.i64()?;
        let watermark = match flag {
            0 => None,
            1 => Some(watermark),
            _ => return None,
        };
        for _ in 0..fields.u32()? {
            let len = fields.u16()?;
            let name = std::str::from_utf8(fields.bytes(usize::from(len))?).ok()?;
            each(name, fields.u64()?);
        }
        Some(watermark)
    }
}

impl<'a> Record<'a> {
    /// Appends the record to a frame's payload. `after_ns` is its distance in time from the record
    /// before it.
    pub fn encode(&self, after_ns: u32, out: &mut Vec<u8>) {
        let op = match self {
            Self::Put { .. } => PUT,
            Self::Delete { .. } => DELETE,
            Self::Commit(_) => COMMIT,
            Self::Checkpoint { .. } => CHECKPOINT,
            Self::Barrier { .. } => BARRIER,
            Self::Confirm { .. } => CONFIRM,
            Self::SegmentEnd { .. } => SEGMENT_END,
        };
        if after_ns == 1 {
            out.push(op);
        } else {
            out.push(op | HAS_TIME);
            out.extend_from_slice(&after_ns.to_le_bytes());
        }
        match self {
            Self::Put { key, value } => {
                out.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
                out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Self::Delete { key } => {
                out.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
                out.extend_from_slice(key);
            }
            Self::Commit(body) => {
                out.extend_from_slice(&u32::try_from(body.0.len()).unwrap_or(u32::MAX).to_le_bytes());
                out.extend_from_slice(body.0);
            }
            Self::Checkpoint { id } => out.extend_from_slice(&id.0.to_le_bytes()),
            Self::Barrier { durable, digest } => {
                out.extend_from_slice(&durable.0.to_le_bytes());
                let plain = digest.unwrap_or_default();
                out.push(u8::from(digest.is_some()));
                out.extend_from_slice(&plain.digest.to_le_bytes());
                out.extend_from_slice(&plain.live_keys.to_le_bytes());
            }
            Self::Confirm { durable } => out.extend_from_slice(&durable.0.to_le_bytes()),
            Self::SegmentEnd { next } => out.extend_from_slice(&next.0.to_le_bytes()),
        }
    }

    /// Takes one record off the front of a payload, with its distance in time from the one before.
    /// `None` when the bytes make no sense.
    ///
    /// Most are puts. One that is given back through memory is copied in other pieces than it was written in, for
    /// which the processor waits until every store before has reached memory: they must stay in registers.
    #[inline(always)]
    pub fn decode(payload: &mut Fields<'a>) -> Option<(Self, u32)> {
        let op = payload.u8()?;
        let after_ns = if op & HAS_TIME == 0 { 1 } else { payload.u32()? };
        if op & !HAS_TIME != PUT {
            return Some((Self::decode_other(op, payload)?, after_ns));
        }
        let key_len = usize::from(payload.u16()?);
        let value_len = payload.u32()? as usize;
        let put = Self::Put { key: payload.bytes(key_len)?, value: payload.bytes(value_len)? };
        Some((put, after_ns))
    }

    /// The body of a record that is no put.
    #[inline(never)]
    fn decode_other(op: u8, payload: &mut Fields<'a>) -> Option<Self> {
        let record = match op & !HAS_TIME {
            DELETE => {
                let key_len = usize::from(payload.u16()?);
                Self::Delete { key: payload.bytes(key_len)? }
            }
            COMMIT => {
                let len = payload.u32()? as usize;
                Self::Commit(CommitBody(payload.bytes(len)?))
            }
            CHECKPOINT => Self::Checkpoint { id: CheckpointId(payload.u64()?) },
            BARRIER => {
                let durable = Epoch(payload.u64()?);
                let known = payload.u8()?;
                let digest = StateDigest { digest: payload.u64()?, live_keys: payload.u64()? };
                let digest = match known {
                    0 => None,
                    1 => Some(digest),
                    _ => return None,
                };
                Self::Barrier { durable, digest }
            }
            CONFIRM => Self::Confirm { durable: Epoch(payload.u64()?) },
            SEGMENT_END => Self::SegmentEnd { next: SegmentNumber(payload.u32()?) },
            _ => return None,
        };
        Some(record)
    }

    /// Bytes that [`Self::encode`] appends at most.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        32 + match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
            Self::Commit(body) => body.0.len(),
            _ => 0,
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn round_trip_of_every_kind() {
        let mut body = Vec::new();
        encode_commit_body(&mut body, Some(-3), [("orders/0", 12), ("clicks", u64::MAX)].into_iter());
        let records = [
            Record::Put { key: b"key", value: b"value" },
            Record::Put { key: b"", value: b"" },
            Record::Delete { key: b"key" },
            Record::Commit(CommitBody::new(&body)),
            Record::Checkpoint { id: CheckpointId(4) },
            Record::Barrier { durable: Epoch(8), digest: None },
            Record::Barrier { durable: Epoch(8), digest: Some(StateDigest { digest: 1, live_keys: 2 }) },
            Record::Confirm { durable: Epoch(9) },
            Record::SegmentEnd { next: SegmentNumber(2) },
        ];
        let mut payload = Vec::new();
        for (i, record) in records.iter().enumerate() {
            record.encode(u32::try_from(i).unwrap(), &mut payload);
        }
        let mut fields = Fields::new(&payload);
        for (i, record) in records.iter().enumerate() {
            assert_eq!(Record::decode(&mut fields), Some((*record, u32::try_from(i).unwrap())));
        }
        assert_eq!(fields.remaining(), 0);
        let commit = CommitBody::new(&body).decode().unwrap();
        assert_eq!(commit.watermark, Some(-3));
        assert_eq!(commit.offsets["orders/0"], 12);
        assert_eq!(commit.offsets.len(), 2);
    }

    #[test]
    fn a_drained_put_costs_seven_bytes() {
        let mut payload = Vec::new();
        Record::Put { key: &[1; 16], value: &[2; 100] }.encode(1, &mut payload);
        assert_eq!(payload.len(), 116 + 7);
    }

    /// Writers make room by it: less would make frames and segments longer than they may be, more would
    /// waste them.
    #[test]
    fn the_most_that_a_record_takes_is_little_more_than_what_it_takes() {
        let long = [7; 1000];
        for record in [
            Record::Put { key: &long[..100], value: &long },
            Record::Put { key: &long, value: b"" },
            Record::Delete { key: &long },
            Record::Commit(CommitBody::new(&long)),
            Record::Checkpoint { id: CheckpointId(4) },
            Record::Barrier { durable: Epoch(8), digest: Some(StateDigest { digest: 1, live_keys: 2 }) },
            Record::Confirm { durable: Epoch(9) },
            Record::SegmentEnd { next: SegmentNumber(2) },
        ] {
            for after_ns in [1, 2] {
                let mut payload = Vec::new();
                record.encode(after_ns, &mut payload);
                let (len, most) = (payload.len(), record.encoded_len_max());
                assert!(len <= most && most <= len + 32, "{record:?}: {len} of {most}");
            }
        }
    }

    #[test]
    fn a_commit_with_bytes_behind_its_last_offset_makes_no_sense() {
        let mut body = Vec::new();
        encode_commit_body(&mut body, None, [("orders/0", 12)].into_iter());
        assert!(CommitBody::new(&body).decode().is_some());
        body.push(0);
        assert_eq!(CommitBody::new(&body).decode(), None);
    }

    #[test]
    fn every_truncation_and_unknown_op_is_refused() {
        let mut payload = Vec::new();
        Record::Put { key: b"key", value: b"value" }.encode(5, &mut payload);
        for len in 0..payload.len() {
            assert_eq!(Record::decode(&mut Fields::new(&payload[..len])), None);
        }
        for op in [0_u8, 8, 0x7f, 0x80, 0xff] {
            assert_eq!(Record::decode(&mut Fields::new(&[op; 64])), None);
        }
    }
}
