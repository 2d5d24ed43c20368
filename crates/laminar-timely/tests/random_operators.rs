//! Operators that are not deterministic: state and rows belong together all the same, whichever process is killed and when, because
//! nothing is computed anew for rows that are durable.
//!
//! Each value of a key draws a new random state, and its row says the state before and after. So the rows of a key are a chain that
//! ends in the state that is kept. A value that was computed twice, or whose row was lost, breaks it, or makes a row too many or too
//! few.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use laminar_storage::{Epoch, Settings};
use laminar_timely::{
    Cluster, Codec, Config, EXIT_FAILED, EpochInput, EpochSink, Error, FileSink, Flow, Job, JobReader,
    Mistakes, run,
};

use support::{asked, command};

/// Nothing here takes as long. It ends what would never end.
const HUNG: Duration = Duration::from_secs(120);

/// Values go through an operator of so many keys, and then through one of so many.
const KEYS: u64 = 40;
const GROUPS: u64 = 7;

/// Epochs that each worker has before a kill, and after the last one.
const EPOCHS: u64 = 25;

/// When processes are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    /// All of them while they begin.
    AtTheBeginning,
    /// One when half of what is new is in the output. The others end by themselves.
    OneOfThem,
    /// All of them when the rows of an epoch are durable, and a sink does not have them.
    BeforeACommit,
    /// All of them when a sink has the rows of an epoch, and the job does not know that.
    AfterACommit,
    Never,
}

use Kill::{AfterACommit, AtTheBeginning, BeforeACommit, Never, OneOfThem};

const KILLS: [Kill; 12] = [
    OneOfThem,
    BeforeACommit,
    AtTheBeginning,
    AfterACommit,
    OneOfThem,
    AtTheBeginning,
    BeforeACommit,
    BeforeACommit,
    AfterACommit,
    AfterACommit,
    OneOfThem,
    OneOfThem,
];

/// One run of the job, until it is killed or ends.
#[derive(Clone, Copy, Debug)]
struct Go {
    processes: usize,
    workers: usize,
    /// So many epochs of each worker are to be there at its end.
    until: u64,
    kill: Kill,
    /// A deliberate mistake.
    forgetful: bool,
}

impl Go {
    fn of_size(processes: usize, workers: usize) -> Self {
        Self { processes, workers, until: 0, kill: Never, forgetful: false }
    }

    /// The run after it.
    fn next(self, kill: Kill) -> Self {
        Self { until: self.until + EPOCHS, kill, ..self }
    }

    fn rows(&self, until: u64) -> usize {
        let one: usize = (0..until).map(|epoch| values(epoch).count()).sum();
        self.processes * self.workers * one
    }

    /// For the processes, which get it in a file. Ports are free now.
    fn write(&self, dir: &Path) {
        let Self { workers, until, kill, forgetful, .. } = self;
        let several = if self.processes > 1 { self.processes } else { 0 };
        let listeners: Vec<_> = (0..several).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let line = format!("{workers} {until} {kill:?} {forgetful} {}", addresses.join(" "));
        fs::write(dir.join("go"), line).unwrap();
    }

    /// What [`Self::write`] wrote, and the addresses.
    fn read(dir: &Path) -> (Self, Vec<String>) {
        let line = fs::read_to_string(dir.join("go")).unwrap();
        let mut words = line.split_whitespace();
        let [workers, until, kill, forgetful] = [(); 4].map(|()| words.next().unwrap());
        let addresses: Vec<_> = words.map(str::to_owned).collect();
        let go = Self {
            processes: addresses.len().max(1),
            workers: workers.parse().unwrap(),
            until: until.parse().unwrap(),
            kill: KILLS.into_iter().find(|known| format!("{known:?}") == kill).unwrap_or(Never),
            forgetful: forgetful.parse().unwrap(),
        };
        (go, addresses)
    }
}

/// What a worker sends in an epoch: up to four values of different keys, or none.
fn values(epoch: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..epoch % 5).map(move |n| ((epoch * 31 + n * 7) % KEYS, epoch))
}

/// A key with its state before and after a value.
type Step = (u64, u64, u64);

