//! Savepoints, forks and differences, as a user of the command has them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::fs;

use support::{Desk, events};

const JOB: [&str; 5] = ["--key", "user.id", "--agg", "count,sum:amount", "--quiet"];

fn run(desk: &Desk, state: &str, more: &[&str]) {
    let args = [&["run", "events.ndjson", "--state", state][..], &JOB, more].concat();
    desk.ok(&args);
}

/// A job that has read some of its input, and a savepoint of it.
fn saved() -> Desk {
    let desk = Desk::new();
    desk.write("events.ndjson", &events(2_000, 50));
    run(&desk, "state", &["--cores", "2"]);
    let told = desk.json(&["savepoint", "saved", "--state", "state", "--json"]);
    assert_eq!((&told["keys"], &told["job"]), (&50.into(), &true.into()), "{told}");
    assert!(told["epoch"].as_u64().is_some_and(|epoch| epoch > 0), "{told}");
    assert!(told["files"].as_u64() >= told["copied"].as_u64(), "{told}");
    desk
}

/// The fork and the state it came from both read on, and neither sees anything of the other.
#[test]
fn a_fork_of_a_job_goes_on_to_the_same_results() {
    let desk = saved();
    assert_eq!(desk.ok(&["export", "--state", "saved"]), desk.ok(&["export", "--state", "state"]));
    let told = desk.json(&["fork", "saved", "--state", "fork", "--json"]);
    assert_eq!((&told["keys"], &told["job"]), (&50.into(), &true.into()), "{told}");
    assert_eq!(desk.ok(&["export", "--state", "fork"]), desk.ok(&["export", "--state", "saved"]));
    // Both read on, the fork on another number of cores.
    let longer = events(5_000, 50);
    assert!(longer.starts_with(&desk.read("events.ndjson")));
    desk.write("events.ndjson", &longer[..]);
    run(&desk, "fork", &["--cores", "3"]);
    let before = desk.ok(&["export", "--state", "saved"]);
    assert_eq!(before, desk.ok(&["export", "--state", "state"]), "the fork is nothing to the state");
    run(&desk, "state", &[]);
    run(&desk, "whole", &["--cores", "1"]);
    let whole = desk.ok(&["export", "--state", "whole"]);
    assert_eq!(desk.ok(&["export", "--state", "fork"]), whole);
    assert_eq!(desk.ok(&["export", "--state", "state"]), whole);
    assert_ne!(whole, before);
    // Each stands alone.
    fs::remove_dir_all(desk.path("state")).unwrap();
    fs::remove_dir_all(desk.path("whole")).unwrap();
    assert_eq!(desk.json(&["verify", "--state", "saved", "--json"])["ok"], true);
    fs::remove_dir_all(desk.path("saved")).unwrap();
    assert_eq!(desk.ok(&["export", "--state", "fork"]), whole);
    assert_eq!(desk.json(&["verify", "--state", "fork", "--json"])["ok"], true);
}

