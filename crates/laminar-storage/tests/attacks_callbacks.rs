//! What callbacks of the program once did to a store, each with its story.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use laminar_storage::{CoreStore, Epoch, Health, Opened, Settings, Store, StoreError};

const SOON: Duration = Duration::from_secs(60);

fn open(dir: &tempfile::TempDir) -> (Arc<Store>, CoreStore) {
    let settings = Settings { segment_bytes: 1 << 16, preallocate_bytes: 0, ..Settings::default() };
    let Opened { store, cores, .. } = Store::builder(dir.path()).settings(settings).open().unwrap();
    (Arc::new(store), cores.into_iter().next().unwrap())
}

fn seal(core: &mut CoreStore) -> Epoch {
    let number = core.epoch().get().to_le_bytes();
    core.put(&number, b"v").unwrap();
    core.seal_epoch().unwrap()
}

fn said<T>() -> (Sender<T>, Receiver<T>) {
    mpsc::channel()
}

/// It waited for the thread it ran on, and nothing became durable any more: everybody else waited for ever.
#[test]
fn a_callback_that_waits_for_a_later_epoch_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut core) = open(&dir);
    let (answer, answers) = said();
    let theirs = Arc::downgrade(&store);
    store.on_durable(move |epoch| {
        if let Some(store) = theirs.upgrade() {
            store.wait_durable(epoch).unwrap();
            answer.send(store.wait_durable(epoch.next()).unwrap_err()).unwrap();
        }
    });
    for _ in 0..2 {
        let epoch = seal(&mut core);
        assert!(store.wait_durable_for(epoch, SOON).unwrap());
        let error = answers.recv_timeout(SOON).unwrap();
        assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
    }
    assert!(matches!(store.health(), Health::Running));
}

/// Registering one held the lock that running one needed.
#[test]
fn a_callback_may_register_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut core) = open(&dir);
    let (answer, answers) = said();
    let theirs = Arc::downgrade(&store);
    store.on_durable(move |epoch| {
        let answer = answer.clone();
        let again = move |later: Epoch| answer.send((epoch, later)).unwrap();
        theirs.upgrade().unwrap().on_durable(again);
    });
    let first = seal(&mut core);
    assert!(store.wait_durable_for(first, SOON).unwrap());
    let second = seal(&mut core);
    assert!(store.wait_durable_for(second, SOON).unwrap());
    assert_eq!(answers.recv_timeout(SOON).unwrap(), (first, second));
}

/// Ring 1 joined itself, panicked, and the store was reported as broken.
#[test]
fn a_callback_may_drop_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut core) = open(&dir);
    let held = Arc::new(Mutex::new(None));
    let (answer, answers) = said();
    let theirs = Arc::clone(&held);
    store.on_durable(move |_| {
        if let Some(store) = theirs.lock().unwrap().take() {
            drop::<Arc<Store>>(store);
            answer.send(()).unwrap();
        }
    });
    *held.lock().unwrap() = Some(store);
    seal(&mut core);
    answers.recv_timeout(SOON).unwrap();
    let error = core.put(b"late", b"v").unwrap_err();
    assert!(matches!(error, StoreError::Closed(_)), "{error}");
    let opened = Store::builder(dir.path()).open().unwrap();
    assert_eq!((opened.report.recovery_point, opened.report.keys), (Epoch(1), 1));
}

/// The store said that its own thread had panicked, which was to be reported.
#[test]
fn a_callback_that_panics_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut core) = open(&dir);
    store.on_durable(|epoch| panic!("what the program thinks of epoch {epoch}"));
    let epoch = seal(&mut core);
    store.wait_durable(epoch).unwrap();
    let error = store.wait_durable(epoch.next()).unwrap_err();
    assert!(matches!(error, StoreError::Poisoned(_)), "{error}");
    assert!(error.to_string().contains("given to on_durable panicked"), "{error}");
    drop((store, core));
    assert_eq!(Store::builder(dir.path()).open().unwrap().report.recovery_point, epoch);
}
