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
    /// Bytes of the buffer that were read; what stands behind them is left from before.
    filled: usize,
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
    /// Where the last frame with a valid header would end, the one at the end included; 0 when there is none.
    pub(crate) end: u64,
    /// Largest epoch and sequence among them, never to be used again.
    pub(crate) max_epoch: Epoch,
    pub(crate) max_sequence: Sequence,
}

impl Rest {
    /// Whether a segment ends in order where this fault is: nothing but zeros follows, or the zeros that cut off what an
    /// earlier use of the file left.
    pub(crate) fn is_unused(&self, fault: FrameFault, reused: bool) -> bool {
        !self.written || (reused && fault == FrameFault::Zero && self.frames == 0)
    }
}

impl FrameReader {
    pub(crate) fn new(file: Arc<dyn VfsFile>, salt: Salt, core: CoreId, offset: u64, limit: u64) -> Self {
        // A successor may claim that less of the segment counts than its header.
        let limit = limit.max(offset);
        Self { file, salt, core, offset, limit, buffer: Vec::new(), filled: 0, buffer_at: offset }
    }

    /// Offset of the next frame: the end of the last valid one.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Checks and returns the frame at the offset, and moves past it.
    pub(crate) fn step(&mut self) -> io::Result<Step<'_>> {
        if sabotaged(Sabotage::ReadErrorIsEnd) && self.view(FRAME_HEADER_LEN).is_err() {
            self.limit = self.offset;
        }
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
        if self.filled.saturating_sub(start) < len {
            let left = usize::try_from(self.limit - self.offset).unwrap_or(usize::MAX);
            // What is there of it already is not read again: a frame is about as long as a chunk.
            let unread = start.min(self.filled)..self.filled;
            let have = unread.len();
            self.buffer.copy_within(unread, 0);
            (self.buffer_at, self.filled) = (self.offset, have);
            let wanted = len.max(CHUNK).min(left).max(have);
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
            let rest = self.buffer.get_mut(have..wanted).unwrap_or_default();
            let got = read_up_to_at(self.file.as_ref(), rest, self.offset.saturating_add(have as u64))?;
            self.filled = have + got;
            return Ok(self.buffer.get(..len).filter(|_| len <= self.filled));
        }
        Ok(self.buffer.get(start..start + len))
    }

    /// Forgets what was read behind the offset. Beside a store that goes on, more may stand there by now.
    pub(crate) fn forget(&mut self) {
        (self.buffer_at, self.filled) = (self.offset, 0);
    }

    /// Searches everything behind the offset, after a fault there, for frames of sequences larger than `after`, which all
    /// of the segment have. What this core left there when the file was another segment has smaller ones.
    pub(crate) fn examine_rest(&self, after: Sequence) -> io::Result<Rest> {
        let bad = self.offset;
        let mut rest = Rest { bytes: self.limit - bad, ..Rest::default() };
        rest.written = self.search(|head, at| self.count(head, at, after, &mut rest))?;
        Ok(rest)
    }

    /// Whether something from the offset on looks like a whole frame, for those who have no salt to check it with.
    pub(crate) fn resembles(&self) -> io::Result<bool> {
        let mut any = false;
        self.search(|head, at| {
            let fits = |header: FrameHeader| header.frame_len() as u64 <= self.limit - at;
            any |= FrameHeader::unchecked(head, at).is_some_and(fits);
        })?;
        Ok(any)
    }

    /// Calls `each` with everything from the offset on that may be a frame's header, and its place; returns whether
    /// there is anything but zeros.
    fn search(&self, mut each: impl FnMut(&[u8; FRAME_HEADER_LEN], u64)) -> io::Result<bool> {
        let mut any = false;
        let mut at = self.offset;
        let mut chunk = Vec::new();
        while at < self.limit {
            let left = usize::try_from(self.limit - at).unwrap_or(usize::MAX);
            chunk.resize((CHUNK + FRAME_HEADER_LEN).min(left), 0);
            let got = read_up_to_at(self.file.as_ref(), &mut chunk, at)?;
            chunk.truncate(got);
            let written = chunk.iter().any(|b| *b != 0);
            any |= written;
            // Zeros are no header, wherever one would begin in them.
            let searched = if written { CHUNK.min(got) } else { 0 };
            for start in (0..searched).step_by(FRAME_ALIGN) {
                let Some(head) = chunk.get(start..).and_then(|b| b.first_chunk::<FRAME_HEADER_LEN>()) else {
                    break;
                };
                if may_be_header(head, self.core) {
                    each(head, at + start as u64);
                }
            }
            at += CHUNK as u64;
            if got < CHUNK {
                break;
            }
        }
        Ok(any)
    }

    fn count(&self, head: &[u8; FRAME_HEADER_LEN], at: u64, after: Sequence, rest: &mut Rest) {
        let decoded = FrameHeader::decode(head, &self.salt, at, self.core);
        let Some(header) = decoded.ok().filter(|header| header.first_sequence > after) else { return };
        rest.end = rest.end.max((at + header.frame_len() as u64).min(self.limit));
        if at == self.offset {
            return;
        }
        rest.frames += 1;
        if header.synced_len > self.offset && rest.witness.is_none() {
            rest.witness = Some(at);
        }
        let last = header.first_sequence.0.saturating_add(u64::from(header.records) - 1);
        rest.max_epoch = rest.max_epoch.max(header.epoch);
        rest.max_sequence = rest.max_sequence.max(Sequence(last));
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
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

    const SALT: [u64; 1] = [9];

    /// A frame of three records with the given payload, for the given place.
    fn frame(at: u64, synced_len: u64, epoch: u64, first_sequence: u64, payload: &[u8]) -> Vec<u8> {
        let salt = Salt::new(&SALT);
        let mut padded = payload.to_vec();
        padded.resize(payload.len().next_multiple_of(FRAME_ALIGN), 0);
        let header = FrameHeader {
            payload_crc: salt.crc(&[&padded]),
            payload_len: u32::try_from(payload.len()).unwrap(),
            core: CoreId(1),
            records: 3,
            synced_len,
            epoch: Epoch(epoch),
            first_sequence: Sequence(first_sequence),
            first_timestamp: crate::ids::TimestampNs(1),
        };
        [header.encode(&salt, at).as_slice(), &padded].concat()
    }

    fn reader(parts: &[(u64, &[u8])], offset: u64, limit: u64) -> FrameReader {
        let disk = SimDisk::new(1);
        let file = disk.create_new(Path::new("/segment")).unwrap();
        for (at, bytes) in parts {
            write_all_at(file.as_ref(), bytes, *at).unwrap();
        }
        FrameReader::new(file, Salt::new(&SALT), CoreId(1), offset, limit)
    }

    fn fault(reader: &mut FrameReader) -> FrameFault {
        match reader.step().unwrap() {
            Step::Fault(fault) => fault,
            Step::Frame(header, _) => panic!("{header:?}"),
            Step::End => panic!("the end"),
        }
    }

    #[test]
    fn frames_follow_each_other_up_to_the_limit() {
        let first = frame(0, 0, 1, 1, b"eleven byte");
        let second = frame(64, 0, 1, 4, &vec![7; CHUNK + 3]);
        let end = 64 + second.len() as u64;
        let mut frames = reader(&[(0, &first), (64, &second), (end, &[1; 64])], 0, end);
        for (len, next) in [(11, 64), (CHUNK + 3, end)] {
            let Step::Frame(header, payload) = frames.step().unwrap() else { panic!("no frame") };
            assert_eq!((payload.len(), header.records), (len, 3));
            assert_eq!(frames.offset(), next);
        }
        assert!(matches!(frames.step().unwrap(), Step::End));
        // One byte less, and the frame does not count, although the file has all of it.
        let mut frames = reader(&[(0, &first)], 0, 63);
        assert_eq!(fault(&mut frames), FrameFault::Short);
        assert_eq!(frames.offset(), 0);
    }

    #[test]
    fn nothing_beyond_the_limit_is_looked_at() {
        let (first, beyond) = (frame(0, 0, 1, 1, b"payload"), frame(88, 64, 9, 9, b""));
        let limit = first.len() as u64 + 24;
        let mut frames = reader(&[(0, &first), (88, &beyond)], 0, limit);
        assert!(matches!(frames.step().unwrap(), Step::Frame(..)));
        // Twenty-four zeros and then the file goes on: too short for a header, and no space written ahead.
        assert_eq!(fault(&mut frames), FrameFault::Short);
        assert_eq!(frames.examine_rest(Sequence::ZERO).unwrap(), Rest { bytes: 24, ..Rest::default() });
    }

    #[test]
    fn the_rest_is_searched_to_its_end_for_a_witness() {
        let first = frame(0, 0, 1, 1, b"payload");
        let bad = first.len() as u64;
        // Whole in itself, but written before the bad bytes were synced.
        let near = bad + 64;
        // Its header lies across the border between two chunks.
        let across = bad + (CHUNK - FRAME_ALIGN) as u64;
        let far = across + CHUNK as u64 + 512;
        let later = [(near, bad, 7, 100), (across, bad + 8, 5, 300), (far, bad + 16, 6, 200)];
        let bytes = later.map(|(at, synced, epoch, sequence)| (at, frame(at, synced, epoch, sequence, b"")));
        let parts: Vec<_> = bytes.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        let limit = far + FRAME_HEADER_LEN as u64;
        let mut frames =
            reader(&[&[(0, first.as_slice()), (bad, &[0xff; 48])], parts.as_slice()].concat(), 0, limit);
        assert!(matches!(frames.step().unwrap(), Step::Frame(..)));
        assert!(matches!(fault(&mut frames), FrameFault::HeaderChecksum { .. }));
        let expected = Rest {
            bytes: limit - bad,
            written: true,
            frames: 3,
            witness: Some(across),
            end: limit,
            max_epoch: Epoch(7),
            max_sequence: Sequence(302),
        };
        assert_eq!(frames.examine_rest(Sequence::ZERO).unwrap(), expected);
    }

    /// A reader beside a store that goes on read the place before the frame was written, and the rest after it.
    #[test]
    fn what_was_read_before_it_was_written_is_read_again() {
        let disk = SimDisk::new(1);
        let file = disk.create_new(Path::new("/segment")).unwrap();
        let (first, next) = (frame(0, 0, 1, 1, b""), frame(48, 48, 1, 4, b""));
        write_all_at(file.as_ref(), &[first.as_slice(), &[0; 144]].concat(), 0).unwrap();
        let mut frames = FrameReader::new(Arc::clone(&file), Salt::new(&SALT), CoreId(1), 0, 192);
        assert!(matches!(frames.step().unwrap(), Step::Frame(..)));
        assert_eq!(fault(&mut frames), FrameFault::Zero);
        write_all_at(file.as_ref(), &[next, frame(96, 96, 1, 7, b"")].concat(), 48).unwrap();
        assert_eq!(frames.examine_rest(Sequence::ZERO).unwrap().witness, Some(96));
        assert_eq!(fault(&mut frames), FrameFault::Zero, "it has it still");
        frames.forget();
        assert!(matches!(frames.step().unwrap(), Step::Frame(..)));
    }

    #[test]
    fn a_frame_whose_payload_is_torn_is_no_witness_of_itself() {
        let mut torn = frame(256, 256, 8, 50, b"payload");
        torn[FRAME_HEADER_LEN] ^= 1;
        let limit = 256 + torn.len() as u64;
        let mut frames = reader(&[(256, &torn)], 256, limit);
        assert!(matches!(fault(&mut frames), FrameFault::PayloadChecksum { .. }));
        assert_eq!(
            frames.examine_rest(Sequence::ZERO).unwrap(),
            Rest { bytes: 56, written: true, end: limit, ..Rest::default() }
        );
    }

    #[test]
    fn the_rest_of_an_empty_segment_is_searched_too() {
        let frames = reader(&[(8, &frame(8, 8, 2, 1, b""))], 0, 64);
        let rest = frames.examine_rest(Sequence::ZERO).unwrap();
        assert_eq!((rest.frames, rest.witness, rest.max_sequence), (1, Some(8), Sequence(3)));
    }
}
