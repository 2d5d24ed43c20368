//! A job with two sinks is restored from a backup that is older than what they have.
//!
//! Sinks were cut back one after the other, each worker's by itself. Where one could not be, the job did not start, but those
//! before it had been cut: they had lost rows, and no newer backup would take them any more. Found by reading.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::env;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant};

use laminar_storage::Epoch;
use laminar_timely::{
    Cluster, Config, CutBack, EXIT_FAILED, EpochSink, Error, FileSink, OtherSize, SinkPart, run,
};

use support::backups::{newest, options, place, restore};

/// Set in the processes that run the job: the directory, and what else there is to say.
const DIR: &str = "LAMINAR_TEST_DIR";
const JOB: &str = "LAMINAR_TEST_JOB";

/// How a process ends that is killed while it cuts back.
const KILLED: i32 = 7;

/// What the last part of the sink "second" does when it is to be cut back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    Can,
    Cannot,
    /// It could only give everything back.
    OnlyToNothing,
    KilledWhenAsked,
    KilledBefore,
    KilledAfter,
}

const ALL: [Second; 6] = [
    Second::Can,
    Second::Cannot,
    Second::OnlyToNothing,
    Second::KilledWhenAsked,
    Second::KilledBefore,
    Second::KilledAfter,
];

type Sums = FileSink<(u64, u64)>;

/// A sink, and the file of another one that nobody may change when this one refuses.
struct Target(Sums, Second, PathBuf);

fn open(dir: &Path, name: &str, part: SinkPart, second: Second) -> Result<Target, Error> {
    let out = dir.join(name);
    let sums = FileSink::open(&out, "sums", part, |(key, sum): &(u64, u64), line| {
        line.extend_from_slice(format!("{key} {sum}\n").as_bytes());
    })?;
    let other = Sums::path(&dir.join("first"), SinkPart { generation: 1, worker: 0 });
    Ok(Target(sums, if name == "second" && is_last(dir, part) { second } else { Second::Can }, other))
}

/// Whether this is the last part that the job had in its first size.
fn is_last(dir: &Path, part: SinkPart) -> bool {
    let next = SinkPart { worker: part.worker + 1, ..part };
    part.generation == 1 && !Sums::path(&dir.join("first"), next).exists()
}

impl EpochSink<(u64, u64)> for Target {
    fn committed(&self) -> Epoch {
        self.0.committed()
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<(u64, u64)>)]) -> io::Result<()> {
        self.0.commit(epochs)
    }

    fn prepare_cut_back(&mut self, epoch: Epoch) -> io::Result<CutBack<Self>> {
        let Self(sums, second, other) = self;
        let second = *second;
        match second {
            Second::KilledWhenAsked => exit(KILLED),
            Second::Cannot => {
                // Whoever cuts without waiting for this answer has time to do it.
                let (begun, size) = (Instant::now(), fs::metadata(&other).unwrap().len());
                while begun.elapsed() < Duration::from_secs(1) && fs::metadata(&other).unwrap().len() == size
                {
                    thread::sleep(Duration::from_millis(5));
                }
                return Err(io::Error::other("its rows do not say of which epoch they are"));
            }
            _ => {}
        }
        let epoch = if second == Second::OnlyToNothing { Epoch::ZERO } else { epoch };
        let CutBack { to, cut } = sums.prepare_cut_back(epoch)?;
        Ok(CutBack::new(to, move |sink: &mut Self| {
            if second == Second::KilledBefore {
                exit(KILLED);
            }
            cut(&mut sink.0)?;
            if second == Second::KilledAfter {
                exit(KILLED);
            }
            Ok(())
        }))
    }
}

/// In a process that is to run the job: runs it. Sums numbers by their remainder, one number in an epoch, into two sinks.
fn is_process() -> bool {
    let (Ok(dir), Ok(line)) = (env::var(DIR), env::var(JOB)) else { return false };
    let dir = PathBuf::from(dir);
    let mut words = line.split_whitespace();
    let mut number = || words.next().unwrap().parse::<usize>().unwrap();
    let (process, workers, numbers, second) = (number(), number(), number() as u64, ALL[number()]);
    let cluster = Cluster { process, workers, addresses: words.map(str::to_owned).collect() };
    let config = Config::new(dir.join("state"), "sums").other_size(OtherSize::Rescale);
    // There is one backup at the end, and one where another size begins.
    let config = config.backup_to(&place(&dir), &options(), Duration::from_secs(3600));
    let ended = run(&cluster, &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
            let sums = flow.fold(stream, "sums", |sum: &mut u64, n| *sum += n)?;
            for name in ["first", "second"] {
                flow.sink(sums.clone(), name, |part| open(&dir, name, part, second))?;
            }
            Ok(input)
        })?;
        for n in job.source_offset("numbers").unwrap_or(0)..numbers {
            if job.index() == 0 {
                input.send((n % 7, n));
                input.set_source_offset("numbers", n + 1);
            }
            input.seal()?;
        }
        input.finish()
    });
    ended.unwrap();
    true
}

