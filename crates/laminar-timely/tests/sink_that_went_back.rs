//! The target of a sink comes back older than it was: a file from a backup, a database from a standby that was behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use laminar_timely::{Cluster, Config, Error, FileSink, run};

/// Set in the processes that run the job: the directory, and how many numbers there are.
const DIR: &str = "LAMINAR_TEST_DIR";
const NUMBERS: &str = "LAMINAR_TEST_NUMBERS";

/// Sums numbers by their remainder, one number in an epoch.
fn job(dir: &Path, numbers: u64) -> Result<(), Error> {
    let out = dir.join("out");
    run(&Cluster::single(1), &Config::new(dir.join("state"), "sums"), move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
            let sums = flow.fold(stream, "sums", |sum: &mut u64, n| *sum += n)?;
            flow.sink(sums, "out", |part| {
                FileSink::open(&out, "sums", part, |(key, sum): &(u64, u64), line| {
                    line.extend_from_slice(format!("{key} {sum}\n").as_bytes());
                })
            })?;
            Ok(input)
        })?;
        let done = job.source_offset("numbers").unwrap_or(0);
        for n in done..numbers {
            input.send((n % 3, n));
            input.set_source_offset("numbers", n + 1);
            input.seal()?;
        }
        input.finish()
    })
}

/// Files of a directory, with their contents.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// The job went on as if nothing were missing: rows that were committed are deleted from the state, so that nobody had the
/// lost ones any more. Found by reading.
#[test]
fn rows_that_a_target_lost_stop_the_job_before_it_begins() {
    if let (Ok(dir), Ok(numbers)) = (env::var(DIR), env::var(NUMBERS)) {
        job(Path::new(&dir), numbers.parse().unwrap()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // A job that cannot begin ends its process.
    let process = |numbers: u64| -> Output {
        let this = "rows_that_a_target_lost_stop_the_job_before_it_begins";
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", this, "--nocapture"]).env(DIR, dir.path());
        command.env(NUMBERS, numbers.to_string()).output().unwrap()
    };
    let goes_well = |numbers| {
        let done = process(numbers);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let put_back = |files: &[(PathBuf, Vec<u8>)]| {
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    };
    goes_well(20);
    let older = contents(&out);
    goes_well(60);
    let newest = contents(&out);
    assert!(newest != older);
    put_back(&older);
    let done = process(80);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("but had committed them up to"), "{said}");
    assert_eq!(contents(&out), older, "nothing was written");
    // With what it had, it goes on.
    put_back(&newest);
    goes_well(80);
    let rows = fs::read_to_string(out.join("g0001-w0000.rows")).unwrap();
    assert_eq!(rows.lines().count(), 80, "{rows}");
}
