//! Backups of a running job, and the way back: to another machine, another number of workers, an earlier epoch.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::env;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use laminar_storage::Epoch;
use laminar_storage::backup::{BackupError, BackupOwner, BackupTarget, BackupWriter};
use laminar_storage::ids::{Incarnation, StoreId};
use laminar_timely::{
    Cluster, Config, EXIT_FAILED, EpochInput, EpochSink, Error, FileSink, Job, JobBackup, OtherSize,
    SinkPart, list_job_backups, restore_job, run,
};

use support::backups::{options, place};

/// Set in the processes that run the job: the directory, and what else there is to say.
const DIR: &str = "LAMINAR_TEST_DIR";
const JOB: &str = "LAMINAR_TEST_JOB";

type Sums = FileSink<(u64, u64)>;

fn sink(dir: &Path, part: SinkPart) -> Result<Sums, Error> {
    FileSink::open(dir.join("out"), "sums", part, |(key, sum): &(u64, u64), line| {
        line.extend_from_slice(format!("{key} {sum}\n").as_bytes());
    })
}

/// Sums numbers by their remainder, one number in an epoch.
fn sums<S: EpochSink<(u64, u64)> + 'static>(
    job: &mut Job,
    mut sink: impl FnMut(SinkPart) -> Result<S, Error>,
) -> Result<EpochInput<(u64, u64)>, Error> {
    job.dataflow(|flow| {
        let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
        let sums = flow.fold(stream, "sums", |sum: &mut u64, n| *sum += n)?;
        flow.sink(sums, "out", &mut sink)?;
        Ok(input)
    })
}

/// What a process is to run.
struct Asked {
    dir: PathBuf,
    state: String,
    cluster: Cluster,
    /// Its state is that of another size.
    rescaled: bool,
    numbers: u64,
}

/// The job, with a backup in the middle.
fn job<S: EpochSink<(u64, u64)> + 'static>(
    asked: Asked,
    target: impl Fn(Sums) -> S + Send + Sync + 'static,
) -> Result<(), Error> {
    let Asked { dir, state, cluster, rescaled, numbers } = asked;
    let config = Config::new(dir.join(state), "sums").other_size(OtherSize::Rescale);
    let config = config.backup_to(&place(&dir), &options(), Duration::ZERO);
    let config = config.backup_files(|| Ok(vec![("notes".into(), b"of the program".to_vec())]));
    let backups = place(&dir);
    run(&cluster, &config, move |job| {
        let mut input = sums(job, |part| sink(&dir, part).map(&target))?;
        if job.index() == 0 && rescaled {
            // Were there no backup of this size, a restore would know nothing of the output that it has from here on.
            let there = list_job_backups(&backups, &options())?.backups;
            let sizes: Vec<_> = there.iter().map(|backup| backup.generation).collect();
            assert!(sizes.contains(&2), "{sizes:?}");
        }
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

/// In such a process: what it is to run.
fn asked() -> Option<Asked> {
    let (dir, line) = (env::var(DIR).ok()?.into(), env::var(JOB).ok()?);
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap();
    let (state, process, workers) = (word().to_owned(), word().parse().unwrap(), word().parse().unwrap());
    let (rescaled, numbers) = (word().parse().unwrap(), word().parse().unwrap());
    let addresses = words.map(str::to_owned).collect();
    Some(Asked { dir, state, cluster: Cluster { process, workers, addresses }, rescaled, numbers })
}

/// Whether this is such a process, and then runs the job.
fn is_process() -> bool {
    let Some(asked) = asked() else { return false };
    job(asked, |sink| sink).unwrap();
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
        // It counts for the first start only, and nothing begins anew beside backups.
        let newest = dir.join("newest");
        fs::rename(dir.join("state"), &newest).unwrap();
        fs::create_dir(dir.join("state")).unwrap();
        let refused = process(this, dir, workers, 260);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("its state is lost"), "{said}");
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

/// Takes nothing back, as sinks do that say nothing about it.
struct Final(Sums);

impl EpochSink<(u64, u64)> for Final {
    fn committed(&self) -> Epoch {
        self.0.committed()
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<(u64, u64)>)]) -> io::Result<()> {
        self.0.commit(epochs)
    }
}

/// Files of the output in the first size of the job, with their contents.
fn first_files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let first = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("g0001-"));
    let mut files: Vec<_> = first.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_sink_that_takes_nothing_back_stops_a_job_that_was_restored_to_before_it() {
    if let Some(asked) = asked() {
        return job(asked, Final).unwrap();
    }
    let this = "a_sink_that_takes_nothing_back_stops_a_job_that_was_restored_to_before_it";
    for workers in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        goes_well(this, dir, 2, 200);
        let backups = list_job_backups(&place(dir), &options()).unwrap().backups;
        let (oldest, newest) = (backups.first().unwrap(), backups.last().unwrap());
        let before = first_files(dir);
        restore(dir, Some(oldest));
        // Each time it is started.
        for _ in 0..2 {
            let refused = process(this, dir, workers, 250);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(EXIT_FAILED), "{said}");
            let epoch = oldest.id.epoch();
            let why = format!(
                "but the state goes only to {epoch}, from a backup, and it cannot be cut back: this sink cannot take back what came after epoch {epoch}"
            );
            assert!(said.contains(&why), "{said}");
            assert!(said.contains("bring the sink's target back to what it had"), "{said}");
            assert!(first_files(dir) == before, "{workers} workers changed the sink");
        }
        // It has what it had, so that the job goes on from a backup that has as much.
        restore(dir, Some(newest));
        goes_well(this, dir, workers, 300);
        assert_eq!(lines(dir), truth(300), "{workers} workers");
    }
}

