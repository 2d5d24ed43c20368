//! Removing segments that checkpoints have made superfluous.
//!
//! Invariant I6: nothing is removed before the checkpoint that covers it is published, and the log is
//! kept back to the checkpoint before that one. The oldest segment goes first and the directory is
//! synced after each, so that a crash leaves a chain without gaps.

use std::path::Path;

use super::error::PerCoreWalError;
use super::manager::TruncationScope;
use super::reader::read_header;
use super::segment::{SegmentName, list_segments};
use crate::error::Detail;
use crate::ids::{CoreId, Sequence};
use crate::incremental::Published;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::FileKind;

/// A core always keeps this many segments: the one in use, and the one whose end says whether a
/// successor was completely created.
const KEPT: usize = 2;

/// What a truncation removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Number of segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes the segments of a log that the checkpoint before `published` covers completely.
pub(crate) fn truncate_segments(
    scope: &TruncationScope,
    published: &Published,
) -> Result<Truncation, PerCoreWalError> {
    let dir = scope.policy.dir.as_path();
    let Some(floor) = published.wal_floor() else { return Ok(Truncation::default()) };
    if floor.store_id != scope.store_id {
        return Err(PerCoreWalError::corrupted(
            Detail::new("the checkpoint was made from another log")
                .at_path(dir)
                .remedy("Truncate a log only with checkpoints made from it; nothing was removed."),
        ));
    }
    let largest = floor.cuts.iter().max().copied().unwrap_or(Sequence::ZERO);
    let names = list_segments(scope.policy.vfs.as_ref(), dir)
        .map_err(|e| PerCoreWalError::io("could not list the log directory", dir, e))?;
    let mut truncation = Truncation::default();
    for core in names.chunk_by(|a, b| a.core == b.core) {
        let Some(id) = core.first().map(|name| name.core) else { continue };
        let obsolete = if id.0 >= scope.core_count {
            // A core of an earlier layout: all of it lies before this incarnation.
            if largest >= scope.start { core } else { &[] }
        } else {
            let cut = floor.cuts.get(id.index()).copied().unwrap_or(largest);
            covered(scope, core, cut)?
        };
        for name in obsolete {
            remove(scope, &dir.join(name.file_name()), &mut truncation)?;
        }
    }
    Ok(truncation)
}

/// The oldest segments of a core that hold only records up to `cut`.
fn covered<'a>(
    scope: &TruncationScope,
    names: &'a [SegmentName],
    cut: Sequence,
) -> Result<&'a [SegmentName], PerCoreWalError> {
    let mut count = 0;
    while count + KEPT < names.len() {
        let Some(successor) = names.get(count + 1) else { break };
        let path = scope.policy.dir.join(successor.file_name());
        // A header that cannot be read is recovery's business; here it only stops the removal.
        match read_header(scope.policy.vfs.as_ref(), &path)? {
            Ok(_) if sabotaged(Sabotage::LogCutEarly) => count += 1,
            Ok(header) if header.last_sequence <= cut && header.core == CoreId(successor.core.0) => {
                count += 1
            }
            _ => break,
        }
    }
    Ok(names.get(..count).unwrap_or_default())
}

