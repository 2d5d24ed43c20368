//! Starting, killing, and comparing.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use laminar_timely::EXIT_FAILED;

use crate::Options;
use crate::failing::{Failing, Operation};
#[cfg(feature = "object-store")]
use crate::lose::{self, Losses};
use crate::model::{lines, mix};
use crate::names::cut_the_power;
use crate::network::Network;
use crate::output::{compare, compare_uninterrupted, written};
use crate::phases::{BACKED_UP, Phase, copies};
use crate::processes::{Moment, Processes};

/// What a process says that closes.
const CLOSES: &str = "phase: while it closed";
/// And one that distributes a state.
const DISTRIBUTES: &str = "phase: while states were distributed";

/// What a drive came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u32,
    /// Kills before a process had said that it recovered.
    early: u32,
    recoveries: u32,
    pub starts: u32,
    /// Links that were cut, or processes that were stopped, for a moment only, and the job went on.
    outlived: u32,
    /// Processes that were stopped until the others had ended.
    outwaited: u32,
    /// Starts of processes that did not find each other: a port that another program took in between, or a machine that stood
    /// still for seconds.
    pub alone: u32,
    /// How far the process was that was hit.
    phases: BTreeMap<Phase, u32>,
    /// Hits while a backup was copied.
    copying: u32,
    /// The job has another size than before, and has not recovered in it yet.
    resized: bool,
    /// Kills that came when the job had ended already; it was started again then.
    late: u32,
    /// Of the kills, those of a process that had just changed a name.
    names_changed: u32,
    /// How often the power might have been cut, how often it was, and names that were lost then.
    chances: u32,
    /// Not the next time.
    pub keeps_power: bool,
    power_cuts: u32,
    names: u32,
    #[cfg(feature = "object-store")]
    pub losses: Losses,
}

pub fn drive(options: &Options) -> Result<(), String> {
    let own = options.dir.as_os_str().is_empty();
    let dir = if own {
        std::env::temp_dir().join(format!("timely-torture-{}", std::process::id()))
    } else {
        options.dir.clone()
    };
    let options = Options { dir: dir.clone(), ..options.clone() };
    let result = drive_in(&options);
    if own && result.is_ok() {
        let _ = fs::remove_dir_all(&dir);
    }
    result.map_err(|what| {
        let again = repeat(&options);
        format!("{what}\nDirectory: {}\nAgain (moments of kills differ): {again}", dir.display())
    })
}

fn repeat(options: &Options) -> String {
    let Options {
        processes,
        workers,
        kills,
        fault,
        directories,
        seed,
        epochs,
        events,
        keys,
        ahead,
        pause_us,
        stall_ms,
        opening_ms,
        lose,
        restore,
        backup_ms,
        ..
    } = options;
    let sizes: Vec<_> = options.sizes.iter().map(|(p, w)| format!("{p}x{w}")).collect();
    let sizes = if sizes.is_empty() { String::new() } else { format!(" --sizes {}", sizes.join(",")) };
    let mistake = &options.mistake;
    let mistake = if mistake.is_empty() { String::new() } else { format!(" --mistake {mistake}") };
    let lose = match lose {
        0 => String::new(),
        _ => format!(" --lose {lose} --restore {restore} --backup-ms {backup_ms}"),
    };
    format!(
        "timely-torture drive --processes {processes} --workers {workers}{sizes} --fault {fault} --directories {directories} --kills {kills} --seed {seed} \
         --epochs {epochs} --events {events} --keys {keys} --ahead {ahead} --pause-us {pause_us} --stall-ms {stall_ms} \
         --opening-ms {opening_ms}{lose}{mistake}"
    )
}

