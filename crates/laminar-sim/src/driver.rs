//! Crashes a scenario after every operation, recovers what is left, crashes the recovery, …
//!
//! ```text
//! run, recording a snapshot after each operation
//!   for each snapshot: kill, and every image of a power cut
//!     recover on it, judged by what was known at that operation
//!       recording again: for each snapshot of the recovery …        (to a depth)
//! ```
//!
//! The same image with the same knowledge is recovered once, however many ways lead to it, and again only
//! where its recovery is to be crashed as well. Many images
//! differ only in what recovery removes: once it has been judged, and when it left the same disk and the same
//! knowledge as another one, what follows is the same too, and is done once. Crashes
//! inside recoveries are more than can be tried: each depth has a number of images to spend, and spends
//! it evenly over the scenario.

use std::collections::HashSet;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laminar_storage::vfs::sim::{ImagePolicy, SimDisk, Snapshot};
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_64_with_seed};

use crate::distinct::Distinct;
use crate::log::{Log, Version};
use crate::part::Part;
use crate::report::{Failure, Report};
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

    /// Recovers and judges the result by the log, noting what it learns; then lets go of the disk. This is
    /// crashed and recovered in turn, so whatever it notes must hold after a crash from there on.
    ///
    /// # Errors
    /// What is wrong with the recovered state, or why recovery failed.
    fn recover(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String>;

    /// As [`Self::recover`], after a reader has looked, which must change nothing and see what is recovered
    /// then. The same where a scenario has no readers.
    ///
    /// # Errors
    /// As [`Self::recover`].
    fn recover_after_a_reader(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String> {
        self.recover(disk, log)
    }

    /// Recovers once more what [`Self::recover`] left, which must give the same, and works on. What it does
    /// must follow from the disk and the log alone: where both are the same, it is done once.
    ///
    /// # Errors
    /// As [`Self::recover`].
    fn go_on(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String>;

    /// All of it, one after the other.
    ///
    /// # Errors
    /// As [`Self::recover`].
    fn recover_and_go_on(&self, disk: &SimDisk, log: &mut Log<Self::Model>) -> Result<(), String> {
        self.recover_after_a_reader(disk, log)?;
        self.go_on(disk, log)
    }

    /// On a disk without a free byte: what is there can be read, and an opening that fails for want of space
    /// does no harm. The disk has space again before [`Self::recover`] follows.
    ///
    /// # Errors
    /// What is wrong with what was read.
    fn read_when_full(&self, disk: &SimDisk, log: &Log<Self::Model>) -> Result<(), String>;
}

/// Of so many images one is recovered on a disk that is full at first.
const FULL_ONE_IN: u64 = 64;

/// Of so many kills inside recoveries one is tried.
const NESTED_KILLS_ONE_IN: u64 = 8;

/// Of so many images that a crash inside a recovery left, a reader looks at one; at all others it does.
const NESTED_READERS_ONE_IN: u64 = 4;

/// Recovers what was left after `level` crashes before; on some images, which their hash decides, after a
/// try without space, and after a reader. Then goes on, if the state of the disk and of the log says so.
fn recover_image<S: Scenario>(
    scenario: &S,
    disk: &SimDisk,
    (image, level): (u64, usize),
    log: &mut Log<S::Model>,
    goes_on: impl FnOnce(&Log<S::Model>) -> bool,
) -> Result<(), String> {
    guarded(|| {
        if (image >> 8).is_multiple_of(FULL_ONE_IN) {
            disk.set_capacity(Some(0));
            scenario.read_when_full(disk, log).map_err(|e| format!("on a full disk: {e}"))?;
            disk.set_capacity(None);
        }
        if level == 0 || (image >> 16).is_multiple_of(NESTED_READERS_ONE_IN) {
            scenario.recover_after_a_reader(disk, log)?;
        } else {
            scenario.recover(disk, log)?;
        }
        if goes_on(log) { scenario.go_on(disk, log) } else { Ok(()) }
    })
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
    /// About so many images of crashes inside recoveries are recovered, at each depth.
    pub nested_images: u64,
    /// Threads that recover.
    pub threads: usize,
    /// Stops after so many failures.
    pub failures_max: usize,
    /// Stops after so many distinct images of power cuts.
    pub images_max: u64,
    /// Says on standard error how far it is, this often.
    pub progress_every: Option<Duration>,
    /// Begins no recovery after this.
    pub until: Option<Instant>,
    /// Counts images over several explorations.
    pub distinct: Option<Arc<Distinct>>,
    /// Recovers only the images of this part, so that several runs share the work and none does it twice.
    pub part: Part,
}

impl Default for Plan {
    fn default() -> Self {
        let nested_policy =
            ImagePolicy { exhaustive_bits: 6, random: 16, torn_cuts: 1, ..ImagePolicy::default() };
        Self {
            policy: ImagePolicy::default(),
            nested_policy,
            depth: 1,
            nested_images: u64::MAX,
            threads: 1,
            failures_max: 10,
            images_max: u64::MAX,
            progress_every: None,
            until: None,
            distinct: None,
            part: Part::ALL,
        }
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

type Shards = Vec<Mutex<HashSet<u64, Xxh3DefaultBuilder>>>;

fn shards() -> Shards {
    (0..SHARDS).map(|_| Mutex::default()).collect()
}

fn shard(shards: &Shards, key: u64) -> &Mutex<HashSet<u64, Xxh3DefaultBuilder>> {
    &shards[usize::try_from(key % SHARDS as u64).unwrap_or_default()]
}

/// What is to be done with an image.
#[derive(Clone, Copy, Debug)]
struct Look {
    image: u64,
    /// It was not recovered with the same knowledge before.
    is_new: bool,
    /// Its recovery is to be crashed in turn.
    crash_recovery: bool,
}

impl Look {
    fn is_due(self) -> bool {
        self.is_new || self.crash_recovery
    }
}

struct Explorer<'a, S: Scenario> {
    scenario: &'a S,
    seed: u64,
    plan: &'a Plan,
    seen: Shards,
    /// Recoveries that were crashed in turn, with the number of crashes before.
    crashed: Shards,
    images: Vec<AtomicU64>,
    recovering: AtomicU64,
    duplicates: AtomicU64,
    sampled: AtomicU64,
    kills: AtomicU64,
    nested: AtomicU64,
    /// What recoveries left that went on from there without a failure.
    went_on: Shards,
    shared: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    stop: AtomicBool,
    /// Crashes of the scenario itself: those begun, and all there are.
    begun: AtomicUsize,
    crashes: usize,
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

    /// What is to be done with this image and this knowledge after so many crashes.
    fn look_at(&self, image: u64, fingerprint: u64, level: usize) -> Look {
        let key = xxh3_64_with_seed(&image.to_le_bytes(), fingerprint);
        let is_new = locked(shard(&self.seen, key)).insert(key);
        // The same recovery may be worth crashing after few crashes and have come too deep before.
        let crash_recovery = self.goes_deeper(level, key) && {
            let key = key.wrapping_add(level as u64 + 1);
            locked(shard(&self.crashed, key)).insert(key)
        };
        Look { image, is_new, crash_recovery }
    }

    /// Whether a kill that leaves this is tried: every one of the scenario's own, some of those inside
    /// recoveries. What programs see after it is what a power cut leaves that loses nothing.
    fn is_chosen(&self, image: u64, level: usize) -> bool {
        let images_one_in = self.plan.nested_policy.one_in.max(1);
        level == 0 || image.is_multiple_of(images_one_in.max(NESTED_KILLS_ONE_IN))
    }

    /// Whether a recovery after `level` crashes is to be crashed in turn: when the next depth has images
    /// left to spend, as far as the scenario has been gone through. One in four of them, so that it is not
    /// always the first image of a crash.
    fn goes_deeper(&self, level: usize, key: u64) -> bool {
        let Some(spent) = self.images.get(level + 1) else { return false };
        if self.plan.nested_images == u64::MAX {
            return true;
        }
        let begun = self.begun.load(Ordering::Relaxed).min(self.crashes) as u64;
        let due = self.plan.nested_images.saturating_mul(begun) / self.crashes.max(1) as u64;
        (key >> 8).is_multiple_of(4) && spent.load(Ordering::Relaxed) < due
    }

    /// All crashes at one snapshot. `level` counts the crashes before, `recovering` says whether a recovery from the
    /// last of them was under way. Images that can be seen at `since` already, an
    /// operation before, are left out. Returns whether every image there is has been looked at.
    fn crash_at(
        &self,
        snapshot: &Snapshot,
        known: &Version<S::Model>,
        trail: &Trail,
        (level, recovering): (usize, bool),
        since: Option<u64>,
    ) -> bool {
        // With nothing pending, a kill leaves the same as a power cut.
        if !snapshot.is_clean()
            && self.is_chosen(snapshot.hash(), level)
            && self.plan.part.contains(snapshot.hash())
        {
            let look = self.look_at(snapshot.hash(), known.fingerprint, level);
            if look.is_due() {
                self.kills.fetch_add(u64::from(look.is_new), Ordering::Relaxed);
                let killed = trail.then(snapshot.op(), Crash::Kill);
                self.recover(&snapshot.restart(), snapshot, known, &killed, level, look);
            }
        }
        let policy = if level == 0 { &self.plan.policy } else { &self.plan.nested_policy };
        let mut images = snapshot.images(policy);
        if let Some(op) = since {
            images = images.newer_than(op);
        }
        if !images.is_exhaustive() {
            self.sampled.fetch_add(1, Ordering::Relaxed);
        }
        for image in images.by_ref() {
            if self.plan.until.is_some_and(|until| Instant::now() >= until) {
                self.stop.store(true, Ordering::Relaxed);
            }
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if !self.plan.part.contains(image.hash()) {
                continue;
            }
            let look = self.look_at(image.hash(), known.fingerprint, level);
            if look.is_new {
                self.count(image.hash(), level);
                self.recovering.fetch_add(u64::from(recovering), Ordering::Relaxed);
            } else {
                self.duplicates.fetch_add(1, Ordering::Relaxed);
            }
            if look.is_due() {
                let cut = trail.then(snapshot.op(), Crash::Power(image.id().clone()));
                self.recover(&image.mount(), snapshot, known, &cut, level, look);
            }
        }
        self.duplicates.fetch_add(images.duplicates(), Ordering::Relaxed);
        images.is_exhaustive() && policy.one_in <= 1
    }

    fn count(&self, image: u64, level: usize) {
        if let Some(distinct) = &self.plan.distinct {
            distinct.add(image, level);
        }
        if self.images[level].fetch_add(1, Ordering::Relaxed) >= self.plan.images_max {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn recover(
        &self,
        disk: &SimDisk,
        crashed: &Snapshot,
        known: &Version<S::Model>,
        trail: &Trail,
        level: usize,
        look: Look,
    ) {
        let deeper = look.crash_recovery;
        let model = known.model.as_ref().clone();
        let mut log = if deeper { Log::new(model) } else { Log::of_last(model) };
        if deeper {
            disk.record(true);
        }
        let (mut left, mut recovered_at) = (None, 0);
        let goes_on = |log: &Log<S::Model>| {
            recovered_at = disk.ops();
            let key = xxh3_64_with_seed(&disk.state_hash().to_le_bytes(), log.fingerprint());
            left = Some(key);
            deeper || !locked(shard(&self.went_on, key)).contains(&key)
        };
        if let Err(error) = recover_image(self.scenario, disk, (look.image, level), &mut log, goes_on) {
            let last = crashed.last_op().map(ToString::to_string);
            self.fail(trail, last.unwrap_or_else(|| "start".into()), error);
            return;
        }
        if let Some(key) = left
            && !locked(shard(&self.went_on, key)).insert(key)
            && !deeper
        {
            self.shared.fetch_add(1, Ordering::Relaxed);
        }
        if !deeper {
            return;
        }
        self.nested.fetch_add(1, Ordering::Relaxed);
        // Where all was looked at last, and with what knowledge.
        let mut complete: Option<(u64, u64)> = None;
        for snapshot in disk.history() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let (op, known) = (snapshot.op(), log.at(snapshot.op()));
            let since = complete.filter(|(_, fingerprint)| *fingerprint == known.fingerprint);
            let place = (level + 1, op <= recovered_at);
            let is_complete = self.crash_at(&snapshot, known, trail, place, since.map(|(op, _)| op));
            complete = is_complete.then_some((op, known.fingerprint));
        }
    }
}

impl<S: Scenario> Explorer<'_, S> {
    fn report(&self, ops: u64, elapsed: Duration) -> Report {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut failures = locked(&self.failures).clone();
        failures.sort_by_key(|failure| failure.trail.0.iter().map(|s| s.op).collect::<Vec<_>>());
        Report {
            ops,
            images: self.images.iter().map(count).collect(),
            recovering: count(&self.recovering),
            duplicates: count(&self.duplicates),
            sampled: count(&self.sampled),
            kills: count(&self.kills),
            nested: count(&self.nested),
            shared: count(&self.shared),
            failures,
            elapsed,
        }
    }

    /// Takes one crash of the scenario after the other, from the history all threads share.
    fn work(&self, history: &[Snapshot], log: &Log<S::Model>) {
        while let Some(snapshot) = history.get(self.begun.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.crash_at(snapshot, log.at(snapshot.op()), &Trail::default(), (0, false), None);
        }
    }

    fn say_how_far(&self, every: Duration, start: Instant, done: &AtomicBool) {
        let mut said = start;
        while !done.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(200));
            if said.elapsed() >= every {
                said = Instant::now();
                let begun = self.begun.load(Ordering::Relaxed).min(self.crashes);
                let report = self.report(0, start.elapsed());
                eprintln!("  {} crash {begun} of {}: {report}", self.scenario.name(), self.crashes);
                if let Some(distinct) = &self.plan.distinct {
                    eprintln!("  so far {distinct}");
                }
            }
        }
    }
}

/// Crashes a scenario everywhere and reports what recovery made of it.
pub fn explore<S: Scenario>(scenario: &S, seed: u64, plan: &Plan) -> Report {
    let start = Instant::now();
    let levels = usize::try_from(plan.depth).unwrap_or_default() + 1;
    let disk = SimDisk::new(seed);
    disk.set_tracing(false);
    disk.record(true);
    let mut log = Log::new(scenario.start());
    let ran = guarded(|| scenario.run(&disk, &mut log));
    let history = disk.history();
    let explorer = Explorer {
        scenario,
        seed,
        plan,
        seen: shards(),
        crashed: shards(),
        images: (0..levels).map(|_| AtomicU64::new(0)).collect(),
        recovering: AtomicU64::new(0),
        duplicates: AtomicU64::new(0),
        sampled: AtomicU64::new(0),
        kills: AtomicU64::new(0),
        nested: AtomicU64::new(0),
        went_on: shards(),
        shared: AtomicU64::new(0),
        failures: Mutex::default(),
        stop: AtomicBool::new(false),
        begun: AtomicUsize::new(0),
        crashes: history.len(),
    };
    if let Err(error) = ran {
        explorer.fail(&Trail::default(), format!("op {}", disk.ops()), error);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..plan.threads.max(1)).map(|_| scope.spawn(|| explorer.work(&history, &log))).collect();
        if let Some(every) = plan.progress_every {
            let (explorer, done) = (&explorer, &done);
            scope.spawn(move || explorer.say_how_far(every, start, done));
        }
        for worker in workers {
            if worker.join().is_err() {
                explorer.fail(&Trail::default(), "the harness".into(), "a thread of it panicked".into());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    explorer.report(disk.ops(), start.elapsed())
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
    let ran = guarded(|| scenario.run(&disk, &mut log));
    ran.map_err(|error| format!("{error}\n{}", trace_of(&disk)))?;
    replay_steps(scenario, &disk, &log, &trail.0, 0)
}

fn trace_of(disk: &SimDisk) -> String {
    disk.trace().iter().map(|op| format!("    {op}\n")).collect()
}

fn replay_steps<S: Scenario>(
    scenario: &S,
    disk: &SimDisk,
    log: &Log<S::Model>,
    steps: &[Step],
    level: usize,
) -> Result<String, String> {
    let Some((step, rest)) = steps.split_first() else {
        return Ok(trace_of(disk));
    };
    let snapshot = disk
        .history()
        .into_iter()
        .find(|snapshot| snapshot.op() == step.op)
        .ok_or_else(|| format!("there is no operation {}\n{}", step.op, trace_of(disk)))?;
    let (next, hash) = match &step.crash {
        Crash::Kill => (snapshot.restart(), snapshot.hash()),
        Crash::Power(image) => {
            let image = snapshot.image(image);
            (image.mount(), image.hash())
        }
    };
    next.record(true);
    next.set_tracing(true);
    let known = log.at(step.op);
    let mut log = Log::new(known.model.as_ref().clone());
    let result = recover_image(scenario, &next, (hash, level), &mut log, |_| true);
    match result {
        Err(error) if rest.is_empty() => Err(format!("{error}\n{}", trace_of(&next))),
        // A recovery that is to be crashed may fail after that.
        _ => replay_steps(scenario, &next, &log, rest, level + 1),
    }
}
