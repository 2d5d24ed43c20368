//! Every order in which publishing, failing and waiting can meet.

use std::time::Duration;

use loom::thread;

use super::*;

fn failure() -> StoreError {
    StoreError::closed(Detail::new("the disk is gone"))
}

/// Waits as `Store::wait_durable` does, without an end.
fn wait(durable: &Durable, epoch: u64, hopeless: impl Fn() -> bool) -> Result<bool, StoreError> {
    durable.wait(Epoch(epoch), Duration::MAX, hopeless)
}

#[test]
fn loom_whoever_waits_is_woken_and_sees_what_was_synced() {
    loom::model(|| {
        let durable = Arc::new(Durable::starting_at(Epoch(3)));
        let synced = Arc::new(AtomicU64::new(3));
        let (theirs, known) = (Arc::clone(&durable), Arc::clone(&synced));
        let ring1 = thread::spawn(move || {
            for epoch in [4, 5] {
                known.store(epoch, Ordering::Relaxed);
                theirs.publish(Epoch(epoch));
            }
        });
        assert!(wait(&durable, 4, || false).unwrap());
        assert!(synced.load(Ordering::Relaxed) >= 4);
        assert!(wait(&durable, 5, || false).unwrap());
        assert_eq!((synced.load(Ordering::Relaxed), durable.epoch()), (5, Epoch(5)));
        ring1.join().unwrap();
    });
}

#[test]
fn loom_a_failure_wakes_all_who_wait() {
    loom::model(|| {
        let durable = Arc::new(Durable::starting_at(Epoch(3)));
        let theirs = Arc::clone(&durable);
        let other = thread::spawn(move || wait(&theirs, 4, || false));
        let theirs = Arc::clone(&durable);
        let ring1 = thread::spawn(move || theirs.poison(&failure()));
        let error = wait(&durable, 4, || false).unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        assert!(other.join().unwrap().is_err());
        ring1.join().unwrap();
        assert_eq!(durable.epoch(), Epoch(3));
    });
}

/// The flag was read without ordering once: a core could see that there was a failure before it saw which, and
/// report one without a cause (I11).
#[test]
fn loom_whoever_sees_a_failure_sees_the_first_cause() {
    loom::model(|| {
        let durable = Arc::new(Durable::default());
        let theirs = Arc::clone(&durable);
        let ring1 = thread::spawn(move || {
            theirs.poison(&failure());
            theirs.poison(&StoreError::closed(Detail::new("a later one")));
        });
        if let Err(error) = durable.check() {
            assert!(error.to_string().contains("the disk is gone"), "{error}");
        }
        ring1.join().unwrap();
        assert!(durable.check().unwrap_err().to_string().contains("the disk is gone"));
    });
}

/// Who waited for a core that was dropped found out by looking again every 20 ms.
#[test]
fn loom_whoever_waits_in_vain_is_told() {
    loom::model(|| {
        let durable = Arc::new(Durable::default());
        let gone = Arc::new(OnceLock::new());
        let (theirs, dropped) = (Arc::clone(&durable), Arc::clone(&gone));
        let core = thread::spawn(move || {
            let _ = dropped.set(Epoch(0));
            theirs.wake_all();
        });
        assert!(!wait(&durable, 1, || gone.get().is_some()).unwrap());
        core.join().unwrap();
    });
}
