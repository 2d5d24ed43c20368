//! Machines that are lost: the directories of their states go, and the job goes on from its newest backup. Its output stays:
//! the world has seen it, and the restored job must cut it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use laminar_timely::JobBackup;

use crate::Options;
use crate::backups::whole_backups;
use crate::drive::Tally;
use crate::failing::{Failing, Operation};
use crate::model::mix;
use crate::phases::{REFUSED, backed_up};
use crate::processes::{Moment, Processes};

/// Machines that were lost.
#[derive(Debug, Default)]
pub struct Losses {
    /// How often all were.
    all: u32,
    /// How often one was, before all were.
    one: u32,
    /// How often the job did not begin without it.
    refused: u32,
    restores: u32,
    /// Restores that were killed, by how far they had come.
    interrupted: BTreeMap<&'static str, u32>,
    /// After how many of those what they had fetched was lost too.
    abandoned: u32,
    /// How often there was no backup yet.
    anew: u32,
    /// How often the job said then that its output was of another state.
    ahead: u32,
    /// Backups that all processes had said they made their part of.
    backups: u64,
    /// The newest of them.
    newest: u64,
    /// Those that are not of the history of the job any more: it went back behind them.
    given_up: Vec<String>,
    /// Every machine has a state of this size.
    settled: bool,
    /// The state was restored, and nobody has said since that it was recovered.
    pub fresh: bool,
    /// The backups are those of a life that was lost: nobody of the one that goes on in its place has made any that is whole.
    pub takes_over: bool,
    /// How long the last restore of a machine took.
    restore_us: u64,
}

/// What the driver does at the moment that is drawn.
type Draw<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Loses machines, of a job whose processes have all ended, in about one of `options.lose` times, and restores them.
pub fn after_a_kill(
    options: &Options,
    processes: &Processes,
    tally: &mut Tally,
    draw: Draw<'_>,
) -> Result<(), String> {
    tally.losses.heard(processes)?;
    // The first time that there is a backup always: every run is to restore one.
    let first = tally.losses.newest > 0 && tally.losses.restores == 0;
    if options.lose == 0 || (draw(options.lose) != 0 && !first) {
        return Ok(());
    }
    let one = options.directories == "each" && options.processes > 1 && draw(2) == 0;
    if one && tally.losses.settled {
        lose_one(options, tally, draw)?;
    }
    lose_all(options, tally, draw)
}

/// Before the job goes on in another size. Where each machine has its own directory and there are fewer than before, there is no
/// other way than over a backup.
pub fn before_another_size(
    options: &Options,
    before: usize,
    tally: &mut Tally,
    random: &mut u64,
) -> Result<(), String> {
    tally.losses.settled = false;
    if options.lose == 0 {
        return Ok(());
    }
    let draw = &mut |below: u64| {
        *random = mix(*random);
        *random % below
    };
    let fewer = options.directories == "each" && options.processes < before;
    if fewer || draw(2) == 0 { lose_all(options, tally, draw) } else { Ok(()) }
}

/// One machine is lost: with what the others have the job must not begin.
fn lose_one(options: &Options, tally: &mut Tally, draw: Draw<'_>) -> Result<(), String> {
    let machine = usize::try_from(draw(options.processes as u64)).unwrap_or(0);
    remove(&options.dir.join(format!("machine-{machine}")))?;
    tally.losses.one += 1;
    let mut processes = Processes::start(options, None, None, tally)?;
    let moment = Moment::Says("recovered to epoch", u64::MAX);
    if let Some(ended) = processes.wait_until(&moment, &options.dir)? {
        processes.ended_in_order(&ended, None)?;
        let said = processes.said();
        let signs = [
            "what the first had is lost",
            "no process has all of part",
            "parts that were being filled, and none that they could be filled from",
        ];
        if signs.iter().any(|sign| said.contains(sign)) {
            tally.losses.refused += 1;
            return Ok(());
        }
        if processes.not_connected(&ended, tally) {
            return Ok(());
        }
        return Err(format!("machine {machine} is lost, and the job says nothing of it\n{said}"));
    }
    processes.kill_all();
    // Nothing was durable everywhere: then nothing is lost with it either.
    if processes.said().contains("recovered to epoch 0,") {
        return Ok(());
    }
    Err(format!("machine {machine} is lost, and the job began without it\n{}", processes.said()))
}

