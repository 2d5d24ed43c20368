//! What the goals compare, measured in turns: a machine's speed changes within minutes, so that rows which were measured
//! minutes apart say little about each other. Here each round measures every row once, and a row is compared with its yardstick
//! within each round.

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Store};

use super::drive::{Driver, Seals};
use super::floor::Floor;
use super::yardsticks::{self, Boxed, InPlace};
use super::{fill, settings};
use crate::keys::{Spread, Stamp, VALUE, key};
use crate::machine::{Nanos, histogram};
use crate::place::clear;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const ROUNDS: usize = 9;

const COLUMNS: &[&str] = &[
    "operation",
    "mean: median round",
    "mean: least",
    "mean: most",
    "p50: median round",
    "p99.9: median round",
    "yardstick",
    "mean / yardstick's: median round",
    "mean / yardstick's: least",
    "mean / yardstick's: most",
    "p99.9 / yardstick's: median round",
];

/// Everything that is measured, at the same time in memory.
struct Everything<'a> {
    floor: Floor,
    in_place: InPlace,
    boxed: Boxed,
    core: CoreStore,
    driver: Driver<'a>,
    stamp: Stamp,
}

/// One measurement of a row.
struct Measured {
    mean: f64,
    /// Of single operations, where there are such.
    timed: Option<Nanos>,
}

impl Measured {
    fn quantile(&self, q: f64) -> Option<f64> {
        Some(self.timed.as_ref()?.value_at_quantile(q) as f64)
    }
}

type Measure = fn(&mut Everything<'_>, &[u32]) -> Result<Measured, Error>;

struct Row {
    name: &'static str,
    spread: Spread,
    /// The rows that this one is compared with.
    yardsticks: &'static [&'static str],
    measure: Measure,
}

const FLOOR: &str = "floor, put, uniform";
const FLOOR_ZIPF: &str = "floor, put, zipf 0.99";
const FLOOR_BATCH: &str = "floor, put_batch of 16, uniform, with the ring";
const FLOOR_BATCH_BARE: &str = "floor, put_batch of 16, uniform, without the ring";
const FLOOR_GET: &str = "floor, get, uniform";
const BOXED: &str = "hashbrown, a new Box per put, uniform";
const IN_PLACE_GET: &str = "hashbrown, get, uniform";
const BOXED_GET: &str = "hashbrown of Boxes, get, uniform";

const NEVER: Seals = Seals::Never;
const EVERY_10_MS: Seals = Seals::Every(Duration::from_millis(10));
const EVERY_1024: Seals = Seals::Puts(1024);

