//! `laminar run --workers` where something is long: a key, an epoch, or the time before the job begins.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::Desk;
use support::jobs::{JOB, laminar, listens, prepared, succeeds, two_hosts};

/// Longest key with `--workers`: in the state of a worker, five bytes stand before it.
const KEY_LEN_MAX: usize = 65_530;

/// The whole job ended with an error of the store, with no word of where the key stands, and could not be gone on with.
#[test]
fn a_key_that_is_too_long_for_a_worker_is_a_bad_record_with_its_place() {
    let desk = Desk::new();
    let [fits, long, longest] = [0, 1, 5].map(|more| "k".repeat(KEY_LEN_MAX + more));
    desk.write("a.csv", &format!("k,v\na,1\n{fits},2\n{long},3\na,4\n{longest},5\na,6\n"));
    let job = ["run", "a.csv", "--key", "k", "--agg", "count,sum:v", "--quiet", "--state", "job"];
    let job = [&job[..], &["--workers", "2"]].concat();
    let told = desk.fails(1, &job);
    assert!(told.contains("a.csv: line 4 "), "{told}");
    assert!(told.contains("the key has 65531 bytes; the limit is 65530"), "{told}");
    let told = desk.fails(1, &job);
    assert!(told.contains("a.csv: line 4 "), "what precedes it is done: {told}");
    desk.ok(&[&job[..], &["--on-error", "skip"]].concat());
    let export = desk.ok(&["export", "--state", "job"]);
    let [first, second] = export.lines().collect::<Vec<_>>()[..] else { panic!("two keys: {export}") };
    assert!(first.contains("\"a\"") && first.contains("\"count\":3"), "{first}");
    assert!(second.contains(&fits) && second.contains("\"count\":1"), "{}", second.len());
    // Without workers there is room for it.
    desk.ok(&["run", "a.csv", "--key", "k", "--quiet", "--state", "alone"]);
    assert_eq!(desk.ok(&["export", "--state", "alone"]).lines().count(), 4);
}

/// It ended with an error that spoke of a limit which nobody can set.
#[test]
fn an_epoch_ends_before_it_has_more_bytes_than_may_be_on_their_way() {
    let desk = Desk::new();
    // Each field holds those below it, so that a record is eight times as long on its way to a worker.
    let paths: Vec<_> = (1..=8).map(|depth| format!("last:{}", vec!["a"; depth].join("."))).collect();
    let text = "x".repeat(1 << 19);
    let nested = format!("{}\"{text}\"{}", "{\"a\":".repeat(7), "}".repeat(7));
    let mut file = File::create(desk.path("a.ndjson")).unwrap();
    (0..65).for_each(|_| writeln!(file, "{{\"k\":1,\"a\":{nested}}}").unwrap());
    let job = ["run", "a.ndjson", "--key", "k", "--agg", &paths.join(","), "--epoch", "1h", "--json"];
    let told = desk.json(&[&job[..], &["--workers", "1", "--state", "job"]].concat());
    assert_eq!((&told["finished"], &told["total"]["records"]), (&true.into(), &65.into()), "{told}");
    // Half of what may be on its way in each, the rest in the last.
    assert_eq!(told["epoch"], 3, "{told}");
}

/// It began at the beginning again, as it should, and then ended for good: a position may not go back.
#[test]
fn a_job_that_found_nothing_in_its_first_batches_can_be_gone_on_with() {
    let desk = Desk::new();
    let blank = "\n".repeat(1 << 20);
    let job =
        ["run", "a.ndjson", "--key", "k", "--workers", "1", "--epoch", "0s", "--state", "job", "--quiet"];
    desk.write("a.ndjson", &blank);
    desk.ok(&job);
    desk.write("a.ndjson", &format!("{blank}no json\n"));
    for _ in 0..2 {
        let told = desk.fails(1, &job);
        assert!(told.contains("a.ndjson: line 1048577 "), "{told}");
    }
    desk.write("a.ndjson", &format!("{blank}{{\"k\":1}}\n"));
    for _ in 0..2 {
        desk.ok(&job);
        assert!(desk.ok(&["export", "--state", "job"]).contains("\"count\":1"));
    }
}

/// A process of a job of two, whose state is `held`.
fn process(dir: &Path, number: usize, more: &str) -> Child {
    let line = format!(
        "{JOB} --workers 1 --processes 2 --process {number} --hosts hosts --state held --quiet {more}"
    );
    laminar(dir, &line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts both processes of a job; process 0 will read its `job.json`, when the state is open, from a pipe.
fn held_at_its_job(dir: &Path, more: &str) -> [Child; 2] {
    let hosts = two_hosts(dir);
    let zero = process(dir, 0, more);
    listens(&hosts, 0);
    let job = dir.join("held/job.json");
    fs::remove_file(&job).unwrap();
    assert!(Command::new("mkfifo").arg(&job).status().unwrap().success());
    [zero, process(dir, 1, more)]
}

/// Where process 0 waits for its job: opened once that reads it.
fn pipe(dir: &Path, zero: &mut Child) -> File {
    let nonblocking = if cfg!(target_os = "macos") { 4 } else { 0o4000 };
    loop {
        let opened = OpenOptions::new().write(true).custom_flags(nonblocking).open(dir.join("held/job.json"));
        if let Ok(pipe) = opened {
            return pipe;
        }
        assert!(zero.try_wait().unwrap().is_none(), "process 0 has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file that had grown by a lot was counted again when the job had begun, and the other processes ended meanwhile.
#[test]
fn looking_at_the_input_again_is_no_stall_however_long_it_takes() {
    let dir = prepared(100);
    let [mut zero, mut one] = held_at_its_job(dir.path(), "--stall-timeout 500ms");
    let pipe = pipe(dir.path(), &mut zero);
    // Were this a stall, process 1 would end; however slow the machine is, it does not.
    std::thread::sleep(Duration::from_secs(3));
    let alive = [&mut zero, &mut one].map(|child| child.try_wait().unwrap().is_none());
    drop(pipe);
    for child in [&mut zero, &mut one] {
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert_eq!(alive, [true, true]);
}

/// The job must be built on all workers before any of them can end it.
#[test]
fn a_job_whose_command_is_refused_when_the_state_is_open_ends_in_order_on_all_processes() {
    let dir = prepared(100);
    let [mut zero, one] = held_at_its_job(dir.path(), "");
    // It reads the end of the file at once.
    drop(pipe(dir.path(), &mut zero));
    let [zero, one] = [zero, one].map(|child| child.wait_with_output().unwrap());
    let told = [&zero, &one].map(|output| String::from_utf8_lossy(&output.stderr));
    assert_eq!((zero.status.code(), one.status.code()), (Some(1), Some(0)), "{told:?}");
    assert!(told[0].contains("job.json is damaged"), "{told:?}");
    // Nothing was done.
    fs::remove_file(dir.path().join("held/job.json")).unwrap();
    assert!(succeeds(dir.path(), "export --state held --raw").is_empty());
}

/// Who waits for a process that is late could not say for how long.
#[test]
fn a_process_that_is_not_there_is_waited_for_as_long_as_is_said() {
    let dir = prepared(100);
    two_hosts(dir.path());
    let job = format!("{JOB} --state job --workers 1 --processes 2 --process 1 --hosts hosts");
    let output = laminar(dir.path(), &format!("{job} --connect-timeout 100ms")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("could not be reached in time"), "{told}");
    assert!(told.starts_with("laminar: process 0 at "), "{told}");
}
