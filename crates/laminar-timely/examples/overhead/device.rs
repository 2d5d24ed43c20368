//! The device alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use crate::Cell;

/// A file is written over from its beginning when it has so many bytes, and has them from the start: a sync writes nothing but
/// what was written before it.
const LENGTH: usize = 64 << 20;

/// How often a second a worker's bytes of an epoch can be written and synced, each worker's for itself.
pub fn syncs(cell: &Cell, process: usize) -> f64 {
    fs::create_dir_all(&cell.dir).unwrap();
    let files: Vec<_> = (0..cell.workers)
        .map(|worker| {
            let file = File::create(cell.dir.join(format!("device-{process}-{worker}"))).unwrap();
            file.write_all_at(&vec![1; LENGTH], 0).unwrap();
            file.sync_all().unwrap();
            file
        })
        .collect();
    let rates: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(|| of_file(cell, file))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    rates.iter().sum::<f64>() / rates.len() as f64
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
