#![allow(clippy::cast_possible_truncation)] // small numbers made here

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::format::digest::record_digest;
use crate::ids::WalPosition;
use crate::incremental::base::is_range;
use crate::incremental::open::lock_checkpoints;
use crate::incremental::{CheckpointReader, Published, StateMap, validate_checkpoint_in};
use crate::vfs::sim::{Duration as For, Fault, ImageId, ImagePolicy, Keep, Short, SimDisk};
use crate::vfs::{Vfs, create_dir_durably};

mod crash;
mod publish;

fn config() -> CheckpointConfig {
    CheckpointConfig::new(Path::new("/c")).with_max_retained(3)
}

fn open(disk: &SimDisk) -> Result<IncrementalCheckpointManager> {
    IncrementalCheckpointManager::with_vfs(config(), Arc::new(disk.clone()))
}

/// On the checkpoint with this id, or on none.
fn open_on(disk: &SimDisk, id: Option<u64>) -> IncrementalCheckpointManager {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let lock = lock_checkpoints(vfs.as_ref(), Path::new("/c")).unwrap();
    let base = id.map(|id| CheckpointReader::open(vfs.as_ref(), &dir_of(id)).unwrap());
    IncrementalCheckpointManager::open_on(config(), vfs, ManagerOptions::default(), base.as_ref(), lock)
        .unwrap()
}

fn open_with(disk: &SimDisk, options: ManagerOptions) -> IncrementalCheckpointManager {
    IncrementalCheckpointManager::with_options(config(), Arc::new(disk.clone()), options).unwrap()
}

/// Merges whenever the rule says so, whatever the size.
fn eager() -> ManagerOptions {
    ManagerOptions {
        merge: MergePolicy { small_files: 0, small_bytes: 0, run: 2, range_bytes: 500 },
        ..ManagerOptions::default()
    }
}

fn dir_of(id: u64) -> PathBuf {
    PathBuf::from(format!("/c/checkpoint_{id:016x}"))
}

fn state_of(manager: &IncrementalCheckpointManager) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let id = manager.latest_checkpoint_id().unwrap();
    manager.load_checkpoint_state(id).unwrap().into_iter().collect()
}

/// All files with absolute paths, and their lengths.
fn files(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    disk.files().into_iter().map(|(path, len)| (Path::new("/").join(path), len)).collect()
}

fn names(disk: &SimDisk) -> Vec<String> {
    files(disk).into_iter().map(|(path, _)| path.display().to_string()).collect()
}

#[test]
fn random_histories_equal_a_map() {
    for seed in 0..12_u64 {
        let disk = SimDisk::new(seed);
        let mut model = BTreeMap::new();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let options = ManagerOptions {
            // Some runs spill all the time.
            overlay_budget: if seed % 2 == 0 { 900 } else { 1 << 20 },
            merge: if seed % 3 == 0 { MergePolicy::default() } else { eager().merge },
        };
        let mut manager = open_with(&disk, options.clone());
        for step in 1..=40_u64 {
            for _ in 0..next(40) {
                let key = format!("key{}", next(60)).into_bytes();
                if next(3) == 0 {
                    manager.delete(&key).unwrap();
                    model.remove(&key);
                } else {
                    let value = vec![step as u8; next(50) as usize];
                    manager.put(&key, &value).unwrap();
                    model.insert(key, value);
                }
            }
            for n in 0..60 {
                let key = format!("key{n}").into_bytes();
                assert_eq!(manager.get(&key).unwrap().as_ref(), model.get(&key));
            }
            if next(3) == 0 {
                manager.set_epoch(step);
                let metadata = manager.create_checkpoint(step).unwrap();
                assert_eq!(metadata.key_count, model.len() as u64, "seed {seed} step {step}");
                assert_eq!(state_of(&manager), model);
                let found = validate_checkpoint_in(&disk, &dir_of(metadata.id)).unwrap();
                assert_eq!(found, metadata);
            } else if next(5) == 0 {
                let metadata = manager.create_checkpoint(step).unwrap();
                assert_eq!(metadata.key_count, model.len() as u64);
                drop(manager);
                manager = open_with(&disk, options.clone());
            }
        }
    }
}

