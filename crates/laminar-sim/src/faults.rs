//! Makes every operation of a scenario fail in every way, and checks that what was acknowledged is
//! still there, after a restart of the process and after a power cut.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use laminar_storage::vfs::sim::{Duration as Lasting, Fault, ImagePolicy, Keep, Short, SimDisk};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::driver::{Scenario, guarded};
use crate::log::Log;
use crate::oracle::is_verdict;

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

/// How a sweep is done.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The faults.
    pub faults: Vec<Fault>,
    /// Images of each power cut after a faulty run; the first two are that nothing and that everything
    /// arrived.
    pub images_max: usize,
    /// Of all runs one in so many is made.
    pub one_in: u64,
    /// So many runs with two faults, drawn from the seed, instead of all runs with one; 0 for those.
    pub pairs: u64,
    /// Only the run with this number, and what was done in it.
    pub only: Option<u64>,
    /// Threads.
    pub threads: usize,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { faults: ALL_FAULTS.to_vec(), images_max: 4, one_in: 1, pairs: 0, only: None, threads: 1 }
    }
}

/// What a sweep did and found.
#[derive(Clone, Debug, Default)]
pub struct FaultReport {
    /// Runs in which the fault met an operation, with pairs both of them one.
    pub runs: u64,
    /// Runs that reported an error; the others coped.
    pub refused: u64,
    /// Recoveries checked.
    pub recoveries: u64,
    /// What went wrong: fault, operation, and error.
    pub failures: Vec<String>,
    /// The operations of a single run, and of those of its recoveries that failed.
    pub traces: Vec<String>,
    /// Wall clock time.
    pub elapsed: Duration,
}

impl FaultReport {
    /// Adds another sweep's counts.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.refused += other.refused;
        self.recoveries += other.recoveries;
        self.failures.extend(other.failures.iter().cloned());
        self.traces.extend(other.traces.iter().cloned());
        self.elapsed += other.elapsed;
    }
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

/// About so many operations a recovery has, reads included.
const RECOVERY_OPS: u64 = 60;

/// A fault, how long it lasts, and the operation it begins with.
type Planned = (Fault, Lasting, u64);

/// For every fault and both durations, for operation 1, 2, … until the fault meets none any more:
/// runs the scenario with it, whatever that returns, then recovers without faults.
pub fn sweep_faults<S: Scenario>(scenario: &S, seed: u64, sweep: &Sweep) -> FaultReport {
    let start = Instant::now();
    let clean = SimDisk::new(seed);
    clean.number_reads(true);
    let mut log = Log::new(scenario.start());
    if let Err(error) = guarded(|| scenario.run(&clean, &mut log)) {
        return FaultReport { failures: vec![format!("without a fault: {error}")], ..FaultReport::default() };
    }
    let mut plans = if sweep.pairs == 0 {
        singles(seed, sweep, clean.ops())
    } else {
        (0..sweep.pairs).map(|n| (n, pair(draw(seed, n), sweep, clean.ops()))).collect()
    };
    if let Some(only) = sweep.only {
        plans.retain(|(number, _)| *number == only);
    }
    let (next, total) = (AtomicUsize::new(0), Mutex::new(FaultReport::default()));
    std::thread::scope(|scope| {
        for _ in 0..sweep.threads.max(1) {
            scope.spawn(|| {
                let mut report = FaultReport::default();
                while let Some((number, planned)) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    Run { scenario, seed, sweep, number: *number, planned }.make(&mut report);
                }
                total.lock().unwrap_or_else(PoisonError::into_inner).add(&report);
            });
        }
    });
    let mut report = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failures.sort();
    report.elapsed = start.elapsed();
    report
}

/// A system that interrupts every call for ever leaves nothing to do but to try for ever.
fn ends((fault, lasting, _): &Planned) -> bool {
    (*fault, *lasting) != (Fault::Eintr, Lasting::Forever)
}

/// Every one, with a number that does not depend on how many of them are due.
fn singles(seed: u64, sweep: &Sweep, ops: u64) -> Vec<(u64, Vec<Planned>)> {
    let each = |fault: &Fault| {
        let fault = *fault;
        let lasting = [Lasting::Once, Lasting::Forever].into_iter();
        lasting.flat_map(move |lasting| (1..=ops).map(move |op| (fault, lasting, op)))
    };
    let all = sweep.faults.iter().flat_map(each).filter(ends);
    let due = all.zip(0..).filter(|(_, n)| draw(seed, *n).is_multiple_of(sweep.one_in.max(1)));
    due.map(|(planned, number)| (number, vec![planned])).collect()
}

/// Two faults at two operations; the second one may never be reached.
fn pair(dice: u64, sweep: &Sweep, ops: u64) -> Vec<Planned> {
    (0..2).map(|n| one(draw(dice, n), sweep, ops)).collect()
}

/// One fault at an operation.
fn one(dice: u64, sweep: &Sweep, ops: u64) -> Planned {
    let drawn = |n: u64| {
        let (what, when) = (draw(dice, 2 * n), draw(dice, 2 * n + 1));
        let fault = usize::try_from(what % sweep.faults.len().max(1) as u64).unwrap_or_default();
        let lasting = if what >> 32 & 1 == 0 { Lasting::Once } else { Lasting::Forever };
        (sweep.faults[fault], lasting, 1 + when % ops.max(1))
    };
    // Of all faults there is only one that does not end.
    (0..64).map(drawn).find(ends).unwrap_or((Fault::Eio, Lasting::Once, 1))
}

