//! Backups of a job's state and the way back, as a user of the command has them.

#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;

use support::{Desk, events};

fn run(desk: &Desk, state: &str, more: &[&str]) {
    let job = ["--key", "user.id", "--agg", "count,sum:amount", "--quiet"];
    desk.ok(&[&["run", "events.ndjson", "--state", state][..], &job, more].concat());
}

#[test]
fn a_job_goes_on_from_a_backup_on_an_empty_machine() {
    let desk = Desk::new();
    desk.write("events.ndjson", &events(2_000, 50));
    run(&desk, "state", &["--cores", "2"]);
    let first = desk.json(&["backup", "place", "--state", "state", "--json"]);
    assert_eq!((&first["new"], &first["job"]), (&true.into(), &true.into()), "{first}");
    // Nothing has changed, nothing is sent.
    let again = desk.json(&["backup", "place", "--state", "state", "--json"]);
    assert_eq!((&again["new"], &again["bytes_sent"]), (&false.into(), &0.into()), "{again}");
    assert_eq!(again["backup"], first["backup"]);
    let before = desk.ok(&["export", "--state", "state"]);
    desk.write("events.ndjson", &events(5_000, 50));
    run(&desk, "state", &[]);
    let text = desk.ok(&["backup", "place", "--state", "state"]);
    assert!(text.contains("place") && text.contains("job.json"), "{text}");
    let listed = desk.json(&["backups", "place", "--verify", "--json"]);
    let listed = listed["backups"].as_array().unwrap();
    assert!(listed.len() == 2 && listed.iter().all(|backup| backup["verified"] == "whole"), "{listed:?}");
    let after = desk.ok(&["export", "--state", "state"]);
    fs::remove_dir_all(desk.path("state")).unwrap();

    let told = desk.json(&["restore", "place", "state", "--json", "--cores", "3"]);
    assert_eq!((&told["keys"], &told["job"]), (&50.into(), &true.into()), "{told}");
    assert_eq!(desk.ok(&["export", "--state", "state"]), after);
    assert!(!desk.path("state.fetched").exists());
    // An older one, and the job reads on to where the newer one is.
    let older = first["backup"].to_string();
    desk.ok(&["restore", "place", "older", "--backup", &older]);
    assert_eq!(desk.ok(&["export", "--state", "older"]), before);
    run(&desk, "older", &[]);
    assert_eq!(desk.ok(&["export", "--state", "older"]), after);
    desk.ok(&["restore", "place", "saved", "--savepoint"]);
    assert_eq!(desk.ok(&["export", "--state", "saved"]), after);

    // The restored state is another store, and is asked before it goes on in the place of the first.
    let said = desk.fails(1, &["backup", "place", "--state", "state"]);
    assert!(said.contains("--take-over"), "{said}");
    desk.ok(&["backup", "place", "--state", "state", "--take-over"]);
    desk.ok(&["backup", "place", "--state", "state"]);
}

#[test]
fn what_cannot_be_restored_is_said_and_leaves_nothing() {
    let desk = Desk::new();
    assert!(desk.fails(1, &["restore", "nowhere", "state"]).contains("nowhere"));
    assert!(desk.fails(1, &["restore", "http://example.com/x", "state"]).contains("not supported"));
    desk.write("events.ndjson", &events(500, 20));
    run(&desk, "state", &[]);
    desk.ok(&["backup", "place", "--state", "state"]);
    assert!(desk.fails(1, &["restore", "place", "state"]).contains("exists already"));
    assert!(desk.fails(1, &["restore", "place", "new", "--backup", "99"]).contains("no backup 99"));
    let chunk = fs::read_dir(desk.path("place/files")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&chunk).unwrap();
    bytes[0] ^= 1;
    fs::write(&chunk, bytes).unwrap();
    let name = chunk.file_name().unwrap().to_str().unwrap();
    assert!(desk.fails(1, &["restore", "place", "new"]).contains(name));
    let said = desk.fails(1, &["backups", "place", "--verify"]);
    assert!(said.contains("1 of 1 backups are damaged"), "{said}");
    assert!(!desk.path("new").exists());
}
