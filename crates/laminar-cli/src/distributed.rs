//! `laminar run --workers W --processes P`: the job on the workers of several processes.
//!
//! The first worker of process 0 reads and parses the input, one batch after the other, and sends each record to the worker that
//! owns its key; so the order of the input is that in which records are applied, and results are those of a run without
//! `--workers`. State and the position in the input are sealed together, on all workers, and are durable together.

mod epochs;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use laminar_timely::{
    Cluster, Config, EpochInput, Error, Job as TimelyJob, JobReader, KeyedState, OtherSize, owner_of,
    run as run_job,
};
use serde_json::{Value, json};

use crate::agg::value::VALUE_FORMAT;
use crate::agg::{Plan, bytes::Cursor};
use crate::args::RunArgs;
#[cfg(feature = "object-store")]
use crate::backup::lag::Lag;
#[cfg(feature = "object-store")]
use crate::backup::running::JobBackedUp;
use crate::engine::store::StoreEngine;
use crate::engine::{Report, Router};
use crate::error::{CliError, Result};
use crate::input::plan::{ReadUpTo, forget_unread};
use crate::input::sink::OnBad;
use crate::input::source::{Next, Position, Source, step_path};
use crate::input::{Batch, Parser, Part, Sink};
use crate::pipeline::committed::Committed;
use crate::pipeline::cores::merge_failed;
use crate::pipeline::live::lock;
use crate::pipeline::ownership::{Claim, Owned};
use crate::pipeline::sequencer::{bad_record, place};
use crate::pipeline::{OnError, Settings};
use epochs::{Epochs, ahead_bytes};

/// The operator that keeps the values of all keys.
const OPERATOR: &str = "aggregate";
/// What the state says it is; which job of `laminar run` it is, its own mark says.
const JOB: &str = "laminar run";
/// `--stall-timeout`, where it is not given.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What the workers say.
type OnWorker<T> = std::result::Result<T, Error>;

/// What a job did, as process 0 knows it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub after: Committed,
    pub before: Committed,
    /// Records of this run.
    pub records: u64,
    pub seconds: f64,
    pub recovered_epoch: u64,
    /// The one that the state is at the end of.
    pub epoch: u64,
    pub finished: bool,
    pub first_bad: Option<String>,
    pub stopped_by: Option<CliError>,
    /// Everything is done and durable here, and the last backup is not made.
    pub not_backed_up: Option<CliError>,
    #[cfg(feature = "object-store")]
    pub backups: Option<JobBackedUp>,
}

/// Which processes there are, and which this one is.
pub fn cluster(args: &RunArgs, workers: u16) -> Result<Cluster> {
    let processes = usize::from(args.processes.unwrap_or(1));
    let process = usize::from(args.process.unwrap_or(0));
    if args.on_error != OnError::Stop && args.on_error != OnError::Skip {
        return Err(CliError::usage("--on-error dead-letter does not work with --workers")
            .remedy("Use --on-error skip, or run the job without --workers."));
    }
    if processes == 1 {
        return Ok(Cluster::single(usize::from(workers)));
    }
    if args.process.is_none() {
        return Err(CliError::usage("--process is missing: which of the processes is this one?")
            .remedy("Start each process with its own number, from 0."));
    }
    let Some(path) = &args.hosts else {
        return Err(CliError::usage("--hosts is missing: where do the processes listen?")
            .remedy("Name a file with a line HOST:PORT for each process, the same for all."));
    };
    let text = fs::read_to_string(path).map_err(|e| CliError::io("read", path, &e))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let addresses: Vec<_> = lines.map(str::to_owned).collect();
    if addresses.len() != processes {
        let what =
            format!("{} has {} addresses, and --processes is {processes}", path.display(), addresses.len());
        return Err(CliError::usage(what).remedy("Write one line HOST:PORT for each process."));
    }
    Ok(Cluster { process, workers: usize::from(workers), addresses })
}

/// A state directory is that of a job on workers, or that of one without; it does not become the other.
pub fn check_kind(state: &Path, on_workers: bool) -> Result<()> {
    if !on_workers {
        return refuse_job(state, "Run it with --workers as before, or name another --state directory.");
    }
    if state.join("wal").exists() || state.join("checkpoints").exists() {
        return Err(CliError::failure(format!(
            "{} is the state of a job that runs without --workers",
            state.display()
        ))
        .remedy("Run it without --workers as before, or name another --state directory."));
    }
    Ok(())
}

