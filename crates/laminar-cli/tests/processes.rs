//! `laminar run --workers` on one process and on several, killed and not: the results are those of a run without it, byte for byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fs;
use std::time::Duration;

use support::jobs::{JOB, laminar, prepared, run_to_end, same_as_alone, start, succeeds};

#[test]
fn two_workers_of_one_process_give_the_same_bytes_and_output_writes_them() {
    let dir = prepared(20_000);
    let told =
        succeeds(dir.path(), &format!("{JOB} --state together --workers 2 --json --output out.ndjson"));
    assert!(told.contains("\"records\":20000"), "{told}");
    same_as_alone(dir.path());
    assert_eq!(
        fs::read(dir.path().join("out.ndjson")).unwrap(),
        fs::read(dir.path().join("alone.ndjson")).unwrap()
    );
    // Nothing is counted again.
    let told = succeeds(dir.path(), &format!("{JOB} --state together --workers 2 --json"));
    assert!(told.contains("\"resumed_at_record\":20000"), "{told}");
    same_as_alone(dir.path());
    assert!(!laminar(dir.path(), &format!("{JOB} --state together")).output().unwrap().status.success());
    let key = succeeds(dir.path(), "top 1 --by count --state together");
    assert_eq!(key, succeeds(dir.path(), "top 1 --by count --state alone"));
}

#[test]
fn two_processes_that_are_killed_give_the_same_bytes_and_so_do_three_afterwards() {
    let dir = prepared(60_000);
    for (victim, after) in [(1, 100), (0, 300), (1, 600)] {
        let mut children = start(dir.path(), 2, 1, "");
        std::thread::sleep(Duration::from_millis(after));
        children[victim].kill().unwrap();
        // The other one is ended too: it would wait for a while if this one had not been there yet.
        std::thread::sleep(Duration::from_millis(100));
        for child in &mut children {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }
    run_to_end(dir.path(), 2, 1, "");
    same_as_alone(dir.path());
    run_to_end(dir.path(), 3, 1, "--rescale");
    same_as_alone(dir.path());
}

#[test]
fn what_cannot_be_run_on_several_processes_is_refused_and_said() {
    let dir = prepared(100);
    let refused = |more: &str, sign: &str| {
        let output = laminar(dir.path(), &format!("{JOB} --state refused {more}")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(sign), "{more}: {told}");
    };
    refused("--workers 1 --processes 2", "--process is missing");
    refused("--workers 1 --processes 2 --process 0", "--hosts is missing");
    refused("--workers 1 --on-error dead-letter bad", "dead-letter");
    refused("--workers 1 --follow", "--follow");
    let other = |more: &str| laminar(dir.path(), &format!("{JOB} {more}")).output().unwrap().status.success();
    assert!(!other("--state alone --workers 1"), "that is a state without workers");
    fs::write(dir.path().join("hosts"), "127.0.0.1:1\n").unwrap();
    refused("--workers 1 --processes 2 --process 0 --hosts hosts", "1 addresses");
}
