//! What hostile use of the public API once did, each with its story.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::sync::Arc;

use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointManager, IncrementalCheckpointMetadata, RecoveryConfig,
};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalEntry, PerCoreWalError,
    PerCoreWalManager, recover_per_core,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{CheckpointId, Epoch, Health, Opened, Settings, Store, StoreError};

/// The log was read before its lock was taken, and what its owner appended meanwhile was cut off.
#[test]
fn a_store_is_not_opened_on_a_log_that_somebody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = PerCoreWalManager::new(PerCoreWalConfig::new(&dir.path().join("wal"), 1)).unwrap();
    owner.writer(0).append_put(b"k", b"v").unwrap();
    owner.sync_all().unwrap();
    let error = Store::builder(dir.path()).open().unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    drop(owner);
    let opened = Store::builder(dir.path()).open().unwrap();
    assert_eq!(opened.cores[0].get(b"k"), Some(b"v".as_slice()));
}

/// A repair took what a writer was just appending for a torn tail and cut it off.
#[test]
fn a_log_in_use_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let config = PerCoreWalConfig::new(dir.path(), 1);
    let owner = PerCoreWalManager::new(config.clone()).unwrap();
    let recovery = RecoveryConfig::new(&dir.path().join("none"), dir.path());
    let repair = PerCoreRecoveryManager::new(config, recovery);
    assert!(matches!(repair.repair_all_segments(), Err(PerCoreWalError::Locked(_))));
    drop(owner);
    assert_eq!(repair.repair_all_segments().unwrap(), 0);
}

/// The log began below the epoch of a checkpoint that was made without one, and recovery took its
/// records to be in that checkpoint.
#[test]
fn a_coordinator_on_a_checkpoint_without_a_log_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, checkpoints) = (dir.path().join("wal"), dir.path().join("checkpoints"));
    let mut manager = IncrementalCheckpointManager::new(CheckpointConfig::new(&checkpoints)).unwrap();
    manager.put(b"base", b"1").unwrap();
    manager.set_epoch(100);
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    let log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 1)).unwrap();
    let mut coordinator = CheckpointCoordinator::new(log, CheckpointConfig::new(&checkpoints)).unwrap();
    coordinator.wal_manager_mut().writer(0).append_put(b"k", b"v").unwrap();
    coordinator.flush().unwrap();
    drop(coordinator);
    let recovered = recover_per_core(&wal, &checkpoints, 1).unwrap();
    assert_eq!((recovered.get(b"base"), recovered.get(b"k")), (Some(&b"1"[..]), Some(&b"v"[..])));
    let log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 1)).unwrap();
    let mut coordinator = CheckpointCoordinator::new(log, CheckpointConfig::new(&checkpoints)).unwrap();
    assert!(coordinator.create_checkpoint(2).unwrap().epoch > 100);
}

/// After the largest epoch there was no next one: everything was acknowledged and nothing synced.
#[test]
fn the_last_epochs_are_refused_while_there_still_is_a_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).open().unwrap();
    let error = cores[0].seal_epoch_to(Epoch(u64::MAX)).unwrap_err();
    assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
    cores[0].put(b"k", b"v").unwrap();
    cores[0].seal_epoch_to(Epoch::LAST).unwrap();
    store.wait_durable(Epoch::LAST).unwrap();
    drop(cores);
    store.close().unwrap();
    let error = Store::builder(dir.path()).open().unwrap_err();
    assert!(error.to_string().contains("all epochs are used up"), "{error}");
    let log = tempfile::tempdir().unwrap();
    let mut manager = PerCoreWalManager::new(PerCoreWalConfig::new(log.path(), 1)).unwrap();
    assert!(matches!(manager.set_epoch_all(u64::MAX), Err(PerCoreWalError::InvalidInput(_))));
}

