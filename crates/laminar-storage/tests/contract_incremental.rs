//! The public contract of `laminar_storage::incremental`, as a program outside uses it: names, call
//! shapes, and what they do, in real directories.
#![allow(clippy::unwrap_used)] // also in the helpers, which are not seen as tests

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointError, IncrementalCheckpointManager,
    IncrementalCheckpointMetadata, StateMap, validate_checkpoint, wal_size,
};

fn open(dir: &Path) -> IncrementalCheckpointManager {
    IncrementalCheckpointManager::new(CheckpointConfig::new(dir)).unwrap()
}

#[test]
fn config() {
    let config = CheckpointConfig::new(Path::new("/data/checkpoints"))
        .with_wal_path(Path::new("/data/wal"))
        .with_interval(Duration::from_secs(7))
        .with_max_retained(5)
        .with_truncate_wal(false)
        .with_min_wal_size(9)
        .with_incremental(false);
    config.validate().unwrap();
    assert_eq!(config.checkpoint_dir, Path::new("/data/checkpoints"));
    assert_eq!(config.wal_path.as_deref(), Some(Path::new("/data/wal")));
    assert_eq!(config.interval, Duration::from_secs(7));
    assert_eq!(config.max_retained, 5);
    assert!(!config.truncate_wal);
    assert_eq!(config.min_wal_size_for_checkpoint, 9);
    assert!(!config.incremental);
    let error = config.with_max_retained(0).validate().unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)));
    assert!(error.to_string().contains("max_retained is 0"), "{error}");
}

#[test]
fn the_documented_example() {
    let root = tempfile::tempdir().unwrap();
    let (checkpoints, wal) = (root.path().join("data/checkpoints"), root.path().join("data/wal"));
    let config = CheckpointConfig::new(&checkpoints)
        .with_wal_path(&wal)
        .with_interval(Duration::from_secs(60))
        .with_max_retained(3);
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    let metadata = manager.create_checkpoint(100).unwrap();
    println!("Created checkpoint {} at epoch {}", metadata.id, metadata.epoch);
    assert_eq!((metadata.id, metadata.epoch, metadata.wal_position), (1, 0, 100));
}

#[test]
fn a_new_directory_is_empty() {
    let root = tempfile::tempdir().unwrap();
    let manager = open(&root.path().join("a/b"));
    assert_eq!(manager.latest_checkpoint_id(), None);
    assert_eq!(manager.epoch(), 0);
    assert_eq!(manager.watermark(), None);
    assert!(manager.source_offsets().is_empty());
    assert!(manager.find_latest_checkpoint().unwrap().is_none());
    assert!(manager.list_checkpoints().unwrap().is_empty());
    assert!(manager.load_checkpoint_metadata(1).unwrap().is_none());
    assert!(matches!(manager.load_checkpoint_state(1), Err(IncrementalCheckpointError::NotFound(_))));
    assert!(!manager.should_checkpoint());
}

#[test]
fn what_was_put_is_in_the_next_checkpoint_and_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    manager.put(b"kept", b"1").unwrap();
    manager.put(b"gone", b"2").unwrap();
    manager.set_epoch(42);
    manager.set_source_offset("orders/0".to_string(), 1_234);
    manager.set_watermark(-7);
    let first = manager.create_checkpoint(1000).unwrap();
    assert_eq!((first.epoch, first.wal_position, first.key_count), (42, 1000, 2));
    assert_eq!((first.parent_id, first.is_incremental), (None, false));
    assert_eq!(first.source_offsets.get("orders/0"), Some(&1_234));
    assert_eq!(first.watermark, Some(-7));
    assert!(first.timestamp > 1_600_000_000_000, "milliseconds since the Unix epoch");
    assert!(first.size_bytes > 0 && first.sst_files.len() == 1);

    manager.delete(b"gone").unwrap();
    manager.apply_batch(&[(b"new".to_vec(), Some(b"3".to_vec())), (b"absent".to_vec(), None)]).unwrap();
    manager.apply_batch([("borrowed", Some("4"))]).unwrap();
    assert_eq!(manager.get(b"gone").unwrap(), None);
    let second = manager.create_checkpoint(2000).unwrap();
    assert_eq!((second.parent_id, second.is_incremental, second.key_count), (Some(first.id), true, 3));
    drop(manager);

    let mut manager = open(root.path());
    assert_eq!(manager.epoch(), 42);
    assert_eq!(manager.watermark(), Some(-7));
    assert_eq!(manager.source_offsets().get("orders/0"), Some(&1_234));
    assert_eq!(manager.latest_checkpoint_id(), Some(second.id));
    assert_eq!(manager.get(b"kept").unwrap(), Some(b"1".to_vec()));
    assert_eq!(manager.get(b"gone").unwrap(), None);
    assert_eq!(manager.find_latest_checkpoint().unwrap(), Some(second.clone()));
    assert_eq!(manager.load_checkpoint_metadata(first.id).unwrap(), Some(first.clone()));

    let state: StateMap = manager.load_checkpoint_state(second.id).unwrap();
    assert_eq!((state.len(), state.is_empty()), (3, false));
    assert_eq!(state.get(b"new"), Some(b"3".as_slice()));
    let all: BTreeMap<&[u8], &[u8]> = state.iter().collect();
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [b"borrowed".as_slice(), b"kept", b"new"]);
    let old = manager.load_checkpoint_state(first.id).unwrap();
    assert_eq!(old.get(b"gone"), Some(b"2".as_slice()));

    let third = manager.create_checkpoint(3000).unwrap();
    assert_eq!((third.id, third.key_count, third.written_bytes()), (3, 3, 0));
}

