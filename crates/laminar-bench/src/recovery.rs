//! Time to open a store: from its log alone, and from checkpoint and log. The floor does the
//! unavoidable work only: read a sequential file, check a CRC per block, fill a table.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum};
use hashbrown::HashMap;
use laminar_storage::{Epoch, Opened, RecoveryReport, Router, StateReader, Store};

use crate::keys::{KEY, PAYLOAD, key, value};
use crate::lifecycle::child::settings;
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run, machine};

/// Records per block of the floor's file: 117 KiB.
const BLOCK: usize = 1024;
const SEAL_EVERY: u64 = 1024;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let sizes = run.keys.map_or_else(|| run.size(vec![1_000_000], vec![1_000_000, 5_000_000]), |n| vec![n]);
    for keys in sizes {
        progress!("recovery: {keys} keys");
        let mut table = Table::new(
            "recovery",
            format!("Opening a store of {keys} keys, 16 B / 100 B: median of {}", repeats(run)),
            &[
                "from",
                "cores",
                "time",
                "recover",
                "of that, survey",
                "begin",
                "ns / record",
                "/ floor",
                "/ overlapping",
                "CPU time",
                "CPU / floor",
                "memory / payload",
                "most / state",
                "state / live",
            ],
        );
        let plain = [1, 2].map(|threads| floor(run, keys, threads, read_floor::<Plain>));
        let overlapping = [1, 2].map(|threads| floor(run, keys, threads, read_floor::<Overlapping>));
        let (plain, overlapping) = (both(plain)?, both(overlapping)?);
        let ratio =
            |time: Duration, floor: Duration| Cell::Number(time.as_secs_f64() / floor.as_secs_f64(), 2);
        for (name, floors) in
            [("floor: file, CRC, hashbrown", plain), ("floor: the same, 16 reads overlap", overlapping)]
        {
            for at in 0..2 {
                let Floor { time, cpu } = floors[at];
                table.row(vec![
                    Cell::text(name),
                    Cell::Count(at as u64 + 1),
                    Cell::time(time),
                    Cell::None,
                    Cell::None,
                    Cell::None,
                    Cell::Number(time.as_nanos() as f64 / keys as f64, 0),
                    ratio(time, plain[at].time),
                    ratio(time, overlapping[at].time),
                    Cell::time(cpu),
                    ratio(cpu, plain[at].cpu),
                    Cell::None,
                    Cell::None,
                    Cell::None,
                ]);
            }
        }
        for (name, checkpoint) in [("log alone", false), ("checkpoint + log of 10 %", true)] {
            let mut read = Vec::new();
            for at in 0..2 {
                let Measured { opening, reading } = open(run, keys, at + 1, checkpoint)?;
                read.push(reading);
                table.row(vec![
                    Cell::text(name),
                    Cell::Count(at as u64 + 1),
                    Cell::time(opening.time),
                    Cell::time(opening.report.phases.recover),
                    Cell::time(opening.report.phases.survey),
                    Cell::time(opening.report.phases.begin),
                    Cell::Number(opening.time.as_nanos() as f64 / opening.records as f64, 0),
                    ratio(opening.time, plain[at].time),
                    ratio(opening.time, overlapping[at].time),
                    Cell::time(opening.cpu),
                    ratio(opening.cpu, plain[at].cpu),
                    Cell::Number(opening.peak as f64 / (keys * PAYLOAD as u64) as f64, 2),
                    Cell::Number(opening.peak as f64 / opening.state as f64, 2),
                    Cell::Number(opening.state as f64 / (keys * (PAYLOAD as u64 + 24)) as f64, 2),
                ]);
            }
            for (at, reading) in read.into_iter().enumerate() {
                table.row(vec![
                    Cell::text(format!("StateReader, {name}")),
                    Cell::Count(at as u64 + 1),
                    Cell::time(reading.time),
                    Cell::None,
                    Cell::None,
                    Cell::None,
                    Cell::Number(reading.time.as_nanos() as f64 / reading.records as f64, 0),
                    ratio(reading.time, plain[at].time),
                    ratio(reading.time, overlapping[at].time),
                    Cell::time(reading.cpu),
                    ratio(reading.cpu, plain[at].cpu),
                    Cell::None,
                    Cell::None,
                    Cell::None,
                ]);
            }
        }
        table.note("the page cache is warm, for the floor as well; the store was closed in order before");
        table.note("floor: presized table of 16-byte keys to offsets and one presized vector of values, 4 KiB pages; it has one CRC per 1024 records, no digest, no index growth, and nothing to make durable");
        table.note("the second floor asks for the places of 16 keys before it fills the first, as the store does; a core of the store has its own thread, and one more thread gives memory to all of them, which the floors do not have");
        table.note("CPU time: of all threads, the kernel's work for them included; the least of the runs, because on a machine that others use too it is what they disturb least");
        table.note("survey: the first of two readings of the log, in which every byte is checked and the recovery point found");
        table.note("checkpoint + log reads 10 % more records than the floor");
        table.note("memory: most while opening, beyond before (a reader takes what the allocator kept of the one before it, so that nothing can be said of it here); state: what records and index take afterwards; live: keys, values and 24 B each");
        report.add(table);
    }
    Ok(())
}

