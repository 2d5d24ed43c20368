//! What durability costs: the same fold by key in plain timely, in memory, and in a job with durable state, one after the
//! other in one run; and how long it takes from the seal of an epoch until it is durable on all workers.
//!
//! ```text
//! cargo run --release -p laminar-timely --example overhead -- [WORKERS] [SECONDS PER CELL] [DIRECTORY]
//! ```
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a command that reports figures, and ends when something is wrong"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laminar_timely::timely::container::CapacityContainerBuilder;
use laminar_timely::timely::dataflow::channels::pact::Exchange;
use laminar_timely::timely::dataflow::operators::{Input, Operator, Probe};
use laminar_timely::timely::dataflow::{InputHandle, ProbeHandle, StreamVec};
use laminar_timely::timely::{Config as Timely, execute};
use laminar_timely::{Cluster, Config, FileSink, run};

const KEYS: u64 = 10_000;
const AHEAD: u64 = 16;

/// What is measured.
#[derive(Clone, Copy)]
struct Cell {
    workers: usize,
    /// Events of an epoch, of all workers.
    events: u64,
    time: Duration,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let workers = arguments.next().map_or(2, |text| text.parse().unwrap());
    let seconds: f64 = arguments.next().map_or(3.0, |text| text.parse().unwrap());
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("laminar-timely-overhead");
    println!(
        "{workers} workers, {KEYS} keys, {AHEAD} epochs ahead, {seconds} s for each figure; events/s of all workers"
    );
    println!(
        "| events per epoch | plain | durable | of plain | with file sink | of plain | durable epochs/s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for events in [100, 1_000, 10_000, 100_000] {
        let cell = Cell { workers, events, time: Duration::from_secs_f64(seconds) };
        // Twice, in turns: the better one counts, as whatever disturbs only takes time.
        let mut best = [0.0_f64; 3];
        for _ in 0..2 {
            best[0] = best[0].max(plain(cell));
            best[1] = best[1].max(durable(cell, &dir, false));
            best[2] = best[2].max(durable(cell, &dir, true));
        }
        let [plain, state, sink] = best.map(|epochs| epochs * events as f64);
        println!(
            "| {events} | {:.2} M | {:.2} M | {:.0} % | {:.2} M | {:.0} % | {:.0} |",
            plain / 1e6,
            state / 1e6,
            100.0 * state / plain,
            sink / 1e6,
            100.0 * sink / plain,
            best[1]
        );
    }
    latency(workers, &dir);
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The events of one epoch of one worker.
fn events(cell: Cell, worker: usize, epoch: u64) -> impl Iterator<Item = (u64, u64)> {
    let own = cell.events / cell.workers as u64;
    let first = (epoch * cell.workers as u64 + worker as u64) * own;
    (first..first + own).map(|n| (mix(n) % KEYS, n))
}

/// Epochs per second of a fold in memory: timely, a hash map, rows in the order of keys, as the job does it.
fn plain(cell: Cell) -> f64 {
    let config = if cell.workers == 1 { Timely::thread() } else { Timely::process(cell.workers) };
    let guards = execute(config, move |worker| {
        let mut input = InputHandle::new();
        let probe: ProbeHandle<u64> = worker.dataflow::<u64, _, _>(|scope| {
            let stream: StreamVec<u64, (u64, u64)> = scope.input_from(&mut input);
            let folded = stream.unary_frontier::<CapacityContainerBuilder<Vec<(u64, (u64, u64))>>, _, _, _>(
                Exchange::new(|(key, _): &(u64, u64)| mix(*key)),
                "fold",
                |capability, _| {
                    let mut held = Some(capability);
                    let mut state = HashMap::<u64, (u64, u64)>::new();
                    let mut changed = HashMap::<u64, (u64, u64)>::new();
                    let mut stash = BTreeMap::<u64, Vec<(u64, u64)>>::new();
                    move |(input, frontier), output| {
                        input.for_each_stamp(|stamp, data| {
                            let rows = stash.entry(*stamp.least().unwrap()).or_default();
                            data.for_each(|more| rows.append(more));
                        });
                        let upper = frontier.frontier().iter().next().copied();
                        while let Some(first) =
                            stash.first_entry().filter(|e| upper.is_none_or(|u| *e.key() < u))
                        {
                            let (epoch, rows) = first.remove_entry();
                            for (key, value) in rows {
                                let known = changed
                                    .entry(key)
                                    .or_insert_with(|| state.get(&key).copied().unwrap_or_default());
                                *known = (known.0 + 1, known.1 + value);
                            }
                            let mut out: Vec<_> = changed.drain().collect();
                            out.sort_unstable_by_key(|(key, _)| *key);
                            state.extend(out.iter().copied());
                            if let Some(held) = &held {
                                output.session(&held.delayed(&epoch)).give_iterator(out.into_iter());
                            }
                        }
                        match (upper, &mut held) {
                            (Some(upper), Some(held)) => held.downgrade(&upper),
                            _ => held = None,
                        }
                    }
                },
            );
            folded.probe().0
        });
        let (started, mut epoch) = (Instant::now(), 0);
        while started.elapsed() < cell.time {
            events(cell, worker.index(), epoch).for_each(|event| input.send(event));
            epoch += 1;
            input.advance_to(epoch);
            worker.step();
            while probe.less_than(&epoch.saturating_sub(AHEAD)) {
                worker.step_or_park(Some(Duration::from_millis(10)));
            }
        }
        input.close();
        while !probe.done() {
            worker.step_or_park(Some(Duration::from_millis(10)));
        }
        epoch as f64 / started.elapsed().as_secs_f64()
    });
    let rates: Vec<_> = guards.unwrap().join().into_iter().map(Result::unwrap).collect();
    rates.iter().sum::<f64>() / rates.len() as f64
}

/// Epochs per second of the same fold with durable state, everything durable at the end.
fn durable(cell: Cell, dir: &Path, with_sink: bool) -> f64 {
    let _ = std::fs::remove_dir_all(dir);
    let (rates, out) = (Arc::new(Mutex::new(Vec::new())), dir.join("out"));
    let total = Arc::clone(&rates);
    let config = Config::new(dir.join("state"), "overhead").max_ahead_epochs(AHEAD);
    run(&Cluster::single(cell.workers), &config, move |job| {
        let out = out.clone();
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("events")?;
            let folded = flow.fold(stream, "fold", |known: &mut (u64, u64), value| {
                *known = (known.0 + 1, known.1 + value)
            })?;
            if with_sink {
                flow.sink(folded, "rows", |part| {
                    FileSink::open(&out, "overhead", part, |(key, (count, sum)): &(u64, (u64, u64)), line| {
                        [key, count, sum]
                            .iter()
                            .for_each(|number| line.extend_from_slice(&number.to_le_bytes()));
                    })
                })?;
            }
            Ok(input)
        })?;
        let (started, mut epoch) = (Instant::now(), 0);
        while started.elapsed() < cell.time {
            events(cell, job.index(), epoch).for_each(|event| input.send(event));
            epoch += 1;
            input.set_source_offset("events", epoch);
            let sealed = input.seal()?;
            if started.elapsed() >= cell.time {
                // Until it is durable counts too.
                while job.committed_epoch() < sealed && started.elapsed() < cell.time * 2 {
                    input.idle(Duration::from_millis(10));
                }
            }
        }
        total.lock().unwrap().push(epoch as f64 / started.elapsed().as_secs_f64());
        input.finish()
    })
    .unwrap();
    let _ = std::fs::remove_dir_all(dir);
    let rates = rates.lock().unwrap();
    rates.iter().sum::<f64>() / rates.len() as f64
}

