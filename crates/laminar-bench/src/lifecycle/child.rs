//! The process that fills the store and is killed. It tells its parent what it was promised, one line
//! of JSON each, and never ends by itself before it has gone through a long tail of changes.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use laminar_storage::{CheckpointReceipt, CoreStore, Epoch, Opened, Settings, Store};
use serde_json::{Value, json};

use super::truth::{FILL, Plan};
use crate::Error;
use crate::keys::{key, value};
use crate::machine::{self, Pins};
use crate::progress::progress;

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    pub store: PathBuf,
    #[arg(long)]
    pub keys: u64,
    #[arg(long)]
    pub cores: usize,
    #[arg(long)]
    pub pin: bool,
}

/// Epochs of the tail that are waited for before the parent may kill.
const SURE: u64 = 8;
/// Epochs of the tail after that, far more than there is time for.
const OPEN_END: u64 = 1_000_000;

/// Settings of the store, of parent and child: checkpoints are only made when asked for.
pub fn settings() -> Settings {
    Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() }
}

pub fn run(options: &Options) -> Result<(), Error> {
    let plan = Plan { keys: options.keys, cores: options.cores };
    let pins = Pins::new(options.pin)?;
    let owned: Vec<_> = (0..plan.cores).map(|core| plan.owned(core)).collect();
    let filled = owned.iter().map(Vec::len).max().unwrap_or(0).div_ceil(FILL) as u64;
    let changed = filled + 1;
    pins.background()?;
    let started = Instant::now();
    let Opened { store, cores, .. } =
        Store::builder(&options.store).cores(plan.cores).settings(settings()).open()?;
    tell(&json!({"event": "opened", "ns": nanos(started)}));

    // Everybody meets before and after each step, so that the main thread can measure it whole.
    let meet = Barrier::new(plan.cores + 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = cores
            .into_iter()
            .zip(&owned)
            .enumerate()
            .map(|(index, (core, owned))| {
                let (pins, meet, stop) = (&pins, &meet, &stop);
                scope.spawn(move || {
                    pins.hot(index)?;
                    let done = work(core, plan, owned, filled, meet, stop);
                    if let Err(error) = &done {
                        // Nobody must wait for this thread at a meeting for ever.
                        progress!("laminar-bench: a core of the child: {error}");
                        std::process::exit(2);
                    }
                    done
                })
            })
            .collect();
        let done = lead(&store, &meet, filled, changed);
        if let Err(error) = &done {
            progress!("laminar-bench: the child: {error}");
            std::process::exit(2);
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| "a core's thread panicked")??;
        }
        done
    })
}

/// What the main thread does beside the cores' threads.
fn lead(store: &Store, meet: &Barrier, filled: u64, changed: u64) -> Result<(), Error> {
    meet.wait();
    let started = Instant::now();
    meet.wait();
    let put = nanos(started);
    store.wait_durable(Epoch(filled))?;
    let stats = store.stats();
    tell(&json!({"event": "filled", "epoch": filled, "put_ns": put, "ns": nanos(started),
        "wal_bytes": stats.wal_bytes, "rss": machine::memory().0}));
    checkpoint("first checkpoint", store)?;

    meet.wait();
    let started = Instant::now();
    meet.wait();
    store.wait_durable(Epoch(changed))?;
    tell(&json!({"event": "changed 1 %", "epoch": changed, "ns": nanos(started),
        "wal_bytes": store.stats().wal_bytes - stats.wal_bytes}));
    checkpoint("second checkpoint", store)?;

    meet.wait();
    for epoch in changed + 1..=changed + OPEN_END {
        store.wait_durable(Epoch(epoch))?;
        // Only what is promised is told, and it is told at once.
        tell(&json!({"event": "acknowledged", "epoch": epoch, "sure": epoch >= changed + SURE}));
    }
    Ok(())
}

fn checkpoint(name: &str, store: &Store) -> Result<CheckpointReceipt, Error> {
    let before = machine::memory().0;
    machine::reset_peak();
    let receipt = store.checkpoint()?;
    tell(&json!({"event": name, "epoch": receipt.epoch.get(), "ns": receipt.time.as_nanos() as u64,
        "bytes": receipt.bytes_written, "changes": receipt.changes,
        "wal_removed": receipt.wal_bytes_removed,
        "memory": machine::memory().1.saturating_sub(before)}));
    Ok(receipt)
}

/// What the thread of a core does.
fn work(
    mut core: CoreStore,
    plan: Plan,
    owned: &[u32],
    filled: u64,
    meet: &Barrier,
    stop: &AtomicBool,
) -> Result<(), Error> {
    meet.wait();
    for part in owned.chunks(FILL) {
        for number in part {
            core.put(&key(u64::from(*number)), &value(u64::from(*number), 0))?;
        }
        core.seal_epoch()?;
    }
    if core.epoch().get() <= filled {
        core.seal_epoch_to(Epoch(filled))?;
    }
    meet.wait();

    meet.wait();
    for number in owned.iter().map(|n| u64::from(*n)).filter(|n| Plan::changes(*n)) {
        core.put(&key(number), &value(number, 1))?;
    }
    core.seal_epoch()?;
    meet.wait();

    meet.wait();
    let mine: std::collections::HashSet<u32> = owned.iter().copied().collect();
    for epoch in filled + 2..=filled + 1 + OPEN_END {
        for (number, version) in plan.tail(epoch).filter(|(number, _)| mine.contains(&(*number as u32))) {
            match version {
                Some(version) => core.put(&key(number), &value(number, version))?,
                None => drop(core.delete(&key(number))?),
            }
        }
        core.seal_epoch()?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    // A core that is dropped can seal nothing; but its epochs must still become durable.
    std::mem::forget(core);
    Ok(())
}

fn tell(event: &Value) {
    let mut out = std::io::stdout().lock();
    // Without a parent there is nothing to go on for.
    if writeln!(out, "{event}").and_then(|()| out.flush()).is_err() {
        std::process::exit(2);
    }
}

fn nanos(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}
