//! How long opening would take if the process died now, and when a checkpoint must begin so that it does
//! not take longer than it may.
//!
//! Opening loads the newest checkpoint and replays the log behind it. How fast that goes is measured where it
//! happens: by the recovery that this store was opened with. Until one has had enough to do, a checkpoint's
//! own reading of the log stands in for it, and before the first of those a cautious guess. Such a reading does more
//! per byte than a recovery, but a small one has all it needs in the processor's cache, so that only half of its speed
//! counts. Nothing here looks at a clock or a disk: times are given, as time since the opening.

use std::time::Duration;

/// Bytes that must have been read before their speed says anything.
const MEANINGFUL: u64 = 4 << 20;
/// Bytes per second that are taken for granted until something is measured.
const CAUTIOUS: f64 = (40 << 20) as f64;
/// What part of the objective is planned with, as a fraction: the rest is for a process that dies while it makes its first
/// checkpoint, and for a machine that is busier then.
const PLANNED: (u32, u32) = (3, 4);
/// Less log than this is never worth a checkpoint: its replay takes less time than opening two files.
pub(crate) const WORTH_IT: u64 = 1 << 20;
/// Time over which the growth of the log is averaged.
const WINDOW: Duration = Duration::from_millis(100);
/// After a failed checkpoint, the objective does not ask for another one before this.
const RETRY: Duration = Duration::from_secs(1);

/// How fast a recovery was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recovered {
    /// Bytes of the checkpoint, and the time it took to load them.
    pub(crate) checkpoint_bytes: u64,
    pub(crate) loading: Duration,
    /// Bytes replayed, and the time it took to survey and replay them.
    pub(crate) log_bytes: u64,
    pub(crate) replaying: Duration,
}

/// What a checkpoint was like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Made {
    /// WAL bytes up to which it has everything.
    pub(crate) position: u64,
    /// Bytes of all its files.
    pub(crate) checkpoint_bytes: u64,
    /// Bytes of the log that were applied for it, and how long that took.
    pub(crate) log_bytes: u64,
    pub(crate) applying: Duration,
    /// How long all of it took.
    pub(crate) took: Duration,
}

/// What is known about the time that opening would take.
#[derive(Clone, Debug)]
pub(crate) struct Estimator {
    objective: Option<Duration>,
    /// Bytes per second of a recovery: loading a checkpoint, replaying the log.
    load: Option<f64>,
    replay: Option<f64>,
    /// Half the bytes per second with which checkpoints read the log.
    apply: Option<f64>,
    /// What opening takes beside both.
    begin: Duration,
    /// Bytes of the newest checkpoint, and the WAL bytes up to which it has everything.
    checkpoint_bytes: u64,
    position: u64,
    last: Option<Made>,
    not_before: Duration,
    growth: Growth,
    /// Of loading, and of growth.
    told: (bool, bool),
}

/// Why an objective is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Loading the checkpoint leaves too little of it.
    Loading { objective: Duration, loading: Duration },
    /// The log grew by more than may be replayed, before a checkpoint was made or while one was.
    Growth { objective: Duration, estimate: Duration },
}

/// How fast the log grows.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    since: Duration,
    from: u64,
    /// Bytes per second.
    rate: f64,
}

impl Growth {
    /// At this time the log had so many bytes. More speed counts at once, less of it bit by bit.
    fn observe(&mut self, at: Duration, wal_bytes: u64) {
        let time = at.saturating_sub(self.since);
        if time < WINDOW {
            return;
        }
        let rate = wal_bytes.saturating_sub(self.from) as f64 / time.as_secs_f64();
        *self = Self { since: at, from: wal_bytes, rate: rate.max(f64::midpoint(rate, self.rate)) };
    }
}

impl Estimator {
    /// After an opening, with a log of so many bytes.
    pub(crate) fn new(objective: Option<Duration>, recovered: &Recovered, wal_bytes: u64) -> Self {
        Self {
            objective,
            load: speed(recovered.checkpoint_bytes, recovered.loading),
            replay: speed(recovered.log_bytes, recovered.replaying),
            apply: None,
            begin: Duration::ZERO,
            checkpoint_bytes: recovered.checkpoint_bytes,
            position: wal_bytes.saturating_sub(recovered.log_bytes),
            last: None,
            not_before: Duration::ZERO,
            growth: Growth { from: wal_bytes, ..Growth::default() },
            told: (false, false),
        }
    }

    /// What opening took beside loading and replaying.
    pub(crate) fn began_in(&mut self, begin: Duration) {
        self.begin = begin;
    }

    /// At this time the log had so many bytes.
    pub(crate) fn grew(&mut self, at: Duration, wal_bytes: u64) {
        self.growth.observe(at, wal_bytes);
    }

