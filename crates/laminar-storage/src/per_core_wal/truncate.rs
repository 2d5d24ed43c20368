//! Removing segments that checkpoints have made superfluous. Some of their files are kept instead, to become later segments
//! (`super::spares`): what is said here of removing holds for their names.
//!
//! Invariant I6: nothing is removed before the checkpoint that covers it is published, and the log is
//! kept back to the checkpoint before that one.
//!
//! # What a crash may leave
//! Any part of what is removed may be there again after a power cut, until the directory is synced.
//!
//! A `Store` is opened with a checkpoint, that of the floor or a newer one, and every core is walked from its
//! newest segment back to the first one whose header says that the checkpoint has all before it. The oldest
//! segment that is kept says so, or what is before it would not be obsolete. So the walk never sees what is
//! obsolete, whether or not it has gaps; all of it goes at once, and the directory is synced once.
//!
//! The newest segment of a core is looked at in any case. Of a core that left, that is one of those to be
//! removed, and one before it would announce a successor that is missing: it goes last, when all others
//! are gone for good. After a failed sync of the directory nobody can tell that, and nothing is removed any more.
//!
//! A plain log can be opened without any checkpoint, and is then walked to its beginning. There the oldest goes
//! first and the directory is synced after each, so that a crash leaves a chain without gaps.

use std::path::Path;

use super::error::PerCoreWalError;
use super::manager::TruncationScope;
use super::reader::read_header;
use super::segment::{SegmentName, list_segments};
use super::spares::{Spared, spare_path};
use crate::error::Detail;
use crate::format::segment_header::WalMode;
use crate::ids::{CoreId, Sequence};
use crate::incremental::Published;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::FileKind;

/// A core always keeps this many segments: the one in use, and the one whose end says whether a
/// successor was completely created.
const KEPT: usize = 2;

