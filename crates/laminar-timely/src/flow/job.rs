//! What the program's code sees on a worker.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use laminar_storage::Epoch;
#[cfg(feature = "object-store")]
use laminar_storage::backup::{BackupError, WholeId};
use laminar_storage::error::Detail;
use timely::dataflow::operators::Input;
use timely::dataflow::{InputHandle, ProbeHandle, Scope, StreamVec};
use timely::worker::Worker;

use super::begin::Sinks;
use super::durable::{durable, settle};
use super::gather::gather;
use super::input::{EpochInput, Gate, InputParts, Pace};
#[cfg(feature = "object-store")]
use super::marks::marks;
use super::sink::part_of;
use super::start::Process;
#[cfg(feature = "object-store")]
use super::start::begin_backups;
use super::watermarks::Says;
use crate::error::Error;
use crate::layout::Generation;
use crate::ledger::{Kind, Ledger, OperatorId, split_key};

/// Where a job goes on, the same on all workers.
#[derive(Clone, Debug)]
pub(super) struct Recovered {
    pub(super) point: Epoch,
    pub(super) first: Epoch,
    pub(super) generation: Generation,
    pub(super) offsets: BTreeMap<String, u64>,
}

/// Keys of rows that wait for their sink, by operator.
pub(super) type Waiting = BTreeMap<OperatorId, Vec<Vec<u8>>>;

/// A job on one worker: what was recovered, and the dataflow. Given to what [`crate::run`] runs.
pub struct Job {
    worker: Worker,
    process: Arc<Process>,
    recovered: Recovered,
    ledger: Rc<RefCell<Ledger>>,
    gate: Rc<Gate>,
    pace: Option<Rc<RefCell<Pace>>>,
    waiting: Rc<RefCell<Waiting>>,
    threads: Rc<RefCell<Vec<JoinHandle<()>>>>,
    /// Behind what all processes have backed up.
    #[cfg(feature = "object-store")]
    backed_up: Option<ProbeHandle<u64>>,
}

impl Job {
    pub(super) fn new(
        worker: &Worker,
        process: &Arc<Process>,
        ledger: Ledger,
        recovered: Recovered,
    ) -> Result<Self, Error> {
        let mut waiting = Waiting::new();
        for (key, _) in &ledger.core {
            if let Some((Kind::Waiting, operator, _)) = split_key(key) {
                waiting.entry(operator).or_default().push(key.to_vec());
            }
        }
        waiting.values_mut().for_each(|keys| keys.sort_unstable());
        Ok(Self {
            worker: worker.clone(),
            process: Arc::clone(process),
            recovered,
            ledger: Rc::new(RefCell::new(ledger)),
            gate: Rc::default(),
            pace: None,
            waiting: Rc::new(RefCell::new(waiting)),
            threads: Rc::default(),
            #[cfg(feature = "object-store")]
            backed_up: None,
        })
    }

