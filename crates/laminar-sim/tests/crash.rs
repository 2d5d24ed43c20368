//! Bugs that crashes of the whole store have found, each with its story. `enumeration.rs` looks for more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use laminar_sim::store::{DIR, StoreScenario, open, small_settings, store_scenarios};
use laminar_sim::wal::wal_scenarios;
use laminar_sim::{Log, Plan, Scenario, Trail, explore, replay};
use laminar_storage::incremental::validate_checkpoint_in;
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImageId, ImagePolicy, Op, SimDisk};
use laminar_storage::{DigestCheck, Router, StateReader};

fn scenario(name: &str) -> StoreScenario {
    store_scenarios().into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// Scenarios with small states are only worth something if these go the ways of large ones: a checkpoint shares some
/// ranges with the one before and has written others again, and changes are spilled.
#[test]
fn small_states_are_cut_into_ranges_renewed_and_spilled() {
    let run = |scenario: &StoreScenario| {
        let disk = SimDisk::new(1);
        scenario.run(&disk, &mut Log::new(scenario.start())).unwrap();
        disk
    };
    for name in ["store-ranges", "store-ranges-reshard", "store-ranges-recover-resharded", "store-spilling"] {
        let scenario = scenario(name);
        let disk = run(&scenario);
        let (vfs, dir): (&dyn Vfs, _) = (&disk, Path::new(DIR).join("checkpoints"));
        let shares_some = vfs.read_dir(&dir).unwrap().into_iter().any(|(checkpoint, _)| {
            let Ok(metadata) = validate_checkpoint_in(vfs, &dir.join(checkpoint)) else { return false };
            let ranges = metadata.files.iter().filter(|file| file.part >= FIRST_RANGE);
            ranges.map(|file| file.checkpoint).collect::<BTreeSet<_>>().len() > 1
        });
        assert!(shares_some, "{name}: no checkpoint shares some ranges and not all");
        if name == "store-spilling" {
            let mut patient = scenario.clone();
            patient.manager.overlay_budget = usize::MAX;
            let (spilled, not) = (disk.ops(), run(&patient).ops());
            assert!(spilled > not, "{name}: {spilled} operations, {not} without spilling");
        }
    }
}

/// Scenarios of segments that are used again are only worth something if that happens in them, with more than one core and
/// with files that had been used again before.
#[test]
fn segments_are_used_again_and_again() {
    fn again(scenario: &impl Scenario) -> usize {
        let disk = SimDisk::new(1);
        scenario.run(&disk, &mut Log::new(scenario.start())).unwrap();
        let taken = |op: &&Op| op.call == "rename" && op.path.contains("/spare-");
        disk.trace().iter().filter(taken).count()
    }
    let of_wal = wal_scenarios().into_iter().find(|scenario| scenario.name == "wal-reused").unwrap();
    let (of_store, of_wal) = (again(&scenario("store-reused")), again(&of_wal));
    assert!(of_store >= 4 && of_wal >= 4, "{of_store} {of_wal}");
}

/// Part numbers from here on are ranges of a base (docs/FORMAT.md).
const FIRST_RANGE: u16 = 0x8000;

/// Kills a scenario after each of some operations, and each recovery of it after each of its first
/// ones; returns how many trails there were.
fn kills_of_kills(name: &str, ops: std::ops::Range<u64>, nested: u64) -> u64 {
    let mut tried = 0;
    for op in ops {
        for then in 0..nested {
            let trail: Trail = format!("{op}/kill+{then}/kill").parse().unwrap();
            match replay(&scenario(name), 1, &trail) {
                Ok(_) => tried += 1,
                Err(error) if error.starts_with("there is no operation") => break,
                Err(error) => panic!("{trail}: {}", error.lines().next().unwrap_or_default()),
            }
        }
    }
    tried
}

/// A store that was opened several times before its first record did not open any more: its log
/// "begins after epoch 0", as its oldest segment names a predecessor without records that the walk
/// rightly does not visit.
#[test]
fn a_store_that_never_had_a_record_opens_any_number_of_times() {
    let disk = SimDisk::new(1);
    for _ in 0..5 {
        let opened = open(&disk, 2, &small_settings()).unwrap();
        assert_eq!(opened.report.recovery_point.get(), 0);
    }
}

/// A crash in the middle of a roll leaves a segment that was never completely created. The next
/// opening continues past it; when it crashed before sweeping it, the opening after that took the
/// leftover for a gap in the chain and refused.
#[test]
fn a_roll_and_then_an_opening_may_both_be_interrupted() {
    assert!(kills_of_kills("store-roll", 10..32, 24) > 100);
}

/// The first opening of a store, with three cores, was interrupted; the next, with one core, was
/// interrupted after `CURRENT`. The leftovers of the first then counted as damaged segments of an
/// established incarnation.
#[test]
fn leftovers_of_an_opening_with_more_cores_are_no_damage() {
    assert!(kills_of_kills("store-recover-one-core", 5..25, 24) > 100);
}

/// Re-sharding after a kill published a checkpoint that contained the log "up to sequence 3", while
/// those three records were still only in the page cache. Power failed; the log came back empty, and
/// the next records got sequences 1 to 5, of which recovery skipped three as contained: acknowledged
/// changes were lost. The log is now synced first, and sequences begin above the checkpoint's. Were
/// only the first left out, a checkpoint could outlive the records it contains, and nothing would open.
#[test]
fn a_resharding_checkpoint_never_covers_records_that_can_still_vanish() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 2, &small_settings()).unwrap();
    disk.record(true);
    for n in 0..8_u32 {
        let key = n.to_le_bytes();
        opened.cores[Router::default().route(&key, 2)].put(&key, b"value").unwrap();
    }
    let epochs: Vec<_> = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
    opened.store.wait_durable(epochs[0]).unwrap();
    let mut cuts = 0;
    for snapshot in disk.history() {
        // What was written and not synced is still there after a kill.
        let killed = snapshot.restart();
        killed.record(true);
        drop(open(&killed, 1, &small_settings()).unwrap());
        for again in killed.history() {
            let cut = again.image(&ImageId::default()).mount();
            let opened = open(&cut, 1, &small_settings());
            let keys = opened.unwrap_or_else(|e| panic!("op {} then {}: {e}", snapshot.op(), again.op()));
            assert!([0, 8].contains(&keys.report.keys), "op {} then {}", snapshot.op(), again.op());
            cuts += 1;
        }
    }
    assert!(cuts > 50, "{cuts}");
}

