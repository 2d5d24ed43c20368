//! What an exploration did and found.

use std::fmt;
use std::time::Duration;

use crate::trail::Trail;

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
        write!(f, "laminar-sim replay {scenario} {seed} {trail}  # {last_op}: {error}")
    }
}

/// What an exploration did and found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Operations of the scenario.
    pub ops: u64,
    /// Distinct pairs of image and knowledge recovered, each at the depth of crashing where it came first.
    pub images: Vec<u64>,
    /// Of the images after a crash of a recovery, those of crashes before it had ended; the others are of crashes in
    /// what was done after it.
    pub recovering: u64,
    /// Images made that had been recovered before.
    pub duplicates: u64,
    /// Snapshots, at any depth, for which not every selection was made.
    pub sampled: u64,
    /// Distinct recoveries after a kill; where nothing was pending it equals a power cut.
    pub kills: u64,
    /// Recoveries that were crashed in turn after each of their operations.
    pub nested: u64,
    /// Recoveries that left disk and knowledge exactly as an earlier one had, which then went on and was
    /// judged: these did not go on as well.
    pub shared: u64,
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

    /// Adds another scenario's counts.
    pub fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.images.resize(self.images.len().max(other.images.len()), 0);
        for (sum, images) in self.images.iter_mut().zip(&other.images) {
            *sum += images;
        }
        self.recovering += other.recovering;
        self.duplicates += other.duplicates;
        self.sampled += other.sampled;
        self.kills += other.kills;
        self.nested += other.nested;
        self.shared += other.shared;
        self.failures.extend(other.failures.iter().cloned());
        self.elapsed += other.elapsed;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        let recoveries = self.images_total() + self.kills;
        let per_second = recoveries.saturating_mul(1000) / millis.max(1);
        write!(
            f,
            "{} ops, {} images {:?}, {} of them before a recovery had ended, + {} duplicates, {} kills, {} recovered to a state that went on before, \
             {} recoveries crashed in turn, {} sampled, {} failures, {millis} ms, {per_second} recoveries/s",
            self.ops,
            self.images_total(),
            self.images,
            self.recovering,
            self.duplicates,
            self.kills,
            self.shared,
            self.nested,
            self.sampled,
            self.failures.len(),
        )
    }
}