/// A commit record longer than any frame was written, synced, and never read again.
#[test]
fn a_commit_that_no_frame_can_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 1)).unwrap();
    let names = (0..330).map(|i| (format!("{i:065000}"), 1));
    let error = manager.writer(0).append_commit(names.collect(), None).unwrap_err();
    assert!(matches!(error, PerCoreWalError::InvalidInput(_)), "{error}");
    manager.writer(0).append_put(b"k", b"v").unwrap();
    manager.writer(0).append_commit(HashMap::from([("s".to_owned(), 1)]), None).unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    let manager = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 1)).unwrap();
    assert_eq!(manager.merge_segments().unwrap().len(), 2);
}

/// A clock at its end made times repeat, and the log could not be opened any more.
#[test]
fn no_clock_and_no_timestamp_makes_a_log_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = PerCoreWalManager::new(PerCoreWalConfig::new(dir.path(), 1)).unwrap();
    let entry = PerCoreWalEntry::put(0, 1, 0, b"k".to_vec(), b"v".to_vec(), u64::MAX);
    manager.writer(0).append(&entry).unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    assert_eq!(recover_per_core(dir.path(), &dir.path().join("none"), 1).unwrap().entries_replayed, 1);
    let disk = SimDisk::new(1);
    disk.set_clock(u64::MAX);
    for round in 1..=3_u32 {
        let settings = Settings { state_limit_bytes: 4 << 20, preallocate_bytes: 0, ..Settings::default() };
        let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk.clone()));
        let Opened { store, mut cores, .. } = builder.open().unwrap();
        cores[0].put(&round.to_le_bytes(), b"v").unwrap();
        let epoch = cores[0].seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        assert_eq!(cores[0].len(), round as usize);
        store.close().unwrap();
    }
}

/// The largest checkpoint id left no next one: opening the store panicked, or failed for ever.
#[test]
fn the_last_checkpoint_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = PerCoreWalManager::new(PerCoreWalConfig::new(&dir.path().join("wal"), 1)).unwrap();
    let config = CheckpointConfig::new(&dir.path().join("checkpoints"));
    let mut coordinator = CheckpointCoordinator::new(log, config).unwrap();
    coordinator.wal_manager_mut().writer(0).append_put(b"k", b"v").unwrap();
    assert!(coordinator.create_checkpoint(u64::MAX).is_err());
    coordinator.create_checkpoint(CheckpointId::LAST.get()).unwrap();
    drop(coordinator);
    let opened = Store::builder(dir.path()).open().unwrap();
    assert_eq!(opened.cores[0].get(b"k"), Some(b"v".as_slice()));
}

/// The digest is a check of recovery itself, so only a checkpoint that was forged in form, with every
/// checksum right, can fail it here.
#[test]
fn a_state_without_the_digest_that_was_stored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).open().unwrap();
    cores[0].put(b"k", b"v").unwrap();
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    let receipt = store.checkpoint().unwrap();
    drop(cores);
    store.close().unwrap();
    let manifest = dir.path().join(format!("checkpoints/checkpoint_{:016x}/metadata.json", receipt.id.get()));
    let good = std::fs::read_to_string(&manifest).unwrap();
    let mut metadata = IncrementalCheckpointMetadata::from_json(&good).unwrap();
    metadata.digests[0].digest ^= 1;
    std::fs::write(&manifest, metadata.to_json().unwrap()).unwrap();
    let error = Store::builder(dir.path()).open().unwrap_err();
    assert!(matches!(error, StoreError::Corruption(_)), "{error}");
    let told = error.to_string();
    assert!(told.contains("digest") && told.contains("after epoch") && told.contains("core 0"), "{told}");
    std::fs::write(&manifest, good).unwrap();
    assert_eq!(Store::builder(dir.path()).open().unwrap().cores[0].get(b"k"), Some(&b"v"[..]));
}

