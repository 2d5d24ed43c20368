//! The low-level functions and a store on the same directories, in turn: what once went wrong, each with its
//! story.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointError, IncrementalCheckpointManager,
};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreWalConfig, PerCoreWalManager, recover_per_core,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{Epoch, Opened, Router, StateReader, Store};

fn places(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("wal"), dir.join("checkpoints"))
}

/// A store of some cores with `keys` keys on each, made durable and closed without a checkpoint.
fn store_without_a_checkpoint(dir: &Path, cores: usize, keys: u32) {
    let Opened { store, mut cores, .. } = Store::builder(dir).cores(cores).open().unwrap();
    for (nth, core) in cores.iter_mut().enumerate() {
        for key in 0..keys {
            core.put(format!("{nth}-{key}").as_bytes(), b"v").unwrap();
        }
        core.set_source_offset(&format!("source-{nth}"), nth as u64 + 1);
        core.seal_epoch().unwrap();
    }
    store.wait_durable(Epoch::from(1)).unwrap();
    drop(cores);
    store.close().unwrap();
}

/// A coordinator lays its checkpoints out for one core. Given the log of a store of several, it applied that
/// of the first core only, and its checkpoint claimed to contain all of them: acknowledged keys were gone, and
/// with the third checkpoint the log that still had them.
#[test]
fn a_coordinator_on_the_log_of_a_store_takes_all_of_its_cores() {
    for cores in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        store_without_a_checkpoint(dir.path(), cores, 50);
        let (wal, checkpoints) = places(dir.path());
        let log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, cores)).unwrap();
        let mut coordinator = CheckpointCoordinator::new(log, CheckpointConfig::new(&checkpoints)).unwrap();
        for id in 1..=3 {
            let metadata = coordinator.create_checkpoint(id).unwrap();
            assert_eq!(metadata.key_count, cores as u64 * 50);
            assert_eq!(metadata.source_offsets.len(), cores);
        }
        drop(coordinator);
        let recovered = recover_per_core(&wal, &checkpoints, cores).unwrap();
        assert!((0..cores).all(|core| recovered.get(format!("{core}-49").as_bytes()).is_some()));
        let opened = Store::builder(dir.path()).cores(cores).open().unwrap();
        assert_eq!(opened.cores.iter().map(|core| core.len()).sum::<usize>(), cores * 50);
        assert_eq!(opened.report.source_offsets.len(), cores);
    }
}

/// After a coordinator's checkpoint a store took over the offsets of all the log's cores on its first one, and
/// then applied the newer commits of the second core beside them: the larger offset and the smaller
/// watermark won, both of them old.
#[test]
fn offsets_after_a_coordinators_checkpoint_replace_those_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, checkpoints) = places(dir.path());
    let log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 2)).unwrap();
    let mut coordinator = CheckpointCoordinator::new(log, CheckpointConfig::new(&checkpoints)).unwrap();
    let commit = |coordinator: &mut CheckpointCoordinator, offset, watermark| {
        let offsets = HashMap::from([("s".to_owned(), offset)]);
        coordinator.wal_manager_mut().writer(1).append_commit(offsets, Some(watermark)).unwrap();
    };
    commit(&mut coordinator, 49, 1);
    coordinator.create_checkpoint(1).unwrap();
    commit(&mut coordinator, 8, 13);
    coordinator.flush().unwrap();
    drop(coordinator);
    let expected = (BTreeMap::from([("s".to_owned(), 8)]), Some(13));
    let recovered = recover_per_core(&wal, &checkpoints, 2).unwrap();
    assert_eq!((recovered.base_state.source_offsets.clone(), recovered.base_state.watermark), expected);
    for _ in 0..2 {
        let report = Store::builder(dir.path()).cores(2).open().unwrap().report;
        assert_eq!((report.source_offsets, report.watermark), expected);
    }
}

