//! What a thousand checkpoints write, and what they leave on the disk.
//!
//! Two workloads that are hard on incremental checkpoints, each with as many changes between two
//! checkpoints: *skewed*, where few keys change over and over; and a *sliding window*, where every key is
//! written, overwritten once, and deleted, so that the live state stays the same while all of it is
//! replaced again and again.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use laminar_storage::{CoreStore, Opened, Settings, Store};

use crate::bytes::disk_bytes;
use crate::keys::{PAYLOAD, Spread, key, value};
use crate::place::clear;
use crate::plot::{self, Line};
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Checkpoints to take
    #[arg(long, value_name = "N")]
    checkpoints: Option<u32>,
    /// Directory for the plots; without it they are beside the FILE of --json, and without that not drawn
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Of so many live keys one changes between two checkpoints.
const CHANGED_ONE_IN: u64 = 50;

#[derive(Clone, Copy, Debug)]
enum Workload {
    Skewed,
    Window,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Skewed => "skewed",
            Self::Window => "sliding-window",
        }
    }
}

/// What was there after a checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct After {
    /// Keys and values of the live state.
    live: u64,
    /// Keys and values put, and keys deleted, since the beginning.
    changed: u64,
    /// Bytes all checkpoints wrote since the beginning.
    written: u64,
    /// Bytes of the newest checkpoint, of all of them with shared files counted once, and of the log.
    newest: u64,
    retained: u64,
    log: u64,
    files: u64,
}

impl After {
    fn ratio(self, bytes: u64) -> f64 {
        bytes as f64 / self.live.max(1) as f64
    }
}

pub fn run(run: &Run, options: &Options, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(20_000, 100_000);
    let checkpoints = options.checkpoints.unwrap_or(run.size(100, 1000));
    let mut table = Table::new(
        "space",
        format!(
            "{checkpoints} checkpoints of {keys} live keys, {} changes before each",
            keys / CHANGED_ONE_IN
        ),
        &[
            "workload",
            "changed",
            "written",
            "written / changed",
            "newest / live, most",
            "retained / live, most",
            "last",
            "with the log, most",
            "files, most",
        ],
    );
    let plots = options.plots.as_deref().or(run.beside_json.as_deref());
    for workload in [Workload::Skewed, Workload::Window] {
        let history = take(run, workload, keys, checkpoints)?;
        table.row(row(workload, &history));
        if let Some(dir) = plots {
            draw(dir, workload, &history)?;
        }
    }
    let settings = settings();
    table.note(format!(
        "retained: the {} newest checkpoints together, hard links once",
        settings.max_retained
    ));
    table.note("live: keys and values; changed: keys and values put and keys deleted, each time again");
    table.note("the log: all files in wal/, space written ahead counts; it is cut back to the second newest checkpoint");
    report.add(table);
    Ok(())
}

fn settings() -> Settings {
    Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() }
}

/// Runs a workload from an empty store, and notes what there is after every checkpoint.
fn take(run: &Run, workload: Workload, keys: u64, checkpoints: u32) -> Result<Vec<After>, Error> {
    let dir = run.place.fresh(workload.name())?;
    progress!("space: {}, {keys} keys, {checkpoints} checkpoints", workload.name());
    let Opened { store, mut cores, .. } = Store::builder(&dir).settings(settings()).open()?;
    let core = cores.first_mut().ok_or("no core")?;
    let mut changes = Changes::new(workload, keys, checkpoints);
    let (mut history, mut now) = (Vec::new(), After::default());
    now.changed += changes.fill(core)?;
    for round in 0..u64::from(checkpoints) {
        if round > 0 {
            now.changed += changes.round(core, round)?;
        }
        let epoch = core.seal_epoch()?;
        store.wait_durable(epoch)?;
        now.written += store.checkpoint()?.bytes_written;
        now.live = core.len() as u64 * PAYLOAD as u64;
        let all = dir.join("checkpoints");
        let newest = newest(&all)?;
        (now.newest, now.files) = (disk_bytes(&newest), fs::read_dir(&newest)?.count() as u64);
        (now.retained, now.log) = (disk_bytes(&all), disk_bytes(&dir.join("wal")));
        history.push(now);
    }
    drop(cores);
    store.close()?;
    clear(&dir)?;
    Ok(history)
}

