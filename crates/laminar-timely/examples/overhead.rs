//! What durability costs: the same fold by key in plain timely, in memory, and in a job with durable state, one after the
//! other in one run; and how long it takes from the seal of an epoch until it is durable on all workers.
//!
//! ```text
//! cargo run --release -p laminar-timely --example overhead -- [WORKERS] [PROCESSES] [SECONDS PER CELL] [KEYS] [lines|numbers] [DIRECTORY]
//! ```
//!
//! `numbers` are events that cost next to nothing to make; `lines` are read from lines of JSON, on both sides, as an input would be.
//! It starts itself for each figure, once for each process of the job; they talk over loopback.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a command that reports figures, and ends when something is wrong"
)]

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use laminar_storage::Epoch;
use laminar_timely::timely::communication::Config as Communication;
use laminar_timely::timely::container::CapacityContainerBuilder;
use laminar_timely::timely::dataflow::channels::pact::Exchange;
use laminar_timely::timely::dataflow::operators::{Input, Operator, Probe};
use laminar_timely::timely::dataflow::{InputHandle, ProbeHandle, StreamVec};
use laminar_timely::timely::{Config as Timely, WorkerConfig, execute};
use laminar_timely::{Cluster, Config, FileSink, run};
use rapidhash::fast::RandomState;
use serde::{Deserialize, Serialize};

const AHEAD: u64 = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum What {
    /// Timely with a hash map in memory.
    Plain,
    /// A job with state.
    Durable,
    /// The same, with a file sink behind it.
    WithSink,
    /// From seal until durable.
    Latency,
}

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    what: What,
    /// Workers of a process.
    workers: usize,
    /// Addresses of the processes.
    hosts: Vec<String>,
    keys: u64,
    /// Whether events are read from lines.
    lines: bool,
    /// Events of an epoch, of all workers.
    events: u64,
    time: Duration,
    dir: PathBuf,
}

impl Cell {
    fn peers(&self) -> usize {
        self.workers * self.hosts.len()
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [cell, process] = arguments.as_slice()
        && let Ok(cell) = serde_json::from_str(cell)
    {
        return measure(&cell, process.parse().unwrap());
    }
    let number = |at: usize, default| arguments.get(at).map_or(default, |text| text.parse::<f64>().unwrap());
    let (workers, processes) = (number(0, 2.0) as usize, number(1, 1.0) as usize);
    let (seconds, keys) = (number(2, 3.0), number(3, 10_000.0) as u64);
    let kind = arguments.get(4).map_or("numbers", String::as_str);
    let lines = match kind {
        "lines" => true,
        "numbers" => false,
        other => return eprintln!("events are lines or numbers, not {other}"),
    };
    let dir = arguments.get(5).map_or_else(std::env::temp_dir, PathBuf::from).join("laminar-timely-overhead");
    let cell = |what, events, time| {
        let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let hosts = listeners.iter().map(|one| one.local_addr().unwrap().to_string()).collect();
        let time = Duration::from_secs_f64(time);
        Cell { what, workers, hosts, keys, lines, events, time, dir: dir.clone() }
    };
    println!("in brackets: processor time of all processes for an event, which others who run disturb less");
    println!(
        "{processes} processes of {workers} workers, {keys} keys, {kind}, {AHEAD} epochs ahead, {seconds} s for each figure; events/s of all workers"
    );
    println!(
        "| events per epoch | plain | durable | of plain | with file sink | of plain | durable epochs/s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for events in [100, 1_000, 10_000, 100_000] {
        // Twice, in turns: the better one counts, as whatever disturbs only takes time.
        let mut best = [Rate::default(); 3];
        for _ in 0..2 {
            for (best, what) in best.iter_mut().zip([What::Plain, What::Durable, What::WithSink]) {
                best.better(events, &in_processes(&cell(what, events, seconds)));
            }
        }
        let [plain, state, sink] = best;
        println!(
            "| {events} | {plain} | {state} | {:.0} % | {sink} | {:.0} % | {:.0} |",
            100.0 * state.events / plain.events,
            100.0 * sink.events / plain.events,
            state.events / events as f64
        );
    }
    let told = in_processes(&cell(What::Latency, 1_000, 3.0));
    let worst = |at: usize| told.iter().map(|numbers| numbers[at]).fold(0.0, f64::max);
    println!(
        "from seal until durable on all workers, 1,000 events every 2 ms: median {:.0} us, p99 {:.0} us, longest {:.0} us",
        worst(0),
        worst(1),
        worst(2)
    );
}

/// Runs all processes of a cell, and returns what each of them says.
fn in_processes(cell: &Cell) -> Vec<Vec<f64>> {
    let _ = std::fs::remove_dir_all(&cell.dir);
    let (program, text) = (std::env::current_exe().unwrap(), serde_json::to_string(cell).unwrap());
    let start = |process: usize| {
        let mut command = Command::new(&program);
        command.arg(&text).arg(process.to_string()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..cell.hosts.len()).map(start).collect();
    let told = children.into_iter().map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{cell:?}: {}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        // Timely speaks of its connections before.
        let numbers = text.lines().last().unwrap().split_whitespace();
        numbers.map(|number| number.parse().unwrap()).collect()
    });
    let told = told.collect();
    let _ = std::fs::remove_dir_all(&cell.dir);
    told
}

