//! Measurements of laminar-storage, each with yardsticks measured in the same run.
//!
//! `laminar-bench all --quick` takes minutes; without `--quick` the sizes are those of the record.
//! Absolute figures belong to the machine; what counts are ratios between rows of one run.
//!
//! Two programs have these measurements: `laminar-bench`, which can be built with other stores to compare with, and
//! `laminar bench`.
#![allow(clippy::cast_possible_truncation, reason = "numbers of keys and nanoseconds, not data of a disk")]

mod bytes;
mod checkpoint;
mod durable;
mod floor;
mod interrupt;
mod keys;
mod lifecycle;
mod machine;
mod objective;
mod peers;
mod place;
mod plot;
mod progress;
mod recovery;
mod ring0;
mod scaling;
mod space;
mod stalls;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::machine::Pins;
use crate::place::Place;
use crate::table::{Cell, Report, Table};

/// Whatever stops a run.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The command line of the measurements.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    common: Common,
}

/// The program that the measurements are part of.
#[derive(Clone, Debug)]
pub struct Program {
    /// What a user calls it.
    pub name: &'static str,
    /// What stands before the name of a measurement on its command line, so that it can start itself.
    pub before: &'static [&'static str],
    /// Where the files of a run go unless `--dir` says something else.
    pub dir: &'static str,
    /// Programs that measure the published predecessor.
    pub predecessors: Vec<PathBuf>,
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// Small sizes: about a minute per subcommand
    #[arg(long, global = true)]
    quick: bool,
    /// Keep hot threads on the first CPUs and background threads on the last one
    #[arg(long, global = true)]
    pin: bool,
    /// Directory for the files of the run; a directory of its own is made in it and removed
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Also writes the figures to FILE, and plots into its directory
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keys of the state, in place of the usual number
    #[arg(long, global = true, value_name = "N")]
    keys: Option<u64>,
    /// Operations per row, in place of the usual number
    #[arg(long, global = true, value_name = "N")]
    ops: Option<usize>,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Latency of single operations on a core, while Ring 1 writes the log
    Ring0,
    /// Puts and gets of a core beside their yardsticks, in turns
    Turns,
    /// How single operations, memory, checkpoints and opening grow with keys, their bytes, and cores
    Scaling,
    /// Puts per second until durable, log bytes per put, latency from seal to durable
    Durable,
    /// Fill, checkpoint, change 1 %, checkpoint, kill -9, reopen, compare every key
    Lifecycle(lifecycle::Options),
    /// Time and bytes of checkpoints after 0.1, 1, 10 and 100 % of the keys changed
    Checkpoint,
    /// Time to open a store from its log alone, and from checkpoint and log
    Recovery,
    /// Kill a store with a recovery objective again and again: what opening was estimated to take, and took
    Objective(objective::Options),
    /// Checkpoint and opening beside the least that must be done, and beside other stores that were built in
    Peers,
    /// Latency of puts without and with checkpoints beside them
    Stalls,
    /// Bytes written by, and left on the disk after, a thousand checkpoints
    Space(space::Options),
    /// Every measurement above, one after the other, in one run; what is done when none is named
    All(AllOptions),
    /// The process that is killed
    #[command(hide = true)]
    LifecycleChild(lifecycle::child::Options),
    /// The process that is killed
    #[command(hide = true)]
    ObjectiveChild(objective::ChildOptions),
}

#[derive(Args, Clone, Debug, Default)]
struct AllOptions {
    /// Only these, for example checkpoint,recovery,peers
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<Part>,
}

/// The measurements, in the order in which they are made.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Ring0,
    Turns,
    Scaling,
    Durable,
    Lifecycle,
    Checkpoint,
    Recovery,
    Objective,
    Peers,
    Stalls,
    Space,
}

impl AllOptions {
    fn parts(&self) -> Vec<What> {
        let asked = |part: &&Part| self.only.is_empty() || self.only.contains(part);
        Part::value_variants().iter().filter(asked).map(|part| part.in_full()).collect()
    }
}

impl Part {
    fn in_full(self) -> What {
        match self {
            Self::Ring0 => What::Ring0,
            Self::Turns => What::Turns,
            Self::Scaling => What::Scaling,
            Self::Durable => What::Durable,
            Self::Lifecycle => What::Lifecycle(lifecycle::Options::default()),
            Self::Checkpoint => What::Checkpoint,
            Self::Recovery => What::Recovery,
            Self::Objective => What::Objective(objective::Options::default()),
            Self::Peers => What::Peers,
            Self::Stalls => What::Stalls,
            Self::Space => What::Space(space::Options::default()),
        }
    }
}

