//! Cutting torn tails off segment files.
//!
//! Recovery never needs this: it passes torn tails over, and never appends behind them. It is for
//! those who want the files themselves to end where their records end.

use std::path::Path;
use std::sync::Arc;

use super::survey::{Segment, Survey};
use crate::per_core_wal::PerCoreWalConfig;
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::manager::lock_directory;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{Access, Vfs};

/// Cuts every torn tail of a log, durably; returns how many bytes that was. The log is looked at under
/// its lock: what a writer is just appending looks torn, too.
pub(crate) fn repair_segments(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<u64, PerCoreWalError> {
    let io = |e| PerCoreWalError::io("could not look at the log directory", dir, e);
    if vfs.kind(dir).map_err(io)?.is_none() {
        return Ok(0);
    }
    let _lock = lock_directory(&PerCoreWalConfig::new(dir, 1).with_vfs(Arc::clone(vfs)))?;
    cut_torn_ends(vfs, &Survey::whole(vfs, dir, &[])?)
}

/// The same for a log that was surveyed under its lock.
pub(crate) fn cut_torn_ends(vfs: &Arc<dyn Vfs>, survey: &Survey) -> Result<u64, PerCoreWalError> {
    let left = |segment: &Segment| segment.ends_in_frame && sabotaged(Sabotage::TornFrameCompleted);
    let torn = || {
        let segments = survey.cores.iter().flat_map(|log| &log.segments);
        segments.filter(|segment| segment.dropped > 0 && !left(segment))
    };
    let mut cut = 0;
    for segment in torn() {
        let io = |e| PerCoreWalError::io("could not cut the torn end off", &segment.path, e);
        let file = vfs.open(&segment.path, Access::ReadWrite).map_err(io)?;
        file.set_len(segment.len).map_err(io)?;
        file.sync_data().map_err(io)?;
        cut += segment.file_len - segment.len;
    }
    Ok(cut)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::per_core_wal::PerCoreWalManager;
    use crate::vfs::sim::{ImageId, SimDisk};
    use crate::vfs::write_all_at;

    #[test]
    fn torn_tails_are_cut_off_for_good_and_nothing_else() {
        let disk = SimDisk::new(1);
        let (vfs, dir): (Arc<dyn Vfs>, _) = (Arc::new(disk.clone()), Path::new("/wal"));
        assert_eq!(repair_segments(&vfs, dir).unwrap(), 0, "there is no log");
        let config = PerCoreWalConfig::new(dir, 3).with_vfs(Arc::clone(&vfs));
        let mut manager = PerCoreWalManager::new(config).unwrap();
        for core in 0..3 {
            manager.writer(core).append_put(b"key", b"value").unwrap();
        }
        manager.sync_all().unwrap();
        let paths = [0, 1, 2].map(|core| manager.writer(core).path().to_path_buf());
        drop(manager);
        let lens = paths.clone().map(|path| disk.read_file(path).unwrap().len() as u64);
        // Two torn ends, and zeros that were written ahead.
        for ((path, len), tail) in paths.iter().zip(lens).zip([&[0xff; 100][..], &[0xff; 20], &[0; 512]]) {
            let file = vfs.open(path, Access::ReadWrite).unwrap();
            write_all_at(file.as_ref(), tail, len).unwrap();
        }
        assert_eq!(repair_segments(&vfs, dir).unwrap(), 120);
        assert_eq!(repair_segments(&vfs, dir).unwrap(), 0);
        let ends = |disk: &SimDisk| paths.clone().map(|path| disk.read_file(path).unwrap().len() as u64);
        assert_eq!(ends(&disk), [lens[0], lens[1], lens[2] + 512]);
        let after = disk.snapshot().image(&ImageId::default()).mount();
        assert_eq!(ends(&after)[..2], lens[..2]);
    }
}
