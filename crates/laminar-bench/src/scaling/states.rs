//! How checkpoints and opening grow with the state.

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Settings, Store};

use super::{DOUBLINGS, FEWEST};
use crate::keys::{PAYLOAD, key, mix, value};
use crate::place::clear;
use crate::plot::{Line, lines};
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

/// Changes in an epoch.
const EPOCH: usize = 1024;
/// Checkpoints of 1 %, of which the median counts: some of them also renew a part of the base.
const ROUNDS: u64 = 5;

/// What one state came to.
#[derive(Clone, Copy, Debug)]
struct Times {
    first: Duration,
    change: Duration,
    changed: u64,
    opening: Duration,
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let mut table =
        Table::new("scaling_states", "How checkpoints and opening grow, one core, 16 B / 100 B", COLUMNS);
    let mut all = Vec::new();
    for doubled in 0..=run.size(1, DOUBLINGS) {
        let keys = FEWEST << doubled;
        let times = measure(run, keys)?;
        let each = |time: Duration, of: u64| Cell::Nanos(time.as_nanos() as f64 / of as f64);
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
    report.add(table);
    draw(run, &all)
}

fn draw(run: &Run, all: &[(u64, Times)]) -> Result<(), Error> {
    let Some(dir) = &run.beside_json else { return Ok(()) };
    let line = |name, of: fn(u64, &Times) -> (Duration, u64)| {
        let each = all.iter().map(|(keys, times)| {
            let (time, keys) = of(*keys, times);
            time.as_nanos() as f64 / keys as f64
        });
        Line::from_one(name, each)
    };
    lines(
        &dir.join("scaling-states.svg"),
        "Checkpoints and opening for each key, 16 B / 100 B, one core",
        "doublings of the number of keys, 1 is 250 000",
        "ns a key",
        &[
            line("first checkpoint, a key", |keys, times| (times.first, keys)),
            line("1 % changed, a changed key", |_, times| (times.change, times.changed)),
            line("opening, a key", |keys, times| (times.opening, keys)),
        ],
    )
}

fn measure(run: &Run, keys: u64) -> Result<Times, Error> {
    let dir = run.place.fresh("scaling")?;
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let builder = Store::builder(&dir).settings(settings);
    let Opened { store, mut cores, .. } = builder.clone().open()?;
    let core = cores.first_mut().ok_or("no core")?;
    let all: Vec<u64> = (0..keys).collect();
    change(&store, core, &all, 0)?;
    let first = checkpoint(&store)?;
    let mut changes = Vec::new();
    for version in 1..=ROUNDS {
        let numbers: Vec<u64> =
            (0..keys).filter(|number| mix(mix(*number) ^ version).is_multiple_of(100)).collect();
        change(&store, core, &numbers, version as u32)?;
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

fn change(store: &Store, core: &mut CoreStore, numbers: &[u64], version: u32) -> Result<(), Error> {
    for part in numbers.chunks(EPOCH) {
        for number in part {
            core.put(&key(*number), &value(*number, version))?;
        }
        core.seal_epoch()?;
    }
    let epoch = core.seal_epoch()?;
    Ok(store.wait_durable(epoch)?)
}

fn checkpoint(store: &Store) -> Result<Duration, Error> {
    let started = Instant::now();
    store.checkpoint()?;
    Ok(started.elapsed())
}
