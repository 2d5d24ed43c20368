//! Low-level functions and stores on the same directories, in turns that nobody had thought of: each found by reading,
//! each with its story.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;

use laminar_storage::incremental::{CheckpointConfig, IncrementalCheckpointManager, RecoveryConfig};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalManager, recover_per_core,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{Duration, Fault, SimDisk};
use laminar_storage::{Opened, Router, Settings, StateReader, Store, StoreBuilder, StoreError};

const DIR: &str = "/s";

fn builder(disk: &SimDisk, cores: usize) -> StoreBuilder {
    let settings = Settings {
        preallocate_bytes: 0,
        state_limit_bytes: 64 << 20,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        ..Settings::default()
    };
    Store::builder(DIR).cores(cores).settings(settings).vfs(Arc::new(disk.clone()))
}

fn log(disk: &SimDisk, cores: usize) -> PerCoreWalConfig {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    PerCoreWalConfig::new(&Path::new(DIR).join("wal"), cores).with_vfs(vfs)
}

fn checkpoints() -> CheckpointConfig {
    CheckpointConfig::new(&Path::new(DIR).join("checkpoints"))
}

fn coordinator(disk: &SimDisk, cores: usize) -> CheckpointCoordinator {
    CheckpointCoordinator::new(PerCoreWalManager::new(log(disk, cores)).unwrap(), checkpoints()).unwrap()
}

fn recovery(disk: &SimDisk, cores: usize) -> PerCoreRecoveryManager {
    let dir = Path::new(DIR);
    PerCoreRecoveryManager::new(
        log(disk, cores),
        RecoveryConfig::new(&dir.join("checkpoints"), &dir.join("wal")),
    )
}

/// Puts a key where the router says, and waits until it is durable.
fn commit(opened: &mut Opened, key: &[u8], value: &[u8]) {
    let own = Router::default().route(key, opened.cores.len());
    opened.cores[own].put(key, value).unwrap();
    let epochs = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap());
    opened.store.wait_durable(epochs.max().unwrap()).unwrap();
}

fn get<'a>(opened: &'a Opened, key: &[u8]) -> Option<&'a [u8]> {
    opened.cores[Router::default().route(key, opened.cores.len())].get(key)
}

/// A fork at /fork, of fifty keys in as many epochs, that was opened once and took nothing.
fn unused_fork(disk: &SimDisk) -> Arc<dyn Vfs> {
    let mut opened = builder(disk, 1).open().unwrap();
    for n in 0..50_u8 {
        commit(&mut opened, &[n], b"1");
    }
    opened.store.savepoint("/saved").unwrap();
    drop(opened);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    drop(Store::builder("/fork").vfs(Arc::clone(&vfs)).from_savepoint("/saved").open().unwrap());
    vfs
}

/// The layout of the state was taken for that of the log: cores that the log never had were missed, for ever.
#[test]
fn a_state_may_be_laid_out_for_more_cores_than_its_log_has() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, state) = (dir.path().join("wal"), dir.path().join("checkpoints"));
    let mut manager = IncrementalCheckpointManager::new(CheckpointConfig::new(&state)).unwrap();
    manager.set_core_count(4).unwrap();
    manager.put(b"x", b"1").unwrap();
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    let log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 1)).unwrap();
    let mut coordinator = CheckpointCoordinator::new(log, CheckpointConfig::new(&state)).unwrap();
    coordinator.wal_manager_mut().writer(0).append_put(b"a", b"1").unwrap();
    coordinator.create_checkpoint(2).unwrap();
    coordinator.wal_manager_mut().writer(0).append_put(b"b", b"2").unwrap();
    coordinator.flush().unwrap();
    drop(coordinator);
    let recovered = recover_per_core(&wal, &state, 1).unwrap();
    for (key, value) in [(b"x", b"1"), (b"a", b"1"), (b"b", b"2")] {
        assert_eq!(recovered.get(key), Some(value.as_slice()));
    }
}

