//! How work in the background makes room for group commit: on the processors, and on the device.
//!
//! A device, and the journal of a file system, does one thing after the other: a sync of the log that comes while a
//! megabyte of a checkpoint is being made durable waits for that megabyte. So a checkpoint beside which epochs become
//! durable is written in short steps, each synced, one at a time whatever the number of cores, and rests as long as each
//! step took: group commit has half of the device at least, and waits for one short step at most. (Three times as long is
//! too long: beside puts that never pause the log grew faster than checkpoints were made.) A checkpoint
//! that is alone takes long steps and never rests. Which of the two it is, the syncs of the log themselves tell. Where
//! opening again has to be fast (a recovery objective), checkpoints are made just in time, and none of them rests.

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
/// No rest is longer, so that a device that once took a minute is not waited for minutes more: not by whoever closes the
/// store either.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Lets whoever waits for a processor go first. Work in the background asks for that between pieces of a few hundred
/// microseconds: a thread that was asleep, as Ring 1 is while the device works, would else wait until the system takes the
/// processor away, which is several milliseconds.
pub(crate) fn give_way() {
    std::thread::yield_now();
}

/// The syncs of a store's log, as work in the background sees them.
#[derive(Debug, Default)]
pub(crate) struct Commits {
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

    /// Runs a sync of the log.
    pub(crate) fn commit<R>(&self, sync: impl FnOnce() -> R) -> R {
        // These numbers order nothing: who sees one late takes one step more or less.
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
}

impl Pace {
    /// The work begins now.
    pub(crate) fn beside(commits: &Arc<Commits>) -> Self {
        Self { commits: Arc::clone(commits), beginning: commits.ended() }
    }

    /// Whether a file of which `synced` bytes are durable and `unsynced` more are written is to be synced now.
    pub(crate) fn asks_for_sync(&self, synced: u64, unsynced: u64) -> bool {
        let step = match (self.commits.went_on_since(self.beginning), synced) {
            (true, _) => STEP_BESIDE_COMMITS,
            (false, 0) => FIRST_STEP_ALONE,
            (false, _) => STEP_ALONE,
        };
        unsynced >= step
    }

    /// Runs a step that keeps the device busy, and rests as is due afterwards.
    pub(crate) fn step<R>(&self, step: impl FnOnce() -> R) -> R {
        let makes_way = !self.commits.in_a_hurry && self.commits.went_on_since(self.beginning);
        let _one_at_a_time = makes_way.then(|| lock(&self.commits.device));
        let (before, started) = (self.commits.ended(), Instant::now());
        let done = step();
        if let Some(rest) = self.rest(before, started.elapsed()) {
            thread::sleep(rest);
        }
        done
    }

    /// What rest is due after a step that took so long, when so many syncs had ended before it: none, if group commit did not
    /// want the device too.
    fn rest(&self, ended_before: u64, took: Duration) -> Option<Duration> {
        (self.commits.went_on_since(ended_before) && !self.commits.in_a_hurry).then(|| took.min(LONGEST_REST))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_is_alone_takes_long_steps_and_one_beside_commits_short_ones() {
        let commits = Arc::new(Commits::default());
        commits.commit(|| ());
        let pace = Pace::beside(&commits);
        let steps = |synced, len| !pace.asks_for_sync(synced, len - 1) && pace.asks_for_sync(synced, len);
        assert!(steps(0, FIRST_STEP_ALONE));
        assert!(steps(FIRST_STEP_ALONE, STEP_ALONE));
        assert!(commits.commit(|| steps(0, STEP_BESIDE_COMMITS)), "while the log is being synced");
        assert!(steps(STEP_ALONE, STEP_BESIDE_COMMITS), "also afterwards: the next one may come at once");
    }

    #[test]
    fn who_held_group_commit_up_rests() {
        let took = Duration::from_millis(3);
        for (in_a_hurry, due) in [(false, Some(took)), (true, None)] {
            let commits = Arc::new(Commits::new(in_a_hurry));
            let pace = Pace::beside(&commits);
            let before = commits.ended();
            assert_eq!(pace.rest(before, took), None, "nobody was held up");
            assert_eq!(commits.commit(|| pace.rest(before, took)), due, "one that goes on still");
            assert_eq!(pace.rest(before, took), due, "one that went by meanwhile");
            assert_eq!(pace.rest(commits.ended(), took), None, "one that was over before the step");
        }
    }

    /// A sync that the device kept for a minute was followed by another minute of rest, which closing waited for.
    #[test]
    fn no_rest_is_long() {
        let commits = Arc::new(Commits::default());
        let pace = Pace::beside(&commits);
        assert_eq!(commits.commit(|| pace.rest(0, Duration::from_secs(60))), Some(LONGEST_REST));
    }

    #[test]
    fn a_step_says_what_came_of_it() {
        let commits = Arc::new(Commits::default());
        let pace = Pace::beside(&commits);
        assert_eq!(pace.step(|| 7), 7);
        assert_eq!(pace.step(|| commits.commit(|| 8)), 8);
    }

    #[test]
    fn steps_beside_group_commit_come_one_at_a_time() {
        for (in_a_hurry, others_wait) in [(false, true), (true, false)] {
            let commits = Arc::new(Commits::new(in_a_hurry));
            let pace = Pace::beside(&commits);
            assert!(pace.step(|| commits.device.try_lock().is_ok()), "alone, there is nothing to wait for");
            commits.commit(|| ());
            assert_eq!(pace.step(|| commits.device.try_lock().is_err()), others_wait);
        }
    }
}