fn remove(scope: &TruncationScope, path: &Path, truncation: &mut Truncation) -> Result<(), PerCoreWalError> {
    let vfs = scope.policy.vfs.as_ref();
    let io = |e| PerCoreWalError::io("could not remove an obsolete segment", path, e);
    if let Some(FileKind::File { len }) = vfs.kind(path).map_err(io)? {
        truncation.bytes += len;
    }
    vfs.remove_file(path).map_err(io)?;
    scope.policy.names.sync(vfs, &scope.policy.dir).map_err(io)?;
    truncation.segments += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{CheckpointId, StoreId, WalPosition};
    use crate::incremental::{CheckpointConfig, IncrementalCheckpointManager};
    use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
    use crate::vfs::Vfs;
    use crate::vfs::sim::SimDisk;

    /// A log of two cores, each of at least six segments.
    fn log(disk: &SimDisk) -> PerCoreWalManager {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let config = PerCoreWalConfig::new(Path::new("/wal"), 2).with_segment_size(4096).with_vfs(vfs);
        let mut manager = PerCoreWalManager::new(config).unwrap();
        for key in 0..60_u32 {
            for core in 0..2 {
                manager.writer(core).append_put(&key.to_le_bytes(), &[7; 500]).unwrap();
            }
            manager.sync_all().unwrap();
        }
        manager
    }

    /// Two checkpoints, of which the first has the log up to `cuts`.
    fn published(disk: &SimDisk, store_id: StoreId, cuts: &[Sequence]) -> [Published; 2] {
        let config = CheckpointConfig::new(Path::new("/checkpoints"));
        let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
        manager.bind_wal(store_id).unwrap();
        [(1, cuts), (2, &[Sequence::MAX; 2][..])].map(|(id, cuts)| {
            manager.set_wal_cuts(cuts).unwrap();
            manager.create_checkpoint_as(CheckpointId(id), WalPosition(0)).unwrap()
        })
    }

    fn segments(disk: &SimDisk, core: u16) -> Vec<SegmentName> {
        let names = list_segments(disk, Path::new("/wal")).unwrap();
        names.into_iter().filter(|name| name.core == CoreId(core)).collect()
    }

    /// Where each segment of a core begins: every record in it has a larger sequence.
    fn borders(disk: &SimDisk, core: u16) -> Vec<Sequence> {
        let header = |name: &SegmentName| read_header(disk, &Path::new("/wal").join(name.file_name()));
        segments(disk, core).iter().map(|name| header(name).unwrap().unwrap().last_sequence).collect()
    }

    #[test]
    fn exactly_the_segments_that_the_checkpoint_before_covers_are_removed() {
        let count = borders_of_a_new_log().len();
        assert!(count >= 6, "{count} segments");
        for index in 1..count {
            // Everything in the first `index` segments is covered, or all but the last record of it.
            let border = borders_of_a_new_log()[index];
            for (cut, covered) in [(border, index), (Sequence(border.0 - 1), index - 1)] {
                let disk = SimDisk::new(1);
                let manager = log(&disk);
                let (before, size) = (segments(&disk, 0), manager.total_size().unwrap());
                let other = segments(&disk, 1);
                let [_, second] = published(&disk, manager.store_id(), &[cut, Sequence::ZERO]);
                let truncation = manager.truncate_before(&second).unwrap();
                // The one in use and the one before it stay, whatever is covered.
                let removed = covered.min(count - KEPT);
                assert_eq!(segments(&disk, 0), before[removed..], "{cut:?}");
                assert_eq!(segments(&disk, 1), other, "the other core's cut is not this one's");
                assert_eq!(truncation.segments, removed as u64);
                assert_eq!(truncation.bytes, size - manager.total_size().unwrap());
            }
        }
    }

    fn borders_of_a_new_log() -> Vec<Sequence> {
        let disk = SimDisk::new(1);
        let _manager = log(&disk);
        borders(&disk, 0)
    }

    #[test]
    fn the_first_checkpoint_cuts_nothing() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let before = segments(&disk, 0);
        let [first, _] = published(&disk, manager.store_id(), &[Sequence::MAX; 2]);
        assert_eq!(manager.truncate_before(&first).unwrap(), Truncation::default());
        assert_eq!(segments(&disk, 0), before);
    }

    #[test]
    fn a_checkpoint_of_another_log_cuts_nothing() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let before = segments(&disk, 0);
        let [_, second] = published(&disk, StoreId(manager.store_id().0 ^ 1), &[Sequence::MAX; 2]);
        assert!(manager.truncate_before(&second).unwrap_err().is_corruption());
        assert_eq!(segments(&disk, 0), before);
    }

    /// All of the log of a core that the newest layout does not have lies before that layout.
    #[test]
    fn the_log_of_a_core_that_left_goes_as_a_whole_or_not_at_all() {
        for (start, goes) in [(41, false), (40, true), (39, true)] {
            let disk = SimDisk::new(1);
            let manager = log(&disk);
            let (kept, left) = (segments(&disk, 0), segments(&disk, 1));
            let scope =
                TruncationScope { core_count: 1, start: Sequence(start), ..manager.truncation_scope() };
            let [_, second] = published(&disk, manager.store_id(), &[Sequence::ZERO, Sequence(40)]);
            let truncation = truncate_segments(&scope, &second).unwrap();
            assert_eq!(truncation.segments, if goes { left.len() as u64 } else { 0 }, "{start}");
            assert_eq!(segments(&disk, 1), if goes { Vec::new() } else { left });
            assert_eq!(segments(&disk, 0), kept);
        }
    }
}
