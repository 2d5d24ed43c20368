//! Backups of a running job, and the way back: to another machine, another number of workers, an earlier epoch.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::env;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
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

/// Sums numbers by their remainder, one number in an epoch. `rescaled`: its state is that of another size.
fn job(dir: &Path, state: &str, cluster: &Cluster, rescaled: bool, numbers: u64) -> Result<(), Error> {
    let out = dir.join("out");
    let config = Config::new(dir.join(state), "sums").other_size(OtherSize::Rescale);
    let config = config.backup_to(&place(dir), &options(), Duration::ZERO);
    let config = config.backup_files(|| Ok(vec![("notes".into(), b"of the program".to_vec())]));
    let backups = place(dir);
    run(cluster, &config, move |job| {
        if job.index() == 0 && rescaled {
            // Were there no backup of this size, a restore would know nothing of its output.
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

/// The job in a process of its own, as one that cannot begin ends its process.
fn command(test: &str, dir: &Path, state: &str, cluster: &Cluster, rescaled: bool, numbers: u64) -> Command {
    let Cluster { process, workers, addresses } = cluster;
    let line = format!("{state} {process} {workers} {rescaled} {numbers} {}", addresses.join(" "));
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(DIR, dir).env(JOB, line);
    command
}

/// Whether this is such a process, and then runs the job.
fn is_process() -> bool {
    let (Ok(dir), Ok(line)) = (env::var(DIR), env::var(JOB)) else { return false };
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap();
    let (state, process, workers) = (word(), word().parse().unwrap(), word().parse().unwrap());
    let (rescaled, numbers) = (word().parse().unwrap(), word().parse().unwrap());
    let addresses = words.map(str::to_owned).collect();
    job(Path::new(&dir), state, &Cluster { process, workers, addresses }, rescaled, numbers).unwrap();
    true
}

/// Runs the job on one process; it had two workers before.
fn process(test: &str, dir: &Path, workers: usize, numbers: u64) -> Output {
    command(test, dir, "state", &Cluster::single(workers), workers != 2, numbers).output().unwrap()
}

fn goes_well(test: &str, dir: &Path, workers: usize, numbers: u64) {
    let done = process(test, dir, workers, numbers);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Runs the job to its end on as many processes as there are directories, one worker each. A port that somebody else took in
/// between is no reason to fail: the job goes on where it was.
fn goes_well_on_several(test: &str, dir: &Path, states: &[&str], rescaled: bool, numbers: u64) {
    for _ in 0..5 {
        let listeners: Vec<_> = states.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        drop(listeners);
        let start = |(process, state): (usize, &&str)| {
            let cluster = Cluster { process, workers: 1, addresses: addresses.clone() };
            let mut command = command(test, dir, state, &cluster, rescaled, numbers);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let started: Vec<_> = states.iter().enumerate().map(start).collect();
        let ended: Vec<_> = started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        if ended.iter().all(|output| output.status.success()) {
            return;
        }
        let all: String = ended.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect();
        let alone = ["could not listen", "could not be reached in time"];
        assert!(alone.iter().any(|sign| all.contains(sign)), "{all}");
    }
    panic!("five times a port was taken in between");
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
    let whose = "A restore works in state.unfinished. In a directory of another name the state is complete, and this file means nothing.\n";
    fs::write(left.join("laminar-restore"), whose).unwrap();
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

/// Three processes are lost, and there are two machines: one restores two parts of the backup, the other one the third.
#[test]
fn a_machine_restores_several_parts_and_the_job_goes_on_on_fewer() {
    if is_process() {
        return;
    }
    let this = "a_machine_restores_several_parts_and_the_job_goes_on_on_fewer";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well_on_several(this, dir, &["first", "second", "third"], false, 120);
    ["first", "second", "third"].iter().for_each(|state| fs::remove_dir_all(dir.join(state)).unwrap());
    let backups = list_job_backups(&place(dir), &options()).unwrap().backups;
    let backup = backups.first().unwrap();
    assert!(backups.len() >= 2 && backup.parts.len() == 3, "{backups:?}");

    let restore = |parts: &[u32], state: &str| {
        restore_job(&place(dir), Some(backup.id), Some(parts), dir.join(state), &options(), |_| {})
    };
    for (parts, sign) in [
        (&[0, 3][..], "there is no part 3: the job has 3 parts, counted from 0"),
        (&[2, 0, 2], "part 2 is named twice"),
        (&[], "no part is named"),
    ] {
        let error = restore(parts, "refused").unwrap_err();
        assert!(matches!(error, Error::Config(_)) && error.to_string().contains(sign), "{error}");
        assert!(!dir.join("refused.fetched").exists() && !dir.join("refused").exists());
    }
    let several = restore(&[2, 0], "several").unwrap();
    let one = restore(&[1], "one").unwrap();
    assert_eq!((several.parts.as_slice(), one.parts.as_slice()), (&[0, 2][..], &[1][..]));
    assert_eq!(several.keys() + one.keys(), backup.keys());
    let there = |state: &str| {
        let parts = fs::read_dir(dir.join(state).join("generation-00000001")).unwrap();
        let mut parts: Vec<_> = parts.map(|part| part.unwrap().file_name().into_string().unwrap()).collect();
        parts.sort();
        parts
    };
    assert_eq!(there("several"), ["part-0000", "part-0002"]);
    assert_eq!(there("one"), ["part-0001"]);
    assert_eq!(fs::read(dir.join("one/notes")).unwrap(), b"of the program");
    goes_well_on_several(this, dir, &["several", "one"], true, 200);
    assert_eq!(lines(dir), truth(200), "from {backup:?}");
}
