//! Inputs that go from epoch to epoch, and not too far ahead of what is durable.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::core::input::Handle;
use timely::dataflow::{InputHandle, ProbeHandle};
use timely::worker::Worker;

use super::start::Process;
use super::watermarks::{Place, Said, Says};
use crate::error::Error;
use crate::fail::fail_stop;
use crate::ledger::{Ledger, OperatorId, pop_up_to};

/// How far the whole job is.
#[derive(Default)]
pub(super) struct Gate {
    /// Everything before the frontiers of all of them is durable, or committed by a sink.
    probes: RefCell<Vec<ProbeHandle<u64>>>,
}

impl Gate {
    pub(super) fn add(&self, probe: ProbeHandle<u64>) {
        self.probes.borrow_mut().push(probe);
    }

    /// Everything before this epoch is durable and committed on all workers; `None` when that is everything.
    pub(super) fn passed(&self) -> Option<Epoch> {
        let least =
            |probe: &ProbeHandle<u64>| probe.with_frontier(|frontier| frontier.iter().next().copied());
        self.probes.borrow().iter().filter_map(least).min().map(Epoch)
    }
}

/// The inputs of a worker, together: the control input goes with the slowest of them.
pub(super) struct Pace {
    control: Option<InputHandle<u64, CapacityContainerBuilder<Vec<Says>>>>,
    /// The first epoch of this run.
    first: Epoch,
    /// This one, among all of the job.
    worker: u64,
    /// The sinks of all workers are where the state is. Before, no epoch ends, whatever is sealed: it would be durable, and
    /// the state no longer that which they are brought to.
    begun: bool,
    /// The epoch that each is in; none once it is finished.
    inputs: Vec<Option<Epoch>>,
    names: Vec<String>,
    /// The largest epoch that was sealed here.
    pub(super) last: Epoch,
    /// What inputs said of their event time and is not sent yet, oldest first.
    said: VecDeque<(Epoch, Says)>,
    /// An input that was dropped before it was finished.
    dropped: Option<String>,
}

impl Pace {
    pub(super) fn new(
        control: InputHandle<u64, CapacityContainerBuilder<Vec<Says>>>,
        worker: usize,
        first: Epoch,
    ) -> Self {
        let last = Epoch(first.0.saturating_sub(1));
        Self {
            control: Some(control),
            first,
            worker: worker as u64,
            begun: false,
            inputs: Vec::new(),
            names: Vec::new(),
            last,
            said: VecDeque::new(),
            dropped: None,
        }
    }

    pub(super) fn add(&mut self, name: &str, first: Epoch) -> usize {
        self.inputs.push(Some(first));
        self.names.push(name.to_owned());
        self.inputs.len() - 1
    }

    /// Ends the process if an input was dropped before it was finished, and the program went on all the same.
    pub(super) fn check(&self) {
        if let Some(name) = &self.dropped {
            fail_stop(&format!(
                "the input {name:?} was dropped before it was finished. Finish it where nothing more comes."
            ));
        }
    }

    /// The first input that is not finished.
    pub(super) fn unfinished(&self) -> Option<&str> {
        let mut inputs = self.inputs.iter().zip(&self.names);
        inputs.find(|(epoch, _)| epoch.is_some()).map(|(_, name)| name.as_str())
    }

    /// What an input says of its event time, with this epoch.
    fn says(&mut self, input: &str, epoch: Epoch, said: Said) {
        let place = Place { worker: self.worker, input: OperatorId::of(input) };
        let at = self.said.partition_point(|(other, _)| *other <= epoch);
        self.said.insert(at, (epoch, (place, said)));
    }

    /// Of the other inputs, the one that is furthest behind: its name, and the epoch that it is in.
    fn slowest_beside(&self, input: usize) -> Option<(&str, Epoch)> {
        let all = self.inputs.iter().zip(&self.names).enumerate();
        let others = all.filter(|(other, _)| *other != input);
        others
            .filter_map(|(_, (epoch, name))| Some((name.as_str(), (*epoch)?)))
            .min_by_key(|(_, epoch)| *epoch)
    }

    /// This input is in another epoch now, or finished.
    fn moved(&mut self, input: usize, to: Option<Epoch>) {
        if let Some(place) = self.inputs.get_mut(input) {
            *place = to;
        }
        self.follow();
    }

    /// Lets epochs end from here on.
    pub(super) fn begin(&mut self) {
        self.begun = true;
        for name in self.names.clone() {
            self.says(&name, self.first, Said::Begins);
        }
        self.follow();
    }

    /// Lets the control input follow the slowest; when all are finished, it is.
    fn follow(&mut self) {
        if !self.begun {
            return;
        }
        let slowest = self.inputs.iter().flatten().min().copied();
        let Some(control) = &mut self.control else { return };
        // What is said in an epoch counts with its rows, so not before all inputs have passed it.
        let passed = slowest.map_or(Epoch::MAX, |slowest| Epoch(slowest.0.saturating_sub(1)));
        while let Some((epoch, says)) = pop_up_to(&mut self.said, passed) {
            control.advance_to(epoch.0.max(*control.time()));
            control.send(says);
        }
        match slowest {
            Some(slowest) => control.advance_to(slowest.0.max(*control.time())),
            None => self.control = None,
        }
    }
}

