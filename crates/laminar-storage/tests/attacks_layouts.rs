//! What was left of a store that had been opened with several numbers of cores, each with its story.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;

use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::vfs::{Vfs, create_dir_durably};
use laminar_storage::{Opened, Router, Settings, StateReader, Store, StoreError};

fn open(disk: &SimDisk, cores: usize) -> Result<Opened, StoreError> {
    let settings = Settings {
        segment_bytes: 4 << 10,
        preallocate_bytes: 0,
        state_limit_bytes: 4 << 20,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        max_retained: 1,
        ..Settings::default()
    };
    Store::builder("/s").cores(cores).settings(settings).vfs(Arc::new(disk.clone())).open()
}

/// Puts the keys in an epoch of their own.
fn commit(opened: &mut Opened, keys: &[&str], value: &str) {
    let cores = opened.cores.len();
    for key in keys {
        let core = Router::default().route(key.as_bytes(), cores);
        opened.cores[core].put(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let sealed = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).max().unwrap();
    opened.store.wait_durable(sealed).unwrap();
}

fn names(disk: &SimDisk, dir: &str) -> Vec<String> {
    let entries = disk.read_dir(Path::new(dir)).unwrap();
    entries.into_iter().map(|(name, _)| name).filter(|name| name != "LOCK").collect()
}

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The first core's log reached back to the beginning, and nobody asked for those of the cores that the store no
/// longer had: their keys were missing. Only the digest stopped that, with advice about keys on two cores.
#[test]
fn without_the_checkpoint_of_a_resharding_the_cores_from_before_are_missed_by_name() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 3).unwrap();
    commit(&mut opened, &KEYS, "1");
    drop(opened);
    let mut opened = open(&disk, 1).unwrap();
    commit(&mut opened, &["a"], "2");
    opened.store.checkpoint().unwrap();
    drop(opened);
    let logs = names(&disk, "/s/wal");
    assert!(logs.iter().all(|log| !log.starts_with("wal-1.") && !log.starts_with("wal-2.")), "{logs:?}");
    assert!(logs.iter().any(|log| log.starts_with("wal-0.00000001.")), "{logs:?}");
    let [checkpoint] = names(&disk, "/s/checkpoints").try_into().unwrap();
    disk.remove(format!("/s/checkpoints/{checkpoint}/metadata.json")).unwrap();
    for name in [checkpoint.as_str(), ""] {
        // Damaged, and then gone altogether.
        if name.is_empty() {
            for file in names(&disk, &format!("/s/checkpoints/{checkpoint}")) {
                disk.remove(format!("/s/checkpoints/{checkpoint}/{file}")).unwrap();
            }
            disk.remove(format!("/s/checkpoints/{checkpoint}")).unwrap();
        }
        for cores in [1, 2, 3] {
            let error = open(&disk, cores).unwrap_err();
            assert!(error.is_corruption(), "{error}");
            let told = error.to_string();
            assert!(
                told.contains("metadata.json") || told.contains("core 1") && told.contains("gone"),
                "{told}"
            );
        }
    }
    let error = open(&disk, 1).unwrap_err().to_string();
    assert!(error.contains("this core's log is gone"), "{error}");
}

/// Checkpoints of a copy that had gone its own way were put beside a log from after a re-sharding. The digest of the
/// core that was no more counted as unknown, so that nothing was compared, and the values of both were mixed.
#[test]
fn the_digest_is_compared_although_an_earlier_layout_had_more_cores() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 3).unwrap();
    commit(&mut opened, &KEYS, "1");
    drop(opened);
    let copy = disk.snapshot().flushed().mount();
    for (world, value) in [(&disk, "here"), (&copy, "there")] {
        let mut opened = open(world, 3).unwrap();
        commit(&mut opened, &KEYS, value);
        opened.store.checkpoint().unwrap();
        drop(opened);
    }
    let theirs: Vec<_> =
        copy.files().into_iter().filter(|(path, _)| path.starts_with("s/checkpoints")).collect();
    let mut opened = open(&disk, 2).unwrap();
    commit(&mut opened, &["a"], "later");
    drop(opened);
    let own: Vec<_> =
        disk.files().into_iter().filter(|(path, _)| path.starts_with("s/checkpoints/c")).collect();
    for (path, _) in &own {
        disk.remove(Path::new("/").join(path)).unwrap();
    }
    for dir in names(&disk, "/s/checkpoints") {
        disk.remove(format!("/s/checkpoints/{dir}")).unwrap();
    }
    for (path, _) in theirs {
        let path = Path::new("/").join(path);
        create_dir_durably(&disk, path.parent().unwrap()).unwrap();
        disk.overwrite(&path, &copy.read_file(&path).unwrap()).unwrap();
    }
    let error = StateReader::open_with("/s", Arc::new(disk.clone())).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("digest"), "{error}");
    for cores in [1, 2, 3] {
        let error = open(&disk, cores).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains("digest"), "{cores} cores: {error}");
    }
}
