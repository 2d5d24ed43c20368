//! Does anybody notice a checkpoint? First the puts: the same ones, every one timed, without and with
//! checkpoints that follow each other without a pause, in turns, so that a machine that changes meanwhile
//! changes for both. Then group commit: from the seal until durable, without and during one large checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use laminar_storage::{CheckpointReceipt, CoreStore, Opened, Settings, Store};

use crate::keys::{PAYLOAD, Random, Spread, Stamp, changed, key};
use crate::machine::{self, Nanos};
use crate::place::clear;
use crate::progress::progress;
use crate::ring0::drive::{Driver, Outcome, Seals};
use crate::ring0::{COLUMNS, gaps_row};
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// Turns of each kind.
const TURNS: usize = 4;

/// What the checkpoints of a turn did.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    checkpoints: u64,
    /// Those that wrote more than what had changed, because they merged older files.
    merging: u64,
    bytes: u64,
    time: Duration,
}

impl Taken {
    /// Of so many keys at most.
    fn add(&mut self, receipt: &CheckpointReceipt, keys: u64) {
        if receipt.changes == 0 {
            return;
        }
        self.checkpoints += 1;
        self.merging += u64::from(receipt.bytes_written > receipt.changes.min(keys) * PAYLOAD as u64 * 3 / 2);
        self.bytes += receipt.bytes_written;
        self.time += receipt.time;
    }

    fn cells(self, puts: &str) -> Vec<Cell> {
        vec![
            Cell::text(puts),
            Cell::Count(self.checkpoints),
            Cell::Count(self.merging),
            Cell::Bytes(self.bytes),
            Cell::time(self.time),
        ]
    }

    fn and(self, other: Self) -> Self {
        Self {
            checkpoints: self.checkpoints + other.checkpoints,
            merging: self.merging + other.merging,
            bytes: self.bytes + other.bytes,
            time: self.time + other.time,
        }
    }
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    puts(run, report)?;
    commits(run, report)
}

fn puts(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(200_000, 1_000_000);
    let count = run.ops_or(1_000_000, 10_000_000);
    progress!("stalls: {keys} keys, {count} puts without and with checkpoints, in {TURNS} turns each");
    let dir = run.place.fresh("stalls")?;
    run.pins.background()?;
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings).open()?;
    let core = cores.first_mut().ok_or("no core")?;
    let mut driver = Driver::new(&store);
    let numbers: Vec<u32> = (0..keys as u32).collect();
    turn(&mut driver, core, &numbers)?;
    store.checkpoint()?;

    let mut table = Table::new("stalls", format!("{count} puts on {keys} keys, one core"), COLUMNS);
    table.row(gaps_row(&machine::idle_gaps(Duration::from_secs(run.size(1, 5)))));
    let mut checkpoints = Table::new(
        "stalls-checkpoints",
        "The checkpoints meanwhile",
        &["puts", "checkpoints", "of which merged", "bytes written", "time in all"],
    );
    // All keys change between two checkpoints, or few of them: those checkpoints are small and many, and merge now and then.
    // Where one key in 10 changes, deltas soon weigh as much as lets a checkpoint merge, and so nearly all do.
    let of = |some: Vec<u32>, seed| -> Vec<u32> {
        let drawn = Spread::Uniform.draw(some.len() as u64, count, seed);
        drawn.iter().filter_map(|nth| some.get(*nth as usize)).copied().collect()
    };
    let all = Spread::Uniform.draw(keys, count, 5);
    let few: Vec<u32> = changed(keys).map(|number| number as u32).collect();
    let more: Vec<u32> = (0..keys as u32).step_by(10).collect();
    let (of_few, of_more) = (few.len() as u64, more.len() as u64);
    for (name, drawn, changing) in [
        ("on all keys", all, keys),
        ("on one key in 10", of(more, 7), of_more),
        ("on one key in 100", of(few, 6), of_few),
    ] {
        let mut without = (machine::histogram()?, Duration::ZERO);
        let mut with = (machine::histogram()?, Duration::ZERO);
        let mut taken = Taken::default();
        for part in drawn.chunks(count.div_ceil(TURNS)) {
            add(&mut without, turn_pinned(run, &mut driver, core, part)?)?;
            let (timed, checkpoints) = while_checkpointing(run, &store, changing, &mut driver, core, part)?;
            add(&mut with, timed)?;
            taken = taken.and(checkpoints);
        }
        let p999 = |of: &(Nanos, Duration)| of.0.value_at_quantile(0.999) as f64;
        table.note(format!("{name}: p99.9 with checkpoints / without: {:.2}", p999(&with) / p999(&without)));
        table.row(Outcome::timed(&format!("put {name}, no checkpoint"), without.0, without.1).cells());
        table
            .row(Outcome::timed(&format!("put {name}, checkpoints without a pause"), with.0, with.1).cells());
        checkpoints.row(taken.cells(name));
    }
    table.note("every put timed; sealed every 10 ms, in bursts of 16 384, Ring 1 catching up in between, which is not counted");
    checkpoints.note("merged: wrote more than half as much again as what had changed, because older records were written again");
    report.add(table);
    report.add(checkpoints);
    drop(cores);
    store.close()?;
    clear(&dir)
}

