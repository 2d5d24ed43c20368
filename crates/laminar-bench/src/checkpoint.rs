//! What a checkpoint costs when a part of the keys changed, and what it would cost if it did the unavoidable only.

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Store};

use crate::floor::{self, Floor};
use crate::keys::{PAYLOAD, key, mix, value};
use crate::lifecycle::child::settings;
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// Puts per epoch.
const FILL: usize = 8192;

/// How many of a thousand keys change before a checkpoint, and how often that is done.
struct Share {
    name: &'static str,
    per_mille: u64,
    rounds: usize,
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let sizes =
        run.keys.map_or_else(|| run.size(vec![1_000_000], vec![1_000_000, 5_000_000]), |keys| vec![keys]);
    sizes.into_iter().try_for_each(|keys| shares(run, keys, report))
}

fn shares(run: &Run, keys: u64, report: &mut Report) -> Result<(), Error> {
    progress!("checkpoint: {keys} keys");
    let mut table = Table::new(
        "checkpoint",
        format!("Checkpoints of a store of {keys} keys, 16 B / 100 B, on 1 core"),
        &[
            "changed",
            "rounds",
            "time p50",
            "longest",
            "floor p50",
            "/ floor",
            "bytes / changed",
            "of all rounds",
            "log removed",
        ],
    );
    let dir = run.place.fresh("checkpoint")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    let Some(core) = cores.first_mut() else { return Err("a store without a core".into()) };
    let mut floor = Floor::new(run, keys)?;
    let (few, some) = (run.size(5, 10), run.size(3, 5));
    let shares = [
        Share { name: "100 %, the first", per_mille: 1000, rounds: 1 },
        Share { name: "1 %, the second", per_mille: 10, rounds: 1 },
        Share { name: "0.1 %", per_mille: 1, rounds: few },
        Share { name: "1 %", per_mille: 10, rounds: few },
        Share { name: "10 %", per_mille: 100, rounds: some },
        Share { name: "100 %", per_mille: 1000, rounds: run.size(1, 2) },
    ];
    let mut version = 0;
    for share in shares {
        let mut rounds = Vec::new();
        for _ in 0..share.rounds {
            let drawn = |n: &u64| mix(mix(*n) ^ u64::from(version)) % 1000 < share.per_mille;
            let changed: Vec<u64> = (0..keys).filter(drawn).collect();
            rounds.push(round(&store, core, &mut floor, &changed, version)?);
            version += 1;
        }
        table.row(row(&share, &rounds));
    }
    table.note(floor::NOTE);
    table.note("bytes / changed: of the state files, over keys and values that changed, median; of all rounds: their sum, files merged with older ones included");
    table.note("the first checkpoint removes no log, the second that of all keys");
    report.add(table);
    drop(cores);
    store.close()?;
    floor.clear()?;
    clear(&dir)
}

/// What one checkpoint came to.
struct Round {
    time: Duration,
    floor: Duration,
    bytes: u64,
    payload: u64,
    removed: u64,
}

fn round(
    store: &Store,
    core: &mut CoreStore,
    floor: &mut Floor,
    changed: &[u64],
    version: u32,
) -> Result<Round, Error> {
    for part in changed.chunks(FILL) {
        for number in part {
            core.put(&key(*number), &value(*number, version))?;
        }
        core.seal_epoch()?;
    }
    let epoch = core.seal_epoch()?;
    store.wait_durable(epoch)?;
    let started = Instant::now();
    let receipt = store.checkpoint()?;
    let time = started.elapsed();
    if receipt.epoch != epoch || receipt.changes != changed.len() as u64 {
        return Err(format!("{receipt:?} of {} changes up to epoch {epoch}", changed.len()).into());
    }
    let payload = (changed.len() * PAYLOAD) as u64;
    Ok(Round {
        time,
        floor: floor.checkpoint(changed)?.time,
        bytes: receipt.bytes_written,
        payload,
        removed: receipt.wal_bytes_removed,
    })
}

fn row(share: &Share, rounds: &[Round]) -> Vec<Cell> {
    let median = |figure: &dyn Fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(figure).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let (time, floor) = (median(&|r| r.time.as_nanos() as f64), median(&|r| r.floor.as_nanos() as f64));
    let sum = |figure: fn(&Round) -> u64| rounds.iter().map(figure).sum::<u64>();
    vec![
        Cell::text(share.name),
        Cell::Count(rounds.len() as u64),
        Cell::Nanos(time),
        Cell::time(rounds.iter().map(|round| round.time).max().unwrap_or_default()),
        Cell::Nanos(floor),
        Cell::Number(time / floor.max(1.0), 2),
        Cell::Number(median(&|r| r.bytes as f64 / r.payload.max(1) as f64), 3),
        Cell::Number(sum(|r| r.bytes) as f64 / sum(|r| r.payload).max(1) as f64, 3),
        Cell::Bytes(sum(|r| r.removed)),
    ]
}
