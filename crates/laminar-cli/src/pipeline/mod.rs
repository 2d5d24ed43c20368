//! The job: from bytes in files to state in the store, with the input position in every epoch.
//!
//! ```text
//!  reader ──batches──▶ parser 0..n ──parts per core──▶ sequencer ──parts and marks──▶ core 0..n
//!  (one)    (round     (one per     (taken in the       (one)                        (own their keys)
//!            robin)     CPU)         same turn)
//! ```
//!
//! 1. Batches are numbered by the turn in which parsers get them and in which the sequencer takes
//!    the results, so parts reach each core in input order: per key, records are applied in the
//!    order of the input, whatever the number of cores and parsers.
//! 2. The sequencer alone decides where an epoch ends: between two batches. It sends every core a
//!    mark; each core seals its epoch there, and core 0 puts the input position of that point into
//!    it. All cores count epochs alike, so the store's recovery point, one epoch over all cores,
//!    is one position in the input.
//! 3. A restart recovers state and position of the same epoch and reads on from there. Results
//!    depend only on the records applied and their order per key, so they are the same bytes as
//!    without any interruption.
//!
//! Every channel is bounded, and so are the bytes in all of them together (`budget`): a slow core slows
//! the reader. A thread that fails notes why and leaves; its neighbours find their channels closed and
//! leave too.

mod budget;
pub mod committed;
pub mod cores;
pub mod dead_letter;
pub mod live;
pub mod ownership;
mod reading;
pub mod sequencer;
mod stages;
#[cfg(test)]
mod tests;
mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::agg::Plan;
use crate::engine::{Checkpoint, Engine, OpenOptions, Opened, Report, Router, Stats};
use crate::error::{CliError, Result};
use crate::input::plan::{ReadUpTo, forget_unread};
use crate::input::source::{Position, Source};
use crate::input::{Format, sink::OnBad};
use crate::job::Job;
use crate::opening::Watched;
use committed::Committed;
use dead_letter::DeadLetter;
use live::Live;
use ownership::{Claim, Owned};

/// What to do with a record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnError {
    /// End the job before it.
    Stop,
    /// Count it and go on.
    Skip,
    /// Write it to a file, count it and go on.
    DeadLetter(PathBuf),
}

/// A job as asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub inputs: Vec<String>,
    /// None: recognise it.
    pub format: Option<Format>,
    pub key: Option<String>,
    pub plan: Plan,
    pub state: PathBuf,
    pub cores: usize,
    /// Time between two marks.
    pub epoch: Duration,
    pub checkpoint_interval: Option<Duration>,
    pub recovery_objective: Option<Duration>,
    /// Where every checkpoint is copied to, if anywhere.
    #[cfg(feature = "object-store")]
    pub backups: Option<crate::backup::running::Running>,
    /// Is a bar to be seen while the store is opened?
    pub opening: Watched,
    pub on_error: OnError,
    pub follow: bool,
    /// Bytes per batch.
    pub batch_len: usize,
    /// Threads that parse; as many as the machine has CPUs for, if none.
    pub parsers: Option<usize>,
}

/// A moment of a running job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// Records of this run.
    pub records: u64,
    /// Records skipped in this run.
    pub skipped: u64,
    /// Input bytes read, earlier runs included.
    pub bytes: u64,
    /// All input bytes planned; none when a file is followed.
    pub bytes_total: Option<u64>,
    /// Last durable epoch.
    pub durable: u64,
    /// Sealed epochs that are not durable yet, and the age of the oldest.
    pub lag: (usize, Duration),
    /// Counters of the store.
    pub stats: Stats,
    /// Since reading began.
    pub elapsed: Duration,
}

/// Somebody who watches a job.
pub trait Observer {
    /// The store is open.
    fn opened(&mut self, report: &Report, resumed: &Committed);
    /// Something that the user should know, as a full sentence.
    fn note(&mut self, text: &str);
    /// Called about every 50 ms.
    fn tick(&mut self, snapshot: &Snapshot);
    /// Reading has ended; what remains is to make it durable and close.
    fn closing(&mut self);
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The job as it is now.
    pub job: Job,
    /// What recovery found at the start.
    pub report: Report,
    /// What was committed before this run, and what is now.
    pub before: Committed,
    pub after: Committed,
    /// The last moment of reading.
    pub last: Snapshot,
    /// Last sealed epoch; durable.
    pub epoch: u64,
    /// All input planned has been read.
    pub finished: bool,
    /// Keys in the state.
    pub keys: u64,
    /// The first record skipped, told as an error would.
    pub first_bad: Option<String>,
    /// Time of one update in nanoseconds, one in 64 sampled.
    pub put_ns: Histogram<u64>,
    pub checkpoint: Checkpoint,
    /// From the last record to everything durable and checkpointed.
    pub closing: Duration,
    /// What came of the backups, if any were asked for.
    #[cfg(feature = "object-store")]
    pub backed_up: Option<crate::backup::running::BackedUp>,
    /// Why it stopped early; everything before is durable.
    pub stopped_by: Option<CliError>,
}

const TICK: Duration = Duration::from_millis(50);