#[test]
fn listing_retention_and_deletion() {
    let root = tempfile::tempdir().unwrap();
    let config = CheckpointConfig::new(root.path()).with_max_retained(4);
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    for epoch in 0..6_u8 {
        manager.put(b"k", &[epoch]).unwrap();
        manager.set_epoch(u64::from(epoch));
        manager.create_checkpoint(u64::from(epoch) * 100).unwrap();
    }
    let epochs = |manager: &IncrementalCheckpointManager| -> Vec<u64> {
        manager.list_checkpoints().unwrap().iter().map(|metadata| metadata.epoch).collect()
    };
    assert_eq!(epochs(&manager), [5, 4, 3, 2], "newest first");
    manager.delete_checkpoint(4).unwrap();
    assert_eq!(epochs(&manager), [5, 4, 2]);
    assert!(matches!(manager.delete_checkpoint(4), Err(IncrementalCheckpointError::NotFound(_))));
    manager.cleanup_old_checkpoints().unwrap();
    assert_eq!(epochs(&manager), [5, 4, 2]);
    manager.cleanup_old_checkpoints_keep(1).unwrap();
    assert_eq!(epochs(&manager), [5]);
    assert!(manager.cleanup_old_checkpoints_keep(0).is_err());
    assert_eq!(manager.load_checkpoint_state(6).unwrap().get(b"k"), Some([5].as_slice()));
}

#[test]
fn metadata_json() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    manager.put(b"k", b"v").unwrap();
    let metadata = manager.create_checkpoint(1).unwrap();
    let dir = metadata.checkpoint_path(root.path());
    assert_eq!(dir, root.path().join("checkpoint_0000000000000001"));
    let json = metadata.to_json().unwrap();
    assert_eq!(fs::read_to_string(dir.join("metadata.json")).unwrap(), json);
    assert_eq!(IncrementalCheckpointMetadata::from_json(&json).unwrap(), metadata);
    for name in &metadata.sst_files {
        assert!(dir.join(name).is_file());
    }
    let own = IncrementalCheckpointMetadata::new(7, 100);
    assert_eq!((own.id, own.epoch, own.parent_id), (7, 100, None));
    assert_eq!(IncrementalCheckpointMetadata::from_json(&own.to_json().unwrap()).unwrap(), own);
    assert!(IncrementalCheckpointMetadata::from_json("{}").unwrap_err().is_corruption());
}

#[test]
fn due_by_interval_and_by_log_size() {
    let root = tempfile::tempdir().unwrap();
    let wal = root.path().join("wal");
    let config = CheckpointConfig::new(&root.path().join("c"))
        .with_wal_path(&wal)
        .with_interval(Duration::from_millis(200))
        .with_min_wal_size(1000);
    let mut manager = IncrementalCheckpointManager::new(config).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    assert!(manager.should_checkpoint());
    manager.create_checkpoint(0).unwrap();
    assert_eq!(wal_size(&wal), 0);
    fs::create_dir(&wal).unwrap();
    fs::write(wal.join("wal-0.00000001.00000000.log"), [0; 600]).unwrap();
    fs::write(wal.join("wal-1.00000001.00000000.log"), [0; 600]).unwrap();
    fs::write(wal.join("LOCK"), []).unwrap();
    assert_eq!(wal_size(&wal), 1200);
    assert_eq!(wal_size(&wal.join("wal-0.00000001.00000000.log")), 600);
    assert!(manager.should_checkpoint());
}

#[test]
fn one_manager_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let manager = open(root.path());
    let error = IncrementalCheckpointManager::new(CheckpointConfig::new(root.path())).unwrap_err();
    assert!(error.is_transient() && !error.is_corruption(), "{error}");
    assert!(error.to_string().contains("somebody else has these checkpoints open"), "{error}");
    drop(manager);
    open(root.path());
}

