//! The threads of a job and the channels between them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::committed::Committed;
use super::dead_letter::DeadLetter;
use super::live::{Live, Pool};
use crate::agg::Plan;
use crate::agg::bytes::Cursor;
use crate::agg::value::MergeError;
use crate::engine::{CoreEngine, Router};
use crate::error::{CliError, Result};
use crate::input::sink::OnBad;
use crate::input::source::{Next, Position, Source, step_path};
use crate::input::{BadRecord, Batch, Format, Parsed, Parser, Part, Sink};
use crate::job::Job;

/// Batches waiting per parser, and results waiting per parser.
const BATCHES_WAITING: usize = 2;
/// Parts waiting per core.
const PARTS_WAITING: usize = 8;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(20);
/// One update in this many is timed.
const SAMPLE_EVERY: u64 = 64;

/// What all threads know.
pub struct Setup {
    pub plan: Arc<Plan>,
    pub format: Format,
    pub key: String,
    pub router: Router,
    pub on_bad: OnBad,
    pub epoch: Duration,
    /// For the names of files only.
    pub job: Job,
}

/// What the sequencer ends with.
#[derive(Debug, Default)]
pub struct Sequenced {
    /// At the last mark.
    pub committed: Committed,
    /// The epoch of the last mark; none if there was none.
    pub epoch: Option<u64>,
    /// All input was read.
    pub finished: bool,
    /// The first record that was skipped.
    pub first_bad: Option<String>,
    /// Why the job stops here; everything before is sealed.
    pub error: Option<CliError>,
}

/// What the cores end with, together.
pub struct Finals {
    pub keys: u64,
    pub put_ns: Histogram<u64>,
}

/// A turn of the pipeline before parsing.
enum Raw {
    Batch { batch: Batch, end: Position, lines: u64 },
    Idle,
    End { finished: bool },
    Failed(CliError),
}

/// A turn after parsing.
enum Turn {
    Batch { parsed: Parsed, batch: Batch, end: Position, lines: u64 },
    Idle,
    End { finished: bool },
    Failed(CliError),
}

enum ToCore {
    Apply(Part),
    Seal { mark: u64, offsets: Arc<Vec<(String, u64)>> },
}

/// Epochs of all cores start at the same number; the first core to seal says which.
#[derive(Default)]
struct EpochBase(OnceLock<u64>);

/// Runs the threads.
pub struct Stages<'a> {
    pub setup: &'a Setup,
    pub live: &'a Live,
    pub stop: &'a AtomicBool,
}