/// The same scenario with everything that enumeration looks at.
#[test]
fn a_resharding_after_a_kill_survives_every_power_cut() {
    let policy = ImagePolicy { exhaustive_bits: 2, random: 2, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 1, random: 0, garbage: false, ..policy.clone() };
    let plan = Plan { policy, nested_policy, nested_images: 2_500, threads: 2, ..Plan::default() };
    let report = explore(&scenario("store-recover-one-core"), 1, &plan);
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    assert!(report.images[1] > 500, "{report}");
}

/// A re-sharding that crashed after its checkpoint was published left a state that the next opening
/// could not verify, because the checkpoint carried no digests; and a wrong one would only have been
/// noticed after it was published.
#[test]
fn a_resharding_checkpoint_carries_digests() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 2, &small_settings()).unwrap();
    for n in 0..20_u32 {
        let key = n.to_le_bytes();
        let core = Router::default().route(&key, 2);
        opened.cores[core].put(&key, b"value").unwrap();
    }
    let epochs: Vec<_> = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
    opened.store.wait_durable(epochs[0]).unwrap();
    drop(opened);
    // No record is written with three cores, so that only the checkpoint can know the digest.
    for _ in 0..2 {
        let opened = open(&disk, 3, &small_settings()).unwrap();
        assert_eq!(opened.report.digest, DigestCheck::Verified);
        assert_eq!(opened.report.keys, 20);
    }
}

/// A source that a program had given up was back after the next opening, at its old offset: recovery
/// added the commit records of the log to each other, although each names every source that its core
/// reads. Found by `store-positions`.
#[test]
fn a_source_that_was_removed_does_not_come_back() {
    for cores in [2, 1, 3] {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk, 2, &small_settings()).unwrap();
        let seal = |opened: &mut laminar_storage::Opened| {
            let epochs: Vec<_> = opened.cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
            opened.store.wait_durable(epochs[0]).unwrap();
        };
        for core in &mut opened.cores {
            core.set_source_offset("kept", 3);
            core.set_source_offset("given up", 5);
        }
        seal(&mut opened);
        opened.cores.iter_mut().for_each(|core| core.remove_source_offset("given up"));
        seal(&mut opened);
        drop(opened);
        let expected = [("kept".to_owned(), 3)].into();
        let reader = StateReader::open_with(DIR, Arc::new(disk.clone())).unwrap();
        assert_eq!(reader.report().source_offsets, expected);
        let opened = open(&disk, cores, &small_settings()).unwrap();
        assert_eq!(opened.report.source_offsets, expected, "with {cores} cores");
    }
}
