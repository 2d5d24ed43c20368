//! `laminar run --workers` on one process and on several, killed and not: the results are those of a run without it, byte for byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::Desk;
use support::jobs::{JOB, laminar, listens, prepared, run_to_end, same_as_alone, start, succeeds, two_hosts};

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

/// Both ended well, and most of what they had aggregated together was wrong.
#[test]
fn processes_that_aggregate_different_things_do_not_begin() {
    let dir = prepared(100);
    let mut children = start(dir.path(), 2, 1, "");
    let wait = |child: &mut std::process::Child| child.wait().unwrap();
    children.iter_mut().for_each(|child| child.kill().unwrap());
    children.iter_mut().map(wait).for_each(drop);
    let one = |process: u32, job: &str| {
        let line =
            format!("{job} --workers 1 --processes 2 --process {process} --hosts hosts --state different");
        laminar(dir.path(), &line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [one(0, JOB), one(1, &JOB.replace("sum:amount", "max:amount"))];
    let told = both.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    assert!(told.iter().any(|told| told.contains("one with other options")), "{told:?}");
}

/// It was refused as another file than the one that was read before.
#[test]
fn a_bad_record_that_is_repaired_is_gone_on_from_with_workers_and_without() {
    let desk = Desk::new();
    let [bad, good] = ["many", "2"]
        .map(|v| format!("{{\"k\":\"x\",\"v\":1}}\n{{\"k\":\"y\",\"v\":{v}}}\n{{\"k\":\"x\",\"v\":3}}\n"));
    let job = ["run", "a.ndjson", "--key", "k", "--agg", "count,sum:v", "--quiet"];
    let exports = ["--cores", "--workers"].map(|how| {
        let run = [&job[..], &[how, "2", "--state", how.trim_matches('-')]].concat();
        desk.write("a.ndjson", &bad);
        desk.fails(1, &run);
        desk.write("a.ndjson", &good);
        desk.ok(&run);
        desk.ok(&["export", "--state", how.trim_matches('-')])
    });
    assert_eq!(exports[0], exports[1]);
    assert_eq!(exports[0].lines().count(), 2);
}

fn terminate(child: &Child) {
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// A process of a job of two, and its standard error.
fn started(dir: &Path, process: usize, more: &str) -> (Child, BufReader<ChildStderr>) {
    let line = format!(
        "{JOB} --workers 1 --processes 2 --process {process} --hosts hosts --state stopped --quiet {more}"
    );
    let mut child = laminar(dir, &line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(child.stderr.take().unwrap());
    (child, told)
}

/// It ended with 0, and an old file could be taken for the result.
#[test]
fn a_job_on_workers_that_is_stopped_says_that_it_did_not_write_its_output() {
    let dir = prepared(100);
    let hosts = two_hosts(dir.path());
    let (mut zero, mut told) = started(dir.path(), 0, "--output out.ndjson");
    listens(&hosts, 0);
    terminate(&zero);
    let (mut one, _told) = started(dir.path(), 1, "");
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    assert!(zero.wait().unwrap().success() && one.wait().unwrap().success(), "{text}");
    assert!(text.contains("stopped before the end of the input; out.ndjson was not written"), "{text}");
    assert!(!dir.path().join("out.ndjson").exists());
}

/// It heard the signal, and said and did nothing.
#[test]
fn a_process_that_is_asked_to_stop_says_that_process_0_decides() {
    let dir = prepared(100);
    let hosts = two_hosts(dir.path());
    let (mut one, mut told) = started(dir.path(), 1, "");
    listens(&hosts, 1);
    terminate(&one);
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert!(line.contains("process 1 ends when process 0 does"), "{line}");
    // The second signal ends it.
    terminate(&one);
    assert_eq!(one.wait().unwrap().code(), Some(130));
}

/// `run` without `--workers` began a second state in the same directory.
#[test]
fn a_job_on_workers_whose_part_is_damaged_is_still_one() {
    let dir = prepared(100);
    succeeds(dir.path(), &format!("{JOB} --state job --workers 1 --quiet"));
    fs::write(dir.path().join("job/generation-00000001/part-0000/PART.json"), "{").unwrap();
    for (command, sign) in [
        (format!("{JOB} --state job"), "is the state of a job that runs with --workers"),
        ("info --state job".to_owned(), "is the state of a job that runs with --workers"),
        ("export --state job".to_owned(), "PART.json"),
    ] {
        let output = laminar(dir.path(), &command).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(sign), "{command}: {told}");
    }
    assert!(!dir.path().join("job/wal").exists());
    // What is no directory is no job.
    let output = laminar(dir.path(), "export --state nothing").output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("--workers"));
}

/// Files that are written, and the command line that reads them.
struct Input {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    job: &'static [&'static str],
}

/// Every format, every aggregate, records that are skipped, and records at which the job stops.
const INPUTS: &[Input] = &[
    Input {
        name: "newlines in fields",
        files: &[(
            "a.csv",
            "who,amount,note\r\n\"u\n1\",3.50,\"a \"\"note\"\",\n\nof one\"\r\nu2,-1,plain\n\n\"u\n1\",\"2\",\"\n\"\nu2,7,last",
        )],
        job: &["a.csv", "--key", "who", "--agg", "count,sum:amount,last:note"],
    },
    Input {
        name: "two files with other columns",
        files: &[
            ("a.csv", "k,v,n\nx,1,first\ny,2,\"se\ncond\"\nx,3,third\n"),
            ("b.csv", "n,k,v\nfourth,y,40\nfifth,x,50\nsixth,z,60\n"),
        ],
        job: &["*.csv", "--key", "k", "--agg", "count,sum:v,last:n"],
    },
    Input {
        name: "two files, the second before the first",
        files: &[
            ("a.ndjson", "{\"k\":{\"id\":\"x\"},\"v\":1}\n{\"k\":{\"id\":7},\"v\":2}"),
            ("b.ndjson", "{\"k\":{\"id\":\"x\"},\"v\":-3.25}\n\n{\"k\":{\"id\":7},\"v\":\"text\"}\n"),
        ],
        job: &["b.ndjson", "a.ndjson", "--key", "k.id", "--agg", "count,last:v"],
    },
    Input {
        name: "words",
        files: &[
            ("a.txt", "the cat  the\tdog\n\nThe end,\nthe \u{fc}ber end"),
            ("b.txt", "\u{feff}the\r\nlast end\n"),
        ],
        job: &["a.txt", "b.txt", "--format", "words"],
    },
    Input {
        name: "smallest and largest",
        files: &[("a.tsv", "k\tv\nx\t10\nx\t9.99\ny\t-0.5\nx\t1e3\ny\t0\nz\t5\n")],
        job: &["a.tsv", "--key", "k", "--agg", "min:v,max:v"],
    },
    Input {
        name: "skipped",
        files: &[
            (
                "a.ndjson",
                "no json\n{\"k\":\"x\",\"v\":1}\n{\"v\":2}\n{\"k\":\"x\",\"v\":\"many\"}\n{\"k\":\"y\",\"v\":3}\n",
            ),
            ("b.ndjson", "{\"k\":\"x\",\"v\":4}\n{\"k\":\"y\"}\n{\"k\":"),
        ],
        job: &["?.ndjson", "--key", "k", "--agg", "count,sum:v", "--on-error", "skip"],
    },
    Input {
        name: "a bad record in the second file",
        files: &[("a.csv", "k,v\nx,1\n\"y\n\",2\n"), ("b.csv", "k,v\nx,3\n\n\"y\n\",4\nx,many\nx,5\n")],
        job: &["?.csv", "--key", "k", "--agg", "count,sum:v"],
    },
    Input {
        name: "the first record is bad",
        files: &[("a.ndjson", "{\"v\":1}\n{\"k\":\"x\",\"v\":2}\n")],
        job: &["a.ndjson", "--key", "k", "--agg", "sum:v"],
    },
    Input {
        name: "nothing",
        files: &[("a.csv", "k,v\n")],
        job: &["a.csv", "--key", "k", "--agg", "count,max:v"],
    },
];

/// What a run says and leaves, of what does not depend on how it was run.
fn results(
    desk: &Desk,
    state: &str,
    job: &[&str],
    more: &[&str],
) -> (Option<i32>, BTreeMap<&'static str, Value>, String) {
    let ran = desk.run(&[&["run"], job, more, &["--json", "--state", state]].concat());
    // Only jobs without workers can do that.
    let keeps = ", or with --on-error dead-letter FILE to keep such records";
    assert!(!more.contains(&"--workers") || !ran.out.contains(keeps), "{}", ran.out);
    let told: Value = serde_json::from_str(&ran.out.replace(keeps, ""))
        .unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err));
    let places = [
        "/finished",
        "/error",
        "/first_skipped",
        "/total/records",
        "/total/skipped",
        "/total/lines",
        "/run/records",
        "/run/resumed_at_record",
    ];
    let told = places.map(|place| (place, told.pointer(place).unwrap_or_else(|| panic!("{told}")).clone()));
    (ran.code, told.into(), desk.ok(&["export", "--state", state]))
}