/// The directory of the newest checkpoint: their names are in order.
fn newest(checkpoints: &Path) -> Result<PathBuf, Error> {
    let dirs = fs::read_dir(checkpoints)?.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).max().ok_or_else(|| "there is no checkpoint".into())
}

/// The changes of a workload.
struct Changes {
    workload: Workload,
    keys: u64,
    /// Changes between two checkpoints.
    per_round: u64,
    skewed: Vec<u32>,
}

impl Changes {
    fn new(workload: Workload, keys: u64, checkpoints: u32) -> Self {
        let per_round = (keys / CHANGED_ONE_IN).max(3);
        let drawn = match workload {
            Workload::Skewed => per_round as usize * checkpoints as usize,
            Workload::Window => 0,
        };
        Self { workload, keys, per_round, skewed: Spread::Zipf.draw(keys, drawn, 3) }
    }

    fn fill(&self, core: &mut CoreStore) -> Result<u64, Error> {
        (0..self.keys).try_for_each(|number| core.put(&key(number), &value(number, 0)))?;
        Ok(self.keys * PAYLOAD as u64)
    }

    /// Returns how many bytes changed.
    fn round(&mut self, core: &mut CoreStore, round: u64) -> Result<u64, Error> {
        match self.workload {
            Workload::Skewed => {
                let rest = self.skewed.len().saturating_sub(self.per_round as usize);
                let drawn = self.skewed.split_off(rest);
                for number in drawn.iter().map(|n| u64::from(*n)) {
                    core.put(&key(number), &value(number, round as u32))?;
                }
                Ok(drawn.len() as u64 * PAYLOAD as u64)
            }
            Workload::Window => {
                // A third each: new keys, the same once more in the middle of their life, and their end.
                let step = self.per_round / 3;
                let first = self.keys + (round - 1) * step;
                for new in first..first + step {
                    core.put(&key(new), &value(new, 0))?;
                    let middle = new - self.keys / 2;
                    core.put(&key(middle), &value(middle, 1))?;
                    core.delete(&key(new - self.keys))?;
                }
                Ok(step * (2 * PAYLOAD + crate::keys::KEY) as u64)
            }
        }
    }
}

fn row(workload: Workload, history: &[After]) -> Vec<Cell> {
    let last = history.last().copied().unwrap_or_default();
    let most = |of: fn(&After) -> f64| Cell::Number(history.iter().map(of).fold(0.0, f64::max), 2);
    vec![
        Cell::text(workload.name()),
        Cell::Bytes(last.changed),
        Cell::Bytes(last.written),
        Cell::Number(last.written as f64 / last.changed.max(1) as f64, 2),
        most(|after| after.ratio(after.newest)),
        most(|after| after.ratio(after.retained)),
        Cell::Number(last.ratio(last.retained), 2),
        most(|after| after.ratio(after.retained + after.log)),
        most(|after| after.files as f64),
    ]
}

fn draw(dir: &Path, workload: Workload, history: &[After]) -> Result<(), Error> {
    fs::create_dir_all(dir)?;
    let name = workload.name();
    let line = |name, of: fn(&After) -> f64| Line::from_one(name, history.iter().map(of));
    let on_disk = [
        line("newest checkpoint", |after| after.ratio(after.newest)),
        line("retained checkpoints", |after| after.ratio(after.retained)),
        line("with the log", |after| after.ratio(after.retained + after.log)),
    ];
    let title = format!("On the disk, {name}");
    let path = dir.join(format!("space-{name}.svg"));
    plot::lines(&path, &title, "checkpoint", "bytes / bytes of the live state", &on_disk)?;
    let megabytes = [
        line("changed", |after| after.changed as f64 / 1e6),
        line("written by checkpoints", |after| after.written as f64 / 1e6),
    ];
    let title = format!("Written, {name}");
    let path = dir.join(format!("written-{name}.svg"));
    plot::lines(&path, &title, "checkpoint", "MB since the beginning", &megabytes)
}
