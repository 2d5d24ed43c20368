//! The device by itself, with two threads for each file: one copies records into a buffer, the other writes and syncs what
//! is there meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{BATCH, PUT, REUSED, file};
use crate::machine::cpu_time;
use crate::place::clear;
use crate::table::{Cell, Table};
use crate::{Error, Run};

/// Most bytes that are written and synced together; as many may wait meanwhile.
const MOST: usize = 16 << 20;

/// What a table says of the rows.
pub const NOTE: &str = "raw, pipelined: one thread copies records of 127 bytes into a buffer, 1024 at a time, another writes and syncs what is there; so there are two threads for each that is counted";

/// Puts per second of pairs of threads with a file each.
pub fn rate(run: &Run, threads: usize, table: &mut Table) -> Result<(), Error> {
    run.pins.none()?;
    let dir = run.place.fresh("raw")?;
    std::fs::create_dir_all(&dir)?;
    let files = (0..threads).map(|n| file(&dir, n, true)).collect::<Result<Vec<_>, _>>()?;
    let batches = run.ops_or(2_000_000, 10_000_000) / BATCH;
    let buffers: Vec<_> = files.iter().map(|_| Buffer::new()).collect();
    let spares: Vec<_> = files.iter().map(|_| touched()).collect();
    let (started, cpu) = (Instant::now(), cpu_time());
    let syncs = std::thread::scope(|scope| {
        let pairs: Vec<_> = files
            .iter()
            .zip(&buffers)
            .zip(spares)
            .map(|((file, buffer), spare)| {
                scope.spawn(|| buffer.fill(batches));
                scope.spawn(|| buffer.empty(file, spare))
            })
            .collect();
        pairs
            .into_iter()
            .map(|pair| pair.join().map_err(|_| "a thread panicked")?)
            .sum::<Result<u64, Error>>()
    })?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    let done = (batches * BATCH * threads) as f64;
    table.row(vec![
        Cell::text("raw, pipelined by two threads each, at most 16 MiB a sync, reused"),
        Cell::Count(threads as u64),
        Cell::Count((done / seconds) as u64),
        Cell::Number(PUT as f64, 1),
        Cell::None,
        Cell::None,
        Cell::Number(done / syncs as f64, 0),
        Cell::Number(syncs as f64 / seconds, 0),
        super::super::cpu_of(cpu, done),
    ]);
    drop(files);
    clear(&dir)
}

/// A buffer of which every page was touched.
fn touched() -> Vec<u8> {
    let mut bytes = vec![1; MOST];
    bytes.clear();
    bytes
}

/// Between the two threads.
struct Buffer {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    bytes: Vec<u8>,
    /// One of the threads has ended.
    over: bool,
}

impl Buffer {
    fn new() -> Self {
        Self { waiting: Mutex::new(Waiting { bytes: touched(), over: false }), changed: Condvar::new() }
    }

    /// Waits as long as it is so.
    fn locked_unless(&self, mut so: impl FnMut(&mut Waiting) -> bool) -> MutexGuard<'_, Waiting> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |waiting: &mut Waiting| so(waiting) && !waiting.over;
        self.changed.wait_while(waiting, waits).unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.changed.notify_all();
    }

    fn fill(&self, batches: usize) {
        let mut record = [0x5A; PUT];
        for batch in 0..batches {
            let mut waiting = self.locked_unless(|waiting| waiting.bytes.len() + BATCH * PUT > MOST);
            // The other one has failed, and says so.
            if waiting.over {
                return;
            }
            for at in 0..BATCH {
                record[..8].copy_from_slice(&((batch * BATCH + at) as u64).to_le_bytes());
                waiting.bytes.extend_from_slice(&record);
            }
            drop(waiting);
            self.changed.notify_all();
        }
        self.end();
    }

    /// Returns how many syncs there were.
    fn empty(&self, file: &File, bytes: Vec<u8>) -> Result<u64, Error> {
        let syncs = self.write(file, bytes);
        self.end();
        syncs
    }

    fn write(&self, file: &File, mut bytes: Vec<u8>) -> Result<u64, Error> {
        let (mut syncs, mut at) = (0, 0);
        loop {
            bytes.clear();
            let mut waiting = self.locked_unless(|waiting| waiting.bytes.is_empty());
            if waiting.bytes.is_empty() {
                return Ok(syncs);
            }
            std::mem::swap(&mut waiting.bytes, &mut bytes);
            drop(waiting);
            self.changed.notify_all();
            if at + bytes.len() > REUSED {
                at = 0;
            }
            file.write_all_at(&bytes, at as u64)?;
            file.sync_data()?;
            at += bytes.len();
            syncs += 1;
        }
    }
}
