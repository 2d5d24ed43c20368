//! A store's whole life: filled, checkpointed, 1 % changed, checkpointed again, killed with SIGKILL in
//! the middle of further changes, reopened (also with other numbers of cores), and each time compared
//! key by key with what the plan says it must hold.

pub mod child;
mod truth;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use laminar_storage::{Opened, StateReader, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::truth::{Plan, Truth};
use crate::bytes::disk_bytes;
use crate::keys::{PAYLOAD, mix};
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run, interrupt, machine};

#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Cores of the store that is filled and killed
    #[arg(long, default_value_t = 1, value_name = "N")]
    cores: usize,
    /// Numbers of cores to reopen with after that, one after the other
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    reopen: Vec<usize>,
    /// Also reads the killed store with a `StateReader`, which changes nothing
    #[arg(long)]
    reader: bool,
}

pub fn run(run: &Run, options: &Options, report: &mut Report) -> Result<(), Error> {
    let plan = Plan { keys: run.keys_or(1_000_000, 5_000_000), cores: options.cores.max(1) };
    progress!("lifecycle: {} keys on {} cores", plan.keys, plan.cores);
    let dir = run.place.fresh("lifecycle")?;
    let mut told = Table::new(
        "lifecycle",
        format!("Life of a store of {} keys, 16 B / 100 B, on {} cores", plan.keys, plan.cores),
        &["step", "time", "bytes written", "bytes / changed bytes", "memory taken"],
    );
    let acknowledged = until_killed(run, plan, &dir, &mut told)?;
    told.note("filled, changed: until durable; bytes are those of the log");
    told.note(
        "checkpoint: bytes of new files, of which metadata is part; memory: most during it, beyond before",
    );
    let disk = disk_bytes(&dir);
    let ratio = disk as f64 / (plan.keys * PAYLOAD as u64) as f64;
    told.row(vec![
        Cell::text("on disk then"),
        Cell::None,
        Cell::Bytes(disk),
        Cell::Number(ratio, 3),
        Cell::None,
    ]);
    told.note("on disk: everything under the directory, hard links once, over keys and values of the state; space written ahead counts");
    report.add(told);

    let changed = plan.fill_epochs() + 1;
    let mut opened = Table::new(
        "reopened",
        "Reopened after SIGKILL, and compared key by key",
        &[
            "opened with",
            "time",
            "recover",
            "begin",
            "memory / payload",
            "replayed",
            "point",
            "keys",
            "different",
        ],
    );
    if options.reader {
        opened.row(read(&dir, plan)?);
    }
    let mut point = None;
    for cores in std::iter::once(plan.cores).chain(options.reopen.iter().copied()) {
        report.differences += reopen(run, &dir, plan, cores, changed, &mut point, acknowledged, &mut opened)?;
    }
    opened.note("the page cache is warm; memory: most while opening, beyond before, over keys and values");
    opened.note(
        "point: the epoch recovery landed on; acknowledged before the kill was ".to_owned()
            + &acknowledged.to_string(),
    );
    report.add(opened);
    clear(&dir)
}

/// Runs the child, notes what it tells, kills it, and returns the last epoch it was promised.
fn until_killed(run: &Run, plan: Plan, dir: &Path, table: &mut Table) -> Result<u64, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(run.program.before).arg("lifecycle-child").arg("--store").arg(dir);
    command.args(["--keys", &plan.keys.to_string(), "--cores", &plan.cores.to_string()]);
    if run.pins.wanted() {
        command.arg("--pin");
    }
    let mut child = Killed::new(command.stdout(Stdio::piped()).spawn()?);
    let Some(out) = child.0.stdout.take() else { return Err("the child has no output".into()) };
    let pid = Pid::from_child(&child.0);
    let (mut acknowledged, mut killer) = (0, None);
    for line in BufReader::new(out).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let number = |name: &str| event[name].as_u64().unwrap_or(0);
        match event["event"].as_str().unwrap_or_default() {
            "acknowledged" => {
                acknowledged = number("epoch");
                if killer.is_none() && event["sure"] == true {
                    // At no moment in particular. Until the end of its output the child is not waited
                    // for, so that the number stays its own.
                    let wait = Duration::from_micros(mix(u64::from(child.0.id())) % 200_000);
                    killer = Some(std::thread::spawn(move || {
                        std::thread::sleep(wait);
                        kill_process(pid, Signal::KILL)
                    }));
                }
            }
            name => table.row(told(name, &event, plan)),
        }
    }
    let status = child.0.wait()?;
    let killed = killer.map(std::thread::JoinHandle::join);
    if !matches!(killed, Some(Ok(Ok(())))) || status.signal() != Some(9) {
        return Err(format!("the child was not killed, it ended before its time: {status}").into());
    }
    table.row(vec![Cell::text("killed (SIGKILL)"), Cell::None, Cell::None, Cell::None, Cell::None]);
    Ok(acknowledged)
}

