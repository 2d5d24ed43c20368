//! The digest that is stored with a state is compared by everything that recovers it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::format::checksum::Salt;
use laminar_storage::format::fields::Fields;
use laminar_storage::format::frame::{FRAME_HEADER_LEN, FrameHeader};
use laminar_storage::format::record::Record;
use laminar_storage::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader};
use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointManager, IncrementalCheckpointMetadata, RecoveryConfig,
    RecoveryManager, validate_checkpoint_in,
};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalManager, RecoveryMode,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{CoreId, DigestCheck, Epoch, Opened, Router, Settings, StateReader, Store, StoreError};

const WAL: &str = "/s/wal";
const CHECKPOINTS: &str = "/s/checkpoints";
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn vfs(disk: &SimDisk) -> Arc<dyn Vfs> {
    Arc::new(disk.clone())
}

fn open(disk: &SimDisk, cores: usize) -> Result<Opened, StoreError> {
    let settings = Settings {
        preallocate_bytes: 0,
        state_limit_bytes: 4 << 20,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        ..Settings::default()
    };
    Store::builder("/s").cores(cores).settings(settings).vfs(vfs(disk)).open()
}

/// Puts the keys where the router says, in an epoch of their own.
fn commit(opened: &mut Opened, keys: &[&str], value: &str) -> Epoch {
    let cores = opened.cores.len();
    for key in keys {
        let core = Router::default().route(key.as_bytes(), cores);
        opened.cores[core].put(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let sealed = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).max().unwrap();
    opened.store.wait_durable(sealed).unwrap();
    sealed
}

/// Two cores, a checkpoint of epoch 1 and the log of epochs 2 and 3.
fn checkpoint_and_log() -> SimDisk {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 2).unwrap();
    assert_eq!(commit(&mut opened, &KEYS, "1"), Epoch(1));
    opened.store.checkpoint().unwrap();
    commit(&mut opened, &KEYS[..4], "2");
    assert_eq!(commit(&mut opened, &KEYS[2..], "3"), Epoch(3));
    drop(opened);
    disk
}

/// The newest checkpoint's directory.
fn newest_checkpoint(disk: &SimDisk) -> PathBuf {
    let names = disk.read_dir(Path::new(CHECKPOINTS)).unwrap().into_iter().map(|(name, _)| name);
    Path::new(CHECKPOINTS).join(names.filter(|name| name != "LOCK").max().unwrap())
}

fn without(disk: &SimDisk, dir: &Path) {
    for (name, _) in disk.read_dir(dir).unwrap() {
        disk.remove(dir.join(name)).unwrap();
    }
    disk.remove(dir).unwrap();
}

/// Another digest of a core in the newest checkpoint's manifest, whose checksum is right.
fn forge_manifest(disk: &SimDisk, core: usize) {
    let path = newest_checkpoint(disk).join("metadata.json");
    let text = String::from_utf8(disk.read_file(&path).unwrap()).unwrap();
    let mut metadata = IncrementalCheckpointMetadata::from_json(&text).unwrap();
    metadata.digests[core].digest ^= 1;
    disk.overwrite(&path, metadata.to_json().unwrap().as_bytes()).unwrap();
}

/// Another digest in the barrier that closes an epoch on a core, in a frame whose checksums are right.
fn forge_barrier(disk: &SimDisk, core: u16, epoch: u64) {
    let names = disk.read_dir(Path::new(WAL)).unwrap().into_iter().map(|(name, _)| name);
    let forged = names.filter(|name| name.starts_with(&format!("wal-{core}."))).filter(|name| {
        let path = Path::new(WAL).join(name);
        let mut bytes = disk.read_file(&path).unwrap();
        let forged = forge_in(&mut bytes, CoreId(core), Epoch(epoch));
        disk.overwrite(&path, &bytes).unwrap();
        forged
    });
    assert_eq!(forged.count(), 1, "core {core}, epoch {epoch}");
}

fn forge_in(segment: &mut [u8], core: CoreId, epoch: Epoch) -> bool {
    let salt = SegmentHeader::decode(&segment[..SEGMENT_HEADER_LEN]).unwrap().salt();
    let mut at = SEGMENT_HEADER_LEN;
    while let Some(bytes) = segment[at..].first_chunk() {
        let Ok(frame) = FrameHeader::decode(bytes, &salt, at as u64, core) else { return false };
        let padded = &mut segment[at + FRAME_HEADER_LEN..at + frame.frame_len()];
        if frame.epoch == epoch && flip_digest(padded, frame.records) {
            seal(segment, at, frame, &salt);
            return true;
        }
        at += frame.frame_len();
    }
    false
}

