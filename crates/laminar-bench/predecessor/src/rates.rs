//! Puts until they are durable, as `laminar-bench durable` has them of other logs: each thread has a log of its own, puts a
//! batch, syncs it, and goes on to the next.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::bytes::written_bytes;
use crate::keys::Random;
use crate::store::{Checkpoint, Store};

/// Batches after which a measurement ends before its time, as that of the others does.
const BATCHES: u64 = 5000;

/// Batches of 1024 puts and of one, on one thread and on two.
pub fn measure(dir: &Path, keys: u64, time: Duration) -> Result<Value, Error> {
    let mut rows = Vec::new();
    for puts in [1024, 1] {
        for threads in [1, 2] {
            eprintln!("predecessor: {puts} puts a sync, {threads} threads");
            let dir = dir.join(format!("{puts}-{threads}"));
            rows.push(rate(&dir, keys / threads as u64, puts, threads, time)?);
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(json!({ "rows": rows }))
}

fn rate(dir: &Path, keys: u64, puts: u64, threads: usize, time: Duration) -> Result<Value, Error> {
    fs::create_dir_all(dir)?;
    let stores = (0..threads).map(|n| Store::create(&dir.join(n.to_string()), Checkpoint::OfLog));
    let mut stores = stores.collect::<Result<Vec<_>, _>>()?;
    let (started, before) = (Instant::now(), written_bytes()?);
    let batches = std::thread::scope(|scope| {
        let batches = |store| move || batches(store, keys, puts, started + time);
        let threads: Vec<_> = stores.iter_mut().map(|store| scope.spawn(batches(store))).collect();
        let each = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        each.sum::<Result<u64, Error>>()
    })?;
    let took = started.elapsed();
    Ok(json!({
        "puts": puts,
        "threads": threads,
        "batches": batches,
        "time_ns": u64::try_from(took.as_nanos())?,
        "written_bytes": written_bytes()? - before,
    }))
}

fn batches(store: &mut Store, keys: u64, puts: u64, until: Instant) -> Result<u64, Error> {
    let mut random = Random::new(3);
    let mut batches = 0;
    while Instant::now() < until && batches < BATCHES {
        store.put((0..puts).map(|_| random.below(keys)), 0)?;
        batches += 1;
    }
    Ok(batches)
}