/// The same after an opening with more cores that failed when it had published the new layout and not begun its log:
/// whoever went on with the log as it was could not read what they had synced.
#[test]
fn an_opening_with_more_cores_that_failed_leaves_a_log_to_go_on_with() {
    let disk = SimDisk::new(1);
    let mut opened = builder(&disk, 1).open().unwrap();
    commit(&mut opened, b"a", b"1");
    opened.store.close().unwrap();
    drop(opened.cores);
    let dead = disk.snapshot();
    let mut went_on = 0;
    for op in 1..200 {
        let disk = dead.restart();
        disk.fail_op(op, Fault::Enospc, Duration::Once);
        if builder(&disk, 4).open().is_ok() {
            continue;
        }
        let disk = disk.snapshot().restart();
        let Ok(mut wal) = PerCoreWalManager::new(log(&disk, 1)) else { continue };
        wal.writer(0).append_put(b"b", b"2").unwrap();
        wal.writer(0).sync().unwrap();
        drop(wal);
        went_on += 1;
        let found = recovery(&disk, 1).recover().unwrap_or_else(|e| panic!("op {op}: {e}"));
        assert_eq!((found.get(b"a"), found.get(b"b")), (Some(&b"1"[..]), Some(&b"2"[..])), "op {op}");
        for cores in [1, 4, 2] {
            let opened = builder(&disk, cores).open().unwrap_or_else(|e| panic!("op {op}: {e}"));
            assert_eq!((get(&opened, b"a"), get(&opened, b"b")), (Some(&b"1"[..]), Some(&b"2"[..])));
        }
    }
    assert!(went_on > 5, "{went_on}");
}

/// A coordinator put the keys of its log beside those of a store of several cores, on the core whose log they came from,
/// and its checkpoint kept the store's layout: the store did not find them, and after the next write was refused.
#[test]
fn keys_of_a_coordinator_go_where_a_store_of_several_cores_looks() {
    for finished in [true, false] {
        let disk = SimDisk::new(1);
        let mut opened = builder(&disk, 4).open().unwrap();
        let keys: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![b'k', n]).collect();
        for key in &keys {
            commit(&mut opened, key, b"old");
        }
        opened.store.checkpoint().unwrap();
        opened.store.close().unwrap();
        drop(opened.cores);
        let mut coordinator = coordinator(&disk, 4);
        for key in &keys {
            coordinator.wal_manager_mut().writer(0).append_put(key, b"new").unwrap();
        }
        coordinator.create_checkpoint(2).unwrap();
        if finished {
            coordinator.flush().unwrap();
        }
        drop(coordinator);
        for round in 0..3_u8 {
            let mut opened = builder(&disk, 4).open().unwrap();
            assert!(keys.iter().all(|key| get(&opened, key) == Some(b"new")), "{finished} {round}");
            assert_eq!(opened.cores.iter().map(|core| core.len()).sum::<usize>(), 20 + usize::from(round));
            commit(&mut opened, &[b'n', round], b"next");
        }
        for cores in [3, 1, 4] {
            let opened = builder(&disk, cores).open().unwrap();
            assert!(keys.iter().all(|key| get(&opened, key) == Some(b"new")), "{finished} {cores}");
        }
    }
}

