//! Every item of the contract's `per_core_wal` section that stands on the log alone, in its
//! documented shape, with assertions on what comes back.

#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::per_core_wal::{
    PerCoreWalConfig, PerCoreWalEntry, PerCoreWalError, PerCoreWalManager, PerCoreWalReader, WalOperation,
    WalReadResult,
};
use laminar_storage::vfs::sim::{Duration, Fault, Keep, SimDisk};

fn open(dir: &Path, cores: usize) -> PerCoreWalManager {
    PerCoreWalManager::new(PerCoreWalConfig::new(dir, cores)).unwrap()
}

#[test]
fn the_usage_example_merges_what_two_writers_synced() {
    let dir = tempfile::tempdir().unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 4);
    let mut manager = PerCoreWalManager::new(config).unwrap();
    manager.writer(0).append_put(b"key1", b"value1").unwrap();
    manager.writer(1).append_put(b"key2", b"value2").unwrap();
    manager.writer(0).sync().unwrap();
    manager.writer(1).sync().unwrap();
    let merged = manager.merge_segments().unwrap();
    assert_eq!(merged.len(), 2);
    assert!(merged.is_sorted());
    let keys: Vec<_> = merged.iter().map(|e| (e.core_id, e.key().unwrap(), e.value().unwrap())).collect();
    assert!(keys.contains(&(0, b"key1".as_slice(), b"value1".as_slice())));
    assert!(keys.contains(&(1, b"key2".as_slice(), b"value2".as_slice())));
}

#[test]
fn a_process_that_ends_after_sync_finds_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut manager = open(dir.path(), 2);
        manager.writer(0).append_put(b"a", b"1").unwrap();
        manager.writer(0).append_delete(b"b").unwrap();
        manager.writer(1).append_commit(HashMap::from([("s".to_owned(), 5)]), Some(-9)).unwrap();
        manager.sync_all().unwrap();
        manager.writer(0).append_put(b"never", b"synced").unwrap();
    }
    let mut manager = open(dir.path(), 2);
    let merged = manager.merge_segments().unwrap();
    assert_eq!(merged.len(), 3);
    assert!(merged.iter().any(|e| e.is_delete() && e.key() == Some(b"b")));
    let commit = merged.iter().find(|e| e.is_commit()).unwrap();
    assert_eq!(
        commit.operation,
        WalOperation::Commit { offsets: HashMap::from([("s".to_owned(), 5)]), watermark: Some(-9) }
    );
    // Continued: larger epoch, larger sequence, later time, and the old records still there.
    let last = merged.iter().filter(|e| e.core_id == 0).max().unwrap().clone();
    assert!(manager.epoch() > last.epoch);
    manager.writer(0).append_put(b"a", b"2").unwrap();
    manager.sync_all().unwrap();
    let merged = manager.merge_segments().unwrap();
    assert_eq!(merged.len(), 4);
    let newest = merged.last().unwrap();
    assert_eq!(newest.value(), Some(b"2".as_slice()));
    assert!(newest.sequence > last.sequence && newest.timestamp_ns > last.timestamp_ns);
}

#[test]
fn epochs_barriers_and_positions() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = open(dir.path(), 2);
    assert_eq!((manager.num_cores(), manager.epoch()), (2, 0));
    assert_eq!(manager.advance_epoch().unwrap(), 1);
    manager.set_epoch_all(4).unwrap();
    assert!(matches!(manager.set_epoch_all(3), Err(PerCoreWalError::EpochMismatch(_))));
    let first = manager.writer(1).append_put(b"k", b"v").unwrap();
    assert!(manager.writer(1).position() > first);
    assert_eq!(manager.writer(1).entries_since_sync(), 1);
    assert_eq!((manager.writer(1).epoch(), manager.writer(1).core_id()), (4, 1));
    manager.write_epoch_barrier_all().unwrap();
    manager.writer(0).append_checkpoint(77).unwrap();
    assert_eq!(manager.synced_positions(), [0, 0]);
    manager.sync_all().unwrap();
    assert_eq!(manager.positions(), manager.synced_positions());
    assert_eq!(manager.writer(1).entries_since_sync(), 0);
    assert!(manager.writer(1).path().exists());
    assert!(manager.total_size().unwrap() > 0);
    manager.advance_epoch().unwrap();
    manager.writer(0).append_put(b"later", b"").unwrap();
    manager.sync_all().unwrap();
    let early = manager.merge_segments_up_to_epoch(4).unwrap();
    assert_eq!(early.len(), 4);
    assert_eq!(early.iter().filter(|e| e.is_epoch_barrier()).count(), 2);
    assert!(early.iter().any(PerCoreWalEntry::is_checkpoint));
    assert_eq!(manager.merged().unwrap().count(), 5);
    let error = manager.writer_checked(2).unwrap_err();
    assert!(matches!(error, PerCoreWalError::InvalidCore(_)), "{error}");
}

