//! Ring 1 by itself: how fast it takes what waits in the rings, and makes a log of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Epoch, Opened, Settings, Store};

use super::device::{Files, Nothing};
use super::variants::ONE_SEGMENT;
use super::{fill, settings};
use crate::keys::{PAYLOAD, Spread, Stamp, key};
use crate::machine::cpu_time_of;
use crate::place::clear;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// Puts that wait in the ring of each core, which has room for 65 536 changes and ends of epochs.
const WAITING: usize = 32_768;
/// The name of Ring 1's thread.
const RING1: &str = "laminar-ring1";
/// Rounds before those that count: the first find buffers that have to grow.
const WARM: usize = 2;

/// How keys are drawn, and puts of a core in an epoch.
const WORKLOADS: [(Spread, usize); 4] =
    [(Spread::Uniform, 1024), (Spread::Uniform, WAITING), (Spread::Uniform, 4), (Spread::Zipf, 1024)];

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let mut table = Table::new(
        "drain",
        "Ring 1 alone: from full rings to a log, 16 B / 100 B",
        &[
            "workload",
            "cores",
            "puts/s",
            "per put",
            "slowest",
            "Ring 1's CPU / put",
            "log bytes / put",
            "logged / put",
            "payload/s",
        ],
    );
    for cores in [1, 2, 4] {
        measure(run, cores, &mut table)?;
    }
    table.note(format!(
        "{WAITING} puts wait in the ring of each core, and Ring 1 for its first write; from when that goes on until all is durable, nothing else running: draining, leaving out what is superseded, framing, checksums, telling who waits. The log takes each write and sync at once and keeps nothing"
    ));
    table.note("the median of the rounds, and the slowest; payload: keys and values, left out ones included");
    report.add(table);
    Ok(())
}

fn measure(run: &Run, count: usize, table: &mut Table) -> Result<(), Error> {
    let dir = run.place.fresh("durable")?;
    run.pins.background()?;
    let log = Arc::new(Nothing::default());
    let settings = Settings { segment_bytes: ONE_SEGMENT, ..settings() };
    let builder = Store::builder(&dir).cores(count).settings(settings);
    let Opened { store, mut cores, .. } = builder.vfs(Arc::new(Files::new(Arc::clone(&log)))).open()?;
    let keys = fill(run, &store, &mut cores)?;
    for (spread, epoch) in WORKLOADS {
        let mut rounds = Vec::new();
        let (mut before, mut cpu) = (store.stats(), Duration::ZERO);
        let timed = run.size(5, 40);
        for round in 0..WARM + timed {
            if round == WARM {
                (before, cpu) = (store.stats(), cpu_time_of(RING1));
            }
            let numbers = spread.draw(keys, WAITING, round as u64);
            rounds.push(until_drained(&store, &mut cores, &log, numbers.chunks(epoch))?);
        }
        let mut rounds = rounds.split_off(WARM);
        rounds.sort_unstable();
        let (median, slowest) = (rounds[timed / 2].as_secs_f64(), rounds[timed - 1].as_secs_f64());
        let (after, cpu) = (store.stats(), cpu_time_of(RING1).saturating_sub(cpu));
        let (at_once, all) = ((WAITING * count) as f64, (WAITING * count * timed) as f64);
        table.row(vec![
            Cell::text(format!("{}, {epoch} puts per seal", spread.name())),
            Cell::Count(count as u64),
            Cell::Count((at_once / median) as u64),
            Cell::Nanos(median * 1e9 / at_once),
            Cell::Nanos(slowest * 1e9 / at_once),
            Cell::Nanos(cpu.as_nanos() as f64 / all),
            Cell::Number((after.wal_bytes - before.wal_bytes) as f64 / all, 1),
            Cell::Number((after.changes_logged - before.changes_logged) as f64 / all, 3),
            Cell::Bytes((at_once * PAYLOAD as f64 / median) as u64),
        ]);
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}

/// Fills the rings while Ring 1 waits for its first write, and measures from when that goes on.
fn until_drained<'a>(
    store: &Store,
    cores: &mut [CoreStore],
    log: &Nothing,
    epochs: impl Iterator<Item = &'a [u32]> + Clone,
) -> Result<Duration, Error> {
    log.shut();
    let filled = fill_rings(cores, log, epochs);
    let started = Instant::now();
    // Also where something failed: a store that is closed writes what it has.
    log.open();
    store.wait_durable(filled?)?;
    Ok(started.elapsed())
}

fn fill_rings<'a>(
    cores: &mut [CoreStore],
    log: &Nothing,
    epochs: impl Iterator<Item = &'a [u32]> + Clone,
) -> Result<Epoch, Error> {
    let mut epoch = Epoch::ZERO;
    for core in cores.iter_mut() {
        epoch = core.seal_epoch()?;
    }
    log.wait_for_a_write();
    let mut stamp = Stamp::new();
    for core in cores.iter_mut() {
        for numbers in epochs.clone() {
            for number in numbers {
                core.put(&key(u64::from(*number)), stamp.at(u64::from(*number)))?;
            }
            epoch = core.seal_epoch()?;
        }
    }
    Ok(epoch)
}