/// A fork's log is empty, so that a log manager began with epoch 0. Recovery took everything below the fork's epoch to
/// be in its checkpoint: what had been synced was passed over, and the next opening as a store gave it up for good.
#[test]
fn a_log_manager_on_a_fork_writes_above_what_the_fork_began_with() {
    for reset in [false, true] {
        let disk = SimDisk::new(1);
        let vfs = unused_fork(&disk);
        let fork = || Store::builder("/fork").vfs(Arc::clone(&vfs));
        let (wal, state) = (Path::new("/fork/wal"), Path::new("/fork/checkpoints"));
        let config = || PerCoreWalConfig::new(wal, 1).with_vfs(Arc::clone(&vfs));
        let mut manager = PerCoreWalManager::new(config()).unwrap();
        if reset {
            manager.reset_all().unwrap();
        }
        manager.writer(0).append_put(b"k", b"v").unwrap();
        manager.writer(0).sync().unwrap();
        drop(manager);
        let found = PerCoreRecoveryManager::new(config(), RecoveryConfig::new(state, wal)).recover().unwrap();
        assert_eq!((found.get(b"k"), found.get(&[7])), (Some(&b"v"[..]), Some(&b"1"[..])), "{reset}");
        for _ in 0..2 {
            let opened = fork().open().unwrap();
            assert_eq!((opened.cores[0].get(b"k"), opened.cores[0].len()), (Some(&b"v"[..]), 51), "{reset}");
        }
    }
}

/// A store that had made no checkpoint yet, and beside it one that was made without it: its epoch was taken for the end of
/// what it has of the log. Acknowledged keys were gone, without a word.
#[test]
fn a_checkpoint_that_was_made_beside_a_store_is_refused_by_name() {
    let disk = SimDisk::new(1);
    let mut opened = builder(&disk, 1).open().unwrap();
    commit(&mut opened, b"a", b"1");
    opened.store.close().unwrap();
    drop(opened.cores);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut manager = IncrementalCheckpointManager::with_vfs(checkpoints(), vfs).unwrap();
    manager.set_epoch(100);
    manager.put(b"x", b"1").unwrap();
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    let strange = "/s/checkpoints/checkpoint_0000000000000001";
    for cores in [1, 2] {
        let error = builder(&disk, cores).open().unwrap_err();
        assert!(matches!(error, StoreError::InvalidInput(_)), "{error:?}");
        assert!(error.to_string().contains(strange), "{error}");
    }
    let reader = StateReader::open_with(DIR, Arc::new(disk.clone())).unwrap_err();
    assert!(reader.to_string().contains(strange), "{reader}");
    disk.create_dir(Path::new("/elsewhere")).unwrap();
    disk.rename(Path::new(strange), Path::new("/elsewhere/checkpoint")).unwrap();
    let opened = builder(&disk, 1).open().unwrap();
    assert_eq!((opened.cores[0].get(b"a"), opened.cores[0].len()), (Some(&b"1"[..]), 1));
}

/// Of two frames that were never synced the second one arrived, the first one did not. An opening with another number of
/// cores published that it has the log up to the second one's end, and failed then; somebody cut the torn end off;
/// after that the log ended before what the checkpoint said to contain, for ever.
#[test]
fn a_cut_never_names_what_a_crash_tore_off() {
    let disk = SimDisk::new(1);
    let mut opened = builder(&disk, 1).open().unwrap();
    commit(&mut opened, b"a", b"1");
    disk.record(true);
    for n in 0..9_u8 {
        opened.cores[0].put(&[b'b', n], &[n + 1; 60_000]).unwrap();
    }
    let epoch = opened.cores[0].seal_epoch().unwrap();
    opened.store.wait_durable(epoch).unwrap();
    let written = |snapshot: &laminar_storage::vfs::sim::Snapshot| {
        snapshot.last_op().is_some_and(|op| op.call == "pwrite" && op.path.ends_with(".log"))
    };
    let before = disk.history().first().cloned().unwrap().restart();
    let torn = disk.history().into_iter().rfind(written).unwrap();
    let path = Path::new(&*torn.last_op().unwrap().path).to_owned();
    let frame = before.read_file(&path).unwrap().len() as u64;
    let (mut refused, mut cut) = (0, 0);
    for op in 1..120 {
        let disk = torn.restart();
        disk.patch(&path, frame + 64, &[0; 64]).unwrap();
        disk.fail_op(op, Fault::Enospc, Duration::Once);
        if builder(&disk, 2).open().is_ok() {
            continue;
        }
        refused += 1;
        let disk = disk.snapshot().restart();
        cut += u32::from(recovery(&disk, 1).repair_all_segments().unwrap() > 0);
        let seen =
            StateReader::open_with(DIR, Arc::new(disk.clone())).unwrap_or_else(|e| panic!("{op}: {e}"));
        assert_eq!((seen.len(), seen.get(b"a")), (1, Some(&b"1"[..])), "op {op}");
        for cores in [1, 2] {
            let opened = builder(&disk, cores).open().unwrap_or_else(|e| panic!("op {op}: {e}"));
            assert_eq!(get(&opened, b"a"), Some(&b"1"[..]), "op {op}");
        }
    }
    assert!(refused > 5 && cut > 0, "{refused} {cut}");
}