/// What a measurement is given.
pub struct Run {
    pub quick: bool,
    pub pins: Pins,
    pub place: Place,
    pub keys: Option<u64>,
    pub ops: Option<usize>,
    /// The program that this is part of.
    pub program: Program,
    /// Directory of the file that the figures go to, if they go to one: what else is worth keeping goes there too.
    pub beside_json: Option<PathBuf>,
}

impl Run {
    /// One of two sizes.
    pub fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    pub fn keys_or(&self, quick: u64, full: u64) -> u64 {
        self.keys.unwrap_or(self.size(quick, full))
    }

    pub fn ops_or(&self, quick: usize, full: usize) -> usize {
        self.ops.unwrap_or(self.size(quick, full))
    }
}

/// Does what the command line asks for, and returns how many differences were found where states are compared.
///
/// # Errors
/// Whatever stops a run. A closed standard output is an [`std::io::Error`] of that kind.
pub fn run(bench: &Bench, program: &Program) -> Result<u64, Error> {
    match &bench.what {
        Some(What::LifecycleChild(options)) => lifecycle::child::run(options).map(|()| 0),
        Some(What::ObjectiveChild(options)) => objective::child(options).map(|()| 0),
        Some(what) => measure(what, &bench.common, program),
        None => measure(&What::All(AllOptions::default()), &bench.common, program),
    }
}

fn measure(what: &What, common: &Common, program: &Program) -> Result<u64, Error> {
    interrupt::watch()?;
    let beside_json = common.json.as_deref().map(beside).transpose()?;
    let run = Run {
        quick: common.quick,
        pins: Pins::new(common.pin)?,
        place: Place::new(common.dir.as_deref().unwrap_or(Path::new(program.dir)))?,
        keys: common.keys,
        ops: common.ops,
        program: program.clone(),
        beside_json,
    };
    let mut about = machine::about(common.quick, common.pin);
    about["file_system"] = run.place.file_system.into();
    head(&about, program)?;
    let mut report = Report::default();
    report.add(calibration(&run));
    let parts = if let What::All(options) = what { options.parts() } else { vec![what.clone()] };
    for part in &parts {
        part.measure(&run, &mut report)?;
        // Nobody is there any more to read it.
        report.printed()?;
    }
    if let Some(path) = &common.json {
        let json = format!("{:#}\n", report.json(&about));
        std::fs::write(path, json).map_err(|e| format!("could not write {}: {e}", path.display()))?;
    }
    Ok(report.differences)
}

/// The directory that a file is to be in. It is looked at before anything is measured, which may take long.
fn beside(file: &Path) -> Result<PathBuf, Error> {
    let dir = match file.parent() {
        None => return Err(format!("{} is no file that figures could go to", file.display()).into()),
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
    };
    if dir.is_dir() {
        Ok(dir.to_path_buf())
    } else {
        Err(format!("there is no directory {}, which the figures are to go to", dir.display()).into())
    }
}

/// Says what is measured where.
fn head(about: &serde_json::Value, program: &Program) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {}", program.name, env!("CARGO_PKG_VERSION"))?;
    for (name, value) in about.as_object().into_iter().flatten() {
        writeln!(out, "  {name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    }
    if cfg!(debug_assertions) {
        writeln!(out, "  !! a debug build: these figures say nothing about speed")?;
    }
    Ok(())
}

impl What {
    fn measure(&self, run: &Run, report: &mut Report) -> Result<(), Error> {
        match self {
            Self::Ring0 => ring0::run(run, report),
            Self::Turns => ring0::turns::run(run, report),
            Self::Scaling => scaling::run(run, report),
            Self::Durable => durable::run(run, report),
            Self::Lifecycle(options) => lifecycle::run(run, options, report),
            Self::Checkpoint => checkpoint::run(run, report),
            Self::Recovery => recovery::run(run, report),
            Self::Objective(options) => objective::run(run, options, report),
            Self::Peers => peers::run(run, report),
            Self::Stalls => stalls::run(run, report),
            Self::Space(options) => space::run(run, options, report),
            // One is its parts, the others are processes of measurements.
            Self::All(_) | Self::LifecycleChild(_) | Self::ObjectiveChild(_) => Ok(()),
        }
    }
}

/// What the clock costs and how often the machine stops a thread that does nothing.
fn calibration(run: &Run) -> Table {
    let mut table = Table::new(
        "calibration",
        "Calibration: the clock, and gaps an idle loop sees",
        &["", "clock reading", "gaps/s > 1 µs", "> 10 µs", "> 100 µs", "longest"],
    );
    let gaps = machine::idle_gaps(Duration::from_secs(run.size(1, 5)));
    table.row(vec![
        Cell::text("idle loop"),
        Cell::Nanos(machine::clock_cost()),
        Cell::Number(gaps.per_second_over_1us, 0),
        Cell::Number(gaps.per_second_over_10us, 0),
        Cell::Number(gaps.per_second_over_100us, 0),
        Cell::time(gaps.longest),
    ]);
    table
}