/// A value of a key makes a new state of it, which nobody can foresee.
fn step(key: &u64, value: u64, state: &mut Option<u64>, out: &mut Vec<(u64, Step)>) {
    let old = state.unwrap_or(0);
    let new = RandomState::new().hash_one((old, value)) | 1;
    *state = Some(new);
    out.push((key % GROUPS, (*key, old, new)));
}

/// A group counts steps, and forgets them where the new state says so. Returns how many there were, and keeps the last one.
fn count(state: &mut Option<(u64, u64)>, new: u64) -> u64 {
    let (count, _) = state.unwrap_or((0, 0));
    *state = Some((count + 1, new)).filter(|_| !new.is_multiple_of(5));
    count
}

/// Writes rows to a file, and tells when it is time for a kill.
struct Sink {
    file: FileSink<String>,
    kill: Kill,
    dir: PathBuf,
}

impl Sink {
    /// Waits to be killed, if it is now.
    fn dies(&self, kill: Kill) -> io::Result<()> {
        if self.kill == kill {
            fs::write(self.dir.join("now"), "")?;
            sleep(HUNG);
            return Err(io::Error::other("nobody killed it"));
        }
        Ok(())
    }
}

impl EpochSink<String> for Sink {
    fn committed(&self) -> Epoch {
        self.file.committed()
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<String>)]) -> io::Result<()> {
        self.dies(BeforeACommit)?;
        self.file.commit(epochs)?;
        self.dies(AfterACommit)
    }
}

/// The job, in a process of its own.
fn chains(dir: &Path, process: u64) -> Result<(), Error> {
    let (go, addresses) = Go::read(dir);
    // Small, so that there are several segments and checkpoints.
    let settings = Settings {
        segment_bytes: 16 << 10,
        preallocate_bytes: 4 << 10,
        checkpoint_wal_bytes: 32 << 10,
        ..Settings::default()
    };
    let mistakes = Mistakes { forget_waiting_rows: go.forgetful, ..Mistakes::default() };
    let ahead = 1 + go.until / EPOCHS % 3;
    let config = Config::new(dir.join("state"), "job").settings(settings).mistakes(mistakes);
    let config = config.max_ahead_epochs(ahead);
    let cluster = Cluster { process: usize::try_from(process).unwrap(), workers: go.workers, addresses };
    fs::write(dir.join(format!("begins-{process}")), "").unwrap();
    let dir = dir.to_owned();
    run(&cluster, &config, move |job| {
        let input = job.dataflow(|flow| build(flow, go.kill, &dir))?;
        send(job, input, go)
    })
}

fn build(flow: &mut Flow<'_>, kill: Kill, dir: &Path) -> Result<EpochInput<(u64, u64)>, Error> {
    let (input, rows) = flow.input::<(u64, u64)>("values")?;
    let steps = flow.map_with_state(rows, "steps", step)?;
    let lines = flow.map_with_state(steps, "counts", |_, (key, old, new): Step, state, out| {
        out.push(format!("{key} {old} {new} {}", count(state, new)));
    })?;
    let format = |line: &String, file: &mut Vec<u8>| file.extend_from_slice(format!("{line}\n").as_bytes());
    flow.sink(lines, "out", |part| {
        let file = FileSink::open(dir.join("out"), "job", part, format)?;
        Ok(Sink { file, kill, dir: dir.to_owned() })
    })?;
    Ok(input)
}

/// Each worker has a source of its own. It ends after the last kill only: a process that is to be killed is there still.
fn send(job: &mut Job, mut input: EpochInput<(u64, u64)>, go: Go) -> Result<(), Error> {
    let source = format!("source {}", job.index());
    for epoch in job.source_offset(&source).unwrap_or(0)..go.until {
        values(epoch).for_each(|value| input.send(value));
        input.set_source_offset(&source, epoch + 1);
        input.seal()?;
    }
    if go.kill == Never {
        return input.finish();
    }
    let sent = Instant::now();
    while sent.elapsed() < HUNG {
        // What the others sent is not durable before.
        input.seal()?;
        input.idle(Duration::from_millis(1));
    }
    panic!("nobody killed it")
}

/// Processes of a run, none of which outlives it.
struct Processes<'a> {
    children: Vec<Child>,
    dir: &'a Path,
}