fn drive_in(options: &Options) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", options.dir.display());
    fs::create_dir_all(&options.dir).map_err(io)?;
    let sizes = [vec![(options.processes, options.workers)], options.sizes.clone()].concat();
    let mut tally = Tally::default();
    let mut random = options.seed;
    for (number, (processes, workers)) in sizes.iter().enumerate() {
        let part = |whole: u64| whole * (number as u64 + 1) / sizes.len() as u64;
        let kills = u32::try_from(part(u64::from(options.kills))).unwrap_or(u32::MAX);
        let stage = Options {
            processes: *processes,
            workers: *workers,
            until: part(options.epochs),
            ..options.clone()
        };
        #[cfg(feature = "object-store")]
        if let Some((before, _)) = number.checked_sub(1).and_then(|before| sizes.get(before)) {
            lose::before_another_size(&stage, *before, &mut tally, &mut random)?;
        }
        tally.resized = number > 0;
        run_stage(&stage, kills, &mut tally, &mut random)?;
        println!("{processes} x {workers}: done up to epoch {}, {tally:?}", stage.until);
    }
    // What has ended is durable.
    tally.lose_power(options, 0)?;
    let found = compare(options)?;
    if sizes.len() == 1 {
        compare_uninterrupted(options)?;
    }
    println!("{}", tally.told());
    #[cfg(feature = "object-store")]
    if options.lose > 0 {
        tally.losses.check()?;
    }
    let Tally { kills, early, recoveries, starts, outlived, outwaited, .. } = tally;
    if ["stop", "cut"].contains(&options.fault.as_str()) {
        println!(
            "{outlived} times for a moment only, and the job went on; {outwaited} stopped until the others had ended"
        );
    }
    println!(
        "{} kills, stops, cuts or failures of a disk ({early} before the recovery was over), {starts} starts of a process, {recoveries} recoveries; {found} lines, \
         0 missing, 0 twice, 0 besides",
        kills
    );
    Ok(())
}

/// Runs the job up to `options.until`, with kills on the way.
pub fn run_stage(options: &Options, kills: u32, tally: &mut Tally, random: &mut u64) -> Result<(), String> {
    let all: usize =
        lines(options.seed, options.until, options.events, options.keys).iter().map(String::len).sum();
    let cuts = options.fault == "cut" && options.processes > 1;
    let network = if cuts { Some(Network::new(options.processes)?) } else { None };
    let due = u64::from(kills.saturating_sub(tally.kills));
    loop {
        let mut draw = |below: u64| {
            *random = mix(*random);
            *random % below
        };
        let left = u64::from(kills.saturating_sub(tally.kills));
        if left > 0 && options.fault == "disk" {
            fail_a_disk(options, left, tally, &mut draw)?;
            continue;
        }
        if left > 0 && options.fault == "kill" && draw(4) == 0 {
            die_at_a_name(options, tally, &mut draw)?;
            continue;
        }
        let mut processes = Processes::start(options, network.as_ref(), None, tally)?;
        let moment = moment(options, left, due, all as u64, tally, &mut draw);
        if let Some(ended) = processes.wait_until(&moment, &options.dir)? {
            if ended_by_itself(&processes, &ended, tally)? && !tally.too_late(left, &moment) {
                return Ok(());
            }
            continue;
        }
        if let Moment::Says(..) = moment {
            thread::sleep(Duration::from_millis(draw(12)));
        }
        let victim = usize::try_from(draw(options.processes as u64)).unwrap_or(0);
        tally.hits(&processes, victim);
        let held = if options.processes > 1 && options.fault != "kill" {
            if hold(options, &mut processes, network.as_ref(), victim, draw(2) == 0, tally)? {
                continue;
            }
            true
        } else {
            processes.kill(victim)?;
            false
        };
        let ended = processes.wait_until(&Moment::Never, &options.dir)?.unwrap_or_default();
        let killed = Some(victim).filter(|_| !held);
        processes.ended_in_order(&ended, killed)?;
        if let Some(network) = &network {
            network.join(victim)?;
        }
        #[cfg(feature = "object-store")]
        lose::after_a_kill(options, &processes, tally, &mut draw)?;
    }
}