#[test]
fn writers_move_to_threads_and_keep_the_directory_locked() {
    let dir = tempfile::tempdir().unwrap();
    let writers = open(dir.path(), 3).into_writers();
    let threads: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            std::thread::spawn(move || {
                for i in 0..1000_u32 {
                    writer.append_put(&i.to_be_bytes(), b"x").unwrap();
                }
                writer.sync().unwrap();
                writer
            })
        })
        .collect();
    let writers: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(writers.iter().map(|w| w.sequence()).collect::<Vec<_>>(), [1000, 1000, 1000]);
    let refused = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 3)).unwrap_err();
    assert!(matches!(refused, PerCoreWalError::Locked(_)), "{refused}");
    drop(writers);
    assert_eq!(open(dir.path(), 3).merge_segments().unwrap().len(), 3000);
}

#[test]
fn segments_roll_and_the_chain_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 1).with_segment_size(4096).with_preallocation(4096);
    let mut manager = PerCoreWalManager::new(config.clone()).unwrap();
    for i in 0..500_u32 {
        manager.writer(0).append_put(&i.to_be_bytes(), &[7; 100]).unwrap();
        if i % 10 == 0 {
            manager.sync_all().unwrap();
        }
    }
    manager.sync_all().unwrap();
    let logs = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with("wal-0."))
        .count();
    assert!(logs > 10, "{logs} segments");
    let keys = |m: &PerCoreWalManager| -> Vec<u32> {
        m.merge_segments()
            .unwrap()
            .iter()
            .map(|e| u32::from_be_bytes(e.key().unwrap().try_into().unwrap()))
            .collect()
    };
    let expected: Vec<u32> = (0..500).collect();
    assert_eq!(keys(&manager), expected);
    drop(manager);
    assert_eq!(keys(&PerCoreWalManager::open(config).unwrap()), expected);
}

#[test]
fn a_reader_walks_one_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = open(dir.path(), 1);
    for epoch in 1..=3 {
        manager.advance_epoch().unwrap();
        manager.writer(0).append_put(format!("k{epoch}").as_bytes(), b"v").unwrap();
    }
    manager.sync_all().unwrap();
    let path = manager.writer(0).path().to_path_buf();
    let mut reader = PerCoreWalReader::open(0, &path).unwrap();
    let start = reader.position();
    assert!(matches!(reader.read_next().unwrap(), WalReadResult::Entry(e) if e.key() == Some(b"k1")));
    assert_eq!(reader.read_all().unwrap().len(), 2);
    assert_eq!(reader.read_next().unwrap(), WalReadResult::Eof);
    let end = reader.position();
    assert_eq!(end, reader.file_len());
    assert_eq!(PerCoreWalReader::open(0, &path).unwrap().find_valid_end().unwrap(), end);
    assert_eq!(PerCoreWalReader::open_from(0, &path, start).unwrap().read_up_to_epoch(2).unwrap().len(), 2);
    assert_eq!(PerCoreWalReader::open(0, &path).unwrap().map(Result::unwrap).count(), 3);
    assert!(matches!(PerCoreWalReader::open(1, &path), Err(PerCoreWalError::InvalidCore(_))));
    assert!(matches!(
        PerCoreWalReader::open(0, &dir.path().join("none")),
        Err(PerCoreWalError::SegmentNotFound(_))
    ));
}

