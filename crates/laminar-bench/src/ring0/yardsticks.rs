//! What people would write without a store: a hash table in memory, of which nothing survives.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::drive::Outcome;
use crate::Error;
use crate::keys::{KEY, Stamp, VALUE, key};
use crate::machine::{Nanos, histogram};
use crate::table::{Cell, Table};

type InPlace = HashMap<[u8; KEY], [u8; VALUE]>;
type Boxed = HashMap<[u8; KEY], Box<[u8]>>;

pub fn run(keys: u64, uniform: &[u32], zipf: &[u32], table: &mut Table) -> Result<(), Error> {
    let mut stamp = Stamp::new();
    let mut map: InPlace = (0..keys).map(|number| (key(number), *stamp.at(number))).collect();
    let mut overwrite = |number, at| {
        if let Some(value) = map.get_mut(&key(number)) {
            *value = *stamp.at(at);
        }
    };
    table.row(measure("hashbrown, in-place overwrite, uniform", uniform, &mut overwrite)?);
    table.row(measure("hashbrown, in-place overwrite, zipf 0.99", zipf, &mut overwrite)?);
    let mut get = |number, _| {
        std::hint::black_box(map.get(&key(number)).map(|value| value[0]));
    };
    table.row(measure("hashbrown, get, uniform", uniform, &mut get)?);
    table.row(measure("hashbrown, get, zipf 0.99", zipf, &mut get)?);
    drop(map);

    let mut stamp = Stamp::new();
    let mut map: Boxed =
        (0..keys).map(|number| (key(number), Box::from(stamp.at(number).as_slice()))).collect();
    let mut insert = |number, at| drop(map.insert(key(number), Box::from(stamp.at(at).as_slice())));
    table.row(measure("hashbrown, a new Box per put, uniform", uniform, &mut insert)?);
    table.row(measure("hashbrown, a new Box per put, zipf 0.99", zipf, &mut insert)?);
    Ok(())
}

/// Growing a table that was not told how large it will be.
pub fn growth(keys: u64) -> Result<Vec<Cell>, Error> {
    let mut map = InPlace::new();
    let mut stamp = Stamp::new();
    let (histogram, time) = timed((0..keys).map(|number| number as u32), &mut |number, at| {
        map.insert(key(number), *stamp.at(at));
    })?;
    Ok(Outcome::timed("hashbrown, insert", histogram, time).cells())
}

fn measure(name: &str, numbers: &[u32], operation: &mut impl FnMut(u64, u64)) -> Result<Vec<Cell>, Error> {
    // Once for the caches and pages.
    numbers.iter().take(numbers.len() / 10).for_each(|number| operation(u64::from(*number), 0));
    let started = Instant::now();
    for (at, number) in numbers.iter().enumerate() {
        operation(u64::from(*number), at as u64);
    }
    let mean = started.elapsed().as_nanos() as f64 / numbers.len() as f64;
    let (histogram, time) = timed(numbers.iter().copied(), operation)?;
    Ok(Outcome::both(name, mean, histogram, time).cells())
}

fn timed(
    numbers: impl Iterator<Item = u32>,
    operation: &mut impl FnMut(u64, u64),
) -> Result<(Nanos, Duration), Error> {
    let mut histogram = histogram()?;
    let all = Instant::now();
    for (at, number) in numbers.enumerate() {
        let started = Instant::now();
        operation(u64::from(number), at as u64);
        histogram.saturating_record(started.elapsed().as_nanos() as u64);
    }
    Ok((histogram, all.elapsed()))
}
