//! Backups of a job's state and the way back, as a user of the command has them.

#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Desk, events, files_below};

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

/// The machine is lost while the job runs: killed, and its directory gone. What a job without any of that gives comes out.
#[test]
fn a_running_job_goes_on_from_its_last_backup_when_its_machine_is_lost() {
    let desk = Desk::new();
    let all = events(60_000, 500);
    // The first half, without the line that the other half begins in.
    let half = all.match_indices('\n').nth(29_999).unwrap().0 + 1;
    desk.write("events.ndjson", &all[..half]);
    let job = ["run", "events.ndjson", "--state", "state", "--key", "user.id", "--agg", "count,sum:amount"];
    let backed_up = ["--backup", "place", "--checkpoint-interval", "20ms", "--epoch", "1ms"];
    let follow = [&job[..], &backed_up, &["--follow", "--quiet"]].concat();
    let mut lost = desk.command(&follow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Until some backup has records of the job in it.
    let deadline = Instant::now() + Duration::from_secs(60);
    let has_records = || {
        let ran = desk.run(&["backups", "place", "--json"]);
        let listed: Option<serde_json::Value> = serde_json::from_str(ran.out.trim()).ok();
        let newest = listed.and_then(|listed| listed["backups"].as_array()?.last()?["keys"].as_u64());
        newest.is_some_and(|keys| keys > 0)
    };
    while !has_records() {
        assert!(Instant::now() < deadline, "no backup came");
        std::thread::sleep(Duration::from_millis(20));
    }
    lost.kill().unwrap();
    lost.wait().unwrap();
    fs::remove_dir_all(desk.path("state")).unwrap();

    desk.write("events.ndjson", &all);
    desk.ok(&["restore", "place", "state", "--cores", "3"]);
    let told = desk.json(&[&job[..], &backed_up, &["--take-over", "--json"]].concat());
    assert_eq!(told["finished"], true, "{told}");
    let backups = &told["backups"];
    assert_eq!((&backups["checkpoints_behind"], &backups["error"]), (&0.into(), &().into()), "{told}");
    assert!(backups["made"].as_u64().unwrap() >= 1 && told["run"]["resumed_at_record"].as_u64().unwrap() > 0);
    let result = desk.ok(&["export", "--state", "state"]);
    let plain = [&["run", "events.ndjson", "--state", "plain"][..], &job[4..], &["--quiet"]].concat();
    desk.ok(&plain);
    assert_eq!(result, desk.ok(&["export", "--state", "plain"]));
    // The last backup is the finished job.
    desk.ok(&["restore", "place", "again"]);
    assert_eq!(result, desk.ok(&["export", "--state", "again"]));
}

#[test]
fn a_job_that_could_not_be_backed_up_is_done_and_says_so() {
    let desk = Desk::new();
    desk.write("events.ndjson", &events(500, 20));
    run(&desk, "one", &["--backup", "place"]);
    let job = ["run", "events.ndjson", "--state", "other", "--key", "user.id", "--backup", "place"];
    let said = desk.fails(1, &job);
    assert!(
        said.contains("done and durable here, but not backed up at") && said.contains("--take-over"),
        "{said}"
    );
    assert!(desk.ok(&["verify", "--state", "other"]).contains("20"));
}

/// Kills a restore that waits a second for each byte, behind the first file, as soon as that one is there.
fn killed_restore(desk: &Desk, args: &[&str], pending: &str) {
    let whole: Vec<_> = files_below(&desk.path("state")).iter().map(|file| fs::read(file).unwrap()).collect();
    let mut child = desk
        .command(&[&["restore", "place"], args, &["--bandwidth", "1"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let fetched = || {
        let there = fs::read_dir(desk.path(pending)).into_iter().flatten();
        let there: Vec<_> = there.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        there.iter().filter(|bytes| !bytes.is_empty() && whole.contains(bytes)).count()
    };
    while fetched() == 0 && child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Also when nothing came, so that it does not stay behind.
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success() && fetched() == 1, "{args:?}: {} files", fetched());
}

#[test]
fn a_restore_that_is_killed_midway_goes_on_with_what_is_there() {
    let desk = Desk::new();
    desk.write("events.ndjson", &events(2_000, 50));
    run(&desk, "state", &["--cores", "2"]);
    let older = desk.json(&["backup", "place", "--state", "state", "--json"])["backup"].to_string();
    let before = desk.ok(&["export", "--state", "state"]);
    desk.write("events.ndjson", &events(5_000, 50));
    run(&desk, "state", &["--cores", "2"]);
    desk.ok(&["backup", "place", "--state", "state"]);
    let after = desk.ok(&["export", "--state", "state"]);

    // How much is fetched again, a savepoint says.
    killed_restore(&desk, &["saved", "--savepoint"], "saved.unfinished");
    assert!(!desk.path("saved").exists());
    let told = desk.json(&["restore", "place", "saved", "--savepoint", "--json"]);
    let [bytes, fetched] = ["bytes", "bytes_fetched"].map(|name| told[name].as_u64().unwrap());
    assert!(fetched > 0 && fetched < bytes, "{told}");
    assert_eq!(desk.ok(&["export", "--state", "saved"]), after);

    let left = |state: &str| {
        [
            state,
            &format!("{state}.fetched"),
            &format!("{state}.fetched.unfinished"),
            &format!("{state}.unfinished"),
        ]
        .map(|name| desk.path(name).exists())
    };
    for (state, wanted, export) in [("same", None, &after), ("other", Some(older.as_str()), &before)] {
        killed_restore(&desk, &[state], &format!("{state}.fetched.unfinished"));
        assert_eq!(left(state), [false, false, true, false]);
        // Midway it may become another backup: nothing of the first one is in it.
        let wanted: Vec<&str> = wanted.into_iter().flat_map(|number| ["--backup", number]).collect();
        desk.ok(&[&["restore", "place", state], &wanted[..]].concat());
        assert_eq!(left(state), [true, false, false, false]);
        assert_eq!(&desk.ok(&["export", "--state", state]), export);
        run(&desk, state, &["--cores", "1"]);
        assert_eq!(desk.ok(&["export", "--state", state]), after);
    }

    // As a kill leaves it when all is fetched and the state is not made: that one goes on, and no other backup does.
    desk.ok(&["restore", "place", "late.fetched", "--savepoint", "--backup", &older]);
    let said = desk.fails(1, &["restore", "place", "late"]);
    assert!(said.contains("late.fetched is of another backup, from an earlier restore"), "{said}");
    assert_eq!(left("late"), [false, true, false, false]);
    desk.ok(&["restore", "place", "late", "--backup", &older]);
    assert_eq!(left("late"), [true, false, false, false]);
    assert_eq!(desk.ok(&["export", "--state", "late"]), before);
}

#[test]
fn what_cannot_be_restored_is_said_and_leaves_nothing() {
    let desk = Desk::new();
    assert!(desk.fails(1, &["restore", "nowhere", "state"]).contains("nowhere"));
    assert!(desk.fails(1, &["restore", "http://example.com/x", "state"]).contains("not supported"));
    // A variable that is not set; and whoever verifies relies on there being one.
    for args in [&["restore", "", "state"][..], &["backups", ""]] {
        assert!(desk.fails(1, args).contains("no place for backups is named"), "{args:?}");
    }
    fs::create_dir(desk.path("empty")).unwrap();
    desk.ok(&["backups", "empty"]);
    let said = desk.fails(1, &["backups", "empty", "--verify"]);
    assert!(said.contains("there is no backup at") && said.contains("that could be restored"), "{said}");
    desk.write("events.ndjson", &events(500, 20));
    run(&desk, "state", &[]);
    assert!(desk.fails(1, &["backup", "", "--state", "state"]).contains("no place for backups is named"));
    // They would be lost with it.
    for url in ["state", "./state/../state/backups", &format!("file://{}", desk.path("state").display())] {
        assert!(
            desk.fails(2, &["backup", url, "--state", "state"]).contains("inside of the state directory")
        );
        let job = ["run", "events.ndjson", "--key", "user.id", "--state", "state", "--backup", url];
        assert!(desk.fails(2, &job).contains("inside of the state directory"));
    }
    assert!(!desk.path("state/log").exists() && !desk.path("state/backups").exists());
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
    // What is there is damaged and not missing: only a backup that sends all is whole.
    let again = desk.json(&["backup", "place", "--state", "state", "--json"]);
    assert_eq!(again["new"], false, "{again}");
    let full = desk.json(&["backup", "place", "--state", "state", "--full", "--json"]);
    assert!(full["new"] == true && full["bytes_sent"] == full["bytes"], "{full}");
    desk.ok(&["restore", "place", "new"]);
    assert_eq!(desk.ok(&["export", "--state", "new"]), desk.ok(&["export", "--state", "state"]));
}

/// Three backups of a job at `place`; their numbers.
fn three_backups(desk: &Desk) -> [String; 3] {
    [1_000, 2_000, 3_000].map(|count| {
        desk.write("events.ndjson", &events(count, 50));
        run(desk, "state", &["--cores", "1"]);
        desk.json(&["backup", "place", "--state", "state", "--json"])["backup"].to_string()
    })
}

/// No backup could be listed, while the error of the damaged one said that the list tells which are whole.
#[test]
fn a_damaged_record_is_listed_as_that_beside_the_others() {
    let desk = Desk::new();
    let [first, second, third] = three_backups(&desk);
    let record = desk.path(&format!("place/log/{:016x}.json", second.parse::<u64>().unwrap()));
    let mut bytes = fs::read(&record).unwrap();
    bytes[100] ^= 1;
    fs::write(&record, bytes).unwrap();
    for args in [&["backups", "place"][..], &["backups", "place", "--verify"]] {
        let ran = desk.run(args);
        assert!(
            ran.code == Some(1) && ran.err.contains("1 of 3 backups are damaged"),
            "{}{}",
            ran.out,
            ran.err
        );
        let lines: Vec<_> = ran.out.lines().filter(|line| line.contains("backup ")).collect();
        let [_, damaged, newest] = lines[..] else { panic!("{}", ran.out) };
        assert!(damaged.contains(&format!("backup {second}")), "{damaged}");
        assert!(damaged.contains("checksum is wrong") && newest.contains("50 keys"), "{}", ran.out);
    }
    let told: serde_json::Value =
        serde_json::from_str(&desk.run(&["backups", "place", "--json", "--verify"]).out).unwrap();
    let numbers = |name: &str| -> Vec<String> {
        told[name].as_array().unwrap().iter().map(|backup| backup["backup"].to_string()).collect()
    };
    assert_eq!(numbers("backups"), [first.clone(), third]);
    assert_eq!(numbers("unreadable"), [second]);
    assert_eq!(told["backups"][0]["verified"], "whole", "{told}");
    // One that was fetched goes on too, and the newest is still what is restored.
    desk.ok(&["restore", "place", "older.fetched", "--savepoint", "--backup", &first]);
    desk.ok(&["restore", "place", "older", "--backup", &first]);
    desk.ok(&["restore", "place", "newest"]);
    assert_eq!(desk.ok(&["export", "--state", "newest"]), desk.ok(&["export", "--state", "state"]));
}

/// What somebody else put beside the backups made them unreadable, or hid them.
#[test]
#[cfg(target_os = "linux")]
fn what_else_is_beside_the_backups_hides_none() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new();
    three_backups(&desk);
    fs::create_dir(desk.path("place/generation-old")).unwrap();
    fs::write(desk.path("place/generation-old/letters.txt"), b"mine").unwrap();
    let listed =
        |desk: &Desk| desk.json(&["backups", "place", "--json"])["backups"].as_array().unwrap().len();
    assert_eq!(listed(&desk), 3);
    desk.ok(&["backup", "place", "--state", "state"]);
    for name in [&b"not text \xff"[..], b"a bell \x07"] {
        fs::write(desk.path("place").join(std::ffi::OsStr::from_bytes(name)), b"mine").unwrap();
    }
    assert_eq!(listed(&desk), 3);
    desk.ok(&["restore", "place", "restored"]);
    assert_eq!(desk.ok(&["export", "--state", "restored"]), desk.ok(&["export", "--state", "state"]));
}

/// An object store that takes connections and never answers kept a job from starting for half an hour, without a word.
#[test]
fn a_job_begins_although_the_place_of_its_backups_never_answers() {
    let desk = Desk::new();
    desk.write("events.ndjson", &events(500, 20));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let job =
        ["run", "events.ndjson", "--state", "state", "--key", "user.id", "--quiet", "--backup", "s3://b/x"];
    let settings = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
    ];
    let mut child = desk.command(&job).envs(settings).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let began = Instant::now();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    while !desk.path("state/job.json").exists() && began.elapsed() < Duration::from_secs(25) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(25), "{line}");
    assert!(line.starts_with("laminar: the backups cannot be seen now: "), "{line}");
}
