//! Real processes on the real file system: they die without a destructor having run, at the very
//! moment after something was confirmed; whoever opens the directory next must find everything that was
//! confirmed. Processes that are killed at any other moment are in `crates/laminar-sim/tests/torture.rs`.
//!
//! The child is this test binary itself, told by the environment what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

use laminar_storage::incremental::{CheckpointConfig, IncrementalCheckpointManager, RecoveryManager};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreWalConfig, PerCoreWalManager, recover_per_core,
};
use laminar_storage::{Opened, Store};

const ROLE: &str = "LAMINAR_TEST_ROLE";
const DIR: &str = "LAMINAR_TEST_DIR";

/// Not a test of its own: the entry of the child processes.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = std::env::var(DIR).unwrap();
    let dir = Path::new(&dir);
    match role.as_str() {
        "sync" => die_after_sync(dir),
        "checkpoint" => die_after_checkpoint(dir),
        "coordinator" => die_after_coordinated_checkpoint(dir),
        other => panic!("unknown role {other}"),
    }
}

fn run_until_death(role: &str, dir: &Path) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the child was to abort");
}

fn die_after_sync(dir: &Path) {
    let mut manager = PerCoreWalManager::new(PerCoreWalConfig::new(&dir.join("wal"), 2)).unwrap();
    manager.writer(0).append_put(b"a", b"1").unwrap();
    manager.writer(1).append_put(b"b", b"2").unwrap();
    manager.writer(1).append_commit(HashMap::from([("s".to_owned(), 7)]), Some(3)).unwrap();
    manager.sync_all().unwrap();
    std::process::abort();
}

#[test]
fn a_process_that_dies_right_after_sync_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run_until_death("sync", dir.path());
    let (wal, checkpoints) = (dir.path().join("wal"), dir.path().join("checkpoints"));
    let recovered = recover_per_core(&wal, &checkpoints, 2).unwrap();
    assert_eq!(recovered.get(b"a"), Some(b"1".as_slice()));
    assert_eq!(recovered.get(b"b"), Some(b"2".as_slice()));
    assert_eq!(recovered.base_state.source_offsets["s"], 7);
    assert_eq!(recovered.base_state.watermark, Some(3));
    // The same through a store, with the same and with another number of cores.
    for cores in [2, 1, 3] {
        let Opened { store, cores, report } = Store::builder(dir.path()).cores(cores).open().unwrap();
        let found: HashMap<_, _> = cores.iter().flat_map(|core| core.iter()).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[b"b".as_slice()], b"2");
        assert_eq!(report.source_offsets["s"], 7);
        store.close().unwrap();
    }
}

fn die_after_checkpoint(dir: &Path) {
    let config = CheckpointConfig::new(&dir.join("checkpoints")).with_wal_path(&dir.join("wal"));
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    manager.set_epoch(4);
    manager.put(b"a", b"1").unwrap();
    manager.set_source_offset("s".into(), 9);
    manager.create_checkpoint(100).unwrap();
    std::process::abort();
}

#[test]
fn a_process_that_dies_right_after_create_checkpoint_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run_until_death("checkpoint", dir.path());
    let (wal, checkpoints) = (dir.path().join("wal"), dir.path().join("checkpoints"));
    let recovered = RecoveryManager::recover_simple(&checkpoints, &wal).unwrap();
    assert_eq!((recovered.epoch, recovered.wal_position, recovered.len()), (4, 100, 1));
    assert_eq!(recovered.get(b"a"), Some(b"1".as_slice()));
    assert_eq!(recover_per_core(&wal, &checkpoints, 2).unwrap().get(b"a"), Some(b"1".as_slice()));
    let Opened { cores, report, store } = Store::builder(dir.path()).cores(2).open().unwrap();
    assert_eq!(cores.iter().find_map(|core| core.get(b"a")), Some(b"1".as_slice()));
    assert_eq!((report.recovery_point.get(), report.source_offsets["s"]), (4, 9));
    store.close().unwrap();
}

fn die_after_coordinated_checkpoint(dir: &Path) {
    let wal = PerCoreWalManager::new(PerCoreWalConfig::new(&dir.join("wal"), 2)).unwrap();
    let config = CheckpointConfig::new(&dir.join("checkpoints")).with_wal_path(&dir.join("wal"));
    let mut coordinator = CheckpointCoordinator::new(wal, config).unwrap();
    for id in 1..=4 {
        for core in 0..2 {
            let key = format!("key{core}-{id}");
            coordinator.wal_manager_mut().writer(core).append_put(key.as_bytes(), b"v").unwrap();
        }
        // The later of two writers of one key wins, whichever core it is.
        let last = usize::try_from(id).unwrap() % 2;
        for core in [1 - last, last] {
            let value = format!("{id} by {core}");
            coordinator.wal_manager_mut().writer(core).append_put(b"shared", value.as_bytes()).unwrap();
        }
        coordinator.create_checkpoint(id).unwrap();
    }
    coordinator.wal_manager_mut().writer(0).append_put(b"after", b"x").unwrap();
    coordinator.flush().unwrap();
    std::process::abort();
}

#[test]
fn a_process_that_dies_right_after_a_coordinated_checkpoint_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run_until_death("coordinator", dir.path());
    let (wal, checkpoints) = (dir.path().join("wal"), dir.path().join("checkpoints"));
    let recovered = recover_per_core(&wal, &checkpoints, 2).unwrap();
    let state = recovered.state();
    assert_eq!(state.len(), 10);
    assert_eq!(recovered.base_state.checkpoint_id, Some(4));
    assert_eq!(state.get(b"shared"), Some(b"4 by 0".as_slice()));
    assert_eq!(state.get(b"after"), Some(b"x".as_slice()));
    let Opened { cores, store, .. } = Store::builder(dir.path()).cores(2).open().unwrap();
    let found: HashMap<_, _> = cores.iter().flat_map(|core| core.iter()).collect();
    assert_eq!(found.len(), 10);
    assert_eq!(found[b"shared".as_slice()], b"4 by 0");
    store.close().unwrap();
}