#[test]
fn chains_stay_short_and_space_bounded() {
    let disk = SimDisk::new(1);
    let mut manager = open_with(&disk, eager());
    for step in 0..200_u32 {
        for n in 0..20_u32 {
            manager.put(&((step * 7 + n * 13) % 500).to_le_bytes(), &[1; 100]).unwrap();
        }
        let metadata = manager.create_checkpoint(0).unwrap();
        let deltas = metadata.files.iter().filter(|file| !is_range(file)).count();
        assert!(deltas <= 24 && metadata.files.len() <= 88, "{:?}", metadata.sst_files);
        let (live, files) = (metadata.key_count * 111, metadata.files.len() as u64);
        assert!(metadata.size_bytes <= 2 * live + files * 200, "{} of {live}", metadata.size_bytes);
    }
    for n in 0..500_u32 {
        manager.delete(&n.to_le_bytes()).unwrap();
    }
    let metadata = manager.create_checkpoint(0).unwrap();
    assert_eq!((metadata.key_count, metadata.size_bytes), (0, 0), "tombstones go with the oldest file");
}

#[test]
fn only_what_changed_is_written() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    for n in 0..10_000_u32 {
        manager.put(&n.to_be_bytes(), &[3; 100]).unwrap();
    }
    let first = manager.create_checkpoint(0).unwrap();
    assert!(!first.is_incremental && first.parent_id.is_none());
    let (before, read_before) = (disk.stats().bytes_written, disk.stats().bytes_read);
    manager.put(b"one", b"change").unwrap();
    let second = manager.create_checkpoint(0).unwrap();
    assert!(second.is_incremental);
    assert_eq!(second.parent_id, Some(first.id));
    let written = disk.stats().bytes_written - before;
    assert!(written < 2000, "{written} bytes written for one change");
    // Its keys are counted by what changed.
    let read = disk.stats().bytes_read - read_before;
    assert!(read < first.size_bytes / 10, "{read} bytes read for one change");
    assert!(second.written_bytes() < 300);
    assert_eq!(second.key_count, 10_001);

    let mut config = config();
    config.incremental = false;
    drop(manager);
    let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    let full = manager.create_checkpoint(0).unwrap();
    assert!(!full.is_incremental);
    assert!(full.files.iter().all(is_range), "{:?}", full.sst_files);
    assert_eq!(full.written_bytes(), full.size_bytes);
}

#[test]
fn each_directory_stands_alone() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    let mut states = Vec::new();
    for n in 0..3_u8 {
        manager.put(&[n], &[n; 10]).unwrap();
        manager.put(b"shared", &[n]).unwrap();
        let id = manager.create_checkpoint(0).unwrap().id;
        states.push((id, manager.load_checkpoint_state(id).unwrap()));
    }
    drop(manager);
    let image = disk.snapshot().flushed();
    for (id, state) in &states {
        let disk = image.mount();
        for (other, _) in states.iter().filter(|(other, _)| other != id) {
            let gone: Vec<_> =
                files(&disk).into_iter().filter(|(path, _)| path.starts_with(dir_of(*other))).collect();
            assert!(!gone.is_empty());
            for (path, _) in gone {
                disk.remove_file(&path).unwrap();
            }
        }
        let reader = CheckpointReader::open(&disk, &dir_of(*id)).unwrap();
        reader.verify().unwrap();
        assert_eq!(&reader.load().unwrap(), state);
    }
}

