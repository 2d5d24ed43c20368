//! From files to parsed batches: one thread reads, several parse.
//!
//! Batches go to the parsers in turn, and whoever takes the results takes them in the same turn, so
//! that their order is that of the input whatever parser is the fastest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use super::budget::{Budget, Ticket};
use super::live::{Live, Pool};
use super::stages::Setup;
use super::threads::{not_started, spawn};
use crate::error::{CliError, Result};
use crate::input::source::{Next, Position, Source, step_path};
use crate::input::{Batch, Parsed, Parser, Part, RECORD_LEN_MAX, Sink};

/// Batches waiting per parser, and results waiting per parser.
const BATCHES_WAITING: usize = 2;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(20);
/// More parsers than this read faster than any number of cores takes records.
const PARSERS_MAX: usize = 8;
/// Bytes of input between the reader and the cores: two of the longest records.
pub const IN_FLIGHT_MAX: usize = 2 * RECORD_LEN_MAX;

/// How many parsers a machine with so many CPUs has work for.
pub fn parsers_for(cpus: usize) -> usize {
    cpus.clamp(1, PARSERS_MAX)
}

/// A turn of the pipeline before parsing.
enum Raw {
    Batch(Read),
    Idle,
    End { finished: bool },
    Failed(CliError),
}

/// Whole records, where they end, and how many lines they are.
pub struct Read {
    pub batch: Batch,
    pub end: Position,
    pub lines: u64,
    pub ticket: Ticket,
}

/// A turn after parsing.
pub enum Turn {
    Batch { parsed: Parsed, read: Read },
    Idle,
    End { finished: bool },
    Failed(CliError),
}

/// Allocations that go round.
pub struct Pools {
    pub buffers: Pool<Vec<u8>>,
    pub parts: Pool<Part>,
}

/// What the threads of this module know.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub setup: &'a Setup,
    pub live: &'a Live,
    pub stop: &'a AtomicBool,
    pub pools: &'a Pools,
}

/// The started threads, and where the turns come from.
pub struct Started<'scope> {
    pub turns: Vec<Receiver<Turn>>,
    pub threads: Vec<ScopedJoinHandle<'scope, ()>>,
}