impl<'a> Processes<'a> {
    fn start(test: &str, dir: &'a Path, go: Go) -> Self {
        go.write(dir);
        let mut processes = Self { children: Vec::new(), dir };
        let _ = fs::remove_file(dir.join("now"));
        for process in 0..go.processes {
            let _ = fs::remove_file(dir.join(format!("begins-{process}")));
            let log = File::create(processes.log(process)).unwrap();
            let mut command = command(test, dir, process as u64);
            command.stdout(log.try_clone().unwrap()).stderr(log);
            processes.children.push(command.spawn().unwrap());
        }
        processes
    }

    fn log(&self, process: usize) -> PathBuf {
        self.dir.join(format!("{process}.log"))
    }

    fn said(&self) -> String {
        (0..self.children.len()).map(|process| fs::read_to_string(self.log(process)).unwrap()).collect()
    }

    /// Did somebody else take a port before they did?
    fn found_a_port_taken(&self) -> bool {
        ["could not listen", "could not be reached in time"].iter().any(|sign| self.said().contains(sign))
    }

    /// Waits for it. False when a process has ended before.
    fn wait_until(&mut self, has_come: impl Fn() -> bool) -> bool {
        let started = Instant::now();
        loop {
            if has_come() {
                return true;
            }
            if self.children.iter_mut().any(|child| child.try_wait().unwrap().is_some()) {
                return false;
            }
            assert!(started.elapsed() < HUNG, "{}", self.said());
            sleep(Duration::from_millis(1));
        }
    }

    /// How each of them ended.
    fn wait(&mut self) -> Vec<ExitStatus> {
        let started = Instant::now();
        loop {
            let ended: Option<Vec<_>> =
                self.children.iter_mut().map(|child| child.try_wait().unwrap()).collect();
            if let Some(ended) = ended {
                return ended;
            }
            assert!(started.elapsed() < HUNG, "{}", self.said());
            sleep(Duration::from_millis(1));
        }
    }

    /// Kills these, waits for all, and returns how many were living.
    fn kill(&mut self, which: &[usize]) -> usize {
        for process in which {
            self.children[*process].kill().unwrap();
        }
        let mut killed = 0;
        for (process, status) in self.wait().into_iter().enumerate() {
            // Who was killed has no code. The others lost the connection, which may come first.
            let was_killed = which.contains(&process) && status.code().is_none();
            assert!(was_killed || status.code() == Some(EXIT_FAILED), "{process}: {status}\n{}", self.said());
            killed += usize::from(was_killed);
        }
        killed
    }
}

impl Drop for Processes<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tries it again where a port was taken, which is no reason to fail.
fn with_free_ports<T>(mut go: impl FnMut() -> Option<T>) -> T {
    (0..5).find_map(|_| go()).unwrap_or_else(|| panic!("five times a port was taken in between"))
}

/// Runs the job until it is time, and returns how many living processes were killed: one at least.
fn is_killed(test: &str, dir: &Path, go: Go) -> usize {
    let half = usize::midpoint(go.rows(go.until - EPOCHS), go.rows(go.until));
    let has_come = || match go.kill {
        AtTheBeginning => (0..go.processes).all(|process| dir.join(format!("begins-{process}")).exists()),
        OneOfThem => lines(&rows(dir)) >= half,
        BeforeACommit | AfterACommit => dir.join("now").exists(),
        Never => false,
    };
    let all: Vec<_> = (0..go.processes).collect();
    let victim = usize::try_from(go.until / EPOCHS).unwrap() % go.processes;
    let which = if go.kill == OneOfThem { &all[victim..=victim] } else { &all };
    with_free_ports(|| {
        let mut processes = Processes::start(test, dir, go);
        let killed = if processes.wait_until(has_come) { processes.kill(which) } else { 0 };
        assert!(killed > 0 || processes.found_a_port_taken(), "{:?}: {}", go.kill, processes.said());
        Some(killed).filter(|killed| *killed > 0)
    })
}

/// Runs the job to its end.
fn ends(test: &str, dir: &Path, go: Go) {
    with_free_ports(|| {
        let mut processes = Processes::start(test, dir, go);
        let well = processes.wait().iter().all(ExitStatus::success);
        assert!(well || processes.found_a_port_taken(), "{}", processes.said());
        well.then_some(())
    });
}

