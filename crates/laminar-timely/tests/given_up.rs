//! A job is restored from an older backup, goes on, and is restored from a newer one of the life that was given up.
//!
//! A restored job used the epochs behind its backup again. When it had come past the other backup's epoch, that one was
//! accepted, and its sinks were cut back to a number at which they had rows of the other life: some were lost, without a word.
//! Found by reading.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use laminar_timely::{Cluster, Config, FileSink, OtherSize, run};

use support::backups::{backups, copy, options, place, restore};
use support::rows;

/// Set in the processes that run the job: the directory, and what else there is to say.
const DIR: &str = "LAMINAR_TEST_DIR";
const JOB: &str = "LAMINAR_TEST_JOB";

/// In a process that is to run the job: runs it. Every number is a row; so many of them are an epoch.
fn is_process() -> bool {
    let (Ok(dir), Ok(line)) = (env::var(DIR), env::var(JOB)) else { return false };
    let dir = PathBuf::from(dir);
    let [workers, numbers, in_an_epoch] =
        line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<u64>>().try_into().unwrap();
    let config = Config::new(dir.join("state"), "rows").other_size(OtherSize::Rescale);
    // There is one backup at the end, and one where another size begins.
    let config = config.backup_to(&place(&dir), &options(), Duration::from_secs(3600));
    let ended = run(&Cluster::single(usize::try_from(workers).unwrap()), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
            let rows = flow.fold(stream, "rows", |sum: &mut u64, n| *sum += n)?;
            flow.sink(rows, "out", |part| {
                FileSink::open(dir.join("out"), "rows", part, |(n, _): &(u64, u64), line| {
                    line.extend_from_slice(format!("{n}\n").as_bytes());
                })
            })?;
            Ok(input)
        })?;
        let mut n = job.source_offset("numbers").unwrap_or(0);
        while n < numbers {
            let end = numbers.min(n + in_an_epoch);
            if job.index() == 0 {
                (n..end).for_each(|n| input.send((n, n)));
                input.set_source_offset("numbers", end);
            }
            n = end;
            let epoch = input.seal()?;
            // So that what is in the sinks does not depend on time.
            while job.committed_epoch() < epoch {
                input.idle(Duration::from_millis(1));
            }
        }
        input.finish()
    });
    ended.unwrap();
    true
}

fn runs(test: &str, dir: &Path, workers: u64, numbers: u64, in_an_epoch: u64) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(DIR, dir);
    command.env(JOB, format!("{workers} {numbers} {in_an_epoch}")).stdout(Stdio::null());
    command.output().unwrap()
}

fn goes_well(test: &str, dir: &Path, workers: u64, numbers: u64, in_an_epoch: u64) {
    let output = runs(test, dir, workers, numbers, in_an_epoch);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Back to the older backup and on, with so many workers, past the epoch of the newer one, and then to that.
fn a_life_is_given_up_and_wanted_back(test: &str, workers: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(test, dir, 1, 10, 1);
    goes_well(test, dir, 1, 100, 3);
    let [older, newer] = backups(dir).try_into().unwrap();
    restore(dir, &older);
    goes_well(test, dir, workers, 100, 1);
    assert_eq!(rows(dir), (0..100).collect::<Vec<_>>());
    let latest = backups(dir).pop().unwrap();
    assert!(latest.id.epoch() > newer.id.epoch());

    restore(dir, &newer);
    let before = rows(dir);
    let output = runs(test, dir, 1, 110, 1);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("No sink was changed"), "{said}");
    assert_eq!(rows(dir), before);

    // What the output belongs to goes on.
    restore(dir, &latest);
    goes_well(test, dir, workers, 110, 1);
    assert_eq!(rows(dir), (0..110).collect::<Vec<_>>());
}

#[test]
fn a_backup_of_a_life_that_was_given_up_takes_no_rows_of_another() {
    if !is_process() {
        a_life_is_given_up_and_wanted_back(
            "a_backup_of_a_life_that_was_given_up_takes_no_rows_of_another",
            1,
        );
    }
}

#[test]
fn nor_when_the_job_went_on_in_another_size() {
    if !is_process() {
        a_life_is_given_up_and_wanted_back("nor_when_the_job_went_on_in_another_size", 2);
    }
}

/// The job has sealed the epochs that are not used again, and nothing is in them: its sinks may still have more.
#[test]
fn a_restored_job_that_did_nothing_yet_is_still_the_backup() {
    let test = "a_restored_job_that_did_nothing_yet_is_still_the_backup";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(test, dir, 1, 10, 1);
    goes_well(test, dir, 1, 100, 3);
    let output = dir.join("out");
    let kept = dir.join("kept");
    copy(&output, &kept);
    restore(dir, &backups(dir)[0]);
    // Nothing more to do than what the backup has; then the output is there again that it had before it was cut back.
    goes_well(test, dir, 1, 10, 1);
    fs::remove_dir_all(&output).unwrap();
    copy(&kept, &output);
    goes_well(test, dir, 1, 100, 1);
    assert_eq!(rows(dir), (0..100).collect::<Vec<_>>());
}