impl Stages<'_> {
    /// Runs until the input ends, `stop` is set or something fails; `tick` is called meanwhile.
    pub fn run<C: CoreEngine>(
        &self,
        source: Source,
        cores: Vec<C>,
        committed: Committed,
        dead_letter: Option<(usize, DeadLetter)>,
        tick: &mut dyn FnMut(),
    ) -> Result<(Sequenced, Finals)> {
        let buffers = Pool::<Vec<u8>>::new();
        let parts = Pool::<Part>::new();
        let base = EpochBase::default();
        let last_epoch = AtomicU64::new(0);
        thread::scope(|scope| {
            let mut raw_senders = Vec::new();
            let mut turn_receivers = Vec::new();
            for _ in 0..cores.len() {
                let (raw_sender, raw_receiver) = sync_channel(BATCHES_WAITING);
                let (turn_sender, turn_receiver) = sync_channel(BATCHES_WAITING);
                raw_senders.push(raw_sender);
                turn_receivers.push(turn_receiver);
                let parts = &parts;
                spawn(scope, "laminar-parse", move || self.parse(&raw_receiver, &turn_sender, parts))?;
            }
            let (buffers, parts, base, last_epoch) = (&buffers, &parts, &base, &last_epoch);
            spawn(scope, "laminar-read", move || self.read(source, &raw_senders, buffers))?;
            let mut core_senders = Vec::new();
            let mut core_threads = Vec::new();
            for (index, core) in cores.into_iter().enumerate() {
                let (sender, receiver) = sync_channel(PARTS_WAITING);
                core_senders.push(sender);
                let worker =
                    CoreWorker { index, core, plan: &self.setup.plan, base, last_epoch, live: self.live };
                let put_ns = new_histogram()?;
                let name = format!("laminar-core-{index}");
                core_threads.push(spawn(scope, &name, move || worker.run(&receiver, parts, put_ns))?);
            }
            let sequencer = Sequencer {
                setup: self.setup,
                live: self.live,
                cores: core_senders,
                committed,
                dead_letter,
                marks: 0,
                dirty: false,
                last_mark: Instant::now(),
                first_bad: None,
            };
            let sequencer =
                spawn(scope, "laminar-sequence", move || sequencer.run(&turn_receivers, buffers, parts))?;
            // Both kinds of threads end by themselves; the cores once the sequencer has.
            watch(tick, || {
                sequencer.is_finished() && core_threads.iter().all(thread::ScopedJoinHandle::is_finished)
            });
            let mut sequenced =
                sequencer.join().map_err(|_| CliError::internal("the sequencer thread panicked"))?;
            let mut finals = Finals { keys: 0, put_ns: new_histogram()? };
            for thread in core_threads {
                let (keys, put_ns) =
                    thread.join().map_err(|_| CliError::internal("a core's thread panicked"))?;
                finals.keys += keys;
                let _ = finals.put_ns.add(&put_ns);
            }
            sequenced.epoch = Some(last_epoch.load(Ordering::Acquire)).filter(|e| *e > 0);
            Ok((sequenced, finals))
        })
    }

    fn read(&self, mut source: Source, senders: &[SyncSender<Raw>], buffers: &Pool<Vec<u8>>) {
        for sender in senders.iter().cycle() {
            let raw = if self.stop.load(Ordering::Acquire) || self.live.failed.load(Ordering::Acquire) {
                Raw::End { finished: false }
            } else {
                match source.next(buffers.take()) {
                    Ok(Next::Batch { batch, end, lines }) => Raw::Batch { batch, end, lines },
                    Ok(Next::Idle) => {
                        thread::sleep(POLL);
                        Raw::Idle
                    }
                    Ok(Next::End) => Raw::End { finished: true },
                    Err(error) => Raw::Failed(error),
                }
            };
            let last = matches!(raw, Raw::End { .. } | Raw::Failed(_));
            if sender.send(raw).is_err() || last {
                return;
            }
        }
    }

    fn parse(&self, receiver: &Receiver<Raw>, sender: &SyncSender<Turn>, pool: &Pool<Part>) {
        let setup = self.setup;
        let mut parser = Parser::new(setup.format, &setup.key, &setup.plan.fields);
        let mut sink = Sink::new(Arc::clone(&setup.plan), setup.router.clone(), setup.on_bad);
        for raw in receiver {
            let turn = match raw {
                Raw::Batch { batch, end, lines } => {
                    sink.start((0..setup.router.cores()).map(|_| pool.take()).collect());
                    parser.parse(&batch, &mut sink);
                    Turn::Batch { parsed: sink.finish(), batch, end, lines }
                }
                Raw::Idle => Turn::Idle,
                Raw::End { finished } => Turn::End { finished },
                Raw::Failed(error) => Turn::Failed(error),
            };
            if sender.send(turn).is_err() {
                return;
            }
        }
    }
}

/// Takes results in turn, and marks the ends of epochs.
struct Sequencer<'a> {
    setup: &'a Setup,
    live: &'a Live,
    cores: Vec<SyncSender<ToCore>>,
    committed: Committed,
    dead_letter: Option<(usize, DeadLetter)>,
    marks: u64,
    /// Something was applied since the last mark.
    dirty: bool,
    last_mark: Instant,
    first_bad: Option<String>,
}

/// The sequencer has nothing more to do.
enum Stop {
    /// The input ended, completely or not.
    End { finished: bool },
    /// The input has a fault; what precedes it is good.
    Fault(CliError),
    /// A core has gone; it has noted why.
    CoreGone,
}

