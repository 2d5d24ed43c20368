//! Other logs and stores, from a put until it is durable: a thread for each, batches of the same size, and every batch
//! synced before the next is begun.

#[cfg(feature = "peer-okaywal")]
mod okay;
#[cfg(feature = "peer-raft-engine")]
mod raft;
#[cfg(any(feature = "peers", feature = "peer-rocksdb"))]
mod stores;

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::Latencies;
use crate::bytes::written_bytes;
use crate::keys::{PAYLOAD, Spread, Stamp};
use crate::machine::{Nanos, cpu_time, histogram};
use crate::place::clear;
use crate::table::{Cell, Table};
use crate::{Error, Run};

/// What a table says of the rows.
pub const NOTES: &[&str] = &[
    "other logs and stores: the batch is written and synced on the putting thread, one batch after the other, where ours is synced by Ring 1 while the next is put; each thread has a log or store of its own, where our cores share epochs; until 5 s have passed (1 s with --quick) or as many batches as raw; the latency is that of the batch, put and synced, not from a seal",
    "their log bytes are what the process gave the system to write meanwhile, in-memory tables that are written out included",
    "okaywal keeps no state, and here no log either: a file that is full is given up at once and written again, which no store can do before it has a checkpoint; ours and raw, extending, keep the whole log. raft-engine keeps keys and values in a BTreeMap, and its whole log. LMDB and redb write pages of their trees. RocksDB and fjall keep tables in memory, which they write out beside it; LaminarDB's log is its log alone, without a state",
];

/// A log, or a store with one, that belongs to one thread.
pub trait Logged: Sized + Send {
    /// What it is called, with what matters of how it is set up.
    const NAME: &'static str;
    /// It keeps keys and values, so that it has to have all of them before it is measured.
    const KEEPS_STATE: bool;

    fn open(dir: &Path) -> Result<Self, Error>;

    /// Gives keys values; all of them are durable when it returns.
    fn put(&mut self, numbers: &[u32], stamp: &mut Stamp) -> Result<(), Error>;

    fn close(self) -> Result<(), Error>;
}

/// Rows of all that were built in.
pub fn all(run: &Run, rates: &mut Table, latency: &mut Latencies) -> Result<(), Error> {
    // Without any of them nothing is done with it.
    let _ = &latency;
    #[cfg(feature = "peer-okaywal")]
    {
        rows::<okay::Okay<1>>(run, rates, latency)?;
        rows::<okay::Okay<64>>(run, rates, latency)?;
    }
    #[cfg(feature = "peer-raft-engine")]
    rows::<raft::Raft>(run, rates, latency)?;
    #[cfg(feature = "peers")]
    {
        rows::<stores::Fjall>(run, rates, latency)?;
        rows::<stores::Redb>(run, rates, latency)?;
        rows::<stores::Lmdb>(run, rates, latency)?;
    }
    #[cfg(feature = "peer-rocksdb")]
    rows::<stores::Rocks>(run, rates, latency)?;
    for program in &run.program.predecessors {
        crate::peers::predecessor::durable(run, program, rates)?;
    }
    let notes = if BUILT_IN || !run.program.predecessors.is_empty() {
        NOTES
    } else {
        &[
            "other logs and stores: laminar-bench of the repository, built with --features peers, or peer-okaywal, peer-raft-engine, peer-rocksdb",
        ]
    };
    notes.iter().for_each(|note| rates.note(*note));
    Ok(())
}

const BUILT_IN: bool = cfg!(any(
    feature = "peer-okaywal",
    feature = "peer-raft-engine",
    feature = "peers",
    feature = "peer-rocksdb"
));

/// What one thread did.
struct Done {
    batches: usize,
    histogram: Nanos,
}

#[allow(dead_code, reason = "not in a build without any peer")]
fn rows<P: Logged>(run: &Run, rates: &mut Table, latency: &mut Latencies) -> Result<(), Error> {
    for (name, puts) in [("every 1024 puts", super::raw::BATCH), ("every put", super::raw::ONE)] {
        for threads in [1, 2] {
            row::<P>(run, (name, puts), threads, rates, latency)?;
        }
    }
    Ok(())
}

fn row<P: Logged>(
    run: &Run,
    (name, puts): (&str, usize),
    threads: usize,
    rates: &mut Table,
    latency: &mut Latencies,
) -> Result<(), Error> {
    let dir = run.place.fresh("peer")?;
    let keys = run.keys_or(1_000_000, 1_000_000) / threads as u64;
    run.pins.background()?;
    let mut peers = Vec::new();
    for thread in 0..threads {
        let dir = dir.join(thread.to_string());
        std::fs::create_dir_all(&dir)?;
        let mut peer = P::open(&dir)?;
        if P::KEEPS_STATE {
            let all: Vec<u32> = (0..keys as u32).collect();
            peer.put(&all, &mut Stamp::new())?;
        }
        peers.push(peer);
    }
    let numbers = Spread::Uniform.draw(keys, puts * super::raw::rounds(run), 3);
    // What filling left behind is not part of it.
    rustix::fs::sync();
    let (before, cpu) = (written_bytes()?, cpu_time());
    let (done, time) = drive(run, &mut peers, &numbers, puts)?;
    let cpu = cpu_time().saturating_sub(cpu);
    let written = written_bytes()? - before;
    peers.into_iter().try_for_each(P::close)?;
    clear(&dir)?;

    let batches = done.iter().map(|done| done.batches).sum::<usize>();
    let (all, seconds) = ((batches * puts) as f64, time.as_secs_f64());
    rates.row(vec![
        Cell::Text(format!("{}, synced {name}", P::NAME)),
        Cell::Count(threads as u64),
        Cell::Count((all / seconds) as u64),
        Cell::Number(written as f64 / all, 1),
        Cell::Number(written as f64 / all / PAYLOAD as f64, 3),
        Cell::None,
        Cell::Number(puts as f64, 0),
        Cell::Number(batches as f64 / seconds, 0),
        super::cpu_of(cpu, all),
    ]);
    if threads == 1 {
        for Done { histogram, .. } in done {
            latency.row(format!("{}, {puts} puts, put and synced", P::NAME), 1, puts, histogram, None);
        }
    }
    Ok(())
}

/// The same numbers on every thread, until there are no more or the time is over.
fn drive<P: Logged>(
    run: &Run,
    peers: &mut [P],
    numbers: &[u32],
    puts: usize,
) -> Result<(Vec<Done>, Duration), Error> {
    let limit = Duration::from_secs(run.size(1, 5));
    let meet = Barrier::new(peers.len() + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = peers
            .iter_mut()
            .enumerate()
            .map(|(index, peer)| {
                let meet = &meet;
                scope.spawn(move || {
                    let ready = run.pins.hot(index);
                    meet.wait();
                    ready.and_then(|()| batches(peer, numbers, puts, limit))
                })
            })
            .collect();
        meet.wait();
        let started = Instant::now();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a peer's thread panicked")?)
            .collect::<Result<Vec<_>, Error>>()?;
        Ok((done, started.elapsed()))
    })
}

fn batches<P: Logged>(peer: &mut P, numbers: &[u32], puts: usize, limit: Duration) -> Result<Done, Error> {
    let (mut stamp, mut histogram) = (Stamp::new(), histogram()?);
    let (started, mut batches) = (Instant::now(), 0);
    for part in numbers.chunks_exact(puts) {
        let begun = Instant::now();
        peer.put(part, &mut stamp)?;
        histogram.saturating_record(begun.elapsed().as_nanos() as u64);
        batches += 1;
        if started.elapsed() >= limit {
            break;
        }
    }
    Ok(Done { batches, histogram })
}
