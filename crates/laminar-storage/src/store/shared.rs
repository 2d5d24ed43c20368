//! What the threads of a store share, and the two threads behind it.

mod checkpoints;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::checkpointer::Checkpointer;
use super::drain::Drain;
use super::durable::Durable;
use super::error::StoreError;
use super::objective::{Estimator, Missed, Recovered};
use super::settings::Settings;
use super::settled::{Cuts, Settled};
use super::sleeper::Sleeper;
use super::stats::{Counters, Stats};
use crate::error::Detail;
use crate::ids::{CheckpointId, CoreId, Epoch};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, OnceLock, lock};

/// Turns without work before Ring 1 sleeps, and how long it sleeps at most: a seal wakes it, and an
/// unsealed change can wait.
const SPINS: u32 = if cfg!(all(test, shuttle)) { 1 } else { 64 };
const NAP: Duration = Duration::from_millis(1);

/// State that all threads of a store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) durable: Durable,
    pub(crate) counters: Counters,
    /// Ring 1 and the checkpoints; gone once the store is closed. Without space for a log there are no checkpoints, and
    /// the store is poisoned.
    drain: Mutex<Option<Drain>>,
    cuts: Mutex<Cuts>,
    /// In a part of a whole: what is durable on all parts.
    settled: Option<Arc<Settled>>,
    checkpointer: Mutex<Option<Checkpointer>>,
    checkpoint_failure: Mutex<Option<StoreError>>,
    /// Per core: the last epoch it sealed, once it is dropped.
    gone: Vec<OnceLock<Epoch>>,
    /// Ring 1's thread, and whether it sleeps.
    ring1: Sleeper,
    closing: AtomicBool,
    closed: AtomicBool,
    /// Rung when the checkpoint thread should look.
    bell: Condvar,
    bell_gate: Mutex<()>,
    /// WAL bytes when the last checkpoint was taken.
    checkpointed_bytes: AtomicU64,
    /// How long opening would take, and since when time is counted for it.
    pub(crate) estimator: Mutex<Estimator>,
    opened: Instant,
    /// The outside world is a simulation: no threads, the callers do the work.
    inline: bool,
    #[cfg(feature = "object-store")]
    pub(crate) backups: OnceLock<Arc<crate::backup::worker::Backups>>,
}

