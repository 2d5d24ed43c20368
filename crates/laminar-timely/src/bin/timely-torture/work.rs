//! One process of the job.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use laminar_storage::Settings;
use laminar_storage::vfs::Vfs;
use laminar_timely::timely::dataflow::operators::vec::Map;
use laminar_timely::{
    Cluster, Config, EpochInput, Error, FileSink, Job, Mistakes, OtherSize, SinkPart, Windowed, run,
};

use crate::Options;
#[cfg(feature = "object-store")]
use crate::backups::backed_up;
use crate::cache::Cache;
use crate::failing::{Failing, Trouble};
use crate::model::{PARTITIONS, WINDOW, digit_line, event, line, mix, time, watermark, window_line};
use crate::names::Names;
use crate::phases::{Log, Phase};
use crate::target::Target;

const JOB: &str = "torture";

pub fn work(options: &Options) -> Result<(), String> {
    Log::begins()?;
    Phase::Connecting.begins();
    let cluster = Cluster {
        process: options.process,
        workers: options.workers,
        addresses: if options.processes > 1 { options.addresses.clone() } else { Vec::new() },
    };
    let mistakes = Mistakes {
        acknowledge_before_sync: options.mistake == "acknowledge-before-sync",
        forget_waiting_rows: options.mistake == "forget-waiting-rows",
        wake_nobody: options.mistake == "wake-nobody",
    };
    let settings = Settings {
        // Small, so that there are checkpoints, segments and truncation within a few seconds.
        checkpoint_interval_ms: 50,
        segment_bytes: 256 << 10,
        preallocate_bytes: 0,
        ..Settings::default()
    };
    let seed = mix(options.seed ^ options.process as u64);
    let last = options.process + 1 == options.processes;
    let opening = Duration::from_millis(if last { options.opening_ms } else { 0 });
    let trouble = Arc::new(Trouble::default());
    if let Some(failing) = options.failing.filter(|failing| failing.after == 0) {
        trouble.is_due(failing);
    }
    // What a sink has not synced is lost with its process, too.
    let [state_names, sink_names] = options.names().map(|dir| Names::new(&dir));
    let sinks: Arc<dyn Vfs> =
        Arc::new(Cache::new(sink_names?, mix(seed), 1000, Duration::ZERO).with(&trouble));
    let dir = options.own_dir();
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let config = Config::new(dir.join("state"), JOB)
        .settings(settings)
        .max_ahead_epochs(options.ahead)
        // A kill during start-up leaves the others waiting for so long.
        .connect_timeout(Duration::from_secs(3))
        .start_timeout(Some(Duration::from_millis(options.stall_ms + 2 * options.opening_ms)))
        .stall_timeout(Some(Duration::from_millis(options.stall_ms)))
        .other_size(OtherSize::Rescale)
        .vfs(Arc::new(Cache::new(state_names?, seed, 8000, opening).with(&trouble)))
        .mistakes(mistakes);
    #[cfg(feature = "object-store")]
    let config = backed_up(config, options)?;
    let options = options.clone();
    let cuts_back = options.mistake != "no-cut-back";
    let sinks = Sinks { disk: sinks, opening, cuts_back };
    run(&cluster, &config, move |job| program(job, &options, &sinks, &trouble))
        .map_err(|error| error.to_string())?;
    Phase::Ended.begins();
    Ok(())
}

/// Keeps the thread that has it from ending.
struct Hangs;

impl Drop for Hangs {
    fn drop(&mut self) {
        loop {
            thread::park();
        }
    }
}

thread_local!(static HANGS: Hangs = const { Hangs });

/// Where the rows of this process go.
struct Sinks {
    disk: Arc<dyn Vfs>,
    /// How long the target of one of them takes.
    opening: Duration,
    /// A deliberate mistake when they do not.
    cuts_back: bool,
}

impl Sinks {
    fn open<D: 'static>(
        &self,
        dir: &Path,
        part: SinkPart,
        format: impl Fn(&D, &mut Vec<u8>) + Send + 'static,
    ) -> Result<Target<D>, Error> {
        let file = FileSink::open_with(dir, JOB, part, format, Arc::clone(&self.disk))?;
        Ok(Target::new(file, self.cuts_back))
    }
}

/// Events: key, value and event time.
type Events = EpochInput<(u64, u64, i64)>;

