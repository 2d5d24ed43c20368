//! Backups of a running job, and the way back: to another machine, another number of workers, an earlier epoch.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_timely::{
    Cluster, Config, Error, FileSink, JobBackup, OtherSize, list_job_backups, restore_job, run,
};

/// Set in the processes that run the job: the directory, and what else there is to say.
const DIR: &str = "LAMINAR_TEST_DIR";
const JOB: &str = "LAMINAR_TEST_JOB";

fn place(dir: &Path) -> BackupTarget {
    BackupTarget::create(dir.join("place").to_str().unwrap()).unwrap()
}

fn options() -> BackupOptions {
    BackupOptions::new().keep(1000).take_over(true)
}

/// Sums numbers by their remainder, one number in an epoch, with so many workers.
fn job(dir: &Path, workers: usize, numbers: u64) -> Result<(), Error> {
    let out = dir.join("out");
    let config = Config::new(dir.join("state"), "sums").other_size(OtherSize::Rescale);
    let config = config.backup_to(&place(dir), &options(), Duration::ZERO);
    let config = config.backup_files(|| Ok(vec![("notes".into(), b"of the program".to_vec())]));
    let backups = place(dir);
    run(&Cluster::single(workers), &config, move |job| {
        if job.index() == 0 && job.peers() != 2 {
            // It had two workers before. Were there no backup of this size, a restore would know nothing of its output.
            let there = list_job_backups(&backups, &options())?.backups;
            assert!(there.iter().any(|backup| backup.generation == 2), "{there:?}");
        }
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
            if job.index() == 0 {
                input.send((n % 7, n));
                input.set_source_offset("numbers", n + 1);
            }
            input.seal()?;
            // Some backup is made in the middle, with what comes before and after it.
            while n == (done + numbers) / 2 && job.backed_up_epoch().is_none() {
                input.seal()?;
                job.idle(Duration::from_millis(1));
            }
        }
        input.finish()
    })
}

/// All lines of the output.
fn lines(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let rows = files.filter(|path| path.extension().is_some_and(|e| e == "rows"));
    let mut lines: Vec<_> = rows
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines
}

/// What comes out when nothing happens.
fn truth(numbers: u64) -> Vec<String> {
    let mut sums = [0; 7];
    let mut lines: Vec<_> = (0..numbers)
        .map(|n| {
            let sum = &mut sums[usize::try_from(n % 7).unwrap()];
            *sum += n;
            format!("{} {sum}", n % 7)
        })
        .collect();
    lines.sort();
    lines
}

/// Runs the job in a process of its own, as one that cannot begin ends its process.
fn process(test: &str, dir: &Path, workers: usize, numbers: u64) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(DIR, dir);
    command.env(JOB, format!("{workers} {numbers}")).output().unwrap()
}

fn goes_well(test: &str, dir: &Path, workers: usize, numbers: u64) {
    let done = process(test, dir, workers, numbers);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Whether this is such a process, and then runs the job.
fn is_process() -> bool {
    let (Ok(dir), Ok(job_line)) = (env::var(DIR), env::var(JOB)) else { return false };
    let (workers, numbers) = job_line.split_once(' ').unwrap();
    job(Path::new(&dir), workers.parse().unwrap(), numbers.parse().unwrap()).unwrap();
    true
}

/// Restores a backup in place of the state that is there.
fn restore(dir: &Path, backup: Option<&JobBackup>) {
    let state = dir.join("state");
    fs::remove_dir_all(&state).unwrap();
    let id = backup.map(|backup| backup.id);
    // What an interrupted restore left is gone on with; what somebody else left is not touched.
    let left = dir.join("state.unfinished");
    fs::create_dir_all(left.join("generation-00000001")).unwrap();
    fs::write(left.join("generation-00000001/half"), b"").unwrap();
    let refused = restore_job(&place(dir), id, None, &state, &options(), |_| {}).unwrap_err().to_string();
    assert!(refused.contains("no earlier restore made it") && left.join("generation-00000001/half").exists());
    fs::write(left.join("laminar-restore"), b"").unwrap();
    let made = restore_job(&place(dir), id, None, &state, &options(), |_| {}).unwrap();
    assert_eq!(made.job, "sums");
    assert_eq!(fs::read(state.join("notes")).unwrap(), b"of the program");
    assert!(!state.join("laminar-restore").exists());
    assert!(!dir.join("state.fetched").exists() && !dir.join("state.unfinished").exists());
}

#[test]
fn a_job_goes_on_from_its_last_backup_when_its_state_is_lost() {
    if is_process() {
        return;
    }
    let this = "a_job_goes_on_from_its_last_backup_when_its_state_is_lost";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(this, dir, 2, 200);
    let backups = list_job_backups(&place(dir), &options()).unwrap().backups;
    assert!(backups.len() >= 2 && backups.iter().all(|backup| backup.parts.len() == 1), "{backups:?}");
    assert_eq!(lines(dir), truth(200));
    restore(dir, None);
    goes_well(this, dir, 2, 300);
    assert_eq!(lines(dir), truth(300));
    // On another number of workers, again from the last one, which the restored job made.
    restore(dir, None);
    goes_well(this, dir, 3, 400);
    assert_eq!(lines(dir), truth(400));
    let generations: Vec<_> = list_job_backups(&place(dir), &options())
        .unwrap()
        .backups
        .iter()
        .map(|backup| backup.generation)
        .collect();
    assert_eq!((generations.first(), generations.last()), (Some(&1), Some(&2)), "{generations:?}");
}

/// The output is further than the backup: what came after it is cut off, and computed again.
#[test]
fn sinks_are_cut_back_to_an_older_backup_on_any_number_of_workers() {
    if is_process() {
        return;
    }
    let this = "sinks_are_cut_back_to_an_older_backup_on_any_number_of_workers";
    for workers in [2, 3, 1] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        goes_well(this, dir, 2, 200);
        let backups = list_job_backups(&place(dir), &options()).unwrap().backups;
        restore(dir, backups.first());
        goes_well(this, dir, workers, 250);
        assert_eq!(lines(dir), truth(250), "{workers} workers, from {:?}", backups.first());
        if workers != 2 {
            continue;
        }
        // That counts for the first start only: a sink that is ahead later belongs to another state.
        let newest = dir.join("newest");
        fs::rename(dir.join("state"), &newest).unwrap();
        fs::create_dir(dir.join("state")).unwrap();
        let refused = process(this, dir, workers, 260);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("but the state goes only to 0"), "{said}");
    }
}
