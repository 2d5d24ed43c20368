//! Power cuts and failing operations at every point of a history of checkpoints.

use super::*;

/// The states the checkpoints of [`history`] hold, by id.
fn model() -> BTreeMap<u64, StateMap> {
    let mut state = StateMap::new();
    let mut states = BTreeMap::from([(0, state.clone())]);
    for step in 1..=5_u8 {
        for (key, value) in changes(step) {
            state.apply(&key, value.as_deref());
        }
        states.insert(u64::from(step), state.clone());
    }
    states
}

fn changes(step: u8) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut changes = vec![(vec![step], Some(vec![step; 40])), (b"all".to_vec(), Some(vec![step]))];
    if step > 2 {
        changes.push((vec![step - 2], None));
    }
    changes
}

fn options() -> ManagerOptions {
    // Small enough to spill in the middle of a step.
    ManagerOptions { overlay_budget: 145, ..eager() }
}

fn try_open(disk: &SimDisk) -> Result<IncrementalCheckpointManager> {
    let config = config().with_max_retained(2);
    IncrementalCheckpointManager::with_options(config, Arc::new(disk.clone()), options())
}

/// Five checkpoints with spills, merges, links and removals. `acked` is the newest that was returned.
fn history(disk: &SimDisk, acked: &mut u64) -> Result<()> {
    let mut manager = try_open(disk)?;
    for step in 1..=5_u8 {
        manager.apply_batch(changes(step))?;
        manager.set_epoch(u64::from(step));
        *acked = manager.create_checkpoint(0)?.id;
    }
    Ok(())
}

/// Opens what is left: exactly one of the checkpoints, none older than the acknowledged one, and it
/// can be gone on with.
fn check(disk: &SimDisk, acked: u64, place: &str) {
    let states = model();
    let mut manager = try_open(disk).unwrap_or_else(|e| panic!("{place}: {e}"));
    let id = manager.latest_checkpoint_id().unwrap_or(0);
    assert!(id >= acked, "{place}: checkpoint {acked} was acknowledged, {id} found");
    let expected = states.get(&id).unwrap_or_else(|| panic!("{place}: {id} never existed"));
    assert_eq!(manager.epoch(), id, "{place}");
    for key in (1..=5).map(|n| vec![n]).chain([b"all".to_vec()]) {
        assert_eq!(manager.get(&key).unwrap().as_deref(), expected.get(&key), "{place}");
    }
    assert!(!names(disk).iter().any(|name| name.contains(".tmp/") || name.contains(".trash/")), "{place}");
    for listed in manager.list_checkpoints().unwrap() {
        validate_checkpoint_in(disk, &dir_of(listed.id)).unwrap_or_else(|e| panic!("{place}: {e}"));
    }
    manager.put(b"after", b"crash").unwrap();
    let next = manager.create_checkpoint(0).unwrap();
    assert_eq!(next.key_count, expected.len() as u64 + 1, "{place}");
    drop(manager);
    assert_eq!(try_open(disk).unwrap().get(b"after").unwrap().unwrap(), b"crash", "{place}");
}

#[test]
fn a_power_cut_after_any_operation_leaves_a_checkpoint() {
    let disk = SimDisk::new(3);
    disk.record(true);
    history(&disk, &mut 0).unwrap();
    let snapshots = disk.history();
    // When each checkpoint was acknowledged: with the sync of the parent after its rename.
    let mut acked = 0;
    let mut published = 0;
    let mut images = 0_u64;
    for snapshot in &snapshots {
        if let Some(op) = snapshot.last_op() {
            let renamed = op.to.as_deref().and_then(|to| to.strip_prefix("/c/checkpoint_"));
            if let Some(id) = renamed.and_then(|id| u64::from_str_radix(id, 16).ok()) {
                published = id;
            }
            if op.call == "fsync" && &*op.path == "/c" {
                acked = published;
            }
        }
        let policy = ImagePolicy { exhaustive_bits: 6, random: 6, torn_cuts: 1, ..ImagePolicy::default() };
        for image in snapshot.images(&policy) {
            images += 1;
            check(&image.mount(), acked, &format!("op {} image {:?}", snapshot.op(), image.id()));
        }
    }
    assert_eq!(acked, 5);
    assert!(images > 1000, "{images} images");
}

