//! The fold in memory: timely, a hash map with the hash function that the job uses too, rows in the order of keys.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use laminar_timely::timely::communication::Config as Communication;
use laminar_timely::timely::container::CapacityContainerBuilder;
use laminar_timely::timely::dataflow::channels::pact::Exchange;
use laminar_timely::timely::dataflow::operators::{Input, Operator, Probe};
use laminar_timely::timely::dataflow::{InputHandle, ProbeHandle, StreamVec};
use laminar_timely::timely::worker::Worker;
use laminar_timely::timely::{Config as Timely, WorkerConfig, execute};
use rapidhash::fast::RandomState;

use crate::device::BareLog;
use crate::{AHEAD, Cell, Source, mix, note, of_workers};

type Events = InputHandle<u64, CapacityContainerBuilder<Vec<(u64, u64)>>>;

fn config(cell: &Cell, process: usize) -> Timely {
    let communication = match (cell.hosts.len(), cell.workers) {
        (1, 1) => Communication::Thread,
        (1, workers) => Communication::Process(workers),
        (_, threads) => {
            let addresses = cell.hosts.clone();
            Communication::Cluster { threads, process, addresses, report: false, zerocopy: false }
        }
    };
    Timely { communication, worker: WorkerConfig::default() }
}

/// Whose log it is, if there is one.
type Logged<'a> = Option<(&'a Cell, usize)>;

/// The dataflow, with a probe behind the epochs that are done.
fn dataflow(worker: &mut Worker, logged: Logged<'_>) -> (Events, ProbeHandle<u64>) {
    let mut input = InputHandle::new();
    let probe = worker.dataflow::<u64, _, _>(|scope| fold(scope.input_from(&mut input), logged));
    (input, probe)
}

fn fold(stream: StreamVec<'_, u64, (u64, u64)>, logged: Logged<'_>) -> ProbeHandle<u64> {
    let worker = stream.scope().worker().clone();
    let folded = stream.unary_frontier::<CapacityContainerBuilder<Vec<(u64, (u64, u64))>>, _, _, _>(
        Exchange::new(|(key, _): &(u64, u64)| mix(*key)),
        "fold",
        |capability, info| {
            let mut held = Some(capability);
            let activator = worker.sync_activator_for(info.address.to_vec());
            // Once the worker is gone there is nobody to wake.
            let wake = move || {
                let _ = activator.activate();
            };
            let log = logged.map(|(cell, process)| BareLog::start(cell, process, worker.index(), wake));
            let mut logged_below = 0;
            // The last number is the epoch in which it changed last.
            let mut state = HashMap::<u64, (u64, u64, u64), RandomState>::default();
            let mut changed = Vec::new();
            let mut stash = BTreeMap::<u64, Vec<(u64, u64)>>::new();
            move |(input, frontier), output| {
                input.for_each_stamp(|stamp, data| {
                    let rows = stash.entry(*stamp.least().unwrap()).or_default();
                    data.for_each(|more| rows.append(more));
                });
                let upper = frontier.frontier().iter().next().copied();
                while let Some(first) = stash.first_entry().filter(|e| upper.is_none_or(|u| *e.key() < u)) {
                    let (epoch, rows) = first.remove_entry();
                    for (key, value) in rows {
                        let known = state.entry(key).or_insert((0, 0, u64::MAX));
                        if known.2 != epoch {
                            changed.push(key);
                        }
                        *known = (known.0 + 1, known.1 + value, epoch);
                    }
                    changed.sort_unstable();
                    if let Some(log) = &log {
                        let row = |key: &u64| [*key, state[key].0, state[key].1].map(u64::to_le_bytes);
                        log.append(epoch, changed.iter().flat_map(row).flatten().collect());
                        logged_below = epoch + 1;
                    }
                    let out = changed.drain(..).map(|key| (key, (state[&key].0, state[&key].1)));
                    if let Some(held) = &held {
                        output.session(&held.delayed(&epoch)).give_iterator(out);
                    }
                }
                // What is not durable is held back.
                let durable_below = log.as_ref().map_or(logged_below, BareLog::durable_below);
                let upper = if durable_below < logged_below { Some(durable_below) } else { upper };
                match (upper, &mut held) {
                    (Some(upper), Some(held)) if upper > *held.time() => held.downgrade(&upper),
                    (Some(_), _) => {}
                    (None, _) => held = None,
                }
            }
        },
    );
    folded.probe().0
}

/// Epochs per second, of which each is logged and synced or none is.
pub fn throughput(cell: &Cell, process: usize, logged: bool) -> (f64, u64) {
    let (config, cell) = (config(cell, process), cell.clone());
    let guards = execute(config, move |worker| {
        let (mut input, probe) = dataflow(worker, logged.then_some((&cell, process)));
        // All workers begin together, files of logs included.
        input.advance_to(1);
        while probe.less_than(&1) {
            worker.step_or_park(Some(Duration::from_millis(100)));
        }
        let source = Source::new(&cell, worker.index());
        let (started, mut epoch) = (Instant::now(), 0);
        while started.elapsed() < cell.time {
            source.events(epoch, |event| input.send(event));
            epoch += 1;
            input.advance_to(epoch + 1);
            worker.step();
            while probe.less_than(&(epoch + 1).saturating_sub(AHEAD)) {
                worker.step_or_park(Some(Duration::from_millis(10)));
            }
        }
        input.close();
        while !probe.done() {
            worker.step_or_park(Some(Duration::from_millis(10)));
        }
        (epoch as f64 / started.elapsed().as_secs_f64(), epoch)
    });
    let rates: Vec<_> = guards.unwrap().join().into_iter().map(Result::unwrap).collect();
    of_workers(&rates)
}

/// From the end of an epoch until it is done on all workers, in microseconds: an epoch of 1,000 events every 2 ms.
pub fn latency(cell: &Cell, process: usize) -> Vec<u64> {
    let (config, cell) = (config(cell, process), cell.clone());
    let guards = execute(config, move |worker| {
        let (mut input, probe) = dataflow(worker, None);
        let source = Source::new(&cell, worker.index());
        // All workers begin together, as those of the job do.
        input.advance_to(1);
        while probe.less_than(&1) {
            worker.step_or_park(Some(Duration::from_millis(100)));
        }
        let (mut waiting, mut took) = (VecDeque::new(), Vec::new());
        let done = || probe.with_frontier(|frontier| frontier.first().map_or(u64::MAX, |first| first - 1));
        let (started, mut epoch) = (Instant::now(), 0_u32);
        while started.elapsed() < cell.time {
            source.events(u64::from(epoch), |event| input.send(event));
            epoch += 1;
            waiting.push_back((u64::from(epoch), Instant::now()));
            input.advance_to(u64::from(epoch) + 1);
            worker.step();
            let next = started + Duration::from_millis(2) * epoch;
            loop {
                note(&mut waiting, done(), &mut took);
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                worker.step_or_park(Some(left));
            }
        }
        while !waiting.is_empty() {
            worker.step_or_park(Some(Duration::from_millis(1)));
            note(&mut waiting, done(), &mut took);
        }
        input.close();
        took
    });
    guards.unwrap().join().into_iter().flat_map(Result::unwrap).collect()
}
