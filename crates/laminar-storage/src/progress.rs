//! How far opening a store has come, for whoever waits for it.
//!
//! Bytes are counted by the block and the frame as they are read, never by the record, and whoever asked
//! is told at most every [`PAUSE`]. When nobody asked, nothing is counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Time between two reports.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes after which it is worth looking at the clock.
pub(crate) const COUNT_EVERY: u64 = 64 << 10;

/// What opening is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum RecoveryPhase {
    /// Looking for the newest good checkpoint, and reading and checking the log behind it. How much
    /// that is turns out on the way.
    #[default]
    Surveying,
    /// Distributing the keys anew, for another number of cores. The counts begin anew after it, when
    /// the result is loaded.
    Resharding,
    /// Loading the checkpoint into memory.
    Loading,
    /// The checkpoint is loaded; the log behind it is replayed.
    Replaying,
    /// Done; said once.
    Done,
}

/// How far opening has come; given to [`crate::StoreBuilder::on_progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// What it is busy with.
    pub phase: RecoveryPhase,
    /// Bytes of checkpoint and log that are done.
    pub bytes_done: u64,
    /// Bytes of checkpoint and log in all; `None` while the log is surveyed.
    pub bytes_total: Option<u64>,
    /// Keys in memory so far.
    pub keys: u64,
    /// Time since opening began.
    pub elapsed: Duration,
    /// Bytes per second, since these bytes began to be counted.
    pub bytes_per_second: u64,
    /// Time left at that speed, where it is known.
    pub remaining: Option<Duration>,
}

/// Where reports go.
pub(crate) type Listener = dyn FnMut(RecoveryProgress) + Send;

/// Counts for a listener; for nobody by default. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct Watch(Option<Arc<Counts>>);

struct Counts {
    listener: Arc<Mutex<Listener>>,
    began: Instant,
    stage: Mutex<Stage>,
    loaded: AtomicU64,
    replayed: AtomicU64,
    keys: AtomicU64,
    /// When the listener was told last, in nanoseconds since `began`.
    told: AtomicU64,
}

/// Bytes that are counted together.
#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    phase: RecoveryPhase,
    since: Duration,
    /// Bytes of the checkpoint and of the log.
    total: Option<(u64, u64)>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watch(on)" } else { "Watch(off)" })
    }
}

impl Watch {
    /// Counts for this listener from now on.
    pub(crate) fn new(listener: Option<&Arc<Mutex<Listener>>>) -> Self {
        Self(listener.map(|listener| {
            Arc::new(Counts {
                listener: Arc::clone(listener),
                began: Instant::now(),
                stage: Mutex::default(),
                loaded: AtomicU64::new(0),
                replayed: AtomicU64::new(0),
                keys: AtomicU64::new(0),
                told: AtomicU64::new(0),
            })
        }))
    }

    /// The log is surveyed now.
    pub(crate) fn surveying(&self) {
        self.begin(RecoveryPhase::Surveying, None);
    }

    /// So many bytes of checkpoint and log are distributed anew now.
    pub(crate) fn resharding(&self, checkpoint: u64, log: u64) {
        self.begin(RecoveryPhase::Resharding, Some((checkpoint, log)));
    }

    /// So many bytes of checkpoint and log are loaded now.
    pub(crate) fn loading(&self, checkpoint: u64, log: u64) {
        self.begin(RecoveryPhase::Loading, Some((checkpoint, log)));
    }

    fn begin(&self, phase: RecoveryPhase, total: Option<(u64, u64)>) {
        let Some(counts) = &self.0 else { return };
        let mut stage = counts.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = Stage { phase, since: counts.began.elapsed(), total };
        for count in [&counts.loaded, &counts.replayed, &counts.keys] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes of the checkpoint were read.
    pub(crate) fn loaded(&self, bytes: u64) {
        if let Some(counts) = &self.0 {
            counts.count(&counts.loaded, bytes);
        }
    }

    /// Bytes of the log were read.
    pub(crate) fn replayed(&self, bytes: u64) {
        if let Some(counts) = &self.0 {
            counts.count(&counts.replayed, bytes);
        }
    }

    /// So many keys more than `before` are in memory; `before` is moved along.
    pub(crate) fn keys(&self, before: &mut u64, now: u64) {
        if let Some(counts) = &self.0 {
            // Of deleted keys there can be fewer: adding the difference modulo 2^64 takes them off.
            counts.keys.fetch_add(now.wrapping_sub(*before), Ordering::Relaxed);
            *before = now;
        }
    }

    /// It is over, with so many keys.
    pub(crate) fn done(&self, keys: u64) {
        let Some(counts) = &self.0 else { return };
        {
            let mut stage = counts.stage.lock().unwrap_or_else(PoisonError::into_inner);
            stage.phase = RecoveryPhase::Done;
            stage.total.get_or_insert_default();
        }
        counts.keys.store(keys, Ordering::Relaxed);
        let mut listener = counts.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listener(counts.progress());
    }
}

impl Counts {
    fn count(&self, counter: &AtomicU64, bytes: u64) {
        let before = counter.fetch_add(bytes, Ordering::Relaxed);
        if before / COUNT_EVERY != before.wrapping_add(bytes) / COUNT_EVERY {
            self.tell();
        }
    }

