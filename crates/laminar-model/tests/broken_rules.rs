//! Every rule of the protocol is there for a reason: without it the checker finds a history that goes wrong. A rule
//! that could be broken unnoticed would mean that the model does not look.

use laminar_model::worlds::{CHECKPOINTS, FAULT, PAIR, RECOVERY, ROTTEN};
use laminar_model::{Bounds, Broken, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

const REFUSED: &str = "opening is never refused";
const LOST: &str = "an acknowledged epoch is never lost";
const MISSING: &str = "nothing of a recovered epoch is missing";
const PHANTOM: &str = "nothing discarded comes back";
const MOVED: &str = "opening again finds the same point";
const SECOND: &str = "the second newest checkpoint and the log are enough";
const REUSED: &str = "no epoch number is used twice";

/// Bounds in which a broken rule shows, and what shows first.
fn shows(rule: Broken) -> (Bounds, &'static str) {
    match rule {
        Broken::AckBeforeAllSynced | Broken::AckBeforeSync | Broken::AckFastestCore => (PAIR, LOST),
        Broken::RetryFailedSync => (FAULT, LOST),
        Broken::MinimumOverAnsweringCores => (PAIR, MISSING),
        Broken::ExposeUnsynced => (RECOVERY, MOVED),
        Broken::ExposeWithoutRewriting => (FAULT, MOVED),
        Broken::NoCut | Broken::AppendToOldSegment => (RECOVERY, PHANTOM),
        Broken::CutNotDurable => (RECOVERY, LOST),
        Broken::CurrentBeforeSegments => (RECOVERY, REFUSED),
        Broken::ReuseEpochs => (RECOVERY, REUSED),
        Broken::TruncateBeforePublish => (PAIR, REFUSED),
        Broken::TruncateToNewest => (PAIR, SECOND),
        Broken::TruncateToUnchecked => (ROTTEN, REFUSED),
        Broken::PublishUnsynced | Broken::CollectByAge => (CHECKPOINTS, REFUSED),
        Broken::CheckpointAheadOfLog => (PAIR, SECOND),
    }
}

#[test]
fn every_broken_rule_gives_a_counterexample() {
    for rule in Broken::ALL {
        let (bounds, property) = shows(rule);
        let checker = Protocol::breaking(bounds, rule)
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let history = checker.discovery(property).map(|path| path.into_actions());
        assert!(
            history.is_some_and(|steps| !steps.is_empty()),
            "{rule:?} went unnoticed in {bounds:?}: {property}"
        );
    }
}
