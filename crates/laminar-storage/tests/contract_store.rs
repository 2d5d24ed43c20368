//! Every item of the contract's `Store` section, in its documented shape, with assertions on what
//! comes back.

#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{
    CoreStore, DigestCheck, Epoch, Health, Opened, Router, Settings, StateReader, Store, StoreError,
};

fn open(dir: &Path, cores: usize) -> Opened {
    let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
    Store::builder(dir).cores(cores).settings(settings).open().unwrap()
}

/// Puts on the core that the default router says.
fn put(cores: &mut [CoreStore], key: &str, value: &str) {
    let core = Router::default().route(key.as_bytes(), cores.len());
    cores[core].put(key.as_bytes(), value.as_bytes()).unwrap();
}

fn seal_all(cores: &mut [CoreStore]) -> Epoch {
    cores.iter_mut().map(|core| core.seal_epoch().unwrap()).max().unwrap()
}

fn contents(cores: &[CoreStore]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    cores.iter().flat_map(|core| core.iter()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

#[test]
fn everything_a_core_does_is_visible_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, report } = open(dir.path(), 1);
    assert_eq!(report.recovery_point, Epoch(0));
    let core = &mut cores[0];
    core.put(b"a", b"1").unwrap();
    core.try_put(b"b", b"2").unwrap();
    core.put_batch(&[(b"c", b"3"), (b"d", b"4")]).unwrap();
    assert_eq!(core.get(b"a"), Some(b"1".as_slice()));
    assert!(core.contains(b"d") && !core.contains(b"e"));
    assert_eq!(core.len(), 4);
    core.update(b"a", |old| Some([old.unwrap(), b"!"].concat())).unwrap();
    core.update(b"e", |old| old.is_none().then_some(b"new")).unwrap();
    core.update(b"b", |_| None::<&[u8]>).unwrap();
    assert!(core.delete(b"c").unwrap());
    assert!(!core.delete(b"c").unwrap());
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = [("a", "1!"), ("d", "4"), ("e", "new")]
        .into_iter()
        .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
        .collect();
    assert_eq!(contents(&cores), expected);
    assert!(matches!(store.health(), Health::Running));
}

#[test]
fn a_sealed_and_durable_epoch_comes_back_with_offsets_and_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let sealed = {
        let Opened { store, mut cores, .. } = open(dir.path(), 2);
        let told = Arc::clone(&heard);
        store.on_durable(move |epoch| told.store(epoch.get(), Ordering::SeqCst));
        put(&mut cores, "k1", "v1");
        put(&mut cores, "k2", "v2");
        cores[0].set_source_offset("orders/0", 1_234);
        cores[1].set_source_offset("orders/1", 5);
        cores[0].set_watermark(-7);
        cores[1].set_watermark(9);
        let epoch = cores[0].seal_epoch().unwrap();
        cores[1].seal_epoch_to(epoch).unwrap();
        store.wait_durable(epoch).unwrap();
        assert!(store.durable_epoch() >= epoch);
        put(&mut cores, "k3", "never sealed");
        cores[0].set_source_offset("orders/0", 9_999);
        let receipt = store.close().unwrap();
        assert_eq!(receipt.durable_epoch, epoch);
        epoch
    };
    assert_eq!(heard.load(Ordering::SeqCst), sealed.get());
    let Opened { store, cores, report } = open(dir.path(), 2);
    assert_eq!(report.recovery_point, sealed);
    assert_eq!(report.source_offsets["orders/0"], 1_234);
    assert_eq!(report.source_offsets["orders/1"], 5);
    assert_eq!(report.watermark, Some(-7));
    assert_eq!(report.digest, DigestCheck::Verified);
    assert_eq!(report.keys, 2);
    assert_eq!(report.cores.iter().map(|core| core.replayed).sum::<u64>(), 2);
    assert_eq!(contents(&cores).len(), 2);
    assert!(cores[0].epoch() > sealed);
    assert!(store.durable_epoch() == sealed);
}

