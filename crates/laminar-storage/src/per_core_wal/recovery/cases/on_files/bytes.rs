//! What the bytes of the segment in question look like: how its frames end, or what became of its header.

use std::path::{Path, PathBuf};

use super::super::{End, Facts};
use super::logs::{Kind, Log, PLACES, Place};
use crate::format::frame::{FRAME_HEADER_LEN, FrameHeader};
use crate::format::record::Record;
use crate::format::segment_header::{Predecessor, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{Epoch, Sequence, TimestampNs};
use crate::per_core_wal::frames::{FrameReader, Step};
use crate::per_core_wal::reader::read_header;
use crate::vfs::{Access, Vfs};

/// More than the records of a frame are apart.
const A_MILLISECOND: u64 = 1_000_000;

/// Something behind the frames that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Zeros,
    Garbage,
    /// What the writer left there itself.
    Left,
    /// The record that announces a successor.
    Announcement,
    /// A frame that was written after everything before it had been synced.
    Testimony,
    /// A frame that was written before that.
    Unsynced,
    /// A frame with a right checksum over fields that have no meaning.
    Senseless,
    /// Frames that a crash tore: a bit is another one; a sector of the payload, or the header, never arrived;
    /// the file ends in the payload, or in the header.
    Flipped,
    Holed,
    Headless,
    Half,
    Stub,
}
use Part::{
    Announcement, Flipped, Garbage, Half, Headless, Holed, Left, Senseless, Stub, Testimony, Unsynced, Zeros,
};

/// How a segment with a sound header ends.
pub(super) struct Tail {
    pub(super) what: &'static str,
    end: End,
    /// What stands within the length that its successor names, if it has one.
    parts: &'static [Part],
    /// What stands behind that.
    behind: &'static [Part],
    /// Bytes that the successor names and the file does not have.
    missing: u64,
    /// Only with a successor, or only without.
    successor: Option<bool>,
}

const fn tail(what: &'static str, end: End, parts: &'static [Part]) -> Tail {
    Tail { what, end, parts, behind: &[], missing: 0, successor: None }
}

pub(super) const TAILS: [Tail; 20] = [
    Tail { behind: &[Left], ..tail("as it was left", End::Clean, &[]) },
    tail("as it is closed in order", End::Clean, &[Testimony]),
    tail("an announcement that is not the last", End::Clean, &[Announcement, Testimony]),
    Tail { successor: Some(false), ..tail("zeros written ahead", End::Clean, &[Zeros]) },
    Tail { successor: Some(true), behind: &[Zeros], ..tail("zeros that do not count", End::Clean, &[]) },
    Tail { successor: Some(true), behind: &[Garbage], ..tail("a torn end that was cut", End::Clean, &[]) },
    tail("garbage", End::Torn, &[Garbage]),
    tail("a bit of the last frame", End::Torn, &[Flipped]),
    tail("a sector of the last frame", End::Torn, &[Holed]),
    tail("the header of the last frame", End::Torn, &[Headless]),
    tail("the file ends within a frame", End::Torn, &[Half]),
    tail("the file ends within the header of a frame", End::Torn, &[Stub]),
    tail("two frames at once, of which the second arrived", End::Torn, &[Holed, Unsynced]),
    Tail { successor: Some(true), ..tail("zeros that were frames", End::Torn, &[Zeros]) },
    Tail { successor: Some(true), missing: 64, ..tail("cut between two frames", End::Torn, &[]) },
    tail("a bit of a frame that was synced", End::Damaged, &[Flipped, Testimony]),
    tail("zeros in place of a frame that was synced", End::Damaged, &[Zeros, Testimony]),
    tail("garbage in place of a frame that was synced", End::Damaged, &[Garbage, Testimony]),
    tail("fields without meaning", End::Damaged, &[Senseless]),
    tail("fields without meaning before a torn frame", End::Damaged, &[Senseless, Half]),
];