/// What is in the files of the output.
fn rows(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir.join("out")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let rows = files.filter(|path| path.extension().is_some_and(|extension| extension == "rows"));
    rows.map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn lines(texts: &[String]) -> usize {
    texts.iter().map(|text| text.lines().count()).sum()
}

/// Where the chains of all keys end.
#[derive(Default)]
struct Ends {
    steps: BTreeMap<u64, u64>,
    counts: BTreeMap<u64, (u64, u64)>,
}

impl Ends {
    /// Goes on by a row, if that is where its chain goes on.
    fn follow(&mut self, row: &str) -> Result<(), String> {
        let numbers: Vec<u64> = row.split(' ').map(|number| number.parse().unwrap()).collect();
        let [key, old, new, counted] = numbers.try_into().unwrap();
        let before = self.steps.insert(key, new).unwrap_or(0);
        if before != old {
            return Err(format!("key {key} had {before} and goes on from {old}"));
        }
        let group = key % GROUPS;
        let mut state = self.counts.remove(&group);
        let before = count(&mut state, new);
        self.counts.extend(state.map(|state| (group, state)));
        if before != counted {
            return Err(format!("group {group} had {before} steps and goes on from {counted}"));
        }
        Ok(())
    }
}

fn bytes(value: &impl Codec) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

/// What an operator keeps, as [`JobReader`] has it.
fn kept<V: Codec>(states: &BTreeMap<u64, V>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    states.iter().map(|(key, state)| (bytes(key), bytes(state))).collect()
}

/// Whether each row is there once, and the chains are whole and end in the state.
fn check(dir: &Path, go: Go) -> Result<(), String> {
    let rows = rows(dir);
    let mut ends = Ends::default();
    for row in rows.iter().flat_map(|text| text.lines()) {
        ends.follow(row)?;
    }
    let (count, expected) = (lines(&rows), go.rows(go.until));
    if count != expected {
        return Err(format!("there are {count} rows in place of {expected}"));
    }
    let reader = JobReader::open(dir.join("state")).map_err(|error| error.to_string())?;
    if reader.state("steps") != kept(&ends.steps) || reader.state("counts") != kept(&ends.counts) {
        return Err("the chains do not end in the state".to_owned());
    }
    Ok(())
}

/// Kills the job again and again before it may come to its end.
fn are_whole(test: &str, processes: usize, workers: usize) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut go, mut killed) = (Go::of_size(processes, workers), 0);
    for kill in KILLS {
        go = go.next(kill);
        killed += is_killed(test, dir, go);
    }
    assert!(killed >= KILLS.len(), "{killed}");
    go = go.next(Never);
    ends(test, dir, go);
    assert_eq!(check(dir, go), Ok(()));
}

#[test]
fn random_states_and_rows_of_a_process_that_is_killed_belong_together() {
    if let Some((dir, process)) = asked() {
        return chains(&dir, process).unwrap();
    }
    are_whole("random_states_and_rows_of_a_process_that_is_killed_belong_together", 1, 2);
}

#[test]
fn random_states_and_rows_of_two_processes_that_are_killed_belong_together() {
    if let Some((dir, process)) = asked() {
        return chains(&dir, process).unwrap();
    }
    are_whole("random_states_and_rows_of_two_processes_that_are_killed_belong_together", 2, 1);
}

#[test]
fn random_states_and_rows_of_two_processes_with_two_workers_belong_together() {
    if let Some((dir, process)) = asked() {
        return chains(&dir, process).unwrap();
    }
    are_whole("random_states_and_rows_of_two_processes_with_two_workers_belong_together", 2, 2);
}

/// They are in the state, and not in the output: a test that did not see that would not be worth much.
#[test]
fn rows_that_a_sink_is_not_given_again_break_a_chain() {
    if let Some((dir, process)) = asked() {
        return chains(&dir, process).unwrap();
    }
    let test = "rows_that_a_sink_is_not_given_again_break_a_chain";
    let checked = [false, true].map(|forgetful| {
        let dir = tempfile::tempdir().unwrap();
        let go = Go::of_size(1, 2).next(BeforeACommit);
        is_killed(test, dir.path(), go);
        let go = Go { forgetful, ..go.next(Never) };
        ends(test, dir.path(), go);
        check(dir.path(), go)
    });
    assert!(
        checked[0].is_ok() && checked[1].as_ref().is_err_and(|e| e.contains("goes on from")),
        "{checked:?}"
    );
}
