//! What durability costs: the same fold by key in plain timely, in memory, there with the least of a log, and in a job with
//! durable state, one after the other in one run, and beside it how often a second the device syncs as many bytes as an epoch has; and how long it takes from
//! the seal of an epoch until it is durable on all workers, and in plain timely until it is done.
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

mod device;
mod job;
mod plain;

use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const AHEAD: u64 = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum What {
    /// Timely with a hash map in memory.
    Plain,
    /// The same, of which every changed row is written to a file and synced: the least that durability costs.
    BareLog,
    /// A job with state.
    Durable,
    /// The same, with a file sink behind it.
    WithSink,
    /// From seal until durable.
    Latency,
    /// From the end of an epoch until it is done, in plain timely.
    PlainLatency,
    /// The device alone: as many bytes as an epoch has in a log, written and synced, a file for each worker.
    Device,
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
    /// Bytes that an epoch has in the log of a worker.
    bytes: usize,
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
    let cell = |what, events, bytes, time| {
        let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let hosts = listeners.iter().map(|one| one.local_addr().unwrap().to_string()).collect();
        let time = Duration::from_secs_f64(time);
        Cell { what, workers, hosts, keys, lines, events, bytes, time, dir: dir.clone() }
    };
    println!("files are in {}: where that is in memory, nothing is durable", dir.display());
    println!("a bare log has every changed row and its syncs, and nothing that one could recover from");
    println!("several epochs may share a sync, so that there may be more of them than syncs of the device");
    println!("in brackets: processor time of all processes for an event, which others who run disturb less");
    println!(
        "{processes} processes of {workers} workers, {keys} keys, {kind}, {AHEAD} epochs ahead, {seconds} s for each figure; events/s of all workers"
    );
    println!(
        "| events per epoch | plain | with a bare log | of plain | durable | of plain | with file sink | of plain | durable epochs/s | the device alone, syncs/s (of bytes) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for events in [100, 1_000, 10_000, 100_000] {
        // Twice, in turns: the better one counts, as whatever disturbs only takes time.
        let (mut best, mut device, mut bytes) = ([Rate::default(); 4], 0_f64, 0);
        for _ in 0..2 {
            for (best, what) in
                best.iter_mut().zip([What::Plain, What::BareLog, What::Durable, What::WithSink])
            {
                let told = in_processes(&cell(what, events, 0, seconds));
                best.better(events, &told);
                if matches!(what, What::Durable) {
                    bytes = mean(&told, 3) as usize;
                }
            }
            device = device.max(mean(&in_processes(&cell(What::Device, events, bytes, seconds)), 0));
        }
        let [plain, bare, state, sink] = best;
        println!(
            "| {events} | {plain} | {bare} | {:.0} % | {state} | {:.0} % | {sink} | {:.0} % | {:.0} | {device:.0} ({bytes}) |",
            100.0 * bare.events / plain.events,
            100.0 * state.events / plain.events,
            100.0 * sink.events / plain.events,
            state.events / events as f64
        );
    }
    for (what, which) in [
        (What::PlainLatency, "in plain timely, from the end of an epoch until it is done on all workers"),
        (What::Latency, "from seal until durable on all workers"),
    ] {
        let told = in_processes(&cell(what, 1_000, 0, 3.0));
        let worst = |at: usize| told.iter().map(|numbers| numbers[at]).fold(0.0, f64::max);
        println!(
            "{which}, 1,000 events every 2 ms: median {:.0} us, p99 {:.0} us, longest {:.0} us",
            worst(0),
            worst(1),
            worst(2)
        );
    }
}

/// Of what each process said.
fn mean(told: &[Vec<f64>], at: usize) -> f64 {
    told.iter().map(|numbers| numbers[at]).sum::<f64>() / told.len() as f64
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
        What::Plain => plain::throughput(cell, process, false),
        What::BareLog => plain::throughput(cell, process, true),
        What::Durable => job::throughput(cell, process, false),
        What::WithSink => job::throughput(cell, process, true),
        What::Latency => return tell(job::latency(cell, process)),
        What::PlainLatency => return tell(plain::latency(cell, process)),
        What::Device => return println!("{}", device::syncs(cell, process)),
    };
    // Before the state is opened again.
    let time = processor_time();
    let bytes = match cell.what {
        What::Durable => job::bytes_of_an_epoch(cell, process),
        _ => 0,
    };
    println!("{rate} {epochs} {time} {bytes}");
}

/// Takes out epochs that are done, and notes how long that took, in microseconds.
fn note(waiting: &mut VecDeque<(u64, Instant)>, done: u64, took: &mut Vec<u64>) {
    while let Some((_, ended_at)) = waiting.front().filter(|(epoch, _)| *epoch <= done) {
        took.push(ended_at.elapsed().as_micros() as u64);
        waiting.pop_front();
    }
}

/// Median, 99th percentile and longest of how long it took, in microseconds.
fn tell(mut micros: Vec<u64>) {
    micros.sort_unstable();
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    println!("{} {} {}", at(0.5), at(0.99), at(1.0));
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
        let nanos = mean(told, 2) * told.len() as f64 * 1e9 / (mean(told, 1) * events as f64);
        self.events = self.events.max(mean(told, 0) * events as f64);
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

/// Of all workers.
fn of_workers(rates: &[(f64, u64)]) -> (f64, u64) {
    let (rate, epochs) = rates.iter().fold((0.0, 0), |(rate, epochs), (r, e)| (rate + r, epochs + e));
    (rate / rates.len() as f64, epochs / rates.len() as u64)
}
