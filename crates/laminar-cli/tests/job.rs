//! `laminar run` as a process: killed, stopped, continued, with other cores, with bad records.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Desk, events};

const JOB: &[&str] = &[
    "run",
    "e.ndjson",
    "--key",
    "user.id",
    "--agg",
    "count,sum:amount,min:amount,max:amount,last:page",
    "--json",
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

fn start(desk: &Desk, args: &[&str]) -> Child {
    desk.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Runs a job from its beginning to its end, killed again and again; says how many kills hit. A run without kills takes
/// about `whole`.
fn kills_until_done(desk: &Desk, job: &[&str], whole: Duration, records: u64) -> u32 {
    let _ = std::fs::remove_dir_all(desk.path("killed"));
    let mut kills = 0;
    for attempt in 0..40u32 {
        let cores = ["2", "1", "3"][attempt as usize % 3];
        let args = with(
            job,
            &["--state", "killed", "--cores", cores, "--epoch", "2ms", "--checkpoint-interval", "60ms"],
        );
        let mut child = start(desk, &args);
        // From "has hardly started" to "almost done", in no order.
        sleep(whole.mul_f64(f64::from(attempt * 7 % 10) / 25.0 + 0.01));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let summary = desk.json(&with(job, &["--state", "killed", "--cores", "2"]));
    assert_eq!(
        (&summary["finished"], &summary["total"]["records"]),
        (&Value::Bool(true), &Value::from(records))
    );
    kills
}

/// Runs a job to its end, and again with many kills; both must give the same bytes.
fn survives_kills(desk: &Desk, job: &[&str], records: u64) {
    let began = Instant::now();
    desk.ok(&with(job, &["--state", "whole", "--cores", "1", "--output", "whole.ndjson"]));
    let whole = began.elapsed();
    let expected = desk.read("whole.ndjson");
    assert_eq!(expected, desk.ok(&["export", "--state", "whole"]), "--output writes what export does");
    // A machine that is faster now than it was for the whole run gets less time, until three kills have hit.
    let kills = (0..8u32)
        .map(|round| kills_until_done(desk, job, whole / (1 << round), records))
        .find(|kills| *kills >= 3)
        .unwrap_or_default();
    assert!(kills >= 3, "the job is done before it can be killed three times");
    assert!(desk.ok(&["export", "--state", "killed"]) == expected, "results differ after {kills} kills");
    assert_eq!(desk.json(&["verify", "--json", "--state", "killed"])["ok"], true);
}

#[test]
fn killed_at_random_moments_the_result_is_the_same_bytes() {
    let desk = Desk::new();
    // So many keys that they are looked up ahead.
    desk.write("e.ndjson", &events(150_000, 40_000));
    survives_kills(&desk, JOB, 150_000);
}

/// A newline within quotes is no place to go on from.
#[test]
fn csv_with_newlines_in_fields_is_the_same_bytes_after_kills() {
    let desk = Desk::new();
    let rows = (0..120_000u64).map(|i| {
        let n = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        format!("\"u\n{}\",\"{}.{:02}\",\"a \"\"note\"\",\n\nof {i}\"\r\n", n % 5_000, n % 900, n % 100)
    });
    desk.write("e.csv", &std::iter::once("who,amount,note\n".to_owned()).chain(rows).collect::<String>());
    let job = ["run", "e.csv", "--key", "who", "--agg", "count,sum:amount,last:note", "--json"];
    survives_kills(&desk, &job, 120_000);
}

#[test]
fn a_signal_stops_cleanly_and_the_same_command_continues() {
    let desk = Desk::new();
    desk.write("e.ndjson", &events(5_000, 100));
    desk.ok(&with(JOB, &["--state", "whole"]));
    let args = with(JOB, &["--state", "followed", "--follow", "-o", "out.csv"]);
    let child = desk.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The followed file is read at once; the job then waits.
    while !desk.run(&["get", "u1", "--state", "followed"]).out.contains("u1") {
        assert!(Instant::now() < deadline, "the followed file is not read");
        sleep(Duration::from_millis(50));
    }
    let second = desk.fails(1, &with(JOB, &["--state", "followed"]));
    assert!(second.contains("followed"), "a second process is refused: {second}");
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("out.csv was not written") && !desk.path("out.csv").exists(), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["output"], Value::Null);
    assert_eq!(
        (&summary["finished"], &summary["total"]["records"]),
        (&Value::Bool(false), &Value::from(5_000))
    );
    let summary = desk.json(&with(JOB, &["--state", "followed"]));
    assert_eq!((&summary["finished"], &summary["run"]["records"]), (&Value::Bool(true), &Value::from(0)));
    assert_eq!(desk.ok(&["export", "--state", "followed"]), desk.ok(&["export", "--state", "whole"]));
}

#[test]
fn bad_records_stop_are_skipped_or_kept() {
    let desk = Desk::new();
    desk.write("e.csv", "k,v\na,1\nb,x\na,2\nc\na,3\n");
    let job = |more: &[&'static str]| with(&["run", "e.csv", "--key", "k", "--agg", "sum:v", "--json"], more);
    let told = desk.fails(1, &job(&[]));
    assert!(told.contains("e.csv: line 3 (byte 8): field `v` is \"x\", which is not a number"), "{told}");
    assert!(told.contains("--on-error skip"));
    let summary = desk.json(&job(&["--on-error", "dead-letter", "dead.ndjson"]));
    assert_eq!(
        (&summary["total"]["skipped"], &summary["total"]["records"]),
        (&Value::from(2), &Value::from(3))
    );
    let dead: Vec<Value> =
        desk.read("dead.ndjson").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((dead.len(), &dead[0]["text"], &dead[1]["line"]), (2, &Value::from("b,x"), &Value::from(5)));
    assert_eq!(desk.ok(&["export"]), "{\"key\":\"a\",\"sum:v\":6}\n");
    let summary = desk.json(&job(&["--state", "other", "--on-error", "skip"]));
    assert_eq!(summary["total"]["skipped"], 2);
}

#[test]
fn patterns_find_new_files_and_cores_may_change() {
    let desk = Desk::new();
    desk.write("1.txt", "to be or not\n");
    let job = ["run", "*.txt", "--format", "words", "--json"];
    for (cores, text, records) in [("1", None, 4), ("4", Some("to be"), 6), ("3", None, 6)] {
        if let Some(text) = text {
            desk.write("2.txt", text);
        }
        assert_eq!(desk.json(&with(&job, &["--cores", cores]))["total"]["records"], records);
    }
    assert!(desk.ok(&["top", "1", "--json"]).starts_with("{\"key\":\"be\",\"count\":2}"));
}

#[test]
fn a_stream_of_json_lines_tells_how_it_goes() {
    let desk = Desk::new();
    desk.write("e.ndjson", &events(1_000, 10));
    let job = with(&JOB[..JOB.len() - 1], &["--json-stream"]);
    desk.ok(&job);
    let out = desk.ok(&job);
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["records"]), (&Value::from("opened"), &Value::from(1_000)));
    assert_eq!(lines.last().unwrap()["event"], "summary");
}

/// Whoever sets an objective wants to know how things stand, before the next crash does.
#[test]
fn a_run_says_how_long_recovering_would_take() {
    let desk = Desk::new();
    desk.write("e.ndjson", &events(1_000, 10));
    let job = with(&JOB[..JOB.len() - 1], &["--recovery-objective", "2s"]);
    let out = desk.ok(&with(&job, &["--json-stream"]));
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<_> = lines.filter(|line| line["event"] != "opened").collect();
    assert!(
        told.iter()
            .all(|line| line["estimated_recovery_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0)),
        "{told:?}"
    );
    assert!(told.len() >= 2, "{told:?}");
    assert!(desk.ok(&job).contains("next recovery"), "{}", desk.ok(&job));
}