/// Flips a bit of the digest of the barrier among these records, if there is one.
fn flip_digest(payload: &mut [u8], records: u32) -> bool {
    let mut fields = Fields::new(payload);
    for _ in 0..records {
        let (record, _) = Record::decode(&mut fields).unwrap();
        if matches!(record, Record::Barrier { digest: Some(_), .. }) {
            // Behind the digest stand the live keys, eight bytes each.
            let digest = payload.len() - fields.remaining() - 16;
            payload[digest] ^= 1;
            return true;
        }
    }
    false
}

fn seal(segment: &mut [u8], at: usize, mut frame: FrameHeader, salt: &Salt) {
    frame.payload_crc = salt.crc(&[&segment[at + FRAME_HEADER_LEN..at + frame.frame_len()]]);
    segment[at..at + FRAME_HEADER_LEN].copy_from_slice(&frame.encode(salt, at as u64));
}

fn config(disk: &SimDisk, mode: RecoveryMode) -> RecoveryConfig {
    RecoveryConfig::new(Path::new(CHECKPOINTS), Path::new(WAL)).with_vfs(vfs(disk)).with_mode(mode)
}

fn log_config(disk: &SimDisk, cores: usize) -> PerCoreWalConfig {
    PerCoreWalConfig::new(Path::new(WAL), cores).with_vfs(vfs(disk))
}

/// What everything says that recovers without opening a store: how the digest was compared, or the error.
fn recoveries(disk: &SimDisk, cores: usize) -> Vec<(&'static str, Result<DigestCheck, String>)> {
    use RecoveryMode::{AllSynced, CompleteEpochs};
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let recover = |config: RecoveryConfig| {
        let recovered = RecoveryManager::new(config).recover();
        recovered.map(|state| state.report.digest).map_err(|error| text(&error))
    };
    let per_core = |mode| {
        let recovered = PerCoreRecoveryManager::new(log_config(disk, cores), config(disk, mode)).recover();
        recovered.map(|state| state.report.digest).map_err(|error| text(&error))
    };
    let reader = StateReader::open_with("/s", vfs(disk));
    vec![
        ("reader", reader.map(|reader| reader.report().digest).map_err(|error| text(&error))),
        ("plain", recover(config(disk, AllSynced))),
        ("epochs", recover(config(disk, CompleteEpochs))),
        ("plain, changes kept", recover(config(disk, AllSynced).with_collect_state_changes(true))),
        ("per core, plain", per_core(AllSynced)),
        ("per core, epochs", per_core(CompleteEpochs)),
    ]
}

fn all_say(disk: &SimDisk, cores: usize, expected: DigestCheck) {
    for (by, told) in recoveries(disk, cores) {
        assert_eq!(told, Ok(expected), "{by}");
    }
}

/// Each refuses, and says all of this.
fn all_refuse(disk: &SimDisk, cores: usize, parts: &[&str]) {
    for (by, told) in recoveries(disk, cores) {
        let told = told.unwrap_err();
        assert!(told.contains("does not have the digest that was stored with it"), "{by}: {told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{by}, {parts:?}: {told}");
    }
}

#[test]
fn a_wrong_digest_in_a_barrier_is_refused_by_every_recovery_with_core_and_epochs() {
    let disk = checkpoint_and_log();
    all_say(&disk, 2, DigestCheck::Verified);
    for core in [0, 1] {
        let disk = disk.snapshot().flushed().mount();
        forge_barrier(&disk, core, 3);
        let named = format!("core {core}");
        all_refuse(&disk, 2, &["after epoch 2", "epoch 3", &named, WAL, "nothing was changed"]);
        let error = open(&disk, 2).unwrap_err().to_string();
        assert!(error.contains(&named) && error.contains("after epoch 1"), "{error}");
        // With other cores, whose keys are on others then, and by what makes checkpoints of it from now on.
        for cores in [1, 3] {
            let error = open(&disk, cores).unwrap_err().to_string();
            assert!(error.contains(&named) && error.contains("after epoch 2"), "{cores}: {error}");
        }
        let log = PerCoreWalManager::new(log_config(&disk, 2)).unwrap();
        let error = CheckpointCoordinator::new(log, CheckpointConfig::new(Path::new(CHECKPOINTS)));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&named) && error.contains("after epoch 2"), "{error}");
    }
    // The last one counts, in opening a store too.
    forge_barrier(&disk, 0, 2);
    all_say(&disk, 2, DigestCheck::Verified);
    open(&disk, 2).unwrap();
}