/// What the frames before the tail are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Good {
    Nothing,
    Frames,
    /// Frames, the last of which announces a successor.
    Announced,
}

/// What became of a header, or of a whole file: none of them can be read.
pub(super) struct Ruin {
    what: &'static str,
    /// Nothing is left behind the header.
    pub(super) whole: bool,
    /// It reaches into the first frame.
    reaches: bool,
    change: fn(&mut Vec<u8>),
}

const fn ruin(what: &'static str, whole: bool, change: fn(&mut Vec<u8>)) -> Ruin {
    Ruin { what, whole, reaches: false, change }
}

pub(super) const RUINS: [Ruin; 11] = [
    ruin("a bit of the magic", false, |file| file[3] ^= 1),
    ruin("a bit of a field", false, |file| file[100] ^= 0x10),
    ruin("a bit of the checksum", false, |file| file[SEGMENT_HEADER_LEN - 1] ^= 0x80),
    ruin("zeros", false, |file| file[..SEGMENT_HEADER_LEN].fill(0)),
    ruin("garbage", false, |file| file[..SEGMENT_HEADER_LEN].fill(0xff)),
    ruin("a field without meaning", false, |file| {
        let header = SegmentHeader::decode(file).unwrap();
        file[..SEGMENT_HEADER_LEN].copy_from_slice(&SegmentHeader { core_count: 0, ..header }.encode());
    }),
    Ruin {
        reaches: true,
        ..ruin("a sector", false, |file| {
            let sector = file.len().min(512);
            file[..sector].fill(0);
        })
    },
    ruin("an empty file", true, Vec::clear),
    ruin("a short file", true, |file| file.truncate(100)),
    ruin("a file that lacks a byte", true, |file| file.truncate(SEGMENT_HEADER_LEN - 1)),
    ruin("a file of zeros", true, |file| *file = vec![0; SEGMENT_HEADER_LEN]),
];

/// What can stand behind such a header, and whether there are frames in it.
pub(super) const BODIES: [(Good, &[Part], bool); 9] = [
    (Good::Nothing, &[], false),
    (Good::Nothing, &[Zeros], false),
    (Good::Nothing, &[Garbage], false),
    (Good::Nothing, &[Flipped], false),
    (Good::Nothing, &[Half], false),
    (Good::Frames, &[], true),
    (Good::Frames, &[Garbage], true),
    (Good::Nothing, &[Zeros, Unsynced], true),
    (Good::Nothing, &[Flipped, Testimony], true),
];

/// A log of which one segment is to have the facts.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) what: String,
    pub(super) log: Log,
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    pub(super) facts: Facts,
    /// The segment before it says that it is there.
    pub(super) announced: bool,
}

/// Every log of a kind.
pub(super) fn subjects(kind: Kind, mut check: impl FnMut(Subject)) {
    for place in &PLACES {
        for good in [Good::Nothing, Good::Frames, Good::Announced] {
            TAILS.iter().filter_map(|tail| sound(kind, place, good, tail)).for_each(&mut check);
        }
        for ruin in &RUINS {
            BODIES.iter().filter_map(|body| unreadable(kind, place, ruin, *body)).for_each(&mut check);
        }
    }
}

fn sound(kind: Kind, place: &Place, good: Good, tail: &Tail) -> Option<Subject> {
    let empty = good == Good::Nothing;
    // A writer leaves no segment without a frame when it goes on in another one. Damage may leave one.
    let cannot_be = empty && tail.end == End::Clean && place.least > 0;
    // What a writer left has its own announcement already.
    let twice = good == Good::Announced && place.successor && tail.behind == [Left];
    // Both are frames, and the last one announces nothing.
    let unasked = tail.end == End::Clean && tail.parts.ends_with(&[Testimony]) && good != Good::Frames;
    let elsewhere = tail.successor.is_some_and(|wanted| wanted != place.successor);
    if cannot_be || twice || unasked || elsewhere {
        return None;
    }
    let facts = Facts {
        header_sound: true,
        required: place.required,
        frames: !empty,
        successor: place.successor,
        end: tail.end,
        announced: good == Good::Announced,
    };
    let what = format!("{kind:?}: {}: {good:?}, {}", place.what, tail.what);
    let subject = write(what, kind, place, facts, if empty { 0 } else { 2 });
    let old = Old::read(&subject);
    let mut file = old.with(good, tail.parts);
    let counts = file.len() as u64 + tail.missing;
    old.add(&mut file, tail.behind);
    subject.log.disk.overwrite(&subject.path, &file).unwrap();
    if place.successor {
        old.name_in_successor(&subject, counts);
    }
    Some(subject)
}