    /// Tells the listener, if it is time and no other thread is just doing it.
    fn tell(&self) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let due = |told: u64| u128::from(now.saturating_sub(told)) >= PAUSE.as_nanos();
        if !due(self.told.load(Ordering::Relaxed)) {
            return;
        }
        let mut listener = match self.listener.try_lock() {
            Ok(listener) => listener,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if due(self.told.load(Ordering::Relaxed)) {
            self.told.store(now, Ordering::Relaxed);
            listener(self.progress());
        }
    }

    fn progress(&self) -> RecoveryProgress {
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = self.loaded.load(Ordering::Relaxed);
        let replayed = self.replayed.load(Ordering::Relaxed);
        let keys = self.keys.load(Ordering::Relaxed);
        stage.progress(loaded, replayed, keys, self.began.elapsed())
    }
}

impl Stage {
    fn progress(&self, loaded: u64, replayed: u64, keys: u64, elapsed: Duration) -> RecoveryProgress {
        let total = self.total.map(|(checkpoint, log)| checkpoint.saturating_add(log));
        // A file's header and index are not counted, and re-sharding may read something twice.
        let bytes_done = loaded.saturating_add(replayed).min(total.unwrap_or(u64::MAX));
        let phase = match (self.phase, self.total) {
            (RecoveryPhase::Loading, Some((checkpoint, _))) if loaded >= checkpoint => {
                RecoveryPhase::Replaying
            }
            (phase, _) => phase,
        };
        let time = elapsed.saturating_sub(self.since).as_nanos().max(1);
        let bytes_per_second = u128::from(bytes_done) * 1_000_000_000 / time;
        let left = total.map(|total| u128::from(total - bytes_done));
        let remaining = left.filter(|left| *left == 0 || bytes_per_second > 0).map(|left| {
            let nanos = left * 1_000_000_000 / bytes_per_second.max(1);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        RecoveryProgress {
            phase,
            bytes_done,
            bytes_total: total,
            keys,
            elapsed,
            bytes_per_second: u64::try_from(bytes_per_second).unwrap_or(u64::MAX),
            remaining,
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod tests {
    use super::*;

    /// How many bytes of a log are said to have been read.
    pub(crate) fn replayed_by(work: impl FnOnce(&Watch)) -> u64 {
        let heard = Arc::new(AtomicU64::new(0));
        let to = Arc::clone(&heard);
        let listener: Arc<Mutex<Listener>> = Arc::new(Mutex::new(move |progress: RecoveryProgress| {
            to.store(progress.bytes_done, Ordering::Relaxed);
        }));
        let watch = Watch::new(Some(&listener));
        watch.loading(0, u64::MAX);
        work(&watch);
        watch.done(0);
        heard.load(Ordering::Relaxed)
    }

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let since = Duration::from_secs(1);
        let stage = Stage { phase: RecoveryPhase::Loading, since, total: Some((600, 400)) };
        let progress = stage.progress(500, 0, 7, Duration::from_secs(3));
        assert_eq!(progress.phase, RecoveryPhase::Loading);
        assert_eq!((progress.bytes_done, progress.bytes_total, progress.keys), (500, Some(1000), 7));
        assert_eq!(progress.bytes_per_second, 250);
        assert_eq!(progress.remaining, Some(Duration::from_secs(2)));
        let progress = stage.progress(600, 100, 7, Duration::from_secs(3));
        assert_eq!((progress.phase, progress.bytes_done), (RecoveryPhase::Replaying, 700));
        // Nothing is known of the speed before the first byte, nor of the total before the survey.
        assert_eq!(stage.progress(0, 0, 0, since).remaining, None);
        let progress = Stage::default().progress(0, 300, 0, since);
        assert_eq!((progress.bytes_done, progress.bytes_total, progress.remaining), (300, None, None));
        // More than there is stays what there is.
        let progress = stage.progress(900, 900, 7, Duration::from_secs(3));
        assert_eq!((progress.bytes_done, progress.remaining), (1000, Some(Duration::ZERO)));
    }

    #[test]
    fn keys_that_come_and_go_are_counted_over_all_threads() {
        let listener: Arc<Mutex<Listener>> = Arc::new(Mutex::new(|_: RecoveryProgress| {}));
        let watch = Watch::new(Some(&listener));
        let (mut one, mut two) = (0, 0);
        watch.keys(&mut one, 10);
        watch.keys(&mut two, 5);
        watch.keys(&mut one, 7);
        assert_eq!(watch.0.as_ref().unwrap().progress().keys, 12);
        assert_eq!((one, two), (7, 5));
    }

    #[test]
    fn the_end_is_told_once_with_everything_done() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&heard);
        let listener: Arc<Mutex<Listener>> =
            Arc::new(Mutex::new(move |progress| to.lock().unwrap().push(progress)));
        let watch = Watch::new(Some(&listener));
        watch.loading(10 << 20, 1 << 20);
        watch.loaded(10 << 20);
        watch.replayed(1 << 20);
        watch.done(42);
        let heard = heard.lock().unwrap();
        let last: &RecoveryProgress = heard.last().unwrap();
        assert_eq!((last.phase, last.keys), (RecoveryPhase::Done, 42));
        assert_eq!((last.bytes_done, last.bytes_total), (11 << 20, Some(11 << 20)));
        assert_eq!(heard.iter().filter(|progress| progress.phase == RecoveryPhase::Done).count(), 1);
    }
}
