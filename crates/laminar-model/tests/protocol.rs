//! The protocol holds in every state within small bounds, and those are not empty: all that is worth looking at
//! happens in them. The large bounds are `cargo run --release -p laminar-model`.

use laminar_model::{Bounds, Protocol, worlds};
use stateright::{Checker, Model};

/// The number of different states.
fn check(bounds: Bounds) -> usize {
    let checker = Protocol::new(bounds).checker().spawn_bfs().join();
    checker.assert_properties();
    checker.unique_state_count()
}

#[test]
fn every_crash_of_a_crash_of_a_crash_is_recovered_from() {
    assert!(check(worlds::RECOVERY) > 100_000);
}

#[test]
fn two_cores_and_a_checkpoint_survive_two_crashes() {
    assert!(check(worlds::PAIR) > 200_000);
}

#[test]
fn three_cores_commit_together() {
    assert!(check(worlds::COMMIT) > 300_000);
}

#[test]
fn checkpoints_come_and_go_and_one_goes_bad() {
    assert!(check(worlds::CHECKPOINTS) > 50_000);
    assert!(check(worlds::ROTTEN) > 1_000);
}

#[test]
fn a_failed_sync_is_followed_by_nothing_but_recovery() {
    assert!(check(worlds::FAULT) > 10_000);
}