/// What is on the disk when a store starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) wal_bytes: u64,
    pub(crate) newest: Option<(CheckpointId, Epoch)>,
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        drain: Drain,
        checkpointer: Checkpointer,
        recovered: &Recovered,
        inline: bool,
    ) -> Self {
        let newest = checkpointer.newest().map(|newest| (newest.id, newest.epoch));
        let standing = Standing { wal_bytes: drain.wal_bytes(), newest };
        Self::on(settings, drain, Some(checkpointer), &standing, recovered, inline)
    }

    /// A store that nothing can be written to, for this reason; `drain` has no writers.
    pub(crate) fn stalled(
        settings: Settings,
        drain: Drain,
        standing: &Standing,
        recovered: &Recovered,
        inline: bool,
        cause: &StoreError,
    ) -> Self {
        let shared = Self::on(settings, drain, None, standing, recovered, inline);
        shared.durable.poison(cause);
        shared
    }

    fn on(
        settings: Settings,
        drain: Drain,
        checkpointer: Option<Checkpointer>,
        standing: &Standing,
        recovered: &Recovered,
        inline: bool,
    ) -> Self {
        let counters = Counters::default();
        let bytes = standing.wal_bytes;
        counters.wal_bytes.set(bytes);
        if let Some((id, epoch)) = standing.newest {
            counters.checkpoint_next.set(id.next().0);
            counters.checkpoint_epoch.set(epoch.0);
        }
        let (cut, cores, settled) = (drain.cut(), drain.cores(), drain.settled().cloned());
        let estimator = Estimator::new(settings.recovery_objective(), recovered, bytes);
        Self {
            settings,
            durable: Durable::starting_at(cut.epoch),
            counters,
            cuts: Mutex::new(Cuts::starting_at(cut)),
            settled,
            drain: Mutex::new(Some(drain)),
            checkpointer: Mutex::new(checkpointer),
            checkpoint_failure: Mutex::new(None),
            gone: (0..cores).map(|_| OnceLock::new()).collect(),
            ring1: Sleeper::default(),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            bell: Condvar::default(),
            bell_gate: Mutex::default(),
            checkpointed_bytes: AtomicU64::new(bytes),
            estimator: Mutex::new(estimator),
            opened: Instant::now(),
            inline,
            #[cfg(feature = "object-store")]
            backups: OnceLock::new(),
        }
    }

    /// Starts the background threads, unless the callers do the work.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<Vec<JoinHandle<()>>> {
        if self.inline {
            return Ok(Vec::new());
        }
        let ring1 = Arc::clone(self);
        let ring1 = thread::Builder::new().name("laminar-ring1".into()).spawn(move || ring1.run_ring1())?;
        self.ring1.is(ring1.thread().clone());
        let checkpoints = Arc::clone(self);
        let checkpoints = thread::Builder::new()
            .name("laminar-checkpoint".into())
            .spawn(move || checkpoints.run_checkpoints());
        match checkpoints {
            Ok(checkpoints) => Ok(vec![ring1, checkpoints]),
            Err(error) => {
                self.begin_close();
                let _ = ring1.join();
                Err(error)
            }
        }
    }

    /// One turn of Ring 1, with everything that follows from it.
    fn turn(&self) -> Result<bool, StoreError> {
        self.durable.check()?;
        let turn = {
            let mut drain = lock(&self.drain);
            let Some(drain) = drain.as_mut() else { return Ok(false) };
            let turn = drain.turn(&self.counters);
            if let Ok(turn) = &turn
                && turn.durable.is_some()
            {
                lock(&self.cuts).add(drain.cut(), self.settled_epoch());
                self.counters.wal_bytes.set(drain.synced_bytes());
            }
            turn
        };
        match turn {
            Ok(turn) => {
                if let Some(epoch) = turn.durable {
                    self.durable.publish(epoch);
                    if self.checkpoint_due_by_size()
                        | self.objective_asks(|estimator, _, now| estimator.is_needed(now))
                    {
                        self.ring_bell();
                    }
                }
                Ok(turn.worked)
            }
            Err(error) => {
                tracing::error!(%error, "the store is poisoned");
                self.durable.poison(&error);
                Err(error)
            }
        }
    }

    /// Gives Ring 1 a chance to make room: by working in its place, or by waking and waiting for it.
    pub(crate) fn make_room(&self) -> Result<(), StoreError> {
        self.durable.check()?;
        if self.inline {
            return self.turn().map(drop);
        }
        self.wake_ring1();
        thread::sleep(Duration::from_micros(20));
        Ok(())
    }

    /// Wakes Ring 1 if it sleeps.
    pub(crate) fn wake_ring1(&self) {
        self.ring1.wake();
    }

    fn run_ring1(&self) {
        let bomb = PoisonOnPanic(self);
        let mut idle = 0;
        loop {
            match self.turn() {
                Ok(true) => idle = 0,
                Ok(false) if self.closing.load(Ordering::Acquire) => break,
                Ok(false) if idle < SPINS => {
                    idle += 1;
                    thread::yield_now();
                }
                Ok(false) if idle == SPINS => {
                    idle += 1;
                    if self.confirm().is_err() {
                        break;
                    }
                }
                Ok(false) => self.nap(),
                Err(_) => break,
            }
        }
        std::mem::forget(bomb);
    }

    /// Sleeps until a seal comes.
    fn nap(&self) {
        self.ring1.nap(NAP, || lock(&self.drain).as_ref().is_some_and(Drain::has_work));
    }

    fn confirm(&self) -> Result<(), StoreError> {
        let result = lock(&self.drain).as_mut().map_or(Ok(()), Drain::confirm);
        if let Err(error) = &result {
            self.durable.poison(error);
        }
        result
    }

    fn run_checkpoints(&self) {
        let bomb = FailOnPanic(self);
        let interval = Duration::from_millis(self.settings.checkpoint_interval_ms);
        let mut last = Instant::now();
        while !self.closing.load(Ordering::Acquire) && self.durable.check().is_ok() {
            let due_by_time = !interval.is_zero() && last.elapsed() >= interval;
            if due_by_time || self.checkpoint_due_by_size() || self.objective_asks(Estimator::is_due) {
                // A failure is kept for health(), and the next interval tries again.
                let _ = self.checkpoint();
                last = Instant::now();
            }
            let wait = if interval.is_zero() {
                Duration::from_secs(60)
            } else {
                interval.saturating_sub(last.elapsed())
            };
            let gate = lock(&self.bell_gate);
            if self.closing.load(Ordering::Acquire) || self.checkpoint_due_by_size() {
                continue;
            }
            let pause = lock(&self.estimator).pause(self.opened.elapsed(), self.counters.wal_bytes.get());
            let wait = pause.map_or(wait, |pause| wait.min(pause));
            let waited = self.bell.wait_timeout(gate, wait.max(Duration::from_millis(1)));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        std::mem::forget(bomb);
    }

    fn checkpoint_due_by_size(&self) -> bool {
        let since =
            self.counters.wal_bytes.get().saturating_sub(self.checkpointed_bytes.load(Ordering::Relaxed));
        self.settings.checkpoint_wal_bytes != 0 && since >= self.settings.checkpoint_wal_bytes
    }

    /// Takes note of the log's growth, and asks the estimator, if there is an objective. Ring 1 asks whether a
    /// checkpoint is needed, and the checkpoint thread, which hears of it at once, whether it is due: were
    /// it only told when one is due, it would sleep through the end of a pause.
    fn objective_asks(&self, ask: impl FnOnce(&Estimator, Duration, u64) -> bool) -> bool {
        if self.settings.recovery_objective_ms == 0 {
            return false;
        }
        let (at, wal_bytes) = (self.opened.elapsed(), self.counters.wal_bytes.get());
        let mut estimator = lock(&self.estimator);
        estimator.grew(at, wal_bytes);
        ask(&estimator, at, wal_bytes)
    }

    /// Says once that the objective cannot be kept, or is not.
    fn complain(&self) {
        let wal_bytes = self.counters.wal_bytes.get();
        // Not held while it is said: whoever hears it may ask for the statistics.
        let missed = lock(&self.estimator).complaint(wal_bytes);
        match missed {
            Some(Missed::Loading { objective, loading }) => tracing::warn!(
                ?objective,
                ?loading,
                "the recovery objective is out of reach: loading the checkpoint takes too much of it"
            ),
            Some(Missed::Growth { objective, estimate }) => tracing::warn!(
                ?objective,
                ?estimate,
                "the recovery objective is missed: the log grows faster than checkpoints are made"
            ),
            None => {}
        }
    }

    /// What opening took beside loading and replaying.
    pub(crate) fn began_in(&self, begin: Duration) {
        lock(&self.estimator).began_in(begin);
        self.complain();
    }

    pub(crate) fn stats(&self) -> Stats {
        let stats = Stats::of(&self.counters, self.durable.epoch(), &lock(&self.estimator));
        #[cfg(feature = "object-store")]
        let stats = match self.backups.get().map(|backups| backups.status()) {
            Some(status) => stats.with_backups(&status),
            None => stats,
        };
        stats
    }

    fn ring_bell(&self) {
        drop(lock(&self.bell_gate));
        self.bell.notify_all();
    }

    /// Up to here checkpoints may go; `None` where everything durable is for good.
    fn settled_epoch(&self) -> Option<Epoch> {
        self.settled.as_ref().map(|settled| settled.epoch())
    }

    /// Takes note that everything up to `epoch` is durable on all parts of the whole.
    pub(crate) fn settle(&self, epoch: Epoch) -> Result<(), StoreError> {
        let durable = self.durable.epoch();
        let refused = |what: String, remedy: &'static str| {
            Err(StoreError::invalid(Detail::new(what).in_epoch(durable).remedy(remedy)))
        };
        match &self.settled {
            None => refused(
                format!("epoch {epoch} cannot be settled: the store was not opened as a part of a whole"),
                "Open it with StoreBuilder::open_as_part.",
            ),
            Some(_) if epoch > durable => refused(
                format!("epoch {epoch} cannot be settled, only {durable} is durable here"),
                "Settle what is durable on every part, this one included.",
            ),
            Some(settled) => {
                settled.raise(epoch);
                Ok(())
            }
        }
    }

    pub(crate) fn checkpoint_failure(&self) -> Option<StoreError> {
        lock(&self.checkpoint_failure).clone()
    }

    /// Waits until `epoch` is durable or can never be; `Ok(false)` when the time is over first.
    pub(crate) fn wait_durable(&self, epoch: Epoch, at_most: Option<Duration>) -> Result<bool, StoreError> {
        let deadline = at_most.and_then(|at_most| Instant::now().checked_add(at_most));
        if self.inline && self.durable.epoch() >= epoch {
            // Ring 1's thread would find nothing to do now, and leave evidence of what is durable. A
            // failure poisons the store and takes nothing back.
            let _ = self.confirm();
        }
        loop {
            if self.durable.epoch() >= epoch {
                return Ok(true);
            }
            self.durable.check()?;
            if self.inline {
                if !self.turn()? && self.durable.epoch() < epoch {
                    return Err(self.never(epoch, "not every core has sealed it"));
                }
                continue;
            }
            if self.ring1.is_me() {
                return Err(StoreError::invalid(
                    Detail::new(format!(
                        "a callback of on_durable waits for epoch {epoch}, which holds it up"
                    ))
                    .in_epoch(self.durable.epoch())
                    .remedy("Wait on another thread."),
                ));
            }
            self.wake_ring1();
            let left = deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
            if self.durable.wait(epoch, left, || self.check_reachable(epoch).is_err())? {
                return Ok(true);
            }
            self.check_reachable(epoch)?;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// An epoch that a dropped core did not seal can never be durable.
    fn check_reachable(&self, epoch: Epoch) -> Result<(), StoreError> {
        let unreachable = |what: &str| Err(self.never(epoch, what));
        for (core, gone) in self.gone.iter().enumerate() {
            if gone.get().is_some_and(|sealed| *sealed < epoch) {
                return unreachable(&format!("core {core} was dropped before it sealed it"));
            }
        }
        if self.closed.load(Ordering::Acquire) && self.durable.epoch() < epoch {
            return unreachable("the store is closed");
        }
        Ok(())
    }

    fn never(&self, epoch: Epoch, why: &str) -> StoreError {
        StoreError::closed(
            Detail::new(format!("epoch {epoch} cannot become durable: {why}"))
                .in_epoch(self.durable.epoch())
                .remedy("Seal every epoch on every core, and keep all cores until it is durable."),
        )
    }

    /// A core is dropped; `sealed` is the last epoch it sealed.
    pub(crate) fn core_gone(&self, core: CoreId, sealed: Epoch) {
        if let Some(gone) = self.gone.get(core.index()) {
            let _ = gone.set(sealed);
        }
        self.durable.wake_all();
    }

    /// Fails once the store is closed.
    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        self.durable.check()?;
        if self.closing.load(Ordering::Relaxed) {
            return Err(StoreError::closed(
                Detail::new("the store was closed").remedy("Open it again to go on."),
            ));
        }
        Ok(())
    }

    fn begin_close(&self) {
        self.closing.store(true, Ordering::Release);
        self.ring1.rouse();
        self.ring_bell();
        #[cfg(feature = "object-store")]
        if let Some(backups) = self.backups.get() {
            backups.end();
        }
    }

    /// Drains and syncs what was sealed, ends the threads, leaves evidence of a clean end.
    pub(crate) fn close(&self, threads: &mut Vec<JoinHandle<()>>) -> Result<(), StoreError> {
        self.begin_close();
        for thread in threads.drain(..) {
            // A callback may drop the store: Ring 1 ends by itself once that has returned.
            if thread.thread().id() != thread::current().id() {
                // A panic in it has poisoned the store, which is what close reports.
                let _ = thread.join();
            }
        }
        let result = self.finish();
        self.closed.store(true, Ordering::Release);
        self.durable.wake_all();
        result
    }

    fn finish(&self) -> Result<(), StoreError> {
        let drained = (|| {
            while self.turn()? {}
            lock(&self.drain).as_mut().map_or(Ok(()), Drain::end)
        })();
        if let Err(error) = &drained {
            self.durable.poison(error);
        }
        // Whatever happened: nothing writes any more when the directory's locks are released.
        *lock(&self.drain) = None;
        *lock(&self.checkpointer) = None;
        drained
    }
}

/// Poisons the store when Ring 1's thread panics, so that nobody waits for ever.
struct PoisonOnPanic<'a>(&'a Shared);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        let detail = Detail::new("the background thread panicked").remedy("Report this; reopen to go on.");
        self.0.durable.poison(&StoreError::closed(detail));
    }
}

/// Reports the checkpoint thread's panic through `health`.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        let detail = Detail::new("the checkpoint thread panicked").remedy("Report this; reopen to go on.");
        *lock(&self.0.checkpoint_failure) = Some(StoreError::closed(detail));
    }
}
