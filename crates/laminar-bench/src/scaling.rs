//! How single operations grow with the number of keys, and with the bytes of keys and values, beside a hash table of
//! the same shape, Ring 1 writing the real log at the same time; and how checkpoints and opening grow with the state and
//! with the cores that it is spread over.

mod cores;
mod fit;
mod growth;
mod states;

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use laminar_storage::{CoreStore, Opened, Settings, Store};

use self::growth::{Growth, With};
use crate::keys::{Spread, mix};
use crate::place::clear;
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
    "the same, hashbrown",
];

/// Where the number of keys begins, and how often it doubles.
const FEWEST: u64 = 250_000;
const DOUBLINGS: u32 = 6;
/// With fewer there would be no slope to tell from scatter.
const QUICK_DOUBLINGS: u32 = 2;
/// The largest number of keys, less than a doubling more.
const MOST: u64 = 20_000_000;

/// Every so often a seal, as in the other measurements.
const SEALS: Seals = Seals::Every(Duration::from_millis(10));

/// What one state came to: nanoseconds an operation, and bytes a key.
#[derive(Clone, Copy, Debug)]
struct Row {
    keys: u64,
    /// Bytes of a key and of a value.
    key: usize,
    value: usize,
    put: f64,
    p999: f64,
    durable: f64,
    get: f64,
    get_batch: f64,
    table_put: f64,
    table_get: f64,
    committed: f64,
    used: f64,
    table_bytes: f64,
}

impl Row {
    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::text(format!("{} keys, {} B / {} B", Cell::Count(self.keys).shown(), self.key, self.value)),
            Cell::Nanos(self.put),
            Cell::Nanos(self.p999),
            Cell::Nanos(self.durable),
            Cell::Nanos(self.get),
            Cell::Nanos(self.get_batch),
            Cell::Nanos(self.table_put),
            Cell::Nanos(self.table_get),
            Cell::Number(self.committed, 1),
            Cell::Number(self.ratio(self.used), 2),
            Cell::Number(self.ratio(self.table_bytes), 2),
        ]
    }

    /// Bytes a key as a multiple of what it is about.
    fn ratio(&self, bytes: f64) -> f64 {
        bytes / (self.key + self.value + 24) as f64
    }
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    run.pins.background()?;
    let mut table = Table::new("scaling", "How operations grow, one core, uniform", COLUMNS);
    let mut numbers = sizes(run);
    if !run.quick && run.keys.is_none() {
        numbers.push(MOST);
    }
    let keys = run.keys_or(FEWEST, 1_000_000);
    let rows = measure_all(run, &numbers, keys, &mut table)?;
    table.note("means without a clock in between; p99.9 with two readings of it around each put; puts in bursts of 16 384, Ring 1 catching up in between, which is not counted");
    table.note("put, until durable: as many puts without pauses, sealed as often, until the last of them is durable, over their number");
    table.note(format!("get_batch: of {READ_BATCH} keys, per key; hashbrown: nothing is durable, values in the table itself, memory in 4 KiB pages"));
    table.note(
        "memory: given by the system for records and index, after 15 million overwrites (3 million with --quick) in random order; ratio of what is used of it; of hashbrown what its table takes",
    );
    for growth in growths(&rows, keys) {
        growth.show(run, &mut table)?;
    }
    table.note(fit::NOTE);
    report.add(table);
    states::run(run, report)?;
    cores::run(run, report)
}

/// Numbers of keys, each twice the one before.
fn sizes(run: &Run) -> Vec<u64> {
    let first = run.keys_or(FEWEST, FEWEST);
    let all = (0..=run.size(QUICK_DOUBLINGS, DOUBLINGS)).map(|doubled| first << doubled);
    // Of what was asked for at least one is measured.
    all.take_while(|keys| *keys <= MOST.max(first)).collect()
}

