//! From put to durable: rates, bytes and latency of the whole pipeline, beside what the device does
//! for a program that only writes and syncs.

mod backpressure;
mod device;
mod drain;
mod peers;
mod raw;
mod variants;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Epoch, Opened, Settings, Stats, Store};

use crate::keys::{PAYLOAD, Spread, Stamp, key};
use crate::machine::{Nanos, cores as cpus, cpu_time, histogram};
use crate::place::{Place, clear};
use crate::plot::{self, Axis, Bar, Distribution, Line, Of};
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// When the cores close their epochs.
#[derive(Clone, Copy, Debug)]
enum Policy {
    /// After so many puts of the core.
    Puts(usize),
    /// When so much time has passed.
    Every(Duration),
    /// After each put, which is then waited for.
    EachWaited,
}

impl Policy {
    fn name(self) -> String {
        match self {
            Self::Puts(1) => "one put per seal".into(),
            Self::Puts(puts) => format!("{puts} puts per seal"),
            Self::Every(time) => format!("a seal every {} ms", time.as_millis()),
            Self::EachWaited => "one put per seal, each waited for".into(),
        }
    }
}

/// The column of processor time, of all threads of the process.
const CPU: &str = "CPU / put";

/// Processor time of each put.
fn cpu_of(time: Duration, puts: f64) -> Cell {
    Cell::Nanos(time.as_nanos() as f64 / puts)
}

/// Operations between two looks at the clock.
const LOOK: usize = 64;

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    progress!("durable");
    let mut rates = Table::new(
        "durable",
        "Puts until the last epoch is durable, 16 B / 100 B",
        &[
            "workload",
            "cores",
            "puts/s",
            "log bytes / put",
            "/ payload",
            "logged / put",
            "puts / sync",
            "syncs/s",
            CPU,
        ],
    );
    let latency = Table::new(
        "seal_to_durable",
        "From the seal of the last core until durable",
        &["epoch", "cores", "p50", "p99", "p99.9", "longest", "/ raw, best", "epochs/s, of raw"],
    );
    let mut latency = Latencies { table: latency, drawn: Vec::new() };
    for (name, syncs) in [("every 1024 puts", raw::BATCH), ("every put", raw::ONE)] {
        for reused in [true, false] {
            for threads in [1, 2, 4, raw::WIDEST] {
                raw::rate(run, name, syncs, threads, reused, &mut rates)?;
            }
        }
    }
    for threads in [1, 2] {
        raw::pipelined::rate(run, threads, &mut rates)?;
    }
    for cores in [1, 2, 4, 8] {
        measure(run, &run.place, cores, &mut rates, Some(&mut latency))?;
    }
    with_checkpoints(run, &mut rates)?;
    if let Some(place) = memory_place(run) {
        measure(run, &place, 1, &mut rates, None)?;
    }
    variants::all(run, &mut rates)?;
    peers::all(run, &mut rates, &mut latency)?;
    rates.note(format!(
        "one thread per core, and Ring 1 beside them, on {} CPUs: with as many cores as CPUs they share",
        cpus()
    ));
    rates.note("raw rows, but for those that are pipelined, write 127 bytes per put with pwrite and fdatasync on the putting thread, compute nothing and keep no state; reused: a file written once before, extending: a new one");
    rates.note(raw::pipelined::NOTE);
    rates.note("raw rows are not kept on CPUs, whatever was asked for; threads of other stores are, as ours");
    rates.note(
        "CPU / put: processor time of all threads, ours with Ring 1; of another process it is not known",
    );
    rates.note("log bytes include frames, barriers and headers, not what is written ahead; unless said otherwise no checkpoint is made");
    draw(run, &rates, &latency)?;
    report.add(rates);
    let mut latency = latency.table;
    latency.note("the log is in segments that were used before, as it is after some checkpoints, but where a note says else; before each turn of large epochs a segment is filled and one is made");
    latency.note("all cores are sealed by one thread, which then waits; raw: the same bytes into as many reused files, one after the other or with a thread each, whichever has the lower p50; ours and both ways of raw take turns, ten times, each first in every second one, and each after a rest");
    latency.note("with a thread each: from the first thread's beginning to the last one's end, without what it takes to wake them");
    latency.note("epochs/s, of raw: epochs a second, for each round of syncs a second of raw, in its way with the lower mean; one thread makes the puts, seals and waits for all cores, and the puts count");
    report.add(latency);
    drain::run(run, report)?;
    backpressure::run(run, report)
}

