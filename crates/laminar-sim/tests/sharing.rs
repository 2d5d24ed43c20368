//! Recoveries that left the same disk and the same knowledge go on once: that skips nothing else, and what
//! is skipped would have done the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use laminar_sim::checkpoints::checkpoint_scenarios;
use laminar_sim::store::store_scenarios;
use laminar_sim::wal::wal_scenarios;
use laminar_sim::{Log, Plan, Scenario, explore};
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};

/// What decides how a recovery goes on: the disk, and what is known.
fn state<M: Clone + Hash>(disk: &SimDisk, log: &Log<M>) -> (u64, u64) {
    let mut hasher = std::hash::DefaultHasher::new();
    log.model().hash(&mut hasher);
    (disk.state_hash(), hasher.finish())
}

/// Crashes of the scenario only, on one thread.
fn plan() -> Plan {
    let policy = ImagePolicy { exhaustive_bits: 5, random: 8, torn_cuts: 1, ..ImagePolicy::default() };
    Plan { policy, depth: 0, failures_max: usize::MAX, images_max: 600, ..Plan::default() }
}

fn named<S: Scenario>(scenarios: Vec<S>, name: &str) -> S {
    scenarios.into_iter().find(|scenario| scenario.name() == name).unwrap()
}

/// Goes on after every recovery, and compares where that leads with where it led from the same state.
struct Always<S> {
    inner: S,
    led_to: Mutex<HashMap<(u64, u64), (u64, u64)>>,
    again: AtomicU64,
}

impl<S: Scenario> Scenario for Always<S> {
    type Model = S::Model;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn start(&self) -> S::Model {
        self.inner.start()
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<S::Model>) -> Result<(), String> {
        self.inner.run(disk, log)
    }

    fn recover(&self, disk: &SimDisk, log: &mut Log<S::Model>) -> Result<(), String> {
        self.inner.recover(disk, log)?;
        let from = state(disk, log);
        self.inner.go_on(disk, log)?;
        let to = state(disk, log);
        match self.led_to.lock().unwrap().insert(from, to) {
            Some(before) if before != to => return Err("the same state led elsewhere".into()),
            Some(_) => drop(self.again.fetch_add(1, Ordering::Relaxed)),
            None => {}
        }
        Ok(())
    }

    fn go_on(&self, _disk: &SimDisk, _log: &mut Log<S::Model>) -> Result<(), String> {
        Ok(())
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<S::Model>) -> Result<(), String> {
        self.inner.read_when_full(disk, log)
    }
}

fn same_state_leads_to_the_same<S: Scenario>(inner: S) {
    let always = Always { inner, led_to: Mutex::default(), again: AtomicU64::new(0) };
    let report = explore(&always, 1, &plan());
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    let again = always.again.load(Ordering::Relaxed);
    assert!(again >= 10, "only {again} states were met again: {report}");
}

#[test]
fn the_same_state_of_a_store_leads_to_the_same() {
    same_state_leads_to_the_same(named(store_scenarios(), "store-checkpoints"));
}

#[test]
fn the_same_state_of_a_log_leads_to_the_same() {
    same_state_leads_to_the_same(named(wal_scenarios(), "wal-plain"));
}

#[test]
fn the_same_state_of_checkpoints_leads_to_the_same() {
    same_state_leads_to_the_same(named(checkpoint_scenarios(), "checkpoints-retain-two"));
}

/// Counts how often it went on, and fails there if it is to.
struct Counted<S> {
    inner: S,
    fails: bool,
    went_on: AtomicU64,
}

impl<S: Scenario> Scenario for Counted<S> {
    type Model = S::Model;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn start(&self) -> S::Model {
        self.inner.start()
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<S::Model>) -> Result<(), String> {
        self.inner.run(disk, log)
    }

    fn recover(&self, disk: &SimDisk, log: &mut Log<S::Model>) -> Result<(), String> {
        self.inner.recover(disk, log)
    }

    fn go_on(&self, disk: &SimDisk, log: &mut Log<S::Model>) -> Result<(), String> {
        self.went_on.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err("on purpose".into()) } else { self.inner.go_on(disk, log) }
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<S::Model>) -> Result<(), String> {
        self.inner.read_when_full(disk, log)
    }
}

#[test]
fn what_does_not_go_on_is_counted() {
    let inner = named(store_scenarios(), "store-two-cores");
    let counted = Counted { inner, fails: false, went_on: AtomicU64::new(0) };
    let report = explore(&counted, 1, &plan());
    assert!(report.failures.is_empty(), "{}", report.failures[0]);
    assert!(report.shared > 0, "{report}");
    let recovered = report.images_total() + report.kills;
    assert_eq!(counted.went_on.load(Ordering::Relaxed) + report.shared, recovered, "{report}");
}

#[test]
fn a_failure_is_reported_for_every_image_that_leads_to_it() {
    let inner = named(store_scenarios(), "store-two-cores");
    let counted = Counted { inner, fails: true, went_on: AtomicU64::new(0) };
    let report = explore(&counted, 1, &plan());
    assert_eq!(report.shared, 0, "a state that failed is not one to share");
    assert_eq!(report.failures.len() as u64, report.images_total() + report.kills, "{report}");
}