/// From a seal until the epoch is durable on all workers: an epoch of 1,000 events every 2 ms.
fn latency(workers: usize, dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    let cell = Cell { workers, events: 1_000, time: Duration::from_secs(3) };
    let micros = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&micros);
    run(&Cluster::single(workers), &Config::new(dir, "overhead"), move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("events")?;
            flow.fold(stream, "fold", |known: &mut (u64, u64), value| {
                *known = (known.0 + 1, known.1 + value)
            })?;
            Ok(input)
        })?;
        let waiting = Rc::new(RefCell::new(VecDeque::new()));
        let mut took = Vec::new();
        let (started, mut epoch) = (Instant::now(), 0_u32);
        while started.elapsed() < cell.time {
            events(cell, job.index(), u64::from(epoch)).for_each(|event| input.send(event));
            let sealed_at = Instant::now();
            waiting.borrow_mut().push_back((input.seal()?, sealed_at));
            epoch += 1;
            let next = started + Duration::from_millis(2) * epoch;
            loop {
                let committed = job.committed_epoch();
                let mut waiting = waiting.borrow_mut();
                while let Some((_, at)) = waiting.front().filter(|(sealed, _)| *sealed <= committed).copied()
                {
                    took.push(at.elapsed().as_micros() as u64);
                    waiting.pop_front();
                }
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                input.idle(left);
            }
        }
        all.lock().unwrap().append(&mut took);
        input.finish()
    })
    .unwrap();
    let _ = std::fs::remove_dir_all(dir);
    let mut micros = micros.lock().unwrap();
    micros.sort_unstable();
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    println!(
        "from seal until durable on all workers, 1,000 events every 2 ms: median {} us, p99 {} us, longest {} us",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