/// Whoever was told that a checkpoint was made may cut what it replaces: it is there after a power cut of
/// which nothing survives that was not synced.
#[test]
fn a_checkpoint_that_was_returned_survives_a_power_cut() {
    let disk = SimDisk::new(3);
    let mut manager = try_open(&disk).unwrap();
    for step in 1..=5_u8 {
        manager.apply_batch(changes(step)).unwrap();
        manager.set_epoch(u64::from(step));
        let id = manager.create_checkpoint(0).unwrap().id;
        check(&disk.snapshot().image(&ImageId::default()).mount(), id, &format!("step {step}"));
    }
}

/// Checkpoints that cannot be listed are not none: a manager that began with an empty state would give
/// their ids to others and, later, remove them.
#[test]
fn checkpoints_that_cannot_be_listed_are_an_error() {
    let disk = SimDisk::new(3);
    history(&disk, &mut 0).unwrap();
    let mut refused = 0;
    for read in 1..40 {
        let disk = disk.snapshot().restart();
        disk.number_reads(true);
        disk.fail_op(disk.ops() + read, Fault::Eio, For::Once);
        match try_open(&disk) {
            Ok(manager) => assert_eq!(manager.latest_checkpoint_id(), Some(5), "read {read}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 5, "{refused}");
}

/// A process that dies between a rename and its sync leaves a name that is not durable. Whoever
/// opens next builds upon that checkpoint, so it must not vanish any more.
#[test]
fn what_opening_shows_survives_a_power_cut() {
    let disk = SimDisk::new(3);
    disk.record(true);
    history(&disk, &mut 0).unwrap();
    for snapshot in disk.history() {
        let restarted = snapshot.restart();
        let shown = try_open(&restarted).unwrap().latest_checkpoint_id().unwrap_or(0);
        let policy = ImagePolicy { exhaustive_bits: 3, random: 2, torn_cuts: 0, ..ImagePolicy::default() };
        for image in restarted.snapshot().images(&policy) {
            check(&image.mount(), shown, &format!("op {}", snapshot.op()));
        }
    }
}

#[test]
fn a_crash_while_opening_after_a_crash() {
    let disk = SimDisk::new(3);
    disk.record(true);
    history(&disk, &mut 0).unwrap();
    // The most is left behind just before a name is given: look at every rename and every third other.
    for snapshot in disk.history().iter().skip(1).step_by(3) {
        let acked = try_open(&snapshot.flushed().mount()).unwrap().latest_checkpoint_id().unwrap_or(0);
        let crashed = snapshot.flushed().mount();
        crashed.record(true);
        drop(try_open(&crashed).unwrap());
        for again in crashed.history() {
            let policy =
                ImagePolicy { exhaustive_bits: 3, random: 2, torn_cuts: 0, ..ImagePolicy::default() };
            for image in again.images(&policy) {
                check(&image.mount(), acked, &format!("op {} then {}", snapshot.op(), again.op()));
            }
        }
    }
}

#[test]
fn any_operation_that_fails_poisons_and_loses_nothing() {
    let clean = SimDisk::new(3);
    history(&clean, &mut 0).unwrap();
    let ops = clean.ops();
    let drops = Fault::SyncDropsAndCleans { keep: Keep::FirstHalf, reads_old: true };
    for fault in [Fault::Eio, Fault::EioAfter, Fault::Enospc, drops] {
        for duration in [For::Once, For::Forever] {
            for op in 1..=ops {
                let disk = SimDisk::new(3);
                disk.fail_op(op, fault, duration);
                let mut acked = 0;
                let result = history(&disk, &mut acked);
                let place = format!("op {op} {fault:?} {duration:?}: {result:?}");
                disk.clear_faults();
                // Killed, and restarted on the same machine; then power-cut with everything lost.
                check(&disk.snapshot().restart(), acked, &place);
                let policy =
                    ImagePolicy { exhaustive_bits: 0, random: 2, torn_cuts: 0, ..ImagePolicy::default() };
                for image in disk.snapshot().images(&policy) {
                    check(&image.mount(), acked, &place);
                }
            }
        }
    }
}

#[test]
fn short_and_interrupted_transfers_change_nothing() {
    let clean = SimDisk::new(3);
    clean.number_reads(true);
    history(&clean, &mut 0).unwrap();
    let faults = [
        Fault::Eintr,
        Fault::ShortWrite(Short::One),
        Fault::ShortWrite(Short::Half),
        Fault::ShortRead(Short::One),
        Fault::ShortRead(Short::AllButOne),
    ];
    for fault in faults {
        for op in 1..=clean.ops() {
            let disk = SimDisk::new(3);
            disk.number_reads(true);
            disk.fail_op(op, fault, For::Once);
            history(&disk, &mut 0).unwrap_or_else(|e| panic!("op {op} {fault:?}: {e}"));
        }
    }
}

#[test]
fn a_failing_read_is_an_error_and_loses_nothing() {
    let clean = SimDisk::new(3);
    clean.number_reads(true);
    history(&clean, &mut 0).unwrap();
    for op in 1..=clean.ops() {
        let disk = SimDisk::new(3);
        disk.number_reads(true);
        disk.fail_op(op, Fault::Eio, For::Once);
        let mut acked = 0;
        let _ = history(&disk, &mut acked);
        disk.clear_faults();
        check(&disk.snapshot().restart(), acked, &format!("op {op}"));
    }
}

#[test]
fn a_poisoned_manager_reads_on_and_names_the_first_cause() {
    let clean = SimDisk::new(3);
    let mut manager = try_open(&clean).unwrap();
    manager.apply_batch(changes(1)).unwrap();
    let before = clean.ops();
    manager.create_checkpoint(0).unwrap();
    let after = clean.ops();
    drop(manager);
    let mut poisoned = 0;
    for op in before + 1..=after {
        let disk = SimDisk::new(3);
        let mut manager = try_open(&disk).unwrap();
        manager.apply_batch(changes(1)).unwrap();
        assert_eq!(disk.ops(), before);
        disk.fail_op(op, Fault::Eio, For::Once);
        let Err(first) = manager.create_checkpoint(0) else {
            continue;
        };
        poisoned += 1;
        let syncs = disk.stats().sync_data;
        for again in [
            manager.put(b"x", b"y"),
            manager.create_checkpoint(0).map(drop),
            manager.cleanup_old_checkpoints(),
        ] {
            let again = again.unwrap_err();
            assert!(matches!(again, IncrementalCheckpointError::Poisoned(_)));
            assert!(again.to_string().contains(first.detail().what()), "{again}");
        }
        assert_eq!(disk.stats().sync_data, syncs, "a sync is never tried again");
        assert!(manager.poisoned_by().is_some());
        for (key, value) in changes(1) {
            assert_eq!(manager.get(&key).unwrap(), value);
        }
    }
    assert!(poisoned > 5);
}

#[test]
fn a_full_disk_can_still_be_opened_and_read() {
    let disk = SimDisk::new(3);
    history(&disk, &mut 0).unwrap();
    let disk = disk.snapshot().restart();
    disk.set_capacity(Some(0));
    let manager = try_open(&disk).unwrap();
    assert_eq!(manager.get(b"all").unwrap().unwrap(), [5]);
}

#[test]
fn every_bit_of_a_checkpoint() {
    let disk = SimDisk::new(3);
    history(&disk, &mut 0).unwrap();
    let image = disk.snapshot().flushed();
    let disk = image.mount();
    let states = model();
    let newest = dir_of(5);
    let mut bits = 0;
    for (path, len) in files(&disk).into_iter().filter(|(path, _)| path.starts_with(&newest)) {
        for bit in 0..len * 8 {
            disk.flip_bit(&path, bit).unwrap();
            match CheckpointReader::open(&disk, &newest).and_then(|reader| reader.verify().map(|()| reader)) {
                Ok(reader) => assert_eq!(reader.load().unwrap(), states[&5], "{} bit {bit}", path.display()),
                Err(error) => assert!(error.detail().path().is_some(), "{error}"),
            }
            bits += 1;
            disk.flip_bit(&path, bit).unwrap();
        }
    }
    assert!(bits > 5000, "{bits}");
}
