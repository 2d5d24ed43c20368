//! Rows that leave the job: kept in the state with their epoch, given to the sink when that is durable everywhere.
//!
//! ```text
//!  rows of epoch e ─▶ state, sealed with everything else of e ─▶ durable on all workers ─▶ sink's thread ─▶ committed
//!                      (deleted in a later epoch, when committed)                                            │
//!  output frontier ◀───────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! A crash between durable and committed finds the rows in the state: they are given to the sink again before the dataflow
//! begins, without computing them anew. So operators need not be deterministic.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Capability, Operator, Probe};
use timely::scheduling::activate::SyncActivator;

use super::job::Flow;
use super::{epoch_of, or_end, upper};
use crate::codec::Codec;
use crate::error::Error;
use crate::fail::{Pulse, fail_stop};
use crate::layout::Restored;
use crate::ledger::{Kind, Ledger, OperatorId, PREFIX_LEN, Seat, pop_up_to, prefix, undecodable};
use crate::sink::{EpochSink, SinkPart};

/// A value of the state holds at most so many bytes of rows.
const CHUNK: usize = 1 << 20;

/// Epochs with their rows.
type Epochs<D> = Vec<(Epoch, Vec<D>)>;

/// The key of some rows: part, epoch, and which of them, so that keys are in the order of rows.
fn waiting_key(operator: OperatorId, part: SinkPart, epoch: Epoch, chunk: u32, key: &mut Vec<u8>) {
    prefix(Kind::Waiting, operator, key);
    key.extend_from_slice(&part.generation.to_be_bytes());
    key.extend_from_slice(&part.worker.to_be_bytes());
    key.extend_from_slice(&epoch.0.to_be_bytes());
    key.extend_from_slice(&chunk.to_be_bytes());
}

/// The key under which it is noted up to which epoch the rows of a part are gone from the state.
fn committed_key(operator: OperatorId, part: SinkPart, key: &mut Vec<u8>) {
    prefix(Kind::Committed, operator, key);
    key.extend_from_slice(&part.generation.to_be_bytes());
    key.extend_from_slice(&part.worker.to_be_bytes());
}

/// What [`committed_key`] made.
pub(super) fn part_of_committed(key: &[u8]) -> Option<SinkPart> {
    let (_, rest) = key.split_at_checked(PREFIX_LEN)?;
    let (generation, rest) = rest.split_first_chunk()?;
    let worker = u32::from_be_bytes(rest.try_into().ok()?);
    Some(SinkPart { generation: u32::from_be_bytes(*generation), worker })
}

/// What [`waiting_key`] made.
pub(super) fn part_of(key: &[u8]) -> Option<(SinkPart, Epoch)> {
    let (_, rest) = key.split_at_checked(PREFIX_LEN)?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (worker, rest) = rest.split_first_chunk()?;
    let (epoch, _) = rest.split_first_chunk()?;
    let part = SinkPart { generation: u32::from_be_bytes(*generation), worker: u32::from_be_bytes(*worker) };
    Some((part, Epoch(u64::from_be_bytes(*epoch))))
}