/// Refuses the state of a job on workers, and says what to do instead.
pub fn refuse_job(state: &Path, remedy: &str) -> Result<()> {
    if !JobReader::is_job(state) {
        return Ok(());
    }
    Err(CliError::failure(format!("{} is the state of a job that runs with --workers", state.display()))
        .remedy(remedy))
}

/// Runs this process' part. What the job did comes from process 0.
pub fn run(
    settings: &Settings,
    cluster: &Cluster,
    args: &RunArgs,
    stop: Arc<AtomicBool>,
) -> Result<Option<Outcome>> {
    let claim = if cluster.process == 0 { Some(Claim::make::<StoreEngine>(settings)?) } else { None };
    if cluster.process != 0 {
        tell_when_asked_to_stop(cluster.process, Arc::clone(&stop));
    }
    let mut store = laminar_storage::Settings::default();
    if let Some(interval) = settings.checkpoint_interval {
        store.checkpoint_interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    }
    let other_size = if args.rescale { OtherSize::Rescale } else { OtherSize::Refuse };
    // Processes that aggregate different things would give nonsense together.
    let program = format!("{VALUE_FORMAT} {:?}", settings.plan.specs());
    let mut config =
        Config::new(&settings.state, JOB).settings(store).other_size(other_size).program(program);
    let limit = |timeout: Duration| Some(timeout).filter(|timeout| !timeout.is_zero());
    if let Some(timeout) = args.connect_timeout {
        config = config.connect_timeout(limit(timeout).unwrap_or(Duration::MAX));
    }
    if let Some(timeout) = args.start_timeout {
        config = config.start_timeout(limit(timeout));
    }
    let stall = limit(args.stall_timeout.unwrap_or(STALL_TIMEOUT));
    let ahead = ahead_bytes(&settings.plan);
    config = config.stall_timeout(stall).max_ahead_bytes(ahead);
    #[cfg(feature = "object-store")]
    let config = match &settings.backups {
        // Only process 0 has a `job.json` that is up to date.
        Some(backups) => {
            backups.on_workers(config, &settings.state, backed_up_every(settings), cluster.process == 0)
        }
        None => config,
    };
    let leader = claim.map(|claim| Leader { claim, settings: settings.clone(), stop, stall, ahead });
    let leader = Mutex::new(leader);
    let outcome = Arc::new(Mutex::new(None));
    let says = Arc::clone(&outcome);
    let plan = settings.plan.clone();
    let done = run_job(cluster, &config, move |job| {
        // The first worker of process 0 is the first of all.
        let leader = if job.index() == 0 { lock(&leader).take() } else { None };
        match leader {
            Some(leader) => *lock(&says) = Some(leader.lead(job, &plan)?),
            None => dataflow(job, &plan)?.finish()?,
        }
        Ok(())
    });
    let mut outcome = lock(&outcome).take();
    match (done.map_err(|error| (CliError::failure(error.to_string()), error)), &mut outcome) {
        #[cfg(feature = "object-store")]
        (Ok(()), Some(Outcome { epoch, backups: Some(backups), .. })) => backups.done(*epoch),
        (Ok(()), _) => {}
        #[cfg(feature = "object-store")]
        (Err((told, Error::Backup(_))), Some(outcome)) => {
            if let Some(backups) = &mut outcome.backups {
                backups.failed(told.what());
            }
            outcome.not_backed_up = Some(told);
        }
        (Err((told, _)), _) => return Err(told),
    }
    Ok(outcome)
}

/// Process 0 reads the input and so decides where it ends; any other goes on until then, and should not look as if it were deaf.
fn tell_when_asked_to_stop(process: usize, stop: Arc<AtomicBool>) {
    let tells = move || {
        while !stop.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = writeln!(
            std::io::stderr(),
            "laminar: process {process} ends when process 0 does: stop that one. A second signal ends this one at once, and the job \
             with it; nothing that is durable is lost."
        );
    };
    // Without it the signal is heard all the same.
    let _ = thread::Builder::new().name("laminar-stop".to_owned()).spawn(tells);
}

