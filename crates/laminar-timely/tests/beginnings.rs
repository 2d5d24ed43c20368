//! How jobs begin when something is not as it was: another size, targets and machines that went back, backups of two lives, kills
//! between any two steps. Each was started once, or kept from starting, when it should not have been.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::env;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile};
use laminar_timely::{Cluster, Config, Error, FileSink, JobBackup, JobReader, OtherSize, restore_job, run};

use support::backups::{backups, copy, options, place, restore};
use support::rows;

const DIR: &str = "LAMINAR_TEST_DIR";
const JOB: &str = "LAMINAR_TEST_JOB";
const HOSTS: &str = "LAMINAR_TEST_HOSTS";
/// Where the process is killed: `rename PATH TEXT` before a file with this text gets a name with this in it, `remove PATH -` before
/// one is removed.
const DIE: &str = "LAMINAR_TEST_DIE";

/// Kills the process at some moment.
#[derive(Debug)]
struct Dying {
    disk: OsVfs,
    what: String,
    path: String,
    text: String,
}

impl Dying {
    fn dies(&self, what: &str, path: &Path, of: Option<&Path>) {
        let text = of.map(|of| fs::read_to_string(of).unwrap_or_default()).unwrap_or_default();
        if self.what == what && path.to_str().unwrap().contains(&self.path) && text.contains(&self.text) {
            eprintln!("killed at {what} {}", path.display());
            std::process::abort();
        }
    }
}

impl Vfs for Dying {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.create_new(path)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.open(path, access)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.disk.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.disk.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.ends_with("PART.json") {
            self.dies("rename", to, Some(from));
        }
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.dies("remove", path, None);
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.disk.hard_link(existing, new)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.disk.lock(path)
    }
    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}

/// STATE PROCESS WORKERS NUMBERS IN_AN_EPOCH WHAT: runs the job. Every number is a row; so many of them are an epoch.
/// WHAT is `ends`, `dies` (killed when all is committed, instead of ending) or `sinkless` (the sink's target is not there).
fn is_process() -> bool {
    let (Ok(dir), Ok(line)) = (env::var(DIR), env::var(JOB)) else { return false };
    let dir = PathBuf::from(dir);
    let words: Vec<_> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let (state, what) = (words[0].to_owned(), words[5].to_owned());
    let (numbers, in_an_epoch) = (number(3), number(4));
    let addresses = env::var(HOSTS).unwrap().split_whitespace().map(str::to_owned).collect();
    let cluster = Cluster {
        process: usize::try_from(number(1)).unwrap(),
        workers: usize::try_from(number(2)).unwrap(),
        addresses,
    };
    let config = Config::new(dir.join(state), "rows").other_size(OtherSize::Rescale);
    let config = config.connect_timeout(Duration::from_secs(10));
    // There is one backup at the end, and one where another size begins.
    let config = config.backup_to(&place(&dir), &options(), Duration::from_secs(3600));
    let config = match env::var(DIE) {
        Ok(die) if !die.is_empty() => {
            let [what, path, text] = die.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let text = if text == "-" { "" } else { text };
            let [what, path, text] = [what, path, text].map(str::to_owned);
            config.vfs(Arc::new(Dying { disk: OsVfs::new(), what, path, text }))
        }
        _ => config,
    };
    let how = what.clone();
    let ended = run(&cluster, &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
            let rows = flow.fold(stream, "rows", |sum: &mut u64, n| *sum += n)?;
            if what == "nosink" {
                return Ok(input);
            }
            flow.sink(rows, "out", |part| {
                if what == "sinkless" {
                    sleep(Duration::from_millis(1000));
                    return Err(Error::program("the target is not there".to_owned(), "Mount it."));
                }
                FileSink::open(dir.join("out"), "rows", part, |(n, _): &(u64, u64), line| {
                    line.extend_from_slice(format!("{n}\n").as_bytes());
                })
            })?;
            Ok(input)
        })?;
        eprintln!("point {} first {}", job.recovery_point(), job.resume_epoch());
        let what = &how;
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
        if *what == "idles" {
            // Until nothing waits for a sink in the state any more.
            for _ in 0..5 {
                let epoch = input.seal()?;
                while job.committed_epoch() < epoch {
                    input.idle(Duration::from_millis(1));
                }
            }
        }
        if *what == "dies" {
            sleep(Duration::from_millis(200));
            std::process::abort();
        }
        input.finish()
    });
    ended.unwrap();
    true
}

