//! The device alone, and the least of a log.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;

use crate::Cell;

/// A file is written over from its beginning when it has so many bytes, and has them from the start: a sync writes nothing but
/// what was written before it.
const LENGTH: usize = 64 << 20;

/// How often a second a worker's bytes of an epoch can be written and synced, each worker's for itself.
pub fn syncs(cell: &Cell, process: usize) -> f64 {
    let files: Vec<_> = (0..cell.workers).map(|worker| written_before(cell, process, worker)).collect();
    let rates: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(|| of_file(cell, file))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    rates.iter().sum::<f64>() / rates.len() as f64
}

fn written_before(cell: &Cell, process: usize, worker: usize) -> File {
    fs::create_dir_all(&cell.dir).unwrap();
    let file = File::create(cell.dir.join(format!("device-{process}-{worker}"))).unwrap();
    file.write_all_at(&vec![1; LENGTH], 0).unwrap();
    file.sync_all().unwrap();
    file
}

/// A log that has the bytes and syncs them, and nothing else: nobody could recover from it. It has no checksums, no ends of
/// epochs and no checkpoints, and is written over from the beginning again and again. What is queued shares a sync.
pub struct BareLog {
    epochs: Sender<(u64, Vec<u8>)>,
    /// The first epoch that is not durable.
    durable_below: Arc<AtomicU64>,
}

impl BareLog {
    /// `woken` is called when something has become durable.
    pub fn start(cell: &Cell, process: usize, worker: usize, woken: impl Fn() + Send + 'static) -> Self {
        let (epochs, queued) = channel::<(u64, Vec<u8>)>();
        let durable_below = Arc::<AtomicU64>::default();
        let (log, durable) = (Self { epochs, durable_below: Arc::clone(&durable_below) }, durable_below);
        let file = written_before(cell, process, worker);
        thread::spawn(move || {
            let mut at = 0;
            while let Ok(first) = queued.recv() {
                let mut last = 0;
                for (epoch, bytes) in std::iter::once(first).chain(queued.try_iter()) {
                    at = if at + bytes.len() > LENGTH { 0 } else { at };
                    file.write_all_at(&bytes, at as u64).unwrap();
                    (at, last) = (at + bytes.len(), epoch);
                }
                file.sync_data().unwrap();
                durable.store(last + 1, Ordering::Release);
                woken();
            }
        });
        log
    }

    pub fn append(&self, epoch: u64, bytes: Vec<u8>) {
        self.epochs.send((epoch, bytes)).unwrap();
    }

    pub fn durable_below(&self) -> u64 {
        self.durable_below.load(Ordering::Acquire)
    }
}

fn of_file(cell: &Cell, file: &File) -> f64 {
    let (mut at, mut count, mut bytes) = (0, 0_u64, vec![0; cell.bytes]);
    let started = Instant::now();
    while started.elapsed() < cell.time {
        bytes.fill(count as u8);
        file.write_all_at(&bytes, at as u64).unwrap();
        file.sync_data().unwrap();
        at = if at + 2 * bytes.len() > LENGTH { 0 } else { at + bytes.len() };
        count += 1;
    }
    count as f64 / started.elapsed().as_secs_f64()
}