/// The path of a store was looked at without following it, so that a symbolic link, as whoever moves a store
/// to a larger disk leaves one, was refused. What is inside is still never followed.
#[test]
fn the_path_of_a_store_may_be_a_symbolic_link_and_nothing_inside_it() {
    let root = tempfile::tempdir().unwrap();
    let (real, link) = (root.path().join("real"), root.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    for path in [link.clone(), link.join("deeper"), link.join("deeper/still")] {
        let Opened { store, mut cores, .. } = Store::builder(&path).open().unwrap();
        cores[0].put(b"k", b"v").unwrap();
        let epoch = cores[0].seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        store.checkpoint().unwrap();
        drop(cores);
        store.close().unwrap();
    }
    let opened = Store::builder(&real).open().unwrap();
    assert_eq!(opened.cores[0].get(b"k"), Some(b"v".as_slice()));
    drop(opened);
    let reader = laminar_storage::StateReader::open(&link).unwrap();
    assert_eq!(reader.get(b"k"), Some(b"v".as_slice()));
    // The directories of the low-level functions are the user's own, too.
    std::fs::create_dir(root.path().join("log")).unwrap();
    std::os::unix::fs::symlink(root.path().join("log"), root.path().join("log-link")).unwrap();
    for before in 0..2 {
        let config = PerCoreWalConfig::new(&root.path().join("log-link"), 1);
        let mut log = PerCoreWalManager::new(config).unwrap();
        assert_eq!(log.merge_segments().unwrap().len(), before);
        log.writer(0).append_put(b"k", b"v").unwrap();
        log.sync_all().unwrap();
    }

    let dangling = root.path().join("dangling");
    std::os::unix::fs::symlink(root.path().join("nowhere"), &dangling).unwrap();
    assert!(matches!(Store::builder(&dangling).open().unwrap_err(), StoreError::Io(_)));
    for inside in ["wal", "checkpoints"] {
        std::fs::rename(real.join(inside), root.path().join(inside)).unwrap();
        std::os::unix::fs::symlink(root.path().join(inside), real.join(inside)).unwrap();
        let error = Store::builder(&link).open().unwrap_err();
        assert!(matches!(error, StoreError::Io(_)) && error.to_string().contains(inside), "{error}");
        assert!(laminar_storage::StateReader::open(&link).is_err());
        std::fs::remove_file(real.join(inside)).unwrap();
        std::fs::rename(root.path().join(inside), real.join(inside)).unwrap();
    }
    Store::builder(&link).open().unwrap();
}

/// A file whose name has the largest ids there are took part in the count, and every opening tried to
/// create a file that was there: "File exists", without a name.
#[test]
fn a_stray_segment_with_the_largest_ids_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for core in [0, 7] {
        for ids in ["ffffffffffffffff.00000001", "00000001.ffffffff", "00000001.7fffffff"] {
            let name = format!("wal-{core}.{ids}.log");
            let path = dir.path().join(format!("{core}-{ids}"));
            Store::builder(&path).open().unwrap();
            std::fs::write(path.join("wal").join(&name), b"").unwrap();
            let error = Store::builder(&path).open().unwrap_err();
            assert!(matches!(error, StoreError::Corruption(_)), "{error}");
            assert!(error.to_string().contains(&name), "{error}");
            std::fs::remove_file(path.join("wal").join(&name)).unwrap();
            Store::builder(&path).open().unwrap();
        }
    }
}

/// A source name that no commit can hold made every seal fail, and nothing said how to go on.
#[test]
fn a_source_name_that_is_too_long_does_not_hold_up_the_seals_after_it() {
    let disk = SimDisk::new(1);
    let open = || Store::builder("/s").vfs(Arc::new(disk.clone())).open().unwrap();
    let Opened { store, mut cores, .. } = open();
    let core = &mut cores[0];
    let too_long = "x".repeat(70_000);
    core.put(b"k", b"v").unwrap();
    core.set_source_offset("in", 1);
    core.set_source_offset(&too_long, 2);
    let error = core.seal_epoch().unwrap_err();
    assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
    assert!(error.to_string().contains("remove_source_offset"), "{error}");
    core.remove_source_offset(&too_long);
    // Each is short enough, and all of them together are not.
    let many: Vec<_> = (0..300).map(|n| format!("{n}{}", "y".repeat(60_000))).collect();
    many.iter().for_each(|name| core.set_source_offset(name, 3));
    let error = core.seal_epoch().unwrap_err();
    assert!(error.to_string().contains("301 source offsets take"), "{error}");
    assert!(error.to_string().contains("remove_source_offset"), "{error}");
    many.iter().for_each(|name| core.remove_source_offset(name));
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    drop((cores, store));
    let Opened { cores, report, .. } = open();
    assert_eq!((cores[0].get(b"k"), report.source_offsets.len()), (Some(&b"v"[..]), 1));
}