/// Puts rows into the job, epoch by epoch. Made by [`crate::Flow::input`], on every worker.
///
/// What is sent before a [`Self::seal`] belongs to its epoch, together with the source offsets that were named: after a
/// crash, both are there or neither. Sealing waits while the worker is too far ahead of what is durable and committed.
///
/// An input is [finished](Self::finish) when there is nothing more to come. Dropping it before ends the process, because
/// the other workers would take that for the end of its data.
pub struct EpochInput<D: Clone + 'static> {
    handle: Option<Handle<u64, CapacityContainerBuilder<Vec<D>>>>,
    number: usize,
    name: String,
    epoch: Epoch,
    bytes: u64,
    /// Something was sent since the last seal, however few bytes it has.
    sent: bool,
    /// Bytes of epochs that are not durable everywhere, oldest first.
    ahead: VecDeque<(Epoch, u64)>,
    ahead_bytes: u64,
    offsets: Vec<(String, u64)>,
    /// To be said with the next seal.
    watermark: Option<i64>,
    parts: InputParts,
}

/// What inputs share.
#[derive(Clone)]
pub(super) struct InputParts {
    pub(super) worker: Worker,
    pub(super) process: Arc<Process>,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    pub(super) gate: Rc<Gate>,
    pub(super) pace: Rc<RefCell<Pace>>,
}

