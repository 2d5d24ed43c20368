//! Time to open a store: from its log alone, and from checkpoint and log. The floor does the
//! unavoidable work only: read a sequential file, check a CRC per block, fill a table.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum};
use hashbrown::HashMap;
use laminar_storage::{Epoch, Opened, RecoveryReport, Router, Store};

use crate::keys::{KEY, PAYLOAD, key, value};
use crate::lifecycle::child::settings;
use crate::place::clear;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run, machine};

/// Records per block of the floor's file: 117 KiB.
const BLOCK: usize = 1024;
const SEAL_EVERY: u64 = 1024;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let sizes = run.keys.map_or_else(|| run.size(vec![1_000_000], vec![1_000_000, 5_000_000]), |n| vec![n]);
    for keys in sizes {
        eprintln!("recovery: {keys} keys");
        let mut table = Table::new(
            "recovery",
            format!("Opening a store of {keys} keys, 16 B / 100 B: median of {}", repeats(run)),
            &["from", "cores", "time", "recover", "begin", "ns / record", "/ floor", "memory / payload"],
        );
        let floors = [floor(run, keys, 1)?, floor(run, keys, 2)?];
        for (threads, time) in [1_u64, 2].into_iter().zip(&floors) {
            table.row(vec![
                Cell::text("floor: file, CRC, hashbrown"),
                Cell::Count(threads),
                Cell::time(*time),
                Cell::None,
                Cell::None,
                Cell::Number(time.as_nanos() as f64 / keys as f64, 0),
                Cell::Number(1.0, 2),
                Cell::None,
            ]);
        }
        for (name, checkpoint) in [("log alone", false), ("checkpoint + log of 10 %", true)] {
            for (cores, floor) in [1, 2].into_iter().zip(&floors) {
                let opening = open(run, keys, cores, checkpoint)?;
                table.row(vec![
                    Cell::text(name),
                    Cell::Count(cores as u64),
                    Cell::time(opening.time),
                    Cell::time(opening.report.phases.recover),
                    Cell::time(opening.report.phases.begin),
                    Cell::Number(opening.time.as_nanos() as f64 / opening.records as f64, 0),
                    Cell::Number(opening.time.as_secs_f64() / floor.as_secs_f64(), 2),
                    Cell::Number(opening.peak as f64 / (keys * PAYLOAD as u64) as f64, 2),
                ]);
            }
        }
        table.note("the page cache is warm, for the floor as well; the store was closed in order before");
        table.note("floor: presized table of 16-byte keys to offsets and one presized vector of values, 4 KiB pages; it has one CRC per 1024 records, no digest, no index growth, and nothing to make durable");
        table.note("checkpoint + log reads 10 % more records than the floor; memory: most while opening, beyond before");
        report.add(table);
    }
    Ok(())
}

fn repeats(run: &Run) -> usize {
    run.size(3, 5)
}

struct Opening {
    time: Duration,
    report: RecoveryReport,
    records: u64,
    peak: u64,
}

/// Fills a store, closes it, and opens it a few times.
fn open(run: &Run, keys: u64, cores: usize, checkpoint: bool) -> Result<Opening, Error> {
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
        let started = Instant::now();
        let Opened { store, cores: halves, report } =
            Store::builder(&dir).cores(cores).settings(settings()).open()?;
        let time = started.elapsed();
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
        drop(halves);
        store.close()?;
        openings.push(Opening { time, report, records, peak });
    }
    clear(&dir)?;
    openings.sort_by_key(|opening| opening.time);
    Ok(openings.swap_remove(openings.len() / 2))
}

/// Writes one file per thread, and reads them a few times.
pub fn floor(run: &Run, keys: u64, threads: u64) -> Result<Duration, Error> {
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
    let mut times = Vec::new();
    for _ in 0..repeats(run) {
        let started = Instant::now();
        let tables = std::thread::scope(|scope| {
            let threads: Vec<_> =
                files.iter().map(|(path, count)| scope.spawn(move || read_floor(path, *count))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
                .collect::<Result<Vec<_>, Error>>()
        })?;
        times.push(started.elapsed());
        if tables.iter().map(|(table, _)| table.len() as u64).sum::<u64>() != keys {
            return Err("the floor lost keys".into());
        }
    }
    clear(&dir)?;
    times.sort();
    Ok(times[times.len() / 2])
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

type Filled = (HashMap<[u8; KEY], u32>, Vec<u8>);

fn read_floor(path: &Path, count: u64) -> Result<Filled, Error> {
    let mut file = File::open(path)?;
    let mut table = HashMap::with_capacity(count as usize);
    let mut values = Vec::with_capacity(count as usize * (PAYLOAD - KEY));
    let (mut header, mut block) = ([0; 8], vec![0; BLOCK * PAYLOAD]);
    loop {
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok((table, values)),
            Err(error) => return Err(error.into()),
        }
        let [a, b, c, d, e, f, g, h] = header;
        let block = block.get_mut(..u32::from_le_bytes([a, b, c, d]) as usize).ok_or("a block too long")?;
        file.read_exact(block)?;
        if checksum(CrcAlgorithm::Crc32Iscsi, block) != u64::from(u32::from_le_bytes([e, f, g, h])) {
            return Err("the floor's file is damaged".into());
        }
        for record in block.chunks_exact(PAYLOAD) {
            let (key, value) = record.split_at(KEY);
            table.insert(key.try_into()?, values.len() as u32);
            values.extend_from_slice(value);
        }
    }
}