/// The latencies of the table, and those of them that are drawn.
struct Latencies {
    table: Table,
    /// Those of one core or thread, with the puts of an epoch or batch.
    drawn: Vec<(usize, Distribution)>,
}

impl Latencies {
    /// A row of ours, and the one of its yardstick.
    fn beside_raw(&mut self, puts: usize, cores: usize, beside: BesideRaw) {
        let BesideRaw { ours, raw, bytes, time, in_new } = beside;
        let of_raw = ours.len() as f64 * raw.mean / time.as_nanos() as f64;
        self.row(format!("{puts} puts per core"), cores, puts, ours, Some((&raw.latencies, of_raw)));
        self.row(format!("raw pwrite + fdatasync of {bytes} B each"), cores, puts, raw.latencies, None);
        if in_new > 0 {
            let of = TURNS * cores;
            self.table.note(format!(
                "{puts} puts, {cores} cores: at the end of {in_new} of {of} turns of a core its log was in a file that was not used before"
            ));
        }
    }

    /// A row; of ours also its yardstick, and its epochs a second as a part of the yardstick's rounds a second.
    fn row(&mut self, name: String, cores: usize, puts: usize, latencies: Nanos, raw: Option<(&Nanos, f64)>) {
        let p50 = latencies.value_at_quantile(0.5) as f64;
        self.table.row(vec![
            Cell::text(&name),
            Cell::Count(cores as u64),
            Cell::Nanos(p50),
            Cell::Nanos(latencies.value_at_quantile(0.99) as f64),
            Cell::Nanos(latencies.value_at_quantile(0.999) as f64),
            Cell::Nanos(latencies.max() as f64),
            raw.map_or(Cell::None, |(raw, _)| Cell::Number(p50 / raw.value_at_quantile(0.5) as f64, 2)),
            raw.map_or(Cell::None, |(_, of_raw)| Cell::Number(of_raw, 2)),
        ]);
        if cores == 1 {
            // Only ours have a yardstick of their own.
            let name = if raw.is_some() { format!("laminar, {name}") } else { name };
            self.drawn.push((puts, Distribution { name, latencies }));
        }
    }
}

/// How the rows end that have no device, so that nothing in them is durable.
const NO_DEVICE: &str = "(no device)";
const IN_MEMORY: &str = ", in memory (no device)";

/// A batch is more than a put of every core.
const ONE_BY_ONE: f64 = 1.5;

fn draw(run: &Run, rates: &Table, latency: &Latencies) -> Result<(), Error> {
    let Some(dir) = &run.beside_json else { return Ok(()) };
    for (puts, title) in [(1, "one put"), (1024, "1024 puts")] {
        let drawn: Vec<_> =
            latency.drawn.iter().filter(|(of, _)| *of == puts).map(|(_, one)| one.clone()).collect();
        let title = format!("Until {title} is durable, one core: ours from the seal, others put and synced");
        plot::distributions(&dir.join(format!("durable-latency-{puts}.svg")), &title, &drawn)?;
    }
    draw_cores(dir, rates, &latency.table)?;
    let bars = bars(rates);
    for (file, title, one_by_one) in [
        ("durable-batches.svg", "Durable puts a second, many in an epoch or batch", false),
        ("durable-one-by-one.svg", "Durable puts a second, each waited for", true),
    ] {
        let drawn: Vec<_> =
            bars.iter().filter(|(of, _)| *of == one_by_one).map(|(_, bar)| bar.clone()).collect();
        plot::bars(&dir.join(file), title, "puts/s", &drawn)?;
    }
    Ok(())
}