#[test]
fn a_reader_tells_a_torn_tail_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = open(dir.path(), 1);
    manager.writer(0).append_put(b"first", b"1").unwrap();
    manager.sync_all().unwrap();
    let durable = std::fs::metadata(manager.writer(0).path()).unwrap().len();
    manager.writer(0).append_put(b"second", b"2").unwrap();
    manager.sync_all().unwrap();
    let path = manager.writer(0).path().to_path_buf();
    drop(manager);
    let good = std::fs::read(&path).unwrap();
    let durable_at = usize::try_from(durable).unwrap();
    // Cut inside the second frame: torn.
    std::fs::write(&path, &good[..durable_at + 20]).unwrap();
    let mut reader = PerCoreWalReader::open(0, &path).unwrap();
    assert_eq!(reader.by_ref().count(), 1);
    assert!(
        matches!(reader.read_next().unwrap(), WalReadResult::TornWrite { position, .. } if position == durable)
    );
    // A flipped bit in the first frame, with a later frame that was written after it was synced: damage.
    let mut bad = good.clone();
    bad[300] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let mut reader = PerCoreWalReader::open(0, &path).unwrap();
    assert!(matches!(reader.read_next().unwrap(), WalReadResult::Corrupted { position: 256, .. }));
    let error = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 1)).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("case E"), "{error}");
}

#[test]
fn entries_are_ordered_by_epoch_then_time_then_core() {
    let put = |core, epoch, sequence, time| PerCoreWalEntry::put(core, epoch, sequence, vec![], vec![], time);
    assert!(put(0, 1, 9, 9) < put(0, 2, 1, 1));
    assert!(put(1, 1, 9, 1) < put(0, 1, 1, 2));
    assert!(put(0, 1, 9, 1) < put(1, 1, 1, 1));
    assert!(PerCoreWalEntry::delete(0, 1, 1, b"k".to_vec(), 1).is_state_operation());
    assert!(PerCoreWalEntry::commit(0, 1, 1, HashMap::new(), None, 1).is_commit());
    assert!(PerCoreWalEntry::checkpoint(0, 1, 1, 3, 1).is_checkpoint());
    assert!(PerCoreWalEntry::epoch_barrier(0, 1, 1, 1).is_epoch_barrier());
}

#[test]
fn append_takes_an_entry_of_its_own_core() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = open(dir.path(), 2);
    let entry = PerCoreWalEntry::put(1, 3, 0, b"k".to_vec(), b"v".to_vec(), 42);
    assert!(matches!(manager.writer(0).append(&entry), Err(PerCoreWalError::InvalidCore(_))));
    manager.writer(1).append(&entry).unwrap();
    let late = PerCoreWalEntry::put(1, 2, 0, b"k".to_vec(), b"v".to_vec(), 42);
    assert!(matches!(manager.writer(1).append(&late), Err(PerCoreWalError::EpochMismatch(_))));
    manager.sync_all().unwrap();
    let merged = manager.merge_segments().unwrap();
    assert_eq!((merged[0].epoch, merged[0].sequence, merged[0].core_id), (3, 1, 1));
}

#[test]
fn reset_forgets_the_records_but_not_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = open(dir.path(), 2);
    manager.advance_epoch().unwrap();
    manager.writer(0).append_put(b"gone", b"").unwrap();
    manager.sync_all().unwrap();
    manager.reset_all().unwrap();
    assert!(manager.merge_segments().unwrap().is_empty());
    manager.writer(0).append_put(b"new", b"").unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    let merged = open(dir.path(), 2).merge_segments().unwrap();
    assert_eq!(merged.len(), 1);
    assert!(merged[0].sequence > 1 && merged[0].epoch >= 1);
}

#[test]
fn open_wants_every_core_and_new_wants_the_same_number() {
    let dir = tempfile::tempdir().unwrap();
    let none = PerCoreWalManager::open(PerCoreWalConfig::new(&dir.path().join("none"), 1)).unwrap_err();
    assert!(matches!(none, PerCoreWalError::SegmentNotFound(_)), "{none}");
    drop(open(dir.path(), 2));
    let other = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 3)).unwrap_err();
    assert!(matches!(other, PerCoreWalError::InvalidCore(_)), "{other}");
    let zero = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 0)).unwrap_err();
    assert!(zero.to_string().contains("num_cores is 0"), "{zero}");
}