/// When the next process is killed.
fn moment(
    options: &Options,
    left: u64,
    due: u64,
    all: u64,
    tally: &Tally,
    draw: &mut impl FnMut(u64) -> u64,
) -> Moment {
    if left == 0 {
        return Moment::Never;
    }
    let drawn = draw(3);
    if drawn == 0 {
        return Moment::Early(Duration::from_millis(draw(150)));
    }
    // So that there is something left to do for every kill that is to come.
    let written = written(&options.dir);
    let bytes = written + draw(all.saturating_sub(written) / left + 1);
    if tally.was_restored() && drawn == 1 {
        return Moment::Says("is cut back to the backup", bytes);
    }
    // In the second half at the latest there is a backup that a loss can go back to.
    if options.lose > 0 && left * 2 <= due && tally.restored_nothing() {
        return Moment::Says(BACKED_UP, u64::MAX);
    }
    let kills = options.fault == "kill";
    if kills && tally.resized && drawn == 1 {
        return Moment::Says(DISTRIBUTES, bytes);
    }
    // The last ones when everything was sent already.
    if kills && left * 4 <= due {
        return Moment::Says(CLOSES, u64::MAX);
    }
    Moment::Output(bytes)
}

/// All processes ended before anything was done to them. Is the job done?
fn ended_by_itself(processes: &Processes, ended: &[ExitStatus], tally: &mut Tally) -> Result<bool, String> {
    tally.recoveries += 1;
    #[cfg(feature = "object-store")]
    tally.losses.heard(processes)?;
    if ended.iter().all(ExitStatus::success) {
        return Ok(true);
    }
    if processes.not_connected(ended, tally) {
        return Ok(false);
    }
    Err(format!("the processes ended with {ended:?}, and nobody killed them\n{}", processes.said()))
}

impl Tally {
    /// The power is cut in about one of two times, of machines on which nothing runs.
    pub fn may_lose_power(&mut self, options: &Options) -> Result<(), String> {
        self.chances += 1;
        if std::mem::take(&mut self.keeps_power) {
            return Ok(());
        }
        let random = mix(options.seed ^ mix(u64::from(self.chances)));
        if random.is_multiple_of(2) { self.lose_power(options, random / 2) } else { Ok(()) }
    }

    /// Names that are not durable are lost: some, or all.
    fn lose_power(&mut self, options: &Options, random: u64) -> Result<(), String> {
        self.power_cuts += 1;
        let forgets = options.mistake == "forget-synced-names";
        for dir in options.all_names() {
            self.names += cut_the_power(&dir, mix(random), random.is_multiple_of(2), forgets)?;
        }
        Ok(())
    }

    /// A process is about to be hit: takes note of how far it is.
    fn hits(&mut self, processes: &Processes, victim: usize) {
        let recovered = processes.said().contains("recovered to epoch");
        self.kills += 1;
        self.early += u32::from(!recovered);
        self.recoveries += u32::from(recovered);
        self.resized &= !recovered;
        let said = processes.said_of(victim);
        *self.phases.entry(Phase::of(&said)).or_default() += 1;
        self.copying += u32::from(copies(&said));
    }

    /// Whether the state was restored, and not recovered since.
    fn was_restored(&self) -> bool {
        #[cfg(feature = "object-store")]
        let fresh = self.losses.fresh;
        #[cfg(not(feature = "object-store"))]
        let fresh = false;
        fresh
    }

    /// Whether machines are lost, and none was restored so far.
    fn restored_nothing(&self) -> bool {
        #[cfg(feature = "object-store")]
        let nothing = self.losses.restored_nothing();
        #[cfg(not(feature = "object-store"))]
        let nothing = false;
        nothing
    }

    /// Whether a kill that was to come while the job closed came too late: then the job, which is done, is started once more.
    fn too_late(&mut self, left: u64, moment: &Moment) -> bool {
        let again = left > 0 && matches!(moment, Moment::Says(..)) && self.late < 10;
        self.late += u32::from(again);
        again
    }

    /// What processes did that were hit.
    fn told(&self) -> String {
        let each: Vec<_> =
            self.phases.iter().map(|(phase, hits)| format!("{hits} {}", phase.name())).collect();
        let copying = match self.copying {
            0 => String::new(),
            some => format!("; {some} of them while it copied a backup"),
        };
        format!(
            "the process that was hit: {}{copying}; {} had just changed a name; {} times the power was cut, and {} names lost",
            each.join(", "),
            self.names_changed,
            self.power_cuts,
            self.names
        )
    }
}