/// Draws how rates, and medians until durable, grow with the number of cores, ours beside the raw ones.
fn draw_cores(dir: &Path, rates: &Table, latency: &Table) -> Result<(), Error> {
    let rows = rates.figures(["cores", "puts/s"]);
    let line = |name| {
        let of_name = rows.iter().filter(|(of, _)| of == name);
        Line::new(name, of_name.map(|(_, [cores, rate])| (*cores, rate / 1e6)))
    };
    let names = [
        "raw, synced every 1024 puts, reused",
        "raw, synced every 1024 puts, extending",
        "uniform, 1024 puts per seal",
        "uniform, 1024 puts per seal, segments used again",
        "zipf 0.99, 1024 puts per seal",
    ];
    let title = format!("Durable puts by cores or threads, on {} CPUs", cpus());
    let axis = Axis::Doublings("cores or threads");
    plot::lines(&dir.join("durable-cores.svg"), &title, axis, "million puts/s", &names.map(line))?;
    let rows = latency.figures(["cores", "p50"]);
    let until = |puts: usize, raw: bool| {
        let name = format!("{puts} puts per core");
        // The row of a yardstick is the one after ours.
        let pairs = rows.windows(2).filter(|pair| pair[0].0 == name).map(|pair| pair[usize::from(raw)].1);
        let points: Vec<_> = pairs.map(|[cores, p50]| (cores, p50 / 1e3)).collect();
        Line::new(if raw { format!("raw, as many bytes as {name}") } else { name }, points)
    };
    let title = format!("From the seal until durable, median, on {} CPUs", cpus());
    let drawn = [until(1, false), until(1, true), until(1024, false), until(1024, true)];
    plot::lines(&dir.join("durable-until-cores.svg"), &title, Axis::Doublings("cores"), "µs", &drawn)
}

/// The rates that mean something for durability, and whether each put was waited for.
fn bars(rates: &Table) -> Vec<(bool, Bar)> {
    // What is logged only we tell.
    let ours: Vec<_> = rates.figures(["logged / put"]).into_iter().map(|(name, _)| name).collect();
    let rows = rates.figures(["cores", "puts/s", "puts / sync"]).into_iter();
    let bar = |(name, [cores, rate, puts]): (String, [f64; 3])| {
        let (of, whose) = match &name {
            name if ours.contains(name) => (Of::Ours, "laminar, "),
            name if name.starts_with("raw") => (Of::Floor, ""),
            _ => (Of::Others, ""),
        };
        let on = if cores > 1.0 { format!(", {cores} cores or threads") } else { String::new() };
        (puts / cores <= ONE_BY_ONE, Bar { name: format!("{whose}{name}{on}"), value: rate, of })
    };
    rows.filter(|(name, _)| !name.ends_with(NO_DEVICE)).map(bar).collect()
}

fn settings() -> Settings {
    Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() }
}

/// A place without a device, which shows what the pipeline itself costs.
fn memory_place(_: &Run) -> Option<Place> {
    let shared = Path::new("/dev/shm");
    shared.is_dir().then(|| Place::new(shared).ok()).flatten()
}