fn turn(driver: &mut Driver<'_>, core: &mut CoreStore, numbers: &[u32]) -> Result<(Nanos, Duration), Error> {
    let mut stamp = Stamp::new();
    let put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
    driver.timed(core, numbers, Seals::Every(Duration::from_millis(10)), put)
}

/// A turn on a CPU of its own, if that is wanted; afterwards the thread is with the others again.
fn turn_pinned(
    run: &Run,
    driver: &mut Driver<'_>,
    core: &mut CoreStore,
    numbers: &[u32],
) -> Result<(Nanos, Duration), Error> {
    run.pins.hot(0)?;
    let timed = turn(driver, core, numbers)?;
    run.pins.background()?;
    Ok(timed)
}

/// A turn during which another thread takes one checkpoint after the other.
fn while_checkpointing(
    run: &Run,
    store: &Store,
    keys: u64,
    driver: &mut Driver<'_>,
    core: &mut CoreStore,
    numbers: &[u32],
) -> Result<((Nanos, Duration), Taken), Error> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoints = scope.spawn(|| {
            let mut taken = Taken::default();
            while !over.load(Ordering::Relaxed) {
                taken.add(&store.checkpoint()?, keys);
            }
            Ok::<_, Error>(taken)
        });
        let timed = turn_pinned(run, driver, core, numbers);
        over.store(true, Ordering::Relaxed);
        let taken = checkpoints.join().map_err(|_| "the thread that took checkpoints panicked")??;
        Ok((timed?, taken))
    })
}

fn add(sum: &mut (Nanos, Duration), turn: (Nanos, Duration)) -> Result<(), Error> {
    sum.0.add(&turn.0)?;
    sum.1 += turn.1;
    Ok(())
}

/// Puts in an epoch that is waited for.
const EPOCH: u64 = 64;
/// Checkpoints beside which epochs are timed, and how many that merged are enough.
const MOST_CHECKPOINTS: usize = 60;
const ENOUGH_MERGES: u64 = 3;

fn commits(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(500_000, 5_000_000);
    progress!("stalls: group commit beside checkpoints of {keys} keys");
    let dir = run.place.fresh("stalls-commits")?;
    run.pins.background()?;
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings).open()?;
    let core = cores.first_mut().ok_or("no core")?;
    let numbers: Vec<u32> = (0..keys as u32).collect();
    turn(&mut Driver::new(&store), core, &numbers)?;
    rustix::fs::sync();

    run.pins.hot(0)?;
    let until = Instant::now() + Duration::from_secs(run.size(1, 5));
    let without = committed(&store, core, keys, || Instant::now() < until)?;
    let (first, receipt) = beside_checkpoint(&store, core, keys)?;
    let mut table = Table::new(
        "stalls-commits",
        format!("Group commit beside checkpoints of {keys} keys, {EPOCH} puts in an epoch"),
        &["", "epochs", "epochs/s", "from seal to durable: p50", "p99", "p99.9", "longest"],
    );
    table.row(commit_row("no checkpoint", &without));
    table.row(commit_row("during the first checkpoint", &first));
    let (megabytes, seconds) = (receipt.bytes_written as f64 / 1e6, receipt.time.as_secs_f64());
    table.note(format!("the first checkpoint wrote {megabytes:.0} MB in {seconds:.2} s"));
    beside_merging(run, &store, core, keys, &mut table)?;
    report.add(table);
    drop(cores);
    store.close()?;
    clear(&dir)
}

