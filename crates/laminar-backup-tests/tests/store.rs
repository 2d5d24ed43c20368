//! A running store whose checkpoints are backed up by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laminar_backup_tests::faults::{Fault, Faulty};
use laminar_backup_tests::stores::{quick, restored, target};
use laminar_storage::backup::object_store::ObjectStore;
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::{BackupError, BackupStatus};
use laminar_storage::{CoreStore, Settings, Store};

const LONG: Duration = Duration::from_secs(120);

fn open(dir: &Path, place: &Arc<dyn ObjectStore>) -> (Store, CoreStore) {
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let options = quick().attempts(2, Duration::ZERO);
    let builder =
        Store::builder(dir).settings(settings).backup_to(&target(place), &options, &[("job", b"7")]);
    let opened = builder.open().unwrap();
    (opened.store, opened.cores.into_iter().next().unwrap())
}

fn change_and_checkpoint(store: &Store, core: &mut CoreStore, key: &str) {
    core.put(key.as_bytes(), b"a value").unwrap();
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    store.checkpoint().unwrap();
}

/// Waits until the status is as it must become.
fn until(store: &Store, is_so: impl Fn(&BackupStatus) -> bool) -> BackupStatus {
    loop {
        let status = store.backup_status().unwrap();
        if is_so(&status) {
            return status;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn keys(place: &Arc<dyn ObjectStore>) -> Vec<String> {
    restored(place).into_keys().map(|key| String::from_utf8(key).unwrap()).collect()
}

#[test]
fn every_checkpoint_is_backed_up_and_a_failure_harms_nothing_and_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let place: Arc<dyn ObjectStore> =
        Faulty::new(
            &inner,
            move |_, _, _| {
                if is_down.load(Ordering::SeqCst) { Fault::Before } else { Fault::None }
            },
        );
    let (store, mut core) = open(dir.path(), &place);
    assert_eq!(store.stats().backup_checkpoints_behind, 0);
    change_and_checkpoint(&store, &mut core, "a");
    let status = until(&store, |status| status.failures > 0);
    assert!(
        matches!(status.last_error, Some(BackupError::Unreachable(_))) && !status.has_ended,
        "{status:?}"
    );
    change_and_checkpoint(&store, &mut core, "b");
    let stats = store.stats();
    assert!(stats.backup_checkpoints_behind == 2 && stats.backup_bytes_behind > 0, "{stats:?}");
    assert!(store.health().is_running() && !store.wait_backed_up(Duration::ZERO).unwrap());
    down.store(false, Ordering::SeqCst);
    assert!(store.wait_backed_up(LONG).unwrap());
    let status = store.backup_status().unwrap();
    // The first one was passed over.
    assert_eq!((status.backups, status.checkpoints_behind, status.failures), (1, 0, 0), "{status:?}");
    assert!(status.last_error.is_none() && status.bytes_sent > 0, "{status:?}");
    assert_eq!(keys(&plain), ["a", "b"]);
    drop(core);
    store.close().unwrap();

    // The next opening finds the newest checkpoint backed up already.
    let (store, mut core) = open(dir.path(), &place);
    assert!(store.wait_backed_up(LONG).unwrap());
    assert_eq!(store.backup_status().unwrap().bytes_sent, 0);
    change_and_checkpoint(&store, &mut core, "c");
    assert!(store.wait_backed_up(LONG).unwrap());
    assert_eq!(keys(&plain), ["a", "b", "c"]);
}

/// Two machines run from copies of one directory: the first to open is out once the second has claimed.
#[test]
fn a_copy_of_the_store_takes_the_backups_over_and_the_first_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let (store, mut core) = open(&first, &place);
    change_and_checkpoint(&store, &mut core, "a");
    assert!(store.wait_backed_up(LONG).unwrap());
    for folder in ["wal", "checkpoints", "checkpoints/checkpoint_0000000000000001"] {
        std::fs::create_dir_all(second.join(folder)).unwrap();
        for entry in std::fs::read_dir(first.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), second.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    let (copy, mut its_core) = open(&second, &place);
    change_and_checkpoint(&copy, &mut its_core, "of the copy");
    assert!(copy.wait_backed_up(LONG).unwrap());
    change_and_checkpoint(&store, &mut core, "of the first");
    let error = store.wait_backed_up(LONG).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)), "{error}");
    assert!(store.backup_status().unwrap().has_ended && store.health().is_running());
    assert_eq!(store.stats().backup_checkpoints_behind, 1);
    assert_eq!(keys(&place), ["a", "of the copy"]);
    // It goes on as a store.
    change_and_checkpoint(&store, &mut core, "more");
    assert_eq!(keys(&place), ["a", "of the copy"]);
}

/// It would be tried for hours.
#[test]
fn closing_gives_a_backup_up_that_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let place: Arc<dyn ObjectStore> = Faulty::new(&Arc::new(InMemory::new()), |_, _, _| Fault::Before);
    let options = quick().attempts(1000, Duration::from_millis(50));
    let opened = Store::builder(dir.path()).backup_to(&target(&place), &options, &[]).open().unwrap();
    let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    change_and_checkpoint(&store, &mut core, "a");
    assert!(!store.wait_backed_up(Duration::from_millis(10)).unwrap());
    drop(core);
    store.close().unwrap();
    let bad = quick().concurrency(0);
    let error = Store::builder(dir.path()).backup_to(&target(&place), &bad, &[]).open().unwrap_err();
    assert!(error.to_string().contains("concurrency is 0"), "{error}");
}

/// One backup, when it is asked for.
#[test]
fn a_store_backs_itself_up_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let opened = Store::builder(dir.path()).cores(1).open().unwrap();
    let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    assert!(store.backup_status().is_none() && store.wait_backed_up(Duration::ZERO).unwrap());
    for key in ["a", "b"] {
        core.put(key.as_bytes(), b"a value").unwrap();
        let epoch = core.seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        let receipt = store.back_up(&target(&place), &quick(), &[("job", b"7")]).unwrap();
        assert!(receipt.epoch == epoch && receipt.is_new, "{receipt:?}");
    }
    assert_eq!(keys(&place), ["a", "b"]);
}
