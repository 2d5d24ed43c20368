//! Inserts into a growing state: the longest single put counts, and what it waited for.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Store};

use super::drive::{BURST, Driver, Outcome, Seals};
use super::{COLUMNS, Rows, gaps_row, idle, settings, yardsticks};
use crate::keys::{Stamp, key};
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// What is drawn.
const GROWN: &[&str] = &["insert, sealed every 10 ms", "hashbrown, insert"];
/// A put that takes longer is looked into.
const LONG: Duration = Duration::from_micros(100);
/// Puts between two looks at what the system says of this thread, which take a few microseconds.
const LOOK: usize = 64;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(1_000_000, 5_000_000);
    progress!("ring0: growing to {keys} keys");
    let mut rows = Rows::new(Table::new("growth", format!("Growing from 0 to {keys} keys"), COLUMNS));
    rows.table.row(gaps_row(&idle(run)));
    rows.row(&yardsticks::growth(keys)?);
    with_empty_store(run, |store, core| {
        let mut driver = Driver::new(store);
        let numbers: Vec<u32> = (0..keys as u32).collect();
        let mut stamp = Stamp::new();
        let put = |core: &mut CoreStore, number, at| core.put(&key(number), stamp.at(at));
        let seals = Seals::Every(Duration::from_millis(10));
        let (histogram, time) = driver.timed(core, &numbers, seals, put)?;
        rows.row(&Outcome::timed("insert, sealed every 10 ms", histogram, time));
        Ok(())
    })?;
    rows.draw(
        run,
        "growth-latency.svg",
        "Ring 0: inserts into a growing state, timed; not durable yet",
        GROWN,
    )?;
    let mut table = rows.table;
    table.note("every put timed; in bursts of 16 384, Ring 1 catching up in between; a gap of the machine shows here too");
    report.add(table);
    let Some(switches) = Switches::of_this_thread() else { return Ok(()) };
    report.add(long_puts(run, keys, switches)?);
    Ok(())
}

fn with_empty_store(
    run: &Run,
    operations: impl FnOnce(&Store, &mut CoreStore) -> Result<(), Error>,
) -> Result<(), Error> {
    let dir = run.place.fresh("growth")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    run.pins.hot(0)?;
    operations(&store, cores.first_mut().ok_or("no core")?)?;
    drop(cores);
    store.close()?;
    clear(&dir)
}

/// The same once more, told apart by what the system says of the thread that puts.
fn long_puts(run: &Run, keys: u64, mut switches: Switches) -> Result<Table, Error> {
    let [mut slept, mut preempted, mut ran] = [Sum::default(); 3];
    with_empty_store(run, |store, core| {
        let (mut driver, mut stamp) = (Driver::new(store), Stamp::new());
        let mut sealed = Instant::now();
        for number in 0..keys {
            if (number as usize).is_multiple_of(LOOK) {
                switches.look()?;
            }
            let started = Instant::now();
            core.put(&key(number), stamp.at(number))?;
            let took = started.elapsed();
            if took > LONG {
                match switches.look()? {
                    Switched { slept: true, .. } => slept.add(took),
                    Switched { preempted: true, .. } => preempted.add(took),
                    Switched { .. } => ran.add(took),
                }
            }
            if sealed.elapsed() > Duration::from_millis(10) {
                core.seal_epoch()?;
                sealed = Instant::now();
            }
            if number as usize % BURST == BURST - 1 {
                driver.catch_up(BURST);
            }
        }
        Ok(store.wait_durable(core.seal_epoch()?)?)
    })?;
    let title =
        format!("Puts of more than 100 µs while growing from 0 to {keys} keys, by what the thread did");
    let mut table = Table::new("growth-long", title, &["the thread", "puts", "all together", "longest"]);
    for (name, sum) in [
        ("slept: it waited for memory", slept),
        ("was ready, and another thread had its processor", preempted),
        ("ran, as far as the system knows: the machine's gaps, page faults, splits", ran),
    ] {
        table.row(vec![
            Cell::text(name),
            Cell::Count(sum.puts),
            Cell::time(sum.time),
            Cell::time(sum.longest),
        ]);
    }
    table.note("another run of the same inserts, with a look at /proc/thread-self/status every 64 puts and after each long one");
    Ok(table)
}

#[derive(Clone, Copy, Default)]
struct Sum {
    puts: u64,
    time: Duration,
    longest: Duration,
}

impl Sum {
    fn add(&mut self, took: Duration) {
        self.puts += 1;
        self.time += took;
        self.longest = self.longest.max(took);
    }
}

/// How often this thread gave its processor up, and how often it was taken from it.
struct Switches {
    status: File,
    text: String,
    voluntary: u64,
    involuntary: u64,
}

/// What happened since the look before.
struct Switched {
    slept: bool,
    preempted: bool,
}

impl Switches {
    /// `None` where the system does not tell.
    fn of_this_thread() -> Option<Self> {
        let status = File::open("/proc/thread-self/status").ok()?;
        let mut switches = Self { status, text: String::new(), voluntary: 0, involuntary: 0 };
        switches.look().ok()?;
        Some(switches)
    }

    fn look(&mut self) -> Result<Switched, Error> {
        self.text.clear();
        self.status.rewind()?;
        self.status.read_to_string(&mut self.text)?;
        let [voluntary, involuntary] = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
            .map(|name| self.text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()));
        let before = (self.voluntary, self.involuntary);
        self.voluntary = voluntary.ok_or("/proc/thread-self/status tells of no switches")?;
        self.involuntary = involuntary.ok_or("/proc/thread-self/status tells of no switches")?;
        Ok(Switched { slept: self.voluntary > before.0, preempted: self.involuntary > before.1 })
    }
}
