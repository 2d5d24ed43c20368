//! The example `failures` shows what it says: every kind of failure, a restart, and the output that is true.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

#[allow(dead_code, reason = "the example's own beginning")]
#[path = "../examples/failures/main.rs"]
mod failures;

/// The processes of the job are this test again.
fn shows(name: &str, test: &str) {
    failures::be_one_if_told();
    failures::show(name, &["--exact", test, "--nocapture"]).unwrap();
}

#[test]
fn a_worker_that_panics() {
    shows("worker", "a_worker_that_panics");
}

#[test]
fn a_process_that_is_killed() {
    shows("process", "a_process_that_is_killed");
}

#[test]
fn a_machine_that_is_lost() {
    shows("machine", "a_machine_that_is_lost");
}

#[test]
fn a_connection_that_is_cut() {
    shows("network", "a_connection_that_is_cut");
}

#[test]
fn a_bucket_that_is_away() {
    shows("bucket", "a_bucket_that_is_away");
}