/// Stops a process, or cuts its link: for a moment, or until the others have ended. Did the job outlive it?
fn hold(
    options: &Options,
    processes: &mut Processes,
    network: Option<&Network>,
    victim: usize,
    for_a_moment: bool,
    tally: &mut Tally,
) -> Result<bool, String> {
    let set = |processes: &mut Processes, held: bool| match network {
        Some(network) if held => network.cut(victim),
        Some(network) => network.join(victim),
        None => processes.signal(victim, if held { "STOP" } else { "CONT" }),
    };
    set(processes, true)?;
    if for_a_moment {
        // For less than what counts as a stall.
        thread::sleep(Duration::from_millis(options.stall_ms / 8));
        // What was written until now says nothing. A job that has ended meanwhile has outlived nothing, but is done.
        let before = written(&options.dir);
        set(processes, false)?;
        if processes.wait_until(&Moment::Output(before + 1), &options.dir)?.is_none() {
            tally.outlived += 1;
            processes.kill_all();
            return Ok(true);
        }
    } else if network.is_none() {
        processes.wait_for_others(victim)?;
        tally.outwaited += 1;
        set(processes, false)?;
    }
    Ok(false)
}

/// Runs the job until a process dies at a moment that a time would seldom hit: it has changed a name and not synced the directory.
fn die_at_a_name(
    options: &Options,
    tally: &mut Tally,
    draw: &mut impl FnMut(u64) -> u64,
) -> Result<(), String> {
    // Most of what counts happens at the beginning.
    let most = [12, 40, 150][usize::try_from(draw(3)).unwrap_or(0)];
    let failing = Failing { operation: Operation::Name, skip: draw(most), after: 0 };
    let victim = usize::try_from(draw(options.processes as u64)).unwrap_or(0);
    let mut processes = Processes::start(options, None, Some((victim, failing)), tally)?;
    let ended = processes.wait_until(&Moment::Never, &options.dir)?.unwrap_or_default();
    if processes.not_connected(&ended, tally) {
        return Ok(());
    }
    tally.hits(&processes, victim);
    tally.names_changed += u32::from(ended.get(victim).is_some_and(|status| status.code().is_none()));
    processes.ended_in_order(&ended, Some(victim))?;
    #[cfg(feature = "object-store")]
    lose::after_a_kill(options, &processes, tally, draw)?;
    Ok(())
}

/// Runs the job until the disk of one process has failed, which it must say, and all have ended.
fn fail_a_disk(
    options: &Options,
    left: u64,
    tally: &mut Tally,
    draw: &mut impl FnMut(u64) -> u64,
) -> Result<(), String> {
    let number = tally.kills;
    let operation = if number.is_multiple_of(2) { Operation::Sync } else { Operation::Write };
    // Every third while the state is opened. The others early enough that there is something left to do for those to come.
    let share = options.until / (3 * (left + u64::from(number)));
    let after = if number % 3 == 2 { 0 } else { 1 + draw(share.max(1)) };
    let failing = Failing { operation, skip: draw(2), after };
    let victim = usize::try_from(draw(options.processes as u64)).unwrap_or(0);
    let mut processes = Processes::start(options, None, Some((victim, failing)), tally)?;
    let ended = processes.wait_until(&Moment::Never, &options.dir)?.unwrap_or_default();
    if processes.not_connected(&ended, tally) {
        return Ok(());
    }
    tally.hits(&processes, victim);
    processes.ended_in_order(&ended, None)?;
    let code = ended.get(victim).and_then(ExitStatus::code);
    let why = format!("(os error {})", operation.code());
    let said = processes.said_of(victim);
    let told = said.lines().any(|line| line.contains("could not ") && line.contains(&why));
    if code != Some(EXIT_FAILED) || !told {
        return Err(format!(
            "the disk of process {victim} failed ({failing}), and it ended with {code:?}, not with {EXIT_FAILED} and {why:?}\n{}",
            processes.said()
        ));
    }
    Ok(())
}