/// What a truncation removed. Some of the files may be kept, to become later segments of the log.
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
    let (mut obsolete, mut last) = (Vec::new(), Vec::new());
    for core in names.chunk_by(|a, b| a.core == b.core) {
        let Some(id) = core.first().map(|name| name.core) else { continue };
        if id.0 >= scope.core_count {
            // A core of an earlier layout: all of it lies before this incarnation.
            if let Some((newest, older)) = core.split_last().filter(|_| largest >= scope.start) {
                obsolete.extend_from_slice(older);
                let early = sabotaged(Sabotage::DepartedNewestFirst);
                if early { &mut obsolete } else { &mut last }.push(*newest);
            }
        } else {
            let cut = floor.cuts.get(id.index()).copied().unwrap_or(largest);
            obsolete.extend_from_slice(covered(scope, core, cut)?);
        }
    }
    let mut truncation = Truncation::default();
    let mut room = scope.policy.spares.room();
    if scope.header.is_some_and(|header| header.mode == WalMode::Epochs) {
        remove(scope, &obsolete, &mut room, &mut truncation)?;
        remove(scope, &last, &mut room, &mut truncation)?;
    } else {
        for name in obsolete.iter().chain(&last) {
            remove(scope, std::slice::from_ref(name), &mut room, &mut truncation)?;
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

/// Removes segments, or gives their files free while there is `room` for that, and makes it durable.
fn remove(
    scope: &TruncationScope,
    names: &[SegmentName],
    room: &mut usize,
    truncation: &mut Truncation,
) -> Result<(), PerCoreWalError> {
    let (vfs, dir) = (scope.policy.vfs.as_ref(), scope.policy.dir.as_path());
    let io = |path: &Path, e| PerCoreWalError::io("could not remove an obsolete segment", path, e);
    if names.is_empty() {
        return Ok(());
    }
    scope.policy.names.check().map_err(|e| io(dir, e))?;
    let mut spared = Spared::new(vfs);
    for name in names {
        let path = dir.join(name.file_name());
        let len = match vfs.kind(&path).map_err(|e| io(&path, e))? {
            Some(FileKind::File { len }) => len,
            _ => 0,
        };
        let is_ours = scope.header.is_some_and(|header| header.incarnation == name.incarnation)
            || sabotaged(Sabotage::OthersFilesReused);
        // One that had a record longer than a segment would keep its room for ever.
        let fits = len <= scope.policy.segment_size.saturating_mul(2);
        if *room > 0 && is_ours && fits {
            let spare = spare_path(dir, *name);
            vfs.rename(&path, &spare).map_err(|e| io(&path, e))?;
            spared.push(spare);
            *room -= 1;
        } else {
            vfs.remove_file_lazily(&path).map_err(|e| io(&path, e))?;
        }
        truncation.bytes += len;
        truncation.segments += 1;
    }
    if !sabotaged(Sabotage::SpareWrittenEarly) {
        scope.policy.names.sync(vfs, dir).map_err(|e| io(dir, e))?;
    }
    // Not before: until now a crash could show them under their old names.
    scope.policy.spares.keep(spared.into_files());
    Ok(())
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::segment_header::SegmentHeader;
    use crate::ids::{CheckpointId, StoreId, WalPosition};
    use crate::incremental::{CheckpointConfig, IncrementalCheckpointManager};
    use crate::per_core_wal::recovery::survey::Survey;
    use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
    use crate::vfs::sim::{Duration, Fault, Keep, Op, SimDisk};
    use crate::vfs::{Vfs, write_all_at};

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

    /// As a later opening of a `Store` would cut this log.
    fn of_a_store(manager: &PerCoreWalManager) -> TruncationScope {
        let scope = manager.truncation_scope();
        let later = |header: SegmentHeader| SegmentHeader {
            mode: WalMode::Epochs,
            incarnation: header.incarnation.next(),
            ..header
        };
        TruncationScope { header: scope.header.map(later), ..scope }
    }

    /// What happens to names in the directory of the log, from an operation on.
    fn names_changed(disk: &SimDisk, from: u64) -> Vec<&'static str> {
        let in_wal =
            |op: &Op| op.path.starts_with("/wal") && matches!(op.call, "unlink" | "rename" | "fsync");
        disk.trace().iter().filter(|op| op.number > from && in_wal(op)).map(|op| op.call).collect()
    }

    #[test]
    fn a_store_syncs_the_directory_once_and_a_plain_log_after_each() {
        for store in [true, false] {
            let disk = SimDisk::new(1);
            let manager = log(&disk);
            let scope = if store { of_a_store(&manager) } else { manager.truncation_scope() };
            let [_, second] = published(&disk, manager.store_id(), &[Sequence::MAX; 2]);
            let before = disk.ops();
            let removed = truncate_segments(&scope, &second).unwrap().segments;
            assert!(removed >= 8);
            let calls = names_changed(&disk, before);
            let syncs = calls.iter().filter(|call| **call == "fsync").count() as u64;
            assert_eq!((syncs, calls.last()), (if store { 1 } else { removed }, Some(&"fsync")));
            assert_eq!(calls.len() as u64, syncs + removed);
        }
    }

    /// The newest segment of a core that left goes when all before it are gone for good.
    #[test]
    fn the_newest_segment_of_a_core_that_left_goes_last() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let scope = TruncationScope { core_count: 1, start: Sequence(40), ..of_a_store(&manager) };
        let left = segments(&disk, 1).len();
        let [_, second] = published(&disk, manager.store_id(), &[Sequence::ZERO, Sequence(40)]);
        let before = disk.ops();
        truncate_segments(&scope, &second).unwrap();
        let calls = names_changed(&disk, before);
        let (newest, older) = calls.split_at(left);
        assert_eq!(newest, [vec!["unlink"; left - 1], vec!["fsync"]].concat());
        assert_eq!(older, ["unlink", "fsync"]);
        assert!(segments(&disk, 1).is_empty());
    }

    /// A sync of the directory failed, and names that looked removed stayed on the disk. The next truncation found only
    /// the newest segment of the core that left, and removed it; another sync made that durable, and after a power
    /// cut a segment announced one that was missing. Found by the sweep over `store-cut-departed`.
    #[test]
    fn after_a_failed_sync_of_the_directory_nothing_more_is_removed() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let scope = TruncationScope { core_count: 1, start: Sequence(40), ..of_a_store(&manager) };
        let newest = *segments(&disk, 1).last().unwrap();
        let [_, second] = published(&disk, manager.store_id(), &[Sequence::ZERO, Sequence(40)]);
        let unlinks = segments(&disk, 1).len() as u64 - 1;
        let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
        disk.fail_op(disk.ops() + unlinks + 1, fault, Duration::Once);
        truncate_segments(&scope, &second).unwrap_err();
        assert_eq!(segments(&disk, 1), [newest], "as far as one can see");
        truncate_segments(&scope, &second).unwrap_err();
        disk.sync_dir(Path::new("/wal")).unwrap();
        let after = disk.snapshot().flushed().mount();
        assert_eq!(segments(&after, 1).len() as u64, unlinks + 1);
    }

    /// Until the directory is synced, any part of what was removed may be there again after a power cut.
    #[test]
    fn whatever_is_there_again_of_what_was_removed_a_store_finds_its_log() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let cuts = [0, 1].map(|core| *borders(&disk, core).last().unwrap());
        let before = [0, 1].map(|core| segments(&disk, core));
        let content = |name: &SegmentName| disk.read_file(Path::new("/wal").join(name.file_name())).unwrap();
        let bytes: Vec<_> = before.iter().flatten().map(|name| (*name, content(name))).collect();
        let [_, second] = published(&disk, manager.store_id(), &cuts);
        truncate_segments(&of_a_store(&manager), &second).unwrap();
        let kept = [0, 1].map(|core| segments(&disk, core));
        let removed: Vec<_> = bytes.iter().filter(|(name, _)| !kept.concat().contains(name)).collect();
        assert!(removed.len() >= 8);

        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let walked = || {
            let covered = |core: CoreId| cuts[core.index()];
            let survey = Survey::up_to(&vfs, Path::new("/wal"), &covered, &[]).unwrap();
            survey
                .cores
                .iter()
                .map(|log| log.segments.iter().map(|s| s.header).collect())
                .collect::<Vec<Vec<_>>>()
        };
        let expected = walked();
        assert!(expected.iter().all(|segments| !segments.is_empty()));
        // Of one core this part, of the other what is not in this part.
        let removed = removed.iter().map(|(name, bytes)| (name, bytes, name.core == CoreId(0)));
        let removed: Vec<_> = removed.collect();
        for part in 0..1_u32 << removed.iter().filter(|(_, _, first)| *first).count() {
            let again: Vec<_> = [true, false]
                .iter()
                .flat_map(|of| (0..).zip(removed.iter().filter(move |(_, _, first)| first == of)))
                .filter(|(i, (_, _, first))| (part & 1 << i != 0) == *first)
                .map(|(_, (name, bytes, _))| (*name, *bytes))
                .collect();
            for (name, bytes) in &again {
                let file = disk.create_new(&Path::new("/wal").join(name.file_name())).unwrap();
                write_all_at(file.as_ref(), bytes, 0).unwrap();
            }
            assert_eq!(walked(), expected, "{again:?}");
            // The next truncation removes them, in whatever parts they are.
            let removed = truncate_segments(&of_a_store(&manager), &second).unwrap();
            assert_eq!(removed.segments, again.len() as u64);
            assert_eq!([0, 1].map(|core| segments(&disk, core)), kept);
        }
    }

    /// Of a core that left, its newest segment is there as long as any other.
    #[test]
    fn whatever_is_there_again_of_a_core_that_left_a_store_opens() {
        let disk = SimDisk::new(1);
        let manager = log(&disk);
        let left = segments(&disk, 1);
        let (newest, older) = left.split_last().unwrap();
        let largest = Sequence(1000);
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let content = |name: &SegmentName| disk.read_file(Path::new("/wal").join(name.file_name())).unwrap();
        let bytes: Vec<_> = older.iter().map(|name| (name, content(name))).collect();
        for part in 0..1_u32 << older.len() {
            for (i, (name, bytes)) in (0..).zip(&bytes) {
                let path = Path::new("/wal").join(name.file_name());
                let _ = disk.remove_file(&path);
                if part & 1 << i != 0 {
                    write_all_at(disk.create_new(&path).unwrap().as_ref(), bytes, 0).unwrap();
                }
            }
            let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| largest, &[]).unwrap();
            let walked: Vec<_> =
                survey.core(CoreId(1)).unwrap().segments.iter().map(|s| SegmentName::of(&s.header)).collect();
            assert_eq!(walked, [*newest]);
        }
        drop(manager);
    }
}
