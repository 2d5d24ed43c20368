//! Single operations on a core, while Ring 1 takes the changes over and writes the real log.
//!
//! Ring 1 shares memory and device with Ring 0 but not its thread. Two ways of driving it: *paced*
//! rows put in bursts that fit into the ring and wait (outside the measurement) until Ring 1 has
//! caught up, so that they show Ring 0; *unpaced* rows never wait, so that they show the slower of
//! Ring 0 and Ring 1.

pub mod drive;
mod floor;
mod growth;
#[cfg(feature = "peers")]
mod peers;
pub mod turns;
mod yardsticks;

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Settings, Store, StoreError};

use self::drive::{Driver, Outcome, Seals};
use crate::keys::{KEY, PAYLOAD, Spread, Stamp, VALUE, key};
use crate::place::clear;
use crate::plot::{self, Distribution};
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run, machine};

/// Pairs in a call of `put_batch`.
const BATCH: usize = 16;

/// Keys in a call of `get_batch`.
pub const READ_BATCH: usize = 128;

pub const COLUMNS: &[&str] = &[
    "operation",
    "mean",
    "timed: mean",
    "p50",
    "p99",
    "p99.9",
    "p99.99",
    "longest",
    "> 10 µs /s",
    "> 100 µs /s",
];

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    run.pins.background()?;
    existing(run, report)?;
    growth::run(run, report)
}

/// The rows of a table, and those of them that are drawn.
struct Rows {
    table: Table,
    drawn: Vec<Distribution>,
}

impl Rows {
    fn new(table: Table) -> Self {
        Self { table, drawn: Vec::new() }
    }

    fn row(&mut self, outcome: &Outcome) {
        self.table.row(outcome.cells());
        self.drawn.extend(outcome.distribution());
    }

    /// Draws the rows of these names.
    fn draw(&self, run: &Run, file: &str, title: &str, names: &[&str]) -> Result<(), Error> {
        let Some(dir) = &run.beside_json else { return Ok(()) };
        let drawn: Vec<_> = names
            .iter()
            .filter_map(|name| self.drawn.iter().find(|one| one.name == *name).cloned())
            .collect();
        plot::distributions(&dir.join(file), title, &drawn)
    }
}

/// What is durable when it has ended, and is drawn beside what is not.
const WAITED: &str = "put, uniform, until it is durable, one by one";

const DRAWN: &[&str] = &[
    "put, uniform, sealed every 10 ms",
    WAITED,
    "update, uniform",
    "get, uniform",
    "hashbrown, in-place overwrite, uniform",
    "hashbrown, a new Box per put, uniform",
    "hashbrown, get, uniform",
    "raw memory, 116 B written, uniform",
    "floor: index, arena and ring, put, uniform",
];

fn settings() -> Settings {
    // Checkpoints are measured elsewhere.
    Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() }
}

