//! A job of several processes loses its machines while it runs, and goes on from its backup on another number of processes.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use laminar_storage::backup::{BackupOptions, BackupOwner, BackupTarget, BackupWriter};
use laminar_storage::ids::{Incarnation, StoreId};
use serde_json::json;
use support::jobs::{JOB, laminar, prepared, run_to_end, same_as_alone, start, succeeds};

const BACKED_UP: &str = "--backup place --checkpoint-interval 10ms --epoch 1ms";

fn listed(dir: &Path) -> Vec<serde_json::Value> {
    let output = laminar(dir, "backups place --json").output().unwrap();
    let told: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
    told.and_then(|told| told["backups"].as_array().cloned()).unwrap_or_default()
}

#[test]
fn three_processes_that_are_lost_with_their_disks_go_on_from_the_backup_as_two() {
    let dir = prepared(150_000);
    let dir = dir.path();
    // One of three is killed, and all go on.
    let mut children = start(dir, 3, 1, BACKED_UP);
    let deadline = Instant::now() + Duration::from_secs(120);
    let has_records = || listed(dir).last().is_some_and(|newest| newest["keys"].as_u64() > Some(0));
    while !has_records() {
        assert!(Instant::now() < deadline, "no backup came");
        std::thread::sleep(Duration::from_millis(20));
        if children.iter_mut().any(|child| child.try_wait().unwrap().is_some()) {
            // Done already, or a port that somebody else took.
            children.iter_mut().for_each(|child| drop(child.kill().and_then(|()| child.wait())));
            children = start(dir, 3, 1, BACKED_UP);
        }
    }
    children[1].kill().unwrap();
    children.iter_mut().for_each(|child| drop(child.kill().and_then(|()| child.wait())));
    fs::remove_dir_all(dir.join("together")).unwrap();

    let told = succeeds(dir, "restore place together --json");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["processes"], &told["workers"], &told["job"]),
        (&3.into(), &1.into(), &true.into()),
        "{told}"
    );
    run_to_end(dir, 2, 2, &format!("{BACKED_UP} --rescale --take-over"));
    same_as_alone(dir);
    // The last backup is the finished job, in the size that it has now.
    let newest = listed(dir).pop().unwrap();
    assert_eq!(
        (&newest["generation"], &newest["parts"], &newest["keys"]),
        (&2.into(), &2.into(), &1000.into())
    );
    let verified = succeeds(dir, "backups place --verify");
    assert!(verified.contains("in 2 parts") && verified.contains("whole"), "{verified}");
    fs::remove_dir_all(dir.join("together")).unwrap();
    succeeds(dir, "restore place together");
    same_as_alone(dir);
}

/// Every part on one machine, and no machine with all of them: together they are the state.
#[test]
fn parts_are_restored_to_the_machines_that_there_are() {
    let dir = prepared(2000);
    let dir = dir.path();
    run_to_end(dir, 3, 1, "--backup place");
    fs::remove_dir_all(dir.join("together")).unwrap();
    let told = |line: &str| -> serde_json::Value { serde_json::from_str(&succeeds(dir, line)).unwrap() };
    let several = told("restore place together --process 2,0 --json");
    let one = told("restore place other --process 1 --json");
    assert_eq!((&several["parts"], &one["parts"]), (&json!([0, 2]), &json!([1])), "{several} {one}");
    let keys = [&several, &one].map(|told| told["keys"].as_u64().unwrap());
    assert!(keys.iter().all(|keys| *keys > 0) && keys[0] + keys[1] == 1000, "{keys:?}");
    let generation = |state: &str| dir.join(state).join("generation-00000001");
    let there = |number: u32| generation("together").join(format!("part-{number:04}")).exists();
    assert_eq!([0, 1, 2].map(there), [true, false, true]);
    fs::rename(generation("other").join("part-0001"), generation("together").join("part-0001")).unwrap();
    same_as_alone(dir);
}

/// A name that is no text, beside the backups, made them unreadable.
#[test]
#[cfg(target_os = "linux")]
fn what_else_is_beside_the_backups_of_a_job_hides_none() {
    use std::os::unix::ffi::OsStrExt;
    let dir = prepared(500);
    let dir = dir.path();
    run_to_end(dir, 2, 1, "--backup place");
    fs::create_dir(dir.join("place/generation-old")).unwrap();
    for name in [&b"not text \xff"[..], b"a bell \x07"] {
        fs::write(dir.join("place").join(std::ffi::OsStr::from_bytes(name)), b"mine").unwrap();
        let folder = dir.join("place/generation-00000001");
        fs::write(folder.join(std::ffi::OsStr::from_bytes(name)), b"mine").unwrap();
    }
    let verified = succeeds(dir, "backups place --verify");
    assert!(verified.contains("in 2 parts") && verified.contains("whole"), "{verified}");
    fs::remove_dir_all(dir.join("together")).unwrap();
    succeeds(dir, "restore place together");
    same_as_alone(dir);
}