    /// A checkpoint was made. The next one waits as long as this one took, so that they take at most half of
    /// the time however small the objective is.
    pub(crate) fn made(&mut self, at: Duration, made: Made) {
        if let Some(new) = speed(made.log_bytes, made.applying) {
            let new = new / 2.0;
            self.apply = Some(self.apply.map_or(new, |old| f64::midpoint(old, new)));
        }
        self.checkpoint_bytes = made.checkpoint_bytes;
        self.position = made.position;
        self.not_before = at.saturating_add(made.took);
        self.last = Some(made);
    }

    /// Nothing was durable that the newest checkpoint does not have: what the log has grown by belongs to
    /// epochs that are still open, and waits for them.
    pub(crate) fn nothing_new(&mut self, at: Duration) {
        self.not_before = self.not_before.max(at.saturating_add(WINDOW));
    }

    /// No checkpoint could be made.
    pub(crate) fn failed(&mut self, at: Duration) {
        self.not_before = at.saturating_add(self.objective.unwrap_or(RETRY).max(RETRY));
    }

    /// Log bytes that opening would replay, when the log has `wal_bytes`.
    pub(crate) fn behind(&self, wal_bytes: u64) -> u64 {
        wal_bytes.saturating_sub(self.position)
    }

    /// How long opening would take, when the log has `wal_bytes`.
    pub(crate) fn recovery(&self, wal_bytes: u64) -> Duration {
        self.loading().saturating_add(self.replaying(self.behind(wal_bytes) as f64))
    }

    /// Is it time for a checkpoint, so that the objective holds when it is done?
    pub(crate) fn is_due(&self, at: Duration, wal_bytes: u64) -> bool {
        self.is_needed(wal_bytes) && at >= self.not_before
    }

    /// How long to wait for the end of the pause, when a checkpoint is needed after it.
    pub(crate) fn pause(&self, at: Duration, wal_bytes: u64) -> Option<Duration> {
        self.is_needed(wal_bytes).then(|| self.not_before.saturating_sub(at))
    }

    /// Would the objective be missed if a checkpoint began only later?
    pub(crate) fn is_needed(&self, wal_bytes: u64) -> bool {
        let Some(budget) = self.budget() else { return false };
        let behind = self.behind(wal_bytes);
        let meanwhile = self.growth.rate * self.next_takes(behind).as_secs_f64();
        behind >= WORTH_IT && self.replaying(behind as f64 + meanwhile) >= budget
    }

    /// Does loading the checkpoint alone, as measured, leave less than a quarter of the objective for
    /// the log?
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.load.is_some()
            && self.objective.is_some_and(|objective| self.loading() > objective - objective / 4)
    }

    /// What to say about an objective that is not kept, each once: after an opening, and when a checkpoint is done. Nothing
    /// is said that is only guessed.
    pub(crate) fn complaint(&mut self, wal_bytes: u64) -> Option<Missed> {
        let (objective, estimate) = (self.objective?, self.recovery(wal_bytes));
        if self.is_out_of_reach() {
            let loading = self.loading();
            return (!std::mem::replace(&mut self.told.0, true))
                .then_some(Missed::Loading { objective, loading });
        }
        let missed = self.replay.is_some() && estimate > objective;
        (missed && !std::mem::replace(&mut self.told.1, true))
            .then_some(Missed::Growth { objective, estimate })
    }

    /// Time for replaying the log: what loading leaves of what is planned with, but never less than a quarter of
    /// the objective, because more checkpoints do not make loading one faster.
    fn budget(&self) -> Option<Duration> {
        let (part, of) = PLANNED;
        let left = |objective: Duration| (objective * part / of).saturating_sub(self.loading());
        self.objective.map(|objective| left(objective).max(objective / 4))
    }

    /// Time for everything but the log.
    fn loading(&self) -> Duration {
        let rate = self.load.or(self.apply).unwrap_or(CAUTIOUS);
        self.begin.saturating_add(seconds(self.checkpoint_bytes as f64 / rate))
    }

    fn replaying(&self, bytes: f64) -> Duration {
        seconds(bytes / self.replay.or(self.apply).unwrap_or(CAUTIOUS))
    }

    /// Time that a checkpoint of so many bytes of log would take: as long as the last one, and more when
    /// there is more to do.
    fn next_takes(&self, bytes: u64) -> Duration {
        match &self.last {
            Some(last) => last.took.mul_f64((bytes as f64 / last.log_bytes.max(1) as f64).clamp(1.0, 1e6)),
            None => seconds(bytes as f64 / CAUTIOUS),
        }
    }
}

/// Bytes per second, where there were enough.
fn speed(bytes: u64, time: Duration) -> Option<f64> {
    (bytes >= MEANINGFUL && !time.is_zero()).then(|| bytes as f64 / time.as_secs_f64())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
impl Estimator {
    /// Goes by these bytes per second whatever is measured, and takes everything else for nothing.
    fn pin(&mut self, replay: f64, load: f64) {
        (self.replay, self.load, self.begin) = (Some(replay), Some(load), Duration::ZERO);
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