/// As often as checkpoints are made by time, or would be.
#[cfg(feature = "object-store")]
fn backed_up_every(settings: &Settings) -> Duration {
    let usual = Duration::from_millis(laminar_storage::Settings::default().checkpoint_interval_ms);
    settings.checkpoint_interval.filter(|interval| !interval.is_zero()).unwrap_or(usual)
}

/// Records of one batch and one worker: the worker, their keys, and what they contribute.
type Routed = (u64, (Vec<u8>, Vec<u8>));
type Input = EpochInput<Routed>;

fn dataflow(job: &mut TimelyJob, plan: &Plan) -> OnWorker<Input> {
    let plan = plan.clone();
    job.dataflow(move |flow| {
        let (input, parts) = flow.input::<Routed>("records")?;
        let mut value = Vec::new();
        flow.routed(parts, OPERATOR, move |rows, state, _: &mut Vec<()>| {
            rows.drain(..).try_for_each(|(_, (keys, values))| apply(&plan, &keys, &values, state, &mut value))
        })?;
        Ok(input)
    })
}

/// Applies the records of a batch that one worker owns.
fn apply(
    plan: &Plan,
    keys: &[u8],
    values: &[u8],
    state: &mut KeyedState<'_>,
    value: &mut Vec<u8>,
) -> OnWorker<()> {
    let told = |error: &CliError| Error::program(error.to_string(), "");
    let (mut keys, mut records) = (Cursor(keys), Cursor(values));
    while !keys.0.is_empty() {
        let cut = || told(&CliError::internal("a routed record is cut short"));
        let key = keys.text().ok_or_else(cut)?;
        let (records, value, mut failed) = (&mut records, &mut *value, None);
        let failure = &mut failed;
        state.update(key, move |old| {
            if let Err(error) = plan.merge(old, records, value) {
                // The key stays as it is; the process ends before the epoch is sealed.
                *failure = Some(error);
                value.clear();
                value.extend_from_slice(old?);
            }
            Some(value)
        })?;
        if let Some(error) = failed {
            return Err(told(&merge_failed(plan, key, error)));
        }
    }
    Ok(())
}

/// What the worker that reads the input needs.
struct Leader {
    claim: Claim,
    settings: Settings,
    stop: Arc<AtomicBool>,
    /// How long the others wait for something to become durable; none: for ever.
    stall: Option<Duration>,
    /// Bytes that the input may be ahead of that.
    ahead: u64,
}

impl Leader {
    /// Reads the input to its end. What is wrong with it or with the command is part of the outcome: the job ends in
    /// order then.
    fn lead(self, job: &mut TimelyJob, plan: &Plan) -> OnWorker<Outcome> {
        let Self { claim, settings, stop, stall, ahead } = self;
        let source_offsets = job.source_offsets().clone();
        let report = Report { source_offsets, epoch: job.recovery_point().get(), ..Report::default() };
        let mut outcome =
            Outcome { recovered_epoch: report.epoch, epoch: report.epoch, ..Outcome::default() };
        // Before the dataflow: a long file may have to be read again up to where it was read, and until the job has begun the others
        // wait as long as for a state that is opened.
        let owned = claim.settle(&settings, &report);
        let mut input = dataflow(job, plan)?;
        match owned {
            Ok(owned) => {
                if let Some(told) = &owned.told {
                    eprintln!("laminar: {told}");
                }
                let epochs = Epochs::new(settings.epoch, stall, ahead, Instant::now());
                Reading::new(&settings, owned, job, &mut input, &mut outcome, epochs).read(&stop)?;
                if let Err(error) = forget_what_was_not_read(&settings.state, &outcome.after) {
                    outcome.stopped_by.get_or_insert(error);
                }
            }
            Err(error) => outcome.stopped_by = Some(error),
        }
        // Before the input is finished: what all processes have backed up is not told afterwards.
        #[cfg(feature = "object-store")]
        if let Some(backups) = &settings.backups {
            let before = job.resume_epoch().get().saturating_sub(1);
            outcome.backups = Some(backups.of_job(job.backed_up_epoch(), before, outcome.epoch));
        }
        input.finish()?;
        Ok(outcome)
    }
}