/// After a reset without a record nothing in the log said any more what the fork had begun with.
#[test]
fn a_log_on_a_fork_stays_above_it_after_a_reset_and_another_opening() {
    let disk = SimDisk::new(1);
    let vfs = unused_fork(&disk);
    let fork = || Store::builder("/fork").vfs(Arc::clone(&vfs));
    let config = || PerCoreWalConfig::new(Path::new("/fork/wal"), 1).with_vfs(Arc::clone(&vfs));
    PerCoreWalManager::new(config()).unwrap().reset_all().unwrap();
    let mut manager = PerCoreWalManager::new(config()).unwrap();
    manager.writer(0).append_put(b"k", b"v").unwrap();
    manager.writer(0).sync().unwrap();
    drop(manager);
    for _ in 0..2 {
        let opened = fork().open().unwrap();
        assert_eq!((opened.cores[0].get(b"k"), opened.cores[0].len()), (Some(&b"v"[..]), 51));
    }
}

/// A store that took nothing yet may still be begun on a checkpoint that a manager makes, and that one only.
#[test]
fn a_store_without_a_record_may_be_begun_on_a_checkpoint() {
    let disk = SimDisk::new(1);
    drop(builder(&disk, 1).open().unwrap());
    let manager = |epoch, key: &[u8]| {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let mut manager = IncrementalCheckpointManager::with_vfs(checkpoints(), vfs).unwrap();
        manager.set_epoch(epoch);
        manager.put(key, b"1").unwrap();
        manager.create_checkpoint(0).unwrap();
    };
    manager(5, b"x");
    let mut opened = builder(&disk, 1).open().unwrap();
    assert_eq!(get(&opened, b"x"), Some(&b"1"[..]));
    commit(&mut opened, b"a", b"1");
    drop(opened);
    let opened = builder(&disk, 1).open().unwrap();
    assert_eq!((get(&opened, b"x"), get(&opened, b"a")), (Some(&b"1"[..]), Some(&b"1"[..])));
    drop(opened);
    manager(100, b"y");
    let error = builder(&disk, 1).open().unwrap_err();
    assert!(error.to_string().contains("checkpoint_0000000000000002"), "{error}");
}

/// The same as beside a store, where a log manager had opened the directory first, and appended nothing.
#[test]
fn an_unused_plain_log_below_a_stores_hides_no_strange_checkpoint() {
    let disk = SimDisk::new(1);
    disk.create_dir(Path::new(DIR)).unwrap();
    drop(PerCoreWalManager::new(log(&disk, 1)).unwrap());
    let mut opened = builder(&disk, 1).open().unwrap();
    commit(&mut opened, b"a", b"1");
    opened.store.close().unwrap();
    drop(opened.cores);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut manager = IncrementalCheckpointManager::with_vfs(checkpoints(), vfs).unwrap();
    manager.set_epoch(100);
    manager.create_checkpoint(0).unwrap();
    drop(manager);
    let error = builder(&disk, 1).open().unwrap_err();
    assert!(error.to_string().contains("checkpoint_0000000000000001"), "{error}");
}