/// All workloads on one store.
fn measure(
    run: &Run,
    place: &Place,
    count: usize,
    rates: &mut Table,
    latency: Option<&mut Latencies>,
) -> Result<(), Error> {
    let dir = place.fresh("durable")?;
    run.pins.background()?;
    let Opened { store, mut cores, .. } = Store::builder(&dir).cores(count).settings(settings()).open()?;
    let keys = fill(run, &store, &mut cores)?;
    let puts = run.ops_or(2_000_000, 10_000_000) / count;
    let on = if latency.is_some() { "" } else { IN_MEMORY };

    let few = puts / 20;
    let waited = run.size(1000, 10_000) / count;
    let workloads = [
        (Policy::Puts(1024), Spread::Uniform, puts),
        (Policy::Puts(1024), Spread::Zipf, puts),
        (Policy::Every(Duration::from_millis(10)), Spread::Uniform, puts),
        (Policy::Every(Duration::from_millis(10)), Spread::Zipf, puts),
        (Policy::Puts(1), Spread::Uniform, few),
        (Policy::EachWaited, Spread::Uniform, waited),
    ];
    for (policy, spread, puts) in workloads {
        let numbers = spread.draw(keys, puts, 3);
        let name = format!("{}, {}{on}", spread.name(), policy.name());
        let done = drive(run, &store, &mut cores, &numbers, policy)?;
        rates.row(done.cells(name, count));
    }
    use_segments_again(run, &store, &mut cores, keys)?;
    for (policy, puts) in [(Policy::Puts(1024), puts), (Policy::EachWaited, waited)] {
        let numbers = Spread::Uniform.draw(keys, puts, 7);
        let done = drive(run, &store, &mut cores, &numbers, policy)?;
        rates.row(done.cells(format!("uniform, {}, {USED}{on}", policy.name()), count));
    }
    if let Some(latency) = latency {
        for puts in [1, 1024] {
            latency.beside_raw(puts, count, seal_to_durable(run, &dir, &store, &mut cores, keys, puts)?);
        }
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}

/// Puts every key of every core, and returns how many a core has.
fn fill(run: &Run, store: &Store, cores: &mut [CoreStore]) -> Result<u64, Error> {
    let keys = run.keys_or(1_000_000, 1_000_000) / cores.len() as u64;
    let all: Vec<u32> = (0..keys as u32).collect();
    drive(run, store, cores, &all, Policy::Every(Duration::from_millis(10)))?;
    Ok(keys)
}

/// How the rows go on whose log is written into segments that it was cut by before, as after some checkpoints it always is.
const USED: &str = "segments used again";

/// Brings a log to where it is when it has been checkpointed for a while.
fn use_segments_again(run: &Run, store: &Store, cores: &mut [CoreStore], keys: u64) -> Result<(), Error> {
    let policy = Policy::Puts(1024);
    store.checkpoint()?;
    drive(run, store, cores, &Spread::Uniform.draw(keys, 1024, 8), policy)?;
    // The log goes up to the second newest.
    store.checkpoint()?;
    // What is in use is left for the first of them.
    one_segment(run, store, cores, keys)
}

/// Puts as much on every core as a segment of its log has, or a little more.
fn one_segment(run: &Run, store: &Store, cores: &mut [CoreStore], keys: u64) -> Result<(), Error> {
    let puts = settings().segment_bytes as usize / PAYLOAD;
    drive(run, store, cores, &Spread::Uniform.draw(keys, puts, 9), Policy::Puts(1024)).map(drop)
}

/// The same with automatic checkpoints, at the default interval and every 64 MiB of log.
fn with_checkpoints(run: &Run, rates: &mut Table) -> Result<(), Error> {
    let dir = run.place.fresh("durable")?;
    run.pins.background()?;
    let settings = Settings { checkpoint_wal_bytes: 64 << 20, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings).open()?;
    let keys = fill(run, &store, &mut cores)?;
    let numbers = Spread::Uniform.draw(keys, run.ops_or(2_000_000, 10_000_000), 3);
    let before = store.stats().checkpoints;
    let done = drive(run, &store, &mut cores, &numbers, Policy::Puts(1024))?;
    let made = store.stats().checkpoints - before;
    rates.row(done.cells(format!("uniform, 1024 puts per seal, {made} checkpoints beside"), 1));
    if let laminar_storage::Health::CheckpointsFailing(error) = store.health() {
        return Err(error.into());
    }
    drop(cores);
    store.close()?;
    clear(&dir)
}

struct Done {
    puts: u64,
    time: Duration,
    cpu: Duration,
    before: Stats,
    after: Stats,
}

impl Done {
    fn bytes_per_put(&self) -> f64 {
        (self.after.wal_bytes - self.before.wal_bytes) as f64 / self.puts as f64
    }

    fn cells(&self, name: String, cores: usize) -> Vec<Cell> {
        let seconds = self.time.as_secs_f64();
        let puts = self.puts as f64;
        let bytes = self.bytes_per_put();
        let syncs = (self.after.syncs - self.before.syncs) as f64;
        vec![
            Cell::Text(name),
            Cell::Count(cores as u64),
            Cell::Count((puts / seconds) as u64),
            Cell::Number(bytes, 1),
            Cell::Number(bytes / PAYLOAD as f64, 3),
            Cell::Number((self.after.changes_logged - self.before.changes_logged) as f64 / puts, 3),
            Cell::Number(puts / syncs, 0),
            Cell::Number(syncs / seconds, 0),
            cpu_of(self.cpu, puts),
        ]
    }
}

/// Puts the same numbers on every core, each on its thread, and waits until all is durable.
fn drive(
    run: &Run,
    store: &Store,
    cores: &mut [CoreStore],
    numbers: &[u32],
    policy: Policy,
) -> Result<Done, Error> {
    let (done, _) = drive_each(run, store, cores, numbers.len(), |core| puts(store, core, numbers, policy))?;
    Ok(done)
}

/// Has every core put as many, each on its thread, and waits until all is durable. Also what came of each.
fn drive_each<R: Send>(
    run: &Run,
    store: &Store,
    cores: &mut [CoreStore],
    puts: usize,
    put: impl Fn(&mut CoreStore) -> Result<R, Error> + Sync,
) -> Result<(Done, Vec<R>), Error> {
    let before = store.stats();
    let count = cores.len();
    let (meet, last, put) = (Barrier::new(count + 1), AtomicU64::new(0), &put);
    let (started, done) = std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter_mut()
            .enumerate()
            .map(|(index, core)| {
                let (meet, last) = (&meet, &last);
                scope.spawn(move || {
                    let ready = run.pins.hot(index);
                    meet.wait();
                    let done = ready.and_then(|()| put(core));
                    last.fetch_max(core.epoch().get(), Ordering::Relaxed);
                    meet.wait();
                    // The cores end with the same epoch, whatever the clocks said.
                    core.seal_epoch_to(Epoch(last.load(Ordering::Relaxed)))?;
                    done
                })
            })
            .collect();
        meet.wait();
        let started = (Instant::now(), cpu_time());
        meet.wait();
        let done = threads.into_iter().map(|thread| thread.join().map_err(|_| "a core's thread panicked")?);
        Ok::<_, Error>((started, done.collect::<Result<Vec<_>, Error>>()?))
    })?;
    store.wait_durable(Epoch(last.load(Ordering::Relaxed)))?;
    let (time, cpu) = (started.0.elapsed(), cpu_time().saturating_sub(started.1));
    Ok((Done { puts: (puts * count) as u64, time, cpu, before, after: store.stats() }, done))
}

