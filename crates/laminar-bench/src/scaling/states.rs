//! How checkpoints and opening grow with the state.

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Epoch, Opened, Settings, Store};

use super::fit::{self, model, time};
use super::sizes;
use crate::keys::{PAYLOAD, key, mix, value};
use crate::place::clear;
use crate::plot::{Axis, Line, lines};
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const COLUMNS: &[&str] = &[
    "state",
    "keys and values",
    "first checkpoint",
    "/ key",
    "1 % changed, checkpoint",
    "/ changed key",
    "opening",
    "/ key",
];

/// Changes of a core in an epoch.
const EPOCH: usize = 1024;
/// Checkpoints of 1 %, of which the median counts: some of them also renew a part of the base.
pub const ROUNDS: u64 = 5;

/// What one state came to.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub first: Duration,
    pub change: Duration,
    /// Keys before that checkpoint.
    pub changed: u64,
    pub opening: Duration,
}

/// A time that grows with a number of keys, by its name, which the model goes on from.
struct Grows {
    name: &'static str,
    unit: &'static str,
    of: fn(u64, &Times) -> (Duration, u64),
}

const GROWS: [Grows; 3] = [
    Grows { name: "first checkpoint", unit: "key", of: |keys, times| (times.first, keys) },
    Grows {
        name: "1 % changed, checkpoint",
        unit: "changed key",
        of: |_, times| (times.change, times.changed),
    },
    Grows { name: "opening", unit: "key", of: |keys, times| (times.opening, keys) },
];

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let mut table =
        Table::new("scaling_states", "How checkpoints and opening grow, one core, 16 B / 100 B", COLUMNS);
    let mut all = Vec::new();
    for keys in sizes(run) {
        let times = measure(run, keys, 1)?;
        let each = |time: Duration, of: u64| Cell::Nanos(time.as_nanos() as f64 / of.max(1) as f64);
        table.row(vec![
            Cell::text(format!("{} keys", Cell::Count(keys).shown())),
            Cell::Bytes(keys * PAYLOAD as u64),
            Cell::time(times.first),
            each(times.first, keys),
            Cell::time(times.change),
            each(times.change, times.changed),
            Cell::time(times.opening),
            each(times.opening, keys),
        ]);
        all.push((keys, times));
    }
    table.note(format!("1 % changed: the median of {ROUNDS} checkpoints, each after 1 % of the keys; opening: closed before, from the newest checkpoint and what the log holds behind it, page cache warm"));
    let names = GROWS.map(|grows| {
        let points = all.iter().map(|(keys, times)| {
            let (time, keys) = (grows.of)(*keys, times);
            (keys as f64, time.as_nanos() as f64)
        });
        model(&mut table, grows.name, grows.unit, time, &points.collect::<Vec<_>>())
    });
    table.note(fit::NOTE);
    report.add(table);
    draw(run, &all, &names)
}

fn draw(run: &Run, all: &[(u64, Times)], names: &[String]) -> Result<(), Error> {
    let Some(dir) = &run.beside_json else { return Ok(()) };
    let line = |(grows, name): (&Grows, &String)| {
        let points = all.iter().map(|(keys, times)| {
            let (time, of) = (grows.of)(*keys, times);
            (*keys as f64, time.as_nanos() as f64 / of.max(1) as f64)
        });
        Line::new(name, points)
    };
    lines(
        &dir.join("scaling-states.svg"),
        "Checkpoints and opening for each key, 16 B / 100 B, one core",
        Axis::Doublings("keys"),
        "ns a key, or a changed key",
        &GROWS.iter().zip(names).map(line).collect::<Vec<_>>(),
    )
}

/// A state of so many keys on so many cores.
pub fn measure(run: &Run, keys: u64, count: usize) -> Result<Times, Error> {
    let dir = run.place.fresh("scaling")?;
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let builder = Store::builder(&dir).cores(count).settings(settings);
    let Opened { store, mut cores, .. } = builder.clone().open()?;
    let all: Vec<u64> = (0..keys).collect();
    change(&store, &mut cores, &all, 0)?;
    let first = checkpoint(&store)?;
    let mut changes = Vec::new();
    for version in 1..=ROUNDS {
        let numbers: Vec<u64> =
            (0..keys).filter(|number| mix(mix(*number) ^ version).is_multiple_of(100)).collect();
        change(&store, &mut cores, &numbers, version as u32)?;
        changes.push((checkpoint(&store)?, numbers.len() as u64));
    }
    changes.sort_unstable();
    let (change, changed) = changes.get(changes.len() / 2).copied().unwrap_or_default();
    drop(cores);
    store.close()?;

    let started = Instant::now();
    let Opened { store, cores, report } = builder.open()?;
    let opening = started.elapsed();
    if report.keys != keys {
        return Err(format!("{} keys came back of {keys}", report.keys).into());
    }
    drop(cores);
    store.close()?;
    clear(&dir)?;
    Ok(Times { first, change, changed, opening })
}

/// Puts these, spread over the cores. All close each epoch before the next, so that none has more of them waiting.
fn change(store: &Store, cores: &mut [CoreStore], numbers: &[u64], version: u32) -> Result<(), Error> {
    let count = cores.len();
    let mut epoch = Epoch::ZERO;
    for part in numbers.chunks(EPOCH * count) {
        for number in part {
            let core = cores.get_mut(*number as usize % count).ok_or("no core")?;
            core.put(&key(*number), &value(*number, version))?;
        }
        for core in cores.iter_mut() {
            epoch = core.seal_epoch()?;
        }
    }
    Ok(store.wait_durable(epoch)?)
}

fn checkpoint(store: &Store) -> Result<Duration, Error> {
    let started = Instant::now();
    store.checkpoint()?;
    Ok(started.elapsed())
}