impl Sequencer<'_> {
    fn run(mut self, turns: &[Receiver<Turn>], buffers: &Pool<Vec<u8>>, parts: &Pool<Part>) -> Sequenced {
        let mut stop = self.take_turns(turns, buffers, parts);
        if !matches!(stop, Stop::CoreGone)
            && let Err(later) = self.mark()
        {
            stop = later;
        }
        let mut sequenced =
            Sequenced { first_bad: self.first_bad, committed: self.committed, ..Sequenced::default() };
        match stop {
            Stop::End { finished } => sequenced.finished = finished,
            Stop::Fault(error) => sequenced.error = Some(error),
            Stop::CoreGone => {}
        }
        sequenced
    }

    fn take_turns(&mut self, turns: &[Receiver<Turn>], buffers: &Pool<Vec<u8>>, parts: &Pool<Part>) -> Stop {
        for receiver in turns.iter().cycle() {
            let turn = match receiver.recv() {
                Ok(turn) => turn,
                Err(_) => return Stop::Fault(CliError::internal("a parser's thread ended early")),
            };
            let done = match turn {
                Turn::Batch { parsed, batch, end, lines } => {
                    let done = self.batch(parsed, &batch, end, lines, parts);
                    buffers.give(batch.bytes);
                    done
                }
                Turn::Idle => Ok(()),
                Turn::End { finished } => Err(Stop::End { finished }),
                Turn::Failed(error) => Err(Stop::Fault(error)),
            };
            let done = done.and_then(|()| {
                if self.last_mark.elapsed() >= self.setup.epoch { self.mark() } else { Ok(()) }
            });
            if let Err(stop) = done {
                return stop;
            }
        }
        Stop::Fault(CliError::internal("a job without cores"))
    }

    fn batch(
        &mut self,
        parsed: Parsed,
        batch: &Batch,
        end: Position,
        lines: u64,
        pool: &Pool<Part>,
    ) -> Result<(), Stop> {
        for (core, part) in self.cores.iter().zip(parsed.parts) {
            if part.records == 0 {
                pool.give(part);
            } else if core.send(ToCore::Apply(part)).is_err() {
                return Err(Stop::CoreGone);
            }
        }
        self.dirty = true;
        self.committed.records += parsed.records;
        self.live.records.fetch_add(parsed.records, Ordering::Relaxed);
        if self.setup.on_bad == OnBad::Stop
            && let Some(bad) = parsed.bad.first()
        {
            // The next run starts at the bad record, where it can be skipped or has been repaired.
            self.committed.lines += bad.line - batch.line;
            self.committed.position = Some(Position { step: batch.step, offset: bad.offset, line: bad.line });
            self.live.bytes.fetch_add(bad.offset - batch.offset, Ordering::Relaxed);
            return Err(Stop::Fault(bad_record(&self.setup.job, batch.step, bad, self.committed.is_empty())));
        }
        self.take_bad(&parsed.bad, batch.step).map_err(|e| self.fail(e))?;
        self.committed.lines += lines;
        self.committed.position = Some(end);
        self.live.bytes.fetch_add(end.offset - batch.offset, Ordering::Relaxed);
        Ok(())
    }

    fn take_bad(&mut self, bad: &[BadRecord], step: u32) -> Result<()> {
        let count = bad.len() as u64;
        self.committed.skipped += count;
        self.live.skipped.fetch_add(count, Ordering::Relaxed);
        let path = step_path(&self.setup.job, step);
        if let (None, Some(first)) = (&self.first_bad, bad.first()) {
            self.first_bad = Some(place(path, first));
        }
        if let Some((_, file)) = &mut self.dead_letter {
            for record in bad {
                file.add(path, record)?;
            }
        }
        Ok(())
    }

    /// Ends the epoch here, on every core.
    fn mark(&mut self) -> Result<(), Stop> {
        self.last_mark = Instant::now();
        if !self.dirty {
            return Ok(());
        }
        let dead_letter = self.dead_letter.as_mut().map(|(index, file)| (*index, file.sync()));
        if let Some((index, len)) = dead_letter {
            self.committed.dead_letters.insert(index, len.map_err(|e| self.fail(e))?);
        }
        let offsets = self.committed.to_offsets().map_err(|e| self.fail(e))?;
        let offsets = Arc::new(offsets);
        for core in &self.cores {
            if core.send(ToCore::Seal { mark: self.marks, offsets: Arc::clone(&offsets) }).is_err() {
                return Err(Stop::CoreGone);
            }
        }
        self.marks += 1;
        self.dirty = false;
        Ok(())
    }

    /// A failure that leaves applied records unsealed: the run must not go on to seal them.
    fn fail(&self, error: CliError) -> Stop {
        self.live.fail(error);
        Stop::CoreGone
    }
}

pub fn place(path: &str, bad: &BadRecord) -> String {
    format!("{path}: line {} (byte {}): {}", bad.line, bad.offset, bad.reason)
}

pub fn bad_record(job: &Job, step: u32, bad: &BadRecord, first: bool) -> CliError {
    let error = CliError::failure(place(step_path(job, step), bad));
    if first {
        return error.remedy(
            "It is the first record, and nothing was applied. Is --key, --agg or --format mistyped? Run the corrected command, \
             or repair the input; or leave such records out with --on-error skip, or with --on-error dead-letter FILE.",
        );
    }
    error.remedy(
        "Everything before it is done and durable. Repair the input from this record on (what precedes it must stay as it is) \
         and run the same command again, or run it with --on-error skip, or with --on-error dead-letter FILE to keep such records; it continues from there.",
    )
}

