//! What people would write without a store: a hash table in memory, of which nothing survives. And memory itself.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::Rows;
use super::drive::Outcome;
use super::floor::{BATCH, Floor};
use crate::Error;
use crate::keys::{KEY, PAYLOAD, Stamp, VALUE, key};
use crate::machine::{Nanos, histogram};

pub type InPlace = HashMap<[u8; KEY], [u8; VALUE]>;
pub type Boxed = HashMap<[u8; KEY], Box<[u8]>>;

pub fn run(keys: u64, uniform: &[u32], zipf: &[u32], rows: &mut Rows) -> Result<(), Error> {
    memory(keys, uniform, rows)?;
    floor(keys, uniform, zipf, rows)?;
    let mut stamp = Stamp::new();
    let mut map = in_place(keys);
    let mut overwrite = |number, at| {
        if let Some(value) = map.get_mut(&key(number)) {
            *value = *stamp.at(at);
        }
    };
    rows.row(&measure("hashbrown, in-place overwrite, uniform", uniform, &mut overwrite)?);
    rows.row(&measure("hashbrown, in-place overwrite, zipf 0.99", zipf, &mut overwrite)?);
    let mut get = |number, _| {
        std::hint::black_box(map.get(&key(number)).map(|value| value[0]));
    };
    rows.row(&measure("hashbrown, get, uniform", uniform, &mut get)?);
    rows.row(&measure("hashbrown, get, zipf 0.99", zipf, &mut get)?);
    drop(map);

    let mut stamp = Stamp::new();
    let mut map = boxed(keys);
    let mut insert = |number, at| drop(map.insert(key(number), Box::from(stamp.at(at).as_slice())));
    rows.row(&measure("hashbrown, a new Box per put, uniform", uniform, &mut insert)?);
    rows.row(&measure("hashbrown, a new Box per put, zipf 0.99", zipf, &mut insert)?);
    let mut get = |number, _| {
        std::hint::black_box(map.get(&key(number)).map(|value| value[0]));
    };
    rows.row(&measure("hashbrown of Boxes, get, uniform", uniform, &mut get)?);
    Ok(())
}

/// All keys, with values in the table.
pub fn in_place(keys: u64) -> InPlace {
    let mut stamp = Stamp::new();
    (0..keys).map(|number| (key(number), *stamp.at(number))).collect()
}

/// All keys, with values of their own in memory.
pub fn boxed(keys: u64) -> Boxed {
    let mut stamp = Stamp::new();
    (0..keys).map(|number| (key(number), Box::from(stamp.at(number).as_slice()))).collect()
}

/// A place in memory of the size of a record, of which there are as many as keys. No key is looked for.
type Place = [u8; 128];

/// The floor: the bytes of key and value are copied to a place that is known, or eight are read from there.
fn memory(keys: u64, uniform: &[u32], rows: &mut Rows) -> Result<(), Error> {
    let mut places: Vec<Place> = vec![[1; 128]; keys as usize];
    let mut stamp = Stamp::new();
    let mut write = |number: u64, at| {
        let place = &mut places[number as usize];
        place[..KEY].copy_from_slice(&key(number));
        place[KEY..PAYLOAD].copy_from_slice(stamp.at(at));
    };
    rows.row(&measure("raw memory, 116 B written, uniform", uniform, &mut write)?);
    let mut read = |number: u64, _| {
        std::hint::black_box(places[number as usize][KEY]);
    };
    rows.row(&measure("raw memory, read, uniform", uniform, &mut read)?);
    Ok(())
}

/// The floor of what a put with its changelog must do, one by one and in batches.
fn floor(keys: u64, uniform: &[u32], zipf: &[u32], rows: &mut Rows) -> Result<(), Error> {
    let mut floor = Floor::new(keys)?;
    let mut failed = None;
    let mut put = |number, at| {
        if let Err(error) = floor.put(number, at) {
            failed = Some(error);
        }
    };
    rows.row(&measure("floor: index, arena and ring, put, uniform", uniform, &mut put)?);
    rows.row(&measure("floor: index, arena and ring, put, zipf 0.99", zipf, &mut put)?);
    if let Some(error) = failed {
        return Err(error);
    }
    let mean = batches(uniform, |numbers, at| floor.put_batch::<false>(numbers, at))?;
    rows.row(&Outcome::untimed("floor: put_batch of 16, no ring, uniform, per put", mean));
    let mean = batches(uniform, |numbers, at| floor.put_batch::<true>(numbers, at))?;
    rows.row(&Outcome::untimed("floor: put_batch of 16, with the ring, uniform, per put", mean));
    let mut failed = None;
    let mut get = |number, _| match floor.get(number) {
        Ok(byte) => drop(std::hint::black_box(byte)),
        Err(error) => failed = Some(error),
    };
    rows.row(&measure("floor: index and arena, get, uniform", uniform, &mut get)?);
    failed.map_or(Ok(()), Err)
}

/// The mean of a put, in batches.
pub fn batches(
    numbers: &[u32],
    mut put: impl FnMut(&[u32; BATCH], u64) -> Result<(), Error>,
) -> Result<f64, Error> {
    let (batches, _) = numbers.as_chunks();
    let started = Instant::now();
    for (at, numbers) in batches.iter().enumerate() {
        put(numbers, at as u64)?;
    }
    Ok(started.elapsed().as_nanos() as f64 / (batches.len() * BATCH) as f64)
}

/// Growing a table that was not told how large it will be.
pub fn growth(keys: u64) -> Result<Outcome, Error> {
    let mut map = InPlace::new();
    let mut stamp = Stamp::new();
    let (histogram, time) = timed((0..keys).map(|number| number as u32), &mut |number, at| {
        map.insert(key(number), *stamp.at(at));
    })?;
    Ok(Outcome::timed("hashbrown, insert", histogram, time))
}

pub fn measure(name: &str, numbers: &[u32], operation: &mut impl FnMut(u64, u64)) -> Result<Outcome, Error> {
    // Once for the caches and pages.
    numbers.iter().take(numbers.len() / 10).for_each(|number| operation(u64::from(*number), 0));
    let started = Instant::now();
    for (at, number) in numbers.iter().enumerate() {
        operation(u64::from(*number), at as u64);
    }
    let mean = started.elapsed().as_nanos() as f64 / numbers.len() as f64;
    let (histogram, time) = timed(numbers.iter().copied(), operation)?;
    Ok(Outcome::both(name, mean, histogram, time))
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