/// The place of backups that may be away.
fn bucket(dir: &Path) -> BackupTarget {
    place(dir).within("bucket")
}

/// From now on the bucket is this one, which is empty at first, or none: every request fails.
fn switch(dir: &Path, to: Option<&str>) {
    let (name, new) = (dir.join("place/bucket"), dir.join("place/new"));
    fs::create_dir_all(dir.join("place")).unwrap();
    match to {
        Some(to) => {
            let there = dir.join("buckets").join(to);
            fs::create_dir_all(&there).unwrap();
            symlink(there, &new).unwrap();
        }
        // Nothing can be read or put below a file.
        None => fs::write(&new, b"").unwrap(),
    }
    // In one step: were there nothing for a moment, it would be taken for an empty place.
    fs::rename(new, name).unwrap();
}

/// Warnings of the library, on standard error.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        eprintln!("{event:?}");
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}
}

/// The job with its backups in the bucket; `script` is what it does between the dataflow and the end.
fn with_bucket(
    asked: Asked,
    script: impl Fn(&mut Job, &mut EpochInput<(u64, u64)>, &Path, u64) -> Result<(), Error>
    + Send
    + Sync
    + 'static,
) -> Result<(), Error> {
    let Asked { dir, state, cluster, numbers, .. } = asked;
    tracing::subscriber::set_global_default(Warnings).unwrap();
    let config = Config::new(dir.join(state), "sums").other_size(OtherSize::Rescale);
    // Whether it fails sooner or later is all the same.
    let options = options().attempts(2, Duration::ZERO);
    let config = config.backup_to(&bucket(&dir), &options, Duration::ZERO);
    run(&cluster, &config, move |job| {
        let mut input = sums(job, |part| sink(&dir, part))?;
        script(job, &mut input, &dir, numbers)?;
        input.finish()
    })
}