impl<'scope> Flow<'scope> {
    /// Gives the rows of `stream` to a sink, on the worker they are on, epoch by epoch, once they are durable.
    ///
    /// `open` opens the sink of a part: that of this worker, and those of workers that an earlier size of the job had and
    /// that did not get everything. Returns a stream without rows, whose frontier says what is committed on all workers.
    ///
    /// # Errors
    /// `Sink` when one cannot be opened, is ahead of the state, has lost what it had committed, or does not take what it had
    /// not.
    pub fn sink<D, S>(
        &mut self,
        stream: StreamVec<'scope, u64, D>,
        name: &str,
        mut open: impl FnMut(SinkPart) -> Result<S, Error>,
    ) -> Result<StreamVec<'scope, u64, ()>, Error>
    where
        D: Codec + Clone + Send + 'static,
        S: EpochSink<D> + 'static,
    {
        let operator = self.claim(name)?;
        let worker = u32::try_from(self.scope.index()).unwrap_or(u32::MAX);
        let part = SinkPart { generation: self.recovered.generation.0, worker };
        let mut sink = open(part)?;
        let forget = self.parts.process.config.mistakes.forget_waiting_rows;
        let keys = self.waiting.borrow_mut().remove(&operator).unwrap_or_default();
        let mut outbox = Outbox {
            operator,
            part,
            keys: BTreeMap::new(),
            old: Vec::new(),
            bytes: Vec::new(),
            key: Vec::new(),
        };
        let mut epochs: BTreeMap<SinkPart, Epochs<D>> = BTreeMap::new();
        for key in keys {
            let (of, epoch) =
                part_of(&key).ok_or_else(|| undecodable("the key of rows that wait for a sink"))?;
            let ledger = self.parts.ledger.borrow();
            let rows = decode_rows(ledger.core.get(&key).unwrap_or_default())?;
            let epochs = epochs.entry(of).or_default();
            match epochs.last_mut().filter(|(last, _)| *last == epoch) {
                Some((_, known)) => known.extend(rows),
                None => epochs.push((epoch, rows)),
            }
            outbox.old.push(key);
        }
        self.check(operator, part, &mut sink)?;
        for old in self.restored().into_iter().flat_map(Restored::sinks) {
            let own = old.worker as usize % self.scope.peers() == self.scope.index();
            if own && old != part {
                self.check(operator, old, &mut open(old)?)?;
            }
        }
        let pulse = Arc::clone(&self.parts.process.pulse);
        for (of, epochs) in epochs {
            if of == part {
                catch_up(&mut sink, of, epochs, forget, &pulse)?;
            } else {
                let mut old = open(of)?;
                self.check(operator, of, &mut old)?;
                catch_up(&mut old, of, epochs, forget, &pulse)?;
            }
        }
        Ok(self.sink_operator(stream, name, sink, outbox))
    }

    /// If the state is that of a backup still.
    fn restored(&self) -> Option<Restored> {
        let restored = self.parts.process.restored.get().copied();
        restored.filter(|restored| restored.at == self.recovered.point)
    }

    /// Nothing is committed that is not durable everywhere, and what was committed still is: its rows are gone from the state.
    fn check<D>(
        &self,
        operator: OperatorId,
        part: SinkPart,
        sink: &mut impl EpochSink<D>,
    ) -> Result<(), Error> {
        let restored = self.restored();
        let point = restored.map_or(self.recovered.point, |restored| restored.epoch);
        let ahead = sink.committed();
        if ahead > point {
            let told = |what: String, remedy: &'static str| {
                Err(Error::sink(Detail::new(what).in_epoch(point).remedy(remedy)))
            };
            let what = format!("the sink of {part} has epoch {ahead}, but the state goes only to {point}");
            if restored.is_none() {
                return told(
                    what,
                    "The sink belongs to another state, or the state was lost: put together what belongs together.",
                );
            }
            tracing::info!(%part, %ahead, %point, "the sink is cut back to the backup");
            if let Err(error) = sink.cut_back(point) {
                return told(
                    format!("{what}, from a backup, and it could not be cut back: {error}"),
                    "Bring its target back to that epoch, or begin with an empty one and another state.",
                );
            }
        }
        let committed = sink.committed();
        let mut key = Vec::new();
        committed_key(operator, part, &mut key);
        let had = match self.parts.ledger.borrow().core.get(&key) {
            Some(bytes) => Epoch(u64::decode_all(bytes).ok_or_else(|| undecodable("what a sink has"))?),
            None => Epoch(0),
        };
        if committed >= had {
            return Ok(());
        }
        Err(Error::sink(
            Detail::new(format!(
                "the sink of {part} has rows up to epoch {committed} only, but had committed them up to {had}"
            ))
            .in_epoch(had)
            .remedy(
                "What it lost cannot be given again. Bring back a newer copy of its target, or begin anew with another \
                 state and an empty target.",
            ),
        ))
    }

    fn sink_operator<D, S>(
        &mut self,
        stream: StreamVec<'scope, u64, D>,
        name: &str,
        sink: S,
        outbox: Outbox,
    ) -> StreamVec<'scope, u64, ()>
    where
        D: Codec + Clone + Send + 'static,
        S: EpochSink<D> + 'static,
    {
        let (ledger, pulse) = (Rc::clone(&self.parts.ledger), Arc::clone(&self.parts.process.pulse));
        let (scope, threads, first) = (self.scope, Rc::clone(&self.threads), self.recovered.first);
        let title = name.to_owned();
        let committed = stream.binary_frontier::<Vec<()>, CapacityContainerBuilder<Vec<()>>, _, _, _, _>(
            self.durable(),
            Pipeline,
            Pipeline,
            name,
            move |capability, info| {
                let activator = scope.activator_for(Rc::clone(&info.address));
                let seat = ledger.borrow_mut().take_part(move || activator.activate());
                let wake = scope.worker().sync_activator_for(info.address.to_vec());
                let (sender, committed, thread) = or_end(sink_thread(&title, sink, first, wake, &pulse));
                threads.borrow_mut().push(thread);
                let held = Some(capability.delayed(&first.0));
                let mut turn = Turn {
                    outbox,
                    seat,
                    ledger,
                    stash: BTreeMap::new(),
                    next: first,
                    given: Epoch(first.0.saturating_sub(1)),
                    ready: VecDeque::new(),
                    sender: Some(sender),
                    committed,
                    held,
                };
                drop(capability);
                move |(rows, before), (durable, settled), _| {
                    rows.for_each_stamp(|capability, data| {
                        let epoch = Epoch(epoch_of(&capability, &title));
                        let stash = turn.stash.entry(epoch).or_default();
                        data.for_each(|rows| stash.append(rows));
                    });
                    durable.for_each_stamp(|_, _| {});
                    or_end(turn.go_on(upper(before), upper(settled)));
                }
            },
        );
        let (probe, committed) = committed.probe();
        self.parts.gate.add(probe);
        committed
    }
}

