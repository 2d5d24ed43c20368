//! Processes of a job are killed at random moments, and its output must be as if nothing had happened. And deliberate mistakes
//! are noticed: a test that cannot fail shows nothing. Longer runs: `timely-torture drive`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod torture;

use torture::{exact, noticed};

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

/// As on several machines: nobody sees the directory of another.
#[test]
fn a_job_of_separate_directories_that_grows_writes_every_row_once() {
    exact(
        "--processes 2 --workers 1 --sizes 3x1 --directories each --kills 4 --epochs 200 --pause-us 3000 --seed 20",
    );
}

/// Stopped for less than counts as a stall, the job goes on; for longer, the others end by themselves.
#[test]
fn a_process_that_is_stopped_is_waited_for_or_the_others_end() {
    let said = exact(
        "--processes 2 --workers 1 --fault stop --kills 3 --epochs 150 --pause-us 4000 --stall-ms 3000 --seed 40",
    );
    assert!(!said.contains("0 times for a moment") && !said.contains("; 0 stopped"), "{said}");
}

/// A sync that fails may have lost what it was to make durable, and a second one would not know; a write that fails leaves a
/// hole. Whoever has such a log ends and says so, and what it did not acknowledge is done again.
#[test]
fn one_process_whose_log_fails_ends_and_loses_nothing() {
    let said = exact(
        "--processes 1 --workers 2 --fault disk --kills 6 --epochs 120 --events 200 --pause-us 1000 --seed 51",
    );
    assert!(said.contains("6 kills, stops, cuts or failures of a disk"), "{said}");
}

#[test]
fn two_processes_of_which_a_log_fails_end_and_lose_nothing() {
    let said = exact(
        "--processes 2 --workers 1 --fault disk --kills 6 --epochs 120 --events 200 --pause-us 1000 --seed 52",
    );
    assert!(said.contains("6 kills, stops, cuts or failures of a disk"), "{said}");
}

/// Each used to be taken for a process that hangs: the state first, and then the sink.
#[test]
fn a_state_and_a_sink_that_take_longer_to_open_than_a_stall_are_waited_for() {
    exact("--processes 2 --workers 1 --kills 0 --epochs 50 --stall-ms 2000 --opening-ms 4500 --seed 22");
}

#[test]
fn a_job_whose_disk_was_lost_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().display();
    let options = "--processes 2 --workers 1 --directories each --kills 0 --seed 23";
    exact(&format!("{options} --dir {place} --epochs 50"));
    std::fs::remove_dir_all(dir.path().join("machine-1/state")).unwrap();
    noticed(&format!("{options} --dir {place} --epochs 100"), &["what the first had is lost"]);
}

/// Whatever ends a worker before its time ends all processes, and the one it was in says why.
#[test]
fn a_worker_that_cannot_go_on_ends_all_processes() {
    let mistakes = [
        ("panic", "unreachable code: a deliberate mistake"),
        ("fail", "a deliberate mistake"),
        ("return-early", "the program returned before the input"),
        ("drop-an-input", "was dropped before it was finished"),
    ];
    let sizes = ["--processes 1 --workers 2", "--processes 2 --workers 1"];
    // Beside each other: what they do most is wait for each other.
    std::thread::scope(|scope| {
        for ((mistake, sign), size) in mistakes.iter().flat_map(|mistake| sizes.map(|size| (mistake, size))) {
            let options = format!("{size} --kills 0 --epochs 40 --seed 24 --mistake {mistake}");
            scope.spawn(move || noticed(&options, &[sign]));
        }
    });
}

/// With names of files that are lost although they were synced the job cannot begin, or its output is gone.
#[test]
fn names_that_are_lost_although_they_were_synced_are_noticed() {
    noticed(
        "--processes 2 --workers 1 --kills 3 --epochs 100 --pause-us 3000 --seed 26 --mistake forget-synced-names",
        &["lines missing", "and nobody killed them"],
    );
}

/// All is durable and committed then, and both processes waited for ever: that one for its thread, the other for the connection.
#[test]
fn a_process_that_hangs_at_the_very_end_is_noticed() {
    let options = "--processes 2 --workers 1 --kills 0 --epochs 40 --stall-ms 1500 --seed 25";
    noticed(&format!("{options} --mistake hang-at-the-end"), &["all is durable and committed, but"]);
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
