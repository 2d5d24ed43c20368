//! All scenarios by name, for the command line and for tests that run every one of them.

use std::path::Path;

use laminar_storage::vfs::sim::{ImageId, SimDisk};

use crate::checkpoints::checkpoint_scenarios;
use crate::conformance::{run_real, simulated};
use crate::driver::{Plan, Scenario, explore, replay};
use crate::faults::{FaultReport, Sweep, sweep_faults};
use crate::log::Log;
use crate::report::Report;
use crate::store::{random_scenario, store_scenarios};
use crate::toy::{CRASH_MISTAKES, FAULT_MISTAKES, Mistake, Toy};
use crate::trail::Trail;
use crate::wal::wal_scenarios;

/// A scenario whatever its model is.
pub trait AnyScenario: Sync {
    /// As [`Scenario::name`].
    fn name(&self) -> String;
    /// As [`explore`].
    fn explore(&self, seed: u64, plan: &Plan) -> Report;
    /// As [`replay`].
    ///
    /// # Errors
    /// As [`replay`].
    fn replay(&self, seed: u64, trail: &Trail) -> Result<String, String>;
    /// As [`sweep_faults`].
    fn sweep_faults(&self, seed: u64, sweep: &Sweep) -> FaultReport;
    /// As [`run_real`].
    ///
    /// # Errors
    /// As [`run_real`].
    fn run_real(&self, seed: u64, root: &Path) -> Result<(), String>;
    /// Runs it, and recovers from the power cut after it that loses most; equal for two runs exactly when all
    /// operations of both were the same.
    ///
    /// # Errors
    /// What went wrong.
    fn trace_hash(&self, seed: u64) -> Result<[u64; 2], String>;
    /// As [`simulated`].
    ///
    /// # Errors
    /// As [`simulated`].
    fn simulated(&self, seed: u64) -> Result<Vec<String>, String>;
}

impl<S: Scenario> AnyScenario for S {
    fn name(&self) -> String {
        Scenario::name(self)
    }

    fn explore(&self, seed: u64, plan: &Plan) -> Report {
        explore(self, seed, plan)
    }

    fn replay(&self, seed: u64, trail: &Trail) -> Result<String, String> {
        replay(self, seed, trail)
    }

    fn sweep_faults(&self, seed: u64, sweep: &Sweep) -> FaultReport {
        sweep_faults(self, seed, sweep)
    }

    fn run_real(&self, seed: u64, root: &Path) -> Result<(), String> {
        run_real(self, seed, root)
    }

    fn trace_hash(&self, seed: u64) -> Result<[u64; 2], String> {
        let disk = SimDisk::new(seed);
        disk.number_reads(true);
        let mut log = Log::new(self.start());
        self.run(&disk, &mut log)?;
        let cut = disk.snapshot().image(&ImageId::default()).mount();
        cut.number_reads(true);
        cut.set_tracing(true);
        self.recover_and_go_on(&cut, &mut Log::of_last(log.model().clone()))?;
        Ok([disk.trace_hash(), cut.trace_hash()])
    }

    fn simulated(&self, seed: u64) -> Result<Vec<String>, String> {
        simulated(self, seed)
    }
}

/// A scenario and what is expected of it.
pub struct Entry {
    /// The scenario.
    pub scenario: Box<dyn AnyScenario>,
    /// Whether it has a mistake in it that must be found.
    pub broken: bool,
}

/// Every scenario there is.
#[must_use]
pub fn all() -> Vec<Entry> {
    let toy =
        |mistake: Mistake| Entry { scenario: Box::new(Toy::new(mistake)), broken: mistake != Mistake::None };
    let mistakes = CRASH_MISTAKES.iter().chain(FAULT_MISTAKES);
    let toys = [Mistake::None].iter().chain(mistakes).map(|m| toy(*m));
    let stores = store_scenarios().into_iter();
    let stores = stores.map(|scenario| Entry { scenario: Box::new(scenario), broken: false });
    let wals = wal_scenarios().into_iter();
    let wals = wals.map(|scenario| Entry { scenario: Box::new(scenario), broken: false });
    let checkpoints = checkpoint_scenarios().into_iter();
    let checkpoints = checkpoints.map(|scenario| Entry { scenario: Box::new(scenario), broken: false });
    toys.chain(stores).chain(wals).chain(checkpoints).collect()
}

/// The scenario of a name, those that are drawn from a seed included.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<Box<dyn AnyScenario>, String> {
    if let Some(seed) = name.strip_prefix("store-random-") {
        let seed = seed.parse().map_err(|e| format!("the seed in {name}: {e}"))?;
        return Ok(Box::new(random_scenario(seed)));
    }
    let found = all().into_iter().find(|entry| entry.scenario.name() == name);
    found
        .map(|entry| entry.scenario)
        .ok_or_else(|| format!("there is no scenario `{name}`; see `laminar-sim list`"))
}

/// The scenarios of the library, without the toys.
#[must_use]
pub fn real() -> Vec<Box<dyn AnyScenario>> {
    let right = all().into_iter().filter(|entry| !entry.broken && !entry.scenario.name().starts_with("toy"));
    right.map(|entry| entry.scenario).collect()
}
