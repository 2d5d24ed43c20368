//! How single operations grow with the number of keys, and with the bytes of keys and values, beside a hash table of
//! the same shape, Ring 1 writing the real log at the same time; and how checkpoints and opening grow with the state.

mod states;

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use laminar_storage::{CoreStore, Opened, Settings, Store};

use crate::keys::{Spread, mix};
use crate::place::clear;
use crate::plot::{Line, lines};
use crate::ring0::READ_BATCH;
use crate::ring0::drive::{Driver, Seals};
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const COLUMNS: &[&str] = &[
    "state",
    "put",
    "put, p99.9",
    "put, until durable",
    "get",
    "get_batch",
    "hashbrown, overwrite",
    "hashbrown, get",
    "memory / key",
    "/ (key + value + 24 B)",
];

/// Where the number of keys begins, and how often it doubles.
const FEWEST: u64 = 250_000;
const DOUBLINGS: u32 = 6;
/// The largest number of keys, less than a doubling more.
const MOST: u64 = 20_000_000;

/// Every so often a seal, as in the other measurements.
const SEALS: Seals = Seals::Every(Duration::from_millis(10));

/// What one state came to, in nanoseconds an operation.
#[derive(Clone, Copy, Debug)]
struct Means {
    put: f64,
    get: f64,
    get_batch: f64,
    table_put: f64,
    table_get: f64,
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    run.pins.background()?;
    let mut table = Table::new("scaling", "How operations grow, one core, uniform", COLUMNS);
    let mut sizes: Vec<u64> = (0..=run.size(1, DOUBLINGS)).map(|doubled| FEWEST << doubled).collect();
    if !run.quick {
        sizes.push(MOST);
    }
    let mut means = Vec::new();
    for keys in sizes {
        means.push((doublings(keys), measure::<16, 100>(run, keys, &mut table)?));
    }
    let keys = run.keys_or(FEWEST, 1_000_000);
    measure::<8, 100>(run, keys, &mut table)?;
    measure::<32, 100>(run, keys, &mut table)?;
    measure::<64, 100>(run, keys, &mut table)?;
    let values = [
        (1.0, measure::<16, 8>(run, keys, &mut table)?),
        (2.0, measure::<16, 250>(run, keys, &mut table)?),
        (3.0, measure::<16, 500>(run, keys, &mut table)?),
        (4.0, measure::<16, 750>(run, keys, &mut table)?),
        (5.0, measure::<16, 1000>(run, keys, &mut table)?),
    ];
    table.note("means without a clock in between; p99.9 with two readings of it around each put; puts in bursts of 16 384, Ring 1 catching up in between, which is not counted");
    table.note("put, until durable: as many puts without pauses, sealed as often, until the last of them is durable, over their number");
    table.note(format!("get_batch: of {READ_BATCH} keys, per key; hashbrown: nothing is durable, values in the table itself, memory in 4 KiB pages"));
    table.note(
        "memory: given by the system for records and index, after 15 million overwrites (3 million with --quick) in random order; ratio of what is used of it",
    );
    report.add(table);
    draw(
        run,
        &means,
        "scaling-keys.svg",
        "Means by the number of keys, 16 B / 100 B, one core",
        "doublings of the number of keys, 1 is 250 000",
    )?;
    let title =
        format!("Means by the bytes of a value, {} keys of 16 B, one core", Cell::Count(keys).shown());
    draw(
        run,
        &values,
        "scaling-values.svg",
        &title,
        "quarters of a kilobyte, from 8 bytes at 1 to 1000 at 5",
    )?;
    states::run(run, report)
}

/// Where a number of keys is on the axis of the plot.
fn doublings(keys: u64) -> f64 {
    1.0 + (keys as f64 / FEWEST as f64).log2()
}

/// Draws means, each with its place on the axis.
fn draw(run: &Run, means: &[(f64, Means)], file: &str, title: &str, x: &str) -> Result<(), Error> {
    let Some(dir) = &run.beside_json else { return Ok(()) };
    let line = |name, of: fn(&Means) -> f64| Line {
        name,
        points: means.iter().map(|(at, means)| (*at, of(means))).collect(),
    };
    lines(
        &dir.join(file),
        title,
        x,
        "ns an operation",
        &[
            line("put", |means| means.put),
            line("get", |means| means.get),
            line("get_batch", |means| means.get_batch),
            line("hashbrown, overwrite", |means| means.table_put),
            line("hashbrown, get", |means| means.table_get),
        ],
    )
}

/// The key with this number.
#[inline]
fn key<const K: usize>(number: u64) -> [u8; K] {
    let mut key = [0; K];
    for (part, at) in key.chunks_mut(8).zip(0_u64..) {
        part.copy_from_slice(&mix(number ^ at << 56).to_le_bytes()[..part.len()]);
    }
    key
}

