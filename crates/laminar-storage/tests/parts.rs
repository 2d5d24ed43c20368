//! Stores that are parts of a whole: they recover to an epoch that all of them have, and until an epoch is settled nothing
//! of it gets where it cannot be taken out again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laminar_storage::vfs::sim::{ImageId, ImagePolicy, SimDisk};
use laminar_storage::{Epoch, Opened, Router, Settings, Store, StoreError};

const DIR: &str = "/part";

fn settings() -> Settings {
    Settings {
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        segment_bytes: 4 << 10,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        max_retained: 2,
        ..Settings::default()
    }
}

fn open(disk: &SimDisk, agree: impl FnMut(Epoch) -> Result<Epoch, StoreError>) -> Result<Opened, StoreError> {
    let builder = Store::builder(DIR).cores(2).settings(settings()).vfs(Arc::new(disk.clone()));
    builder.open_as_part(agree)
}

fn reopened(disk: &SimDisk, limit: u64) -> Result<Opened, StoreError> {
    open(&disk.snapshot().restart(), |found| Ok(found.min(Epoch(limit))))
}

/// Puts something into every core and seals; durable when it returns.
fn epoch(opened: &mut Opened, value: u64) -> Epoch {
    let mut sealed = Epoch::ZERO;
    for core in &mut opened.cores {
        for key in 0..8_u64 {
            core.put(&(key * 2 + u64::from(core.core_id().0)).to_le_bytes(), &(value + key).to_le_bytes())
                .unwrap();
        }
        core.set_source_offset("source", value);
        sealed = core.seal_epoch().unwrap();
    }
    opened.store.wait_durable(sealed).unwrap();
    sealed
}

/// A checkpoint of the reserved epoch that somebody else asked for released it: the next one could go beyond before whoever had
/// reserved it looked for it, and a backup of the whole was never made again. Found by reading.
#[test]
fn only_whoever_reserved_an_epoch_releases_it() {
    let disk = SimDisk::new(10);
    let mut opened = open(&disk, Ok).unwrap();
    let reserved = opened.cores[0].epoch();
    opened.store.reserve_checkpoint(reserved).unwrap();
    assert_eq!(epoch(&mut opened, 1), reserved);
    opened.store.settle(reserved).unwrap();
    assert_eq!(opened.store.checkpoint().unwrap().epoch, reserved, "as the checkpoint thread may");
    let last = epoch(&mut opened, 2);
    opened.store.settle(last).unwrap();
    assert_eq!(opened.store.checkpoint().unwrap().epoch, reserved, "still none beyond it");
    assert_eq!(opened.store.checkpoint_at(reserved).unwrap().epoch, reserved);
    assert_eq!(opened.store.checkpoint().unwrap().epoch, last);
}

