//! Crashes of the whole store after every operation, and inside its recoveries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::store::{StoreScenario, store_scenarios};
use laminar_sim::{Plan, Report, Trail, explore, replay};
use laminar_storage::vfs::sim::ImagePolicy;

fn scenario(name: &str) -> StoreScenario {
    store_scenarios().into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// Every selection of up to three pending items, the telling ones of more; some recoveries crash too.
fn short() -> Plan {
    let policy = ImagePolicy { exhaustive_bits: 3, random: 4, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 2, random: 0, garbage: false, ..policy.clone() };
    Plan {
        policy,
        nested_policy,
        nested_every: 400,
        nested_kills_every: 40,
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

/// Runs a trail that once went wrong, or what it leads to now.
fn once_failed(name: &str, trail: &str) {
    let trail: Trail = trail.parse().unwrap();
    if let Err(error) = replay(&scenario(name), 1, &trail) {
        panic!("{}", error.lines().next().unwrap_or_default());
    }
}

/// A store that was opened several times before its first record did not open any more: its log
/// "begins after epoch 0", as its oldest segment names a predecessor without records that the walk
/// rightly does not visit.
#[test]
fn a_store_that_never_had_a_record_opens_any_number_of_times() {
    once_failed("store-one-core", "0/kill");
    once_failed("store-two-cores", "2/kill");
}

/// A crash in the middle of a roll leaves a segment that was never completely created. The next
/// opening continues past it; when it crashed before sweeping it, the opening after that took the
/// leftover for a gap in the chain and refused.
#[test]
fn a_roll_and_then_an_opening_may_both_be_interrupted() {
    once_failed("store-roll", "27/kill+9/kill");
    once_failed("store-full-ring", "30/kill+9/kill");
}

/// The first opening of a store, with three cores, was interrupted; the next, with one core, was
/// interrupted after `CURRENT`. The leftovers of the first then counted as damaged segments of an
/// established incarnation.
#[test]
fn leftovers_of_an_opening_with_more_cores_are_no_damage() {
    once_failed("store-recover-one-core", "19/kill+15/kill");
    once_failed("store-recover-one-core", "22/kill+16/kill");
}

/// Re-sharding after a kill published a checkpoint that contained the log "up to sequence 3", while
/// those three records were still only in the page cache. Power failed; the log came back empty, and
/// the next records got sequences 1 to 5, of which recovery skipped three as contained: acknowledged
/// changes were lost. The log is now synced first, and sequences begin above the checkpoint's.
#[test]
fn a_resharding_checkpoint_never_covers_records_that_can_still_vanish() {
    let mut plan = short();
    (plan.nested_kills_every, plan.images_max) = (4, 4_000);
    let report = explore(&scenario("store-recover-one-core"), 1, &plan);
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    assert!(report.images[1] > 500, "{report}");
}

/// A re-sharding that crashed after its checkpoint was published left a state that the next opening
/// could not verify, because the checkpoint carried no digests.
#[test]
fn a_resharding_checkpoint_carries_digests() {
    once_failed("store-reshard", "70/kill");
    once_failed("store-recover-resharded", "52/kill");
}
