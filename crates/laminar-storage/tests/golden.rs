//! Files written by version 1 of the format stay readable, with exactly the content that was written.
//!
//! `examples/write_fixture.rs` wrote them; `docs/FORMAT.md` says when that is to be done again. What is
//! expected here is stated independently of that program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use laminar_storage::incremental::validate_checkpoint;
use laminar_storage::per_core_wal::{
    PerCoreWalConfig, PerCoreWalEntry, PerCoreWalManager, WalOperation, recover_per_core,
};
use laminar_storage::{
    CheckpointId, CoreStore, DigestCheck, Epoch, Opened, Router, Settings, StateReader, Store,
};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1").join(name)
}

/// All files below a directory, by relative path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// A copy that a test may change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (path, bytes) in files(&fixture(name)) {
        let path = copy.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    copy
}

/// The state at the end of the epoch of checkpoint 1, of checkpoint 2, and of the recovery point.
fn expected(stage: u32) -> State {
    let mut state = State::new();
    for n in 0..40 {
        let value = match (stage, n % 5, n % 4, n % 10) {
            (3, 0, ..) => format!("third-{n}"),
            (2 | 3, _, 0, _) => format!("second-{n}"),
            (2 | 3, _, _, 3) => continue,
            _ => format!("first-{n}"),
        };
        state.insert(format!("key-{n:02}").into_bytes(), value.into_bytes());
    }
    if stage == 3 {
        state.insert(Vec::new(), b"the empty key".to_vec());
        state.insert(b"empty value".to_vec(), Vec::new());
    }
    state
}

fn open(dir: &Path, cores: usize) -> Opened {
    let settings = Settings { preallocate_bytes: 0, checkpoint_interval_ms: 0, ..Settings::default() };
    Store::builder(dir).cores(cores).settings(settings).open().unwrap()
}

fn contents(cores: &[CoreStore]) -> State {
    cores.iter().flat_map(|core| core.iter()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

fn offsets(from: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("orders/0".to_owned(), from), ("orders/1".to_owned(), from + 1)])
}

#[test]
fn a_store_of_version_1_opens_with_exactly_its_content() {
    let dir = copy_of("store");
    let Opened { store, cores, report } = open(dir.path(), 2);
    assert_eq!(report.recovery_point, Epoch(4));
    assert_eq!(report.checkpoint, Some(CheckpointId(2)));
    assert!(report.checkpoints_skipped.is_empty());
    assert_eq!(report.digest, DigestCheck::Verified);
    assert_eq!(report.source_offsets, offsets(300));
    assert_eq!(report.watermark, Some(15));
    assert_eq!(report.keys, 38);
    assert_eq!(report.resharded_from, None);
    let cases: Vec<_> = report.cores.iter().map(|core| core.case).collect();
    assert_eq!(cases, [Some('B'), Some('B')]);
    assert_eq!(report.cores.iter().map(|core| core.replayed).sum::<u64>(), 10);
    assert_eq!(contents(&cores), expected(3));
    for (index, core) in cores.iter().enumerate() {
        assert!(core.epoch() > Epoch(4), "what was used is not used again");
        assert_eq!(core.watermark(), Some([15, 70][index]));
        assert!(core.iter().all(|(key, _)| Router::default().route(key, 2) == index));
    }
    drop(cores);
    store.close().unwrap();
}

#[test]
fn a_store_of_version_1_can_be_written_on_and_opens_again() {
    let dir = copy_of("store");
    let mut state = expected(3);
    let Opened { store, mut cores, .. } = open(dir.path(), 2);
    let mut sealed = Epoch::ZERO;
    for core in &mut cores {
        let key = core.core_id().get().to_le_bytes();
        core.put(&key, b"new").unwrap();
        state.insert(key.to_vec(), b"new".to_vec());
        sealed = core.seal_epoch().unwrap();
    }
    store.wait_durable(sealed).unwrap();
    assert_eq!(store.checkpoint().unwrap().id, CheckpointId(3));
    store.close().unwrap();
    let Opened { cores, report, .. } = open(dir.path(), 2);
    assert_eq!((report.recovery_point, report.checkpoint), (sealed, Some(CheckpointId(3))));
    assert_eq!(contents(&cores), state);
}

#[test]
fn a_store_of_version_1_is_resharded() {
    let dir = copy_of("store");
    let Opened { cores, report, .. } = open(dir.path(), 3);
    assert_eq!(report.resharded_from, Some(2));
    assert_eq!(report.recovery_point, Epoch(4));
    assert_eq!(report.source_offsets, offsets(300));
    assert_eq!(contents(&cores), expected(3));
}

#[test]
fn a_reader_sees_the_same_and_changes_no_byte() {
    let dir = copy_of("store");
    let reader = StateReader::open(dir.path()).unwrap();
    assert_eq!(reader.report().recovery_point, Epoch(4));
    assert_eq!(reader.report().source_offsets, offsets(300));
    assert_eq!(reader.report().watermark, Some(15));
    let state: State = reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    assert_eq!(state, expected(3));
    assert_eq!(files(dir.path()), files(&fixture("store")));
}