/// What was not read of a file may still be repaired. Done while the directory is locked, so that no job is written over that was
/// saved later; after a crash the job goes on further in front, where the files are the same.
fn forget_what_was_not_read(state: &Path, after: &Committed) -> Result<()> {
    let Some(mut job) = crate::job::Job::load(state)? else { return Ok(()) };
    let read = after.position.map(|at| ReadUpTo { step: at.step as usize, offset: at.offset });
    if forget_unread(&mut job, read) {
        job.save(state)?;
    }
    Ok(())
}

/// The input on its way to the workers.
struct Reading<'a> {
    settings: &'a Settings,
    job: crate::job::Job,
    input: &'a mut Input,
    outcome: &'a mut Outcome,
    parser: Parser,
    sink: Sink,
    peers: usize,
    epochs: Epochs,
    #[cfg(feature = "object-store")]
    backups: Option<(&'a TimelyJob, Lag)>,
}

impl<'a> Reading<'a> {
    fn new(
        settings: &'a Settings,
        owned: Owned,
        workers: &'a TimelyJob,
        input: &'a mut Input,
        outcome: &'a mut Outcome,
        epochs: Epochs,
    ) -> Self {
        let Owned { job, before, .. } = owned;
        let peers = workers.peers();
        let on_bad = if settings.on_error == OnError::Stop { OnBad::Stop } else { OnBad::Skip };
        let owner = move |key: &[u8]| usize::try_from(owner_of(key) % peers as u64).unwrap_or(0);
        let parser = Parser::new(job.format, &job.key, &settings.plan.fields);
        let sink = Sink::new(Arc::new(settings.plan.clone()), Router::new(peers, owner), on_bad)
            .keys_up_to(KeyedState::KEY_LEN_MAX);
        outcome.after = before.clone();
        outcome.before = before;
        Self {
            settings,
            job,
            input,
            outcome,
            parser,
            sink,
            peers,
            epochs,
            #[cfg(feature = "object-store")]
            backups: settings
                .backups
                .is_some()
                .then(|| (workers, Lag::new(Instant::now(), backed_up_every(settings)))),
        }
    }