#[test]
fn several_cores_route_and_reshard() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.set_core_count(3).unwrap();
    for n in 0..300_u32 {
        let core = CoreId(u16::try_from(n % 3).unwrap());
        manager.apply(core, &n.to_be_bytes(), Some(&n.to_le_bytes())).unwrap();
    }
    assert!(manager.apply(CoreId(3), b"x", None).is_err());
    let metadata = manager.create_checkpoint(0).unwrap();
    assert_eq!((metadata.core_count, metadata.files.len(), metadata.key_count), (3, 3, 300));
    // A plain put goes to the core that has the key, an unrouted one takes it away from there.
    manager.put(&5_u32.to_be_bytes(), b"new").unwrap();
    assert_eq!(manager.get_on(CoreId(2), &5_u32.to_be_bytes()).unwrap().unwrap(), b"new");
    manager.apply_unrouted(CoreId(1), &5_u32.to_be_bytes(), Some(b"moved")).unwrap();
    assert_eq!(manager.get_on(CoreId(2), &5_u32.to_be_bytes()).unwrap(), None);
    assert_eq!(manager.get(&5_u32.to_be_bytes()).unwrap().unwrap(), b"moved");
    assert!(manager.set_core_count(2).is_err());
    manager.delete(&6_u32.to_be_bytes()).unwrap();

    manager.reshard(2, |key| CoreId(u16::from(key[3] % 2))).unwrap();
    assert_eq!(manager.get_on(CoreId(1), &5_u32.to_be_bytes()).unwrap().unwrap(), b"moved");
    manager.apply(CoreId(0), &8_u32.to_be_bytes(), None).unwrap();
    let metadata = manager.create_checkpoint(0).unwrap();
    assert_eq!((metadata.core_count, metadata.key_count), (2, 298));
    assert!(!metadata.is_incremental);
    validate_checkpoint_in(&disk, &dir_of(metadata.id)).unwrap();
    drop(manager);
    let manager = open(&disk).unwrap();
    assert_eq!(manager.core_count(), 2);
    for n in 0..300_u32 {
        let expected = match n {
            5 => Some(b"moved".to_vec()),
            6 | 8 => None,
            _ => Some(n.to_le_bytes().to_vec()),
        };
        assert_eq!(
            manager.get_on(CoreId(u16::from(n as u8 % 2)), &n.to_be_bytes()).unwrap(),
            expected,
            "{n}"
        );
    }
}

#[test]
fn offsets_and_watermarks_of_cores() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    let of = |source: &str, offset, watermark| CoreOffsets {
        offsets: [(source.to_string(), offset)].into(),
        watermark,
    };
    manager.set_core_offsets(vec![of("a", 5, Some(7)), of("a", 9, None), of("b", 1, Some(3))]).unwrap();
    assert_eq!(manager.source_offsets(), &[("a".to_string(), 9), ("b".to_string(), 1)].into());
    assert_eq!(manager.watermark(), Some(3));
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    let mut manager = open(&disk).unwrap();
    assert_eq!(manager.core_offsets().len(), 3);
    // What is set plainly is what is read.
    manager.set_source_offset("a".into(), 2);
    manager.set_watermark(100);
    assert_eq!(manager.source_offsets().get("a"), Some(&2));
    assert_eq!(manager.watermark(), Some(100));
}

fn bound_checkpoint(manager: &mut IncrementalCheckpointManager, epoch: u64, cut: u64) -> Result<Published> {
    manager.set_epoch(epoch);
    manager.set_wal_cuts(&[Sequence(cut)])?;
    manager.create_checkpoint_as(manager.next_checkpoint_id()?, WalPosition(0))
}

#[test]
fn the_log_may_go_up_to_the_second_newest_checkpoint() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.bind_wal(StoreId(99)).unwrap();
    manager.put(b"k", b"v").unwrap();
    assert!(manager.create_checkpoint(0).is_err(), "no cuts");
    assert!(bound_checkpoint(&mut manager, 1, 10).unwrap().wal_floor().is_none());
    let second = bound_checkpoint(&mut manager, 2, 20).unwrap();
    let floor = second.wal_floor().unwrap();
    assert_eq!((floor.epoch, floor.cuts.clone()), (Epoch(1), vec![Sequence(10)]));
    assert_eq!((floor.checkpoint, floor.store_id), (CheckpointId(1), StoreId(99)));

    // A second newest checkpoint that went bad does not free anything.
    let path = dir_of(2).join("metadata.json");
    disk.flip_bit(&path, 99).unwrap();
    assert!(bound_checkpoint(&mut manager, 3, 30).unwrap().wal_floor().is_none());
    disk.flip_bit(&path, 99).unwrap();
    drop(manager);

    let mut manager = open(&disk).unwrap();
    assert_eq!(manager.store_id(), StoreId(99));
    assert!(manager.bind_wal(StoreId(98)).is_err());
    manager.bind_wal(StoreId(99)).unwrap();
    assert!(manager.delete_checkpoint(3).is_err(), "the log relies on it");
    let fourth = bound_checkpoint(&mut manager, 4, 40).unwrap();
    assert_eq!(fourth.wal_floor().unwrap().cuts, vec![Sequence(30)]);
    assert!(fourth.metadata().is_incremental);
}

