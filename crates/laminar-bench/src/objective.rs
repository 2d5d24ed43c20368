//! Does an opening after SIGKILL take as long as the recovery objective allows, and as long as the store
//! said it would? A process writes and tells every few milliseconds what opening would take if
//! it died now; it is killed at a random moment, and opened again.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use laminar_storage::{CoreStore, Opened, Settings, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::keys::{Random, Stamp, key, mix};
use crate::lifecycle::Killed;
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// What is measured when nothing else is asked for.
const OBJECTIVE_MS: u64 = 1000;
const KILLS: u64 = 10;
const RATE: u64 = 1_000_000;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Longest time an opening may take, in milliseconds
    #[arg(long, default_value_t = OBJECTIVE_MS, value_name = "MS")]
    objective: u64,
    /// How often to kill
    #[arg(long, default_value_t = KILLS, value_name = "N")]
    kills: u64,
    /// Changes per second; 0 for as many as are possible, which may be more than checkpoints can keep up with
    #[arg(long, default_value_t = RATE, value_name = "N")]
    rate: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { objective: OBJECTIVE_MS, kills: KILLS, rate: RATE }
    }
}

#[derive(Args, Clone, Debug)]
pub struct ChildOptions {
    #[arg(long)]
    store: PathBuf,
    #[arg(long)]
    keys: u64,
    #[arg(long)]
    objective: u64,
    #[arg(long)]
    rate: u64,
}

/// Changes per epoch.
const EPOCH: u64 = 1024;
/// Time between two lines that the child tells.
const TOLD_EVERY: Duration = Duration::from_millis(5);

fn settings(objective: u64) -> Settings {
    // Nothing else asks for a checkpoint.
    let none = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    Settings { recovery_objective_ms: objective, ..none }
}

/// The last thing that the child told before it was killed.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    estimate: Duration,
    behind: u64,
    checkpoints: u64,
    checkpoint_time: Duration,
    changes: u64,
    out_of_reach: bool,
}

pub fn run(run: &Run, options: &Options, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(200_000, 1_000_000);
    progress!("objective: {} ms, {keys} keys, {} kills", options.objective, options.kills);
    let dir = run.place.fresh("objective")?;
    let mut table = Table::new(
        "objective",
        format!(
            "Killed {} times, to be open again within {} ms; {keys} keys, {} changes per second",
            options.kills,
            options.objective,
            if options.rate == 0 { "as many as possible".to_owned() } else { options.rate.to_string() }
        ),
        &[
            "kill",
            "changes",
            "checkpoints",
            "the last took",
            "log behind it",
            "estimated",
            "opened in",
            "replayed",
            "of the objective",
        ],
    );
    let (mut longest, mut missed) = (Duration::ZERO, 0_u64);
    for kill in 0..options.kills {
        let told = until_killed(run, options, keys, &dir, kill)?;
        let started = Instant::now();
        let opened = Store::builder(&dir).settings(settings(options.objective)).open()?;
        let took = started.elapsed();
        let replayed: u64 = opened.report.cores.iter().map(|core| core.replayed_bytes).sum();
        drop(opened.cores);
        opened.store.close()?;
        longest = longest.max(took);
        missed += u64::from(took.as_millis() > u128::from(options.objective));
        let out_of_reach = if told.out_of_reach { " (out of reach)" } else { "" };
        table.row(vec![
            Cell::text(format!("{}{out_of_reach}", kill + 1)),
            Cell::Count(told.changes),
            Cell::Count(told.checkpoints),
            Cell::time(told.checkpoint_time),
            Cell::Bytes(told.behind),
            Cell::time(told.estimate),
            Cell::time(took),
            Cell::Bytes(replayed),
            Cell::Number(took.as_secs_f64() * 1000.0 / options.objective as f64, 2),
        ]);
    }
    table.note(format!(
        "longest opening: {:.0} ms; over the objective: {missed}",
        longest.as_secs_f64() * 1e3
    ));
    table.note("estimated: what the store said up to 5 ms before it was killed; a store that was never opened with anything to load goes by a guess and by its checkpoints");
    report.add(table);
    clear(&dir)
}

