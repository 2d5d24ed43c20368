//! A device that is slower than the puts: how many become durable, and how long they wait for room in the ring.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Epoch, Opened, Store};

use super::device::{Files, Limits, Slow};
use super::{Done, drive_each, fill, settings};
use crate::keys::{Spread, Stamp, key};
use crate::machine::{Nanos, histogram};
use crate::place::clear;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const COLUMNS: &[&str] = &[
    "device",
    "cores",
    "puts/s",
    "/ floor",
    "log bytes / put",
    "puts / sync",
    "device busy",
    "put, p50",
    "p99",
    "p99.9",
    "longest",
    "seal to durable, p50",
    "seal to durable, p99",
];

/// Puts on a core between two seals.
const EPOCH: usize = 1024;
const BYTES_PER_SECOND: f64 = 50e6;
/// How late it answers a sync.
const DELAYS: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// When epochs were sealed, or became durable, in their order.
type Times = Vec<(Epoch, Instant)>;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let title = format!("Puts on a slow device, {EPOCH} per seal, uniform, 16 B / 100 B");
    let mut table = Table::new("backpressure", title, COLUMNS);
    for cores in [1, 4] {
        measure(run, cores, &mut table)?;
    }
    table.note("the device: the real one, with each sync answered late, and the bytes of syncs taken one after the other; what a real sync takes is part of that. What is written ahead, and headers of segments, go to it as well");
    table.note("floor: what the device takes in a second without pauses, over the log bytes of a put of the first row with as many cores");
    table.note("device busy: part of the time in which there was a sync that it had not answered");
    table.note("seal to durable: from the seal of a core, without pauses between epochs, so that the ring is full: what waits in it is a part of that");
    table.note("puts/s: until the last is durable. A put that ends an epoch is timed with its seal; what is longer than some µs is the wait for room in the ring, or another thread on the same processor");
    report.add(table);
    Ok(())
}

fn measure(run: &Run, count: usize, table: &mut Table) -> Result<(), Error> {
    let dir = run.place.fresh("backpressure")?;
    run.pins.background()?;
    let device = Arc::new(Slow::default());
    let builder = Store::builder(&dir).cores(count).settings(settings());
    let files = Files::new(Arc::clone(&device));
    let Opened { store, mut cores, .. } = builder.vfs(Arc::new(files)).open()?;
    let keys = fill(run, &store, &mut cores)?;
    let synced = Arc::<Mutex<Times>>::default();
    let notes = Arc::clone(&synced);
    store.on_durable(move |epoch| {
        notes.lock().unwrap_or_else(PoisonError::into_inner).push((epoch, Instant::now()))
    });
    let numbers = Spread::Uniform.draw(keys, run.ops_or(2_000_000, 8_000_000) / count, 3);
    let mut floor = None;
    for delay in [None, Some(DELAYS[0]), Some(DELAYS[1])] {
        if let Some(delay) = delay {
            device.set(Limits { delay, bytes_per_second: BYTES_PER_SECOND });
        }
        let (done, told) = drive_each(run, &store, &mut cores, numbers.len(), |core| timed(core, &numbers))?;
        let idle = device.idle();
        let synced = std::mem::take(&mut *synced.lock().unwrap_or_else(PoisonError::into_inner));
        let (puts, seals) = all(told, &synced)?;
        let name = match delay {
            None => "the real one".to_owned(),
            Some(delay) => format!("50 MB/s, syncs answered after {} ms", delay.as_millis()),
        };
        let of_floor = delay.map(|_| (*floor.get_or_insert_with(|| floor_row(&done, count, table)), idle));
        table.row(row(name, count, &done, of_floor, [&puts, &seals]));
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}

fn floor_row(done: &Done, cores: usize, table: &mut Table) -> f64 {
    let puts = BYTES_PER_SECOND / done.bytes_per_put();
    let mut cells = vec![
        Cell::text("floor: 50 MB/s without pauses"),
        Cell::Count(cores as u64),
        Cell::Count(puts as u64),
        Cell::Number(1.0, 2),
        Cell::Number(done.bytes_per_put(), 1),
    ];
    cells.resize(COLUMNS.len(), Cell::None);
    table.row(cells);
    puts
}

/// `slow`: the rate that the device would come to, and for how long it had nothing to do.
fn row(
    name: String,
    cores: usize,
    done: &Done,
    slow: Option<(f64, Duration)>,
    [puts, seals]: [&Nanos; 2],
) -> Vec<Cell> {
    let seconds = done.time.as_secs_f64();
    let rate = done.puts as f64 / seconds;
    let syncs = (done.after.syncs - done.before.syncs) as f64;
    let mut cells = vec![
        Cell::Text(name),
        Cell::Count(cores as u64),
        Cell::Count(rate as u64),
        slow.map_or(Cell::None, |(floor, _)| Cell::Number(rate / floor, 2)),
        Cell::Number(done.bytes_per_put(), 1),
        Cell::Number(done.puts as f64 / syncs, 0),
        slow.map_or(Cell::None, |(_, idle)| Cell::Number(1.0 - idle.as_secs_f64() / seconds, 2)),
    ];
    let at = |of: &Nanos, part| Cell::Nanos(of.value_at_quantile(part) as f64);
    cells.extend([0.5, 0.99, 0.999].map(|part| at(puts, part)));
    cells.push(Cell::Nanos(puts.max() as f64));
    cells.extend([0.5, 0.99].map(|part| at(seals, part)));
    cells
}

/// Puts on one core, each timed, and when its epochs were sealed.
fn timed(core: &mut CoreStore, numbers: &[u32]) -> Result<(Nanos, Times), Error> {
    let (mut stamp, mut latencies, mut seals) = (Stamp::new(), histogram()?, Times::new());
    for (number, at) in numbers.iter().zip(1_u64..) {
        let started = Instant::now();
        core.put(&key(u64::from(*number)), stamp.at(at))?;
        if at.is_multiple_of(EPOCH as u64) {
            let epoch = core.seal_epoch()?;
            seals.push((epoch, Instant::now()));
        }
        latencies.saturating_record(started.elapsed().as_nanos() as u64);
    }
    Ok((latencies, seals))
}

/// Of all cores: how long puts took, and epochs from the seal of a core until they were durable on all.
fn all(told: Vec<(Nanos, Times)>, synced: &Times) -> Result<(Nanos, Nanos), Error> {
    let (mut puts, mut seals) = (histogram()?, histogram()?);
    for (latencies, sealed) in told {
        puts.add(&latencies)?;
        for (epoch, at) in sealed {
            let durable = synced.partition_point(|(synced, _)| *synced < epoch);
            if let Some((_, durable)) = synced.get(durable) {
                seals.saturating_record(durable.saturating_duration_since(at).as_nanos() as u64);
            }
        }
    }
    Ok((puts, seals))
}
