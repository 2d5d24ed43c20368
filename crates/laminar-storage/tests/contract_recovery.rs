//! The contract's recovery items: the usage example of `incremental`, with an empty store and with
//! data, offsets and watermark put in first; the coordinator; and both recovery managers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointManager, RecoveredState, RecoveryConfig, RecoveryManager,
};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalError, PerCoreWalManager,
    RecoveryMode, recover_per_core,
};

#[test]
fn the_usage_example_with_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    let config = CheckpointConfig::new(&checkpoints)
        .with_wal_path(&wal)
        .with_interval(Duration::from_secs(60))
        .with_max_retained(3);
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    let metadata = manager.create_checkpoint(100).unwrap();
    println!("Created checkpoint {} at epoch {}", metadata.id, metadata.epoch);
    assert_eq!((metadata.epoch, metadata.wal_position), (0, 100));
    let recovery_config = RecoveryConfig::new(&checkpoints, &wal);
    let recovered = RecoveryManager::new(recovery_config).recover().unwrap();
    println!("Recovered to epoch {} with {} source offsets", recovered.epoch, recovered.source_offsets.len());
    assert_eq!((recovered.epoch, recovered.source_offsets.len()), (0, 0));
    assert_eq!(recovered.checkpoint_id, Some(metadata.id));
    assert_eq!(recovered.wal_position, 100);
    assert!(recovered.has_state() && recovered.is_empty());
}

#[test]
fn the_usage_example_with_data() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    let config = CheckpointConfig::new(&checkpoints).with_wal_path(&wal);
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    manager.put(b"key", b"value").unwrap();
    manager.set_epoch(9);
    manager.set_source_offset("orders/0".to_owned(), 1_234);
    manager.set_watermark(-5);
    let metadata = manager.create_checkpoint(100).unwrap();
    assert_eq!((metadata.epoch, metadata.key_count), (9, 1));
    let recovered = RecoveryManager::new(RecoveryConfig::new(&checkpoints, &wal)).recover().unwrap();
    assert_eq!((recovered.epoch, recovered.len(), recovered.watermark), (9, 1, Some(-5)));
    assert_eq!(recovered.get(b"key"), Some(b"value".as_slice()));
    assert_eq!(recovered.source_offsets.get("orders/0"), Some(&1_234));
    assert_eq!(recovered.iter().collect::<Vec<_>>(), [(b"key".as_slice(), b"value".as_slice())]);
}

#[test]
fn directories_that_do_not_exist_are_an_empty_state() {
    let dir = tempfile::tempdir().unwrap();
    let (none, wal) = (dir.path().join("none"), dir.path().join("no-wal"));
    let recovered = RecoveryManager::recover_simple(&none, &wal).unwrap();
    assert_eq!(recovered, RecoveredState { report: recovered.report.clone(), ..RecoveredState::empty() });
    assert!(!recovered.has_state() && !none.exists() && !wal.exists());
    assert_eq!(recover_per_core(&wal, &none, 4).unwrap().final_epoch, 0);
    std::fs::write(&none, b"a file").unwrap();
    assert!(RecoveryManager::recover_simple(&none, &wal).is_err());
}

/// A log of two cores: epoch 1 closed on both, epoch 2 on core 0 only, epoch 3 open.
fn half_closed_log(wal: &Path) {
    let mut manager = PerCoreWalManager::new(PerCoreWalConfig::new(wal, 2)).unwrap();
    manager.set_epoch_all(1).unwrap();
    manager.writer(0).append_put(b"a", b"1").unwrap();
    manager.writer(1).append_put(b"b", b"1").unwrap();
    manager.writer(1).append_commit(HashMap::from([("in".to_owned(), 10)]), Some(3)).unwrap();
    manager.write_epoch_barrier_all().unwrap();
    manager.set_epoch_all(2).unwrap();
    manager.writer(0).append_put(b"a", b"2").unwrap();
    manager.writer(1).append_delete(b"b").unwrap();
    manager.writer(0).append_epoch_barrier().unwrap();
    manager.set_epoch_all(3).unwrap();
    manager.writer(0).append_put(b"c", b"3").unwrap();
    manager.sync_all().unwrap();
}