/// Runs the child until it is killed, between half a second and two and a half seconds after its start.
fn until_killed(run: &Run, options: &Options, keys: u64, dir: &Path, kill: u64) -> Result<Told, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(run.program.before).arg("objective-child").arg("--store").arg(dir);
    command.args(["--keys", &keys.to_string(), "--objective", &options.objective.to_string()]);
    command.args(["--rate", &options.rate.to_string()]);
    let mut child = Killed::new(command.stdout(Stdio::piped()).spawn()?);
    let Some(out) = child.0.stdout.take() else { return Err("the child has no output".into()) };
    let pid = Pid::from_child(&child.0);
    let (mut told, mut killer) = (Told::default(), None);
    let spread = run.size(2000, 8000);
    for line in BufReader::new(out).lines() {
        let line = line?;
        if killer.is_none() {
            let wait = Duration::from_millis(500 + mix(kill ^ u64::from(child.0.id())) % spread);
            killer = Some(std::thread::spawn(move || {
                std::thread::sleep(wait);
                kill_process(pid, Signal::KILL)
            }));
        }
        // The last line may be cut off by the kill.
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        told = Told {
            estimate: Duration::from_nanos(number("estimate_ns")),
            behind: number("behind"),
            checkpoints: number("checkpoints"),
            checkpoint_time: Duration::from_nanos(number("checkpoint_ns")),
            changes: number("changes"),
            out_of_reach: event["out_of_reach"] == true,
        };
    }
    let status = child.0.wait()?;
    let killed = killer.map(std::thread::JoinHandle::join);
    if !matches!(killed, Some(Ok(Ok(())))) || status.signal() != Some(9) {
        return Err(format!("the child was not killed, it ended before its time: {status}").into());
    }
    Ok(told)
}

/// The process that is killed.
pub fn child(options: &ChildOptions) -> Result<(), Error> {
    let Opened { store, mut cores, .. } =
        Store::builder(&options.store).settings(settings(options.objective)).open()?;
    let Some(core) = cores.first_mut() else { return Err("no core".into()) };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let teller = scope.spawn(|| tell(&store, &stop));
        let done = write(&store, core, options);
        stop.store(true, Ordering::Relaxed);
        teller.join().map_err(|_| "the telling thread panicked")??;
        done
    })
}

fn write(store: &Store, core: &mut CoreStore, options: &ChildOptions) -> Result<(), Error> {
    let (mut random, mut stamp) = (Random::new(u64::from(std::process::id())), Stamp::new());
    let started = Instant::now();
    for change in 0_u64.. {
        core.put(&key(random.below(options.keys)), stamp.at(change))?;
        if !(change + 1).is_multiple_of(EPOCH) {
            continue;
        }
        let epoch = core.seal_epoch()?;
        if options.rate > 0 {
            let due = Duration::from_secs_f64(change as f64 / options.rate as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
        // Not too far ahead of what is durable, as any program that acknowledges something.
        if (change + 1).is_multiple_of(64 * EPOCH) {
            store.wait_durable(epoch)?;
        }
    }
    Ok(())
}

fn tell(store: &Store, stop: &AtomicBool) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    while !stop.load(Ordering::Relaxed) {
        let stats = store.stats();
        let event = json!({
            "estimate_ns": stats.estimated_recovery.as_nanos() as u64,
            "behind": stats.wal_bytes_behind,
            "checkpoints": stats.checkpoints,
            "checkpoint_ns": stats.last_checkpoint_time.as_nanos() as u64,
            "changes": stats.changes_drained,
            "out_of_reach": stats.recovery_objective_out_of_reach,
        });
        writeln!(out, "{event}").and_then(|()| out.flush())?;
        std::thread::sleep(TOLD_EVERY);
    }
    Ok(())
}
