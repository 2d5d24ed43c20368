//! The device by itself: write the same bytes, sync, and nothing else.

pub mod pipelined;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::machine::{Nanos, cpu_time, histogram};
use crate::place::clear;
use crate::table::{Cell, Table};
use crate::{Error, Run};

/// Bytes of a put in the log, about.
pub const PUT: usize = 127;
/// The most files that are written and synced at the same time, each by a thread of its own.
pub const WIDEST: usize = 8;
/// Bytes of a file that is written again and again.
const REUSED: usize = 64 << 20;

/// Puts that are synced together.
pub const BATCH: usize = 1024;
pub const ONE: usize = 1;

pub fn rounds(run: &Run) -> usize {
    run.size(500, 5000)
}

/// Puts per second of threads with a file each.
pub fn rate(
    run: &Run,
    name: &str,
    puts: usize,
    threads: usize,
    reused: bool,
    table: &mut Table,
) -> Result<(), Error> {
    run.pins.none()?;
    let dir = run.place.fresh("raw")?;
    std::fs::create_dir_all(&dir)?;
    let files = (0..threads).map(|n| file(&dir, n, reused)).collect::<Result<Vec<_>, _>>()?;
    let bytes = vec![0x5A; puts * PUT];
    let rounds = rounds(run);
    let (started, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            files.iter().map(|file| scope.spawn(|| append(file, &bytes, rounds, reused))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    let done = (puts * rounds * threads) as f64;
    let kind = if reused { "reused" } else { "extending" };
    table.row(vec![
        Cell::Text(format!("raw, synced {name}, {kind}")),
        Cell::Count(threads as u64),
        Cell::Count((done / seconds) as u64),
        Cell::Number(PUT as f64, 1),
        Cell::None,
        Cell::None,
        Cell::Number(puts as f64, 0),
        Cell::Number((rounds * threads) as f64 / seconds, 0),
        super::cpu_of(cpu, done),
    ]);
    drop(files);
    clear(&dir)
}

fn file(dir: &Path, number: usize, reused: bool) -> Result<File, Error> {
    let file = File::options().write(true).create_new(true).open(dir.join(format!("{number}")))?;
    if reused {
        let chunk = vec![0xA5; 1 << 20];
        for at in (0..REUSED).step_by(chunk.len()) {
            file.write_all_at(&chunk, at as u64)?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

fn append(file: &File, bytes: &[u8], rounds: usize, reused: bool) -> Result<(), Error> {
    for round in 0..rounds {
        write_and_sync(file, bytes, round, reused)?;
    }
    Ok(())
}

fn write_and_sync(file: &File, bytes: &[u8], round: usize, reused: bool) -> Result<(), Error> {
    let at = round * bytes.len();
    let at = if reused { at % (REUSED - bytes.len()) } else { at };
    file.write_all_at(bytes, at as u64)?;
    Ok(file.sync_data()?)
}

/// Making the same bytes durable in several reused files: one file after the other, and with a thread for each.
pub struct Latency {
    dir: PathBuf,
    files: Vec<File>,
    bytes: Vec<u8>,
    serial: Nanos,
    parallel: Nanos,
}

/// How long it took in the better way.
pub struct Best {
    /// Of the way with the lower p50.
    pub latencies: Nanos,
    /// The lower mean of both ways.
    pub mean: f64,
}

impl Latency {
    pub fn of(run: &Run, count: usize, bytes: usize) -> Result<Self, Error> {
        let dir = run.place.fresh("raw")?;
        std::fs::create_dir_all(&dir)?;
        let files = (0..count).map(|n| file(&dir, n, true)).collect::<Result<Vec<_>, _>>()?;
        let (serial, parallel) = (histogram()?, histogram()?);
        Ok(Self { dir, files, bytes: vec![0x5A; bytes.max(1)], serial, parallel })
    }

    /// So many by each way; one file is only written serially.
    pub fn measure(&mut self, rounds: Range<usize>) -> Result<(), Error> {
        for round in rounds.clone() {
            let started = Instant::now();
            for file in &self.files {
                write_and_sync(file, &self.bytes, round, true)?;
            }
            self.serial.saturating_record(started.elapsed().as_nanos() as u64);
        }
        if self.files.len() > 1 {
            for took in parallel(&self.files, &self.bytes, rounds)? {
                self.parallel.saturating_record(took.as_nanos() as u64);
            }
        }
        Ok(())
    }

    pub fn best(self) -> Result<Best, Error> {
        let Self { dir, files, serial, parallel, .. } = self;
        drop(files);
        clear(&dir)?;
        if parallel.is_empty() {
            return Ok(Best { mean: serial.mean(), latencies: serial });
        }
        let p50 = |histogram: &Nanos| histogram.value_at_quantile(0.5);
        let mean = serial.mean().min(parallel.mean());
        Ok(Best { latencies: if p50(&parallel) < p50(&serial) { parallel } else { serial }, mean })
    }
}

/// When a thread began a round, and when its file was durable.
type Took = (Instant, Instant);

/// From the first thread's beginning of a round to the last one's end: that they are woken before it is not counted.
fn parallel(files: &[File], bytes: &[u8], rounds: Range<usize>) -> Result<Vec<Duration>, Error> {
    let meet = Barrier::new(files.len());
    let took = std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .iter()
            .map(|file| {
                let (meet, rounds) = (&meet, rounds.clone());
                scope.spawn(move || one_of_many(file, bytes, rounds, meet))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        joined.collect::<Result<Vec<_>, Error>>()
    })?;
    let round = |nth: usize| {
        let of_all = || took.iter().filter_map(|of_one| of_one.get(nth));
        let (begun, ended) = (of_all().map(|took| took.0).min(), of_all().map(|took| took.1).max());
        Some(ended?.duration_since(begun?))
    };
    Ok((0..rounds.len()).filter_map(round).collect())
}

fn one_of_many(file: &File, bytes: &[u8], rounds: Range<usize>, meet: &Barrier) -> Result<Vec<Took>, Error> {
    let (mut took, mut result) = (Vec::with_capacity(rounds.len()), Ok(()));
    for round in rounds {
        meet.wait();
        let begun = Instant::now();
        // After a failure the thread still comes to the meetings.
        if result.is_ok() {
            result = write_and_sync(file, bytes, round, true);
        }
        took.push((begun, Instant::now()));
    }
    result.map(|()| took)
}