fn both(floors: [Result<Floor, Error>; 2]) -> Result<[Floor; 2], Error> {
    let [one, two] = floors;
    Ok([one?, two?])
}

fn repeats(run: &Run) -> usize {
    run.size(3, 5)
}

/// The plain floor on one thread, for other measurements.
pub fn plain_floor(run: &Run, keys: u64) -> Result<Duration, Error> {
    Ok(floor(run, keys, 1, read_floor::<Plain>)?.time)
}

#[derive(Clone, Copy)]
struct Floor {
    time: Duration,
    cpu: Duration,
}

struct Opening {
    time: Duration,
    /// Of all threads together, the least there was.
    cpu: Duration,
    report: RecoveryReport,
    records: u64,
    peak: u64,
    /// Bytes that records and index take.
    state: u64,
}

struct Reading {
    time: Duration,
    cpu: Duration,
    records: u64,
}

struct Measured {
    opening: Opening,
    reading: Reading,
}

/// Fills a store, closes it, and opens it a few times, to use it and to look at it.
fn open(run: &Run, keys: u64, cores: usize, checkpoint: bool) -> Result<Measured, Error> {
    let dir = run.place.fresh("recovery")?;
    let router = Router::default();
    run.pins.background()?;
    let Opened { store, cores: mut halves, .. } =
        Store::builder(&dir).cores(cores).settings(settings()).open()?;
    let mut last = Epoch::ZERO;
    let rounds = if checkpoint { vec![(1, 0), (10, 1)] } else { vec![(1, 0)] };
    for (step, version) in rounds {
        if version == 1 {
            store.checkpoint()?;
        }
        for (at, number) in (0..keys).step_by(step).enumerate() {
            let key = key(number);
            halves[router.route(&key, cores)].put(&key, &value(number, version))?;
            if (at as u64 + 1).is_multiple_of(SEAL_EVERY) {
                halves.iter_mut().try_for_each(|core| core.seal_epoch().map(|epoch| last = epoch))?;
            }
        }
        halves.iter_mut().try_for_each(|core| core.seal_epoch().map(|epoch| last = epoch))?;
        store.wait_durable(last)?;
    }
    drop(halves);
    store.close()?;

    let mut openings = Vec::new();
    for _ in 0..repeats(run) {
        let before = machine::memory().0;
        machine::reset_peak();
        let (started, cpu) = (Instant::now(), machine::cpu_time());
        let Opened { store, cores: halves, report } =
            Store::builder(&dir).cores(cores).settings(settings()).open()?;
        let (time, cpu) = (started.elapsed(), machine::cpu_time().saturating_sub(cpu));
        let peak = machine::memory().1.saturating_sub(before);
        let there: u64 = halves.iter().map(|core| core.len() as u64).sum();
        let probe = key(keys / 2);
        let probed = halves.get(router.route(&probe, cores)).and_then(|core| core.get(&probe));
        if there != keys || probed.is_none() || report.recovery_point != last {
            return Err(format!(
                "opened with {there} keys at epoch {}, not {keys} at {last}",
                report.recovery_point
            )
            .into());
        }
        let replayed: u64 = report.cores.iter().map(|core| core.replayed).sum();
        let records = replayed + if checkpoint { keys } else { 0 };
        let memory = halves.iter().map(|core| core.memory());
        let state = memory.map(|memory| memory.live_bytes + memory.index_bytes).sum();
        drop(halves);
        store.close()?;
        openings.push(Opening { time, cpu, report, records, peak, state });
    }
    openings.sort_by_key(|opening| opening.time);
    let least = openings.iter().map(|opening| opening.cpu).min().unwrap_or_default();
    let opening = Opening { cpu: least, ..openings.swap_remove(openings.len() / 2) };
    let mut readings = Vec::new();
    for _ in 0..repeats(run) {
        let (started, cpu) = (Instant::now(), machine::cpu_time());
        let reader = StateReader::open(&dir)?;
        let (time, cpu) = (started.elapsed(), machine::cpu_time().saturating_sub(cpu));
        if reader.len() as u64 != keys {
            return Err(format!("read {} keys, not {keys}", reader.len()).into());
        }
        readings.push(Reading { time, cpu, records: opening.records });
    }
    clear(&dir)?;
    readings.sort_by_key(|reading| reading.time);
    let least = readings.iter().map(|reading| reading.cpu).min().unwrap_or_default();
    let reading = Reading { cpu: least, ..readings.swap_remove(readings.len() / 2) };
    Ok(Measured { opening, reading })
}