/// How many processes, and workers of each.
type Size = (usize, usize);

/// Runs the job on processes of their own. A port that somebody else took in between is no reason to fail.
fn runs(test: &str, dir: &Path, (processes, workers): Size, numbers: u64, second: Second) -> Vec<Output> {
    let second = ALL.iter().position(|one| *one == second).unwrap();
    for _ in 0..5 {
        let several = if processes > 1 { processes } else { 0 };
        let listeners: Vec<_> = (0..several).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        drop(listeners);
        let start = |process: usize| {
            let line = format!("{process} {workers} {numbers} {second} {}", addresses.join(" "));
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", test, "--nocapture"]).env(DIR, dir).env(JOB, line);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let started: Vec<_> = (0..processes).map(start).collect();
        let ended: Vec<_> = started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let taken = ["could not listen", "could not be reached in time"];
        if !taken.iter().any(|sign| said(&ended).contains(sign)) {
            return ended;
        }
    }
    panic!("five times a port was taken in between");
}

fn said(ended: &[Output]) -> String {
    ended.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect()
}

fn goes_well(test: &str, dir: &Path, size: Size, numbers: u64, second: Second) {
    let ended = runs(test, dir, size, numbers, second);
    assert!(ended.iter().all(|output| output.status.success()), "{}", said(&ended));
}

fn is_killed(test: &str, dir: &Path, size: Size, second: Second) {
    let ended = runs(test, dir, size, 250, second);
    assert!(ended.iter().any(|output| output.status.code() == Some(KILLED)), "{second:?}: {}", said(&ended));
}

/// Files of both sinks in the first size of the job, with their contents.
fn files(dir: &Path) -> [Vec<(PathBuf, Vec<u8>)>; 2] {
    ["first", "second"].map(|name| {
        let paths = fs::read_dir(dir.join(name)).unwrap().map(|entry| entry.unwrap().path());
        let first = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("g0001-"));
        let mut files: Vec<_> = first.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    })
}

/// All lines of a sink.
fn lines(dir: &Path, name: &str) -> Vec<String> {
    let paths = fs::read_dir(dir.join(name)).unwrap().map(|entry| entry.unwrap().path());
    let rows = paths.filter(|path| path.extension().is_some_and(|e| e == "rows"));
    let text: String = rows.map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Both sinks have what comes out when nothing happens.
fn is_exact(dir: &Path, numbers: u64) {
    let mut sums = [0; 7];
    let mut truth: Vec<_> = (0..numbers)
        .map(|n| {
            let sum = &mut sums[usize::try_from(n % 7).unwrap()];
            *sum += n;
            format!("{} {sum}", n % 7)
        })
        .collect();
    truth.sort();
    for name in ["first", "second"] {
        assert_eq!(lines(dir, name), truth, "{name}");
    }
}

/// The epoch that a part of the sink "second" has committed.
fn committed(dir: &Path, part: &str) -> u64 {
    let commits = fs::read(dir.join("second").join(format!("{part}.commits"))).unwrap();
    let (_, last) = commits.split_at(commits.len() - 24);
    u64::from_le_bytes(last[..8].try_into().unwrap())
}

/// The job runs to a backup, and further. It is restored from that backup in another size or the same, and the last part of the
/// second sink cannot be cut back to it: the job does not start, and no sink has changed, so that a newer backup goes on.
fn is_refused_and_changes_nothing(test: &str, size: Size, restored: Size, second: Second) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(test, dir, size, 200, Second::Can);
    let older = newest(dir);
    goes_well(test, dir, size, 250, Second::Can);
    let (newer, before) = (newest(dir), files(dir));
    let part = format!("g0001-w{:04}", size.0 * size.1 - 1);
    let (has, point) = (committed(dir, &part), older.id.epoch());
    assert!(has > point.0, "{has} {point}");
    let why = if second == Second::Cannot {
        "its rows do not say of which epoch they are"
    } else {
        "it would have rows up to epoch 0 only, and those up to"
    };
    let why = format!(
        "the sink \"second\" of {part} has epoch {has}, but the state goes only to {point}, from a backup, and it cannot be cut \
         back: {why}"
    );
    restore(dir, &older);
    // Each time it is started.
    for _ in 0..2 {
        let ended = runs(test, dir, restored, 250, second);
        let said = said(&ended);
        assert!(ended.iter().all(|output| !output.status.success()), "{said}");
        assert!(ended.iter().any(|output| output.status.code() == Some(EXIT_FAILED)), "{said}");
        assert!(said.contains(&why), "{why}\n{said}");
        let remedy = format!("No sink was changed. Restore a backup of epoch {has} or a later one");
        assert!(said.contains(&remedy), "{said}");
        assert!(files(dir) == before, "{size:?} {restored:?}: a sink was changed");
        // The first backup of another size would not know of these sinks, and would be the newest.
        assert_eq!(
            newest(dir).id,
            newer.id,
            "{size:?} {restored:?}: backed up before the sinks are cut back"
        );
    }
    restore(dir, &newer);
    goes_well(test, dir, restored, 300, second);
    is_exact(dir, 300);
}