/// Runs a job until its input is read, `stop` is set, or something fails.
pub fn run<E: Engine>(
    settings: &Settings,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let claim = Claim::make::<E>(settings)?;
    let opened: Opened<E> = E::open(&OpenOptions {
        dir: settings.state.clone(),
        cores: settings.cores,
        checkpoint_interval: settings.checkpoint_interval,
        recovery_objective: settings.recovery_objective,
        opening: settings.opening,
        #[cfg(feature = "object-store")]
        backups: settings.backups.clone(),
    })?;
    let Owned { mut job, before, told } = claim.settle(settings, &opened.report)?;
    let dead_letter = open_dead_letter(settings, &mut job, &before)?;
    observer.opened(&opened.report, &before);
    if let Some(told) = told {
        observer.note(&told);
    }
    let Opened { engine, cores, report, router } = opened;
    let source = Source::new(job.clone(), settings.state.clone(), before.position, settings.batch_len);
    let live = Live::default();
    let setup = setup(settings, &job, router);
    let start = Instant::now();
    let view = View {
        engine: &engine,
        live: &live,
        start,
        bytes_before: bytes_read(&job, &before),
        total: planned(&job),
    };
    let stages = stages::Stages { setup: &setup, live: &live, stop };
    let (sequenced, finals) =
        stages.run(source, cores, before.clone(), dead_letter, &mut || observer.tick(&view.snapshot()))?;
    let last = view.snapshot();
    observer.tick(&last);
    if let Some(error) = live.take_failure() {
        // Best effort: what was sealed before the failure may still become durable; the first
        // cause is what the user must see.
        let _ = engine.close();
        return Err(error);
    }
    observer.closing();
    let closing = Instant::now();
    let epoch = sequenced.epoch.unwrap_or(report.epoch);
    engine.wait_durable(epoch)?;
    let checkpoint = engine.checkpoint()?;
    #[cfg(feature = "object-store")]
    let backed_up = engine.backed_up();
    let stats = engine.stats();
    // The reader may have saved a later one. The store is still locked, so nobody else does.
    let mut job = Job::load(&settings.state)?.unwrap_or(job);
    if forget_unread(&mut job, read_up_to(&sequenced.committed)) {
        job.save(&settings.state)?;
    }
    engine.close()?;
    Ok(Outcome {
        job,
        report,
        before,
        after: sequenced.committed,
        last: Snapshot { stats, durable: epoch, lag: (0, Duration::ZERO), ..last },
        epoch,
        finished: sequenced.finished && sequenced.error.is_none(),
        keys: finals.keys,
        first_bad: sequenced.first_bad,
        put_ns: finals.put_ns,
        checkpoint,
        closing: closing.elapsed(),
        #[cfg(feature = "object-store")]
        backed_up,
        stopped_by: sequenced.error,
    })
}

fn setup(settings: &Settings, job: &Job, router: Router) -> stages::Setup {
    stages::Setup {
        plan: Arc::new(settings.plan.clone()),
        format: job.format,
        key: job.key.clone(),
        router,
        on_bad: match settings.on_error {
            OnError::Stop => OnBad::Stop,
            OnError::Skip => OnBad::Skip,
            OnError::DeadLetter(_) => OnBad::Keep,
        },
        epoch: settings.epoch,
        parsers: settings.parsers.unwrap_or_else(|| {
            reading::parsers_for(std::thread::available_parallelism().map_or(1, usize::from))
        }),
        job: job.clone(),
    }
}

/// Opens the dead-letter file; its name is durable in `job.json` before anything is written to it.
fn open_dead_letter(
    settings: &Settings,
    job: &mut Job,
    before: &Committed,
) -> Result<Option<(usize, DeadLetter)>> {
    let OnError::DeadLetter(path) = &settings.on_error else { return Ok(None) };
    let names = job.dead_letters.len();
    let index = job.dead_letter(&path.to_string_lossy());
    let is_new = job.dead_letters.len() != names;
    if is_new {
        DeadLetter::check_new(path)?;
        job.save(&settings.state)?;
    }
    let len = before.dead_letters.get(&index).copied().unwrap_or(0);
    let opened = DeadLetter::open(path, len)?;
    Ok(Some((index, opened)))
}

fn read_up_to(committed: &Committed) -> Option<ReadUpTo> {
    committed.position.map(|p| ReadUpTo { step: p.step as usize, offset: p.offset })
}

struct View<'a, E> {
    engine: &'a E,
    live: &'a Live,
    start: Instant,
    bytes_before: u64,
    total: Option<u64>,
}

impl<E: Engine> View<'_, E> {
    fn snapshot(&self) -> Snapshot {
        let durable = self.engine.durable_epoch();
        Snapshot {
            records: self.live.records.load(Ordering::Relaxed),
            skipped: self.live.skipped.load(Ordering::Relaxed),
            bytes: self.bytes_before + self.live.bytes.load(Ordering::Relaxed),
            bytes_total: self.total,
            durable,
            lag: self.live.lag(durable),
            stats: self.engine.stats(),
            elapsed: self.start.elapsed(),
        }
    }
}

/// Input bytes before a position.
pub fn bytes_read(job: &Job, committed: &Committed) -> u64 {
    let Some(Position { step, offset, .. }) = committed.position else { return 0 };
    let step = step as usize;
    let done: u64 = job.steps.iter().take(step).map(|s| s.to.unwrap_or(s.from) - s.from).sum();
    done + job.steps.get(step).map_or(0, |s| offset.saturating_sub(s.from))
}

/// Input bytes planned; none while a file is followed.
fn planned(job: &Job) -> Option<u64> {
    job.steps.iter().map(|s| Some(s.to? - s.from)).sum()
}

/// Name of the file a position is in.
pub fn file_at(job: &Job, position: Position) -> &Path {
    Path::new(crate::input::source::step_path(job, position.step))
}