/// All machines are lost, and restored from the newest backup.
fn lose_all(options: &Options, tally: &mut Tally, draw: Draw<'_>) -> Result<(), String> {
    remove_states(options)?;
    tally.losses.all += 1;
    tally.losses.settled = false;
    tally.losses.takes_over = true;
    let Some(backup) = choose(options, &mut tally.losses)? else {
        return begin_anew(options, tally);
    };
    // One that was killed when it had just published its state may lose it again, until the job has begun.
    loop {
        for machine in 0..machines(options) {
            restore_machine(options, &backup, machine, tally, draw)?;
        }
        tally.may_lose_power(options)?;
        let is_there = |machine| {
            let parts = parts_of(options, &backup, machine);
            parts.is_empty() || Restore::new(options, &backup, machine, &parts).state.exists()
        };
        if (0..machines(options)).all(is_there) {
            break;
        }
    }
    tally.keeps_power = true;
    tally.losses.restores += 1;
    tally.losses.fresh = true;
    Ok(())
}

/// Which backup the job goes back to, if there is one.
fn choose(options: &Options, losses: &mut Losses) -> Result<Option<JobBackup>, String> {
    let mut backups = whole_backups(options)?;
    let known = losses.newest;
    let newest = backups.last().map_or(0, |backup| backup.id.epoch().0);
    if newest < known && !options.goes_back() {
        return Err(format!(
            "epoch {known} was backed up by all processes, and the newest backup is of epoch {newest}"
        ));
    }
    backups.retain(|backup| !losses.given_up.contains(&backup.id.to_string()));
    // Not behind a change of size: sinks of the later one would have to be empty.
    let last = backups.last().map(|backup| backup.generation);
    backups.retain(|backup| Some(backup.generation) == last);
    if options.goes_back() {
        let later = backups.iter().skip(1).map(|backup| backup.id.to_string());
        losses.given_up.extend(later);
        backups.truncate(1);
    }
    Ok(backups.pop())
}

/// How many directories there are.
fn machines(options: &Options) -> usize {
    if options.directories == "each" { options.processes } else { 1 }
}

fn remove_states(options: &Options) -> Result<(), String> {
    let failed = |e: io::Error| format!("{}: {e}", options.dir.display());
    for entry in fs::read_dir(&options.dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("machine-") || name.starts_with("state") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("{}: {e}", dir.display())),
        _ => Ok(()),
    }
}

/// No backup was whole yet. The output is that of a state that is gone, which the job says if there is any, and goes too: what is
/// documented is to begin with an empty one.
fn begin_anew(options: &Options, tally: &mut Tally) -> Result<(), String> {
    tally.losses.anew += 1;
    loop {
        let mut processes = Processes::start(options, None, None, tally)?;
        let moment = Moment::Says("recovered to epoch", u64::MAX);
        let Some(ended) = processes.wait_until(&moment, &options.dir)? else {
            // No sink had anything that was committed: it goes on from here after one more kill.
            processes.kill_all();
            tally.losses.heard(&processes)?;
            return Ok(());
        };
        processes.ended_in_order(&ended, None)?;
        if processes.said().contains("but the state goes only to 0") {
            tally.losses.ahead += 1;
            remove_states(options)?;
            return remove(&options.dir.join("out"));
        }
        if !processes.not_connected(&ended, tally) {
            return Err(format!("a job without state and backups ended\n{}", processes.said()));
        }
    }
}

/// Of more parts than machines some restore several; of fewer, some none.
fn parts_of(options: &Options, backup: &JobBackup, machine: usize) -> Vec<usize> {
    (0..backup.parts.len()).filter(|part| part % machines(options) == machine).collect()
}

/// The parts of one machine, by a process of its own that is killed now and then.
fn restore_machine(
    options: &Options,
    backup: &JobBackup,
    machine: usize,
    tally: &mut Tally,
    draw: Draw<'_>,
) -> Result<(), String> {
    let parts = parts_of(options, backup, machine);
    let restore = Restore::new(options, backup, machine, &parts);
    if parts.is_empty() || restore.state.exists() {
        return Ok(());
    }
    let mut left = draw(4);
    loop {
        // About every other one dies by itself, when it has changed a name.
        let dies = (left > 0 && draw(2) == 0).then(|| draw(60));
        let (started, mut child) = (Instant::now(), restore.start(dies)?);
        let ended = if left == 0 {
            let ended = child.wait();
            tally.losses.restore_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            ended
        } else if dies.is_some() {
            left -= 1;
            child.wait()
        } else {
            left -= 1;
            // At some moment of what the last one took; a guess at first.
            let longest = if tally.losses.restore_us == 0 { 40_000 } else { tally.losses.restore_us };
            thread::sleep(Duration::from_micros(draw(longest)));
            child.kill().and_then(|()| child.wait())
        };
        let ended = ended.map_err(|e| e.to_string())?;
        tally.may_lose_power(options)?;
        if ended.success() {
            return Ok(());
        }
        if ended.code().is_some() {
            return Err(format!("a restore ended with {ended}: {}", restore.said()));
        }
        let met = restore.met();
        *tally.losses.interrupted.entry(met).or_default() += 1;
        if restore.state.exists() {
            // It is complete then, and the same call would be refused. What is left beside it may be removed.
            return remove(&restore.state.with_file_name("state.fetched"));
        }
        if draw(4) == 0 {
            // The machine is lost once more.
            tally.losses.abandoned += 1;
            remove(&restore.state.with_file_name("state.fetched"))?;
            remove(&restore.state.with_file_name("state.unfinished"))?;
        }
    }
}

