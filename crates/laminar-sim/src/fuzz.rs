//! Fuzz targets: each takes any bytes and panics when a decoder, or a whole store, does what it must not.
//!
//! The same functions run under a coverage-guided fuzzer (the folder `fuzz/` of the repository), in
//! `laminar-sim fuzz` with a simple mutator, and in the tests over the kept corpora.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use laminar_storage::format::checksum::Salt;
use laminar_storage::format::closed::Closed;
use laminar_storage::format::current::Current;
use laminar_storage::format::fields::Fields;
use laminar_storage::format::frame::{FRAME_HEADER_LEN, FrameHeader};
use laminar_storage::format::record::{CommitBody, Record};
use laminar_storage::format::segment_header::SegmentHeader;
use laminar_storage::format::state_file::StateRecord;
use laminar_storage::format::synced::Synced;
use laminar_storage::ids::CoreId;
use laminar_storage::incremental::IncrementalCheckpointMetadata;
use laminar_storage::vfs::sim::SimDisk;

use crate::damage::Subject;
use crate::damage::stores::{Reference, reference_stores};
use crate::dice::Dice;
use crate::wire::{mend, mend_manifest, mend_segment};

mod directory;
mod ops;

/// A target: its name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("small", small),
    ("frame", frame),
    ("record", record),
    ("manifest", manifest),
    ("segment", directory::segment),
    ("directory", directory::directory),
    ("ops", ops::ops),
];

/// The target of this name.
///
/// # Errors
/// The names there are.
pub fn target(name: &str) -> Result<Target, String> {
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    let found = TARGETS.into_iter().find(|target| target.0 == name);
    found.ok_or_else(|| format!("no target {name}, only {}", names.join(", ")))
}

/// Feeds the target of this name; none does nothing.
pub fn run(name: &str, data: &[u8]) {
    if let Ok((_, run)) = target(name) {
        run(data);
    }
}

/// How a target says that something is wrong.
#[expect(clippy::panic, reason = "how a fuzz target reports")]
fn panic_with(finding: &str) -> ! {
    panic!("{finding}");
}

/// The reference stores, made once.
fn subjects() -> &'static [Subject] {
    static MADE: OnceLock<Vec<Subject>> = OnceLock::new();
    let made = |store: &Reference| match Subject::new(store) {
        Ok(subject) => subject,
        Err(error) => panic_with(&format!("{}: {error}", store.scenario.name)),
    };
    MADE.get_or_init(|| reference_stores().iter().map(made).collect())
}

/// `CURRENT`, `CLOSED` and `SYNCED`, in every other case with a checksum that fits. What is accepted is written
/// again as it was.
fn small(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 1 {
        let name = match mode & 6 {
            2 => "CURRENT",
            4 => "SYNCED",
            _ => "CLOSED",
        };
        mend(Path::new(name), 0, &mut bytes);
    }
    if let Ok(current) = Current::decode(&bytes) {
        assert!(bytes.starts_with(current.encode().get(..8).unwrap_or_default()));
        assert_eq!(Current::decode(&current.encode()), Ok(current));
    }
    if let Some(closed) = Closed::decode(&bytes) {
        assert!(bytes.starts_with(&closed.encode()), "{closed:?}");
    }
    for synced in Synced::decode_all(&bytes) {
        assert_eq!(Synced::decode(&synced.encode()), Some(synced));
    }
}

/// Segment header and one frame header behind it, in every other case with checksums that fit.
fn frame(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 1 {
        // Without a whole header there is nothing to mend.
        let _ = mend_segment(&mut bytes);
    }
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        let rest = bytes.get(256..).unwrap_or_default();
        one_frame(rest, &header.salt(), 256, header.core);
    }
    one_frame(&bytes, &Salt::new(&[1]), 256, CoreId(u16::from(*mode)));
}

fn one_frame(bytes: &[u8], salt: &Salt, offset: u64, core: CoreId) {
    let Some(head) = bytes.first_chunk::<FRAME_HEADER_LEN>() else { return };
    if let Ok(header) = FrameHeader::decode(head, salt, offset, core) {
        assert_eq!(header.encode(salt, offset), *head, "{header:?}");
        let Some(payload) = bytes.get(FRAME_HEADER_LEN..header.frame_len()) else { return };
        let _ = header.check_payload(salt, payload);
    }
}