fn start(test: &str, dir: &Path, hosts: &[String], job: &str, die: &str) -> std::process::Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir)
        .env(JOB, job)
        .env(HOSTS, hosts.join(" "))
        .env(DIE, die);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// On one process, with its state in `state`.
fn runs(test: &str, dir: &Path, workers: u64, numbers: u64, in_an_epoch: u64) -> Output {
    let job = format!("state 0 {workers} {numbers} {in_an_epoch} ends");
    start(test, dir, &[], &job, "").wait_with_output().unwrap()
}

fn goes_well(test: &str, dir: &Path, workers: u64, numbers: u64, in_an_epoch: u64) {
    let output = runs(test, dir, workers, numbers, in_an_epoch);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// On two processes of one worker, each with a directory of its own.
fn on_two(test: &str, dir: &Path, numbers: u64, what: &str) -> Vec<Output> {
    two(test, dir, 1, numbers, what, ["", ""])
}

fn two(test: &str, dir: &Path, workers: u64, numbers: u64, what: &str, die: [&str; 2]) -> Vec<Output> {
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let hosts: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    drop(listeners);
    let line = |process| {
        // Numbers from 16 on are one epoch.
        let in_an_epoch = if numbers > 16 { 16 } else { 1 };
        format!("state{process} {process} {workers} {numbers} {in_an_epoch} {what}")
    };
    let started: Vec<_> =
        (0..2).map(|process| start(test, dir, &hosts, &line(process), die[process])).collect();
    started.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn said(outputs: &[Output]) -> String {
    outputs.iter().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect()
}

/// One machine of two is lost and restored, the other has an epoch more than the backup. The first start does not come to the
/// sinks; it has sealed that epoch's number all the same, so that the second does not know any more that sinks have more.
#[test]
fn one_machine_is_restored_and_the_first_start_fails() {
    let test = "one_machine_is_restored_and_the_first_start_fails";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ended = on_two(test, dir, 8, "ends");
    assert!(ended.iter().all(|output| output.status.success()), "{}", said(&ended));
    // One epoch more, which the sinks have; then the power goes.
    let killed = on_two(test, dir, 9, "dies");
    assert!(killed.iter().all(|output| !output.status.success()), "{}", said(&killed));
    assert_eq!(rows(dir), (0..9).collect::<Vec<_>>());
    // And the disk of a machine.
    fs::remove_dir_all(dir.join("state1")).unwrap();
    restore_job(&place(dir), None, Some(&[1]), dir.join("state1"), &options(), |_| {}).unwrap();
    let first = on_two(test, dir, 12, "sinkless");
    assert!(first.iter().all(|output| !output.status.success()), "{}", said(&first));
    assert!(said(&first).contains("the target is not there"), "{}", said(&first));
    eprintln!("killed {}\nfirst {}", said(&killed), said(&first));
    let second = on_two(test, dir, 12, "ends");
    eprintln!("second {}", said(&second));
    assert!(second.iter().all(|output| output.status.success()), "{}", said(&second));
    assert_eq!(rows(dir), (0..12).collect::<Vec<_>>(), "{}", said(&second));
}

/// The same without the start that failed: goes well.
#[test]
fn one_machine_is_restored() {
    let test = "one_machine_is_restored";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    on_two(test, dir, 8, "ends");
    on_two(test, dir, 9, "dies");
    fs::remove_dir_all(dir.join("state1")).unwrap();
    restore_job(&place(dir), None, Some(&[1]), dir.join("state1"), &options(), |_| {}).unwrap();
    let second = on_two(test, dir, 12, "ends");
    assert!(second.iter().all(|output| output.status.success()), "{}", said(&second));
    assert_eq!(rows(dir), (0..12).collect::<Vec<_>>(), "{}", said(&second));
}

/// A restored job that did nothing seals the number of the newest backup of the life that was given up, and backs that up: there are two
/// backups of this epoch then, of two states, and a sink that has the one is taken for one that has the other.
#[test]
fn two_backups_of_one_epoch_with_two_states() {
    let test = "two_backups_of_one_epoch_with_two_states";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(test, dir, 1, 10, 1);
    goes_well(test, dir, 1, 100, 90);
    let [older, newer] = backups(dir).try_into().unwrap();
    restore(dir, &older);
    // Nothing to do, twice: the sinks are cut back.
    goes_well(test, dir, 1, 10, 1);
    goes_well(test, dir, 1, 10, 1);
    let again = backups(dir).pop().unwrap();
    let ids: Vec<_> = backups(dir).iter().map(|backup| (backup.id.to_string(), backup.keys())).collect();
    eprintln!("{ids:?}");
    assert_eq!(rows(dir), (0..10).collect::<Vec<_>>());
    // The newer one takes the sink: what was cut off waits in it.
    restore(dir, &newer);
    goes_well(test, dir, 1, 100, 1);
    assert_eq!(rows(dir), (0..100).collect::<Vec<_>>());
    // And the other again: the sink has more than its state, and must be cut back or refused.
    restore(dir, &again);
    let output = runs(test, dir, 1, 100, 1);
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        assert_eq!(rows(dir), (0..100).collect::<Vec<_>>(), "{said}");
    }
}

/// All parts of a new size are ready and none says so when the job is killed. It goes on in that size, and nobody ever says so.
#[test]
fn a_job_that_was_killed_before_its_new_size_counted_can_be_read() {
    let test = "a_job_that_was_killed_before_its_new_size_counted_can_be_read";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(test, dir, 1, 10, 1);
    let die = "rename generation-00000002 current";
    let killed = start(test, dir, &[], "state 0 2 20 1 ends", die).wait_with_output().unwrap();
    let text = said(&[killed]);
    assert!(text.contains("killed at rename"), "{text}");
    goes_well(test, dir, 2, 20, 1);
    assert_eq!(rows(dir), (0..20).collect::<Vec<_>>());
    goes_well(test, dir, 2, 30, 1);
    assert_eq!(rows(dir), (0..30).collect::<Vec<_>>());
    let part = fs::read_to_string(dir.join("state/generation-00000002/part-0000/PART.json")).unwrap();
    let reader = JobReader::open(dir.join("state"));
    assert!(reader.is_ok(), "{}: {part}", reader.unwrap_err());
}

/// As before on two machines; the next start is killed while it removes what is not needed any more, and a machine is lost. What is left of
/// the old size is a part that says that it counts, and no store.
#[test]
fn a_part_without_its_store_is_not_an_empty_one() {
    let test = "a_part_without_its_store_is_not_an_empty_one";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let one = |numbers: u64| {
        start(test, dir, &[], &format!("state0 0 1 {numbers} 1 nosink"), "").wait_with_output().unwrap()
    };
    assert!(one(10).status.success());
    let die = "rename generation-00000002 current";
    let killed = said(&two(test, dir, 1, 20, "nosink", [die, die]));
    assert!(killed.contains("killed at rename"), "{killed}");
    let die = "remove generation-00000001/part-0000/PART.json -";
    let killed = said(&two(test, dir, 1, 20, "nosink", [die, ""]));
    assert!(killed.contains("killed at remove"), "{killed}");
    fs::remove_dir_all(dir.join("state1")).unwrap();
    let output = one(20);
    let text = said(std::slice::from_ref(&output));
    assert!(!output.status.success(), "the job has forgotten everything: {text}");
}

/// The very first start is killed; with another number of workers the second is.
#[test]
fn a_first_start_that_was_killed_is_begun_again_in_any_size() {
    let test = "a_first_start_that_was_killed_is_begun_again_in_any_size";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let die = "rename generation-00000001 current";
    let killed = said(&two(test, dir, 1, 10, "ends", [die, die]));
    assert!(killed.contains("killed at rename"), "{killed}");
    let killed = said(&two(test, dir, 2, 10, "ends", ["", die]));
    assert!(killed.contains("killed at rename"), "{killed}");
    let again = two(test, dir, 2, 10, "ends", ["", ""]);
    let before = two(test, dir, 1, 10, "ends", ["", ""]);
    let text = (said(&again), said(&before));
    assert!(again.iter().chain(&before).any(|output| output.status.success()), "{text:?}");
}

/// A supervisor starts the job again on machines that have nothing, though there are backups.
#[test]
fn a_job_that_has_lost_everything_does_not_begin_anew_beside_its_backups() {
    let test = "a_job_that_has_lost_everything_does_not_begin_anew_beside_its_backups";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Nothing came out in the first size.
    goes_well(test, dir, 1, 0, 1);
    goes_well(test, dir, 2, 100, 1);
    assert_eq!(rows(dir), (0..100).collect::<Vec<_>>());
    fs::remove_dir_all(dir.join("state")).unwrap();
    let output = runs(test, dir, 2, 100, 1);
    let text = said(std::slice::from_ref(&output));
    if output.status.success() {
        assert_eq!(rows(dir), (0..100).collect::<Vec<_>>(), "{text}");
    }
}

/// The sink's target comes back older than it was. Begun in the same size the job says so; begun in another one it must, too.
fn a_target_that_went_back(test: &str, workers: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let idles = |numbers: u64| {
        let job = format!("state 0 1 {numbers} 1 idles");
        let output = start(test, dir, &[], &job, "").wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&[output]));
    };
    idles(10);
    copy(&dir.join("out"), &dir.join("older"));
    idles(20);
    fs::remove_dir_all(dir.join("out")).unwrap();
    copy(&dir.join("older"), &dir.join("out"));
    let output = runs(test, dir, workers, 30, 1);
    let text = said(std::slice::from_ref(&output));
    assert!(!output.status.success(), "{:?} are there: {text}", rows(dir));
    assert!(text.contains("had committed them up to"), "{text}");
}