    /// This worker among all workers of all processes, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.worker.index()
    }

    /// How many workers there are, in all processes.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.worker.peers()
    }

    /// The epoch that the state was recovered to, on all workers; 0 for a new job.
    #[must_use]
    pub fn recovery_point(&self) -> Epoch {
        self.recovered.point
    }

    /// The first epoch of this run. It is above every epoch that any process ever used, whether or not that one survived, so
    /// that nothing of an earlier run can be taken for something of this one.
    #[must_use]
    pub fn resume_epoch(&self) -> Epoch {
        self.recovered.first
    }

    /// Where to go on reading `source`: the offset that was sealed with the recovered state, whichever worker read it.
    #[must_use]
    pub fn source_offset(&self, source: &str) -> Option<u64> {
        self.recovered.offsets.get(source).copied()
    }

    /// All source offsets of the recovered state.
    #[must_use]
    pub fn source_offsets(&self) -> &BTreeMap<String, u64> {
        &self.recovered.offsets
    }

    /// Everything up to this epoch is durable on all workers and committed by all sinks of all workers.
    #[must_use]
    pub fn committed_epoch(&self) -> Epoch {
        let last = self.ledger.borrow().last();
        self.gate.passed().map_or(last.unwrap_or_default(), |passed| Epoch(passed.0.saturating_sub(1)))
    }

    /// Works on the dataflow for a moment.
    pub fn idle(&mut self, at_most: Duration) {
        if let Some(pace) = &self.pace {
            pace.borrow().check();
        }
        self.worker.step_or_park(Some(at_most));
    }

    /// Builds the dataflow of the job; once, and the same one on all workers. It waits until all of them have: the job
    /// begins then, and what is before it, sinks that open and catch up included, is [`crate::Config::start_timeout`]'s.
    ///
    /// # Errors
    /// What `build` returns; `Config` when it is called again. `Sink` when a sink of any worker is ahead of the state or has
    /// lost what it had committed: no sink of any worker is changed then. `Sink` also when one does not take what it had not.
    pub fn dataflow<R>(
        &mut self,
        build: impl for<'scope> FnOnce(&mut Flow<'scope>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.pace.is_some() {
            return Err(Error::config(
                Detail::new("the dataflow of the job is built twice")
                    .remedy("Build all of it in one call: everything in it shares one log and one seal."),
            ));
        }
        let (first, mut worker) = (self.recovered.first, self.worker.clone());
        let sinks = Rc::<RefCell<Sinks>>::default();
        let (built, pace) = worker.dataflow::<u64, _, _>(|scope| {
            let mut control = InputHandle::new();
            let stream: StreamVec<u64, Says> = scope.input_from(&mut control);
            control.advance_to(first.0);
            let pace = Rc::new(RefCell::new(Pace::new(control, self.worker.index(), first)));
            let durable = durable(stream.clone(), &self.ledger, &self.process);
            let settled = self.settled(durable.clone(), first);
            self.gate.add(settled);
            let parts = InputParts {
                worker: self.worker.clone(),
                process: Arc::clone(&self.process),
                ledger: Rc::clone(&self.ledger),
                gate: Rc::clone(&self.gate),
                pace: Rc::clone(&pace),
            };
            let mut flow = Flow {
                scope,
                durable,
                says: stream,
                parts,
                recovered: self.recovered.clone(),
                names: BTreeSet::new(),
                operators: BTreeSet::new(),
                waiting: Rc::clone(&self.waiting),
                threads: Rc::clone(&self.threads),
                sinks: Rc::clone(&sinks),
            };
            (build(&mut flow), pace)
        });
        self.pace = Some(Rc::clone(&pace));
        let built = built?;
        self.tell_of_strange_rows();
        sinks.take().begin(&mut worker, &self.process.pulse)?;
        #[cfg(feature = "object-store")]
        begin_backups(&mut worker, &self.process, &self.recovered)?;
        // Another worker's sink may take long to open and to catch up, and says nothing meanwhile: the job begins, and what
        // counts as a stall with it, when all are there.
        gather(&mut worker, &self.process.pulse, &())?;
        // A dataflow without inputs ends at once.
        pace.borrow_mut().begin();
        self.process.pulse.start();
        Ok(built)
    }

    /// Rows that wait for a sink which is not in the dataflow stay where they are: nobody knows whether it has them.
    fn tell_of_strange_rows(&self) {
        let waiting = self.waiting.borrow();
        let epochs = waiting.values().flatten().filter_map(|key| part_of(key)).map(|(_, epoch)| epoch);
        if let Some(newest) = epochs.max() {
            tracing::warn!(
                worker = self.index(),
                sinks = waiting.len(),
                %newest,
                "the state has rows for sinks that this program does not have, by their names; they stay there. They were committed \
                 if the job came to its end the last time; if not, give the sinks their names back, and let it end or commit them"
            );
        }
    }

    /// Settles what is durable everywhere, and has marked epochs backed up where that is asked for.
    fn settled(&mut self, durable: StreamVec<'_, u64, ()>, first: Epoch) -> ProbeHandle<u64> {
        #[cfg(feature = "object-store")]
        if let Some(backups) = &self.process.config.backups {
            let (marks, complete) = marks(durable, first, backups.every, &self.ledger, &self.process);
            self.backed_up = Some(complete);
            let process = Arc::clone(&self.process);
            return settle(marks, first, &self.ledger, &self.process, move |id: String| {
                process.settle_marked(&id)
            });
        }
        settle(durable, first, &self.ledger, &self.process, |()| Ok(()))
    }

    /// The newest epoch of this run that all processes have backed up; none while there is no such backup.
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backed_up_epoch(&self) -> Option<Epoch> {
        let least = self.backed_up.as_ref()?.with_frontier(|frontier| frontier.iter().next().copied())?;
        Some(Epoch(least.saturating_sub(1))).filter(|epoch| *epoch >= self.recovered.first)
    }

    /// Why the last try to back this process' part up failed; none once one has succeeded. Another is made by itself, but for
    /// `Fenced`, `Foreign` and `InvalidInput`: then there are no more backups of the job until it is started again.
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_error(&self) -> Option<BackupError> {
        self.process.backup_error()
    }

    /// Ends the job in order: all workers agree which epoch is the last, and stay until it is durable and committed
    /// everywhere.
    pub(super) fn complete(mut self) -> Result<(), Error> {
        let before = Epoch(self.recovered.first.0.saturating_sub(1));
        let last = match &self.pace {
            None => before,
            Some(pace) => {
                let pace = pace.borrow();
                if let Some(name) = pace.unfinished() {
                    return Err(Error::program(
                        format!("the program returned before the input {name:?} was finished"),
                        "Finish every input, on every worker, also where it has nothing to send.",
                    ));
                }
                pace.last
            }
        };
        let all = gather(&mut self.worker, &self.process.pulse, &last.0)?;
        let last = all.into_iter().max().map_or(before, Epoch);
        self.ledger.borrow_mut().ends_with(last);
        {
            let _waits = self.process.pulse.waits();
            while self.gate.passed().is_some() {
                self.worker.step_or_park(Some(Duration::from_millis(100)));
            }
        }
        #[cfg(feature = "object-store")]
        if self.process.config.backups.is_some() {
            // Where no epoch came, the state is what was recovered.
            let end = if last > before { last } else { self.recovered.point };
            let proposal = WholeId::new(end).to_string();
            let all = gather(&mut self.worker, &self.process.pulse, &proposal)?;
            self.process.back_up_last(all.first().map_or("", String::as_str))?;
        }
        let _waits = self.process.pulse.waits();
        for thread in self.threads.take() {
            if thread.join().is_err() {
                return Err(Error::worker(
                    Detail::new("the thread of a sink panicked").remedy("Start again."),
                ));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("worker", &self.index())
            .field("recovered", &self.recovered)
            .finish_non_exhaustive()
    }
}

/// The dataflow of a job while it is built: inputs, operators with state, sinks. Streams are timely's, so that all of its
/// operators that keep no state go in between; epochs are timestamps.
pub struct Flow<'scope> {
    pub(super) scope: Scope<'scope, u64>,
    /// Its frontier is the durable frontier.
    pub(super) durable: StreamVec<'scope, u64, ()>,
    /// What inputs say of their event time.
    pub(super) says: StreamVec<'scope, u64, Says>,
    pub(super) parts: InputParts,
    pub(super) recovered: Recovered,
    names: BTreeSet<String>,
    operators: BTreeSet<OperatorId>,
    pub(super) waiting: Rc<RefCell<Waiting>>,
    pub(super) threads: Rc<RefCell<Vec<JoinHandle<()>>>>,
    pub(super) sinks: Rc<RefCell<Sinks>>,
}

