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
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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

use super::begin::{Epochs, Known, Opened, sink_failed};
use super::job::Flow;
use super::{Stash, check_stash, or_end, stash_of, upper};
use crate::codec::Codec;
use crate::error::Error;
use crate::fail::{Pulse, fail_stop};
use crate::layout::Restored;
use crate::ledger::{Kind, Ledger, OperatorId, PREFIX_LEN, Seat, pop_up_to, prefix, split_key, undecodable};
use crate::sink::{EpochSink, SinkPart};

/// A value of the state holds at most so many bytes of rows.
const CHUNK: usize = 1 << 20;

/// Rows that wait for the parts of a sink.
type Waiting<D> = BTreeMap<SinkPart, Epochs<D>>;

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
    /// that did not get everything. Whether all of them can go on is found out when the dataflow is declared, on all workers:
    /// [`crate::Job::dataflow`] says so, and changes none before; until then all parts are open at once. Returns a stream
    /// without rows, whose frontier says what is committed on all workers.
    ///
    /// # Errors
    /// What `open` returns; `Config` for a name that is used already.
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
        let (old, mut waiting) = self.waiting(operator)?;
        let own = self.open(operator, name, part, open(part)?, &mut waiting)?;
        let restored = self.restored().into_iter().flat_map(Restored::sinks);
        let here = restored.filter(|old| old.worker as usize % self.scope.peers() == self.scope.index());
        let earlier = self.parts_of_earlier_sizes(operator, part);
        let others: BTreeSet<_> = here.chain(waiting.keys().copied()).chain(earlier).collect();
        let others = others.into_iter().filter(|other| *other != part);
        let others: Result<Vec<_>, _> =
            others.map(|other| self.open(operator, name, other, open(other)?, &mut waiting)).collect();
        let outbox =
            Outbox { operator, part, keys: BTreeMap::new(), old, bytes: Vec::new(), key: Vec::new() };
        Ok(self.sink_operator(stream, name, Begins { own, others: others? }, outbox))
    }

    /// Parts whose rows the state gave up in earlier sizes of the job: what they have must still be there when the job goes on in this
    /// one. Once this size has given up rows of its own, it did.
    fn parts_of_earlier_sizes(&self, operator: OperatorId, own: SinkPart) -> Vec<SinkPart> {
        let ledger = self.parts.ledger.borrow();
        let notes = ledger.core.iter().filter_map(|(key, _)| match split_key(key) {
            Some((Kind::Committed, of, _)) if of == operator => part_of_committed(key),
            _ => None,
        });
        let notes: Vec<_> = notes.collect();
        if notes.iter().any(|part| part.generation == own.generation) { Vec::new() } else { notes }
    }

    /// Rows that wait for this sink, of all its parts that are this worker's, and their keys.
    fn waiting<D: Codec>(&self, operator: OperatorId) -> Result<(Vec<Vec<u8>>, Waiting<D>), Error> {
        let keys = self.waiting.borrow_mut().remove(&operator).unwrap_or_default();
        let ledger = self.parts.ledger.borrow();
        let mut waiting = Waiting::new();
        for key in &keys {
            let (of, epoch) =
                part_of(key).ok_or_else(|| undecodable("the key of rows that wait for a sink"))?;
            let rows = decode_rows(ledger.core.get(key).unwrap_or_default())?;
            let epochs = waiting.entry(of).or_default();
            match epochs.last_mut().filter(|(last, _)| *last == epoch) {
                Some((_, known)) => known.extend(rows),
                None => epochs.push((epoch, rows)),
            }
        }
        if self.parts.process.config.mistakes.forget_waiting_rows {
            waiting.clear();
        }
        Ok((keys, waiting))
    }

    /// If the state is that of a backup still.
    fn restored(&self) -> Option<Restored> {
        let restored = self.parts.process.restored.get().copied();
        restored.filter(|restored| restored.is_still(self.recovered.point))
    }

    /// Asks a sink that was opened whether it can go on. Nothing is committed that is not durable everywhere, and what was
    /// committed still is: its rows are gone from the state.
    fn open<D, S: EpochSink<D>>(
        &self,
        operator: OperatorId,
        name: &str,
        part: SinkPart,
        mut sink: S,
        waiting: &mut Waiting<D>,
    ) -> Result<Opened<D, S>, Error> {
        let restored = self.restored();
        let mut key = Vec::new();
        committed_key(operator, part, &mut key);
        let had = match self.parts.ledger.borrow().core.get(&key) {
            Some(bytes) => Epoch(u64::decode_all(bytes).ok_or_else(|| undecodable("what a sink has"))?),
            None => Epoch(0),
        };
        let rows = waiting.get(&part).and_then(|epochs| epochs.last());
        let last = rows.map_or(Epoch::ZERO, |(epoch, _)| *epoch);
        let point = match restored {
            Some(restored) => restored.epoch,
            // All rows of an earlier size are given up or wait.
            None if part.generation < self.recovered.generation.0 => had.max(last),
            None => self.recovered.point,
        };
        let known = Known { name, part, point, restored: restored.is_some(), had };
        let cut = known.ask(&mut sink).unwrap_or_else(|refusal| {
            self.sinks.borrow_mut().refusals.push(refusal);
            None
        });
        let waiting = waiting.remove(&part).unwrap_or_default();
        Ok(Opened { part, sink, cut, waiting })
    }

    fn sink_operator<D, S>(
        &mut self,
        stream: StreamVec<'scope, u64, D>,
        name: &str,
        begins: Begins<D, S>,
        outbox: Outbox,
    ) -> StreamVec<'scope, u64, ()>
    where
        D: Codec + Clone + Send + 'static,
        S: EpochSink<D> + 'static,
    {
        let (ledger, pulse) = (Rc::clone(&self.parts.ledger), Arc::clone(&self.parts.process.pulse));
        let (scope, threads, first) = (self.scope, Rc::clone(&self.threads), self.recovered.first);
        let sinks = Rc::clone(&self.sinks);
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
                let (sender, receiver) = channel();
                let committed = Arc::new(AtomicU64::new(0));
                let thread = SinkThread {
                    name: title.clone(),
                    receiver,
                    committed: Arc::clone(&committed),
                    wake,
                    pulse,
                };
                sinks.borrow_mut().begin.push(Box::new(move || {
                    let sink = begins.begin(&thread.name, &thread.pulse)?;
                    threads.borrow_mut().push(thread.start(sink, first)?);
                    Ok(())
                }));
                let held = Some(capability.delayed(&first.0));
                let mut turn = Turn {
                    title,
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
                        let stash = stash_of(&mut turn.stash, &capability, &turn.title, turn.next);
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

/// The parts of a sink that are this worker's, before the job begins.
struct Begins<D, S> {
    own: Opened<D, S>,
    /// Of workers that an earlier size of the job had.
    others: Vec<Opened<D, S>>,
}

impl<D, S: EpochSink<D>> Begins<D, S> {
    /// Brings all of them to where the state is; this worker's goes on from there.
    fn begin(self, name: &str, pulse: &Pulse) -> Result<S, Error> {
        self.others.into_iter().try_for_each(|other| other.begin(name, pulse).map(drop))?;
        self.own.begin(name, pulse)
    }
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
    /// Keys of rows of earlier runs, which are committed when the job begins.
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
            let before = self.bytes.len();
            row.encode(&mut self.bytes);
            if self.bytes.len() == before {
                return Err(Error::sink(
                    Detail::new(
                        "a row for a sink is encoded as no bytes, so that nobody could count how many wait",
                    )
                    .remedy("Give rows a type whose values take a byte at least."),
                ));
            }
            // A large row is not put behind others: a value has its limit.
            if before > 0 && self.bytes.len() > CHUNK {
                let row = self.bytes.split_off(before);
                self.put_chunk(ledger, epoch, chunks)?;
                chunks += 1;
                self.bytes = row;
            }
            if self.bytes.len() >= CHUNK || index + 1 == rows.len() {
                self.put_chunk(ledger, epoch, chunks)?;
                chunks += 1;
            }
        }
        if chunks > 0 {
            self.keys.insert(epoch, chunks);
        }
        Ok(())
    }

    fn put_chunk(&mut self, ledger: &mut Ledger, epoch: Epoch, number: u32) -> Result<(), Error> {
        waiting_key(self.operator, self.part, epoch, number, &mut self.key);
        ledger.core.put(&self.key, &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    /// Removes what is committed.
    fn remove(&mut self, ledger: &mut Ledger, committed: Epoch) -> Result<(), Error> {
        let mut gone = BTreeMap::<SinkPart, Epoch>::new();
        // Before the job begins nothing is.
        let old = if committed > Epoch::ZERO { std::mem::take(&mut self.old) } else { Vec::new() };
        for key in old {
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
    /// The name of the sink.
    title: String,
    outbox: Outbox,
    seat: Seat,
    ledger: Rc<RefCell<Ledger>>,
    stash: Stash<D>,
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
        if let Some(last) = last.filter(|last| before.is_none() && ended(*last)) {
            check_stash(&self.title, last, &self.stash)?;
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

/// The thread of a sink, which starts when the job begins. What it is given before waits for it.
struct SinkThread<D> {
    name: String,
    receiver: Receiver<Handed<D>>,
    /// Nothing until the job begins.
    committed: Arc<AtomicU64>,
    wake: SyncActivator,
    pulse: Arc<Pulse>,
}

impl<D: Send + 'static> SinkThread<D> {
    /// Starts it with a sink that has everything before the epoch `first`.
    fn start(
        self,
        mut sink: impl EpochSink<D> + 'static,
        first: Epoch,
    ) -> Result<thread::JoinHandle<()>, Error> {
        let Self { name, receiver, committed, wake, pulse } = self;
        let title = format!("the sink {name:?}");
        committed.store(first.0.saturating_sub(1), Ordering::Release);
        let thread = thread::Builder::new().name("laminar-sink".into()).spawn(move || {
            // A worker that has ended needs no call, here and below.
            let _ = wake.activate();
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
                committed.store(handed.up_to.0, Ordering::Release);
                pulse.beat();
                let _ = wake.activate();
            }
        });
        thread.map_err(|e| {
            let what = format!("the thread of the sink {name:?} could not be started: {e}");
            Error::worker(
                Detail::new(what).remedy("Raise the limit of threads (`ulimit -u`), then start again."),
            )
        })
    }
}
