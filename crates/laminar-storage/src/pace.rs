//! How work in the background makes room for group commit: on the processors, and on the device.
//!
//! A device, and the journal of a file system, does one thing after the other: a sync of the log that comes while a
//! megabyte of a checkpoint is being made durable waits for that megabyte. So a checkpoint beside which epochs become
//! durable is written in short steps, each synced, one at a time whatever the number of cores, and rests after each:
//! group commit has most of the device, and waits for one short step at most. A checkpoint that is alone takes long steps
//! and never rests. Which of the two it is, the syncs of the log themselves tell.
//!
//! **Whoever rests must not fall behind.** A checkpoint has to write what the log brought since the one before; if it wrote less
//! than the log grows by meanwhile, each would take longer than the last, and the log would fill the disk. So rests and short
//! steps end when the log has grown by more than half of what the checkpoint wrote. Where opening again has to be fast
//! (a recovery objective), checkpoints are made just in time, and none of them rests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock, thread};

/// What a file that is being written may hold unsynced beside group commit; measured
/// (`laminar-bench stalls`): shorter steps spend more on syncing than they spare.
const STEP_BESIDE_COMMITS: u64 = 256 << 10;
/// The same where nobody else syncs: at first, and once that has been synced.
const FIRST_STEP_ALONE: u64 = 8 << 20;
const STEP_ALONE: u64 = 1 << 20;
/// Rests are so many times as long as the steps before them.
const REST: u32 = 3;
/// No rest is longer, so that a device that once took a minute is not waited for minutes more: not by whoever closes the
/// store either.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Lets whoever waits for a processor go first. Work in the background asks for that between pieces of a few hundred
/// microseconds: a thread that was asleep, as Ring 1 is while the device works, would else wait until the system takes the
/// processor away, which is several milliseconds.
pub(crate) fn give_way() {
    std::thread::yield_now();
}

/// The log may grow by so much beside a checkpoint before that counts as behind, whatever it wrote.
const SLACK: u64 = 8 << 20;

/// The syncs of a store's log, as work in the background sees them.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    /// Bytes of the log that were to be synced, since it began.
    log: AtomicU64,
    /// How many began and how many have ended. They differ while one goes on.
    begun: AtomicU64,
    ended: AtomicU64,
    /// Whether checkpoints have no time to rest.
    in_a_hurry: bool,
    /// Held by the step that has the device, and for the rest after it.
    device: Mutex<()>,
}

impl Commits {
    /// None yet. Checkpoints beside them rest, unless they are in a hurry.
    pub(crate) fn new(in_a_hurry: bool) -> Self {
        Self { in_a_hurry, ..Self::default() }
    }

    /// Runs a sync of the log, which has so many bytes since it began.
    pub(crate) fn commit<R>(&self, log_bytes: u64, sync: impl FnOnce() -> R) -> R {
        // These numbers order nothing: who sees one late takes one step more or less.
        self.log.store(log_bytes, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        let done = sync();
        self.ended.fetch_add(1, Ordering::Relaxed);
        done
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether the log was being synced at any time since so many syncs had ended.
    fn went_on_since(&self, ended: u64) -> bool {
        self.begun.load(Ordering::Relaxed) != ended
    }
}

/// The pace of one piece of work in the background, a checkpoint. By default the log is never synced beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    commits: Arc<Commits>,
    /// How many had ended when the work began.
    beginning: u64,
    progress: Arc<Progress>,
}

/// How far a checkpoint is, over all of its files.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that it has written and synced.
    written: AtomicU64,
    /// Bytes that the log had at its first step, and one more; 0 before that.
    log_at_first: AtomicU64,
}

impl Pace {
    /// The work begins now.
    pub(crate) fn beside(commits: &Arc<Commits>) -> Self {
        Self { commits: Arc::clone(commits), beginning: commits.ended(), progress: Arc::default() }
    }

    /// Whether a file of which `synced` bytes are durable and `unsynced` more are written is to be synced now.
    pub(crate) fn asks_for_sync(&self, synced: u64, unsynced: u64) -> bool {
        let in_short_steps = self.commits.went_on_since(self.beginning) && !self.is_behind();
        let step = match (in_short_steps, synced) {
            (true, _) => STEP_BESIDE_COMMITS,
            (false, 0) => FIRST_STEP_ALONE,
            (false, _) => STEP_ALONE,
        };
        unsynced >= step
    }

    /// Runs a step that keeps the device busy with so many bytes, and rests as is due afterwards.
    pub(crate) fn step<R>(&self, bytes: u64, step: impl FnOnce() -> R) -> R {
        self.begins();
        let makes_way =
            !self.commits.in_a_hurry && self.commits.went_on_since(self.beginning) && !self.is_behind();
        let _one_at_a_time = makes_way.then(|| lock(&self.commits.device));
        let (before, started) = (self.commits.ended(), Instant::now());
        let done = step();
        self.progress.written.fetch_add(bytes, Ordering::Relaxed);
        if let Some(rest) = self.rest(before, started.elapsed()) {
            thread::sleep(rest);
        }
        done
    }

