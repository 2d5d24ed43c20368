//! Every operation of a store fails in every way; nothing acknowledged is lost, nothing is acknowledged
//! after it, and the next opening recovers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::faults::ALL_FAULTS;
use laminar_sim::store::{StoreScenario, store_scenarios};
use laminar_sim::sweep_faults_up_to;
use laminar_storage::vfs::sim::{Fault, ImagePolicy, Keep, Short};

fn scenario(name: &str) -> StoreScenario {
    store_scenarios().into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// Those that the larger scenarios go through here; `laminar-sim faults` goes through all.
const FEW: &[Fault] = &[
    Fault::Eio,
    Fault::EioAfter,
    Fault::Enospc,
    Fault::ShortWrite(Short::Half),
    Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false },
    Fault::SyncDropsAndCleans { keep: Keep::SecondHalf, reads_old: false },
];

fn sweep(name: &str, faults: &[Fault], runs_min: u64) {
    let policy = ImagePolicy { exhaustive_bits: 0, random: 0, torn_cuts: 0, ..ImagePolicy::default() };
    let report = sweep_faults_up_to(&scenario(name), 1, faults, &policy, 2);
    println!("{name}: {report}");
    for failure in report.failures.iter().take(8) {
        println!("  {failure}");
    }
    assert!(report.failures.is_empty(), "{} failures", report.failures.len());
    assert!(report.runs > runs_min && report.refused > runs_min / 2, "{report}");
}

#[test]
fn a_store_of_one_core_survives_every_fault() {
    sweep("store-one-core", ALL_FAULTS, 500);
}

#[test]
fn a_store_with_checkpoints_survives_every_fault() {
    sweep("store-two-cores", FEW, 500);
}

#[test]
fn rolling_segments_survive_every_fault() {
    sweep("store-roll", FEW, 300);
}