#[test]
fn checkpoints_of_version_1_are_valid_each_on_its_own() {
    let dir = copy_of("store");
    let checkpoints = dir.path().join("checkpoints");
    for (id, epoch, from, watermark, parent) in [(1, 1, 100, -5, None), (2, 3, 200, 5, Some(1))] {
        let path = checkpoints.join(format!("checkpoint_{id:016x}"));
        let metadata = validate_checkpoint(&path).unwrap();
        assert_eq!((metadata.id, metadata.epoch, metadata.parent_id), (id, epoch, parent));
        assert_eq!(metadata.source_offsets, offsets(from));
        assert_eq!(metadata.watermark, Some(watermark));
        assert_eq!(metadata.key_count, expected(u32::try_from(id).unwrap()).len() as u64);
        assert_eq!((metadata.core_count, metadata.bound_to_wal), (2, true));
        assert_eq!((metadata.wal_cuts.len(), metadata.digests.len()), (2, 2));
        assert_eq!(metadata.is_incremental, id == 2);
        assert_eq!(metadata.sst_files.len(), usize::try_from(id).unwrap() * 2);
        // The other one may be gone.
        let alone = tempfile::tempdir().unwrap();
        for (name, bytes) in files(&path) {
            fs::write(alone.path().join(name), bytes).unwrap();
        }
        assert_eq!(validate_checkpoint(alone.path()).unwrap(), metadata);
    }
}

#[test]
fn without_its_newest_checkpoint_a_store_of_version_1_recovers_the_same_from_the_one_before() {
    let dir = copy_of("store");
    fs::remove_file(dir.path().join("checkpoints/checkpoint_0000000000000002/metadata.json")).unwrap();
    let Opened { cores, report, .. } = open(dir.path(), 2);
    assert_eq!(report.checkpoint, Some(CheckpointId(1)));
    assert_eq!(report.checkpoints_skipped, [CheckpointId(2)]);
    assert_eq!((report.recovery_point, report.digest), (Epoch(4), DigestCheck::Verified));
    assert_eq!(contents(&cores), expected(3));
}

fn log_config(dir: &Path) -> PerCoreWalConfig {
    PerCoreWalConfig::new(dir, 2).with_segment_size(4096)
}

/// What each core wrote, in order.
fn operations(entries: &[PerCoreWalEntry], core: usize) -> Vec<(u64, WalOperation)> {
    let of_core = entries.iter().filter(|entry| entry.core_id == core);
    of_core.map(|entry| (entry.epoch, entry.operation.clone())).collect()
}

fn put(key: &str, value: &[u8]) -> WalOperation {
    WalOperation::Put { key: key.into(), value: value.into() }
}

#[test]
fn a_log_of_version_1_is_continued() {
    let dir = copy_of("log");
    let mut log = PerCoreWalManager::new(log_config(dir.path())).unwrap();
    let entries = log.merge_segments().unwrap();
    assert!(entries.is_sorted());
    let mut first: Vec<_> = (0..60).map(|n| (1, put(&format!("key-{n:02}"), &[b'v'; 100]))).collect();
    first.push((1, WalOperation::EpochBarrier { epoch: 1 }));
    first.push((2, put("key-00", b"changed")));
    first.push((2, WalOperation::Checkpoint { id: 7 }));
    assert_eq!(operations(&entries, 0), first);
    let commit =
        WalOperation::Commit { offsets: HashMap::from([("orders".to_owned(), 60)]), watermark: Some(-1) };
    let second = [
        (1, put("gone", b"soon")),
        (1, WalOperation::Delete { key: b"gone".to_vec() }),
        (1, commit),
        (1, WalOperation::EpochBarrier { epoch: 1 }),
        (2, put("last", b"")),
    ];
    assert_eq!(operations(&entries, 1), second);
    assert_eq!(log.epoch(), 3);
    log.writer(1).append_put(b"more", b"1").unwrap();
    log.sync_all().unwrap();
    assert_eq!(log.merge_segments().unwrap().len(), entries.len() + 1);
}

#[test]
fn a_log_of_version_1_is_recovered_also_with_a_torn_end() {
    for torn in [false, true] {
        let dir = copy_of("log");
        if torn {
            // A write that a crash tore: bytes behind the last frame that are none.
            let newest = dir.path().join("wal-0.00000002.00000003.log");
            let mut bytes = fs::read(&newest).unwrap();
            bytes.extend_from_slice(&[0x5a; 100]);
            fs::write(&newest, bytes).unwrap();
        }
        let recovered = recover_per_core(dir.path(), &dir.path().join("none"), 2).unwrap();
        let mut state: State =
            (0..60).map(|n| (format!("key-{n:02}").into_bytes(), vec![b'v'; 100])).collect();
        state.insert(b"key-00".to_vec(), b"changed".to_vec());
        state.insert(b"last".to_vec(), Vec::new());
        let found: State = recovered.state().into_iter().collect();
        assert_eq!(found, state);
        assert_eq!((recovered.final_epoch, recovered.entries_replayed), (2, 64));
        assert_eq!(recovered.base_state.source_offsets, BTreeMap::from([("orders".to_owned(), 60)]));
        assert_eq!(recovered.base_state.watermark, Some(-1));
        let cores: Vec<_> = recovered.report.cores.iter().map(|c| (c.case, c.dropped_bytes)).collect();
        let first = if torn { (Some('C'), 100) } else { (Some('B'), 0) };
        assert_eq!(cores, [first, (Some('B'), 0)]);
    }
}

#[test]
fn the_fixtures_stay_small() {
    let total: usize =
        ["store", "log"].iter().flat_map(|name| files(&fixture(name))).map(|(_, b)| b.len()).sum();
    assert!(total < 100 << 10, "{total} bytes");
}