fn program(job: &mut Job, options: &Options, sinks: &Sinks, trouble: &Trouble) -> Result<(), Error> {
    // Of the workers of a process one says how far it is.
    let says = job.index().is_multiple_of(options.workers);
    if says {
        Phase::OpeningSinks.begins();
    }
    let mut input = dataflow(job, &options.out_dir(), sinks)?;
    if says {
        Phase::Running.begins();
    }
    let source = |partition: u64| format!("events/{partition}");
    // All partitions are in the same epoch, whoever read them.
    let begin = job.source_offset(&source(0)).unwrap_or(0) / options.events;
    for partition in 1..PARTITIONS {
        let other = job.source_offset(&source(partition)).unwrap_or(0) / options.events;
        if other != begin {
            let what = format!("partition {partition} goes on at epoch {other}, partition 0 at {begin}");
            return Err(Error::program(what, "This is what the test looks for."));
        }
    }
    announce(&options.dir, job, begin);
    if options.mistake == "hang-at-the-end" && job.index() + 1 == job.peers() {
        HANGS.with(|_| {});
    }
    let mine: Vec<_> =
        (0..PARTITIONS).filter(|partition| *partition % job.peers() as u64 == job.index() as u64).collect();
    for epoch in begin..options.until {
        if mine.is_empty() {
            break;
        }
        let due = |failing: &Failing| failing.after > 0 && epoch == begin + failing.after;
        if let Some(failing) = options.failing.filter(due).filter(|_| says) {
            trouble.is_due(failing);
        }
        if epoch == options.until / 2 && job.index() == 0 {
            input = match mistaken(job, input, &options.mistake)? {
                Some(input) => input,
                None => return Ok(()),
            };
        }
        for partition in &mine {
            for offset in epoch * options.events..(epoch + 1) * options.events {
                let (key, value) = event(options.seed, *partition, offset, options.keys);
                input.send((key, value, time(epoch, value)));
            }
            input.set_source_offset(&source(*partition), (epoch + 1) * options.events);
        }
        input.set_watermark(watermark(epoch));
        input.seal()?;
        if options.pause_us > 0 {
            input.idle(Duration::from_micros(options.pause_us));
        }
    }
    if says {
        Phase::Closing.begins();
    }
    input.finish()
}

fn dataflow(job: &mut Job, out: &Path, sinks: &Sinks) -> Result<Events, Error> {
    job.dataflow(|flow| {
        let (input, events) = flow.input::<(u64, u64, i64)>("events")?;
        let by_time = events.clone().map(|(key, _, time)| (key % 10, time, ()));
        let windows = flow.tumbling(by_time, "windows", WINDOW, |count: &mut u64, ()| *count += 1)?;
        flow.sink(windows.map(windowed), "window rows", |part| {
            let format = |(end, key, count): &_, out: &mut Vec<u8>| {
                out.extend_from_slice(window_line(*end, *key, *count).as_bytes());
            };
            sinks.open(&out.join("windows"), part, format)
        })?;
        let events = events.map(|(key, value, _)| (key, value));
        let totals = flow.fold(events, "totals", |total: &mut (u64, u64), value| {
            *total = (total.0 + 1, total.1 + value);
        })?;
        let digits = totals.clone().map(|(_, (count, _))| (count % 10, 1_u64));
        let digits = flow.reduce(digits, "digits", |one, other| one + other)?;
        flow.sink(totals, "rows", |part| {
            let format = |(key, (count, sum)): &_, out: &mut Vec<u8>| {
                out.extend_from_slice(line(*key, *count, *sum).as_bytes());
            };
            sinks.open(&out.join("rows"), part, format)
        })?;
        flow.sink(digits, "digit rows", |part| {
            thread::sleep(sinks.opening);
            let format = |(digit, times): &_, out: &mut Vec<u8>| {
                out.extend_from_slice(digit_line(*digit, *times).as_bytes());
            };
            sinks.open(&out.join("digits"), part, format)
        })?;
        Ok(input)
    })
}

/// Makes a deliberate mistake; without an input when that is to return early.
fn mistaken(job: &mut Job, input: Events, mistake: &str) -> Result<Option<Events>, Error> {
    match mistake {
        "panic" => unreachable!("a deliberate mistake"),
        "fail" => Err(Error::program("a deliberate mistake", "This is what the test looks for.")),
        "return-early" => Ok(None),
        "drop-an-input" => {
            drop(input);
            loop {
                job.idle(Duration::from_millis(10));
            }
        }
        _ => Ok(Some(input)),
    }
}

/// A window that has closed, with its count; none where a value came late.
fn windowed(row: Windowed<u64, u64>) -> (i64, u64, Option<u64>) {
    match row {
        Windowed::Closed { end, key, value } => (end, key, Some(value)),
        Windowed::Late { end, key } => (end, key, None),
    }
}

/// Says for the driver that the recovery is over.
fn announce(dir: &Path, job: &Job, begin: u64) {
    if job.index() == 0 {
        println!("{}: recovered to epoch {}, input goes on at {begin}", dir.display(), job.recovery_point());
    }
}