#[test]
fn binding_an_unbound_set_rewrites_it() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"k", b"v").unwrap();
    manager.create_checkpoint(0).unwrap();
    manager.bind_wal(StoreId(5)).unwrap();
    let published = bound_checkpoint(&mut manager, 1, 1).unwrap();
    assert!(published.wal_floor().is_none(), "the one before is of no log");
    assert!(!published.metadata().is_incremental);
    assert_eq!(published.metadata().key_count, 1);
    validate_checkpoint_in(&disk, &dir_of(2)).unwrap();
    drop(manager);
    assert_eq!(open(&disk).unwrap().get(b"k").unwrap().unwrap(), b"v");
}

#[test]
fn digests_are_kept_and_checked() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"k", b"v").unwrap();
    assert!(manager.set_digests(vec![CoreDigest::default(); 2]).is_err());
    let digest = CoreDigest { digest: record_digest(b"k", b"v"), live_keys: 1 };
    manager.set_digests(vec![digest]).unwrap();
    let metadata = manager.create_checkpoint(0).unwrap();
    assert_eq!((metadata.key_count, metadata.digests.clone()), (1, vec![digest]));
    validate_checkpoint_in(&disk, &dir_of(1)).unwrap();
    let next = manager.create_checkpoint(0).unwrap();
    assert!(next.digests.is_empty(), "digests are given anew each time");
    manager.set_digests(vec![CoreDigest { digest: 0, live_keys: 1 }]).unwrap();
    manager.create_checkpoint(0).unwrap();
    assert!(validate_checkpoint_in(&disk, &dir_of(3)).unwrap_err().is_corruption());
    drop(manager);
    assert!(open(&disk).unwrap_err().is_corruption());
}

#[test]
fn ids_and_epochs_only_grow() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    let at = |manager: &mut IncrementalCheckpointManager, id| {
        manager.create_checkpoint_as(CheckpointId(id), WalPosition(0)).map(Published::into_metadata)
    };
    assert_eq!(at(&mut manager, 7).unwrap().id, 7);
    for id in [7, 3, 0] {
        assert!(matches!(at(&mut manager, id), Err(IncrementalCheckpointError::AlreadyExists(_))));
    }
    assert_eq!(manager.create_checkpoint(0).unwrap().id, 8);
    manager.delete_checkpoint(8).unwrap();
    assert_eq!(manager.latest_checkpoint_id(), Some(7));
    assert_eq!(manager.create_checkpoint(0).unwrap().id, 9);
    manager.set_epoch(5);
    manager.create_checkpoint(0).unwrap();
    manager.set_epoch(4);
    let error = manager.create_checkpoint(0).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::EpochMismatch(_)), "{error}");
    manager.set_epoch(5);
    manager.create_checkpoint(0).unwrap();
    assert!(at(&mut manager, u64::MAX).is_err(), "there must always be a next id");
    at(&mut manager, CheckpointId::LAST.get()).unwrap();
    assert!(manager.create_checkpoint(0).is_err());
}

#[test]
fn deleting_the_newest_keeps_the_state() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"a", b"1").unwrap();
    manager.create_checkpoint(0).unwrap();
    manager.put(b"b", b"2").unwrap();
    manager.create_checkpoint(0).unwrap();
    manager.delete_checkpoint(2).unwrap();
    manager.delete_checkpoint(1).unwrap();
    assert!(manager.list_checkpoints().unwrap().is_empty());
    assert!(manager.find_latest_checkpoint().unwrap().is_none());
    assert_eq!(manager.get(b"b").unwrap().unwrap(), b"2");
    let full = manager.create_checkpoint(0).unwrap();
    assert_eq!((full.id, full.parent_id, full.key_count, full.is_incremental), (3, None, 2, false));
    drop(manager);
    assert_eq!(open(&disk).unwrap().get(b"a").unwrap().unwrap(), b"1");
}

