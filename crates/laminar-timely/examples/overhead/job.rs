//! The fold in a job with durable state.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laminar_storage::Store;
use laminar_timely::{Cluster, Config, FileSink, run};

use crate::{AHEAD, Cell, Source, note, of_workers};

fn cluster(cell: &Cell, process: usize) -> Cluster {
    match cell.hosts.len() {
        1 => Cluster::single(cell.workers),
        _ => Cluster { workers: cell.workers, process, addresses: cell.hosts.clone() },
    }
}

/// Epochs per second of the same fold with durable state, everything durable at the end.
pub fn throughput(cell: &Cell, process: usize, with_sink: bool) -> (f64, u64) {
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
    of_workers(&rates)
}

/// Bytes that an epoch has in the log of a worker, as it was written.
pub fn bytes_of_an_epoch(cell: &Cell, process: usize) -> u64 {
    let store = cell.dir.join(format!("state/generation-00000001/part-{process:04}/store"));
    let opened = Store::builder(store).cores(cell.workers).open_as_part(Ok).unwrap();
    let bytes = opened.store.stats().wal_bytes;
    // As many as the fastest worker had: every log has all of them.
    bytes / opened.report.recovery_point.get() / cell.workers as u64
}

/// From a seal until the epoch is durable on all workers, in microseconds: an epoch of 1,000 events every 2 ms.
pub fn latency(cell: &Cell, process: usize) -> Vec<u64> {
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
            waiting.push_back((input.seal()?.get(), sealed_at));
            epoch += 1;
            let next = started + Duration::from_millis(2) * epoch;
            loop {
                note(&mut waiting, job.committed_epoch().get(), &mut took);
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                input.idle(left);
            }
        }
        while !waiting.is_empty() {
            input.idle(Duration::from_millis(1));
            note(&mut waiting, job.committed_epoch().get(), &mut took);
        }
        all.lock().unwrap().append(&mut took);
        input.finish()
    })
    .unwrap();
    std::mem::take(&mut micros.lock().unwrap())
}
