//! Makes every operation of a scenario fail in every way, and checks that what was acknowledged is
//! still there, after a restart of the process and after a power cut.

use std::fmt;
use std::time::{Duration, Instant};

use laminar_storage::vfs::sim::{Duration as Lasting, Fault, ImagePolicy, Keep, Short, SimDisk};

use crate::driver::{Scenario, guarded};
use crate::log::Log;

/// Every way for an operation to fail.
pub const ALL_FAULTS: &[Fault] = &[
    Fault::Eio,
    Fault::EioAfter,
    Fault::Enospc,
    Fault::Eintr,
    Fault::ShortWrite(Short::One),
    Fault::ShortWrite(Short::Half),
    Fault::ShortWrite(Short::AllButOne),
    Fault::ShortRead(Short::One),
    Fault::ShortRead(Short::Half),
    Fault::ShortRead(Short::AllButOne),
    sync_drops(Keep::Nothing, false),
    sync_drops(Keep::Nothing, true),
    sync_drops(Keep::FirstHalf, false),
    sync_drops(Keep::SecondHalf, false),
    sync_drops(Keep::All, false),
];

const fn sync_drops(keep: Keep, reads_old: bool) -> Fault {
    Fault::SyncDropsAndCleans { keep, reads_old }
}

/// What a sweep did and found.
#[derive(Clone, Debug, Default)]
pub struct FaultReport {
    /// Runs in which the fault met its operation.
    pub runs: u64,
    /// Runs that reported an error; the others coped.
    pub refused: u64,
    /// Recoveries checked.
    pub recoveries: u64,
    /// What went wrong: fault, operation, and error.
    pub failures: Vec<String>,
    /// Wall clock time.
    pub elapsed: Duration,
}

impl fmt::Display for FaultReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faulty runs ({} refused), {} recoveries, {} failures, {} ms",
            self.runs,
            self.refused,
            self.recoveries,
            self.failures.len(),
            self.elapsed.as_millis()
        )
    }
}

/// For every fault and both durations, for operation 1, 2, … until the fault meets none any more:
/// runs the scenario with it, whatever that returns, then recovers without faults.
pub fn sweep_faults<S: Scenario>(
    scenario: &S,
    seed: u64,
    faults: &[Fault],
    policy: &ImagePolicy,
) -> FaultReport {
    sweep_faults_up_to(scenario, seed, faults, policy, usize::MAX)
}

/// As [`sweep_faults`], with at most so many images of each power cut; the first two are that nothing
/// and that everything arrived.
pub fn sweep_faults_up_to<S: Scenario>(
    scenario: &S,
    seed: u64,
    faults: &[Fault],
    policy: &ImagePolicy,
    images_max: usize,
) -> FaultReport {
    let start = Instant::now();
    let mut report = FaultReport::default();
    let clean = SimDisk::new(seed);
    clean.number_reads(true);
    let mut log = Log::new(scenario.start());
    if let Err(error) = guarded(|| scenario.run(&clean, &mut log)) {
        report.failures.push(format!("without a fault: {error}"));
        return report;
    }
    for fault in faults {
        for lasting in [Lasting::Once, Lasting::Forever] {
            // A system that interrupts every call for ever leaves nothing to do but to try for ever.
            if (*fault, lasting) == (Fault::Eintr, Lasting::Forever) {
                continue;
            }
            for op in 1..=clean.ops() {
                sweep_one(scenario, seed, (*fault, lasting, op), (policy, images_max), &mut report);
            }
        }
    }
    report.elapsed = start.elapsed();
    report
}

fn sweep_one<S: Scenario>(
    scenario: &S,
    seed: u64,
    (fault, lasting, op): (Fault, Lasting, u64),
    (policy, images_max): (&ImagePolicy, usize),
    report: &mut FaultReport,
) {
    let disk = SimDisk::new(seed);
    disk.set_tracing(false);
    disk.number_reads(true);
    disk.fail_op(op, fault, lasting);
    let mut log = Log::new(scenario.start());
    let result = guarded(|| scenario.run(&disk, &mut log));
    if disk.faults_fired() == 0 {
        return;
    }
    report.runs += 1;
    report.refused += u64::from(result.is_err());
    let mut failed = |what: &str, error: String| {
        let name = scenario.name();
        let text = format!("{name} {seed}: {fault:?} {lasting:?} at op {op}, {what}: {error}");
        report.failures.push(text);
    };
    if let Err(error) = result
        && error.starts_with("panicked")
    {
        failed("running", error);
    }
    let snapshot = disk.snapshot();
    let known = log.model();
    let mut check = |known: &S::Model, what: &str, disk: &SimDisk| {
        let mut log = Log::new(known.clone());
        report.recoveries += 1;
        if let Err(error) = guarded(|| scenario.recover(disk, &mut log)) {
            failed(what, error);
        }
        log.model().clone()
    };
    let restarted = snapshot.restart();
    let learned = check(known, "after a kill", &restarted);
    for image in restarted.snapshot().images(policy).take(images_max) {
        check(&learned, "after a kill, a recovery and a power cut", &image.mount());
    }
    for image in snapshot.images(policy).take(images_max) {
        check(known, &format!("image {}", image.id()), &image.mount());
    }
}