#[test]
fn checkpoints_hold_the_state_and_cut_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { segment_bytes: 64 << 10, preallocate_bytes: 0, max_retained: 2, ..Settings::default() };
    let mut expected = BTreeMap::new();
    let last = {
        let opened = Store::builder(dir.path()).cores(2).settings(settings.clone()).open().unwrap();
        let Opened { store, mut cores, .. } = opened;
        let mut removed = 0;
        let mut last = None;
        for round in 0..6 {
            for key in 0..800 {
                if (key + round) % 3 == 0 {
                    let (key, value) = (format!("key{key}"), format!("{round}-{}", "x".repeat(600)));
                    put(&mut cores, &key, &value);
                    expected.insert(key.into_bytes(), value.into_bytes());
                }
            }
            let epoch = seal_all(&mut cores);
            store.wait_durable(epoch).unwrap();
            let receipt = store.checkpoint().unwrap();
            assert_eq!(receipt.epoch, epoch);
            assert!(receipt.changes > 0);
            removed += receipt.wal_bytes_removed;
            last = Some(receipt.id);
        }
        assert!(removed > 0, "the log was cut");
        assert_eq!(store.stats().checkpoints, 6);
        assert_eq!(store.checkpoint().unwrap().changes, 0, "nothing new, no checkpoint");
        store.close().unwrap();
        last
    };
    let Opened { cores, report, .. } = Store::builder(dir.path()).cores(2).settings(settings).open().unwrap();
    assert_eq!(report.checkpoint, last);
    assert_eq!(report.digest, DigestCheck::Verified);
    assert_eq!(contents(&cores), expected);
}

#[test]
fn another_number_of_cores_gets_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = BTreeMap::new();
    let mut write = |cores: &mut [CoreStore], store: &Store, round: u32| {
        for key in 0..500_u32 {
            if key % 7 == round % 7 || round == 0 {
                let (key, value) = (format!("key{key}"), format!("value{round}"));
                put(cores, &key, &value);
                expected.insert(key.into_bytes(), value.into_bytes());
            }
        }
        cores[0].set_source_offset("in", u64::from(round));
        let epoch = seal_all(cores);
        store.wait_durable(epoch).unwrap();
        (epoch, expected.clone())
    };
    let mut before = None;
    for (round, count) in [4, 2, 3, 3, 1, 5].into_iter().enumerate() {
        let round = u32::try_from(round).unwrap();
        let Opened { store, mut cores, report } = open(dir.path(), count);
        if let Some((epoch, expected)) = before {
            assert_eq!(report.recovery_point, epoch);
            assert_eq!(contents(&cores), expected, "round {round}");
            assert_eq!(report.source_offsets["in"], u64::from(round - 1));
            assert_eq!(report.digest, DigestCheck::Verified);
            for (index, core) in cores.iter().enumerate() {
                assert!(core.iter().all(|(key, _)| Router::default().route(key, count) == index));
            }
        }
        before = Some(write(&mut cores, &store, round));
        if round == 2 {
            store.checkpoint().unwrap();
        }
        store.close().unwrap();
    }
}

#[test]
fn a_reader_sees_what_opening_would_recover_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(StateReader::open(dir.path()), Err(StoreError::InvalidInput(_))));
    let Opened { store, mut cores, .. } = open(dir.path(), 2);
    put(&mut cores, "a", "1");
    let epoch = seal_all(&mut cores);
    store.wait_durable(epoch).unwrap();
    let reader = StateReader::open(dir.path()).unwrap();
    assert_eq!(reader.get(b"a"), Some(b"1".as_slice()));
    assert_eq!(reader.report().recovery_point, epoch);
    assert_eq!(reader.report().digest, DigestCheck::Verified);
    assert_eq!((reader.len(), reader.iter().count(), reader.state().len()), (1, 1, 1));
}

#[test]
fn a_second_opening_is_refused_until_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), 1);
    let error = Store::builder(dir.path()).open().unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)) && error.is_transient(), "{error}");
    first.store.close().unwrap();
    open(dir.path(), 1);
}