/// As one of the processes of a cell: measures, and says so.
fn measure(cell: &Cell, process: usize) {
    let (rate, epochs) = match cell.what {
        What::Plain => plain(cell, process),
        What::Durable => durable(cell, process, false),
        What::WithSink => durable(cell, process, true),
        What::Latency => return latency(cell, process),
    };
    println!("{rate} {epochs} {}", processor_time());
}

/// Events per second, and processor time of one in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Rate {
    events: f64,
    nanos: f64,
}

impl Rate {
    /// Measured once more. Each process says how many epochs there were in a second, how many in all, and how long it took
    /// processors.
    fn better(&mut self, events: u64, told: &[Vec<f64>]) {
        let mean = |at: usize| told.iter().map(|numbers| numbers[at]).sum::<f64>() / told.len() as f64;
        let nanos = mean(2) * told.len() as f64 * 1e9 / (mean(1) * events as f64);
        self.events = self.events.max(mean(0) * events as f64);
        self.nanos = if self.nanos > 0.0 { self.nanos.min(nanos) } else { nanos };
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} M ({:.0} ns)", self.events / 1e6, self.nanos)
    }
}

/// Seconds of processor time of this process, threads that have ended included, to a hundredth.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).map(|ticks| ticks.parse().unwrap()).collect();
    ticks.iter().sum::<f64>() / 100.0
}