#[test]
fn a_wrong_digest_in_a_checkpoint_is_refused_by_everything_that_begins_with_it() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 2).unwrap();
    commit(&mut opened, &KEYS, "1");
    opened.store.checkpoint().unwrap();
    drop(opened);
    all_say(&disk, 2, DigestCheck::Verified);
    forge_manifest(&disk, 1);
    let dir = newest_checkpoint(&disk);
    all_refuse(&disk, 2, &["core 1", "after epoch 1", dir.to_str().unwrap()]);
    let says_which = |by: &str, error: &dyn std::fmt::Display| {
        let told = error.to_string();
        assert!(["core 1", "epoch 1", "digest"].iter().all(|part| told.contains(part)), "{by}: {told}");
    };
    says_which("verify", &validate_checkpoint_in(&disk, &dir).unwrap_err());
    let checkpoints = CheckpointConfig::new(Path::new(CHECKPOINTS));
    says_which(
        "manager",
        &IncrementalCheckpointManager::with_vfs(checkpoints.clone(), vfs(&disk)).unwrap_err(),
    );
    let log = PerCoreWalManager::new(log_config(&disk, 2)).unwrap();
    says_which("coordinator", &CheckpointCoordinator::new(log, checkpoints).unwrap_err());
    says_which("store", &open(&disk, 2).unwrap_err());
}

/// The plain view has an epoch that only one core closed. It is compared too, and an error there is none of the epochs that
/// all cores closed.
#[test]
fn an_epoch_that_one_core_closed_is_compared_where_it_is_shown() {
    let disk = checkpoint_and_log();
    let mut opened = open(&disk, 2).unwrap();
    let closed = commit(&mut opened, &KEYS[..1], "4").get();
    opened.cores[0].put(b"open", b"x").unwrap();
    let half = opened.cores[0].seal_epoch().unwrap().get();
    drop(opened);
    all_say(&disk, 2, DigestCheck::Verified);
    let plain = |disk: &SimDisk| RecoveryManager::new(config(disk, RecoveryMode::AllSynced)).recover();
    assert_eq!(plain(&disk).unwrap().get(b"open"), Some(&b"x"[..]));
    let forged = disk.snapshot().flushed().mount();
    forge_barrier(&forged, 0, half);
    let told = plain(&forged).unwrap_err().to_string();
    let (after, at) = (format!("after epoch {closed}"), format!("epoch {half}"));
    assert!(told.contains("core 0") && told.contains(&after) && told.contains(&at), "{told}");
    // A coordinator's next checkpoint would have it too.
    let coordinator = |disk: &SimDisk| {
        let log = PerCoreWalManager::new(log_config(disk, 2)).unwrap();
        CheckpointCoordinator::new(log, CheckpointConfig::new(Path::new(CHECKPOINTS)))
    };
    let told = coordinator(&forged.snapshot().flushed().mount()).unwrap_err().to_string();
    assert!(told.contains("core 0") && told.contains(&after) && told.contains(&at), "{told}");
    coordinator(&disk.snapshot().flushed().mount()).unwrap();
    assert_eq!(StateReader::open_with("/s", vfs(&forged)).unwrap().get(b"open"), None);
    forge_barrier(&disk, 1, closed);
    all_refuse(&disk, 2, &["core 1", &format!("epoch {closed}")]);
}

/// Another number of cores, and the checkpoint of the re-sharding is gone: the sum of all cores is compared, and whose keys
/// are wrong is not known.
#[test]
fn behind_a_resharding_the_whole_state_is_compared() {
    for (from, to) in [(3, 2), (2, 3), (3, 1)] {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk, from).unwrap();
        commit(&mut opened, &KEYS, "1");
        drop(opened);
        let mut opened = open(&disk, to).unwrap();
        let last = commit(&mut opened, &KEYS[..3], "2").get();
        drop(opened);
        all_say(&disk, to, DigestCheck::Verified);
        without(&disk, &newest_checkpoint(&disk));
        all_say(&disk, to, DigestCheck::Verified);
        forge_barrier(&disk, 0, last);
        // What the old layout had closed was right.
        all_refuse(&disk, to, &["after epoch 1", &format!("epoch {last}")]);
        let names_a_core =
            recoveries(&disk, to).iter().any(|(_, told)| told.clone().unwrap_err().contains("core 0"));
        assert_eq!(names_a_core, to == 1);
    }
}