#[test]
fn no_sink_is_cut_back_when_a_later_one_cannot_be() {
    if is_process() {
        return;
    }
    let this = "no_sink_is_cut_back_when_a_later_one_cannot_be";
    for second in [Second::Cannot, Second::OnlyToNothing] {
        is_refused_and_changes_nothing(this, (1, 1), (1, 1), second);
    }
}

#[test]
fn no_sink_of_any_worker_is_cut_back_when_that_of_one_cannot_be() {
    if is_process() {
        return;
    }
    let this = "no_sink_of_any_worker_is_cut_back_when_that_of_one_cannot_be";
    for (size, restored) in [((1, 2), (1, 2)), ((2, 1), (2, 1)), ((1, 2), (1, 3)), ((2, 1), (1, 1))] {
        is_refused_and_changes_nothing(this, size, restored, Second::Cannot);
    }
}

#[test]
fn a_kill_between_the_cuts_of_two_sinks_loses_nothing() {
    if is_process() {
        return;
    }
    let this = "a_kill_between_the_cuts_of_two_sinks_loses_nothing";
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    goes_well(this, dir, (1, 1), 200, Second::Can);
    let (older, [first_then, second_then]) = (newest(dir), files(dir));
    goes_well(this, dir, (1, 1), 250, Second::Can);
    let [first, second] = files(dir);
    restore(dir, &older);
    is_killed(this, dir, (1, 1), Second::KilledWhenAsked);
    assert!(files(dir) == [first.clone(), second.clone()], "it was only asked");
    // The second time the first one needs no cut.
    for _ in 0..2 {
        is_killed(this, dir, (1, 1), Second::KilledBefore);
        assert!(files(dir) == [first_then.clone(), second.clone()]);
    }
    is_killed(this, dir, (1, 1), Second::KilledAfter);
    assert!(files(dir) == [first_then, second_then]);
    goes_well(this, dir, (1, 1), 250, Second::Can);
    let rows = |files: Vec<(PathBuf, Vec<u8>)>| {
        let rows = files.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rows"));
        rows.collect::<Vec<_>>()
    };
    // The bytes of a run that was never restored; only epochs have other numbers.
    assert!(files(dir).map(rows) == [first, second].map(rows));
    is_exact(dir, 250);
}

#[test]
fn a_kill_while_workers_cut_their_sinks_back_loses_nothing() {
    if is_process() {
        return;
    }
    let this = "a_kill_while_workers_cut_their_sinks_back_loses_nothing";
    for (size, restored) in [((1, 2), (1, 2)), ((2, 1), (2, 1)), ((1, 2), (1, 3)), ((2, 1), (1, 1))] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        goes_well(this, dir, size, 200, Second::Can);
        let older = newest(dir);
        goes_well(this, dir, size, 250, Second::Can);
        restore(dir, &older);
        is_killed(this, dir, restored, Second::KilledBefore);
        is_killed(this, dir, restored, Second::KilledAfter);
        goes_well(this, dir, restored, 250, Second::Can);
        is_exact(dir, 250);
    }
}