/// Gives a sink what it had not committed.
fn catch_up<D>(
    sink: &mut impl EpochSink<D>,
    part: SinkPart,
    mut epochs: Epochs<D>,
    forget: bool,
    pulse: &Pulse,
) -> Result<(), Error> {
    let committed = sink.committed();
    epochs.retain(|(epoch, _)| *epoch > committed);
    if epochs.is_empty() || forget {
        return Ok(());
    }
    tracing::info!(%part, epochs = epochs.len(), "rows are given to the sink again");
    // One by one: a slow target is seen to go on, and keeps what it has when the next one fails.
    for epoch in epochs.chunks(1) {
        sink.commit(epoch).map_err(|error| sink_failed(&part.to_string(), &error))?;
        pulse.beat();
    }
    Ok(())
}

fn sink_failed(which: &str, error: &std::io::Error) -> Error {
    Error::sink(
        Detail::new(format!("the sink {which} failed: {error}"))
            .remedy("Look at its target; after a restart it is given again what it had not committed."),
    )
}

fn decode_rows<D: Codec>(mut bytes: &[u8]) -> Result<Vec<D>, Error> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        rows.push(D::decode(&mut bytes).ok_or_else(|| undecodable("a row that waits for a sink"))?);
    }
    Ok(rows)
}

/// Rows in the state that a sink has not committed.
struct Outbox {
    operator: OperatorId,
    part: SinkPart,
    /// How many values the rows of an epoch take.
    keys: BTreeMap<Epoch, u32>,
    /// Keys of rows of earlier runs, which are committed now.
    old: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    key: Vec<u8>,
}

impl Outbox {
    /// Puts the rows of an epoch into the state.
    fn put<D: Codec>(&mut self, ledger: &mut Ledger, epoch: Epoch, rows: &[D]) -> Result<(), Error> {
        let mut chunks = 0;
        self.bytes.clear();
        for (index, row) in rows.iter().enumerate() {
            row.encode(&mut self.bytes);
            if self.bytes.len() >= CHUNK || index + 1 == rows.len() {
                waiting_key(self.operator, self.part, epoch, chunks, &mut self.key);
                ledger.core.put(&self.key, &self.bytes)?;
                self.bytes.clear();
                chunks += 1;
            }
        }
        if chunks > 0 {
            self.keys.insert(epoch, chunks);
        }
        Ok(())
    }

    /// Removes what is committed.
    fn remove(&mut self, ledger: &mut Ledger, committed: Epoch) -> Result<(), Error> {
        let mut gone = BTreeMap::<SinkPart, Epoch>::new();
        for key in self.old.drain(..) {
            ledger.core.delete(&key)?;
            if let Some((part, epoch)) = part_of(&key) {
                let last = gone.entry(part).or_default();
                *last = epoch.max(*last);
            }
        }
        while let Some(entry) = self.keys.first_entry().filter(|entry| *entry.key() <= committed) {
            let (epoch, chunks) = entry.remove_entry();
            gone.insert(self.part, epoch);
            for chunk in 0..chunks {
                waiting_key(self.operator, self.part, epoch, chunk, &mut self.key);
                ledger.core.delete(&self.key)?;
            }
        }
        for (part, epoch) in gone {
            committed_key(self.operator, part, &mut self.key);
            self.bytes.clear();
            epoch.0.encode(&mut self.bytes);
            ledger.core.put(&self.key, &self.bytes)?;
        }
        Ok(())
    }
}