#[test]
fn steps_and_changes_between_them() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"a", b"1").unwrap();
    let written = manager.write(CheckpointId(1), WalPosition(4)).unwrap();
    assert_eq!(written.metadata().wal_position, 4);
    manager.put(b"a", b"2").unwrap();
    manager.put(b"b", b"2").unwrap();
    assert_eq!(manager.get(b"a").unwrap().unwrap(), b"2");
    assert!(manager.write(CheckpointId(2), WalPosition(0)).is_err(), "one at a time");
    let synced = manager.sync(written).unwrap();
    let published = manager.publish(synced).unwrap();
    assert_eq!(published.metadata().key_count, 1);
    assert_eq!(manager.load_checkpoint_state(1).unwrap().get(b"a"), Some(b"1".as_slice()));
    assert_eq!(manager.get(b"a").unwrap().unwrap(), b"2");
    manager.create_checkpoint(0).unwrap();
    assert_eq!(manager.load_checkpoint_state(2).unwrap().len(), 2);
}

/// The disk took every write and every sync and still has something else: nothing may be truncated.
#[test]
fn what_reads_back_different_is_not_published() {
    for victim in ["new", "linked", "metadata.json"] {
        let disk = SimDisk::new(1);
        let mut manager = open(&disk).unwrap();
        for n in 0..100_u8 {
            manager.put(&[n], &[n; 200]).unwrap();
        }
        let linked = manager.create_checkpoint(0).unwrap().sst_files.remove(0);
        manager.put(b"k", b"v").unwrap();
        let written = manager.write(CheckpointId(2), WalPosition(0)).unwrap();
        let new = written.metadata().sst_files[1].clone();
        let synced = manager.sync(written).unwrap();
        let pending = Path::new("/c/checkpoint_0000000000000002.tmp");
        match victim {
            "new" => disk.flip_bit(pending.join(new), 8 * 70).unwrap(),
            "linked" => disk.truncate(pending.join(linked), 9000).unwrap(),
            name => disk.flip_bit(pending.join(name), 8 * 70).unwrap(),
        }
        let error = manager.publish(synced).unwrap_err();
        assert!(error.is_corruption(), "{victim}: {error}");
        let error = manager.put(b"k", b"v").unwrap_err();
        assert!(matches!(error, IncrementalCheckpointError::Poisoned(_)));
        assert_eq!(manager.latest_checkpoint_id(), Some(1));
        drop(manager);
        assert!(open(&disk).unwrap_err().is_corruption());
    }
}

#[test]
fn spilled_parts_and_a_later_id() {
    let disk = SimDisk::new(1);
    let mut manager = open_with(&disk, ManagerOptions { overlay_budget: 150, ..ManagerOptions::default() });
    for n in 0..50_u8 {
        manager.put(&[n], &[n; 20]).unwrap();
        manager.delete(&[n / 2]).unwrap();
    }
    assert!(names(&disk).iter().any(|name| name.contains(".tmp/")));
    let metadata = manager.create_checkpoint_as(CheckpointId(40), WalPosition(0)).unwrap().into_metadata();
    assert!(metadata.files.iter().all(|file| file.checkpoint == 1 || file.checkpoint == 40));
    assert_eq!(metadata.written_bytes(), metadata.size_bytes);
    validate_checkpoint_in(&disk, &dir_of(40)).unwrap();
    // What was merged before it was published takes no room.
    let there = names(&disk).into_iter().filter(|name| name.starts_with("/c/checkpoint_0000000000000028/"));
    assert_eq!(there.count(), metadata.files.len() + 1);
    assert!(!names(&disk).iter().any(|name| name.contains(".tmp/")));
    for n in 0..50_u8 {
        assert_eq!(manager.get(&[n]).unwrap().is_some(), n >= 25, "{n}");
    }
    // Spilled, then lost to a crash.
    for n in 100..150_u8 {
        manager.put(&[n], &[n; 20]).unwrap();
    }
    drop(manager);
    let manager = open(&disk).unwrap();
    assert_eq!(manager.latest_checkpoint_id(), Some(40));
    assert_eq!(manager.get(&[120]).unwrap(), None);
    assert!(!names(&disk).iter().any(|name| name.contains(".tmp")));
}

