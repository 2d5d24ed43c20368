//! What a disk was told: writes, flushes, and between them the acknowledgements of the program above.
//!
//! An acknowledgement goes through the same queue as the blocks: the program writes it to a file that
//! the recorder serves. Its place is therefore exact. Every flush that it rests on was answered
//! before it was sent and is recorded before it; whatever is recorded after it came later. So at a cut behind
//! its place it counts, and before its place nobody had heard it.

use std::io::{self, Read, Write};

use laminar_storage::ids::Epoch;

use super::disk::Disk;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written to the disk.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The disk was told to make durable what it holds, and answered that it did.
    Flush,
    /// An epoch was said to be durable, or was seen by whoever opened the store.
    Acknowledged(Epoch),
}

/// A disk at the beginning, and everything after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// Decides the state of every epoch, and the choices of a cut.
    pub truth: u64,
    /// Acknowledged before the beginning.
    pub floor: Epoch,
    /// The kind of file system.
    pub kind: String,
    /// Options it is mounted with.
    pub options: String,
    /// The disk at the beginning, all of it durable.
    pub base: Disk,
    /// In order.
    pub records: Vec<Record>,
}

const MAGIC: &[u8; 16] = b"laminar power 1\n";

impl Recording {
    /// Records of each kind: writes, their bytes, flushes, acknowledgements.
    #[must_use]
    pub fn counts(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        let [writes, bytes, flushes, acks] = &mut counts;
        for record in &self.records {
            match record {
                Record::Write { bytes: written, .. } => {
                    *writes += 1;
                    *bytes += written.len() as u64;
                }
                Record::Flush => *flushes += 1,
                Record::Acknowledged(_) => *acks += 1,
            }
        }
        counts
    }

    /// Writes it all down.
    ///
    /// # Errors
    /// Writing.
    pub fn save(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        put_number(to, self.truth)?;
        put_number(to, self.floor.get())?;
        put_bytes(to, self.kind.as_bytes())?;
        put_bytes(to, self.options.as_bytes())?;
        put_number(to, self.base.len())?;
        put_number(to, self.base.blocks().count() as u64)?;
        for (offset, bytes) in self.base.blocks() {
            put_number(to, offset)?;
            put_bytes(to, bytes)?;
        }
        put_number(to, self.records.len() as u64)?;
        for record in &self.records {
            match record {
                Record::Write { offset, bytes } => {
                    to.write_all(b"w")?;
                    put_number(to, *offset)?;
                    put_bytes(to, bytes)?;
                }
                Record::Flush => to.write_all(b"f")?,
                Record::Acknowledged(epoch) => {
                    to.write_all(b"a")?;
                    put_number(to, epoch.get())?;
                }
            }
        }
        to.flush()
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// Reading, or it is something else.
    pub fn load(from: &mut impl Read) -> io::Result<Self> {
        if take::<16>(from)? != *MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a recording of a disk"));
        }
        let (truth, floor) = (number(from)?, Epoch(number(from)?));
        let (kind, options) = (text(from)?, text(from)?);
        let mut base = Disk::new(number(from)?);
        for _ in 0..number(from)? {
            let offset = number(from)?;
            base.write(offset, &some_bytes(from)?);
        }
        let mut records = Vec::new();
        for _ in 0..number(from)? {
            records.push(match &take::<1>(from)? {
                b"w" => Record::Write { offset: number(from)?, bytes: some_bytes(from)? },
                b"f" => Record::Flush,
                _ => Record::Acknowledged(Epoch(number(from)?)),
            });
        }
        Ok(Self { truth, floor, kind, options, base, records })
    }
}

fn put_number(to: &mut impl Write, number: u64) -> io::Result<()> {
    to.write_all(&number.to_le_bytes())
}

fn put_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    put_number(to, bytes.len() as u64)?;
    to.write_all(bytes)
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map(|()| bytes)
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    take(from).map(u64::from_le_bytes)
}

fn some_bytes(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let len = number(from)?;
    let mut bytes = Vec::new();
    if from.by_ref().take(len).read_to_end(&mut bytes)? as u64 == len {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn text(from: &mut impl Read) -> io::Result<String> {
    String::from_utf8(some_bytes(from)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Listens to a disk and to the program above it.
#[derive(Debug)]
pub struct Recorder {
    now: Disk,
    recording: Recording,
    /// The beginning of a line that has not ended.
    line: Vec<u8>,
}

impl Recorder {
    /// Begins with the disk of a recording that has no records yet.
    #[must_use]
    pub fn new(recording: Recording) -> Self {
        Self { now: recording.base.clone(), recording, line: Vec::new() }
    }

    /// What the disk holds.
    #[must_use]
    pub fn now(&self) -> &Disk {
        &self.now
    }

    /// The disk is written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.now.write(offset, bytes);
        self.recording.records.push(Record::Write { offset, bytes: bytes.to_vec() });
    }

    /// The disk is flushed.
    pub fn flush(&mut self) {
        self.recording.records.push(Record::Flush);
    }

    /// The program says something: lines, of which those with a number name an epoch that will come back.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let said = String::from_utf8_lossy(&line);
            let number = said.trim().split_once(' ').and_then(|(_, number)| number.parse().ok());
            self.recording.records.extend(number.map(|number| Record::Acknowledged(Epoch(number))));
        }
    }

    /// Forgets the beginning of a line whose writer is dead.
    pub fn hang_up(&mut self) {
        self.line.clear();
    }

    /// The recording so far.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The newest acknowledged epoch.
    #[must_use]
    pub fn acknowledged(&self) -> Epoch {
        self.recording.records.iter().fold(self.recording.floor, |newest, record| match record {
            Record::Acknowledged(epoch) => newest.max(*epoch),
            _ => newest,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;

    fn recorder() -> Recorder {
        let base = Disk::new(1 << 16);
        Recorder::new(Recording {
            truth: 5,
            floor: Epoch(2),
            kind: "ext4".into(),
            base,
            ..Recording::default()
        })
    }

    #[test]
    fn everything_is_recorded_in_order() {
        let mut recorder = recorder();
        recorder.write(512, b"one");
        recorder.hear(b"start\nopen 3\nac");
        recorder.flush();
        recorder.hear(b"k 7\ncheckpoint\n");
        recorder.hear(b"clos");
        recorder.hang_up();
        recorder.hear(b"start\nopen 8\n");
        let ack = |epoch| Record::Acknowledged(Epoch(epoch));
        let write = Record::Write { offset: 512, bytes: b"one".to_vec() };
        assert_eq!(recorder.recording().records, [write, ack(3), Record::Flush, ack(7), ack(8)]);
        assert_eq!(recorder.acknowledged(), Epoch(8));
        assert_eq!(recorder.recording().counts(), [1, 3, 1, 3]);
        assert_eq!(recorder.now().read(510, 6), b"\0\0one\0");
        assert!(recorder.recording().base.blocks().next().is_none(), "the beginning stays");
    }

    #[test]
    fn a_recording_comes_back_from_a_file() {
        let mut recorder = recorder();
        recorder.write(4095, b"over an edge");
        let mut recording = recorder.recording().clone();
        recording.base = recorder.now().clone();
        recording.options = "data=journal".into();
        recording.records.extend([Record::Flush, Record::Acknowledged(Epoch(9))]);
        let mut file = Vec::new();
        recording.save(&mut file).unwrap();
        assert_eq!(Recording::load(&mut file.as_slice()).unwrap(), recording);
        assert!(Recording::load(&mut &file[..file.len() - 1]).is_err());
        file[0] ^= 1;
        assert!(Recording::load(&mut file.as_slice()).is_err());
    }
}