/// The largest number of cores opens, also again and with another number of them.
#[test]
fn as_many_cores_as_there_can_be() {
    let disk = SimDisk::new(1);
    let settings = Settings {
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        preallocate_bytes: 0,
        segment_bytes: 4 << 10,
        ..Settings::default()
    };
    let mut epoch = Epoch::ZERO;
    for count in [1024_usize, 1024, 3] {
        let builder = Store::builder("/s").vfs(Arc::new(disk.clone())).settings(settings.clone());
        let Opened { store, mut cores, report } = builder.cores(count).open().unwrap();
        assert_eq!((cores.len(), report.recovery_point), (count, epoch));
        assert_eq!(report.keys, if epoch == Epoch::ZERO { 0 } else { 1 });
        cores[0].put(b"k", b"v").unwrap();
        for core in &mut cores {
            epoch = core.seal_epoch().unwrap();
        }
        store.wait_durable(epoch).unwrap();
    }
}

/// A state at its limit had no room for the commit of an epoch with source offsets, nor for the tombstone of a
/// key: what had been put could neither be sealed nor make room for anything, and was lost.
#[test]
fn a_full_state_is_sealed_and_deleted_from_and_goes_on() {
    let disk = SimDisk::new(1);
    let settings = Settings { state_limit_bytes: 4 << 20, preallocate_bytes: 0, ..Settings::default() };
    let open = || Store::builder("/s").settings(settings.clone()).vfs(Arc::new(disk.clone())).open().unwrap();
    let Opened { store, mut cores, .. } = open();
    let core = &mut cores[0];
    let fill = |core: &mut laminar_storage::CoreStore, from: u32, value: &[u8]| {
        (from..).find(|key| core.put(&key.to_le_bytes(), value).is_err()).unwrap()
    };
    let large = fill(core, 0, &[7; 1000]);
    let last = fill(core, large, b"");
    let memory = core.memory();
    assert!(large > 3000 && last > large && memory.live_bytes <= 4 << 20, "{large} {last} {memory:?}");
    // Longer from epoch to epoch, and often: nothing that is put meanwhile may take the room of the commits.
    for round in 0..2000_u32 {
        core.set_source_offset(&format!("in/{}", round % 300), u64::from(round));
        let epoch = core.seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        let error = core.put(&(last + round).to_le_bytes(), &[8; 200]).unwrap_err();
        assert!(matches!(error, StoreError::StateFull(_)), "{error}");
    }
    for key in 0..100_u32 {
        assert!(core.delete(&key.to_le_bytes()).unwrap());
        let epoch = core.seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        core.put(&key.to_be_bytes(), &[9; 500]).unwrap();
    }
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    let keys = core.len();
    drop((cores, store));
    for _ in 0..2 {
        let Opened { store: _store, mut cores, report } = open();
        assert_eq!((cores[0].len(), report.source_offsets.len()), (keys, 300));
        assert_eq!(cores[0].get(&99_u32.to_be_bytes()), Some(&[9; 500][..]));
        assert!(cores[0].delete(&200_u32.to_le_bytes()).unwrap());
    }
}