#[test]
fn diff_counts_and_lists_what_is_different() {
    let desk = Desk::new();
    desk.write("a.csv", "who,amount\nann,1\nbob,2\n");
    let run = || desk.ok(&["run", "a.csv", "--key", "who", "--agg", "count,sum:amount", "--quiet"]);
    run();
    let text = desk.ok(&["savepoint", "saved"]);
    assert!(text.contains("checkpoint") && text.contains("job.json"), "{text}");
    // Against a state, a savepoint, and a checkpoint of the state itself.
    assert_eq!(desk.ok(&["diff", "saved", "laminar-state"]), "0 added, 0 changed, 0 removed\n");
    assert_eq!(desk.ok(&["diff", "saved", "saved", "--list"]), "0 added, 0 changed, 0 removed\n");
    desk.write("a.csv", "who,amount\nann,1\nbob,2\nann,0.5\ncid,7\n");
    run();
    desk.ok(&["savepoint", "later"]);
    let list = "~ ann  count=1 -> 2 sum:amount=1 -> 1.5\n+ cid  count=1 sum:amount=7\n";
    for after in ["laminar-state", "later"] {
        let ran = desk.run(&["diff", "saved", after, "--list"]);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (Some(1), &*format!("{list}1 added, 1 changed, 0 removed\n"))
        );
        assert_eq!(ran.err, "", "a difference is no failure");
    }
    let back = desk.run(&["diff", "laminar-state", "saved", "--list", "--limit", "1", "--prefix", "c"]);
    assert_eq!(back.out, "- cid  count=1 sum:amount=7\n0 added, 0 changed, 1 removed\n");
    let json = desk.run(&["diff", "saved", "later", "--list", "--json"]).out;
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{json}");
    assert_eq!(lines[0]["before"]["sum:amount"].to_string(), "1");
    assert_eq!((&lines[0]["change"], &lines[0]["after"]["count"]), (&"changed".into(), &2.into()));
    assert_eq!((&lines[1]["change"], &lines[1]["before"]), (&"added".into(), &serde_json::Value::Null));
    assert_eq!(lines[2], serde_json::json!({ "added": 1, "changed": 1, "removed": 0 }));
    let raw = desk.run(&["diff", "saved", "later", "--list", "--raw"]).out;
    assert!(raw.contains("+ 636964  value="), "{raw}");
    // A checkpoint's own directory has no job; that of its state counts.
    let mut checkpoints: Vec<_> = fs::read_dir(desk.path("laminar-state/checkpoints")).unwrap().collect();
    checkpoints.retain(|entry| entry.as_ref().unwrap().file_name() != "LOCK");
    let newest = checkpoints.into_iter().map(|entry| entry.unwrap().path()).max().unwrap();
    let ran = desk.run(&["diff", "saved", newest.to_str().unwrap(), "--list"]);
    assert!(ran.out.starts_with(list), "{}{}", ran.out, ran.err);
}

#[test]
fn what_cannot_be_done_is_told() {
    let desk = saved();
    fs::create_dir(desk.path("there")).unwrap();
    desk.ok(&["fork", "saved", "--state", "fork"]);
    for (args, wanted) in [
        (&["savepoint", "saved", "--state", "state"][..], "something of this name already"),
        (&["savepoint", "there", "--state", "state"], "something of this name already"),
        (&["savepoint", "no/where", "--state", "state"], "does not exist"),
        (&["savepoint", "state/checkpoints/x", "--state", "state"], "among the files of its store"),
        (&["savepoint", "x", "--state", "nowhere"], "no store"),
        (&["fork", "saved", "--state", "state"], "exists already"),
        (&["fork", "saved", "--state", "there"], "exists already"),
        (&["fork", "saved", "--state", "fork"], "exists already"),
        (&["fork", "state", "--state", "new"], "is a state, not a savepoint"),
        (&["fork", "nowhere", "--state", "new"], "nowhere"),
        (&["fork", "saved", "--state", "new", "--job", "events.ndjson"], "is damaged"),
    ] {
        let told = desk.fails(1, args);
        assert!(told.contains(wanted), "{args:?}: {told}");
        assert!(!desk.path("new").exists() && !desk.path("x").exists());
    }
    for args in [["diff", "saved", "nowhere"], ["diff", "there", "saved"]] {
        assert!(desk.fails(2, &args).contains("neither a savepoint nor a state"));
    }
    assert!(desk.fails(2, &["diff", "saved", "state", "--limit", "3"]).contains("--list"));
    // The interrupted one is gone on with.
    desk.ok(&["fork", "saved", "--state", "new"]);
    assert!(!desk.path("new.unfinished").exists());
}

#[test]
fn a_savepoint_without_its_job_needs_one_and_the_right_one() {
    let desk = saved();
    fs::rename(desk.path("saved/job.json"), desk.path("job.json")).unwrap();
    let told = desk.fails(1, &["fork", "saved", "--state", "fork"]);
    assert!(told.contains("job.json is missing") && told.contains("--job"), "{told}");
    desk.ok(&["run", "events.ndjson", "--key", "page", "--state", "other", "--quiet"]);
    let told = desk.fails(1, &["fork", "saved", "--state", "fork", "--job", "other/job.json"]);
    assert!(told.contains("does not belong"), "{told}");
    assert!(!desk.path("fork").exists());
    desk.ok(&["fork", "saved", "--state", "fork", "--job", "job.json"]);
    run(&desk, "fork", &[]);
    assert_eq!(desk.ok(&["export", "--state", "fork"]), desk.ok(&["export", "--state", "state"]));
}

