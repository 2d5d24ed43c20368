//! Crashes of the low-level logs, alone and with checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::wal::wal_scenarios;
use laminar_sim::{Plan, explore};
use laminar_storage::vfs::sim::ImagePolicy;

fn explored(name: &str, images_min: u64) {
    let scenario = wal_scenarios().into_iter().find(|scenario| scenario.name == name).unwrap();
    let policy = ImagePolicy { exhaustive_bits: 3, random: 8, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 2, random: 0, ..policy.clone() };
    let plan = Plan {
        policy,
        nested_policy,
        nested_every: 200,
        nested_kills_every: 20,
        threads: 2,
        failures_max: 5,
        ..Plan::default()
    };
    let report = explore(&scenario, 1, &plan);
    println!("{name}: {report}");
    assert!(report.failures.is_empty(), "{name}: {}", report.failures[0]);
    assert!(report.images_total() >= images_min, "{name}: {report}");
}

#[test]
fn every_synced_record_comes_back_and_of_the_others_a_prefix() {
    explored("wal-plain", 200);
}

#[test]
fn segments_that_roll() {
    explored("wal-roll", 200);
}

#[test]
fn segments_written_ahead() {
    explored("wal-preallocated", 100);
}

/// Regression: a reset creates new segments core by core. Before `CURRENT` named their incarnation a
/// crash left some cores empty and the others not, and the next opening removed what was still there.
#[test]
fn a_reset_is_for_all_cores_or_for_none() {
    explored("wal-reset", 400);
}

#[test]
fn checkpoints_cut_the_log_and_lose_nothing() {
    explored("wal-checkpoints", 1_500);
}