#[test]
fn each_directory_stands_alone() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    for n in 0..3_u8 {
        manager.put(&[n], &[n; 100]).unwrap();
        manager.create_checkpoint(0).unwrap();
    }
    let last = manager.find_latest_checkpoint().unwrap().unwrap();
    drop(manager);
    assert_eq!(last.sst_files.len(), 3);
    fs::remove_dir_all(root.path().join("checkpoint_0000000000000001")).unwrap();
    fs::remove_dir_all(root.path().join("checkpoint_0000000000000002")).unwrap();
    assert_eq!(validate_checkpoint(&last.checkpoint_path(root.path())).unwrap(), last);

    // Copied elsewhere, under any name, it opens too.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(last.checkpoint_path(root.path())).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    fs::write(copy.path().join("README"), "extra files are ignored").unwrap();
    assert_eq!(validate_checkpoint(copy.path()).unwrap(), last);
    assert_eq!(open(root.path()).get(&[0]).unwrap(), Some(vec![0; 100]));
}

#[test]
fn damage_is_a_precise_error() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    for n in 0..500_u16 {
        manager.put(&n.to_be_bytes(), &[7; 200]).unwrap();
    }
    let metadata = manager.create_checkpoint(0).unwrap();
    drop(manager);
    let dir = metadata.checkpoint_path(root.path());
    let file = dir.join(&metadata.sst_files[0]);
    let good = fs::read(&file).unwrap();

    let expect = |what: &str| {
        for error in [
            validate_checkpoint(&dir).unwrap_err(),
            IncrementalCheckpointManager::new(CheckpointConfig::new(root.path())).unwrap_err(),
        ] {
            assert!(error.is_corruption(), "{what}: {error}");
            assert_eq!(error.detail().path(), Some(file.as_path()), "{what}: {error}");
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
    };
    let mut bad = good.clone();
    bad[50_000] ^= 4;
    fs::write(&file, &bad).unwrap();
    expect("block checksum");
    fs::write(&file, &good[..good.len() - 10]).unwrap();
    expect(&format!("the file has {} bytes, the manifest says {}", good.len() - 10, good.len()));
    fs::remove_file(&file).unwrap();
    expect("missing");

    // A file of another store under that name.
    let other = tempfile::tempdir().unwrap();
    let mut manager = open(other.path());
    for n in 0..500_u16 {
        manager.put(&n.to_be_bytes(), &[7; 200]).unwrap();
    }
    let foreign = manager.create_checkpoint(0).unwrap();
    fs::copy(foreign.checkpoint_path(other.path()).join(&foreign.sst_files[0]), &file).unwrap();
    expect("a foreign file");

    fs::write(&file, &good).unwrap();
    validate_checkpoint(&dir).unwrap();
    assert_eq!(open(root.path()).get(&3_u16.to_be_bytes()).unwrap(), Some(vec![7; 200]));

    let newer = fs::read_to_string(dir.join("metadata.json")).unwrap();
    fs::write(dir.join("metadata.json"), newer.replace("\"format_version\":1", "\"format_version\":9"))
        .unwrap();
    let error = validate_checkpoint(&dir).unwrap_err();
    assert!(!error.is_corruption());
    assert!(error.to_string().contains("version 9") && error.to_string().contains("version 1"), "{error}");
    assert!(matches!(
        validate_checkpoint(&root.path().join("nothing")),
        Err(IncrementalCheckpointError::NotFound(_))
    ));
}

#[test]
fn leftovers_of_a_crash_are_swept_and_strangers_are_not() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    manager.put(b"k", b"v").unwrap();
    let metadata = manager.create_checkpoint(0).unwrap();
    drop(manager);
    let pending = root.path().join("checkpoint_0000000000000002.tmp");
    let trash = root.path().join("checkpoint_0000000000000000.trash");
    for dir in [&pending, &trash] {
        fs::create_dir(dir).unwrap();
        let name = &metadata.sst_files[0];
        fs::write(dir.join(name), "half a file").unwrap();
        fs::write(dir.join("metadata.json"), "{").unwrap();
    }
    fs::write(root.path().join("checkpoint_backup"), "mine").unwrap();
    fs::create_dir(root.path().join("checkpoint_00000000000000FF")).unwrap();
    let mut manager = open(root.path());
    assert!(!pending.exists() && !trash.exists());
    assert!(root.path().join("checkpoint_backup").exists());
    assert!(root.path().join("checkpoint_00000000000000FF").exists());
    assert_eq!(manager.get(b"k").unwrap(), Some(b"v".to_vec()));
    assert_eq!(manager.create_checkpoint(0).unwrap().id, 2);
}

#[test]
fn too_long_keys_and_values_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut manager = open(root.path());
    manager.put(b"", b"the empty key is a key").unwrap();
    manager.put(&[1; 65_535], b"").unwrap();
    assert!(manager.put(&[1; 65_536], b"").is_err());
    assert!(manager.put(b"k", &vec![0; (16 << 20) + 1]).is_err());
    assert_eq!(manager.create_checkpoint(0).unwrap().key_count, 2);
    drop(manager);
    assert_eq!(open(root.path()).get(b"").unwrap(), Some(b"the empty key is a key".to_vec()));
}

#[test]
fn a_manager_can_be_moved_to_another_thread() {
    fn send<T: Send>() {}
    send::<IncrementalCheckpointManager>();
    send::<IncrementalCheckpointError>();
}