#[test]
fn a_damaged_newest_checkpoint_is_never_passed_over_silently() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    for n in 1..=2_u8 {
        manager.put(b"k", &[n; 100]).unwrap();
        manager.create_checkpoint(0).unwrap();
    }
    drop(manager);
    let newest = dir_of(2);
    let (file, len) = files(&disk).into_iter().rfind(|(path, _)| path.starts_with(&newest)).unwrap();
    assert!(len > 200);
    disk.flip_bit(&file, 8 * 100).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(error.is_corruption());
    assert_eq!(error.detail().path(), Some(file.as_path()), "{error}");

    let mut manager = open_on(&disk, Some(1));
    assert_eq!(manager.latest_checkpoint_id(), Some(1));
    assert_eq!(manager.get(b"k").unwrap().unwrap(), [1; 100]);
    assert_eq!(manager.list_checkpoints().unwrap().len(), 1);
    let third = manager.create_checkpoint(0).unwrap();
    assert_eq!((third.id, third.parent_id), (3, Some(1)));
    manager.cleanup_old_checkpoints_keep(1).unwrap();
    assert!(names(&disk).iter().any(|name| name.starts_with("/c/checkpoint_0000000000000002/")));
    drop(manager);
    let manager = open_on(&disk, None);
    assert_eq!(manager.get(b"k").unwrap(), None);
    assert_eq!(manager.next_checkpoint_id().unwrap(), CheckpointId(4));
}

#[test]
fn manifests_from_elsewhere_are_refused() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"k", b"v").unwrap();
    manager.create_checkpoint(0).unwrap();
    manager.put(b"k", b"w").unwrap();
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    // The older manifest under the newer name.
    let (one, two) = (dir_of(1).join("metadata.json"), dir_of(2).join("metadata.json"));
    let good = disk.read_file(&two).unwrap();
    disk.copy(&one, &two).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("checkpoint 1"), "{error}");
    // A manifest of a later version.
    let newer = String::from_utf8(good).unwrap().replace("\"format_version\":1", "\"format_version\":2");
    disk.overwrite(&two, newer.as_bytes()).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::UnsupportedVersion(_)));
    assert!(error.to_string().contains("version 2") && error.to_string().contains("version 1"), "{error}");
    // No manifest at all.
    disk.remove(&two).unwrap();
    assert!(open(&disk).unwrap_err().is_corruption());
    assert_eq!(open_on(&disk, Some(1)).get(b"k").unwrap().unwrap(), b"v");
}

#[test]
fn one_manager_at_a_time() {
    let disk = SimDisk::new(1);
    let manager = open(&disk).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("somebody else"), "{error}");
    drop(manager);
    open(&disk).unwrap();
}

#[test]
fn unknown_names_are_left_alone() {
    let disk = SimDisk::new(1);
    create_dir_durably(&disk, Path::new("/c/checkpoint_0000000000000009.tmp")).unwrap();
    create_dir_durably(&disk, Path::new("/c/notes")).unwrap();
    disk.overwrite("/c/checkpoint_0000000000000009.tmp/mine.txt", b"x").unwrap();
    disk.overwrite("/c/notes/mine.txt", b"x").unwrap();
    let mut manager = open(&disk).unwrap();
    assert_eq!(names(&disk).iter().filter(|name| name.ends_with("mine.txt")).count(), 2);
    assert_eq!(manager.create_checkpoint(0).unwrap().id, 10, "an id that is in the way is not used");
}

#[test]
fn links_that_are_refused_become_copies() {
    let disk = SimDisk::new(1);
    let vfs = Contrary::without_links(&disk, ErrorKind::CrossesDevices);
    let mut manager = IncrementalCheckpointManager::with_vfs(config(), vfs).unwrap();
    for n in 0..4_u8 {
        manager.put(&[n], &[n; 50]).unwrap();
        let metadata = manager.create_checkpoint(0).unwrap();
        // Everything that a power cut can leave is there.
        let image =
            disk.snapshot().images(&ImagePolicy { exhaustive_bits: 0, random: 0, ..ImagePolicy::default() });
        for image in image {
            validate_checkpoint_in(&image.mount(), &dir_of(metadata.id)).unwrap();
        }
    }
}

/// A disk that refuses links, or does something else behind the back of whoever renames.
#[derive(Debug)]
pub(in crate::incremental) struct Contrary {
    disk: SimDisk,
    links: Option<ErrorKind>,
    /// Called with the new path, once it has the name.
    renamed: fn(&SimDisk, &Path),
}