fn unreadable(
    kind: Kind,
    place: &Place,
    ruin: &Ruin,
    (good, parts, frames): (Good, &'static [Part], bool),
) -> Option<Subject> {
    if ruin.whole && (good, parts) != (Good::Nothing, &[]) {
        return None;
    }
    // Frames are told by the identity of the log. Where nothing says what that is, a header that looks right is enough.
    let nobodys = !place.identified && kind.cores == 1;
    let frames = frames || nobodys && !ruin.reaches && parts.contains(&Flipped);
    let facts = Facts {
        header_sound: false,
        required: place.required,
        frames,
        successor: place.successor,
        end: End::Clean,
        announced: false,
    };
    let what = format!("{kind:?}: {}: header: {}, {good:?}, {parts:?}", place.what, ruin.what);
    let subject = write(what, kind, place, facts, if good == Good::Nothing { 0 } else { 2 });
    let mut file = Old::read(&subject).with(good, parts);
    (ruin.change)(&mut file);
    subject.log.disk.overwrite(&subject.path, &file).unwrap();
    Some(subject)
}

fn write(what: String, kind: Kind, place: &Place, facts: Facts, frames: usize) -> Subject {
    let mut log = Log::new(kind);
    let path = (place.write)(&mut log, frames.max(place.least));
    log.kill();
    Subject { what, log, kind, path, facts, announced: place.announced }
}

/// A segment as its writer left it.
struct Old {
    header: SegmentHeader,
    bytes: Vec<u8>,
    /// Where the frames that were written end.
    end: usize,
    last: FrameHeader,
}

impl Old {
    fn read(subject: &Subject) -> Self {
        let disk = &subject.log.disk;
        let header = read_header(disk, &subject.path).unwrap().unwrap();
        let bytes = disk.read_file(&subject.path).unwrap();
        let next = successor(subject).map(|path| read_header(disk, &path).unwrap().unwrap());
        let end = next.map_or(bytes.len() as u64, |next| next.previous.len);
        let file = disk.open(&subject.path, Access::Read).unwrap();
        let mut frames = FrameReader::new(file, header.salt(), header.core, SEGMENT_HEADER_LEN as u64, end);
        let mut last = FrameHeader {
            payload_crc: 0,
            payload_len: 0,
            core: header.core,
            records: 1,
            synced_len: 0,
            epoch: header.last_epoch,
            first_sequence: header.last_sequence,
            first_timestamp: header.last_timestamp,
        };
        while let Step::Frame(frame, _) = frames.step().unwrap() {
            last = frame;
        }
        assert_eq!(frames.offset(), end, "{}", subject.what);
        Self { header, bytes, end: usize::try_from(end).unwrap(), last }
    }

    /// Header, frames, and parts behind them.
    fn with(&self, good: Good, parts: &[Part]) -> Vec<u8> {
        let end = if good == Good::Nothing { SEGMENT_HEADER_LEN } else { self.end };
        let mut file = self.bytes[..end].to_vec();
        if good == Good::Announced {
            self.add(&mut file, &[Announcement]);
        }
        self.add(&mut file, parts);
        file
    }

    fn add(&self, file: &mut Vec<u8>, parts: &[Part]) {
        for part in parts {
            let bytes = self.part(*part, file.len() as u64);
            file.extend_from_slice(&bytes);
        }
    }

    fn part(&self, part: Part, at: u64) -> Vec<u8> {
        let torn = || self.frame(at, SEGMENT_HEADER_LEN as u64, 1, &self.torn_records());
        let change = |change: fn(&mut Vec<u8>)| {
            let mut frame = torn();
            change(&mut frame);
            frame
        };
        match part {
            Zeros => vec![0; 1024],
            Garbage => vec![0xff; 104],
            Left => self.bytes[self.end..].to_vec(),
            Announcement => self.frame(at, at, 1, &[Record::SegmentEnd { next: self.header.number.next() }]),
            Testimony => self.frame(at, at, 9, &[Record::Confirm { durable: Epoch::ZERO }]),
            Unsynced => self.frame(at, SEGMENT_HEADER_LEN as u64, 9, &self.torn_records()),
            Senseless => FrameHeader { records: 0, ..self.last }.encode(&self.header.salt(), at).to_vec(),
            Flipped => change(|frame| frame[FRAME_HEADER_LEN + 300] ^= 4),
            Holed => change(|frame| frame[FRAME_HEADER_LEN + 20..FRAME_HEADER_LEN + 532].fill(0)),
            Headless => change(|frame| frame[..FRAME_HEADER_LEN].fill(0)),
            Half => change(|frame| frame.truncate(frame.len() / 2)),
            Stub => change(|frame| frame.truncate(FRAME_HEADER_LEN / 2)),
        }
    }

    /// A whole epoch: if it counted, every reader would show it.
    fn torn_records(&self) -> [Record<'static>; 2] {
        [
            Record::Put { key: b"torn", value: &[9; 700] },
            Record::Barrier { durable: Epoch::ZERO, digest: None },
        ]
    }

    /// A frame behind the last one, for this place.
    fn frame(&self, at: u64, synced_len: u64, after: u64, records: &[Record<'_>]) -> Vec<u8> {
        let salt = self.header.salt();
        let mut payload = Vec::new();
        records.iter().for_each(|record| record.encode(1, &mut payload));
        let payload_len = u32::try_from(payload.len()).unwrap();
        payload.resize(payload.len().next_multiple_of(crate::format::frame::FRAME_ALIGN), 0);
        let behind = u64::from(self.last.records) + after;
        let header = FrameHeader {
            payload_crc: salt.crc(&[&payload]),
            payload_len,
            records: u32::try_from(records.len()).unwrap(),
            synced_len,
            first_sequence: Sequence(self.last.first_sequence.0 + behind),
            first_timestamp: TimestampNs(self.last.first_timestamp.0 + behind * A_MILLISECOND),
            ..self.last
        };
        [header.encode(&salt, at).as_slice(), &payload].concat()
    }

    /// Makes the successor say that so many bytes of the segment count.
    fn name_in_successor(&self, subject: &Subject, len: u64) {
        let (disk, path) = (&subject.log.disk, successor(subject).unwrap());
        let header = read_header(disk, &path).unwrap().unwrap();
        let previous = Predecessor { len, ..header.previous };
        assert_eq!((previous.incarnation, previous.number), (self.header.incarnation, self.header.number));
        disk.patch(path, 0, &SegmentHeader { previous, ..header }.encode()).unwrap();
    }
}

fn successor(subject: &Subject) -> Option<PathBuf> {
    let at = position(subject) + 1;
    subject.log.segments().get(at).filter(|_| subject.facts.successor).cloned()
}

/// Which of its core's segments it is.
pub(super) fn position(subject: &Subject) -> usize {
    let is_it = |path: &PathBuf| *path == subject.path;
    subject.log.segments().iter().position(is_it).unwrap()
}

/// The segment before it.
pub(super) fn predecessor(subject: &Subject) -> PathBuf {
    let before: &Path = &subject.log.segments()[position(subject) - 1];
    before.to_path_buf()
}