#[test]
fn a_target_that_went_back_in_the_same_size() {
    if !is_process() {
        a_target_that_went_back("a_target_that_went_back_in_the_same_size", 1);
    }
}

#[test]
fn a_target_that_went_back_in_another_size() {
    if !is_process() {
        a_target_that_went_back("a_target_that_went_back_in_another_size", 2);
    }
}

/// The sink has more than the state. Begun in the same size the job says so.
fn a_sink_that_is_ahead(test: &str, workers: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let idles = |numbers: u64| {
        let job = format!("state 0 1 {numbers} 1 idles");
        let output = start(test, dir, &[], &job, "").wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&[output]));
    };
    idles(10);
    copy(&dir.join("state"), &dir.join("older"));
    idles(20);
    fs::remove_dir_all(dir.join("state")).unwrap();
    copy(&dir.join("older"), &dir.join("state"));
    let output = runs(test, dir, workers, 30, 1);
    let text = said(std::slice::from_ref(&output));
    assert!(!output.status.success(), "{:?} are there: {text}", rows(dir));
    assert!(text.contains("but the state goes only to"), "{text}");
}

#[test]
fn a_sink_that_is_ahead_in_the_same_size() {
    if !is_process() {
        a_sink_that_is_ahead("a_sink_that_is_ahead_in_the_same_size", 1);
    }
}

