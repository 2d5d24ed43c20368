//! Crashes a scenario after every operation, recovers what is left, crashes the recovery, …
//!
//! ```text
//! run, recording a snapshot after each operation
//!   for each snapshot: kill, and every image of a power cut
//!     recover on it, judged by what was known at that operation
//!       recording again: for each snapshot of the recovery …        (to a depth)
//! ```
//!
//! The same image with the same knowledge is recovered once, however many ways lead to it.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laminar_storage::vfs::sim::{ImagePolicy, SimDisk, Snapshot};

use crate::log::{Log, Version};
use crate::trail::{Crash, Step, Trail};

/// Something to do on a disk, and how to judge what a crash leaves of it.
///
/// Both functions must do the same on every run with the same disk: use the disk's clock and random
/// numbers only, and one thread, or at least an order of operations that is always the same.
pub trait Scenario: Sync {
    /// What is known about the state that must or may be found.
    type Model: Clone + Hash + Send + Sync;

    /// A name for reports and for running it again.
    fn name(&self) -> String;

    /// What is known about an empty disk.
    fn start(&self) -> Self::Model;

    /// Does its work on an empty disk, noting in the log what may and what must survive.
    ///
    /// # Errors
    /// Anything unexpected while no fault was injected.
    fn run(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String>;

    /// Recovers, judges the result by the log, and works on, noting what it learns and does. This is
    /// crashed and recovered in turn, so whatever it notes must hold after a crash from there on.
    ///
    /// # Errors
    /// What is wrong with the recovered state, or why recovery failed.
    fn recover(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String>;
}

/// How far to go.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Images of the scenario's crashes.
    pub policy: ImagePolicy,
    /// Images of crashes inside recoveries.
    pub nested_policy: ImagePolicy,
    /// How many times a recovery may crash in turn: 0 for crashes of the scenario only.
    pub depth: u32,
    /// Of the recoveries from a power cut one in so many is crashed in turn.
    pub nested_every: u64,
    /// The same for the recoveries from a kill.
    pub nested_kills_every: u64,
    /// Threads that recover.
    pub threads: usize,
    /// Stops after so many failures.
    pub failures_max: usize,
    /// Stops after so many distinct images of power cuts.
    pub images_max: u64,
}

impl Default for Plan {
    fn default() -> Self {
        let nested_policy =
            ImagePolicy { exhaustive_bits: 6, random: 16, torn_cuts: 1, ..ImagePolicy::default() };
        Self {
            policy: ImagePolicy::default(),
            nested_policy,
            depth: 1,
            nested_every: 8,
            nested_kills_every: 1,
            threads: 1,
            failures_max: 10,
            images_max: u64::MAX,
        }
    }
}

/// One recovery that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The scenario.
    pub scenario: String,
    /// The disk's seed.
    pub seed: u64,
    /// Where it crashed; empty when the scenario itself failed.
    pub trail: Trail,
    /// The last operation before the last crash.
    pub last_op: String,
    /// What was wrong.
    pub error: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, seed, trail, last_op, error } = self;
        write!(f, "replay {scenario} {seed} {trail}  # {last_op}: {error}")
    }
}

/// What an exploration did and found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Operations of the scenario.
    pub ops: u64,
    /// Distinct pairs of image and knowledge recovered, at each depth of crashing.
    pub images: Vec<u64>,
    /// Images made that had been recovered before.
    pub duplicates: u64,
    /// Snapshots, at any depth, for which not every selection was made.
    pub sampled: u64,
    /// Distinct recoveries after a kill; where nothing was pending it equals a power cut.
    pub kills: u64,
    /// What went wrong, ordered by trail.
    pub failures: Vec<Failure>,
    /// Wall clock time.
    pub elapsed: Duration,
}