/// Records of a log and of a state file, and commit bodies. What is accepted takes its bytes, no more.
fn record(data: &[u8]) {
    let mut fields = Fields::new(data);
    while let Some((record, after)) = Record::decode(&mut fields) {
        let mut again = Vec::new();
        record.encode(after, &mut again);
        let back = Record::decode(&mut Fields::new(&again));
        assert_eq!(back.map(|(record, _)| format!("{record:?}")), Some(format!("{record:?}")));
        if let Record::Commit(body) = &record {
            let _ = body.decode();
        }
    }
    if let Some(commit) = CommitBody::new(data).decode() {
        assert!(commit.offsets.len() <= data.len());
    }
    let mut rest = data;
    while let Ok((record, after)) = StateRecord::decode(rest) {
        assert_eq!(record.encoded_len(), rest.len() - after.len());
        let mut again = Vec::new();
        record.encode(&mut again);
        assert!(rest.starts_with(&again));
        rest = after;
    }
}

/// A manifest, in every other case with a checksum that fits. One that is accepted is written again as it
/// was, byte by byte.
fn manifest(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 1 {
        // What is no text cannot be mended.
        let _ = mend_manifest(&mut bytes);
    }
    let Ok(text) = std::str::from_utf8(&bytes) else { return };
    if let Ok(metadata) = IncrementalCheckpointMetadata::from_json(text) {
        assert_eq!(metadata.to_json().ok().as_deref(), Some(text));
    }
}

/// Bytes to begin with: parts of the reference stores, in the form that the target wants.
#[must_use]
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (index, subject) in (0_u8..).zip(subjects()) {
        for (path, bytes) in subject.contents() {
            let text = path.to_string_lossy().into_owned();
            let with_mode = |mode: u8| [&[mode], bytes.as_slice()].concat();
            let kept = match name {
                "small" if text.ends_with("CURRENT") || text.ends_with("CLOSED") => Some(with_mode(3)),
                "small" if text.ends_with("SYNCED") => Some(with_mode(5)),
                "frame" if text.ends_with(".log") => {
                    Some(with_mode(1).into_iter().take(700).collect::<Vec<u8>>())
                }
                "record" if text.ends_with(".log") => Some(bytes.get(304..700).unwrap_or_default().to_vec()),
                "record" if text.ends_with(".sst") => Some(bytes.get(64..400).unwrap_or_default().to_vec()),
                "manifest" if text.ends_with(".json") => Some(with_mode(1)),
                _ => None,
            };
            all.extend(kept);
        }
        let mut dice = Dice::new(u64::from(index));
        if matches!(name, "segment" | "directory" | "ops") {
            all.extend((0..8).map(|_| {
                let drawn = (0..24).map(|_| dice.draw().to_le_bytes()[0]);
                [index].into_iter().chain(drawn).collect()
            }));
        }
    }
    all
}

/// Changes bytes as a simple fuzzer does.
pub fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..1 + dice.roll(4) {
        let (at, other) = (dice.index(bytes.len()), dice.index(bytes.len()));
        let byte = dice.draw().to_le_bytes()[0];
        match dice.roll(8) {
            0..3 if !bytes.is_empty() => bytes[at] = byte,
            3 if !bytes.is_empty() => bytes[at] ^= 1 << (byte % 8),
            4 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][usize::from(byte) % 5],
            5 => bytes.insert(at, byte),
            6 if !bytes.is_empty() => drop(bytes.remove(at)),
            _ => {
                let (from, to) = (at.min(other), at.max(other));
                let part: Vec<u8> = bytes.get(from..to.min(from + 64)).unwrap_or_default().to_vec();
                let into = dice.index(bytes.len() + 1);
                for (byte, new) in bytes.iter_mut().skip(into).zip(part) {
                    *byte = new;
                }
            }
        }
    }
}

/// All files below a disk's root.
fn contents(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |(path, _): (PathBuf, u64)| disk.read_file(&path).ok().map(|bytes| (path, bytes));
    disk.files().into_iter().filter_map(read).collect()
}

/// The disk as the library takes it.
fn shared(disk: &SimDisk) -> Arc<SimDisk> {
    Arc::new(disk.clone())
}