/// What the summary says of the backups is what there is.
#[test]
fn the_summary_says_how_far_the_backups_are_behind() {
    let dir = prepared(100);
    let dir = dir.path();
    let run = |state: &str, more: &str| {
        let output =
            laminar(dir, &format!("{JOB} --state {state} --workers 2 --json {more}")).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["finished"], true, "{told}");
        (output.status.success(), told["backups"].clone())
    };
    let (done, backups) = run("together", "--backup place");
    assert!(done && backups["url"].as_str().is_some_and(|url| url.contains("place")), "{backups}");
    let newest = listed(dir).pop().unwrap();
    assert_eq!((&backups["epoch"], &backups["epochs_behind"]), (&newest["epoch"], &0.into()), "{newest}");
    assert!(backups["error"].is_null() && backups["epoch"].as_u64() > Some(0), "{backups}");
    // Nothing was done, and all of it is backed up still.
    let (done, again) = run("together", "--backup place");
    assert!(done && again == backups, "{backups} {again}");
    assert_eq!(run("plain", ""), (true, serde_json::Value::Null));
    // The place is another job's: every epoch of this run is behind. (A job that has nothing yet does not begin there.)
    run("other", "");
    let (done, behind) = run("other", "--backup place");
    assert!(!done && behind["epoch"].is_null() && behind["epochs_behind"].as_u64() >= Some(1), "{behind}");
    assert!(
        behind["error"].as_str().is_some_and(|error| error.contains("its last backup is not made")),
        "{behind}"
    );
    // With nothing to do too: what was done before is not backed up either.
    assert_eq!(run("other", "--backup place").1["epochs_behind"], 1);
    let told = succeeds(dir, &format!("{JOB} --state together --workers 2 --backup place"));
    let line = format!("backup     epoch {} at ", backups["epoch"]);
    assert!(told.contains(&line) && !told.contains("NOT"), "{told}");
    let output = laminar(dir, &format!("{JOB} --state other --workers 2 --backup place")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("backup     none; the last epoch is NOT backed up"), "{told}");
}

#[test]
fn what_cannot_be_done_with_backups_of_jobs_is_said() {
    let dir = prepared(100);
    let dir = dir.path();
    succeeds(dir, &format!("{JOB} --state together --workers 2 --backup place --quiet"));
    let refused = |line: &str, sign: &str| {
        let output = laminar(dir, line).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(sign), "{line}: {told}");
    };
    for sign in ["together is the state of a job that runs with --workers", "`--backup URL`"] {
        refused("backup elsewhere --state together", sign);
    }
    assert!(!dir.join("elsewhere").exists());
    refused("restore place new --cores 2", "--rescale");
    refused("restore place new --savepoint", "--rescale");
    refused("restore place together", "exists already");
    refused("restore place new --backup 1", "id of a backup");
    refused("restore place new --backup 0000000000000001-0000000000000001", "no backup");
    refused("restore place new --process 0,1", "there is no part 1: the job has 1 parts, counted from 0");
    refused("restore place new --process 0,0", "part 0 is named twice");
    refused("restore place new --process 0,x", "invalid value 'x' for '--process");
    assert!(!dir.join("new").exists() && !dir.join("new.fetched").exists());
    // Another job's backups are not written over; the job is done all the same.
    let other = format!("{JOB} --state other --workers 2 --backup place --quiet");
    // One that has nothing may be the very job whose backups these are.
    refused(&other, "its state is lost");
    succeeds(dir, &other.replace("--backup place ", ""));
    refused(&other, "done and durable, but its last backup is not made");
    refused(&other, "--take-over");
    succeeds(dir, "export --state other --output other.ndjson");
    assert_eq!(fs::read(dir.join("other.ndjson")).unwrap(), fs::read(dir.join("alone.ndjson")).unwrap());
}

/// A part of a job, or a size of it, was restored as if it were the whole: a state with half of the keys, and exit code 0.
#[test]
fn a_place_inside_of_the_backups_of_a_job_is_not_taken_for_them() {
    let dir = prepared(100);
    let dir = dir.path();
    succeeds(dir, &format!("{JOB} --state together --workers 2 --backup place --quiet"));
    let size = "place/generation-00000001";
    for (place, is) in [(size.to_owned(), "one size"), (format!("{size}/part-0000-of-0001"), "one part")] {
        for line in
            [format!("restore {place} new"), format!("backups {place}"), format!("backups {place} --verify")]
        {
            let output = laminar(dir, &line).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && told.contains(is), "{line}: {told}");
            assert!(told.contains("Name the place that `generation-…` is in"), "{line}: {told}");
        }
    }
    assert!(!dir.join("new").exists() && !dir.join("new.fetched").exists());
    // Whoever wants to read the part itself can.
    succeeds(dir, &format!("restore {size}/part-0000-of-0001 part --savepoint"));
}

/// The records of the backups of part 1, the newest one last.
fn records_of_part_1(dir: &Path) -> Vec<PathBuf> {
    let log = dir.join("place/generation-00000001/part-0001-of-0002/log");
    let mut records: Vec<_> = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    records.sort();
    records
}