/// Writes one file per thread, and has `read` fill a table with each, a few times.
fn floor<T: Filled + Send>(
    run: &Run,
    keys: u64,
    threads: u64,
    read: fn(&Path, u64) -> Result<T, Error>,
) -> Result<Floor, Error> {
    let dir = run.place.fresh("floor")?;
    std::fs::create_dir_all(&dir)?;
    let files: Vec<(PathBuf, u64)> = (0..threads)
        .map(|thread| {
            let numbers = keys * thread / threads..keys * (thread + 1) / threads;
            let count = numbers.end - numbers.start;
            let path = dir.join(format!("{thread}"));
            write_floor(&path, numbers)?;
            Ok((path, count))
        })
        .collect::<Result<_, Error>>()?;
    let (mut times, mut least) = (Vec::new(), Duration::MAX);
    for _ in 0..repeats(run) {
        let (started, cpu) = (Instant::now(), machine::cpu_time());
        let tables = std::thread::scope(|scope| {
            let threads: Vec<_> =
                files.iter().map(|(path, count)| scope.spawn(move || read(path, *count))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
                .collect::<Result<Vec<_>, Error>>()
        })?;
        times.push(started.elapsed());
        least = least.min(machine::cpu_time().saturating_sub(cpu));
        if tables.iter().map(Filled::len).sum::<u64>() != keys {
            return Err("the floor lost keys".into());
        }
    }
    clear(&dir)?;
    times.sort();
    Ok(Floor { time: times[times.len() / 2], cpu: least })
}

fn write_floor(path: &Path, numbers: std::ops::Range<u64>) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut block = Vec::with_capacity(BLOCK * PAYLOAD);
    let last = numbers.end;
    for number in numbers {
        block.extend_from_slice(&key(number));
        block.extend_from_slice(&value(number, 0));
        if block.len() == BLOCK * PAYLOAD || number + 1 == last {
            out.write_all(&(block.len() as u32).to_le_bytes())?;
            out.write_all(&(checksum(CrcAlgorithm::Crc32Iscsi, &block) as u32).to_le_bytes())?;
            out.write_all(&block)?;
            block.clear();
        }
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// What the floor fills.
trait Filled: Sized {
    fn with_capacity(count: u64) -> Self;
    fn len(&self) -> u64;
    /// Adds the records of a block.
    fn fill(&mut self, block: &[u8]) -> Result<(), Error>;
}

/// Key by key.
struct Plain {
    table: HashMap<[u8; KEY], u32>,
    values: Vec<u8>,
}

impl Filled for Plain {
    fn with_capacity(count: u64) -> Self {
        let values = Vec::with_capacity(count as usize * (PAYLOAD - KEY));
        Self { table: HashMap::with_capacity(count as usize), values }
    }

    fn len(&self) -> u64 {
        self.table.len() as u64
    }

    fn fill(&mut self, block: &[u8]) -> Result<(), Error> {
        for record in block.chunks_exact(PAYLOAD) {
            let (key, value) = record.split_at(KEY);
            self.table.insert(key.try_into()?, self.values.len() as u32);
            self.values.extend_from_slice(value);
        }
        Ok(())
    }
}

/// A table with a place of 24 bytes per key, three of four taken, of which the places of several keys are asked
/// for together.
struct Overlapping {
    /// Key, and one more than where its value is, in values; 0 is free.
    places: Vec<([u8; KEY], u64)>,
    len: u64,
    values: Vec<u8>,
}

impl Overlapping {
    const TOGETHER: usize = 16;

    fn home(&self, key: &[u8; KEY]) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = *key;
        let hash = u64::from_le_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }
}

impl Filled for Overlapping {
    fn with_capacity(count: u64) -> Self {
        let places = vec![([0; KEY], 0); count as usize * 4 / 3 + 1];
        Self { places, len: 0, values: Vec::with_capacity(count as usize * (PAYLOAD - KEY)) }
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn fill(&mut self, block: &[u8]) -> Result<(), Error> {
        for records in block.chunks(PAYLOAD * Self::TOGETHER) {
            let mut homes = [0; Self::TOGETHER];
            for (record, home) in records.chunks_exact(PAYLOAD).zip(&mut homes) {
                *home = self.home(record[..KEY].try_into()?);
            }
            // None of these reads has to wait for another.
            std::hint::black_box(homes.iter().fold(0, |all, home| all | self.places[*home].1));
            for (record, home) in records.chunks_exact(PAYLOAD).zip(homes) {
                let (key, value) = record.split_at(KEY);
                let mut at = home;
                while self.places[at].1 != 0 && self.places[at].0 != *key {
                    at = if at + 1 == self.places.len() { 0 } else { at + 1 };
                }
                self.len += u64::from(self.places[at].1 == 0);
                self.places[at] = (key.try_into()?, (self.values.len() / (PAYLOAD - KEY)) as u64 + 1);
                self.values.extend_from_slice(value);
            }
        }
        Ok(())
    }
}

fn read_floor<T: Filled>(path: &Path, count: u64) -> Result<T, Error> {
    let mut file = File::open(path)?;
    let mut filled = T::with_capacity(count);
    let (mut header, mut block) = ([0; 8], vec![0; BLOCK * PAYLOAD]);
    loop {
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(filled),
            Err(error) => return Err(error.into()),
        }
        let [a, b, c, d, e, f, g, h] = header;
        let block = block.get_mut(..u32::from_le_bytes([a, b, c, d]) as usize).ok_or("a block too long")?;
        file.read_exact(block)?;
        if checksum(CrcAlgorithm::Crc32Iscsi, block) != u64::from(u32::from_le_bytes([e, f, g, h])) {
            return Err("the floor's file is damaged".into());
        }
        filled.fill(block)?;
    }
}