    /// Notes how long the log is at the first step.
    fn begins(&self) {
        if self.progress.log_at_first.load(Ordering::Relaxed) == 0 {
            // Of two who come at once either may be the first.
            self.progress
                .log_at_first
                .store(self.commits.log.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether the log grew by more than half of what was written, since the first step.
    fn is_behind(&self) -> bool {
        let first = self.progress.log_at_first.load(Ordering::Relaxed);
        let grown = (self.commits.log.load(Ordering::Relaxed).saturating_add(1)).saturating_sub(first);
        first != 0 && grown > SLACK + self.progress.written.load(Ordering::Relaxed) / 2
    }

    /// What rest is due after a step that took so long, when so many syncs had ended before it: none, if group commit did not
    /// want the device too.
    fn rest(&self, ended_before: u64, took: Duration) -> Option<Duration> {
        let due = self.commits.went_on_since(ended_before) && !self.commits.in_a_hurry && !self.is_behind();
        due.then(|| (took * REST).min(LONGEST_REST))
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_is_alone_takes_long_steps_and_one_beside_commits_short_ones() {
        let commits = Arc::new(Commits::default());
        commits.commit(0, || ());
        let pace = Pace::beside(&commits);
        let steps = |synced, len| !pace.asks_for_sync(synced, len - 1) && pace.asks_for_sync(synced, len);
        assert!(steps(0, FIRST_STEP_ALONE));
        assert!(steps(FIRST_STEP_ALONE, STEP_ALONE));
        assert!(commits.commit(0, || steps(0, STEP_BESIDE_COMMITS)), "while the log is being synced");
        assert!(steps(STEP_ALONE, STEP_BESIDE_COMMITS), "also afterwards: the next one may come at once");
    }

    #[test]
    fn who_held_group_commit_up_rests() {
        let took = Duration::from_millis(3);
        for (in_a_hurry, due) in [(false, Some(took * REST)), (true, None)] {
            let commits = Arc::new(Commits::new(in_a_hurry));
            let pace = Pace::beside(&commits);
            let before = commits.ended();
            assert_eq!(pace.rest(before, took), None, "nobody was held up");
            assert_eq!(commits.commit(0, || pace.rest(before, took)), due, "one that goes on still");
            assert_eq!(pace.rest(before, took), due, "one that went by meanwhile");
            assert_eq!(pace.rest(commits.ended(), took), None, "one that was over before the step");
        }
    }

    /// A sync that the device kept for a minute was followed by another minute of rest, which closing waited for.
    #[test]
    fn no_rest_is_long() {
        let commits = Arc::new(Commits::default());
        let pace = Pace::beside(&commits);
        assert_eq!(commits.commit(0, || pace.rest(0, Duration::from_secs(60))), Some(LONGEST_REST));
    }

    /// Beside puts that never pause, rests three times as long let the log grow by 28 GB in ten minutes in which not two
    /// checkpoints were finished: each spilled as much as the log had grown by, and wrote less than that meanwhile.
    #[test]
    fn who_falls_behind_the_log_does_not_rest() {
        let commits = Arc::new(Commits::default());
        let took = Duration::from_millis(3);
        commits.commit(1 << 30, || ());
        let pace = Pace::beside(&commits);
        let also = pace.clone();
        pace.step(0, || ());
        let rests = |log: u64| commits.commit((1 << 30) + log, || pace.rest(commits.ended(), took)).is_some();
        assert!(rests(SLACK));
        assert!(pace.asks_for_sync(0, STEP_BESIDE_COMMITS), "in short steps");
        assert!(!rests(SLACK + 1));
        assert!(!pace.asks_for_sync(0, FIRST_STEP_ALONE - 1), "in long ones");
        // What another file of the same checkpoint writes counts for all.
        also.step(2 << 20, || ());
        assert!(rests(SLACK + (1 << 20)));
        assert!(!rests(SLACK + (1 << 20) + 1));
        // The next one begins with a clean slate.
        assert!(Pace::beside(&commits).rest(commits.ended() - 1, took).is_some());
    }

    #[test]
    fn a_step_says_what_came_of_it() {
        let commits = Arc::new(Commits::default());
        let pace = Pace::beside(&commits);
        assert_eq!(pace.step(0, || 7), 7);
        assert_eq!(pace.step(0, || commits.commit(0, || 8)), 8);
    }

    #[test]
    fn steps_beside_group_commit_come_one_at_a_time() {
        for (in_a_hurry, others_wait) in [(false, true), (true, false)] {
            let commits = Arc::new(Commits::new(in_a_hurry));
            let pace = Pace::beside(&commits);
            assert!(
                pace.step(0, || commits.device.try_lock().is_ok()),
                "alone, there is nothing to wait for"
            );
            commits.commit(0, || ());
            assert_eq!(pace.step(0, || commits.device.try_lock().is_err()), others_wait);
        }
    }
}
