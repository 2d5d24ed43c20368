//! States whose directories are elsewhere: behind symbolic links, as when they were moved to a larger disk, or left behind by a change
//! of size that failed.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use laminar_timely::{Cluster, Config, Error, OtherSize, run};

use support::{asked, process, said};

/// Adds ten numbers on so many workers, once.
fn sums(dir: &Path, workers: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job").other_size(OtherSize::Rescale);
    run(&Cluster::single(usize::try_from(workers).unwrap()), &config, |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(u64, u64)>("numbers")?;
            flow.fold(rows, "sums", |sum: &mut u64, n| *sum += n)?;
            Ok(input)
        })?;
        eprintln!("begins at {}", job.source_offset("numbers").unwrap_or(0));
        if job.index() == 0 {
            for n in job.source_offset("numbers").unwrap_or(0)..10 {
                input.send((n % 3, n));
                input.set_source_offset("numbers", n + 1);
                input.seal()?;
            }
        }
        input.finish()
    })
}

fn goes_well(test: &str, dir: &Path, workers: u64) -> Output {
    let output = process(test, dir, workers);
    assert!(output.status.success(), "{}", said(&output));
    output
}

fn goes_on(test: &str, dir: &Path, workers: u64) {
    let output = goes_well(test, dir, workers);
    assert!(said(&output).contains("begins at 10"), "{}", said(&output));
}

/// Moves a directory out of the state, and leaves a link to it there.
fn move_away(dir: &Path, what: &str) {
    let (from, to) = (dir.join("state").join(what), dir.join("larger"));
    fs::rename(&from, &to).unwrap();
    symlink(&to, &from).unwrap();
}

/// It was taken for no state, and the job began with nothing.
#[test]
fn a_state_behind_a_symbolic_link_is_gone_on_with() {
    if let Some((dir, workers)) = asked() {
        return sums(&dir, workers).unwrap();
    }
    let test = "a_state_behind_a_symbolic_link_is_gone_on_with";
    for what in
        ["generation-00000002", "generation-00000002/part-0000", "generation-00000002/part-0000/store"]
    {
        let dir = tempfile::tempdir().unwrap();
        goes_well(test, dir.path(), 1);
        goes_on(test, dir.path(), 2);
        move_away(dir.path(), what);
        goes_on(test, dir.path(), 2);
        // Removed with what it leads to, as any other.
        goes_on(test, dir.path(), 1);
        goes_on(test, dir.path(), 1);
        assert!(fs::read_dir(dir.path().join("larger")).unwrap().next().is_none());
    }
}

#[test]
fn a_link_that_leads_nowhere_is_not_nothing() {
    if let Some((dir, workers)) = asked() {
        return sums(&dir, workers).unwrap();
    }
    let test = "a_link_that_leads_nowhere_is_not_nothing";
    for what in
        ["generation-00000001", "generation-00000001/part-0000", "generation-00000001/part-0000/store"]
    {
        let dir = tempfile::tempdir().unwrap();
        goes_well(test, dir.path(), 1);
        move_away(dir.path(), what);
        // The disk is not mounted.
        fs::rename(dir.path().join("larger"), dir.path().join("away")).unwrap();
        let output = process(test, dir.path(), 1);
        assert!(!output.status.success(), "{}", said(&output));
        fs::rename(dir.path().join("away"), dir.path().join("larger")).unwrap();
        goes_on(test, dir.path(), 1);
    }
}

/// Each try left one more, also when what it failed for was that the disk was full.
#[test]
fn what_an_earlier_change_of_size_left_is_removed_before_the_next_begins() {
    if let Some((dir, workers)) = asked() {
        return sums(&dir, workers).unwrap();
    }
    let test = "what_an_earlier_change_of_size_left_is_removed_before_the_next_begins";
    let dir = tempfile::tempdir().unwrap();
    goes_well(test, dir.path(), 1);
    let state = dir.path().join("state");
    let begun = fs::read_to_string(state.join("generation-00000001/part-0000/PART.json")).unwrap();
    let left = state.join("generation-00000002/part-0000");
    fs::create_dir_all(left.join("store")).unwrap();
    let begun = begun.replace("\"generation\": 1", "\"generation\": 2").replace("\"current\"", "\"filling\"");
    fs::write(left.join("PART.json"), begun.replace("\"workers\": 1", "\"workers\": 2")).unwrap();
    fs::write(left.join("store/half"), [0; 1000]).unwrap();
    goes_on(test, dir.path(), 2);
    assert!(!left.exists());
    let generations =
        fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let generations: Vec<_> = generations.filter(|name| name.starts_with("generation")).collect();
    assert_eq!(generations, ["generation-00000003"]);
}
