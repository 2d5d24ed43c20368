//! Whole stores whose files were changed, in half of the cases with every checksum right again.

use std::path::Path;

use laminar_storage::incremental::IncrementalCheckpointMetadata;
use laminar_storage::per_core_wal::{PerCoreWalEntry, PerCoreWalReader, WalReadResult};
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{StateReader, StoreError};

use super::{contents, panic_with, shared, subjects};
use crate::damage::Subject;
use crate::oracle::Recovered;
use crate::store::{DIR, open, recovered};
use crate::wire::mend;

/// Takes numbers off the front of the fuzzer's bytes; zeros when there are no more.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, len: usize) -> usize {
        let number = u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0]);
        number as usize % len.max(1)
    }
}

/// One file changed once: bytes, cuts, moved parts.
fn change(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = input.below(bytes.len());
    match input.byte() % 8 {
        0..3 => {
            let new = input.byte();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = new;
            }
        }
        3 => {
            let bit = input.byte() % 8;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        4 => bytes.truncate(at),
        5 => {
            // A whole number of the format, with a value at the edge.
            let value: u64 = [0, 1, u64::MAX, 1 << 31, 1 << 63][usize::from(input.byte()) % 5];
            if let Some(field) = bytes.get_mut(at & !7..(at & !7) + 8) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
        6 => {
            let (from, len) = (input.below(bytes.len()), usize::from(input.byte()) * 8);
            let part = bytes.get(from..from + len).unwrap_or_default().to_vec();
            for (byte, new) in bytes.iter_mut().skip(at).zip(part) {
                *byte = new;
            }
        }
        _ => bytes.extend((0..usize::from(input.byte())).map(|n| n.to_le_bytes()[0])),
    }
}

/// Manifests say the checksums and lengths that their files have now.
fn mend_manifests(disk: &SimDisk) {
    for (path, bytes) in contents(disk).into_iter().filter(|(path, _)| path.ends_with("metadata.json")) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Ok(mut metadata) = IncrementalCheckpointMetadata::from_json(&text) else { continue };
        let dir = path.parent().unwrap_or(Path::new(""));
        for file in &mut metadata.files {
            let Ok(bytes) = disk.read_file(dir.join(&file.name)) else { continue };
            let crc = bytes.len().checked_sub(12).and_then(|at| bytes.get(at..at + 4)?.try_into().ok());
            file.checksum = crc.map_or(file.checksum, u32::from_le_bytes);
            file.len = bytes.len() as u64;
        }
        metadata.size_bytes = metadata.files.iter().map(|file| file.len).sum();
        if let Ok(text) = metadata.to_json() {
            // The file is there: it was just read.
            let _ = disk.overwrite(&path, text.as_bytes());
        }
    }
}

/// What an opening gives, if it opens; an error within when that contradicts itself.
fn opened(subject: &Subject, disk: &SimDisk) -> Result<Result<Recovered, String>, StoreError> {
    let scenario = subject.scenario();
    let opened = open(disk, subject.cores(), &scenario.settings)?;
    Ok(recovered(&opened).map(|(found, _)| found))
}

/// Changes up to four files of a reference store. Without mended checksums: an error or the same state,
/// where several files were changed also an earlier one. With them, which nobody promises to notice: no panic, and opening what opened once gives
/// the same again, or an error.
pub(super) fn directory(data: &[u8]) {
    let mut input = Input(data);
    let (which, mode) = (usize::from(input.byte()), input.byte());
    let Some(subject) = subjects().get(which % subjects().len().max(1)) else { return };
    let disk = subject.disk();
    let files = subject.contents();
    let mut hit = None;
    for _ in 0..1 + mode / 2 % 4 {
        let (path, _) = &files[input.below(files.len())];
        let Ok(mut bytes) = disk.read_file(path) else { continue };
        if input.byte() == 255 {
            let _ = disk.remove(path);
        } else {
            change(&mut bytes, &mut input);
            if mode & 1 == 1 {
                mend(path, subject.checkpoint_set(), &mut bytes);
            }
            let _ = disk.overwrite(path, &bytes);
        }
        hit = Some(path);
    }
    if mode & 1 == 1 {
        mend_manifests(&disk);
        let read = StateReader::open_with(DIR, shared(&disk));
        drop(read);
        // What a forged file says may contradict itself, and an opening adds what makes that show: an epoch that was the last
        // one is taken, a forged cut of the log lies in the middle of it. Then the next one is refused; never another state.
        if let Ok(found) = opened(subject, &disk)
            && let Ok(again) = opened(subject, &disk)
        {
            assert_eq!(again, found, "opened again");
        }
    } else if mode / 2 % 4 == 0
        && let Some(path) = hit
    {
        // A single damage is judged exactly.
        if let Some(finding) = subject.judge_disk(&disk, path) {
            panic_with(&finding);
        }
    } else {
        // Several at once may hide the evidence for each other; what comes back is never made up.
        if let Ok(found) = opened(subject, &disk)
            && let Err(wrong) = found.and_then(|found| subject.allows(&found))
        {
            panic_with(&wrong);
        }
    }
}

/// What the reader of single segments gives, entry by entry, and where it says that valid entries end.
fn entries(disk: &SimDisk, core: usize, path: &Path, most: usize) -> Option<Vec<PerCoreWalEntry>> {
    let vfs = shared(disk);
    let mut reader = PerCoreWalReader::open_with(vfs.as_ref(), core, path, 0).ok()?;
    let mut entries = Vec::new();
    // Each step goes on or is the last.
    while entries.len() <= most {
        match reader.read_next() {
            Ok(WalReadResult::Entry(entry)) => entries.push(entry),
            _ => break,
        }
    }
    if let Ok(end) = reader.find_valid_end() {
        assert!(end <= most as u64 || end <= reader.file_len() + reader.position(), "{end}");
    }
    Some(entries)
}

/// One segment of a reference store, changed, read by the reader of single segments: where no checksum was
/// mended it gives the first of its entries, and no other.
pub(super) fn segment(data: &[u8]) {
    let mut input = Input(data);
    let (which, mode) = (usize::from(input.byte()), input.byte());
    let Some(subject) = subjects().get(which % subjects().len().max(1)) else { return };
    let logs: Vec<_> = subject
        .contents()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"))
        .collect();
    let (path, mut bytes) = logs[input.below(logs.len())].clone();
    for _ in 0..1 + mode / 2 % 4 {
        change(&mut bytes, &mut input);
    }
    if mode & 1 == 1 {
        mend(&path, 0, &mut bytes);
    }
    let (whole, disk) = (subject.disk(), subject.disk());
    let _ = disk.overwrite(&path, &bytes);
    for core in 0..2 {
        let Some(found) = entries(&disk, core, &path, bytes.len()) else { continue };
        if mode & 1 == 0 {
            let all = entries(&whole, core, &path, usize::MAX).unwrap_or_default();
            assert!(all.starts_with(&found), "{} of core {core}: {found:?}", path.display());
        }
    }
}
