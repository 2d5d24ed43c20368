//! The plan of the short run, and how a scenario is put to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::env;

use laminar_sim::registry::find;
use laminar_sim::{Plan, Report};
use laminar_storage::vfs::sim::{ImagePolicy, Profile};
use mimalloc::MiMalloc;

/// As in the long runs: a quarter of the time of the system's allocator, here, is saved.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Every selection of up to five pending items, the telling ones of more, all three deep. `LAMINAR_SEED`
/// chooses other keys, values and selections.
pub fn short() -> Plan {
    let policy = ImagePolicy { exhaustive_bits: 5, random: 8, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 3, random: 2, one_in: 4, ..policy.clone() };
    Plan { policy, nested_policy, depth: 3, nested_images: 4_700, failures_max: 5, ..Plan::default() }
}

/// With a journal everything that a sync needs is written in order, so there is less to lose.
pub fn ordered() -> Plan {
    let mut plan = Plan { nested_images: 100, ..short() };
    (plan.policy.profile, plan.nested_policy.profile) = (Profile::Ext4Ordered, Profile::Ext4Ordered);
    plan
}

/// Explores a scenario, which must pass with at least so many images.
pub fn explored(name: &str, plan: &Plan, images_min: u64) -> Report {
    let seed = env::var("LAMINAR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let report = find(name).unwrap().explore(seed, plan);
    println!("{name} {seed}: {report}");
    for failure in &report.failures {
        println!("  {failure}");
    }
    assert!(report.failures.is_empty(), "{name}: {}", report.failures[0]);
    assert!(report.images_total() >= images_min, "{name}: {report}");
    report
}
