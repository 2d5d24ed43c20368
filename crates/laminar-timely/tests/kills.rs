//! Processes of a job are killed at random moments, and its output must be as if nothing had happened. And deliberate mistakes
//! are noticed: a test that cannot fail shows nothing. Longer runs: `timely-torture drive`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::process::{Command, Output};

fn drive(options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timely-torture"));
    command.arg("drive").args(options.split_whitespace()).output().unwrap()
}

/// What it printed, whether or not it ended well.
fn said(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    out + &err
}

/// The directory that a failed run left behind goes.
fn remove_leftovers(said: &str) {
    let dir = said.lines().find_map(|line| line.strip_prefix("Directory: "));
    if let Some(dir) = dir {
        let _ = std::fs::remove_dir_all(dir);
    }
}

fn exact(options: &str) {
    let output = drive(options);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 missing, 0 twice, 0 besides"), "{said}");
}

fn noticed(options: &str, signs: &[&str]) {
    let output = drive(options);
    let said = said(&output);
    remove_leftovers(&said);
    assert!(!output.status.success(), "the mistake went unnoticed:\n{said}");
    assert!(signs.iter().any(|sign| said.contains(sign)), "{said}");
}

#[test]
fn two_processes_that_are_killed_write_every_row_once() {
    exact("--processes 2 --workers 1 --kills 5 --epochs 250 --pause-us 4000 --seed 11");
}

#[test]
fn one_process_with_two_workers_that_is_killed_writes_every_row_once() {
    exact("--processes 1 --workers 2 --kills 5 --epochs 250 --pause-us 4000 --seed 12");
}

#[test]
fn two_processes_with_two_workers_that_are_killed_write_every_row_once() {
    exact("--processes 2 --workers 2 --kills 4 --epochs 200 --pause-us 4000 --seed 13");
}

#[test]
fn three_processes_that_are_killed_write_every_row_once() {
    exact("--processes 3 --workers 1 --kills 4 --epochs 200 --pause-us 4000 --seed 14");
}

/// From two workers to three, one and four, with kills while the state is distributed too.
#[test]
fn a_job_that_gets_another_size_writes_every_row_once() {
    exact("--processes 2 --workers 1 --sizes 3x1,1x1,2x2 --kills 8 --epochs 400 --pause-us 3000 --seed 18");
}

/// A sink gets what is not durable, and after a kill has more than the state.
#[test]
fn an_acknowledgement_before_the_sync_is_noticed() {
    let signs = ["but the state goes only to", "lines missing", "differ from those"];
    noticed(
        "--processes 2 --workers 1 --kills 40 --epochs 2000 --pause-us 2000 --seed 15 --mistake acknowledge-before-sync",
        &signs,
    );
}

#[test]
fn rows_that_a_sink_is_not_given_again_are_noticed() {
    let signs = ["lines missing", "but had committed them up to"];
    noticed(
        "--processes 2 --workers 1 --kills 6 --epochs 300 --pause-us 4000 --seed 16 --mistake forget-waiting-rows",
        &signs,
    );
}

#[test]
fn a_worker_that_nobody_wakes_is_noticed_by_the_watchdog() {
    let signs = ["nothing became durable for"];
    noticed(
        "--processes 2 --workers 1 --kills 0 --epochs 300 --stall-ms 1500 --seed 17 --mistake wake-nobody",
        &signs,
    );
}