/// A value that tells the version, at no cost.
#[inline]
fn stamp<const V: usize>(value: &mut [u8; V], version: u64) -> &[u8; V] {
    value[..8].copy_from_slice(&version.to_le_bytes());
    value
}

fn measure<const K: usize, const V: usize>(run: &Run, keys: u64, table: &mut Table) -> Result<Means, Error> {
    let drawn = Spread::Uniform.draw(keys, run.ops_or(1_000_000, 5_000_000), 1);
    let (table_put, table_get) = in_a_table::<K, V>(keys, &drawn);
    let dir = run.place.fresh("scaling")?;
    // Checkpoints are measured elsewhere.
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings).open()?;
    let core = cores.first_mut().ok_or("no core")?;
    run.pins.hot(0)?;
    let mut driver = Driver::new(&store);
    let mut value = [7; V];
    let mut put = |core: &mut CoreStore, number, at| core.put(&key::<K>(number), stamp(&mut value, at));
    let all: Vec<u32> = (0..keys as u32).collect();
    driver.untimed(core, &all, SEALS, &mut put)?;
    let mean = driver.untimed(core, &drawn, SEALS, &mut put)?;
    let (histogram, _) = driver.timed(core, &drawn, SEALS, &mut put)?;
    let (_, durable) = driver.unpaced(core, &drawn, SEALS, &mut put)?;
    let (get, get_batch) = reads::<K>(core, &drawn);
    let means = Means { put: mean, get, get_batch, table_put, table_get };
    let memory = core.memory();
    let used = (memory.live_bytes + memory.free_bytes + memory.index_bytes) as f64 / keys as f64;
    table.row(vec![
        Cell::text(format!("{} keys, {K} B / {V} B", Cell::Count(keys).shown())),
        Cell::Nanos(means.put),
        Cell::Nanos(histogram.value_at_quantile(0.999) as f64),
        Cell::Nanos(durable),
        Cell::Nanos(means.get),
        Cell::Nanos(means.get_batch),
        Cell::Nanos(means.table_put),
        Cell::Nanos(means.table_get),
        Cell::Number(memory.committed_bytes as f64 / keys as f64, 1),
        Cell::Number(used / (K + V + 24) as f64, 2),
    ]);
    drop(cores);
    store.close()?;
    clear(&dir)?;
    Ok(means)
}

/// The means of single reads, and of reads in batches.
fn reads<const K: usize>(core: &CoreStore, drawn: &[u32]) -> (f64, f64) {
    let each = |time: Duration| time.as_nanos() as f64 / drawn.len() as f64;
    let started = Instant::now();
    for number in drawn {
        std::hint::black_box(core.get(&key::<K>(u64::from(*number))).map(|value| value[0]));
    }
    let one_by_one = each(started.elapsed());
    let started = Instant::now();
    let mut keys = [[0; K]; READ_BATCH];
    for numbers in drawn.chunks_exact(READ_BATCH) {
        for (one, number) in keys.iter_mut().zip(numbers) {
            *one = key(u64::from(*number));
        }
        for value in core.get_batch(&keys) {
            std::hint::black_box(value.map(|value| value[0]));
        }
    }
    (one_by_one, each(started.elapsed()))
}

/// The means of overwriting in place, and of reading, in a hash table that has nothing to do with a disk.
fn in_a_table<const K: usize, const V: usize>(keys: u64, drawn: &[u32]) -> (f64, f64) {
    let each = |time: Duration| time.as_nanos() as f64 / drawn.len() as f64;
    let mut value = [7; V];
    let mut map: HashMap<[u8; K], [u8; V]> =
        (0..keys).map(|number| (key(number), *stamp(&mut value, number))).collect();
    let started = Instant::now();
    for (number, at) in drawn.iter().zip(0..) {
        if let Some(there) = map.get_mut(&key::<K>(u64::from(*number))) {
            *there = *stamp(&mut value, at);
        }
    }
    let put = each(started.elapsed());
    let started = Instant::now();
    for number in drawn {
        std::hint::black_box(map.get(&key::<K>(u64::from(*number))).map(|value| value[0]));
    }
    (put, each(started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_keys_between_two_doublings_is_drawn_between_them() {
        assert_eq!([FEWEST, FEWEST << DOUBLINGS].map(doublings), [1.0, 7.0]);
        assert!((7.3..7.4).contains(&doublings(MOST)));
    }

    #[test]
    fn keys_of_every_length_are_different() {
        assert_ne!(key::<8>(1), key::<8>(2));
        assert_ne!(key::<64>(1)[56..], key::<64>(2)[56..]);
        assert_eq!(key::<16>(3), key::<16>(3));
    }
}
