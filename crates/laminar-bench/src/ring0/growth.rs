//! Inserts into a growing state: the longest single put counts, and what it waited for.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Store};

use super::drive::{BURST, Driver, Outcome};
use super::{COLUMNS, Rows, gaps_row, idle, settings, yardsticks};
use crate::keys::{Stamp, key};
use crate::machine::histogram;
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const INSERTS: &str = "insert, sealed every 10 ms";
/// What is drawn.
const GROWN: &[&str] = &[INSERTS, "hashbrown, insert"];
const SEALED: Duration = Duration::from_millis(10);
/// A put that takes longer is looked into.
const LONG: Duration = Duration::from_micros(100);
/// Puts between two looks at the clock, whether to seal.
const PART: usize = 256;
/// Puts between two looks at what the system says of this thread. They take a few microseconds, in which others go on.
const LOOK: u64 = 4096;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(1_000_000, 5_000_000);
    progress!("ring0: growing to {keys} keys");
    let mut rows = Rows::new(Table::new("growth", format!("Growing from 0 to {keys} keys"), COLUMNS));
    rows.table.row(gaps_row(&idle(run)));
    rows.row(&yardsticks::growth(keys)?);
    let dir = run.place.fresh("growth")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    run.pins.hot(0)?;
    let mut switches = Switches::of_this_thread();
    let core = cores.first_mut().ok_or("no core")?;
    let (outcome, long) = inserts(&store, core, keys, switches.as_mut())?;
    rows.row(&outcome);
    rows.draw(
        run,
        "growth-latency.svg",
        "Ring 0: inserts into a growing state, timed; not durable yet",
        GROWN,
    )?;
    let mut table = rows.table;
    table.note("every put timed; in bursts of 16 384, Ring 1 catching up in between; a gap of the machine shows here too");
    report.add(table);
    if switches.is_some() {
        report.add(long.table(keys));
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}

fn inserts(
    store: &Store,
    core: &mut CoreStore,
    keys: u64,
    mut switches: Option<&mut Switches>,
) -> Result<(Outcome, LongPuts), Error> {
    let (mut driver, mut stamp) = (Driver::new(store), Stamp::new());
    let (mut histogram, mut long) = (histogram()?, LongPuts::default());
    let (mut time, mut sealed) = (Duration::ZERO, Instant::now());
    for part in (0..keys).step_by(PART) {
        let due = sealed.elapsed() > SEALED;
        if due {
            core.seal_epoch()?;
            sealed = Instant::now();
        }
        if (due || part.is_multiple_of(LOOK))
            && let Some(switches) = &mut switches
        {
            switches.look()?;
        }
        let all = Instant::now();
        for number in part..keys.min(part + PART as u64) {
            let started = Instant::now();
            core.put(&key(number), stamp.at(number))?;
            let took = started.elapsed();
            histogram.saturating_record(took.as_nanos() as u64);
            if took > LONG
                && let Some(switches) = &mut switches
            {
                long.add(&switches.look()?, took);
            }
        }
        time += all.elapsed();
        if (part as usize + PART).is_multiple_of(BURST) {
            driver.catch_up(BURST);
        }
    }
    store.wait_durable(core.seal_epoch()?)?;
    Ok((Outcome::timed(INSERTS, histogram, time), long))
}

/// Long puts, told apart by what the thread did meanwhile.
#[derive(Default)]
struct LongPuts {
    slept: Sum,
    preempted: Sum,
    ran: Sum,
}

impl LongPuts {
    fn add(&mut self, switched: &Switched, took: Duration) {
        match switched {
            Switched { slept: true, .. } => self.slept.add(took),
            Switched { preempted: true, .. } => self.preempted.add(took),
            Switched { .. } => self.ran.add(took),
        }
    }

    fn table(&self, keys: u64) -> Table {
        let title = format!("Puts of more than 100 µs while growing from 0 to {keys} keys");
        let mut table =
            Table::new("growth-long", title, &["the thread that put", "puts", "all together", "longest"]);
        for (name, sum) in [
            ("slept: it waited for memory", &self.slept),
            ("was ready, and another thread had its processor", &self.preempted),
            (
                "ran, as far as the system knows: gave itself memory, split, or the machine had a gap",
                &self.ran,
            ),
        ] {
            table.row(vec![
                Cell::text(name),
                Cell::Count(sum.puts),
                Cell::time(sum.time),
                Cell::time(sum.longest),
            ]);
        }
        table.note("of the same inserts, by a look at /proc/thread-self/status every 4096 puts, after each seal and each long put");
        table
    }
}

#[derive(Default)]
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