impl Contrary {
    pub(in crate::incremental) fn without_links(disk: &SimDisk, links: ErrorKind) -> Arc<Self> {
        Arc::new(Self { disk: disk.clone(), links: Some(links), renamed: |_, _| {} })
    }

    pub(in crate::incremental) fn meddling(disk: &SimDisk, renamed: fn(&SimDisk, &Path)) -> Arc<Self> {
        Arc::new(Self { disk: disk.clone(), links: None, renamed })
    }
}

impl Vfs for Contrary {
    fn hard_link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.links.map_or_else(|| self.disk.hard_link(from, to), |kind| Err(kind.into()))
    }
    fn create_new(&self, path: &Path) -> std::io::Result<Arc<dyn crate::vfs::VfsFile>> {
        self.disk.create_new(path)
    }
    fn open(&self, path: &Path, access: crate::vfs::Access) -> std::io::Result<Arc<dyn crate::vfs::VfsFile>> {
        self.disk.open(path, access)
    }
    fn create_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> std::io::Result<Vec<(String, crate::vfs::FileKind)>> {
        self.disk.read_dir(path)
    }
    fn kind(&self, path: &Path) -> std::io::Result<Option<crate::vfs::FileKind>> {
        self.disk.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)?;
        (self.renamed)(&self.disk, to);
        Ok(())
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> std::io::Result<Box<dyn Debug + Send + Sync>> {
        self.disk.lock(path)
    }
    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}

#[test]
fn a_checkpoint_is_due_by_time_or_by_size() {
    let disk = SimDisk::new(1);
    let config = config().with_wal_path(Path::new("/wal")).with_min_wal_size(100);
    let config = config.with_interval(Duration::from_secs(10));
    let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    assert!(!manager.should_checkpoint(), "there is nothing to keep");
    disk.set_clock(disk.now_ns() + 11_000_000_000);
    assert!(manager.should_checkpoint());
    manager.create_checkpoint(0).unwrap();
    manager.put(b"k", b"v").unwrap();
    assert!(!manager.should_checkpoint());
    create_dir_durably(&disk, Path::new("/wal")).unwrap();
    disk.overwrite("/wal/wal-0.1.log", &[0; 60]).unwrap();
    disk.overwrite("/wal/LOCK", &[0; 60]).unwrap();
    assert!(!manager.should_checkpoint());
    disk.overwrite("/wal/wal-1.1.log", &[0; 40]).unwrap();
    assert!(manager.should_checkpoint());
}

/// A program that asks after every change must not lose its first changes to a long interval.
#[test]
fn the_first_checkpoint_is_due_as_soon_as_there_is_something_to_keep() {
    for change in 0..3 {
        let disk = SimDisk::new(1);
        let mut manager = open(&disk).unwrap();
        assert!(!manager.should_checkpoint());
        match change {
            0 => manager.put(b"k", b"v").unwrap(),
            1 => manager.set_source_offset("in".into(), 0),
            _ => manager.set_watermark(0),
        }
        assert!(manager.should_checkpoint());
        manager.create_checkpoint(0).unwrap();
        manager.put(b"l", b"v").unwrap();
        assert!(!manager.should_checkpoint(), "from now on the interval decides");
    }
}

/// A key that moves to another core leaves a tombstone where it was. Reading all cores into one map, file by file, took
/// that for the end of the key.
#[test]
fn a_key_that_moved_between_cores_is_read_from_where_it_is() {
    for (from, to) in [(0, 1), (1, 0)] {
        let disk = SimDisk::new(1);
        let mut manager = open(&disk).unwrap();
        manager.set_core_count(2).unwrap();
        manager.apply(CoreId(from), b"k", Some(b"old")).unwrap();
        manager.create_checkpoint(0).unwrap();
        manager.apply(CoreId(from), b"k", None).unwrap();
        manager.apply(CoreId(to), b"k", Some(b"new")).unwrap();
        let second = manager.create_checkpoint(0).unwrap();
        let state = manager.load_checkpoint_state(second.id).unwrap();
        assert_eq!((state.len(), state.get(b"k")), (1, Some(b"new".as_slice())), "{from} to {to}");
    }
}