fn puts(store: &Store, core: &mut CoreStore, numbers: &[u32], policy: Policy) -> Result<(), Error> {
    let mut stamp = Stamp::new();
    let mut at = 0;
    let step = match policy {
        Policy::Puts(puts) => puts,
        Policy::Every(_) => LOOK,
        Policy::EachWaited => 1,
    };
    let mut last = Instant::now();
    for part in numbers.chunks(step) {
        for number in part {
            core.put(&key(u64::from(*number)), stamp.at(at))?;
            at += 1;
        }
        match policy {
            Policy::Puts(_) => drop(core.seal_epoch()?),
            Policy::Every(time) if last.elapsed() >= time => {
                core.seal_epoch()?;
                last = Instant::now();
            }
            Policy::Every(_) => {}
            Policy::EachWaited => {
                let epoch = core.seal_epoch()?;
                store.wait_durable(epoch)?;
            }
        }
    }
    Ok(())
}

/// Parts in which ours and raw writes take turns: a host that serves others changes within minutes.
const TURNS: usize = 10;

/// Rounds by which the bytes of one are found out.
const FIRST: usize = 10;

/// How long the device is left alone before a turn: after a checkpoint the room of removed files is given back.
const CALM: Duration = Duration::from_millis(300);

/// What was measured in turns with raw writes.
struct BesideRaw {
    /// From the last seal.
    ours: Nanos,
    raw: raw::Best,
    /// Per core and round.
    bytes: usize,
    /// All that ours took, puts included.
    time: Duration,
    /// Ends of turns at which a core's log was in a file that was not used before.
    in_new: usize,
}

