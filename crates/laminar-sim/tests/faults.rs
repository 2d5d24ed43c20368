//! Every operation of every scenario fails in every way; nothing acknowledged is lost, nothing is
//! acknowledged after it, and the next opening recovers. `laminar-sim faults --all` makes all runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::registry::{find, real};
use laminar_sim::{FaultReport, Sweep};

fn swept(name: &str, sweep: &Sweep) -> FaultReport {
    let report = find(name).unwrap().sweep_faults(1, sweep);
    println!("{name}: {report}");
    for failure in report.failures.iter().take(8) {
        println!("  {failure}");
    }
    assert!(report.failures.is_empty(), "{name}: {} failures", report.failures.len());
    report
}

#[test]
fn a_store_of_one_core_survives_every_fault() {
    let report = swept("store-one-core", &Sweep { images_max: 2, threads: 2, ..Sweep::default() });
    assert!(report.runs > 1_500 && report.refused > 750, "{report}");
}

#[test]
fn every_scenario_survives_faults() {
    let sweep = Sweep { images_max: 2, one_in: 12, threads: 2, ..Sweep::default() };
    let mut total = FaultReport::default();
    for scenario in real() {
        total.add(&swept(&scenario.name(), &sweep));
    }
    println!("all: {total}");
    assert!(total.runs > 20_000 && total.refused > total.runs / 3, "{total}");
}

#[test]
fn pairs_of_faults() {
    let sweep = Sweep { images_max: 2, pairs: 60, threads: 2, ..Sweep::default() };
    let mut total = FaultReport::default();
    for scenario in real() {
        total.add(&swept(&scenario.name(), &sweep));
    }
    println!("all: {total}");
    assert!(total.runs > 1_000, "{total}");
}
