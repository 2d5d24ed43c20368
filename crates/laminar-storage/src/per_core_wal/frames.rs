//! Walking the frames of one segment, and judging the place where they end.

use std::io;
use std::sync::Arc;

use crate::format::checksum::Salt;
use crate::format::frame::{FRAME_ALIGN, FRAME_HEADER_LEN, FrameFault, FrameHeader, may_be_header};
use crate::ids::{CoreId, Epoch, Sequence};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{VfsFile, read_up_to_at};

const CHUNK: usize = 256 << 10;

/// Reads frames one after the other, holding one chunk of the file or one frame, whichever is longer.
#[derive(Debug)]
pub(crate) struct FrameReader {
    file: Arc<dyn VfsFile>,
    salt: Salt,
    core: CoreId,
    offset: u64,
    /// Bytes of the file that count.
    limit: u64,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    buffer_at: u64,
}

/// What stands at the reader's offset.
pub(crate) enum Step<'a> {
    Frame(FrameHeader, &'a [u8]),
    /// The limit is reached exactly.
    End,
    Fault(FrameFault),
}

/// What follows the place where the frames of a segment end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Bytes up to the limit, zeros included.
    pub(crate) bytes: u64,
    /// Some of them are not zero.
    pub(crate) written: bool,
    /// Later frames with a valid header.
    pub(crate) frames: u64,
    /// Offset of the first of them that was written after the bytes at the end had been synced.
    pub(crate) witness: Option<u64>,
    /// Largest epoch and sequence among them, never to be used again.
    pub(crate) max_epoch: Epoch,
    pub(crate) max_sequence: Sequence,
}

impl FrameReader {
    pub(crate) fn new(file: Arc<dyn VfsFile>, salt: Salt, core: CoreId, offset: u64, limit: u64) -> Self {
        // A successor may claim that less of the segment counts than its header.
        let limit = limit.max(offset);
        Self { file, salt, core, offset, limit, buffer: Vec::new(), buffer_at: offset }
    }

    /// Offset of the next frame: the end of the last valid one.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Checks and returns the frame at the offset, and moves past it.
    pub(crate) fn step(&mut self) -> io::Result<Step<'_>> {
        if self.offset >= self.limit {
            return Ok(Step::End);
        }
        let Some(head) =
            self.view(FRAME_HEADER_LEN)?.and_then(|b| b.first_chunk::<FRAME_HEADER_LEN>()).copied()
        else {
            return Ok(Step::Fault(FrameFault::Short));
        };
        if sabotaged(Sabotage::LengthBelieved) {
            let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = head;
            self.buffer.reserve(u32::from_le_bytes([a, b, c, d]) as usize);
        }
        let header = match FrameHeader::decode(&head, &self.salt, self.offset, self.core) {
            Ok(header) => header,
            Err(fault) => return Ok(Step::Fault(fault)),
        };
        // I10: the header's checksum vouches for the length, and the file's for that many bytes to be
        // there, before anything is allocated for them.
        let whole = header.frame_len();
        if self.limit - self.offset < whole as u64 {
            return Ok(Step::Fault(FrameFault::Short));
        }
        if self.view(whole)?.is_none() {
            return Ok(Step::Fault(FrameFault::Short));
        }
        let start = usize::try_from(self.offset - self.buffer_at).unwrap_or(usize::MAX);
        let padded = self.buffer.get(start + FRAME_HEADER_LEN..start + whole).unwrap_or_default();
        if let Err(fault) = header.check_payload(&self.salt, padded) {
            return Ok(Step::Fault(fault));
        }
        self.offset += whole as u64;
        Ok(Step::Frame(header, padded.get(..header.payload_len as usize).unwrap_or_default()))
    }

    /// The `len` bytes at the offset, `None` when the file or the limit ends before.
    fn view(&mut self, len: usize) -> io::Result<Option<&[u8]>> {
        let start = usize::try_from(self.offset - self.buffer_at).unwrap_or(usize::MAX);
        if self.buffer.len().saturating_sub(start) < len {
            let left = usize::try_from(self.limit - self.offset).unwrap_or(usize::MAX);
            let wanted = len.max(CHUNK).min(left);
            // What is there of it already is not read again: a frame is about as long as a chunk.
            self.buffer.drain(..start.min(self.buffer.len()));
            self.buffer_at = self.offset;
            let have = self.buffer.len();
            self.buffer.resize(wanted.max(have), 0);
            let rest = self.buffer.get_mut(have..).unwrap_or_default();
            let got = read_up_to_at(self.file.as_ref(), rest, self.offset.saturating_add(have as u64))?;
            self.buffer.truncate(have + got);
            return Ok(self.buffer.get(..len));
        }
        Ok(self.buffer.get(start..start + len))
    }

    /// Searches everything behind the offset, after a fault there.
    pub(crate) fn examine_rest(&mut self) -> io::Result<Rest> {
        let bad = self.offset;
        let mut rest = Rest { bytes: self.limit - bad, ..Rest::default() };
        let mut at = bad;
        let mut chunk = Vec::new();
        while at < self.limit {
            let left = usize::try_from(self.limit - at).unwrap_or(usize::MAX);
            chunk.resize((CHUNK + FRAME_HEADER_LEN).min(left), 0);
            let got = read_up_to_at(self.file.as_ref(), &mut chunk, at)?;
            chunk.truncate(got);
            rest.written |= chunk.iter().any(|b| *b != 0);
            for start in (0..CHUNK.min(got)).step_by(FRAME_ALIGN) {
                let Some(head) = chunk.get(start..).and_then(|b| b.first_chunk::<FRAME_HEADER_LEN>()) else {
                    break;
                };
                if may_be_header(head, self.core) && at + start as u64 > bad {
                    self.count_later(head, at + start as u64, bad, &mut rest);
                }
            }
            at += CHUNK as u64;
            if got < CHUNK {
                break;
            }
        }
        Ok(rest)
    }

    fn count_later(&self, head: &[u8; FRAME_HEADER_LEN], at: u64, bad: u64, rest: &mut Rest) {
        if let Ok(header) = FrameHeader::decode(head, &self.salt, at, self.core) {
            rest.frames += 1;
            if header.synced_len > bad && rest.witness.is_none() {
                rest.witness = Some(at);
            }
            let last = header.first_sequence.0.saturating_add(u64::from(header.records) - 1);
            rest.max_epoch = rest.max_epoch.max(header.epoch);
            rest.max_sequence = rest.max_sequence.max(Sequence(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ring0::tests::allocations::largest_of;
    use crate::vfs::sim::SimDisk;
    use crate::vfs::{Vfs, write_all_at};

    /// A length is covered by a checksum and by the bytes that are there before anything is allocated
    /// for it.
    #[test]
    fn a_claimed_length_allocates_nothing() {
        let disk = SimDisk::new(1);
        let file = disk.create_new(Path::new("/segment")).unwrap();
        let mut head = [1; FRAME_HEADER_LEN];
        head[8..12].copy_from_slice(&(512_u32 << 20).to_le_bytes());
        write_all_at(file.as_ref(), &head, 0).unwrap();
        let mut fault = None;
        let largest = largest_of(|| {
            let mut reader = FrameReader::new(file, Salt::new(&[1]), CoreId(0), 0, head.len() as u64);
            fault = match reader.step().unwrap() {
                Step::Fault(fault) => Some(fault),
                _ => None,
            };
        });
        assert!(matches!(fault, Some(FrameFault::HeaderChecksum { .. })), "{fault:?}");
        assert!(largest <= head.len() + (1 << 20), "{largest} bytes");
    }
}