#[test]
fn the_two_modes_differ_by_what_was_not_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    half_closed_log(&wal);
    let config = RecoveryConfig::new(&checkpoints, &wal).with_collect_state_changes(true);
    let all = RecoveryManager::new(config.clone()).recover().unwrap();
    assert_eq!((all.epoch, all.wal_entries_replayed, all.len()), (3, 5, 2));
    assert_eq!(all.get(b"a"), Some(b"2".as_slice()));
    assert_eq!(all.state_changes.len(), 5);
    let complete = config.clone().with_mode(RecoveryMode::CompleteEpochs);
    let complete = RecoveryManager::new(complete).recover().unwrap();
    assert_eq!((complete.epoch, complete.wal_entries_replayed, complete.len()), (1, 2, 2));
    assert_eq!(complete.get(b"b"), Some(b"1".as_slice()));
    assert_eq!((complete.source_offsets["in"], complete.watermark), (10, Some(3)));
    let some = RecoveryManager::new(config.with_max_wal_entries(2)).recover().unwrap();
    assert_eq!(some.wal_entries_replayed, 2);
    assert_eq!(RecoveryManager::recover_with_changes(&checkpoints, &wal).unwrap().state_changes.len(), 5);
}

#[test]
fn a_torn_tail_is_passed_over_reported_and_cut_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    half_closed_log(&wal);
    let config = PerCoreWalConfig::new(&wal, 2);
    let manager = PerCoreRecoveryManager::new(config, RecoveryConfig::new(&checkpoints, &wal));
    let whole = manager.segment_stats().unwrap();
    assert_eq!(whole.iter().map(|s| s.core_id).collect::<Vec<_>>(), [0, 1]);
    assert!(whole.iter().all(|s| s.entry_count > 0 && s.min_epoch == 1 && s.file_size > 0));
    assert_eq!(whole[0].max_epoch, 3);
    let path = whole[1].path.clone();
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, [good.as_slice(), b"a write that a crash tore"].concat()).unwrap();
    let recovered = manager.recover().unwrap();
    assert_eq!(recovered.entries_replayed, 5);
    assert_eq!(recovered.report.cores[1].case, Some('C'));
    assert_eq!(recovered.report.cores[1].dropped_bytes, 25);
    assert_eq!(manager.repair_all_segments().unwrap(), 25);
    assert_eq!(std::fs::read(&path).unwrap(), good);
    assert_eq!(manager.repair_all_segments().unwrap(), 0);
    std::fs::write(&path, [good.as_slice(), b"torn again"].concat()).unwrap();
    let repairing = RecoveryConfig::new(&checkpoints, &wal).with_repair_wal(true);
    RecoveryManager::new(repairing).recover().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), good);
}

#[test]
fn per_core_recovery_shows_where_each_change_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    half_closed_log(&wal);
    let recovered = recover_per_core(&wal, &checkpoints, 2).unwrap();
    assert_eq!((recovered.final_epoch, recovered.entries_replayed), (3, 5));
    assert!(recovered.base_state.is_empty());
    let deleted = recovered.state_changes.iter().find(|change| change.value.is_none()).unwrap();
    assert_eq!((deleted.key.as_slice(), deleted.epoch, deleted.core_id), (b"b".as_slice(), 2, 1));
    assert_eq!(recovered.wal_positions.len(), 2);
    assert_eq!(recovered.get(b"b"), None);
    assert_eq!(recovered.state().len(), 2);
    let manager =
        PerCoreRecoveryManager::new(PerCoreWalConfig::new(&wal, 2), RecoveryConfig::new(&checkpoints, &wal));
    let again = manager.recover().unwrap();
    assert_eq!((again.state(), again.state_changes), (recovered.state(), recovered.state_changes.clone()));
    assert_eq!(manager.recover_wal_only().unwrap().len(), 9);
    let other = recover_per_core(&wal, &checkpoints, 3).unwrap_err();
    assert!(matches!(other, PerCoreWalError::InvalidCore(_)), "{other}");
}