/// Group commit beside checkpoints of one key in 100, until some have merged.
fn beside_merging(
    run: &Run,
    store: &Store,
    core: &mut CoreStore,
    keys: u64,
    table: &mut Table,
) -> Result<(), Error> {
    let mut random = Random::new(9);
    let (mut plain, mut merging) = (Timed::new()?, Timed::new()?);
    for _ in 0..MOST_CHECKPOINTS {
        let some: Vec<u32> = (0..keys / 100).map(|_| random.below(keys) as u32).collect();
        run.pins.background()?;
        turn(&mut Driver::new(store), core, &some)?;
        run.pins.hot(0)?;
        let (timed, receipt) = beside_checkpoint(store, core, keys)?;
        let mut taken = Taken::default();
        taken.add(&receipt, keys);
        let kind = if taken.merging > 0 { &mut merging } else { &mut plain };
        kind.taken = kind.taken.and(taken);
        add(&mut kind.timed, timed)?;
        if merging.taken.checkpoints == ENOUGH_MERGES && plain.taken.checkpoints > 0 {
            break;
        }
    }
    for (name, kind) in [("during checkpoints of 1 key in 100", plain), ("during those that merged", merging)]
    {
        let (count, megabytes) = (kind.taken.checkpoints, kind.taken.bytes as f64 / 1e6);
        let seconds = kind.taken.time.as_secs_f64();
        table.note(format!("{name}: {count} checkpoints, which wrote {megabytes:.0} MB in {seconds:.2} s"));
        if count > 0 {
            table.row(commit_row(name, &kind.timed));
        }
    }
    Ok(())
}

/// Checkpoints of one kind, and the epochs beside them.
struct Timed {
    timed: (Nanos, Duration),
    taken: Taken,
}

impl Timed {
    fn new() -> Result<Self, Error> {
        Ok(Self { timed: (machine::histogram()?, Duration::ZERO), taken: Taken::default() })
    }
}

/// Epochs for as long as a checkpoint takes.
fn beside_checkpoint(
    store: &Store,
    core: &mut CoreStore,
    keys: u64,
) -> Result<((Nanos, Duration), CheckpointReceipt), Error> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| {
            let receipt = store.checkpoint();
            over.store(true, Ordering::Relaxed);
            receipt
        });
        let timed = committed(store, core, keys, || !over.load(Ordering::Relaxed));
        let receipt = checkpoint.join().map_err(|_| "the thread that took a checkpoint panicked")??;
        Ok((timed?, receipt))
    })
}

/// Epochs, each waited for, as long as `go_on` says.
fn committed(
    store: &Store,
    core: &mut CoreStore,
    keys: u64,
    go_on: impl Fn() -> bool,
) -> Result<(Nanos, Duration), Error> {
    let (mut histogram, mut random) = (machine::histogram()?, Random::new(7));
    let (mut stamp, started) = (Stamp::new(), Instant::now());
    while go_on() {
        for at in 0..EPOCH {
            core.put(&key(random.below(keys)), stamp.at(at))?;
        }
        let sealed = Instant::now();
        store.wait_durable(core.seal_epoch()?)?;
        histogram.saturating_record(sealed.elapsed().as_nanos() as u64);
    }
    Ok((histogram, started.elapsed()))
}

fn commit_row(name: &str, (histogram, time): &(Nanos, Duration)) -> Vec<Cell> {
    let mut cells = vec![
        Cell::text(name),
        Cell::Count(histogram.len()),
        Cell::Number(histogram.len() as f64 / time.as_secs_f64(), 0),
    ];
    cells.extend([0.5, 0.99, 0.999].map(|q| Cell::Nanos(histogram.value_at_quantile(q) as f64)));
    cells.push(Cell::Nanos(histogram.max() as f64));
    cells
}