/// What all parts are to have in their checkpoint of an epoch is exactly that epoch, whatever became durable with it and whoever asked for
/// a checkpoint meanwhile.
#[test]
fn a_checkpoint_of_a_reserved_epoch_holds_that_epoch_and_nothing_else() {
    let disk = SimDisk::new(9);
    let mut opened = open(&disk, Ok).unwrap();
    let first = epoch(&mut opened, 10);
    opened.store.settle(first).unwrap();
    let reserved = opened.cores[0].epoch();
    opened.store.reserve_checkpoint(reserved).unwrap();
    let refused = |error: StoreError, sign: &str| {
        assert!(matches!(error, StoreError::InvalidInput(_)) && error.to_string().contains(sign), "{error}");
    };
    refused(opened.store.reserve_checkpoint(reserved.next()).unwrap_err(), "is, and is not made yet");
    refused(opened.store.checkpoint_at(reserved).unwrap_err(), "not durable");
    // Both become durable together.
    for value in [20, 30] {
        for core in &mut opened.cores {
            core.put(b"key", &[value]).unwrap();
            core.set_source_offset("source", u64::from(value));
            core.seal_epoch().unwrap();
        }
    }
    let last = reserved.next();
    opened.store.wait_durable(last).unwrap();
    refused(opened.store.checkpoint_at(reserved).unwrap_err(), "not settled");
    opened.store.settle(last).unwrap();
    assert_eq!(opened.store.checkpoint().unwrap().epoch, first, "none goes beyond it before");
    assert_eq!(opened.store.checkpoint_at(reserved).unwrap().epoch, reserved);
    assert_eq!(opened.store.checkpoint_at(reserved).unwrap().changes, 0, "it is there");
    drop(opened);
    let newest = open(&disk.snapshot().restart(), Ok).unwrap();
    assert_eq!((newest.report.recovery_point, newest.cores[0].get(b"key")), (last, Some(&[30][..])));

    // Another one, kept, to begin a store with.
    let disk = SimDisk::new(9);
    let mut opened = open(&disk, Ok).unwrap();
    let reserved = epoch(&mut opened, 10);
    opened.store.settle(reserved).unwrap();
    let expected = contents(&opened);
    let last = epoch(&mut opened, 20);
    opened.store.settle(last).unwrap();
    opened.store.checkpoint_at(reserved).unwrap();
    let newest = Path::new(DIR).join("checkpoints/checkpoint_0000000000000001");
    let builder = Store::builder("/fork").cores(2).settings(settings()).vfs(Arc::new(disk.clone()));
    let fork = builder.from_savepoint(newest).open_as_part(Ok).unwrap();
    assert_eq!((fork.report.recovery_point, contents(&fork)), (reserved, expected));
    assert_eq!(fork.report.source_offsets["source"], 10);
    assert_eq!(opened.store.checkpoint().unwrap().epoch, last);
    refused(opened.store.checkpoint_at(reserved).unwrap_err(), "holds epoch");
    refused(opened.store.reserve_checkpoint(reserved).unwrap_err(), "may hold");
}

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn contents(opened: &Opened) -> State {
    let pairs = opened.cores.iter().flat_map(|core| core.iter());
    pairs.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// A disk with ten durable epochs, of which as many are settled; and the state at the end of each.
fn ten(settled: u64, checkpoint: bool) -> (SimDisk, BTreeMap<u64, State>) {
    let disk = SimDisk::new(7);
    let mut opened = open(&disk, Ok).unwrap();
    let mut states = BTreeMap::from([(0, contents(&opened))]);
    for value in 1..=10 {
        let sealed = epoch(&mut opened, value * 100);
        states.insert(sealed.get(), contents(&opened));
        if sealed.get() <= settled {
            opened.store.settle(sealed).unwrap();
        }
    }
    if checkpoint {
        let receipt = opened.store.checkpoint().unwrap();
        assert_eq!(receipt.epoch, Epoch(settled));
    }
    drop(opened);
    (disk, states)
}

#[test]
fn a_part_lands_on_any_epoch_that_is_not_settled_and_goes_on_from_there() {
    for checkpoint in [false, true] {
        let (disk, states) = ten(4, checkpoint);
        for limit in 4..=10 {
            let restarted = disk.snapshot().restart();
            let mut found = None;
            let mut opened = open(&restarted, |epoch| {
                assert_eq!(found.replace(epoch), None, "asked once");
                Ok(Epoch(limit))
            })
            .unwrap();
            assert_eq!(found, Some(Epoch(10)));
            assert_eq!(opened.report.recovery_point, Epoch(limit));
            assert_eq!(contents(&opened), states[&limit], "epoch {limit}");
            assert_eq!(opened.report.source_offsets["source"], limit * 100);
            // What was discarded is gone for good, and its numbers are not used again.
            let next = epoch(&mut opened, 7);
            assert!(next > Epoch(10), "{next}");
            let now = contents(&opened);
            opened.store.settle(next).unwrap();
            opened.store.checkpoint().unwrap();
            drop(opened);
            let again = open(&restarted.snapshot().restart(), Ok).unwrap();
            assert_eq!((again.report.recovery_point, contents(&again)), (next, now));
        }
    }
}

#[test]
fn what_was_settled_is_never_discarded() {
    for checkpoint in [false, true] {
        let (disk, states) = ten(4, checkpoint);
        let error = reopened(&disk, 3).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("epoch 3") || text.contains("epoch 4 was acknowledged"), "{text}");
        // Nothing was changed by that.
        let opened = reopened(&disk, 4).unwrap();
        assert_eq!(contents(&opened), states[&4]);
    }
}

#[test]
fn no_part_lands_beyond_what_it_has_and_an_error_of_the_others_changes_nothing() {
    let (disk, states) = ten(10, false);
    let restarted = disk.snapshot().restart();
    let error = open(&restarted, |_| Ok(Epoch(11))).unwrap_err();
    assert!(matches!(error, StoreError::InvalidInput(_)), "{error}");
    let cause = Store::builder("").cores(0).open().unwrap_err();
    let error = open(&restarted, |_| Err(cause.clone())).unwrap_err();
    assert_eq!(error.to_string(), cause.to_string());
    let opened = open(&restarted.snapshot().restart(), Ok).unwrap();
    assert_eq!(contents(&opened), states[&10]);
}