impl<D: Clone + 'static> EpochInput<D> {
    pub(super) fn new(
        name: &str,
        mut handle: Handle<u64, CapacityContainerBuilder<Vec<D>>>,
        parts: InputParts,
    ) -> Self {
        let epoch = parts.ledger.borrow().current();
        handle.advance_to(epoch.0);
        let number = parts.pace.borrow_mut().add(name, epoch);
        Self {
            handle: Some(handle),
            number,
            name: name.to_owned(),
            epoch,
            bytes: 0,
            sent: false,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            offsets: Vec::new(),
            watermark: None,
            parts,
        }
    }

    /// The epoch that rows belong to now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Puts a row into the current epoch.
    #[inline]
    pub fn send(&mut self, row: D) {
        self.bytes += size_of::<D>() as u64;
        self.sent = true;
        if let Some(handle) = &mut self.handle {
            handle.send(row);
        }
    }

    /// As [`Self::send`], for a row that owns so many bytes elsewhere.
    pub fn send_sized(&mut self, row: D, bytes: u64) {
        self.bytes += bytes;
        self.send(row);
    }

    /// Puts rows into the current epoch, and leaves the vector empty.
    pub fn send_batch(&mut self, rows: &mut Vec<D>) {
        self.bytes += (rows.len() * size_of::<D>()) as u64;
        self.sent |= !rows.is_empty();
        if let Some(handle) = &mut self.handle {
            handle.send_batch(rows);
        }
        // Where nobody takes them they stay.
        rows.clear();
    }

    /// Where to go on reading `source` when this epoch is the last that survives. Offsets of a source only grow, and a source
    /// is read by one worker at a time: one that goes back from what this worker sealed, or the job recovered to, ends the process.
    pub fn set_source_offset(&mut self, source: &str, offset: u64) {
        match self.offsets.iter_mut().find(|(name, _)| name == source) {
            Some((_, known)) => *known = offset,
            None => self.offsets.push((source.to_owned(), offset)),
        }
    }

    /// Says that no row with an event time before `watermark` will come on this input, from the next epoch on.
    ///
    /// Once this was said for an input on any worker, that input holds windows open on every worker, until it has said one there
    /// as well, or is finished. What was said is part of the state: after a restart it holds until more is said, and after a
    /// change of size until every worker has said it anew. An input for which nobody ever said one holds nothing open: where
    /// there are several, say one for each before the first epoch is sealed, be it `i64::MIN`.
    pub fn set_watermark(&mut self, watermark: i64) {
        self.watermark = Some(watermark);
    }

    /// Ends the current epoch on this input, and returns its number. Works on the dataflow until the worker is no more than
    /// [`crate::Config::max_ahead_epochs`] ahead.
    ///
    /// # Errors
    /// `Config` when the rows of this epoch alone are more than [`crate::Config::max_ahead_bytes`], and when this input
    /// would have to wait for another one of the same worker, which only the program can seal; a failed store.
    pub fn seal(&mut self) -> Result<Epoch, Error> {
        let sealed = self.epoch;
        let limit = self.parts.process.config.max_ahead_bytes;
        if self.bytes > limit {
            return Err(Error::config(
                Detail::new(format!(
                    "the input {:?} has {} bytes in one epoch, max_ahead_bytes is {limit}",
                    self.name, self.bytes
                ))
                .in_epoch(sealed)
                .remedy("Seal more often, or allow more bytes."),
            ));
        }
        if !self.offsets.is_empty() {
            self.parts.ledger.borrow_mut().offsets(sealed, std::mem::take(&mut self.offsets));
        }
        self.ahead.push_back((sealed, self.bytes));
        self.ahead_bytes += std::mem::take(&mut self.bytes);
        self.sent = false;
        self.epoch = sealed.next();
        if let Some(handle) = &mut self.handle {
            handle.advance_to(self.epoch.0);
        }
        {
            let mut pace = self.parts.pace.borrow_mut();
            pace.last = pace.last.max(sealed);
            if let Some(watermark) = self.watermark.take() {
                pace.says(&self.name, sealed, Said::Watermark(watermark));
            }
            pace.moved(self.number, Some(self.epoch));
        }
        self.wait()?;
        Ok(sealed)
    }

    /// Works on the dataflow until this input is not too far ahead.
    fn wait(&mut self) -> Result<(), Error> {
        self.parts.pace.borrow().check();
        // Once in any case: a program that only sends would never get its rows going.
        self.parts.worker.step();
        if !self.is_too_far() {
            return Ok(());
        }
        self.check_others()?;
        let _waits = self.parts.process.pulse.waits();
        while self.is_too_far() {
            self.parts.worker.step_or_park(Some(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// What another input of this worker has not sealed is not durable before the program seals it, which it cannot while this one
    /// waits: is this one too far ahead of that?
    fn check_others(&self) -> Result<(), Error> {
        let pace = self.parts.pace.borrow();
        let Some((other, epoch)) = pace.slowest_beside(self.number) else { return Ok(()) };
        let stay = self.ahead.iter().filter(|(ahead, _)| *ahead >= epoch);
        let (epochs, bytes) = stay.fold((0, 0), |(epochs, bytes), (_, more)| (epochs + 1, bytes + more));
        let config = &self.parts.process.config;
        if epochs <= config.max_ahead_epochs && bytes <= config.max_ahead_bytes {
            return Ok(());
        }
        let (name, here) = (&self.name, self.epoch);
        let what = format!(
            "the input {name:?} is in epoch {here} and as far ahead as it may be, and the input {other:?} of the same worker still in epoch {epoch}"
        );
        Err(Error::config(Detail::new(what).remedy(
            "Seal all inputs of a worker in turns, also where one has nothing to send, or finish those where nothing more comes.",
        )))
    }

    fn is_too_far(&mut self) -> bool {
        let passed = self.parts.gate.passed();
        let durable = passed.map_or(Epoch::MAX, |passed| Epoch(passed.0.saturating_sub(1)));
        while let Some((_, bytes)) = pop_up_to(&mut self.ahead, durable) {
            self.ahead_bytes -= bytes;
        }
        let config = &self.parts.process.config;
        self.ahead.len() as u64 > config.max_ahead_epochs || self.ahead_bytes > config.max_ahead_bytes
    }

    /// Works on the dataflow for a moment: for a program that has nothing to send just now.
    pub fn idle(&mut self, at_most: Duration) {
        self.parts.pace.borrow().check();
        self.parts.worker.step_or_park(Some(at_most));
    }

    /// There is nothing more to come on this worker. What was sent since the last seal is sealed first.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn finish(mut self) -> Result<(), Error> {
        if self.sent || self.watermark.is_some() || !self.offsets.is_empty() {
            self.seal()?;
        }
        self.handle = None;
        let mut pace = self.parts.pace.borrow_mut();
        pace.says(&self.name, self.epoch, Said::Finished);
        pace.moved(self.number, None);
        drop(pace);
        Ok(())
    }
}

impl<D: Clone + 'static> std::fmt::Debug for EpochInput<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EpochInput")
            .field("name", &self.name)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl<D: Clone + 'static> Drop for EpochInput<D> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            // Never closed: nobody may take this for the end of its data. Why it was dropped, whoever runs the program learns
            // first, and ends the process.
            std::mem::forget(handle);
            self.parts.pace.borrow_mut().dropped = Some(self.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_at(pace: &Pace) -> Option<u64> {
        pace.control.as_ref().map(|control| *control.time())
    }

    /// What was sealed while the dataflow was built could be durable before the sinks were asked whether they can go on.
    #[test]
    fn no_epoch_ends_before_the_job_has_begun() {
        let mut control = InputHandle::new();
        control.advance_to(5);
        let mut pace = Pace::new(control, 0, Epoch(5));
        let inputs = ["one", "other"].map(|name| pace.add(name, Epoch(5)));
        pace.moved(inputs[0], Some(Epoch(9)));
        pace.moved(inputs[1], None);
        assert_eq!(is_at(&pace), Some(5));
        pace.begin();
        assert_eq!(is_at(&pace), Some(9));
        pace.moved(inputs[0], None);
        assert_eq!(is_at(&pace), None);
    }
}