/// Sends numbers up to this one, and waits until all is committed.
fn send(job: &mut Job, input: &mut EpochInput<(u64, u64)>, from: u64, to: u64) -> Result<(), Error> {
    for n in from..to {
        if job.index() == 0 {
            input.send((n % 7, n));
            input.set_source_offset("numbers", n + 1);
        }
        input.seal()?;
    }
    let last = input.seal()?;
    while job.committed_epoch() < last {
        input.idle(Duration::from_millis(100));
    }
    Ok(())
}

/// Seals empty epochs until it is so.
fn until(job: &mut Job, input: &mut EpochInput<(u64, u64)>, so: impl Fn(&Job) -> bool) -> Result<(), Error> {
    let begun = Instant::now();
    while !so(job) {
        // Only so that a job in which it never comes to that fails, and does not hang.
        assert!(begun.elapsed() < Duration::from_secs(120), "it never came to that");
        input.seal()?;
        job.idle(Duration::from_millis(1));
    }
    Ok(())
}

/// Goes on to the last number, and does nothing else.
fn plain(job: &mut Job, input: &mut EpochInput<(u64, u64)>, _: &Path, numbers: u64) -> Result<(), Error> {
    send(job, input, job.source_offset("numbers").unwrap_or(0), numbers)
}

/// Runs the job on one process, which succeeds or ends with the code, and returns what it says.
fn runs(test: &str, dir: &Path, workers: usize, numbers: u64, code: i32) -> String {
    let cluster = Cluster::single(workers);
    let output = command(test, dir, "state", &cluster, false, numbers).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// How a process ends in which `run` returned an error.
const RETURNED: i32 = 101;
const NOT_MADE: &str = "the job is done and durable, but its last backup is not made";
const WARNING: &str = "a backup of the job failed; the job goes on";

/// Goes back to the newest backup in the bucket.
fn restore_from_bucket(dir: &Path) {
    fs::remove_dir_all(dir.join("state")).unwrap();
    restore_job(&bucket(dir), None, None, dir.join("state"), &options(), |_| {}).unwrap();
}

/// The bucket is away and comes back while the job runs.
fn comes_back(
    job: &mut Job,
    input: &mut EpochInput<(u64, u64)>,
    dir: &Path,
    numbers: u64,
) -> Result<(), Error> {
    send(job, input, 0, numbers / 3)?;
    until(job, input, |job| job.backed_up_epoch().is_some())?;
    assert!(job.backup_error().is_none(), "{:?}", job.backup_error());
    switch(dir, None);
    until(job, input, |job| job.backup_error().is_some())?;
    // No later epoch is backed up before the bucket is there again.
    let away = input.epoch();
    send(job, input, numbers / 3, 2 * numbers / 3)?;
    let error = job.backup_error();
    assert!(matches!(error, Some(BackupError::Unreachable(_))), "{error:?}");
    let (backed_up, committed) = (job.backed_up_epoch().unwrap(), job.committed_epoch());
    assert!(backed_up < away && committed > away, "{backed_up} {away} {committed}");
    switch(dir, Some("one"));
    until(job, input, |job| job.backed_up_epoch() > Some(committed))?;
    assert!(job.backup_error().is_none(), "{:?}", job.backup_error());
    send(job, input, 2 * numbers / 3, numbers)
}

#[test]
fn a_job_goes_on_while_its_bucket_is_away_and_is_backed_up_when_it_is_there_again() {
    if let Some(asked) = asked() {
        let script = if asked.numbers == 150 { comes_back } else { plain };
        return with_bucket(asked, script).unwrap();
    }
    let this = "a_job_goes_on_while_its_bucket_is_away_and_is_backed_up_when_it_is_there_again";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    switch(dir, Some("one"));
    let said = runs(this, dir, 1, 150, 0);
    assert!(said.contains(WARNING), "{said}");
    assert_eq!(lines(dir), truth(150));
    // The backups that were made behind the gap are worth something.
    restore_from_bucket(dir);
    runs(this, dir, 1, 200, 0);
    assert_eq!(lines(dir), truth(200));

    // Another size needs a backup before it begins. Its first row would be in the output, and no backup would know of it.
    switch(dir, None);
    let said = runs(this, dir, 2, 250, EXIT_FAILED);
    assert!(said.contains(WARNING) && !said.contains(NOT_MADE), "{said}");
    assert_eq!(lines(dir), truth(200));
    switch(dir, Some("one"));
    runs(this, dir, 2, 250, 0);
    assert_eq!(lines(dir), truth(250));
}

/// The bucket is lost while the job runs.
fn is_lost(job: &mut Job, input: &mut EpochInput<(u64, u64)>, dir: &Path, numbers: u64) -> Result<(), Error> {
    send(job, input, 0, numbers / 2)?;
    until(job, input, |job| job.backed_up_epoch().is_some())?;
    switch(dir, None);
    send(job, input, numbers / 2, numbers)
}

#[test]
fn a_bucket_that_is_lost_takes_only_the_backups_along() {
    if let Some(asked) = asked() {
        let script = if asked.numbers == 100 { is_lost } else { plain };
        return with_bucket(asked, script).unwrap();
    }
    let this = "a_bucket_that_is_lost_takes_only_the_backups_along";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    switch(dir, Some("one"));
    let said = runs(this, dir, 1, 100, RETURNED);
    assert!(said.contains(NOT_MADE) && said.contains(WARNING), "{said}");
    assert_eq!(lines(dir), truth(100));
    // Started again it goes on, also where the bucket was away from the beginning.
    let said = runs(this, dir, 1, 150, RETURNED);
    assert!(said.contains(NOT_MADE), "{said}");
    assert_eq!(lines(dir), truth(150));
    // In a new bucket everything is backed up anew.
    switch(dir, Some("two"));
    runs(this, dir, 1, 200, 0);
    restore_from_bucket(dir);
    runs(this, dir, 1, 250, 0);
    assert_eq!(lines(dir), truth(250));
}

/// Somebody else takes the backups over while the job runs.
fn is_fenced(
    job: &mut Job,
    input: &mut EpochInput<(u64, u64)>,
    dir: &Path,
    numbers: u64,
) -> Result<(), Error> {
    send(job, input, 0, numbers / 2)?;
    until(job, input, |job| job.backed_up_epoch().is_some())?;
    let part = bucket(dir).within("generation-00000001").within("part-0000-of-0001");
    let owner = BackupOwner { store_id: StoreId(7), incarnation: Incarnation(1) };
    let _other = BackupWriter::open(&part, &options(), owner).unwrap();
    until(job, input, |job| job.backup_error().is_some())?;
    let fenced = input.epoch();
    send(job, input, numbers / 2, numbers)?;
    let (error, backed_up) = (job.backup_error(), job.backed_up_epoch().unwrap());
    assert!(matches!(error, Some(BackupError::Fenced(_))), "{error:?}");
    assert!(backed_up < fenced, "{backed_up} {fenced}");
    Ok(())
}

#[test]
fn a_job_whose_backups_somebody_else_takes_over_makes_none_until_it_is_started_again() {
    if let Some(asked) = asked() {
        let script = if asked.numbers == 100 { is_fenced } else { plain };
        return with_bucket(asked, script).unwrap();
    }
    let this = "a_job_whose_backups_somebody_else_takes_over_makes_none_until_it_is_started_again";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    switch(dir, Some("one"));
    let said = runs(this, dir, 1, 100, RETURNED);
    let why = "store 0000000000000007 has taken over the backups here";
    assert!(said.contains(NOT_MADE) && said.contains(why), "{said}");
    // It is tried once: no later try could succeed.
    assert_eq!(said.matches(WARNING).count(), 1, "{said}");
    assert_eq!(lines(dir), truth(100));
    runs(this, dir, 1, 200, 0);
    restore_from_bucket(dir);
    runs(this, dir, 1, 250, 0);
    assert_eq!(lines(dir), truth(250));
}