#[test]
fn waiting_for_an_epoch_that_cannot_come_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = open(dir.path(), 2);
    let epoch = cores[0].seal_epoch().unwrap();
    assert!(!store.wait_durable_for(epoch, std::time::Duration::from_millis(5)).unwrap());
    drop(cores.pop());
    let error = store.wait_durable(epoch).unwrap_err();
    assert!(matches!(error, StoreError::Closed(_)) && error.to_string().contains("core 1"), "{error}");
    store.close().unwrap();
    let error = cores[0].put(b"k", b"v").unwrap_err();
    assert!(matches!(error, StoreError::Closed(_)), "{error}");
}

#[test]
fn bounds_are_named_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::builder(dir.path()).cores(0).open().unwrap_err();
    assert!(error.to_string().contains("cores is 0, must be 1..=1024"), "{error}");
    let Opened { store: _store, mut cores, .. } = open(dir.path(), 1);
    let error = cores[0].put(&[0; 65_536], b"").unwrap_err();
    assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
    assert!(cores[0].is_empty());
    let epoch = cores[0].seal_epoch().unwrap();
    let error = cores[0].seal_epoch_to(epoch).unwrap_err();
    assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
}

#[test]
fn a_full_ring_is_backpressure_and_never_loss() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { ring_capacity: 64, preallocate_bytes: 0, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).settings(settings).open().unwrap();
    let mut refused = 0_u32;
    for key in 0..20_000_u32 {
        match cores[0].try_put(&key.to_le_bytes(), &[1; 50]) {
            Ok(()) => {}
            Err(error) => {
                assert!(matches!(error, StoreError::Backpressure(_)), "{error}");
                refused += 1;
                cores[0].put(&key.to_le_bytes(), &[1; 50]).unwrap();
            }
        }
    }
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    drop(cores);
    store.close().unwrap();
    assert_eq!(open(dir.path(), 1).cores[0].len(), 20_000, "{refused} were refused first");
}

#[test]
fn four_threads_with_their_cores() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, cores, .. } = open(dir.path(), 4);
    let store = Arc::new(store);
    let threads: Vec<_> = cores
        .into_iter()
        .map(|mut core| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let mut last = Epoch(0);
                for round in 0..50_u32 {
                    for key in 0..100_u32 {
                        let key =
                            [core.core_id().get().to_le_bytes().as_slice(), &key.to_le_bytes()].concat();
                        core.put(&key, &round.to_le_bytes()).unwrap();
                    }
                    last = core.seal_epoch().unwrap();
                }
                store.wait_durable(last).unwrap();
                core
            })
        })
        .collect();
    let cores: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let expected = contents(&cores);
    assert_eq!(expected.len(), 400);
    drop(cores);
    drop(store);
    assert_eq!(contents(&open(dir.path(), 4).cores), expected);
}

/// A store that was opened and closed without a change could not be opened a third time: the walk over
/// the log stopped at the second opening, whose segments come after no record at all, and the missing
/// rest was taken for a gap.
#[test]
fn a_store_without_a_change_can_be_opened_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..4 {
        let Opened { store, cores, report } = open(dir.path(), 2);
        assert_eq!((report.recovery_point, cores[0].len()), (Epoch(0), 0));
        store.close().unwrap();
    }
}

/// A core that has not closed the epoch may still change it, so nobody may be told that it is durable.
#[test]
fn an_epoch_that_one_core_has_not_closed_is_not_durable() {
    let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
    let builder = Store::builder("/store").cores(2).settings(settings).vfs(Arc::new(SimDisk::new(1)));
    let Opened { store, mut cores, .. } = builder.open().unwrap();
    cores[0].put(b"key", b"value").unwrap();
    let epoch = cores[0].seal_epoch().unwrap();
    // On a simulated disk there is no background thread: whoever waits drains and syncs.
    let error = store.wait_durable(epoch).unwrap_err();
    assert!(matches!(error, StoreError::Closed(_)), "{error}");
    assert_eq!(store.durable_epoch(), Epoch(0));
    cores[1].seal_epoch_to(epoch).unwrap();
    store.wait_durable(epoch).unwrap();
}