/// The segment files of a core, oldest first.
fn segments_of(dir: &Path, core: usize) -> Vec<PathBuf> {
    let of_core = format!("wal-{core}.");
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mine = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&of_core));
    let mut paths: Vec<_> = mine.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A log of one core and at least four segments, each record synced by itself; returns where the frames of
/// the oldest segment end.
fn log_of_segments(dir: &Path) -> Vec<u64> {
    let config = PerCoreWalConfig::new(dir, 1).with_segment_size(4096);
    let mut manager = PerCoreWalManager::new(config).unwrap();
    let mut ends = Vec::new();
    for i in 0..24_u8 {
        manager.writer(0).append_put(&[i], &[i; 800]).unwrap();
        manager.sync_all().unwrap();
        let segments = segments_of(dir, 0);
        if segments.len() == 1 {
            ends.push(std::fs::metadata(&segments[0]).unwrap().len());
        }
    }
    assert!(segments_of(dir, 0).len() >= 4 && ends.len() >= 3, "{ends:?}");
    ends
}

/// The chain says which segment comes before which: one that is missing in the middle is not the beginning
/// of a shorter log. Recovery into a store has a second line of defence, the reach of its checkpoints; a log
/// that is opened for itself has only this one.
#[test]
fn a_segment_that_is_missing_in_the_middle_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    log_of_segments(dir.path());
    let missing = segments_of(dir.path(), 0).remove(1);
    let bytes = std::fs::read(&missing).unwrap();
    std::fs::remove_file(&missing).unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 1);
    let error = PerCoreWalManager::new(config.clone()).unwrap_err();
    assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    std::fs::write(&missing, bytes).unwrap();
    assert_eq!(PerCoreWalManager::new(config).unwrap().merge_segments().unwrap().len(), 24);
}

/// A closed segment cut at the end of one of its frames looks whole in itself; only its successor knows how
/// long it was. In a store the digest of the state would notice as well; a plain log has none.
#[test]
fn a_closed_segment_that_lost_its_last_frames_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let ends = log_of_segments(dir.path());
    let oldest = segments_of(dir.path(), 0).remove(0);
    let whole = std::fs::read(&oldest).unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 1);
    // The record behind the last of them announces the successor, whose header was written before it and
    // does not count it.
    let (counted, lost) = ends.split_last().unwrap();
    assert!(*counted < whole.len() as u64);
    for &end in lost {
        std::fs::write(&oldest, &whole[..usize::try_from(end).unwrap()]).unwrap();
        let error = PerCoreWalManager::new(config.clone()).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains("case D"), "{error}");
    }
    std::fs::write(&oldest, whole).unwrap();
    assert_eq!(PerCoreWalManager::new(config).unwrap().merge_segments().unwrap().len(), 24);
}

/// A core without a segment of the newest opening lost what was acknowledged since then: it is neither an
/// empty core nor one that stopped earlier.
#[test]
fn a_core_whose_newest_segment_is_gone_is_an_error() {
    for openings in 1..=2 {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..openings {
            let mut manager = open(dir.path(), 2);
            manager.writer(1).append_put(b"key", &[round]).unwrap();
            manager.sync_all().unwrap();
        }
        let newest = segments_of(dir.path(), 1).pop().unwrap();
        std::fs::remove_file(newest).unwrap();
        let error = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 2)).unwrap_err();
        assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{openings} openings: {error}");
        assert!(error.to_string().contains("core 1"), "{error}");
    }
}

/// What a crash tore stays behind the end of its segment. A record written behind it would never be read
/// again, so every opening begins a segment of its own and leaves the old one as it is.
#[test]
fn what_is_written_after_a_torn_end_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut torn: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for round in 1..=3_u8 {
        let mut manager = open(dir.path(), 1);
        assert_eq!(manager.merge_segments().unwrap().len(), usize::from(round) - 1);
        for (path, whole) in &torn {
            let now = std::fs::read(path).unwrap();
            // What tore within a record is cut off. Zeros may follow: the end is written again, to be sure of the
            // file's length.
            let rest = now.strip_prefix(whole.as_slice()).unwrap();
            assert!(rest.iter().all(|byte| *byte == 0), "{} was written on", path.display());
        }
        manager.writer(0).append_put(b"key", &[round]).unwrap();
        manager.sync_all().unwrap();
        let path = manager.writer(0).path().to_path_buf();
        drop(manager);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"a write that a crash tore"].concat()).unwrap();
        torn.push((path, whole));
    }
    assert_eq!(open(dir.path(), 1).merge_segments().unwrap().len(), 3);
}