#[test]
fn every_kind_of_input_gives_the_same_bytes_and_counts_with_workers_and_without() {
    // At a time: most of it is waiting for the disk.
    std::thread::scope(|scope| {
        for input in INPUTS {
            scope.spawn(|| compare(input));
        }
    });
}

fn compare(Input { name, files, job }: &Input) {
    let desk = Desk::new();
    for (file, text) in *files {
        desk.write(file, text);
    }
    let same = |more: &[&str]| {
        let alone = results(&desk, "alone", job, &[&["--cores", "2"], more].concat());
        let together = results(&desk, "together", job, &[&["--workers", "2"], more].concat());
        assert_eq!(alone, together, "{name} {more:?}");
        alone
    };
    let (code, told, export) = same(&[]);
    let stops = name.contains("bad");
    assert_eq!((code, told["/finished"] == true), (Some(i32::from(stops)), !stops), "{name}: {told:?}");
    assert_eq!(told["/error"].is_null(), !stops, "{name}: {told:?}");
    assert_eq!(told["/total/skipped"] != 0, name.contains("skipped"), "{name}: {told:?}");
    assert_eq!(export.is_empty(), ["nothing", "the first record is bad"].contains(name), "{name}");
    if stops {
        // Again it is the same record; without it what follows is read.
        let (_, again, unchanged) = same(&[]);
        assert_eq!((&told["/error"], &export), (&again["/error"], &unchanged), "{name}");
        let (code, told, _) = same(&["--on-error", "skip"]);
        assert_eq!((code, &told["/total/skipped"]), (Some(0), &1.into()), "{name}: {told:?}");
    }
    // A file that grows is gone on with, here by what ends it once more, good or bad; but a last line without end was taken for whole.
    let (file, text) = files[0];
    if let Some(lines) = text.strip_suffix('\n') {
        desk.write(file, &format!("{text}{}\n", lines.lines().last().unwrap()));
        same(&[]);
    }
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
    // Commands that want one store name what it is instead.
    succeeds(dir.path(), &format!("{JOB} --state job --workers 1 --quiet"));
    for (command, remedy) in [
        ("info --state job", "`laminar export`"),
        ("verify --state job", "`laminar export`"),
        ("savepoint saved --state job", "`laminar export`"),
        ("fork job --state forked", "`laminar restore`"),
        ("diff alone job", "`laminar export`"),
    ] {
        let output = laminar(dir.path(), command).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let sign = "job is the state of a job that runs with --workers";
        assert!(
            !output.status.success() && told.contains(sign) && told.contains(remedy),
            "{command}: {told}"
        );
    }
    assert!(!dir.path().join("saved").exists() && !dir.path().join("forked").exists());
    fs::write(dir.path().join("hosts"), "127.0.0.1:1\n").unwrap();
    refused("--workers 1 --processes 2 --process 0 --hosts hosts", "1 addresses");
}