#[test]
fn a_coordinator_makes_checkpoints_and_cuts_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (dir.path().join("checkpoints"), dir.path().join("wal"));
    let open = || {
        let config = PerCoreWalConfig::new(&wal, 2).with_segment_size(4096);
        let manager = PerCoreWalManager::new(config).unwrap();
        CheckpointCoordinator::new(manager, CheckpointConfig::new(&checkpoints).with_wal_path(&wal)).unwrap()
    };
    let mut coordinator = open();
    for id in 1..=6_u64 {
        for core in 0..2_usize {
            for key in 0..40_u32 {
                let key = format!("{core}-{key}");
                let writer = coordinator.wal_manager_mut().writer(core);
                writer.append_put(key.as_bytes(), format!("{id} {}", "x".repeat(100)).as_bytes()).unwrap();
            }
        }
        coordinator.commit(HashMap::from([("in".to_owned(), id)]), Some(7)).unwrap();
        let size = coordinator.wal_manager().total_size().unwrap();
        let metadata = if id == 2 {
            let metadata = coordinator.create_checkpoint_no_truncate(id).unwrap();
            assert!(coordinator.wal_manager().total_size().unwrap() >= size);
            metadata
        } else {
            coordinator.create_checkpoint(id).unwrap()
        };
        assert_eq!((metadata.id, metadata.epoch), (id, coordinator.epoch()));
        assert_eq!((coordinator.source_offsets()["in"], coordinator.watermark()), (id, Some(7)));
    }
    assert!(matches!(coordinator.create_checkpoint(6), Err(PerCoreWalError::Checkpoint(_))), "used already");
    assert_eq!(coordinator.list_checkpoints().unwrap().iter().map(|m| m.id).collect::<Vec<_>>(), [6, 5, 4]);
    assert_eq!(coordinator.checkpoint_manager().get(b"1-39").unwrap().unwrap()[..2], *b"6 ");
    coordinator.wal_manager_mut().writer(1).append_put(b"tail", b"kept").unwrap();
    coordinator.flush().unwrap();
    let written: u64 = coordinator.wal_manager().positions().iter().sum();
    assert!(coordinator.wal_manager().total_size().unwrap() < written, "the log was cut");
    drop(coordinator);
    let recovered = recover_per_core(&wal, &checkpoints, 2).unwrap();
    assert_eq!((recovered.base_state.checkpoint_id, recovered.base_state.len()), (Some(6), 80));
    assert_eq!((recovered.entries_replayed, recovered.get(b"tail")), (1, Some(b"kept".as_slice())));
    assert_eq!(recovered.base_state.source_offsets["in"], 6);
    // Goes on where it was, with the tail in the next checkpoint.
    let mut coordinator = open();
    coordinator.create_checkpoint(7).unwrap();
    assert_eq!(
        coordinator.checkpoint_manager_mut().get(b"tail").unwrap().as_deref(),
        Some(b"kept".as_slice())
    );
}

/// A store of one core took over only the first core's offsets from a coordinator's checkpoint of a log
/// of two cores, whose state is laid out for one.
#[test]
fn a_store_of_one_core_takes_over_the_offsets_of_a_log_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let wal = PerCoreWalManager::new(PerCoreWalConfig::new(&dir.path().join("wal"), 2)).unwrap();
    let config = CheckpointConfig::new(&dir.path().join("checkpoints"));
    let mut coordinator = CheckpointCoordinator::new(wal, config).unwrap();
    for (core, name) in [(0, "s0"), (1, "s1")] {
        let writer = coordinator.wal_manager_mut().writer(core);
        writer.append_put(name.as_bytes(), b"value").unwrap();
        writer.append_commit(HashMap::from([(name.to_owned(), 5)]), Some(4)).unwrap();
    }
    coordinator.create_checkpoint(1).unwrap();
    drop(coordinator);
    for _ in 0..2 {
        let opened = laminar_storage::Store::builder(dir.path()).cores(1).open().unwrap();
        assert_eq!(opened.report.source_offsets.len(), 2);
        assert_eq!((opened.report.watermark, opened.cores[0].len()), (Some(4), 2));
        opened.store.checkpoint().unwrap();
    }
}