const fn uniform(name: &'static str, yardsticks: &'static [&'static str], measure: Measure) -> Row {
    Row { name, spread: Spread::Uniform, yardsticks, measure }
}

const fn zipf(name: &'static str, yardsticks: &'static [&'static str], measure: Measure) -> Row {
    Row { name, spread: Spread::Zipf, yardsticks, measure }
}

const ROWS: &[Row] = &[
    uniform(FLOOR, &[], |all, numbers| all.floor_put(numbers)),
    uniform(BOXED, &[], |all, numbers| all.box_put(numbers)),
    uniform("put, uniform, not sealed", &[FLOOR, BOXED], |all, numbers| all.put(numbers, NEVER)),
    uniform("put, uniform, sealed every 10 ms", &[FLOOR, BOXED], |all, numbers| {
        all.put(numbers, EVERY_10_MS)
    }),
    uniform("put, uniform, sealed every 1024 puts", &[FLOOR, BOXED], |all, numbers| {
        all.put(numbers, EVERY_1024)
    }),
    zipf(FLOOR_ZIPF, &[], |all, numbers| all.floor_put(numbers)),
    zipf("put, zipf 0.99, not sealed", &[FLOOR_ZIPF], |all, numbers| all.put(numbers, NEVER)),
    zipf("put, zipf 0.99, sealed every 10 ms", &[FLOOR_ZIPF], |all, numbers| all.put(numbers, EVERY_10_MS)),
    zipf("put, zipf 0.99, sealed every 1024 puts", &[FLOOR_ZIPF], |all, numbers| {
        all.put(numbers, EVERY_1024)
    }),
    uniform(FLOOR_BATCH_BARE, &[], |all, numbers| all.floor_batches::<false>(numbers)),
    uniform(FLOOR_BATCH, &[], |all, numbers| all.floor_batches::<true>(numbers)),
    uniform("put_batch of 16, uniform", &[FLOOR_BATCH_BARE, FLOOR_BATCH], |all, numbers| {
        all.batches(numbers)
    }),
    uniform(FLOOR_GET, &[], |all, numbers| all.floor_get(numbers)),
    uniform(IN_PLACE_GET, &[], |all, numbers| all.in_place_get(numbers)),
    uniform(BOXED_GET, &[], |all, numbers| all.box_get(numbers)),
    uniform("get, uniform", &[IN_PLACE_GET, BOXED_GET, FLOOR_GET], |all, numbers| all.get(numbers)),
    uniform("get_batch of 128, uniform", &[IN_PLACE_GET, BOXED_GET], |all, numbers| all.get_batches(numbers)),
];

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(1_000_000, 1_000_000);
    let count = run.ops_or(2_000_000, 9_000_000) / ROUNDS;
    let dir = run.place.fresh("turns")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    run.pins.hot(0)?;
    let mut driver = Driver::new(&store);
    let mut core = cores.pop().ok_or("no core")?;
    fill(&mut driver, &mut core, keys)?;
    let mut all = Everything {
        floor: Floor::new(keys)?,
        in_place: yardsticks::in_place(keys),
        boxed: yardsticks::boxed(keys),
        core,
        driver,
        stamp: Stamp::new(),
    };
    let rounds = rounds(&mut all, keys, count)?;
    report.add(table(keys, count, &rounds)?);
    drop(all);
    store.close()?;
    clear(&dir)
}

/// Rounds of what was measured in each row, in the order of [`ROWS`].
fn rounds(all: &mut Everything<'_>, keys: u64, count: usize) -> Result<Vec<Vec<Measured>>, Error> {
    (0..ROUNDS as u64)
        .map(|round| {
            let uniform = Spread::Uniform.draw(keys, count, 2 * round + 1);
            let zipf = Spread::Zipf.draw(keys, count, 2 * round + 2);
            let measured = ROWS.iter().map(|row| {
                let numbers = match row.spread {
                    Spread::Uniform => &uniform,
                    Spread::Zipf => &zipf,
                };
                // For the caches, which the row before has filled with its own.
                (row.measure)(all, &numbers[..count / 10])?;
                (row.measure)(all, numbers)
            });
            measured.collect()
        })
        .collect()
}

fn table(keys: u64, count: usize, rounds: &[Vec<Measured>]) -> Result<Table, Error> {
    let title = format!(
        "Ring 0 in turns: {ROUNDS} rounds of {count} operations per row on {keys} keys, 16 B / 100 B"
    );
    let mut table = Table::new("turns", title, COLUMNS);
    for (at, row) in ROWS.iter().enumerate() {
        let measured: Vec<_> = rounds.iter().map(|round| &round[at]).collect();
        if row.yardsticks.is_empty() {
            table.row([own(row, &measured), vec![Cell::None; 5]].concat());
        }
        for name in row.yardsticks {
            let other = ROWS.iter().position(|other| other.name == *name).ok_or("no such yardstick")?;
            let yardstick: Vec<_> = rounds.iter().map(|round| &round[other]).collect();
            table.row([own(row, &measured), compared(name, &measured, &yardstick)].concat());
        }
    }
    table.note("each round measures every row once, in this order, first without a clock in between (mean), then with two readings of it around each operation (p50, p99.9); a row is divided by its yardstick of the same round, and the median, least and most are of those quotients");
    table.note("all of it is in memory at the same time; Ring 1 of the store sleeps while others are measured, and catches up after bursts of 16 384 puts, which is not counted; sealing is not counted either");
    table.note("what is not equal is said under the table of Ring 0; puts are not durable when they return");
    Ok(table)
}

/// The figures of a row.
fn own(row: &Row, measured: &[&Measured]) -> Vec<Cell> {
    let means = spread(measured.iter().map(|one| Some(one.mean)), Cell::Nanos);
    let [p50, ..] = spread(measured.iter().map(|one| one.quantile(0.5)), Cell::Nanos);
    let [p99_9, ..] = spread(measured.iter().map(|one| one.quantile(0.999)), Cell::Nanos);
    [vec![Cell::text(row.name)], means.to_vec(), vec![p50, p99_9]].concat()
}

/// The figures of a row divided by those of its yardstick.
fn compared(name: &str, measured: &[&Measured], yardstick: &[&Measured]) -> Vec<Cell> {
    let pairs = || measured.iter().zip(yardstick);
    let ratio = |n| Cell::Number(n, 2);
    let means = spread(pairs().map(|(one, other)| Some(one.mean / other.mean)), ratio);
    let tail = |one: &Measured, other: &Measured| Some(one.quantile(0.999)? / other.quantile(0.999)?);
    let [p99_9, ..] = spread(pairs().map(|(one, other)| tail(one, other)), ratio);
    [vec![Cell::text(name)], means.to_vec(), vec![p99_9]].concat()
}

/// Median, least and most of the figures, if all rounds have one.
fn spread(figures: impl Iterator<Item = Option<f64>>, cell: impl Fn(f64) -> Cell) -> [Cell; 3] {
    let Some(mut figures) = figures.collect::<Option<Vec<f64>>>() else { return [const { Cell::None }; 3] };
    figures.sort_by(f64::total_cmp);
    [figures.len() / 2, 0, figures.len() - 1].map(|at| cell(figures[at]))
}

/// Every operation by itself, without and then with a clock.
fn measure(
    numbers: &[u32],
    mut operation: impl FnMut(u64, u64) -> Result<(), Error>,
) -> Result<Measured, Error> {
    let started = Instant::now();
    for (number, at) in numbers.iter().zip(0..) {
        operation(u64::from(*number), at)?;
    }
    let mean = started.elapsed().as_nanos() as f64 / numbers.len() as f64;
    let mut timed = histogram()?;
    for (number, at) in numbers.iter().zip(0..) {
        let started = Instant::now();
        operation(u64::from(*number), at)?;
        timed.saturating_record(started.elapsed().as_nanos() as u64);
    }
    Ok(Measured { mean, timed: Some(timed) })
}

impl Everything<'_> {
    fn floor_put(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, at| self.floor.put(number, at))
    }

    fn floor_get(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, _| {
            std::hint::black_box(self.floor.get(number)?);
            Ok(())
        })
    }

    fn floor_batches<const TOLD: bool>(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        let mean = yardsticks::batches(numbers, |numbers, at| self.floor.put_batch::<TOLD>(numbers, at))?;
        Ok(Measured { mean, timed: None })
    }

    fn put(&mut self, numbers: &[u32], seals: Seals) -> Result<Measured, Error> {
        let Self { core, driver, stamp, .. } = self;
        let mut put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
        let mean = driver.untimed(core, numbers, seals, &mut put)?;
        let (timed, _) = driver.timed(core, numbers, seals, &mut put)?;
        Ok(Measured { mean, timed: Some(timed) })
    }

    fn batches(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        let mean = super::batches(&mut self.driver, &mut self.core, numbers)?;
        Ok(Measured { mean, timed: None })
    }

    fn box_put(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, at| {
            drop(self.boxed.insert(key(number), Box::from(self.stamp.at(at).as_slice())));
            Ok(())
        })
    }

    fn in_place_get(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, _| {
            std::hint::black_box(self.in_place.get(&key(number)).map(first));
            Ok(())
        })
    }

    fn box_get(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, _| {
            std::hint::black_box(self.boxed.get(&key(number)).map(|value| value[0]));
            Ok(())
        })
    }

    fn get(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        measure(numbers, |number, _| {
            std::hint::black_box(self.core.get(&key(number)).map(|value| value[0]));
            Ok(())
        })
    }

    fn get_batches(&mut self, numbers: &[u32]) -> Result<Measured, Error> {
        Ok(Measured { mean: super::batches_read(&self.core, numbers), timed: None })
    }
}

fn first(value: &[u8; VALUE]) -> u8 {
    value[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_yardstick_is_a_row_of_its_own_with_the_same_keys() {
        for row in ROWS {
            for name in row.yardsticks {
                let yardstick = ROWS.iter().find(|other| other.name == *name);
                let yardstick = yardstick.unwrap_or_else(|| panic!("{name}, for {}", row.name));
                assert!(yardstick.yardsticks.is_empty() && yardstick.spread == row.spread, "{name}");
            }
        }
    }

    #[test]
    fn of_rounds_the_median_the_least_and_the_most_are_told() {
        let told = |figures: &[Option<f64>]| {
            spread(figures.iter().copied(), |n| Cell::Number(n, 0)).map(|cell| cell.shown())
        };
        assert_eq!(told(&[Some(3.0), Some(9.0), Some(1.0)]), ["3", "1", "9"]);
        assert_eq!(told(&[Some(3.0), None, Some(1.0)]), ["-"; 3]);
    }
}
