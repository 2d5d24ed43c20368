//! The pipeline without a log, and with a larger ring: rows that say what those are worth.

use std::sync::Arc;
use std::time::Duration;

use laminar_storage::{Opened, Settings, Store, StoreBuilder};

use super::device::{Files, Nothing};
use super::{Policy, drive, fill, settings};
use crate::keys::Spread;
use crate::place::clear;
use crate::table::{Cell, Table};
use crate::{Error, Run};

const EPOCH: Policy = Policy::Puts(1024);
/// In which more values of hot keys are replaced than fit into the usual ring.
const LONG_EPOCH: Policy = Policy::Every(Duration::from_millis(100));
/// Entries of the larger ring: sixteen times the default.
const RING: usize = 1 << 20;
/// How the rows end whose log is taken at once and not kept, so that nothing in them is durable.
pub const DISCARDED: &str = ", log discarded (no device)";

/// The same, where a sync is answered when Ring 1 has taken more meanwhile: batches are as large as those of a device.
pub const DISCARDED_LATE: &str = ", log discarded, syncs take 1 ms (no device)";
const ANSWERED_AFTER: Duration = Duration::from_millis(1);

/// What a table says of the rows.
const NOTES: &[&str] = &[
    "log discarded: Ring 1 drains, frames and checksums the log as else, and counts its bytes; files take every write and sync at once and keep nothing, and there is one segment, so that no directory is synced in between. Syncs that take no time are many and small, and each is handed to another thread and back; with those that take 1 ms only Ring 1's own work is left",
    "ring of: entries of each core's changelog ring, which has 65 536 else",
];

/// The largest segment there may be: nothing is written, and no other one is begun.
pub const ONE_SEGMENT: u64 = 16 << 30;

pub fn all(run: &Run, rates: &mut Table) -> Result<(), Error> {
    for cores in [1, 2] {
        let settings = Settings { segment_bytes: ONE_SEGMENT, ..settings() };
        for (device, name) in
            [(Nothing::default(), DISCARDED), (Nothing::answering_after(ANSWERED_AFTER), DISCARDED_LATE)]
        {
            let set = |builder: StoreBuilder| {
                builder.settings(settings.clone()).vfs(Arc::new(Files::new(Arc::new(device))))
            };
            rows(run, cores, set, &[(Spread::Uniform, EPOCH), (Spread::Zipf, EPOCH)], name, rates)?;
        }
    }
    for cores in [1, 4] {
        let settings = Settings { ring_capacity: RING, ..settings() };
        let set = |builder: StoreBuilder| builder.settings(settings.clone());
        let name = format!(", ring of {}", Cell::Count(RING as u64).shown());
        rows(run, cores, set, &[(Spread::Zipf, EPOCH), (Spread::Zipf, LONG_EPOCH)], &name, rates)?;
    }
    NOTES.iter().for_each(|note| rates.note(*note));
    Ok(())
}

fn rows(
    run: &Run,
    count: usize,
    set: impl FnOnce(StoreBuilder) -> StoreBuilder,
    workloads: &[(Spread, Policy)],
    name: &str,
    rates: &mut Table,
) -> Result<(), Error> {
    let dir = run.place.fresh("durable")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = set(Store::builder(&dir).cores(count)).open()?;
    let keys = fill(run, &store, &mut cores)?;
    let puts = run.ops_or(2_000_000, 10_000_000) / count;
    for (spread, policy) in workloads {
        let numbers = spread.draw(keys, puts, 3);
        let done = drive(run, &store, &mut cores, &numbers, *policy)?;
        rates.row(done.cells(format!("{}, {}{name}", spread.name(), policy.name()), count));
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}
