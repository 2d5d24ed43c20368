//! The threads of a job and the channels between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::budget::Budget;
use super::committed::Committed;
use super::cores::{CoreWorker, EpochBase, ToCore};
use super::dead_letter::DeadLetter;
use super::live::{Live, Pool};
use super::reading::{IN_FLIGHT_MAX, Pools, Reading, Started};
use super::sequencer::Sequencer;
use super::threads::{not_started, spawn};
use crate::agg::Plan;
use crate::engine::{CoreEngine, Router};
use crate::error::{CliError, Result};
use crate::input::Format;
use crate::input::sink::OnBad;
use crate::input::source::Source;
use crate::job::Job;

/// Parts waiting per core.
const PARTS_WAITING: usize = 8;

/// What all threads know.
pub struct Setup {
    pub plan: Arc<Plan>,
    pub format: Format,
    pub key: String,
    pub router: Router,
    pub on_bad: OnBad,
    pub epoch: Duration,
    /// Threads that parse.
    pub parsers: usize,
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

/// Runs the threads.
pub struct Stages<'a> {
    pub setup: &'a Setup,
    pub live: &'a Live,
    pub stop: &'a AtomicBool,
}

/// A core's thread gives the number of its keys, and times of updates.
type CoreThread<'scope> = ScopedJoinHandle<'scope, (u64, Histogram<u64>)>;

/// What the cores share.
struct Shared<'a> {
    setup: &'a Setup,
    live: &'a Live,
    pools: &'a Pools,
    base: &'a EpochBase,
    last_epoch: &'a AtomicU64,
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
        let pools = Pools { buffers: Pool::new(), parts: Pool::new() };
        let (base, last_epoch) = (EpochBase::default(), AtomicU64::new(0));
        let (setup, live) = (self.setup, self.live);
        thread::scope(|scope| {
            let pools = &pools;
            let reading = Reading { setup, live, stop: self.stop, pools };
            let Started { turns, threads: readers } =
                reading.start(scope, source, Budget::new(IN_FLIGHT_MAX))?;
            let shared = Shared { setup, live, pools, base: &base, last_epoch: &last_epoch };
            let (senders, core_threads) = shared.start(scope, cores)?;
            let sequencer = Sequencer {
                setup,
                live,
                cores: senders,
                committed,
                dead_letter,
                marks: 0,
                dirty: false,
                last_mark: Instant::now(),
                first_bad: None,
            };
            let sequencer = spawn(scope, "laminar-sequence", move || sequencer.run(&turns, pools))
                .map_err(|e| not_started(&e))?;
            // Both kinds of threads end by themselves; the cores once the sequencer has.
            watch(tick, || sequencer.is_finished() && core_threads.iter().all(ScopedJoinHandle::is_finished));
            let mut sequenced =
                sequencer.join().map_err(|_| CliError::internal("the sequencer thread panicked"))?;
            let finals = finals(core_threads)?;
            for thread in readers {
                thread.join().map_err(|_| CliError::internal("a thread that reads the input panicked"))?;
            }
            sequenced.epoch = Some(last_epoch.load(Ordering::Acquire)).filter(|e| *e > 0);
            Ok((sequenced, finals))
        })
    }
}

impl<'a> Shared<'a> {
    fn start<'scope, C: CoreEngine + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        cores: Vec<C>,
    ) -> Result<(Vec<SyncSender<ToCore>>, Vec<CoreThread<'scope>>)>
    where
        'a: 'scope,
    {
        let Self { setup, live, pools, base, last_epoch } = self;
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for (index, core) in cores.into_iter().enumerate() {
            let (sender, receiver) = sync_channel(PARTS_WAITING);
            senders.push(sender);
            let worker = CoreWorker { index, core, plan: &setup.plan, base, last_epoch, live };
            let put_ns = new_histogram()?;
            let work = move || worker.run(&receiver, &pools.parts, put_ns);
            let thread = spawn(scope, &format!("laminar-core-{index}"), work);
            threads.push(thread.map_err(|e| not_started(&e))?);
        }
        Ok((senders, threads))
    }
}

fn finals(threads: Vec<CoreThread<'_>>) -> Result<Finals> {
    let mut finals = Finals { keys: 0, put_ns: new_histogram()? };
    for thread in threads {
        let (keys, put_ns) = thread.join().map_err(|_| CliError::internal("a core's thread panicked"))?;
        finals.keys += keys;
        let _ = finals.put_ns.add(&put_ns);
    }
    Ok(finals)
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

/// 1 ns to 100 s, three digits.
fn new_histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).map_err(CliError::internal)
}