/// The reader and the store disagreed on what the only core of a store has of a coordinator's checkpoint of a
/// log of two: what the store had removed was still there for the reader.
#[test]
fn a_reader_takes_over_offsets_as_a_store_does() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/s/wal"), 2).with_vfs(Arc::clone(&vfs));
    let log = PerCoreWalManager::new(config).unwrap();
    let config = CheckpointConfig::new(Path::new("/s/checkpoints"));
    let mut coordinator = CheckpointCoordinator::new(log, config).unwrap();
    let old = HashMap::from([("old".to_owned(), 9)]);
    coordinator.wal_manager_mut().writer(1).append_commit(old, Some(1)).unwrap();
    coordinator.create_checkpoint(1).unwrap();
    drop(coordinator);
    let builder = || Store::builder("/s").cores(1).vfs(Arc::clone(&vfs));
    let Opened { store, mut cores, .. } = builder().open().unwrap();
    cores[0].remove_source_offset("old");
    cores[0].set_source_offset("new", 5);
    cores[0].set_watermark(77);
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    drop((cores, store));
    let reader = StateReader::open_with(Path::new("/s"), Arc::clone(&vfs)).unwrap();
    let expected = (BTreeMap::from([("new".to_owned(), 5)]), Some(77));
    assert_eq!((reader.report().source_offsets.clone(), reader.report().watermark), expected);
    let report = builder().open().unwrap().report;
    assert_eq!((report.source_offsets, report.watermark), expected);
}

/// A checkpoint that was made beside the log, with a higher epoch, counted as one that contains the log:
/// acknowledged keys that were only there were gone.
#[test]
fn checkpoints_of_a_log_are_not_made_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, checkpoints) = places(dir.path());
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).open().unwrap();
    let mut step = |key: &[u8]| {
        cores[0].put(key, b"1").unwrap();
        let epoch = cores[0].seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
    };
    step(b"a");
    store.checkpoint().unwrap();
    step(b"b");
    drop(cores);
    store.close().unwrap();
    let mut manager = IncrementalCheckpointManager::new(CheckpointConfig::new(&checkpoints)).unwrap();
    manager.put(b"x", b"1").unwrap();
    manager.set_epoch(manager.epoch() + 100);
    let error = manager.create_checkpoint(0).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)), "{error}");
    drop(manager);
    let opened = Store::builder(dir.path()).open().unwrap();
    assert_eq!(opened.cores[0].len(), 2);
}

/// The note that a store was closed outlived the reset of its log: the store opened once more, empty, and
/// then never again, because its log "ends with epoch 0".
#[test]
fn a_log_that_was_reset_opens_any_number_of_times() {
    let dir = tempfile::tempdir().unwrap();
    store_without_a_checkpoint(dir.path(), 1, 10);
    let (wal, _) = places(dir.path());
    PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 1)).unwrap().reset_all().unwrap();
    for _ in 0..3 {
        assert!(Store::builder(dir.path()).open().unwrap().cores[0].is_empty());
    }
}

/// A plain log that was opened as a store of as many cores kept its keys on the cores whose writers they came
/// from. The store's program looks where its router says: acknowledged keys were not there, and, put once
/// more, stood on two cores, so that no other number of cores could open them.
#[test]
fn the_keys_of_a_plain_log_go_where_the_router_says() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = places(dir.path());
    let mut log = PerCoreWalManager::new(PerCoreWalConfig::new(&wal, 2)).unwrap();
    let keys: Vec<_> = (0..50).map(|nth| format!("key {nth}")).collect();
    for key in &keys {
        log.writer(0).append_put(key.as_bytes(), b"old").unwrap();
    }
    let offsets = HashMap::from([("s".to_owned(), 7)]);
    log.writer(1).append_commit(offsets, None).unwrap();
    log.sync_all().unwrap();
    drop(log);
    let router = Router::default();
    for (cores, value) in [(2, &b"old"[..]), (2, b"new"), (3, b"new"), (1, b"new")] {
        let Opened { store, cores: mut opened, report } =
            Store::builder(dir.path()).cores(cores).open().unwrap();
        assert_eq!(opened.iter().map(|core| core.len()).sum::<usize>(), keys.len());
        assert_eq!(report.source_offsets, BTreeMap::from([("s".to_owned(), 7)]));
        for key in &keys {
            let core = &mut opened[router.route(key.as_bytes(), cores)];
            assert_eq!(core.get(key.as_bytes()), Some(value));
            core.put(key.as_bytes(), b"new").unwrap();
        }
        let epoch = opened.iter_mut().map(|core| core.seal_epoch().unwrap()).max().unwrap();
        store.wait_durable(epoch).unwrap();
        drop((opened, store));
    }
    assert_eq!(StateReader::open(dir.path()).unwrap().len(), keys.len());
}