#[test]
fn a_damaged_savepoint_makes_no_state() {
    let desk = saved();
    let files = support::files_below(&desk.path("saved"));
    let state_files: Vec<_> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "sst")).collect();
    assert!(!state_files.is_empty());
    // The savepoint shares its files with the state: this one is to be damaged alone.
    let bytes = fs::read(state_files[0]).unwrap();
    fs::remove_file(state_files[0]).unwrap();
    let mut damaged = bytes.clone();
    damaged[100] ^= 4;
    fs::write(state_files[0], &damaged).unwrap();
    let told = desk.fails(1, &["fork", "saved", "--state", "fork"]);
    assert!(told.contains(".sst") && told.contains("damaged"), "{told}");
    assert!(!desk.path("fork").exists());
    assert!(desk.fails(1, &["verify", "--state", "saved"]).contains("damaged"));
    assert_eq!(desk.json(&["verify", "--state", "state", "--json"])["ok"], true);
    fs::write(state_files[0], bytes).unwrap();
    desk.ok(&["verify", "--state", "saved"]);
    desk.ok(&["fork", "saved", "--state", "fork"]);
}

/// A fork that cut the dead-letter file of its origin back would lose records for it.
#[test]
fn a_fork_leaves_the_dead_letters_to_its_origin() {
    let desk = Desk::new();
    let run = |state: &str, dead: &str| {
        desk.run(&[
            "run",
            "a.ndjson",
            "--key",
            "k",
            "--state",
            state,
            "--on-error",
            "dead-letter",
            dead,
            "--quiet",
        ])
    };
    desk.write("a.ndjson", "{\"k\":\"a\"}\nbad one\n");
    assert_eq!(run("state", "dead").code, Some(0));
    desk.ok(&["savepoint", "saved", "--state", "state"]);
    desk.write("a.ndjson", "{\"k\":\"a\"}\nbad one\n{\"k\":\"b\"}\nbad two\n");
    assert_eq!(run("state", "dead").code, Some(0));
    assert_eq!(desk.read("dead").lines().count(), 2);
    desk.ok(&["fork", "saved", "--state", "fork"]);
    let refused = run("fork", "dead");
    assert!(refused.code != Some(0) && refused.err.contains("exists already"), "{}", refused.err);
    assert_eq!(desk.read("dead").lines().count(), 2, "nothing was cut off");
    assert_eq!(run("fork", "dead2").code, Some(0));
    assert_eq!(desk.read("dead2").lines().count(), 1);
    assert_eq!(desk.ok(&["export", "--state", "fork"]), desk.ok(&["export", "--state", "state"]));
    desk.ok(&["verify", "--state", "fork"]);
}

#[test]
fn a_state_that_a_program_made_has_savepoints_too() {
    let desk = Desk::new();
    let opened = laminar_storage::Store::builder(desk.path("state")).cores(3).open().unwrap();
    let mut cores = opened.cores;
    cores[2].put(b"key", b"\xffvalue").unwrap();
    for core in &mut cores {
        core.seal_epoch().unwrap();
    }
    let locked = desk.fails(1, &["savepoint", "saved", "--state", "state"]);
    assert!(locked.contains("another process") && !desk.path("saved").exists(), "{locked}");
    opened.store.close().unwrap();
    drop(cores);
    assert_eq!(desk.json(&["savepoint", "saved", "--state", "state", "--json"])["job"], false);
    desk.ok(&["fork", "saved", "--state", "fork"]);
    assert_eq!(desk.ok(&["diff", "fork", "saved"]), "0 added, 0 changed, 0 removed\n");
    assert!(!desk.path("fork/job.json").exists());
}