/// Where files or their blocks are used again, whole frames of an earlier life may stand behind the end of a
/// segment. They are valid where they were written, and nowhere else.
#[test]
fn frames_of_an_earlier_life_do_not_count_in_another_segment() {
    let dir = tempfile::tempdir().unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 1).with_preallocation(4096);
    let mut manager = PerCoreWalManager::new(config.clone()).unwrap();
    manager.writer(0).append_put(b"key", b"old").unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    drop(PerCoreWalManager::new(config.clone()).unwrap());
    let [old, new] = segments_of(dir.path(), 0).try_into().unwrap();
    let header = std::fs::read(&new).unwrap()[..256].to_vec();
    let stale = std::fs::read(old).unwrap()[256..].to_vec();
    assert!(stale.iter().any(|byte| *byte != 0));
    std::fs::write(new, [header, stale].concat()).unwrap();
    assert_eq!(PerCoreWalManager::new(config).unwrap().merge_segments().unwrap().len(), 1);
}

/// After the first failed write or sync a log does nothing any more: a second attempt could succeed without
/// the bytes of the first. A store would stop by itself; a writer that is used alone must as well.
#[test]
fn after_a_failed_write_or_sync_a_log_is_left_alone() {
    let dropped = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
    for (fault, operation) in [(Fault::Eio, 1), (Fault::EioAfter, 1), (Fault::Enospc, 1), (dropped, 2)] {
        let disk = SimDisk::new(1);
        let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::new(disk.clone()));
        let mut manager = PerCoreWalManager::new(config).unwrap();
        let writer = manager.writer(0);
        writer.append_put(b"first", b"1").unwrap();
        writer.sync().unwrap();
        writer.append_put(b"second", b"2").unwrap();
        disk.fail_op(disk.ops() + operation, fault, Duration::Once);
        let first = writer.sync().unwrap_err();
        assert!(matches!(first, PerCoreWalError::Io(_)), "{fault:?}: {first}");
        let (ops, synced) = (disk.ops(), writer.synced_position());
        for again in [writer.sync(), writer.append_put(b"third", b"3").map(drop), writer.sync()] {
            let again = again.unwrap_err();
            assert!(matches!(again, PerCoreWalError::Poisoned(_)), "{fault:?}: {again}");
        }
        assert_eq!((disk.ops(), writer.synced_position()), (ops, synced), "{fault:?}");
    }
}

/// A reset that failed left a manager without writers: the next use of one panicked, and syncing none was a success.
/// Found by reading.
#[test]
fn after_a_reset_that_failed_a_log_takes_nothing_more() {
    let mut failed = 0;
    for operation in 1.. {
        let disk = SimDisk::new(1);
        let config = PerCoreWalConfig::new(Path::new("/wal"), 2).with_vfs(Arc::new(disk.clone()));
        let mut manager = PerCoreWalManager::new(config.clone()).unwrap();
        manager.writer(0).append_put(b"first", b"1").unwrap();
        disk.fail_op(disk.ops() + operation, Fault::Enospc, Duration::Once);
        let reset = manager.reset_all();
        if disk.faults_fired() == 0 {
            reset.unwrap();
            break;
        }
        if reset.is_ok() {
            continue;
        }
        failed += 1;
        // A sync that failed before the reset began leaves the other writer as it was.
        let first = manager.writer(0).append_put(b"second", b"2");
        let refused =
            first.is_err() || manager.sync_all().is_err() || manager.write_epoch_barrier_all().is_err();
        assert!(refused, "operation {operation}");
        drop(manager);
        disk.clear_faults();
        PerCoreWalManager::new(config).unwrap().writer(1).append_put(b"again", b"3").unwrap();
    }
    assert!(failed > 4, "{failed} resets failed");
}