impl<'scope> Flow<'scope> {
    /// Timely's scope, for operators without state.
    #[must_use]
    pub fn scope(&self) -> Scope<'scope, u64> {
        self.scope
    }

    /// An input, on this worker, and the stream of its rows.
    ///
    /// # Errors
    /// `Config` for a name that is used already.
    pub fn input<D: Clone + 'static>(
        &mut self,
        name: &str,
    ) -> Result<(EpochInput<D>, StreamVec<'scope, u64, D>), Error> {
        self.claim(name)?;
        let (handle, stream) = timely::dataflow::operators::vec::Input::new_input(&self.scope);
        Ok((EpochInput::new(name, handle, self.parts.clone()), stream))
    }

    /// A stream without rows, whose frontier is the **durable frontier**: everything before it is synced on all workers of all
    /// processes, and survives any crash of any of them.
    #[must_use]
    pub fn durable(&self) -> StreamVec<'scope, u64, ()> {
        self.durable.clone()
    }

    /// A name for something with state, once in a job.
    pub(super) fn claim(&mut self, name: &str) -> Result<OperatorId, Error> {
        let refused = |what: String| {
            Err(Error::config(
                Detail::new(what).remedy("Give every input, operator and sink a name of its own."),
            ))
        };
        if name.is_empty() {
            return refused("a name is empty".to_owned());
        }
        if !self.names.insert(name.to_owned()) {
            return refused(format!("the name {name:?} stands twice in the dataflow"));
        }
        let operator = OperatorId::of(name);
        if !self.operators.insert(operator) {
            return refused(format!("the name {name:?} is kept under the same number as another one"));
        }
        Ok(operator)
    }
}

impl std::fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("names", &self.names).finish_non_exhaustive()
    }
}