/// A `put` that finds the ring full waits until there is room; what it accepted is there.
#[test]
fn a_put_on_a_full_ring_is_made_and_not_dropped() {
    let disk = SimDisk::new(1);
    let settings = Settings { ring_capacity: 64, preallocate_bytes: 0, ..Settings::default() };
    let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk));
    let Opened { store, mut cores, .. } = builder.clone().open().unwrap();
    // On a simulated disk nobody empties the ring in between.
    for key in 0..300_u32 {
        cores[0].put(&key.to_le_bytes(), b"value").unwrap();
        assert!(cores[0].contains(&key.to_le_bytes()), "{key}");
    }
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    drop((store, cores));
    assert_eq!(builder.open().unwrap().cores[0].len(), 300);
}

/// Epochs that only one core closed are discarded by the next opening. Their numbers stay used, or two
/// histories would have the same ones.
#[test]
fn the_numbers_of_discarded_epochs_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = open(dir.path(), 2);
    let durable = seal_all(&mut cores);
    store.wait_durable(durable).unwrap();
    cores[0].put(b"key", b"value").unwrap();
    let discarded = Epoch(durable.get() + 5);
    cores[0].seal_epoch_to(discarded).unwrap();
    store.close().unwrap();
    let Opened { cores, report, .. } = open(dir.path(), 2);
    assert_eq!(report.recovery_point, durable);
    for core in &cores {
        assert!(core.epoch() > discarded, "{} after {discarded}", core.epoch());
    }
}

/// The log behind a checkpoint may be gone: the input positions must be in the checkpoint itself.
#[test]
fn a_checkpoint_alone_has_offsets_and_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, mut cores, .. } = open(dir.path(), 1);
    put(&mut cores, "key", "value");
    cores[0].set_source_offset("orders/0", 1_234);
    cores[0].set_watermark(-7);
    let epoch = seal_all(&mut cores);
    store.wait_durable(epoch).unwrap();
    store.checkpoint().unwrap();
    drop(cores);
    store.close().unwrap();
    let Opened { report, .. } = open(dir.path(), 1);
    assert_eq!((report.recovery_point, report.checkpoint.is_some()), (epoch, true));
    assert_eq!(report.cores[0].replayed, 0, "everything is in the checkpoint");
    assert_eq!(report.source_offsets, BTreeMap::from([("orders/0".to_owned(), 1_234)]));
    assert_eq!(report.watermark, Some(-7));
}

/// The log is kept back to the checkpoint before the newest one, so that one that rots costs nothing.
#[test]
fn without_its_newest_checkpoint_a_store_recovers_the_same() {
    let disk = SimDisk::new(1);
    let settings =
        Settings { segment_bytes: 4 << 10, preallocate_bytes: 0, max_retained: 2, ..Settings::default() };
    let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk.clone()));
    let Opened { store, mut cores, .. } = builder.clone().open().unwrap();
    let mut removed = 0;
    let mut newest = None;
    for round in 0..5_u8 {
        // Every epoch is a segment, and more of them than the log keeps anyway.
        for part in 0..5_u8 {
            for key in 0..5_u8 {
                cores[0].put(&[part, key, round % 3], &[round; 900]).unwrap();
            }
            let epoch = seal_all(&mut cores);
            store.wait_durable(epoch).unwrap();
        }
        let receipt = store.checkpoint().unwrap();
        removed += receipt.wal_bytes_removed;
        newest = Some(receipt.id);
    }
    assert!(removed > 0, "the log was cut");
    let expected = contents(&cores);
    drop((store, cores));
    let newest = newest.unwrap();
    disk.remove(format!("/store/checkpoints/checkpoint_{:016x}/metadata.json", newest.get())).unwrap();
    let Opened { cores, report, .. } = builder.open().unwrap();
    assert_eq!(report.checkpoints_skipped, [newest]);
    assert_eq!(contents(&cores), expected);
}