/// A child that is not left behind.
pub struct Killed(pub Child, #[expect(dead_code, reason = "it is there to be dropped")] interrupt::Killed);

impl Killed {
    pub fn new(child: Child) -> Self {
        let on_signal = interrupt::Killed::new(child.id());
        Self(child, on_signal)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn told(name: &str, event: &Value, plan: Plan) -> Vec<Cell> {
    let number = |name: &str| event[name].as_u64();
    let bytes = number("bytes").or(number("wal_bytes"));
    let changes = match name {
        "filled" => Some(plan.keys),
        "changed 1 %" => Some((0..plan.keys).filter(|n| Plan::changes(*n)).count() as u64),
        _ => number("changes"),
    };
    let payload = changes.map(|changes| changes * PAYLOAD as u64);
    let ratio = bytes.zip(payload).map(|(bytes, payload)| bytes as f64 / payload.max(1) as f64);
    vec![
        Cell::text(name),
        number("ns").map_or(Cell::None, |ns| Cell::Nanos(ns as f64)),
        bytes.map_or(Cell::None, Cell::Bytes),
        ratio.map_or(Cell::None, |ratio| Cell::Number(ratio, 3)),
        number("memory").or(number("rss")).map_or(Cell::None, Cell::Bytes),
    ]
}

#[allow(clippy::too_many_arguments, reason = "one step of one sequence")]
fn reopen(
    run: &Run,
    dir: &Path,
    plan: Plan,
    cores: usize,
    changed: u64,
    point: &mut Option<u64>,
    acknowledged: u64,
    table: &mut Table,
) -> Result<u64, Error> {
    run.pins.background()?;
    let before = machine::memory().0;
    machine::reset_peak();
    let started = Instant::now();
    let Opened { store, cores: halves, report } =
        Store::builder(dir).cores(cores).settings(child::settings()).open()?;
    let time = started.elapsed();
    let peak = machine::memory().1.saturating_sub(before);
    let landed = report.recovery_point.get();
    let truth = Truth::at(plan, changed, landed);
    let (mut differences, mut first) = truth.compare(&halves);
    let mut differs = |what: String| {
        differences += 1;
        first.get_or_insert(what);
    };
    if landed < acknowledged {
        differs(format!("epoch {acknowledged} was acknowledged, recovery landed on {landed}"));
    }
    if point.is_some_and(|point| point != landed) {
        differs(format!("recovery landed on {landed} now, on {point:?} before"));
    }
    if report.keys != truth.live {
        differs(format!("the report says {} keys, not {}", report.keys, truth.live));
    }
    *point = Some(landed);
    if let Some(first) = first {
        progress!("lifecycle: opened with {cores} cores: {first}");
    }
    table.row(vec![
        Cell::text(format!("{cores} cores")),
        Cell::time(time),
        Cell::time(report.phases.recover),
        Cell::time(report.phases.begin),
        Cell::Number(peak as f64 / (truth.live * PAYLOAD as u64) as f64, 2),
        Cell::Count(report.cores.iter().map(|core| core.replayed).sum()),
        Cell::Count(landed),
        Cell::Count(report.keys),
        Cell::Count(differences),
    ]);
    drop(halves);
    store.close()?;
    Ok(differences)
}

fn read(dir: &Path, plan: Plan) -> Result<Vec<Cell>, Error> {
    let before = machine::memory().0;
    machine::reset_peak();
    let started = Instant::now();
    let reader = StateReader::open(dir)?;
    let time = started.elapsed();
    let peak = machine::memory().1.saturating_sub(before);
    Ok(vec![
        Cell::text("StateReader"),
        Cell::time(time),
        Cell::None,
        Cell::None,
        Cell::Number(peak as f64 / (plan.keys * PAYLOAD as u64) as f64, 2),
        Cell::Count(reader.report().cores.iter().map(|core| core.replayed).sum()),
        Cell::Count(reader.report().recovery_point.get()),
        Cell::Count(reader.len() as u64),
        Cell::text("not compared"),
    ])
}
