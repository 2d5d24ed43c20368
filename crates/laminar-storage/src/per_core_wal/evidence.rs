//! Evidence of how far every core's log was synced, in a file of its own beside the segments.
//!
//! The end of a log has nothing behind it that testifies for it: damage there looks like a torn write. So whoever
//! syncs the logs of a `Store` says so here, before it is acknowledged (invariant I9). It costs one write to a file that
//! is there already, and no sync: what is written outlives the process, and that is when nothing else testifies yet.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::recovery::identity::SYNCED;
use super::recovery::survey::Survey;
use super::segment::SegmentPolicy;
use super::writer::CoreWalWriter;
use crate::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader, WalMode};
use crate::format::synced::Synced;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{Access, Vfs, VfsFile, stage_file, write_all_at};

/// Where the writers of one incarnation note what they synced, each in its own slot.
#[derive(Debug)]
pub(crate) struct Evidence {
    file: Arc<dyn VfsFile>,
    /// A note could not be written; there will be none any more.
    failed: AtomicBool,
}

impl Evidence {
    /// Writes and syncs the file for segments that hold only their headers, under the name that it is to be renamed
    /// from. Always a new file: a copy of the directory may share the old one by a hard link, and go its own way. A plain log has none: of
    /// that, what is behind the last good frame was torn off, whatever it was.
    pub(crate) fn stage(
        policy: &SegmentPolicy,
        mode: WalMode,
        headers: &[SegmentHeader],
    ) -> io::Result<Option<(PathBuf, Self)>> {
        if mode == WalMode::Plain {
            return Ok(None);
        }
        let slot = |header: &SegmentHeader| Synced::of(header, SEGMENT_HEADER_LEN as u64).encode();
        let slots = headers.iter().map(slot).collect::<Vec<_>>().concat();
        let (path, file) = stage_file(policy.vfs.as_ref(), &policy.dir, SYNCED, &slots)?;
        Ok(Some((path, Self { file, failed: AtomicBool::new(false) })))
    }

    /// Notes what neighbouring cores synced, in their order. Nothing is lost without it.
    fn note(&self, synced: impl Iterator<Item = Synced>) {
        let mut synced = synced.peekable();
        let Some(first) = synced.peek().copied() else { return };
        if self.failed.load(Ordering::Relaxed) || sabotaged(Sabotage::SyncNotNoted) {
            return;
        }
        let slots = synced.map(|synced| synced.encode()).collect::<Vec<_>>().concat();
        if let Err(error) = write_all_at(self.file.as_ref(), &slots, Synced::offset(first.core)) {
            self.failed.store(true, Ordering::Relaxed);
            tracing::warn!(%error, core = %first.core, "could not note how far the log was synced; damage to its end may go unseen");
        }
    }
}

/// Leaves evidence of what was found and synced, where nothing new can be begun that would say so. It is written into the
/// file that is there, which takes no space, and synced, because there is time; only the newest segments of the established
/// incarnation are named, because an unfinished later one may go again.
pub(crate) fn testify_to(vfs: &dyn Vfs, dir: &Path, survey: &Survey) {
    let used = || survey.newest_used().map(|header| header.incarnation);
    let established = survey.current.map(|current| current.incarnation).or_else(used);
    let newest = survey.cores.iter().filter_map(|log| log.segments.last());
    let of_stores = newest.filter(|segment| {
        segment.header.mode == WalMode::Epochs && Some(segment.header.incarnation) == established
    });
    let write = |file: Arc<dyn VfsFile>| {
        for segment in of_stores {
            let slot = Synced::of(&segment.header, segment.len);
            write_all_at(file.as_ref(), &slot.encode(), Synced::offset(slot.core))?;
        }
        file.sync_data()
    };
    if let Err(error) = vfs.open(&dir.join(SYNCED), Access::ReadWrite).and_then(write) {
        tracing::warn!(%error, dir = %dir.display(), "could not note how far the log is synced; damage to its end may go unseen");
    }
}