/// Operations on a state of a fixed number of keys.
fn existing(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(1_000_000, 1_000_000);
    let count = run.ops_or(2_000_000, 10_000_000);
    progress!("ring0: {keys} keys, {count} operations per row");
    let title = format!("Ring 0: {count} operations on {keys} keys, 16 B / 100 B, one core");
    let mut rows = Rows::new(Table::new("ring0", title, COLUMNS));
    let gaps = idle(run);
    let uniform = Spread::Uniform.draw(keys, count, 1);
    let zipf = Spread::Zipf.draw(keys, count, 2);
    rows.table.row(gaps_row(&gaps));
    yardsticks::run(keys, &uniform, &zipf, &mut rows)?;
    #[cfg(feature = "peers")]
    peers::run(run, keys, &uniform, &mut rows)?;

    let dir = run.place.fresh("ring0")?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    let core = cores.first_mut().ok_or("no core")?;
    run.pins.hot(0)?;
    let mut driver = Driver::new(&store);
    fill(&mut driver, core, keys)?;
    let mut memory = Table::new(
        "memory",
        "Memory of a core",
        &[
            "state",
            "keys",
            "committed / key",
            "live / key",
            "free / key",
            "index / key",
            "/ (key + value + 24 B)",
        ],
    );
    memory.row(memory_row("after inserting", core, keys));

    for seals in [Seals::Never, Seals::Every(Duration::from_millis(10)), Seals::Puts(1024)] {
        for (spread, drawn) in [(Spread::Uniform, &uniform), (Spread::Zipf, &zipf)] {
            let mut stamp = Stamp::new();
            let name = format!("put, {}, {}", spread.name(), seals.name());
            let put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
            rows.row(&driver.both(&name, core, drawn, seals, put)?);
        }
    }
    let mut stamp = Stamp::new();
    let put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
    let (unpaced, durable) = driver.unpaced(core, &uniform, Seals::Every(Duration::from_millis(10)), put)?;
    rows.row(&Outcome::untimed("put, uniform, sealed every 10 ms, unpaced", unpaced));
    rows.row(&Outcome::untimed("the same, until all of it is durable", durable));
    let few = &uniform[..uniform.len().min(run.size(1000, 10_000))];
    rows.row(&waited(&mut driver, &store, core, few)?);
    let mean = batches(&mut driver, core, &uniform)?;
    rows.row(&Outcome::untimed(&format!("put_batch of {BATCH}, uniform, per put"), mean));
    memory.row(memory_row("after overwriting", core, keys));

    driver.changes = false;
    let get = |core: &mut CoreStore, number, _| {
        std::hint::black_box(core.get(&key(number)).map(|value| value[0]));
        Ok(())
    };
    rows.row(&driver.both("get, uniform", core, &uniform, Seals::Never, get)?);
    rows.row(&driver.both("get, zipf 0.99", core, &zipf, Seals::Never, get)?);
    let mean = batches_read(core, &uniform);
    rows.row(&Outcome::untimed(&format!("get_batch of {READ_BATCH}, uniform, per key"), mean));
    driver.changes = true;
    let update = |core: &mut CoreStore, number, _| core.update(&key(number), add_one);
    rows.row(&driver.both("update, uniform", core, &uniform, Seals::Never, update)?);
    // Each key once: all are there.
    let (first, second) = permuted(keys);
    let delete = |core: &mut CoreStore, number, _| core.delete(&key(number)).map(drop);
    rows.row(&driver.halves("delete, all keys", core, &first, &second, delete)?);
    memory.row(memory_row("after deleting all (per key there was)", core, keys));

    rows.draw(
        run,
        "ring0-latency.svg",
        "Ring 0: single operations, timed; not durable unless it says so",
        DRAWN,
    )?;
    let mut table = rows.table;
    table.note("mean: whole time / operations, no clock in between. timed: two clock readings around each operation, their cost is in the calibration");
    table.note("put, update, delete: Ring 1 drains into the real log at the same time; unless 'unpaced', bursts of 16 384 with Ring 1 catching up in between, which is not counted; sealing is not counted either");
    table.note("a put is not durable yet when it returns: what it takes until then is in the rows that say 'durable', and in the tables of `durable`");
    table.note("floor: a minimal program with an index of 24 bytes a key, an arena and a ring, nearly all in huge pages, presized, nothing checked, nobody reading the ring; its put_batch reads the buckets of 16 keys, and the places that they go to, before it writes the first");
    table.note("raw memory: key and value written to, or a byte read from, a place of 128 bytes that is known, in 4 KiB pages unless the system gives larger ones; no key is compared");
    table.note("hashbrown: no log, no second thread at work, memory in 4 KiB pages; in-place needs values of one length; same keys, same order, same hash-table load");
    #[cfg(feature = "peers")]
    table.note(peers::NOTE);
    table.note("the idle loop ran just before, with nothing else of this process running; gaps beyond its rate are ours");
    report.add(table);
    memory.note("the system gave 'committed'; slots are live, free, or not used yet");
    report.add(memory);
    drop(cores);
    store.close()?;
    clear(&dir)
}

fn fill(driver: &mut Driver<'_>, core: &mut CoreStore, keys: u64) -> Result<(), Error> {
    let numbers: Vec<u32> = (0..keys as u32).collect();
    let mut stamp = Stamp::new();
    let put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
    driver.untimed(core, &numbers, Seals::Every(Duration::from_millis(10)), put).map(drop)
}