/// A restore of a machine.
struct Restore {
    arguments: Vec<String>,
    state: PathBuf,
    log: PathBuf,
}

impl Restore {
    fn new(options: &Options, backup: &JobBackup, machine: usize, parts: &[usize]) -> Self {
        let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
        let arguments = [
            ("--dir", options.dir.display().to_string()),
            ("--directories", options.directories.clone()),
            ("--process", machine.to_string()),
            ("--seed", options.seed.to_string()),
            ("--parts", parts.join(",")),
            ("--backup", backup.id.to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        let log = options.dir.join(format!("restore-{machine}.log"));
        let own = Options { process: machine, ..options.clone() };
        Self { arguments, state: own.own_dir().join("state"), log }
    }

    fn start(&self, dies: Option<u64>) -> Result<Child, String> {
        let failed = |e: io::Error| format!("a restore could not be started: {e}");
        let file = File::create(&self.log).map_err(failed)?;
        let errors = file.try_clone().map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("restore").args(&self.arguments);
        if let Some(skip) = dies {
            let failing = Failing { operation: Operation::Name, skip, after: 0 };
            command.args(["--failing", &failing.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().map_err(failed)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How far it had come, as what it left says.
    fn met(&self) -> &'static str {
        if self.state.exists() {
            "complete"
        } else if self.state.with_file_name("state.unfinished").exists() {
            "making the state"
        } else if self.state.with_file_name("state.fetched").exists() {
            "fetching"
        } else {
            "at its beginning"
        }
    }
}

impl Losses {
    /// Nothing was restored yet.
    pub fn restored_nothing(&self) -> bool {
        self.restores == 0
    }

    /// Takes note of what all processes of a run have said, when they have ended.
    pub fn heard(&mut self, processes: &Processes) -> Result<(), String> {
        let said = processes.each_said();
        // Nobody else is at work there, and nothing was put back from an image.
        if said.iter().any(|said| said.contains(REFUSED)) {
            return Err(format!("a job may not go on with its own backups\n{}", processes.said()));
        }
        let mut all = said.iter().map(|said| backed_up(said));
        let Some(first) = all.next() else { return Ok(()) };
        let whole = all.fold(first, |whole, of_one| whole.intersection(&of_one).copied().collect());
        self.takes_over &= whole.is_empty();
        self.backups += whole.len() as u64;
        self.newest = self.newest.max(whole.last().copied().unwrap_or(0));
        if said.iter().any(|said| said.contains("recovered to epoch")) {
            (self.settled, self.fresh) = (true, false);
        }
        Ok(())
    }

    /// A run that lost nothing, or restored nothing, shows nothing.
    pub fn check(&self) -> Result<(), String> {
        let Self { all, one, refused, ahead, anew, restores, abandoned, backups, .. } = self;
        let interrupted: u32 = self.interrupted.values().sum();
        let met = if interrupted == 0 { String::new() } else { told(&self.interrupted) };
        println!(
            "{all} times all machines were lost ({one} times first one of them, without which {refused} times the job did not \
             begin), {restores} restores, {interrupted} interrupted restores{met}, of which {abandoned} began anew; {anew} times no \
             backup was whole yet ({ahead} times the job said that the output is of another state); {backups} whole backups"
        );
        if *all == 0 || *restores == 0 {
            return Err(format!(
                "no machine was lost, or nothing was restored ({all} losses, {restores} restores), so that this shows nothing: more \
                 kills, or another seed"
            ));
        }
        Ok(())
    }
}

/// ` (3 fetching, 1 complete)`.
fn told(counts: &BTreeMap<&'static str, u32>) -> String {
    let each: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    format!(" ({})", each.join(", "))
}