    fn read(&mut self, stop: &AtomicBool) -> OnWorker<()> {
        let started = Instant::now();
        let (job, state) = (self.job.clone(), self.settings.state.clone());
        let mut source = Source::new(job, state, self.outcome.before.position, self.settings.batch_len);
        while !stop.load(Ordering::Acquire) && self.outcome.stopped_by.is_none() {
            match source.next(Vec::new()) {
                Ok(Next::Batch { batch, end, lines }) => {
                    self.sink.start((0..self.peers).map(|_| Part::default()).collect());
                    self.parser.parse(&batch, &mut self.sink);
                    self.batch(&batch, end, lines)?;
                }
                Ok(Next::End) => {
                    self.outcome.finished = true;
                    break;
                }
                Ok(Next::Idle) => break,
                Err(error) => self.outcome.stopped_by = Some(error),
            }
            if self.epochs.ends(Instant::now()) {
                self.mark()?;
                #[cfg(feature = "object-store")]
                self.tell_of_backups();
            }
        }
        if self.epochs.is_dirty() {
            self.mark()?;
        }
        self.outcome.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Says that the backups stay behind, if they do.
    #[cfg(feature = "object-store")]
    fn tell_of_backups(&mut self) {
        let Some((job, lag)) = &mut self.backups else { return };
        let why = || job.backup_error().map(|e| e.to_string());
        if let Some(told) = lag.told(Instant::now(), job.backed_up_epoch(), why) {
            eprintln!("laminar: {told}");
        }
    }

    /// Sends what a batch was parsed to.
    fn batch(&mut self, batch: &Batch, end: Position, lines: u64) -> OnWorker<()> {
        let parsed = self.sink.finish();
        let sent = parsed.parts.iter().map(|part| (size_of::<Routed>() + part.len()) as u64).sum();
        if self.epochs.ends_before(sent) {
            self.mark()?;
        }
        for (owner, part) in (0..).zip(parsed.parts).filter(|(_, part)| part.records > 0) {
            let bytes = part.len() as u64;
            self.input.send_sized((owner, (part.keys, part.values)), bytes);
        }
        self.epochs.takes(sent);
        let after = &mut self.outcome.after;
        after.records += parsed.records;
        self.outcome.records += parsed.records;
        match parsed.bad.first() {
            Some(bad) if self.settings.on_error == OnError::Stop => {
                after.lines += bad.line - batch.line;
                after.position = Some(Position { step: batch.step, offset: bad.offset, line: bad.line });
                self.outcome.stopped_by =
                    Some(bad_record(&self.job, batch.step, bad, after.is_empty(), false));
            }
            first => {
                if let (Some(bad), None) = (first, &self.outcome.first_bad) {
                    self.outcome.first_bad = Some(place(step_path(&self.job, batch.step), bad));
                }
                after.skipped += parsed.bad.len() as u64;
                after.lines += lines;
                after.position = Some(end);
            }
        }
        Ok(())
    }

    /// Ends the epoch here, on every worker.
    fn mark(&mut self) -> OnWorker<()> {
        let told = |error: CliError| Error::program(error.to_string(), "");
        // While nothing is applied, the next run begins at the beginning; no position may go back, so none is sealed.
        let after = &self.outcome.after;
        let nothing = Committed { mark: after.mark, ..Committed::default() };
        let sealed = if after.is_empty() { &nothing } else { after };
        for (name, offset) in sealed.to_offsets().map_err(told)? {
            self.input.set_source_offset(&name, offset);
        }
        self.epochs.ended(Instant::now());
        self.outcome.epoch = self.input.seal()?.get();
        Ok(())
    }
}

/// The summary as JSON.
pub fn json(outcome: &Outcome, cluster: &Cluster) -> Value {
    #[cfg(feature = "object-store")]
    let backups = outcome.backups.as_ref().map(JobBackedUp::json);
    #[cfg(not(feature = "object-store"))]
    let backups = Value::Null;
    json!({
        "event": "summary",
        "finished": outcome.finished,
        "error": outcome.stopped_by.as_ref().map(ToString::to_string),
        "processes": cluster.processes(),
        "workers": cluster.workers,
        "epoch": outcome.epoch,
        "total": {
            "records": outcome.after.records,
            "skipped": outcome.after.skipped,
            "lines": outcome.after.lines,
        },
        "run": {
            "records": outcome.records,
            "seconds": outcome.seconds,
            "resumed_at_record": outcome.before.records,
        },
        "recovery": { "epoch": outcome.recovered_epoch },
        "backups": backups,
        "first_skipped": outcome.first_bad,
    })
}

/// The summary for a person.
pub fn text(outcome: &Outcome, cluster: &Cluster) -> String {
    let rate = if outcome.seconds > 0.0 { outcome.records as f64 / outcome.seconds / 1e6 } else { 0.0 };
    let (records, total) = (HumanCount(outcome.records), HumanCount(outcome.after.records));
    let mut lines = vec![
        format!("records    {total} ({records} in this run)"),
        format!("job        {} processes with {} workers each", cluster.processes(), cluster.workers),
        format!("rate       {rate:.2} M events/s over {:.2} s", outcome.seconds),
    ];
    if outcome.recovered_epoch > 0 {
        lines.push(format!("recovery   epoch {}", outcome.recovered_epoch));
    }
    #[cfg(feature = "object-store")]
    if let Some(backups) = &outcome.backups {
        lines.push(format!("backup     {}", backups.text()));
    }
    if let Some(bad) = &outcome.first_bad {
        lines.push(format!("skipped    {}, the first: {bad}", HumanCount(outcome.after.skipped)));
    }
    if !outcome.finished && outcome.stopped_by.is_none() {
        lines.push("Stopped; everything before it is durable. Run the same command again, in all processes, to continue.".to_owned());
    }
    lines.join("\n")
}

/// The state of a job of several processes, all parts of which are in one directory.
pub struct JobView {
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    report: Report,
}

impl JobView {
    /// Reads it; none where `dir` is no such directory.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        if !JobReader::is_job(dir) {
            return Ok(None);
        }
        let reader = JobReader::open(dir).map_err(|error| CliError::failure(error.to_string()))?;
        let state = reader.state(OPERATOR);
        let (keys, epoch) = (state.len() as u64, reader.epoch().get());
        let source_offsets = reader.source_offsets();
        Ok(Some(Self { state, report: Report { epoch, keys, source_offsets, ..Report::default() } }))
    }

    /// All keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.state.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(key).map(Vec::as_slice)
    }

    /// What was found.
    pub fn report(&self) -> &Report {
        &self.report
    }
}