/// Each put is sealed, and the next one is not begun before it is durable.
fn waited(
    driver: &mut Driver<'_>,
    store: &Store,
    core: &mut CoreStore,
    numbers: &[u32],
) -> Result<Outcome, Error> {
    let mut stamp = Stamp::new();
    let put = |core: &mut CoreStore, number, at| {
        core.put(&key(number), stamp.at(at))?;
        store.wait_durable(core.seal_epoch()?)
    };
    driver.both(WAITED, core, numbers, Seals::Never, put)
}

/// The mean of a put.
fn batches(driver: &mut Driver<'_>, core: &mut CoreStore, numbers: &[u32]) -> Result<f64, Error> {
    let mut stamp = Stamp::new();
    let (mut time, mut done) = (Duration::ZERO, 0_u64);
    let mut pairs = [([0; KEY], [0; VALUE]); BATCH];
    for burst in numbers.chunks(drive::BURST) {
        let started = Instant::now();
        for numbers in burst.chunks_exact(BATCH) {
            for (pair, number) in pairs.iter_mut().zip(numbers) {
                *pair = (key(u64::from(*number)), *stamp.at(done));
            }
            core.put_batch(&pairs)?;
            done += BATCH as u64;
        }
        time += started.elapsed();
        driver.catch_up(burst.len() / BATCH * BATCH);
    }
    Ok(time.as_nanos() as f64 / done as f64)
}

/// The mean of a key.
fn batches_read(core: &CoreStore, numbers: &[u32]) -> f64 {
    let mut keys = [[0; KEY]; READ_BATCH];
    let started = Instant::now();
    for numbers in numbers.chunks_exact(READ_BATCH) {
        for (one, number) in keys.iter_mut().zip(numbers) {
            *one = key(u64::from(*number));
        }
        for value in core.get_batch(&keys) {
            std::hint::black_box(value.map(|value| value[0]));
        }
    }
    started.elapsed().as_nanos() as f64 / numbers.len() as f64
}

fn add_one(old: Option<&[u8]>) -> Option<[u8; VALUE]> {
    let mut new: [u8; VALUE] = old?.try_into().ok()?;
    new[0] = new[0].wrapping_add(1);
    Some(new)
}

/// All numbers in an order without a pattern, in two halves.
fn permuted(keys: u64) -> (Vec<u32>, Vec<u32>) {
    let mut all: Vec<u32> = (0..keys as u32).collect();
    all.sort_by_key(|number| crate::keys::mix(u64::from(*number) ^ 0xABCD));
    let second = all.split_off(all.len() / 2);
    (all, second)
}

fn idle(run: &Run) -> machine::Gaps {
    machine::idle_gaps(Duration::from_secs(run.size(1, 5)))
}

pub fn gaps_row(gaps: &machine::Gaps) -> Vec<Cell> {
    let mut cells = vec![Cell::text("idle loop")];
    cells.extend(std::iter::repeat_n(Cell::None, 6));
    cells.extend([
        Cell::time(gaps.longest),
        Cell::Number(gaps.per_second_over_10us, 0),
        Cell::Number(gaps.per_second_over_100us, 0),
    ]);
    cells
}

fn memory_row(name: &str, core: &CoreStore, keys: u64) -> Vec<Cell> {
    let memory = core.memory();
    let keys = keys as f64;
    let per_key = |bytes: u64| Cell::Number(bytes as f64 / keys, 1);
    let used = (memory.live_bytes + memory.free_bytes + memory.index_bytes) as f64;
    vec![
        Cell::text(name),
        Cell::Count(core.len() as u64),
        per_key(memory.committed_bytes),
        per_key(memory.live_bytes),
        per_key(memory.free_bytes),
        per_key(memory.index_bytes),
        Cell::Number(used / keys / (PAYLOAD + 24) as f64, 2),
    ]
}

/// One operation on a core: the number of its key, and how many came before it.
pub trait Operation: FnMut(&mut CoreStore, u64, u64) -> Result<(), StoreError> {}

impl<F: FnMut(&mut CoreStore, u64, u64) -> Result<(), StoreError>> Operation for F {}