#[test]
fn a_sink_that_is_ahead_in_another_size() {
    if !is_process() {
        a_sink_that_is_ahead("a_sink_that_is_ahead_in_another_size", 2);
    }
}

/// Both machines are restored from the older of two backups, and have nothing to do. Then one of them is lost again, and restored from the
/// newer one, whose epoch the other has sealed meanwhile: it has nothing of what is in it.
#[test]
fn parts_of_two_backups_do_not_go_together() {
    let test = "parts_of_two_backups_do_not_go_together";
    if is_process() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let go = |numbers| {
        let ended = on_two(test, dir, numbers, "ends");
        assert!(ended.iter().all(|output| output.status.success()), "{}", said(&ended));
    };
    go(16);
    go(32);
    assert_eq!(rows(dir), (0..32).collect::<Vec<_>>());
    let [older, newer] = backups(dir).try_into().unwrap();
    let restore = |process: u32, backup: &JobBackup| {
        let state = dir.join(format!("state{process}"));
        fs::remove_dir_all(&state).unwrap();
        restore_job(&place(dir), Some(backup.id), Some(&[process]), &state, &options(), |_| {}).unwrap();
    };
    restore(0, &older);
    restore(1, &older);
    go(16);
    assert_eq!(rows(dir), (0..16).collect::<Vec<_>>());
    restore(1, &newer);
    let ended = on_two(test, dir, 48, "ends");
    let text = said(&ended);
    if ended.iter().all(|output| output.status.success()) {
        assert_eq!(rows(dir), (0..48).collect::<Vec<_>>(), "{text}");
    }
}