fn damage(record: &Path) {
    let mut bytes = fs::read(record).unwrap();
    bytes[100] ^= 1;
    fs::write(record, bytes).unwrap();
}

/// A record of the newest backup was damaged: the one before it was restored without a word, and what had been done since was undone.
#[test]
fn an_older_backup_of_a_job_is_restored_only_by_name() {
    let dir = prepared(3000);
    let dir = dir.path();
    let refused = |line: &str, signs: &[&str]| {
        let output = laminar(dir, line).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {told}");
        signs.iter().for_each(|sign| assert!(told.contains(sign), "{line}: no {sign} in {told}"));
    };
    let backed_up = format!("{BACKED_UP} --backup-keep 100");
    // Each run ends with a backup.
    let events = fs::read_to_string(dir.join("events.ndjson")).unwrap();
    let half: String = events.split_inclusive('\n').take(1500).collect();
    for events in [half, events] {
        fs::write(dir.join("events.ndjson"), events).unwrap();
        run_to_end(dir, 2, 1, &backed_up);
    }
    // A claim comes behind the newest backup, which is no longer the head of the log.
    let part = dir.join("place/generation-00000001/part-0001-of-0002");
    let part = BackupTarget::create(part.to_str().unwrap()).unwrap();
    let somebody = BackupOwner { store_id: StoreId(1), incarnation: Incarnation(1) };
    BackupWriter::open(&part, &BackupOptions::new().take_over(true), somebody).unwrap();
    let there = listed(dir);
    let [.., older, newest] = &there[..] else { panic!("{there:?}") };
    let [older, newest] = [older, newest].map(|backup| backup["backup"].as_str().unwrap());
    let records = records_of_part_1(dir);
    let holds = |record: &&PathBuf| fs::read_to_string(record).unwrap().contains(newest);
    let record = records.iter().find(holds).unwrap();
    damage(record);

    fs::rename(dir.join("together"), dir.join("lost")).unwrap();
    let name_it = format!("whole is {older}: name it");
    let signs = ["the newest backup may be damaged", &name_it, "part-0001-of-0002"];
    refused("restore place together", &signs);
    assert!(!dir.join("together").exists());
    // It is listed, and that is no success.
    let output = laminar(dir, "backups place --json").output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && list["unreadable"].as_array().unwrap().len() == 1, "{list}");
    assert_eq!(list["incomplete"], json!([newest]), "{list}");
    succeeds(dir, &format!("restore place together --backup {older}"));
    run_to_end(dir, 2, 1, "");
    same_as_alone(dir);

    // It is another thing with the head: nobody knows what counts, until it is out of the way.
    let head = records.last().unwrap();
    assert_ne!(head, record);
    damage(head);
    let signs = ["It is the newest record of the log", "move this one object away"];
    refused("restore place again", &signs);
    refused("backups place --verify", &signs);
    fs::remove_file(head).unwrap();
    fs::remove_file(record).unwrap();
    let told = succeeds(dir, "backups place");
    assert!(told.contains(older) && told.contains("not all parts of the job have it"), "{told}");
    fs::remove_dir_all(dir.join("together")).unwrap();
    succeeds(dir, "restore place together");
    run_to_end(dir, 2, 1, &format!("{backed_up} --take-over"));
    same_as_alone(dir);
}

/// Where the size differed nobody looked whose backups there were: another job's became the newest, and were restored in their place.
#[test]
fn jobs_of_different_sizes_do_not_share_a_place() {
    let dir = prepared(300);
    let dir = dir.path();
    let refused = |line: &str, signs: &[&str]| {
        let output = laminar(dir, line).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{line}: {told}");
        signs.iter().for_each(|sign| assert!(told.contains(sign), "{line}: no {sign} in {told}"));
    };
    run_to_end(dir, 2, 1, "--backup place");
    let there = listed(dir);
    // One that has a state already, or it would be asked to restore these.
    let other = format!("{JOB} --state other --workers 2 --quiet");
    succeeds(dir, &other);
    let signs = ["its last backup is not made", "those of another job, or of another life", "--take-over"];
    refused(&format!("{other} --backup place"), &signs);
    assert_eq!(listed(dir), there);
    // In another size than it was: the job does not begin before it has taken the place over, and then it is its own.
    fs::remove_dir_all(dir.join("together")).unwrap();
    succeeds(dir, "restore place together");
    let again = format!("{JOB} --state together --workers 2 --rescale --quiet --backup place");
    refused(&again, &signs[1..]);
    assert_eq!(listed(dir), there);
    succeeds(dir, &format!("{again} --take-over"));
    let newest = listed(dir).pop().unwrap();
    assert_eq!((&newest["generation"], &newest["parts"]), (&2.into(), &1.into()));
    succeeds(dir, &again);
    // And in the next size too.
    succeeds(dir, &again.replace("--workers 2", "--workers 1"));
    assert_eq!(listed(dir).pop().unwrap()["generation"], 3);
    same_as_alone(dir);
}