/// Rounds of puts on all cores, a seal of each, and the wait; in turns with as many raw writes and syncs of as many bytes.
fn seal_to_durable(
    run: &Run,
    dir: &Path,
    store: &Store,
    cores: &mut [CoreStore],
    keys: u64,
    puts: usize,
) -> Result<BesideRaw, Error> {
    let part = raw::rounds(run).div_ceil(TURNS);
    let before = store.stats().wal_bytes;
    for numbers in Spread::Uniform.draw(keys, puts * FIRST, 4).chunks(puts) {
        until_durable(store, cores, numbers)?;
    }
    let bytes = (store.stats().wal_bytes - before) as usize / FIRST / cores.len();
    let mut raw = raw::Latency::of(run, cores.len(), bytes)?;
    let (mut ours, mut time, mut in_new) = (histogram()?, Duration::ZERO, 0);
    for turn in 0..TURNS {
        // A log that grows by more than a part of a segment in a turn needs as many to be used again. A checkpoint leaves as
        // many as were begun since the one before, so that always about as many have to be begun between two.
        if part * bytes > settings().segment_bytes as usize / TURNS {
            one_segment(run, store, cores, keys)?;
            store.checkpoint()?;
        }
        let numbers = Spread::Uniform.draw(keys, puts * part, 50 + turn as u64);
        let rounds = turn * part..(turn + 1) * part;
        // Each is first in every second turn.
        if turn % 2 == 1 {
            measure_raw(run, &mut raw, rounds.clone())?;
        }
        std::thread::sleep(CALM);
        run.pins.hot(0)?;
        let started = Instant::now();
        for numbers in numbers.chunks(puts) {
            ours.saturating_record(until_durable(store, cores, numbers)?.as_nanos() as u64);
        }
        time += started.elapsed();
        in_new += logs_in_new_files(dir, cores.len())?;
        if turn % 2 == 0 {
            measure_raw(run, &mut raw, rounds)?;
        }
    }
    Ok(BesideRaw { ours, raw: raw.best()?, bytes, time, in_new })
}

fn measure_raw(run: &Run, raw: &mut raw::Latency, rounds: Range<usize>) -> Result<(), Error> {
    run.pins.none()?;
    std::thread::sleep(CALM);
    raw.measure(rounds)
}

/// How many cores' logs are in a file that is not as long as a segment yet: one that is used again is.
fn logs_in_new_files(dir: &Path, cores: usize) -> Result<usize, Error> {
    let mut newest = BTreeMap::new();
    for entry in std::fs::read_dir(dir.join("wal"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| "a file name is not Unicode")?;
        // Names of one core are in the order of its segments.
        let Some(core) = name.strip_prefix("wal-").and_then(|rest| rest.split('.').next()) else { continue };
        let len = entry.metadata()?.len();
        let known = newest.entry(core.to_owned()).or_insert_with(|| (name.clone(), len));
        if name > known.0 {
            *known = (name, len);
        }
    }
    let short = newest.values().filter(|(_, len)| *len < settings().segment_bytes);
    Ok(short.count() + cores.saturating_sub(newest.len()))
}

/// Puts these on every core, seals, and measures the wait.
fn until_durable(store: &Store, cores: &mut [CoreStore], numbers: &[u32]) -> Result<Duration, Error> {
    let mut stamp = Stamp::new();
    let mut epoch = Epoch::ZERO;
    for core in cores.iter_mut() {
        for number in numbers {
            core.put(&key(u64::from(*number)), stamp.at(u64::from(*number)))?;
        }
    }
    for core in cores.iter_mut() {
        epoch = core.seal_epoch()?;
    }
    let started = Instant::now();
    store.wait_durable(epoch)?;
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_device_is_not_drawn_as_durable() {
        let mut rates =
            Table::new("id", "title", &["workload", "cores", "puts/s", "logged / put", "puts / sync"]);
        for on in ["", IN_MEMORY, variants::DISCARDED, variants::DISCARDED_LATE] {
            let figures = [1, 10, 1, 1024].map(Cell::Count);
            rates.row([vec![Cell::text(format!("uniform{on}"))], figures.to_vec()].concat());
        }
        let drawn: Vec<_> = bars(&rates).into_iter().map(|(_, bar)| bar.name).collect();
        assert_eq!(drawn, ["laminar, uniform"]);
    }
}