/// Leaves evidence of what these writers, of neighbouring cores in their order, have synced.
pub(crate) fn testify(writers: &[CoreWalWriter]) {
    if let Some(evidence) = writers.first().and_then(|first| first.policy().evidence.as_ref()) {
        evidence.note(writers.iter().map(|writer| Synced::of(writer.header(), writer.synced_len())));
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
    use crate::vfs::sim::{Duration, Fault, ImageId, SimDisk};
    use crate::{Opened, Settings, Store};

    fn open(disk: &SimDisk) -> Opened {
        let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
        Store::builder("/s").cores(3).settings(settings).vfs(Arc::new(disk.clone())).open().unwrap()
    }

    fn seal(opened: &mut Opened, value: &[u8]) {
        opened.cores[1].put(b"key", value).unwrap();
        let epochs: Vec<_> = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
        opened.store.wait_durable(epochs[0]).unwrap();
    }

    /// What is noted of every core, and how long its segment is.
    fn noted(disk: &SimDisk) -> Vec<(u64, u64)> {
        let bytes = disk.read_file("/s/wal/SYNCED").unwrap();
        let len = |synced: &Synced| {
            let name = crate::per_core_wal::segment::SegmentName {
                core: synced.core,
                number: synced.number,
                incarnation: synced.incarnation,
            };
            disk.read_file(format!("/s/wal/{}", name.file_name())).unwrap().len() as u64
        };
        Synced::decode_all(&bytes).map(|synced| (synced.len, len(&synced))).collect()
    }

    #[test]
    fn what_is_acknowledged_is_noted_before() {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk);
        assert_eq!(noted(&disk), [(SEGMENT_HEADER_LEN as u64, SEGMENT_HEADER_LEN as u64); 3]);
        let (notes, disk2) = (Arc::new(std::sync::Mutex::new(Vec::new())), disk.clone());
        let told = Arc::clone(&notes);
        opened.store.on_durable(move |_| told.lock().unwrap().push(noted(&disk2)));
        seal(&mut opened, b"value");
        let notes = notes.lock().unwrap();
        assert!(
            notes[0].iter().all(|(noted, len)| noted == len && *noted > SEGMENT_HEADER_LEN as u64),
            "{notes:?}"
        );
    }

    /// Of several cores, and only where nothing later is begun.
    #[test]
    fn what_is_found_on_a_full_disk_is_noted_of_every_core() {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk);
        let before = disk.read_file("/s/wal/SYNCED").unwrap();
        seal(&mut opened, b"value");
        let synced = disk.read_file("/s/wal/SYNCED").unwrap();
        let disk = disk.snapshot().restart();
        drop(opened);
        for without_current in [false, true] {
            disk.overwrite("/s/wal/SYNCED", &before).unwrap();
            if without_current {
                disk.remove("/s/wal/CURRENT").unwrap();
            }
            disk.set_capacity(Some(0));
            drop(open(&disk));
            // Also after another power cut.
            let cut = disk.snapshot().image(&ImageId::default()).mount();
            assert_eq!(cut.read_file("/s/wal/SYNCED").unwrap(), synced, "{without_current}");
        }
    }

    /// Found by a machine's small mistake: an opening that was interrupted left segments, and on a full disk the notes were
    /// about those. They hold nothing, and may be gone at the next opening.
    #[test]
    fn on_a_full_disk_nothing_is_noted_of_an_opening_that_was_interrupted() {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk);
        seal(&mut opened, b"value");
        let synced = disk.read_file("/s/wal/SYNCED").unwrap();
        let (killed, established) = (disk.snapshot(), disk.read_file("/s/wal/CURRENT").unwrap());
        drop(opened);
        let mut interrupted = 0;
        for failing in 1.. {
            let disk = killed.restart();
            disk.fail_op(disk.ops() + failing, Fault::Eio, Duration::Forever);
            let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
            let result = Store::builder("/s").cores(3).settings(settings).vfs(Arc::new(disk.clone())).open();
            if disk.read_file("/s/wal/CURRENT").unwrap() != established {
                break;
            }
            drop(result);
            let disk = disk.snapshot().restart();
            let segments = disk.read_dir(Path::new("/s/wal")).unwrap();
            let later = segments.iter().filter(|(name, _)| name.ends_with(".log")).count() - 3;
            disk.set_capacity(Some(0));
            assert_eq!(open(&disk).cores[1].get(b"key"), Some(b"value".as_slice()));
            assert_eq!(disk.read_file("/s/wal/SYNCED").unwrap(), synced, "operation {failing} failed");
            interrupted += usize::from(later > 0);
        }
        assert!(interrupted > 2, "{interrupted}");
    }

    /// Found by reading: without its segments and `CURRENT`, what is left of a log says nothing about the next one, which
    /// must not have its identity.
    #[test]
    fn a_note_that_is_left_over_is_about_no_other_log() {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk);
        for _ in 0..20 {
            seal(&mut opened, b"value");
        }
        drop(opened);
        let before = disk.read_file("/s/wal/SYNCED").unwrap();
        for (path, _) in disk.files() {
            let name = path.file_name().unwrap_or_default();
            if name == "CURRENT" || path.extension().is_some_and(|end| end == "log") {
                disk.remove(Path::new("/").join(&path)).unwrap();
            }
        }
        let config = PerCoreWalConfig::new(Path::new("/s/wal"), 3).with_vfs(Arc::new(disk.clone()));
        let mut log = PerCoreWalManager::new(config.clone()).unwrap();
        log.writer(1).append_put(b"key", b"new").unwrap();
        log.sync_all().unwrap();
        assert!(Synced::decode_all(&before).all(|old| old.store_id != log.store_id()));
        assert_eq!(disk.read_file("/s/wal/SYNCED").unwrap(), before);
        drop(log);
        assert_eq!(PerCoreWalManager::new(config).unwrap().merge_segments().unwrap().len(), 1);
    }

    /// It is evidence: an epoch counts without it, and what was noted before stands.
    #[test]
    fn a_note_that_fails_costs_nothing_and_is_the_last_one() {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk);
        seal(&mut opened, b"value");
        let before = noted(&disk);
        // The writes of three frames, their syncs, and then the note.
        disk.fail_op(disk.ops() + 7, Fault::Eio, Duration::Once);
        seal(&mut opened, b"other");
        seal(&mut opened, b"third");
        let lens = |noted: &[(u64, u64)]| noted.iter().map(|(noted, _)| *noted).collect::<Vec<_>>();
        assert_eq!(lens(&noted(&disk)), lens(&before));
        drop(opened);
        assert_eq!(open(&disk).cores[1].get(b"key"), Some(b"third".as_slice()));
    }
}