/// A store whose directory was renamed went on in whatever had its name by then: acknowledged changes were
/// written into another store's log, and neither of the two could be opened any more.
#[test]
fn a_store_whose_directory_was_renamed_writes_into_no_other() {
    let root = tempfile::tempdir().unwrap();
    let (path, moved) = (root.path().join("state"), root.path().join("moved"));
    let settings = Settings { segment_bytes: 8 << 10, preallocate_bytes: 0, ..Settings::default() };
    let open = |path| Store::builder(path).settings(settings.clone()).open().unwrap();
    let write = |opened: &mut Opened, epochs: u32| -> Result<(), StoreError> {
        for n in 0..epochs {
            opened.cores[0].put(&n.to_le_bytes(), &[1; 1000])?;
            let epoch = opened.cores[0].seal_epoch()?;
            opened.store.wait_durable(epoch)?;
        }
        Ok(())
    };
    let mut first = open(&path);
    write(&mut first, 2).unwrap();
    std::fs::rename(&path, &moved).unwrap();
    let mut second = open(&path);
    write(&mut second, 30).unwrap();
    let error = first.store.checkpoint().unwrap_err();
    assert!(error.to_string().contains("no longer there"), "{error}");
    let error = write(&mut first, 30).unwrap_err();
    assert!(error.to_string().contains("is there by now"), "{error}");
    let acknowledged = first.store.durable_epoch();
    write(&mut second, 30).unwrap();
    second.store.checkpoint().unwrap();
    drop((first, second));
    assert!(open(&moved).report.recovery_point >= acknowledged);
    assert_eq!(open(&path).cores[0].len(), 30);
}

/// Each opening that failed on a full disk left behind the segments that it had begun, and took up room that was
/// missing the next time.
#[test]
fn an_opening_that_fails_for_want_of_space_leaves_nothing_behind() {
    let disk = SimDisk::new(1);
    let settings = Settings { preallocate_bytes: 1 << 20, ..Settings::default() };
    let builder = || Store::builder("/s").cores(3).settings(settings.clone()).vfs(Arc::new(disk.clone()));
    drop(builder().open().unwrap());
    let wal = std::path::Path::new("/s/wal");
    let names = || disk.read_dir(wal).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let before = names();
    for budget in [0, 20, 100, 1000, 500_000, 1_500_000, 2_500_000] {
        disk.set_capacity(Some(budget));
        let opened = builder().open().unwrap();
        let health = opened.store.health();
        assert!(matches!(&health, Health::Poisoned(cause) if cause.detail().is_out_of_space()), "{health:?}");
        drop(opened);
        assert_eq!(names(), before, "{budget}");
    }
    disk.set_capacity(None);
    builder().open().unwrap();
}

/// A checkpoint that did not fit on the disk stayed there half written until the next opening, so that the log,
/// for which there would have been room, failed next.
#[test]
fn a_checkpoint_that_does_not_fit_leaves_its_room_to_the_log() {
    let disk = SimDisk::new(1);
    let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
    let open = || Store::builder("/s").settings(settings.clone()).vfs(Arc::new(disk.clone())).open().unwrap();
    let Opened { store, mut cores, .. } = open();
    let step = |core: &mut laminar_storage::CoreStore, keys: std::ops::Range<u32>| {
        keys.for_each(|key| core.put(&key.to_le_bytes(), &[7; 1000]).unwrap());
        let epoch = core.seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
    };
    step(&mut cores[0], 0..500);
    disk.set_capacity(Some(300_000));
    let error = store.checkpoint().unwrap_err();
    assert!(error.to_string().contains("Free space"), "{error}");
    step(&mut cores[0], 500..700);
    drop((cores, store));
    disk.set_capacity(None);
    assert_eq!(open().cores[0].len(), 700);
}

/// A checkpoint that somebody had given the name of another was read, and then looked for under its own: the
/// store did not open, and the error did not say why. It is as good as damaged.
#[test]
fn a_renamed_checkpoint_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).open().unwrap();
    let mut ids = Vec::new();
    for key in [b"a", b"b"] {
        cores[0].put(key, b"v").unwrap();
        let epoch = cores[0].seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        ids.push(store.checkpoint().unwrap().id);
    }
    drop((cores, store));
    let at = |id: u64| dir.path().join(format!("checkpoints/checkpoint_{id:016x}"));
    std::fs::rename(at(ids[1].get()), at(0x99)).unwrap();
    assert_eq!(laminar_storage::StateReader::open(dir.path()).unwrap().len(), 2);
    let opened = Store::builder(dir.path()).open().unwrap();
    assert_eq!((opened.cores[0].len(), opened.report.checkpoint), (2, Some(ids[0])));
    assert_eq!(opened.report.checkpoints_skipped, [CheckpointId::from(0x99)]);
}