/// States of so many keys; and some with so many, of each length of keys and of values.
fn measure_all(run: &Run, numbers: &[u64], keys: u64, table: &mut Table) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for keys in numbers {
        rows.push(measure::<16, 100>(run, *keys, table)?);
    }
    rows.push(measure::<8, 100>(run, keys, table)?);
    rows.push(measure::<32, 100>(run, keys, table)?);
    rows.push(measure::<64, 100>(run, keys, table)?);
    rows.push(measure::<16, 8>(run, keys, table)?);
    rows.push(measure::<16, 250>(run, keys, table)?);
    rows.push(measure::<16, 500>(run, keys, table)?);
    rows.push(measure::<16, 750>(run, keys, table)?);
    rows.push(measure::<16, 1000>(run, keys, table)?);
    Ok(rows)
}

/// What the rows say about the number of keys, and, with so many, about the bytes of keys and of values.
fn growths(rows: &[Row], keys: u64) -> [Growth<'_>; 3] {
    let among = |wanted: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| wanted(row)).collect::<Vec<_>>();
    let mut lengths = among(&|row| row.keys == keys && row.value == 100);
    lengths.sort_by_key(|row| row.key);
    let mut values = among(&|row| row.keys == keys && row.key == 16);
    values.sort_by_key(|row| row.value);
    let of = Cell::Count(keys).shown();
    [
        Growth {
            rows: among(&|row| row.key == 16 && row.value == 100),
            file: "scaling-keys",
            by: "the number of keys, 16 B / 100 B, one core".into(),
            with: With::Keys,
        },
        Growth {
            rows: lengths,
            file: "scaling-lengths",
            by: format!("the bytes of a key, {of} keys, values of 100 B, one core"),
            with: With::KeyBytes,
        },
        Growth {
            rows: values,
            file: "scaling-values",
            by: format!("the bytes of a value, {of} keys of 16 B, one core"),
            with: With::ValueBytes,
        },
    ]
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

fn measure<const K: usize, const V: usize>(run: &Run, keys: u64, table: &mut Table) -> Result<Row, Error> {
    let drawn = Spread::Uniform.draw(keys, run.ops_or(1_000_000, 5_000_000), 1);
    let (table_put, table_get, table_bytes) = in_a_table::<K, V>(keys, &drawn);
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
    let memory = core.memory();
    let a_key = |bytes: u64| bytes as f64 / keys as f64;
    let row = Row {
        keys,
        key: K,
        value: V,
        put: mean,
        p999: histogram.value_at_quantile(0.999) as f64,
        durable,
        get,
        get_batch,
        table_put,
        table_get,
        committed: a_key(memory.committed_bytes),
        used: a_key(memory.live_bytes + memory.free_bytes + memory.index_bytes),
        table_bytes: a_key(table_bytes as u64),
    };
    table.row(row.cells());
    drop(cores);
    store.close()?;
    clear(&dir)?;
    Ok(row)
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

/// The means of overwriting in place, and of reading, in a hash table that has nothing to do with a disk; and its bytes.
fn in_a_table<const K: usize, const V: usize>(keys: u64, drawn: &[u32]) -> (f64, f64, usize) {
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
    (put, each(started.elapsed()), map.allocation_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_growth_has_the_rows_that_differ_in_one_thing() {
        let row = |keys, key, value| Row {
            keys,
            key,
            value,
            put: 1.0,
            p999: 1.0,
            durable: 1.0,
            get: 1.0,
            get_batch: 1.0,
            table_put: 1.0,
            table_get: 1.0,
            committed: 1.0,
            used: 1.0,
            table_bytes: 1.0,
        };
        let rows = [row(5, 16, 100), row(10, 16, 100), row(10, 64, 100), row(10, 8, 100), row(10, 16, 8)];
        let found = growths(&rows, 10)
            .map(|growth| growth.rows.iter().map(|row| (row.keys, row.key, row.value)).collect::<Vec<_>>());
        let keys = vec![(5, 16, 100), (10, 16, 100)];
        let lengths = vec![(10, 8, 100), (10, 16, 100), (10, 64, 100)];
        assert_eq!(found, [keys, lengths, vec![(10, 16, 8), (10, 16, 100)]]);
    }

    #[test]
    fn keys_of_every_length_are_different() {
        assert_ne!(key::<8>(1), key::<8>(2));
        assert_ne!(key::<64>(1)[56..], key::<64>(2)[56..]);
        assert_eq!(key::<16>(3), key::<16>(3));
    }
}
