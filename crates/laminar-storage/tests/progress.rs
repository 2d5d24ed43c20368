//! What whoever waits for an opening is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::mpsc;

use laminar_storage::{Opened, RecoveryPhase, RecoveryProgress, Router, Settings, StateReader, Store};

fn settings() -> Settings {
    Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() }
}

/// A store with a checkpoint of many keys and some log behind it.
fn fill(dir: &Path, cores: usize) {
    let Opened { store, cores: mut halves, .. } =
        Store::builder(dir).cores(cores).settings(settings()).open().unwrap();
    let router = Router::default();
    for (part, keys) in [0..20_000_u32, 15_000..25_000].into_iter().enumerate() {
        for key in keys {
            let key = key.to_be_bytes();
            halves[router.route(&key, cores)].put(&key, &[7; 200]).unwrap();
        }
        let epochs = halves.iter_mut().map(|core| core.seal_epoch().unwrap());
        store.wait_durable(epochs.max().unwrap()).unwrap();
        if part == 0 {
            store.checkpoint().unwrap();
        }
    }
    drop(halves);
    store.close().unwrap();
}

/// What can be said of any sequence of reports; returns the last.
fn check(told: &[RecoveryProgress]) -> RecoveryProgress {
    let last = *told.last().unwrap();
    let done = |progress: &&RecoveryProgress| progress.phase == RecoveryPhase::Done;
    assert_eq!(told.iter().filter(done).count(), 1, "{told:?}");
    assert_eq!(last.phase, RecoveryPhase::Done);
    for progress in told {
        assert!(progress.bytes_done <= progress.bytes_total.unwrap_or(u64::MAX), "{progress:?}");
        assert!(progress.elapsed <= last.elapsed);
    }
    // Counted on the way, not set at the end: every block and every frame exactly once.
    assert_eq!(Some(last.bytes_done), last.bytes_total);
    last
}

#[test]
fn every_byte_of_checkpoint_and_log_is_counted_once() {
    for cores in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), cores);
        let (tell, heard) = mpsc::channel();
        let opened = Store::builder(dir.path())
            .cores(cores)
            .settings(settings())
            .on_progress(move |progress| tell.send(progress).unwrap())
            .open()
            .unwrap();
        opened.store.close().unwrap();
        let last = check(&heard.iter().collect::<Vec<_>>());
        assert_eq!((last.keys, opened.report.keys), (25_000, 25_000));
        let log: u64 = opened.report.cores.iter().map(|core| core.replayed_bytes).sum();
        assert!(log > 10_000 * 200 && last.bytes_done > log + 20_000 * 200, "{last:?}");

        let (tell, heard) = mpsc::channel();
        let reader =
            StateReader::open_with_progress(dir.path(), move |progress| tell.send(progress).unwrap())
                .unwrap();
        let read = check(&heard.iter().collect::<Vec<_>>());
        assert_eq!((read.keys, reader.len()), (25_000, 25_000));
        assert!(read.bytes_done > log + 20_000 * 200, "{read:?}");
    }
}

/// After the keys were distributed anew, what is loaded is counted from the beginning.
#[test]
fn a_resharding_is_told_of_too() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 2);
    let (tell, heard) = mpsc::channel();
    let opened = Store::builder(dir.path())
        .cores(3)
        .settings(settings())
        .on_progress(move |progress| tell.send(progress).unwrap())
        .open()
        .unwrap();
    assert_eq!(opened.report.resharded_from, Some(2));
    opened.store.close().unwrap();
    let last = check(&heard.iter().collect::<Vec<_>>());
    assert_eq!(last.keys, 25_000);
    assert!(last.bytes_done > 25_000 * 200, "{last:?}");
}

#[test]
fn a_new_store_is_done_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, heard) = mpsc::channel();
    let opened =
        Store::builder(dir.path()).on_progress(move |progress| tell.send(progress).unwrap()).open().unwrap();
    opened.store.close().unwrap();
    let told: Vec<_> = heard.iter().collect();
    let last = check(&told);
    assert_eq!((told.len(), last.bytes_total, last.keys), (1, Some(0), 0));
}