/// What `docs/RECOVERY.md` advises for a key that was written on two cores, tried.
#[test]
fn a_key_on_two_cores_is_refused_by_a_coordinator_until_it_is_deleted_on_one() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 2).unwrap();
    opened.cores[0].put(b"twice", b"0").unwrap();
    opened.cores[1].put(b"twice", b"1").unwrap();
    commit(&mut opened, &KEYS, "1");
    drop(opened);
    let coordinator = || {
        let log = PerCoreWalManager::new(log_config(&disk, 2)).unwrap();
        CheckpointCoordinator::new(log, CheckpointConfig::new(Path::new(CHECKPOINTS)))
    };
    let told = coordinator().unwrap_err().to_string();
    assert!(told.contains("If one key was written on two cores"), "{told}");
    let mut opened = open(&disk, 2).unwrap();
    assert!(opened.cores[1].delete(b"twice").unwrap());
    commit(&mut opened, &[], "");
    opened.store.checkpoint().unwrap();
    drop(opened);
    coordinator().unwrap();
    let recovered = RecoveryManager::new(config(&disk, RecoveryMode::AllSynced)).recover().unwrap();
    assert_eq!(recovered.get(b"twice"), Some(&b"0"[..]));
}

/// Low-level functions write any key on any core, and store no digest. What the store left below is compared, and what a
/// store wrote on top of theirs.
#[test]
fn what_low_level_functions_write_on_a_store_is_recovered_and_what_is_below_is_compared() {
    let disk = checkpoint_and_log();
    let mut log = PerCoreWalManager::new(log_config(&disk, 2)).unwrap();
    for core in [1, 0] {
        for key in KEYS {
            log.writer(core).append_put(key.as_bytes(), &[b'p', u8::try_from(core).unwrap()]).unwrap();
        }
    }
    log.sync_all().unwrap();
    drop(log);
    for (by, told) in recoveries(&disk, 2) {
        // Complete epochs are the store's alone.
        let expected = if by.contains("epochs") { DigestCheck::Verified } else { DigestCheck::NotStored };
        assert_eq!(told, Ok(expected), "{by}");
    }
    let forged = disk.snapshot().flushed().mount();
    forge_barrier(&forged, 1, 3);
    all_refuse(&forged, 2, &["core 1", "after epoch 2", "epoch 3"]);
    // A store goes on, and the checkpoint with which it began is gone.
    let mut opened = open(&disk, 2).unwrap();
    let last = commit(&mut opened, &KEYS[..2], "4").get();
    drop(opened);
    without(&disk, &newest_checkpoint(&disk));
    all_say(&disk, 2, DigestCheck::Verified);
    forge_barrier(&disk, 1, last);
    all_refuse(&disk, 2, &["after epoch 3", &format!("epoch {last}")]);
}

/// A coordinator's checkpoint of a store's state has none.
#[test]
fn checkpoints_and_logs_without_digests_are_recovered_as_before() {
    let disk = checkpoint_and_log();
    let log = PerCoreWalManager::new(log_config(&disk, 2)).unwrap();
    let checkpoints = CheckpointConfig::new(Path::new(CHECKPOINTS));
    let mut coordinator = CheckpointCoordinator::new(log, checkpoints).unwrap();
    coordinator.wal_manager_mut().writer(1).append_put(b"a", b"low").unwrap();
    let id = coordinator.checkpoint_manager().next_checkpoint_id().unwrap().get();
    coordinator.create_checkpoint(id).unwrap();
    coordinator.wal_manager_mut().writer(0).append_put(b"a", b"lower").unwrap();
    coordinator.flush().unwrap();
    drop(coordinator);
    all_say(&disk, 2, DigestCheck::NotStored);
    let recovered = RecoveryManager::new(config(&disk, RecoveryMode::AllSynced)).recover().unwrap();
    assert_eq!((recovered.get(b"a"), recovered.get(b"h")), (Some(&b"lower"[..]), Some(&b"3"[..])));
}

/// Regression: a recovery that was told to stop after so many changes called what it came to verified.
#[test]
fn a_state_that_was_cut_short_is_not_called_verified() {
    let disk = checkpoint_and_log();
    for mode in [RecoveryMode::CompleteEpochs, RecoveryMode::AllSynced] {
        let all = RecoveryManager::new(config(&disk, mode)).recover().unwrap();
        assert_eq!(all.report.digest, DigestCheck::Verified);
        for most in 0..all.wal_entries_replayed {
            let short = config(&disk, mode).with_max_wal_entries(most);
            let short = RecoveryManager::new(short).recover().unwrap();
            assert_eq!((short.wal_entries_replayed, short.report.digest), (most, DigestCheck::NotStored));
        }
    }
}