/// Why the values of a key could not be brought together.
pub fn merge_failed(plan: &Plan, key: &[u8], error: MergeError) -> CliError {
    let key = crate::input::sink::shown(key);
    match error {
        MergeError::Overflow(index) => {
            let name = plan.aggregates.get(index).map(ToString::to_string).unwrap_or_default();
            CliError::failure(format!("the sum of key {key} ({name}) does not fit in 128 bits")).remedy(
                "Nothing of it was written. Start over with a new --state directory and without this aggregate.",
            )
        }
        MergeError::StoredValue => {
            CliError::failure(format!("the stored value of key {key} is not one that this job writes"))
                .remedy("Run `laminar verify` on the state directory.")
        }
        MergeError::Record => CliError::internal(format!("the routed record of key {key} is not readable")),
    }
}

/// Owns one core's keys.
struct CoreWorker<'a, C> {
    index: usize,
    core: C,
    plan: &'a Plan,
    base: &'a EpochBase,
    last_epoch: &'a AtomicU64,
    live: &'a Live,
}

impl<C: CoreEngine> CoreWorker<'_, C> {
    fn run(
        mut self,
        receiver: &Receiver<ToCore>,
        pool: &Pool<Part>,
        mut put_ns: Histogram<u64>,
    ) -> (u64, Histogram<u64>) {
        let mut value = Vec::new();
        for message in receiver {
            let result = match message {
                ToCore::Apply(part) => {
                    let result = self.apply(&part, &mut value, &mut put_ns);
                    pool.give(part);
                    result
                }
                ToCore::Seal { mark, offsets } => self.seal(mark, &offsets),
            };
            if let Err(error) = result {
                self.live.fail(error);
                break;
            }
        }
        (self.core.len(), put_ns)
    }

    fn apply(&mut self, part: &Part, value: &mut Vec<u8>, put_ns: &mut Histogram<u64>) -> Result<()> {
        let mut records = Cursor(&part.bytes);
        let mut count = 0u64;
        while !records.0.is_empty() {
            let key = records.text().ok_or_else(|| CliError::internal("a routed record is cut short"))?;
            let timed = count.is_multiple_of(SAMPLE_EVERY).then(Instant::now);
            self.merge(key, &mut records, value)?;
            if let Some(start) = timed {
                let _ = put_ns.record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            count += 1;
        }
        Ok(())
    }

    fn merge(&mut self, key: &[u8], records: &mut Cursor<'_>, value: &mut Vec<u8>) -> Result<()> {
        let plan = self.plan;
        let mut failed = None;
        let failure = &mut failed;
        self.core.update(key, move |old| {
            if let Err(error) = plan.merge(old, records, value) {
                *failure = Some(error);
                // The key stays as it is; the epoch will not be sealed.
                value.clear();
                value.extend_from_slice(old?);
            }
            Some(value)
        })?;
        failed.map_or(Ok(()), |error| Err(merge_failed(plan, key, error)))
    }

    fn seal(&mut self, mark: u64, offsets: &[(String, u64)]) -> Result<()> {
        if self.index == 0 {
            for (name, offset) in offsets {
                self.core.set_source_offset(name, *offset);
            }
        }
        let epoch = self.core.seal_epoch()?;
        let base = *self.base.0.get_or_init(|| epoch.wrapping_sub(mark));
        if base.wrapping_add(mark) != epoch {
            return Err(CliError::internal(format!(
                "core {} sealed epoch {epoch} where epoch {} was expected",
                self.index,
                base.wrapping_add(mark)
            )));
        }
        self.last_epoch.fetch_max(epoch, Ordering::AcqRel);
        if self.index == 0 {
            self.live.sealed(epoch);
        }
        Ok(())
    }
}

/// Calls `tick` now and then until `done`.
fn watch(tick: &mut dyn FnMut(), done: impl Fn() -> bool) {
    let mut ticked = Instant::now();
    while !done() {
        thread::park_timeout(Duration::from_millis(2));
        if ticked.elapsed() >= super::TICK {
            tick();
            ticked = Instant::now();
        }
    }
}

/// Starts a thread that tools can tell from the others.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>> {
    let started = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
    started
        .map_err(|e| CliError::failure(format!("could not start a thread: {e}")).remedy("Use fewer --cores."))
}

/// 1 ns to 100 s, three digits.
fn new_histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).map_err(CliError::internal)
}