/// Whether what a run ended with is worse than a refusal.
fn must_not_be(error: &str) -> bool {
    error.starts_with("panicked") || is_verdict(error)
}

fn draw(seed: u64, n: u64) -> u64 {
    xxh3_64_with_seed(&n.to_le_bytes(), seed)
}

/// One run of a scenario with its faults.
struct Run<'a, S> {
    scenario: &'a S,
    seed: u64,
    sweep: &'a Sweep,
    number: u64,
    planned: &'a [Planned],
}

impl<S: Scenario> Run<'_, S> {
    /// Runs the scenario, whatever that returns, then recovers without faults.
    fn make(&self, report: &mut FaultReport) {
        let disk = SimDisk::new(self.seed);
        disk.number_reads(true);
        for (fault, lasting, op) in self.planned {
            disk.fail_op(*op, *fault, *lasting);
        }
        let mut log = Log::new(self.scenario.start());
        let result = guarded(|| self.scenario.run(&disk, &mut log));
        let worse = result.as_ref().err().filter(|error| must_not_be(error));
        if worse.is_none() && !self.planned.iter().all(|(fault, _, op)| disk.has_fault_fired(*op, *fault)) {
            return;
        }
        report.runs += 1;
        report.refused += u64::from(result.is_err());
        self.trace(report, &format!("{result:?}"), &disk);
        if let Some(error) = worse {
            self.fail(report, "running", error);
        }
        let snapshot = disk.snapshot();
        let known = log.model();
        let restarted = snapshot.restart();
        let learned = self.check(report, known, "after a kill", &restarted);
        // That a file system goes on with names that are not on the disk, for a program that starts again, is
        // more than any journal does. Bytes are another matter: those are shown and counted as clean.
        let policy = ImagePolicy { exhaustive_bits: 0, random: 0, torn_cuts: 1, ..ImagePolicy::default() };
        let again = if restarted.has_lost_names() { 0 } else { self.sweep.images_max };
        for image in restarted.snapshot().images(&policy).take(again) {
            self.check(report, &learned, "after a kill, a recovery and a power cut", &image.mount());
        }
        for image in snapshot.images(&policy).take(self.sweep.images_max) {
            self.check(report, known, &format!("image {}", image.id()), &image.mount());
        }
        if let Some(image) = snapshot.images(&policy).next() {
            self.fail_recovery(report, known, &image.mount());
        }
    }

    /// Something fails while a power cut is recovered from, and the process is killed then.
    fn fail_recovery(&self, report: &mut FaultReport, known: &S::Model, disk: &SimDisk) {
        disk.number_reads(true);
        let (fault, lasting, op) = one(draw(!self.seed, self.number), self.sweep, RECOVERY_OPS);
        disk.fail_op(op, fault, lasting);
        let mut log = Log::of_last(known.clone());
        let result = guarded(|| self.scenario.recover(disk, &mut log));
        let what = format!("after a power cut and a recovery with {fault:?} {lasting:?} at {op}");
        if let Err(error) = result
            && must_not_be(&error)
        {
            self.fail(report, &what, &error);
            self.trace(report, &what, disk);
        }
        self.check(report, log.model(), &what, &disk.snapshot().restart());
    }

    /// Recovers and goes on; returns what is known then.
    fn check(&self, report: &mut FaultReport, known: &S::Model, what: &str, disk: &SimDisk) -> S::Model {
        disk.set_tracing(self.sweep.only.is_some());
        let mut log = Log::of_last(known.clone());
        report.recoveries += 1;
        if let Err(error) = guarded(|| self.scenario.recover_and_go_on(disk, &mut log)) {
            self.fail(report, what, &error);
            self.trace(report, what, disk);
        }
        log.model().clone()
    }

    fn fail(&self, report: &mut FaultReport, what: &str, error: &str) {
        let Self { seed, number, planned, .. } = self;
        let pairs =
            if self.sweep.pairs == 0 { String::new() } else { format!(" --pairs {}", self.sweep.pairs) };
        let again =
            format!("laminar-sim faults {} --seed {seed}{pairs} --run {number}", self.scenario.name());
        report.failures.push(format!("{again}: {planned:?}, {what}: {error}"));
    }

    fn trace(&self, report: &mut FaultReport, what: &str, disk: &SimDisk) {
        if self.sweep.only.is_some() {
            let lines: String = disk.trace().iter().map(|op| format!("    {op}\n")).collect();
            report.traces.push(format!("{what}\n{lines}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that a thinned sweep names is found under that name by a sweep of all runs.
    #[test]
    fn the_number_of_a_run_does_not_depend_on_how_many_are_made() {
        let all = singles(3, &Sweep::default(), 40);
        let some = singles(3, &Sweep { one_in: 7, ..Sweep::default() }, 40);
        assert!(some.len() > 50 && some.len() < all.len() / 4);
        assert!(some.iter().all(|run| all.contains(run)));
    }

    #[test]
    fn a_pair_is_always_two_that_end() {
        for n in 0..2_000 {
            let pair = pair(n, &Sweep::default(), 30);
            assert!(pair.len() == 2 && pair.iter().all(ends), "{pair:?}");
        }
    }
}