/// A sink's operator between two turns.
struct Turn<D> {
    outbox: Outbox,
    seat: Seat,
    ledger: Rc<RefCell<Ledger>>,
    stash: BTreeMap<Epoch, Vec<D>>,
    /// The first epoch that is not in the state.
    next: Epoch,
    /// Up to here the thread was given everything.
    given: Epoch,
    /// Rows that are in the state and not durable everywhere, as far as is known.
    ready: VecDeque<(Epoch, Vec<D>)>,
    sender: Option<Sender<Handed<D>>>,
    committed: Arc<AtomicU64>,
    held: Option<Capability<u64>>,
}

impl<D: Codec> Turn<D> {
    /// `before`: all rows of earlier epochs are here; `settled`: all earlier epochs are durable everywhere.
    fn go_on(&mut self, before: Option<Epoch>, settled: Option<Epoch>) -> Result<(), Error> {
        let committed = Epoch(self.committed.load(Ordering::Acquire));
        let mut ledger = self.ledger.borrow_mut();
        let last = ledger.last();
        let upper = before.or(last.map(Epoch::next)).unwrap_or_default();
        while self.next < upper && ledger.may(self.seat, self.next) {
            let rows = self.stash.remove(&self.next).unwrap_or_default();
            self.outbox.remove(&mut ledger, committed)?;
            self.outbox.put(&mut ledger, self.next, &rows)?;
            if !rows.is_empty() {
                self.ready.push_back((self.next, rows));
            }
            ledger.done(self.seat, self.next)?;
            self.next = self.next.next();
        }
        let everywhere =
            settled.map(|settled| Epoch(settled.0.saturating_sub(1))).or(last).unwrap_or_default();
        // The durable frontier says nothing about epochs before this run's first.
        if everywhere > self.given {
            let mut epochs = Vec::new();
            while let Some(ready) = pop_up_to(&mut self.ready, everywhere) {
                epochs.push(ready);
            }
            self.given = everywhere;
            if let Some(sender) = &self.sender {
                // A thread that is gone has ended the process.
                let _ = sender.send(Handed { epochs, up_to: everywhere });
            }
        }
        if let Some(held) = self.held.as_mut().filter(|held| committed.0 >= *held.time()) {
            held.downgrade(&committed.next().0);
        }
        let ended = |last: Epoch| self.next > last && self.given >= last && committed >= last;
        if before.is_none() && last.is_some_and(ended) {
            self.held = None;
            self.sender = None;
        }
        Ok(())
    }
}

/// What a sink's thread is given.
struct Handed<D> {
    epochs: Epochs<D>,
    /// There is nothing else up to here.
    up_to: Epoch,
}

type SinkThread<D> = (Sender<Handed<D>>, Arc<AtomicU64>, thread::JoinHandle<()>);

/// Starts the thread of a sink.
fn sink_thread<D: Send + 'static>(
    name: &str,
    mut sink: impl EpochSink<D> + 'static,
    first: Epoch,
    wake: SyncActivator,
    pulse: &Arc<Pulse>,
) -> Result<SinkThread<D>, Error> {
    let (sender, receiver): (_, Receiver<Handed<D>>) = channel();
    let committed = Arc::new(AtomicU64::new(first.0.saturating_sub(1)));
    let (says, pulse, title) = (Arc::clone(&committed), Arc::clone(pulse), name.to_owned());
    let thread = thread::Builder::new().name("laminar-sink".into()).spawn(move || {
        while let Ok(mut handed) = receiver.recv() {
            // Whatever has come meanwhile goes along, in one commit.
            while let Ok(more) = receiver.try_recv() {
                handed.epochs.extend(more.epochs);
                handed.up_to = more.up_to;
            }
            if !handed.epochs.is_empty()
                && let Err(error) = sink.commit(&handed.epochs)
            {
                fail_stop(&sink_failed(&title, &error));
            }
            says.store(handed.up_to.0, Ordering::Release);
            pulse.beat();
            // A worker that has ended needs no call.
            let _ = wake.activate();
        }
    });
    let thread = thread.map_err(|e| {
        let what = format!("the thread of the sink {name:?} could not be started: {e}");
        Error::worker(Detail::new(what).remedy("Raise the limit of threads (`ulimit -u`), then start again."))
    })?;
    Ok((sender, committed, thread))
}
