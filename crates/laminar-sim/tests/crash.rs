//! Crashes of the whole store after every operation, and inside its recoveries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::store::{StoreScenario, open, small_settings, store_scenarios};
use laminar_sim::{Plan, Report, Trail, explore, replay};
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};
use laminar_storage::{DigestCheck, Router};

fn scenario(name: &str) -> StoreScenario {
    store_scenarios().into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// Every selection of up to two pending items, the telling ones of more; some recoveries crash too.
fn short() -> Plan {
    let policy = ImagePolicy { exhaustive_bits: 2, random: 2, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 1, random: 0, garbage: false, ..policy.clone() };
    Plan {
        policy,
        nested_policy,
        nested_every: 600,
        nested_kills_every: 60,
        threads: 2,
        failures_max: 5,
        ..Plan::default()
    }
}

fn explored(name: &str, images_min: u64) -> Report {
    let report = explore(&scenario(name), 1, &short());
    println!("{name}: {report}");
    for failure in &report.failures {
        println!("  {failure}");
    }
    assert!(report.failures.is_empty(), "{name}: {}", report.failures[0]);
    assert!(report.images_total() >= images_min, "{name}: {report}");
    report
}

macro_rules! scenarios {
    ($($test:ident $name:literal $images:literal)*) => {$(
        #[test]
        fn $test() {
            explored($name, $images);
        }
    )*
        #[test]
        fn every_scenario_of_the_store_is_here() {
            let names = [$($name),*];
            assert!(store_scenarios().iter().all(|scenario| names.contains(&scenario.name)));
        }
    };
}

scenarios! {
    one_core "store-one-core" 50
    two_cores_with_a_checkpoint "store-two-cores" 300
    tails_that_no_seal_follows "store-tails" 200
    seals_that_jump "store-jumps" 300
    evidence_left_when_idle "store-idle" 200
    openings_with_nothing_new "store-reopen" 400
    segments_that_roll "store-roll" 200
    truncation_retention_and_merging "store-checkpoints" 3000
    a_full_ring "store-full-ring" 100
    two_three_one_and_two_cores "store-reshard" 1500
    one_retained_checkpoint "store-retain-one" 2000
    segments_written_ahead "store-preallocated" 800
    recovery_with_more_cores "store-recover-resharded" 300
    recovery_with_one_core "store-recover-one-core" 500
}

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
    assert!(kills_of_kills("store-roll", 24..32, 24) > 100);
}

/// The first opening of a store, with three cores, was interrupted; the next, with one core, was
/// interrupted after `CURRENT`. The leftovers of the first then counted as damaged segments of an
/// established incarnation.
#[test]
fn leftovers_of_an_opening_with_more_cores_are_no_damage() {
    assert!(kills_of_kills("store-recover-one-core", 17..25, 24) > 100);
}

/// Re-sharding after a kill published a checkpoint that contained the log "up to sequence 3", while
/// those three records were still only in the page cache. Power failed; the log came back empty, and
/// the next records got sequences 1 to 5, of which recovery skipped three as contained: acknowledged
/// changes were lost. The log is now synced first, and sequences begin above the checkpoint's.
#[test]
fn a_resharding_checkpoint_never_covers_records_that_can_still_vanish() {
    let mut plan = short();
    (plan.nested_kills_every, plan.images_max) = (4, 2_500);
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
