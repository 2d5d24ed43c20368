//! Real processes on the real file system: they die without a destructor having run, at the very
//! moment after something was confirmed, or by SIGKILL whenever it comes; whoever opens the directory
//! next must find everything that was confirmed.
//!
//! The child is this test binary itself, told by the environment what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use laminar_storage::incremental::{CheckpointConfig, IncrementalCheckpointManager, RecoveryManager};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreWalConfig, PerCoreWalManager, recover_per_core,
};
use laminar_storage::{Opened, Settings, StateReader, Store};

const ROLE: &str = "LAMINAR_TEST_ROLE";
const DIR: &str = "LAMINAR_TEST_DIR";
const SEED: &str = "LAMINAR_TEST_SEED";

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
        "torture" => write_until_killed(dir, std::env::var(SEED).unwrap().parse().unwrap()),
        other => panic!("unknown role {other}"),
    }
}

fn spawn(role: &str, dir: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn run_until_death(role: &str, dir: &Path) {
    let status = spawn(role, dir, 0).wait().unwrap();
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

fn settings() -> Settings {
    Settings {
        segment_bytes: 64 << 10,
        preallocate_bytes: 16 << 10,
        checkpoint_interval_ms: 5,
        ring_capacity: 256,
        ..Settings::default()
    }
}

/// What `key` has after `epoch`: a function that child and parent share.
fn value_of(key: u32, epoch: u64) -> Option<Vec<u8>> {
    // Each key is written every 7th epoch and deleted every 21st.
    let last =
        (0..7).map(|back| epoch.checked_sub(back)).find(|e| e.is_some_and(|e| (e + u64::from(key)) % 7 == 0));
    let last = last.flatten()?;
    ((last + u64::from(key)) % 21 != 0)
        .then(|| format!("{key} in {last} {}", "x".repeat(key as usize % 90)).into_bytes())
}

/// Seals epoch after epoch on two cores and says on stdout what is durable.
fn write_until_killed(dir: &Path, seed: u64) {
    let Opened { store, mut cores, .. } =
        Store::builder(dir).cores(2).settings(settings()).open().expect("open in the child");
    // The test harness has begun a line of its own.
    println!("\nready");
    for round in 0_u64.. {
        let epoch = cores[0].epoch().get();
        for key in 0..120_u32 {
            if (epoch + u64::from(key)).is_multiple_of(7) {
                let core = &mut cores[key as usize % 2];
                match value_of(key, epoch) {
                    Some(value) => core.put(&key.to_le_bytes(), &value).expect("put"),
                    None => drop(core.delete(&key.to_le_bytes()).expect("delete")),
                }
            }
        }
        for core in &mut cores {
            core.set_source_offset("epochs", epoch);
            core.seal_epoch().expect("seal");
        }
        if (round + seed).is_multiple_of(3) {
            store.wait_durable(laminar_storage::Epoch(epoch)).expect("durable");
            println!("durable {epoch}");
        }
    }
}

/// The state after `epoch`, when the epochs in `gaps` never happened: a reopening skips numbers.
fn expected(epochs: &[u64]) -> HashMap<Vec<u8>, Vec<u8>> {
    let mut state = HashMap::new();
    for epoch in epochs {
        for key in 0..120_u32 {
            if (epoch + u64::from(key)).is_multiple_of(7) {
                match value_of(key, *epoch) {
                    Some(value) => drop(state.insert(key.to_le_bytes().to_vec(), value)),
                    None => drop(state.remove(key.to_le_bytes().as_slice())),
                }
            }
        }
    }
    state
}

#[test]
fn sigkill_at_any_moment_keeps_every_acknowledged_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut happened: Vec<u64> = Vec::new();
    let mut first_of_run = 1;
    for kill in 0..12_u64 {
        let mut child = spawn("torture", dir.path(), kill);
        let mut acked = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different number of acknowledgements each time, and a few kills before the first one.
        let wanted = (kill * 7) % 23;
        let mut heard = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(epoch) = line.strip_prefix("durable ") {
                acked = epoch.parse().unwrap();
                heard += 1;
            }
            if heard >= wanted && (wanted > 0 || line.starts_with("ready")) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let reader = StateReader::open(dir.path()).unwrap();
        let Opened { store, cores, report } =
            Store::builder(dir.path()).cores(2).settings(settings()).open().unwrap();
        let point = report.recovery_point.get();
        assert!(point >= acked, "kill {kill}: epoch {acked} was acknowledged, {point} came back");
        happened.extend(first_of_run..=point);
        let truth = expected(&happened);
        let found: HashMap<_, _> =
            cores.iter().flat_map(|core| core.iter()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert_eq!(found, truth, "kill {kill} at epoch {point}");
        assert_eq!(reader.report().recovery_point, report.recovery_point);
        assert_eq!(reader.len(), truth.len());
        if point > 0 {
            assert_eq!(report.source_offsets["epochs"], *happened.last().unwrap());
        }
        // The child opens once more; its epochs begin above ours.
        drop(cores);
        store.close().unwrap();
        first_of_run = next_epoch(dir.path());
    }
}

/// The first epoch that the next opening will use, found out by opening: that is harmless.
fn next_epoch(dir: &Path) -> u64 {
    let Opened { store, cores, .. } = Store::builder(dir).cores(2).settings(settings()).open().unwrap();
    let epoch = cores[0].epoch().get();
    store.close().unwrap();
    epoch
}