impl<'a> Reading<'a> {
    /// Starts the threads. A job has as many parsers as can be started; one must.
    pub fn start<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        source: Source,
        budget: Arc<Budget>,
    ) -> Result<Started<'scope>>
    where
        'a: 'scope,
    {
        let mut senders = Vec::new();
        let mut started = Started { turns: Vec::new(), threads: Vec::new() };
        for index in 0..self.setup.parsers.max(1) {
            let (raw_sender, raw_receiver) = sync_channel(BATCHES_WAITING);
            let (turn_sender, turn_receiver) = sync_channel(BATCHES_WAITING);
            let name = format!("laminar-parse-{index}");
            match spawn(scope, &name, move || self.parse(&raw_receiver, &turn_sender)) {
                Ok(thread) => started.threads.push(thread),
                Err(error) if started.threads.is_empty() => return Err(not_started(&error)),
                Err(_) => break,
            }
            senders.push(raw_sender);
            started.turns.push(turn_receiver);
        }
        let reader = spawn(scope, "laminar-read", move || self.read(source, &senders, &budget));
        started.threads.push(reader.map_err(|e| not_started(&e))?);
        Ok(started)
    }

    fn is_over(self) -> bool {
        self.stop.load(Ordering::Acquire) || self.live.failed.load(Ordering::Acquire)
    }

    fn read(self, mut source: Source, senders: &[SyncSender<Raw>], budget: &Arc<Budget>) {
        for sender in senders.iter().cycle() {
            let raw =
                if self.is_over() { Raw::End { finished: false } } else { self.next(&mut source, budget) };
            let last = matches!(raw, Raw::End { .. } | Raw::Failed(_));
            if sender.send(raw).is_err() || last {
                return;
            }
        }
    }

    fn next(self, source: &mut Source, budget: &Arc<Budget>) -> Raw {
        match source.next(self.pools.buffers.take()) {
            Ok(Next::Batch { batch, end, lines }) => {
                match budget.take(batch.bytes.len(), || self.is_over()) {
                    Some(ticket) => Raw::Batch(Read { batch, end, lines, ticket }),
                    // Not handed over, so that the next run reads it again.
                    None => Raw::End { finished: false },
                }
            }
            Ok(Next::Idle) => {
                thread::sleep(POLL);
                Raw::Idle
            }
            Ok(Next::End) => Raw::End { finished: true },
            Err(error) => Raw::Failed(error),
        }
    }

    fn parse(self, receiver: &Receiver<Raw>, sender: &SyncSender<Turn>) {
        let setup = self.setup;
        let mut parser = Parser::new(setup.format, &setup.key, &setup.plan.fields);
        let mut sink = Sink::new(Arc::clone(&setup.plan), setup.router.clone(), setup.on_bad);
        for raw in receiver {
            let turn = match raw {
                Raw::Batch(mut read) => {
                    sink.start((0..setup.router.cores()).map(|_| self.pools.parts.take()).collect());
                    // A panic is a fault of the program, but whoever waits for this turn must be told.
                    let work = AssertUnwindSafe(|| parser.parse(&read.batch, &mut sink));
                    if catch_unwind(work).is_err() {
                        let _ = sender.send(Turn::Failed(panicked(setup, &read.batch)));
                        return;
                    }
                    let parsed = sink.finish();
                    read.ticket.grow(parsed.parts.iter().map(Part::len).sum());
                    Turn::Batch { parsed, read }
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

fn panicked(setup: &Setup, batch: &Batch) -> CliError {
    CliError::internal(format!(
        "a parser panicked in {} between byte {} and byte {}",
        step_path(&setup.job, batch.step),
        batch.offset,
        batch.offset + batch.bytes.len() as u64
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agg::Plan;
    use crate::engine::Router;
    use crate::input::Format;
    use crate::input::plan::extend;
    use crate::input::sink::OnBad;
    use crate::job::Job;

    #[test]
    fn parsers_are_limited_by_cpus() {
        assert_eq!([0, 1, 2, 8, 9, 192].map(parsers_for), [1, 1, 2, 8, 8, 8]);
    }

    /// A directory with a file, and what is needed to read it in batches of one record.
    fn desk(text: &str) -> (tempfile::TempDir, Source, Setup) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, text).unwrap();
        let plan = Plan::parse(&["last:v".to_owned()]).unwrap();
        let mut job = Job::new(Format::Ndjson, "k", &plan, &[path.to_str().unwrap().to_owned()]);
        extend(&mut job, None, false).unwrap();
        let source = Source::new(job.clone(), dir.path().to_owned(), None, 1);
        let setup = Setup {
            plan: Arc::new(plan),
            format: Format::Ndjson,
            key: "k".to_owned(),
            router: Router::new(1, |_| 0),
            on_bad: OnBad::Stop,
            epoch: Duration::ZERO,
            parsers: 8,
            job,
        };
        (dir, source, setup)
    }

    fn pools() -> Pools {
        Pools { buffers: Pool::new(), parts: Pool::new() }
    }

    /// With long records the channels alone would hold as many of them as there are places.
    #[test]
    fn bytes_in_flight_are_bounded_and_the_order_is_kept() {
        let (most, long) = (5_000, "x".repeat(2_000));
        let text: String = (0..200).map(|i| format!("{{\"k\":{i},\"v\":\"{long}\"}}\n")).collect();
        let (_dir, source, setup) = desk(&text);
        let (live, stop, pools, budget) =
            (Live::default(), AtomicBool::new(false), pools(), Budget::new(most));
        thread::scope(|scope| {
            let reading = Reading { setup: &setup, live: &live, stop: &stop, pools: &pools };
            let started = reading.start(scope, source, Arc::clone(&budget)).unwrap();
            let mut seen = 0;
            for turns in started.turns.iter().cycle() {
                // What a batch is parsed to comes on top of the batch itself, and is no longer than it here.
                assert!(budget.used() <= 2 * most, "{}", budget.used());
                match turns.recv().unwrap() {
                    Turn::Batch { parsed, read } => {
                        assert_eq!((parsed.records, read.batch.line), (1, seen + 1));
                        seen += 1;
                    }
                    Turn::End { finished } => {
                        assert!(finished);
                        break;
                    }
                    Turn::Idle | Turn::Failed(_) => panic!("nothing of that kind"),
                }
            }
            assert_eq!((seen, budget.used()), (200, 0));
        });
    }

    #[test]
    fn a_reader_that_waits_for_room_stops_when_it_is_told_to() {
        let (_dir, source, setup) = desk("{\"k\":1,\"v\":1}\n");
        let (live, stop, pools, budget) = (Live::default(), AtomicBool::new(false), pools(), Budget::new(1));
        let held = budget.take(1, || false).unwrap();
        thread::scope(|scope| {
            let reading = Reading { setup: &setup, live: &live, stop: &stop, pools: &pools };
            let started = reading.start(scope, source, Arc::clone(&budget)).unwrap();
            stop.store(true, Ordering::Release);
            assert!(matches!(started.turns[0].recv().unwrap(), Turn::End { finished: false }));
        });
        drop(held);
    }

    #[test]
    fn a_reader_whose_results_nobody_takes_ends() {
        let text = "{\"k\":1,\"v\":1}\n".repeat(500);
        let (_dir, source, setup) = desk(&text);
        let (live, stop, pools, budget) = (Live::default(), AtomicBool::new(false), pools(), Budget::new(50));
        thread::scope(|scope| {
            let reading = Reading { setup: &setup, live: &live, stop: &stop, pools: &pools };
            let started = reading.start(scope, source, Arc::clone(&budget)).unwrap();
            drop(started.turns);
            started.threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(budget.used(), 0);
    }
}