impl Report {
    /// Images recovered, over all depths.
    #[must_use]
    pub fn images_total(&self) -> u64 {
        self.images.iter().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        let per_second = self.images_total().saturating_mul(1000) / millis.max(1);
        write!(
            f,
            "{} ops, {} images {:?} + {} duplicates, {} kills, {} sampled, {} failures, {} ms, {}/s",
            self.ops,
            self.images_total(),
            self.images,
            self.duplicates,
            self.kills,
            self.sampled,
            self.failures.len(),
            millis,
            per_second
        )
    }
}

/// A panic elsewhere leaves these plain values usable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a step of a scenario; a panic in it is an error like any other.
pub(crate) fn guarded(step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(format!("panicked: {text}"))
    })
}

const SHARDS: usize = 64;

struct Explorer<'a, S: Scenario> {
    scenario: &'a S,
    seed: u64,
    plan: &'a Plan,
    seen: Vec<Mutex<HashSet<u64>>>,
    images: Vec<AtomicU64>,
    duplicates: AtomicU64,
    sampled: AtomicU64,
    kills: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    stop: AtomicBool,
}

impl<S: Scenario> Explorer<'_, S> {
    fn fail(&self, trail: &Trail, last_op: String, error: String) {
        let mut failures = locked(&self.failures);
        failures.push(Failure {
            scenario: self.scenario.name(),
            seed: self.seed,
            trail: trail.clone(),
            last_op,
            error,
        });
        if failures.len() >= self.plan.failures_max {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether this image with this knowledge, to be explored this deep, is new.
    fn is_new(&self, image: u64, fingerprint: u64, level: usize) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        (image, fingerprint, level).hash(&mut hasher);
        let key = hasher.finish();
        let shard = usize::try_from(key % SHARDS as u64).unwrap_or_default();
        locked(&self.seen[shard]).insert(key).then_some(key)
    }

    /// All crashes at one snapshot. `level` counts the crashes before.
    fn crash_at(&self, snapshot: &Snapshot, known: &Version<S::Model>, trail: &Trail, level: usize) {
        let deeper = (level as u64) < u64::from(self.plan.depth);
        // With nothing pending, a kill leaves the same as a power cut.
        if !snapshot.is_clean()
            && let Some(key) = self.is_new(snapshot.hash(), known.fingerprint, level)
        {
            let deeper = deeper && (key >> 8).is_multiple_of(self.plan.nested_kills_every.max(1));
            self.kills.fetch_add(1, Ordering::Relaxed);
            let killed = trail.then(snapshot.op(), Crash::Kill);
            self.recover(&snapshot.restart(), snapshot, known, &killed, level, deeper);
        }
        let policy = if level == 0 { &self.plan.policy } else { &self.plan.nested_policy };
        let mut images = snapshot.images(policy);
        if !images.is_exhaustive() {
            self.sampled.fetch_add(1, Ordering::Relaxed);
        }
        for image in images.by_ref() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(key) = self.is_new(image.hash(), known.fingerprint, level) else {
                self.duplicates.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let count = self.images[level].fetch_add(1, Ordering::Relaxed);
            if count >= self.plan.images_max {
                self.stop.store(true, Ordering::Relaxed);
            }
            let deeper = deeper && (key >> 8).is_multiple_of(self.plan.nested_every.max(1));
            let cut = trail.then(snapshot.op(), Crash::Power(image.id().clone()));
            self.recover(&image.mount(), snapshot, known, &cut, level, deeper);
        }
        self.duplicates.fetch_add(images.duplicates(), Ordering::Relaxed);
    }

    fn recover(
        &self,
        disk: &SimDisk,
        crashed: &Snapshot,
        known: &Version<S::Model>,
        trail: &Trail,
        level: usize,
        deeper: bool,
    ) {
        let model = known.model.as_ref().clone();
        let mut log = if deeper { Log::new(model) } else { Log::of_last(model) };
        if deeper {
            disk.record(true);
        }
        if let Err(error) = guarded(|| self.scenario.recover(disk, &mut log)) {
            let last = crashed.last_op().map(ToString::to_string);
            self.fail(trail, last.unwrap_or_else(|| "start".into()), error);
            return;
        }
        if !deeper {
            return;
        }
        for snapshot in disk.history() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let known = log.at(snapshot.op());
            self.crash_at(&snapshot, known, trail, level + 1);
        }
    }
}