fn cluster(cell: &Cell, process: usize) -> Cluster {
    match cell.hosts.len() {
        1 => Cluster::single(cell.workers),
        _ => Cluster { workers: cell.workers, process, addresses: cell.hosts.clone() },
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Where the events of a worker come from.
struct Source {
    cell: Cell,
    worker: usize,
    /// Lines that are read again and again; none for numbers.
    lines: Vec<String>,
}

/// What is wanted of a line.
#[derive(Deserialize)]
struct Line<'a> {
    user: &'a str,
    amount: u64,
}

impl Source {
    fn new(cell: &Cell, worker: usize) -> Self {
        let line = |n: u64| {
            let key = mix(n + ((worker as u64) << 32)) % cell.keys;
            format!(
                r#"{{"event":{n},"time":{},"kind":"purchase","user":"user-{key:08}","item":"item-{:04}","amount":{}}}"#,
                1_700_000_000_000 + n,
                mix(n) % 9_999,
                n % 1_000
            )
        };
        let lines = if cell.lines { (0..1 << 17).map(line).collect() } else { Vec::new() };
        Self { cell: cell.clone(), worker, lines }
    }

    /// Hands the events of an epoch to `each`.
    fn events(&self, epoch: u64, mut each: impl FnMut((u64, u64))) {
        let (peers, keys) = (self.cell.peers() as u64, self.cell.keys);
        let own = self.cell.events / peers;
        let first = (epoch * peers + self.worker as u64) * own;
        if self.lines.is_empty() {
            return (first..first + own).for_each(|n| each((mix(n) % keys, n)));
        }
        for n in first..first + own {
            let line: Line<'_> = serde_json::from_str(&self.lines[n as usize % self.lines.len()]).unwrap();
            each((line.user.trim_start_matches("user-").parse().unwrap(), line.amount));
        }
    }
}

/// Epochs per second of a fold in memory: timely, a hash map with the hash function that the job uses too, rows in the order
/// of keys.
fn plain(cell: &Cell, process: usize) -> (f64, u64) {
    let communication = match (cell.hosts.len(), cell.workers) {
        (1, 1) => Communication::Thread,
        (1, workers) => Communication::Process(workers),
        (_, threads) => {
            let addresses = cell.hosts.clone();
            Communication::Cluster { threads, process, addresses, report: false, zerocopy: false }
        }
    };
    let config = Timely { communication, worker: WorkerConfig::default() };
    let cell = cell.clone();
    let guards = execute(config, move |worker| {
        let mut input = InputHandle::new();
        let probe: ProbeHandle<u64> = worker.dataflow::<u64, _, _>(|scope| {
            let stream: StreamVec<u64, (u64, u64)> = scope.input_from(&mut input);
            let folded = stream.unary_frontier::<CapacityContainerBuilder<Vec<(u64, (u64, u64))>>, _, _, _>(
                Exchange::new(|(key, _): &(u64, u64)| mix(*key)),
                "fold",
                |capability, _| {
                    let mut held = Some(capability);
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
                        while let Some(first) =
                            stash.first_entry().filter(|e| upper.is_none_or(|u| *e.key() < u))
                        {
                            let (epoch, rows) = first.remove_entry();
                            for (key, value) in rows {
                                let known = state.entry(key).or_insert((0, 0, u64::MAX));
                                if known.2 != epoch {
                                    changed.push(key);
                                }
                                *known = (known.0 + 1, known.1 + value, epoch);
                            }
                            changed.sort_unstable();
                            let out = changed.drain(..).map(|key| (key, (state[&key].0, state[&key].1)));
                            if let Some(held) = &held {
                                output.session(&held.delayed(&epoch)).give_iterator(out);
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
        let source = Source::new(&cell, worker.index());
        let (started, mut epoch) = (Instant::now(), 0);
        while started.elapsed() < cell.time {
            source.events(epoch, |event| input.send(event));
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
        (epoch as f64 / started.elapsed().as_secs_f64(), epoch)
    });
    let rates: Vec<_> = guards.unwrap().join().into_iter().map(Result::unwrap).collect();
    mean(&rates)
}

/// Epochs per second of the same fold with durable state, everything durable at the end.
fn durable(cell: &Cell, process: usize, with_sink: bool) -> (f64, u64) {
    let (rates, out) = (Arc::new(Mutex::new(Vec::new())), cell.dir.join("out"));
    let total = Arc::clone(&rates);
    let config = Config::new(cell.dir.join("state"), "overhead").max_ahead_epochs(AHEAD);
    let (cluster, cell) = (cluster(cell, process), cell.clone());
    run(&cluster, &config, move |job| {
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
        let source = Source::new(&cell, job.index());
        let (started, mut epoch) = (Instant::now(), 0);
        loop {
            source.events(epoch, |event| input.send(event));
            epoch += 1;
            input.set_source_offset("events", epoch);
            let sealed = input.seal()?;
            if started.elapsed() >= cell.time {
                // Until the last epoch of the time is durable and committed counts too.
                while job.committed_epoch() < sealed {
                    input.idle(Duration::from_millis(10));
                }
                break;
            }
        }
        total.lock().unwrap().push((epoch as f64 / started.elapsed().as_secs_f64(), epoch));
        input.finish()
    })
    .unwrap();
    let rates = rates.lock().unwrap();
    mean(&rates)
}

/// Of all workers.
fn mean(rates: &[(f64, u64)]) -> (f64, u64) {
    let (rate, epochs) = rates.iter().fold((0.0, 0), |(rate, epochs), (r, e)| (rate + r, epochs + e));
    (rate / rates.len() as f64, epochs / rates.len() as u64)
}

/// Takes out what is committed, and notes how long that took, in microseconds.
fn note(waiting: &mut VecDeque<(Epoch, Instant)>, committed: Epoch, took: &mut Vec<u64>) {
    while let Some((_, sealed_at)) = waiting.front().filter(|(sealed, _)| *sealed <= committed) {
        took.push(sealed_at.elapsed().as_micros() as u64);
        waiting.pop_front();
    }
}

/// From a seal until the epoch is durable on all workers: an epoch of 1,000 events every 2 ms.
fn latency(cell: &Cell, process: usize) {
    let (cluster, config) = (cluster(cell, process), Config::new(&cell.dir, "overhead"));
    let cell = cell.clone();
    let micros = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&micros);
    run(&cluster, &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("events")?;
            flow.fold(stream, "fold", |known: &mut (u64, u64), value| {
                *known = (known.0 + 1, known.1 + value)
            })?;
            Ok(input)
        })?;
        let source = Source::new(&cell, job.index());
        let mut waiting = VecDeque::new();
        let mut took = Vec::new();
        // All workers begin together: no epoch is durable before the last of them has sealed it, and how much later one
        // of them was built is not to be measured.
        let together = input.seal()?;
        while job.committed_epoch() < together {
            input.idle(Duration::from_millis(100));
        }
        let (started, mut epoch) = (Instant::now(), 0_u32);
        while started.elapsed() < cell.time {
            source.events(u64::from(epoch), |event| input.send(event));
            let sealed_at = Instant::now();
            waiting.push_back((input.seal()?, sealed_at));
            epoch += 1;
            let next = started + Duration::from_millis(2) * epoch;
            loop {
                note(&mut waiting, job.committed_epoch(), &mut took);
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                input.idle(left);
            }
        }
        while !waiting.is_empty() {
            input.idle(Duration::from_millis(1));
            note(&mut waiting, job.committed_epoch(), &mut took);
        }
        all.lock().unwrap().append(&mut took);
        input.finish()
    })
    .unwrap();
    let mut micros = micros.lock().unwrap();
    micros.sort_unstable();
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    println!("{} {} {}", at(0.5), at(0.99), at(1.0));
}