#[test]
fn only_what_is_durable_here_is_settled_and_only_in_a_part() {
    let disk = SimDisk::new(7);
    let mut opened = open(&disk, Ok).unwrap();
    let sealed = epoch(&mut opened, 1);
    assert!(opened.store.settle(sealed.next()).is_err());
    opened.store.settle(sealed).unwrap();
    opened.store.settle(Epoch::ZERO).unwrap();
    drop(opened);
    let whole = Store::builder("/whole").settings(settings()).vfs(Arc::new(disk)).open().unwrap();
    assert!(whole.store.settle(Epoch::ZERO).is_err());
}

/// What was settled after the last sync stood in `CLOSED` alone: an earlier epoch could be agreed on, and from then on the store
/// did not open any more.
#[test]
fn what_was_settled_just_before_an_orderly_end_is_never_discarded() {
    let disk = SimDisk::new(3);
    let mut opened = open(&disk, Ok).unwrap();
    let first = epoch(&mut opened, 1);
    let state = contents(&opened);
    opened.store.settle(first).unwrap();
    opened.store.close().unwrap();
    drop(opened.cores);
    let error = reopened(&disk, 0).unwrap_err().to_string();
    assert!(error.contains("epoch 0 was agreed on, but epoch 1 was settled"), "{error}");
    assert_eq!(contents(&reopened(&disk, 1).unwrap()), state);
}

/// The others take it for durable: it must be, before they are told. It was made durable only when the store was loaded.
#[test]
fn what_a_part_tells_the_others_survives_a_power_cut_at_that_moment() {
    let disk = SimDisk::new(5);
    let mut opened = open(&disk, Ok).unwrap();
    disk.record(true);
    for value in 1..4 {
        epoch(&mut opened, value);
    }
    let history = disk.history();
    drop(opened);
    let mut told = Vec::new();
    for snapshot in history {
        // The process is killed: what it wrote is there to be read, and not on the disk.
        let killed = snapshot.restart();
        let opened = open(&killed, |found| {
            let cut = killed.snapshot().image(&ImageId::default()).mount();
            let kept = open(&cut, Ok)?.report.recovery_point;
            assert_eq!(kept, found, "op {}", snapshot.op());
            told.push(found);
            Ok(found)
        });
        opened.unwrap();
    }
    assert!(told.contains(&Epoch(3)) && told.len() > 10, "{told:?}");
}

/// An end in order leaves evidence of what was acknowledged; of a part, that is what was settled.
#[test]
fn a_part_that_was_closed_in_order_lands_below_its_durable_epoch() {
    let disk = SimDisk::new(3);
    let mut opened = open(&disk, Ok).unwrap();
    let first = epoch(&mut opened, 1);
    let state = contents(&opened);
    opened.store.settle(first).unwrap();
    epoch(&mut opened, 2);
    epoch(&mut opened, 3);
    opened.store.close().unwrap();
    drop(opened.cores);
    let landed = reopened(&disk, first.get()).unwrap();
    assert_eq!(contents(&landed), state);
}

/// Laid out anew in the same opening, and interrupted, it opened with the state of the agreed epoch under the number of the
/// last one. Enumeration found that.
#[test]
fn a_part_is_laid_out_for_other_cores_only_once_it_has_landed() {
    let (disk, states) = ten(4, false);
    let router = Router::new(|key, cores| usize::from(key[0]) % cores);
    let restarted = Arc::new(disk.snapshot().restart());
    let open = |cores| {
        let builder = Store::builder(DIR).cores(cores).settings(settings()).router(router.clone());
        builder.vfs(restarted.clone()).open_as_part(|_| Ok(Epoch(6)))
    };
    let error = open(3).unwrap_err().to_string();
    assert!(error.contains("Open it with 2 cores, then again with 3"), "{error}");
    assert_eq!(contents(&open(2).unwrap()), states[&6]);
    let opened = open(3).unwrap();
    assert_eq!((opened.report.resharded_from, contents(&opened)), (Some(2), states[&6].clone()));
}

/// A crash after every operation of an opening that discards: the next opening lands on the same epoch.
#[test]
fn a_power_cut_at_any_moment_of_landing_lower_changes_nothing_of_where_it_lands() {
    let (disk, states) = ten(4, true);
    let restarted = disk.snapshot().restart();
    restarted.record(true);
    drop(open(&restarted, |_| Ok(Epoch(6))).unwrap());
    let policy = ImagePolicy { exhaustive_bits: 3, random: 3, torn_cuts: 1, ..ImagePolicy::default() };
    let mut images = 0;
    for snapshot in restarted.history() {
        for image in snapshot.images(&policy) {
            let opened = open(&image.mount(), |found| {
                assert!(found == Epoch(10) || found == Epoch(6), "{found}");
                Ok(Epoch(6))
            });
            assert_eq!(contents(&opened.unwrap()), states[&6], "op {}", snapshot.op());
            images += 1;
        }
    }
    assert!(images > 20, "{images}");
}