/// Crashes a scenario everywhere and reports what recovery made of it.
pub fn explore<S: Scenario>(scenario: &S, seed: u64, plan: &Plan) -> Report {
    let start = Instant::now();
    let levels = usize::try_from(plan.depth).unwrap_or_default() + 1;
    let explorer = Explorer {
        scenario,
        seed,
        plan,
        seen: (0..SHARDS).map(|_| Mutex::default()).collect(),
        images: (0..levels).map(|_| AtomicU64::new(0)).collect(),
        duplicates: AtomicU64::new(0),
        sampled: AtomicU64::new(0),
        kills: AtomicU64::new(0),
        failures: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    let disk = SimDisk::new(seed);
    disk.set_tracing(false);
    disk.record(true);
    let mut log = Log::new(scenario.start());
    if let Err(error) = guarded(|| scenario.run(&disk, &mut log)) {
        explorer.fail(&Trail::default(), format!("op {}", disk.ops()), error);
    }
    let history = disk.history();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                while let Some(snapshot) = history.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if explorer.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let known = log.at(snapshot.op());
                    explorer.crash_at(snapshot, known, &Trail::default(), 0);
                }
            });
        }
    });
    let mut failures = std::mem::take(&mut *locked(&explorer.failures));
    failures.sort_by_key(|failure| failure.trail.0.iter().map(|s| s.op).collect::<Vec<_>>());
    Report {
        ops: disk.ops(),
        images: explorer.images.into_iter().map(AtomicU64::into_inner).collect(),
        duplicates: explorer.duplicates.into_inner(),
        sampled: explorer.sampled.into_inner(),
        kills: explorer.kills.into_inner(),
        failures,
        elapsed: start.elapsed(),
    }
}

/// Runs one trail again. `Ok` holds the trace of the last recovery.
///
/// # Errors
/// What went wrong, as the failure said, with the trace of the last recovery; or that the trail does
/// not fit the scenario.
pub fn replay<S: Scenario>(scenario: &S, seed: u64, trail: &Trail) -> Result<String, String> {
    let disk = SimDisk::new(seed);
    disk.record(true);
    let mut log = Log::new(scenario.start());
    guarded(|| scenario.run(&disk, &mut log))?;
    replay_steps(scenario, &disk, &log, &trail.0)
}

fn replay_steps<S: Scenario>(
    scenario: &S,
    disk: &SimDisk,
    log: &Log<S::Model>,
    steps: &[Step],
) -> Result<String, String> {
    let trace = || {
        let lines = disk.trace();
        let line = |op: &_| format!("    {op}\n");
        lines.iter().map(line).collect::<String>()
    };
    let Some((step, rest)) = steps.split_first() else {
        return Ok(trace());
    };
    let snapshot = disk
        .history()
        .into_iter()
        .find(|snapshot| snapshot.op() == step.op)
        .ok_or_else(|| format!("there is no operation {}\n{}", step.op, trace()))?;
    let next = match &step.crash {
        Crash::Kill => snapshot.restart(),
        Crash::Power(image) => snapshot.image(image).mount(),
    };
    next.record(true);
    next.set_tracing(true);
    let known = log.at(step.op);
    let mut log = Log::new(known.model.as_ref().clone());
    let result = guarded(|| scenario.recover(&next, &mut log));
    match result {
        Err(error) if rest.is_empty() => {
            let lines = next.trace();
            let line = |op: &_| format!("    {op}\n");
            Err(format!("{error}\n{}", lines.iter().map(line).collect::<String>()))
        }
        // A recovery that is to be crashed may fail after that.
        _ => replay_steps(scenario, &next, &log, rest),
    }
}
