//! Starting, killing, and comparing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use laminar_timely::EXIT_FAILED;

use crate::failing::{Failing, Operation};
use crate::model::{lines, mix};
use crate::network::Network;
use crate::{ENDED, Options};

/// The longest that anything may take before it counts as hung. Far more than it takes.
const HUNG: Duration = Duration::from_secs(300);

/// What a drive came to.
#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    /// Kills before a process had said that it recovered.
    early: u32,
    recoveries: u32,
    starts: u32,
    /// Links that were cut, or processes that were stopped, for a moment only, and the job went on.
    outlived: u32,
    /// Processes that were stopped until the others had ended.
    outwaited: u32,
    /// Starts of processes that did not find each other: a port that another program took in between, or a machine that stood
    /// still for seconds.
    alone: u32,
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
        ..
    } = options;
    let sizes: Vec<_> = options.sizes.iter().map(|(p, w)| format!("{p}x{w}")).collect();
    let sizes = if sizes.is_empty() { String::new() } else { format!(" --sizes {}", sizes.join(",")) };
    let mistake = &options.mistake;
    let mistake = if mistake.is_empty() { String::new() } else { format!(" --mistake {mistake}") };
    format!(
        "timely-torture drive --processes {processes} --workers {workers}{sizes} --fault {fault} --directories {directories} --kills {kills} --seed {seed} \
         --epochs {epochs} --events {events} --keys {keys} --ahead {ahead} --pause-us {pause_us} --stall-ms {stall_ms} \
         --opening-ms {opening_ms}{mistake}"
    )
}

fn drive_in(options: &Options) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", options.dir.display());
    fs::create_dir_all(&options.dir).map_err(io)?;
    let sizes = [vec![(options.processes, options.workers)], options.sizes.clone()].concat();
    let mut tally = Tally::default();
    let mut random = options.seed;
    for (stage, (processes, workers)) in sizes.iter().enumerate() {
        let part = |whole: u64| whole * (stage as u64 + 1) / sizes.len() as u64;
        let kills = u32::try_from(part(u64::from(options.kills))).unwrap_or(u32::MAX);
        let stage = Options {
            processes: *processes,
            workers: *workers,
            until: part(options.epochs),
            ..options.clone()
        };
        run_stage(&stage, kills, &mut tally, &mut random)?;
        println!("{processes} x {workers}: done up to epoch {}, {tally:?}", stage.until);
    }
    let found = compare(options)?;
    if sizes.len() == 1 {
        compare_uninterrupted(options)?;
    }
    let Tally { kills, early, recoveries, starts, outlived, outwaited, alone: _ } = tally;
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

/// When a process is killed.
enum Moment {
    /// So long after the start, most likely before the recovery is over.
    Early(Duration),
    /// When there are so many bytes of output. Time would not do: one machine has written everything before another has begun.
    Output(u64),
    Never,
}

/// Runs the job up to `options.until`, with kills on the way.
fn run_stage(options: &Options, kills: u32, tally: &mut Tally, random: &mut u64) -> Result<(), String> {
    let all: usize =
        lines(options.seed, options.until, options.events, options.keys).iter().map(String::len).sum();
    let cuts = options.fault == "cut" && options.processes > 1;
    let network = if cuts { Some(Network::new(options.processes)?) } else { None };
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
        let mut processes = Processes::start(options, network.as_ref(), None, tally)?;
        let moment = if left == 0 {
            Moment::Never
        } else if draw(3) == 0 {
            Moment::Early(Duration::from_millis(draw(150)))
        } else {
            // So that there is something left to do for every kill that is to come.
            let written = written(&options.dir);
            Moment::Output(written + draw((all as u64).saturating_sub(written) / left + 1))
        };
        if let Some(ended) = processes.wait_until(&moment, &options.dir)? {
            tally.recoveries += 1;
            if ended.iter().all(ExitStatus::success) {
                return Ok(());
            }
            if processes.not_connected(&ended, tally) {
                continue;
            }
            return Err(format!(
                "the processes ended with {ended:?}, and nobody killed them\n{}",
                processes.said()
            ));
        }
        let victim = usize::try_from(draw(processes.children.len() as u64)).unwrap_or(0);
        let recovered = processes.said().contains("recovered to epoch");
        tally.kills += 1;
        tally.early += u32::from(!recovered);
        tally.recoveries += u32::from(recovered);
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
    let recovered = processes.said().contains("recovered to epoch");
    tally.kills += 1;
    tally.early += u32::from(!recovered);
    tally.recoveries += u32::from(recovered);
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

/// The processes of one run.
struct Processes {
    children: Vec<Child>,
    logs: Vec<PathBuf>,
}

impl Processes {
    fn start(
        options: &Options,
        network: Option<&Network>,
        failing: Option<(usize, Failing)>,
        tally: &mut Tally,
    ) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("a process could not be started: {e}");
        let program = std::env::current_exe().map_err(failed)?;
        // Free now; whoever takes one in between makes a process end, which is noticed.
        let listeners: Result<Vec<_>, _> =
            (0..options.processes).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let addresses: Result<Vec<_>, _> =
            listeners.map_err(failed)?.iter().map(TcpListener::local_addr).collect();
        let addresses = addresses.map_err(failed)?;
        let addresses = match network {
            Some(network) => network.addresses(),
            None => addresses.iter().map(ToString::to_string).collect(),
        };
        let mut all = Self { children: Vec::new(), logs: Vec::new() };
        for process in 0..options.processes {
            let log = options.dir.join(format!("process-{process}.log"));
            let file = File::create(&log).map_err(failed)?;
            let numbers = [
                ("--process", process as u64),
                ("--processes", options.processes as u64),
                ("--workers", options.workers as u64),
                ("--seed", options.seed),
                ("--events", options.events),
                ("--keys", options.keys),
                ("--ahead", options.ahead),
                ("--until", options.until),
                ("--stall-ms", options.stall_ms),
                ("--opening-ms", options.opening_ms),
                ("--pause-us", options.pause_us),
            ];
            let mut command =
                network.map_or_else(|| Command::new(&program), |network| network.command(process, &program));
            command.arg("worker").arg("--dir").arg(&options.dir).args(["--addresses", &addresses.join(",")]);
            command.args(["--directories", &options.directories]);
            command.args(numbers.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]));
            if !options.mistake.is_empty() {
                command.args(["--mistake", &options.mistake]);
            }
            if let Some((_, failing)) = failing.filter(|(victim, _)| *victim == process) {
                command.args(["--failing", &failing.to_string()]);
            }
            let errors = file.try_clone().map_err(failed)?;
            command.stdin(Stdio::null()).stdout(file).stderr(errors);
            all.children.push(command.spawn().map_err(failed)?);
            all.logs.push(log);
            tally.starts += 1;
        }
        Ok(all)
    }

    fn said(&self) -> String {
        let all = 0..self.logs.len();
        all.map(|process| format!("-- process {process} --\n{}", self.said_of(process))).collect()
    }

    fn said_of(&self, process: usize) -> String {
        self.logs.get(process).and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default()
    }

    /// Did they only not find each other? Not more than a few times.
    fn not_connected(&self, ended: &[ExitStatus], tally: &mut Tally) -> bool {
        let said = self.said();
        let unreached = said.contains("could not be reached in time") || said.contains("could not listen");
        let alone = unreached && ended.iter().any(|status| status.code() == Some(i32::from(ENDED)));
        tally.alone += u32::from(alone);
        alone && tally.alone <= 5
    }

    /// Did each of them end by itself, with success or because its part could not go on, but for one that was killed?
    fn ended_in_order(&self, ended: &[ExitStatus], killed: Option<usize>) -> Result<(), String> {
        for (process, status) in ended.iter().enumerate() {
            let fine = killed == Some(process)
                || status.success()
                || [Some(EXIT_FAILED), Some(i32::from(ENDED))].contains(&status.code());
            if !fine {
                return Err(format!("process {process} ended with {status}\n{}", self.said()));
            }
        }
        Ok(())
    }

    fn kill(&mut self, process: usize) -> Result<(), String> {
        let child = self.children.get_mut(process).ok_or("no such process")?;
        child.kill().map_err(|e| format!("process {process} could not be killed: {e}"))
    }

    fn signal(&mut self, process: usize, signal: &str) -> Result<(), String> {
        let child = self.children.get_mut(process).ok_or("no such process")?;
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Ok(());
        }
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("process {process} did not get SIG{signal}: {other:?}")),
        }
    }

    /// Until all but this one have ended.
    fn wait_for_others(&mut self, process: usize) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let mut running = 0;
            for (other, child) in self.children.iter_mut().enumerate() {
                let runs = child.try_wait().map_err(|e| e.to_string())?.is_none();
                running += usize::from(runs && other != process);
            }
            if running == 0 {
                return Ok(());
            }
            if started.elapsed() >= HUNG {
                self.kill_all();
                return Err(format!(
                    "a process went on for {HUNG:?} without process {process}\n{}",
                    self.said()
                ));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill_all(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How all of them ended; none when the moment came before. An error when neither happens.
    fn wait_until(&mut self, moment: &Moment, dir: &Path) -> Result<Option<Vec<ExitStatus>>, String> {
        let started = Instant::now();
        loop {
            let mut ended = Vec::new();
            for child in &mut self.children {
                ended.extend(child.try_wait().map_err(|e| e.to_string())?);
            }
            if ended.len() == self.children.len() {
                return Ok(Some(ended));
            }
            let has_come = match moment {
                Moment::Early(after) => started.elapsed() >= *after,
                Moment::Output(bytes) => written(dir) >= *bytes,
                Moment::Never => false,
            };
            if has_come {
                return Ok(None);
            }
            if started.elapsed() >= HUNG {
                self.kill_all();
                return Err(format!("a process went on for {HUNG:?}\n{}", self.said()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// The directories of output, with the names of their sinks: one, or one for each process that there ever was.
fn output_dirs(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let machine = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("machine-");
    let machines = entries.filter(machine).map(|entry| entry.path());
    let all: Vec<_> = machines.chain([dir.to_path_buf()]).collect();
    let names = ["rows", "digits", "windows"];
    let dirs = names.into_iter().flat_map(|name| all.iter().map(move |at| (name, at.join("out").join(name))));
    dirs.filter(|(_, dir)| dir.is_dir()).collect()
}

/// Bytes of output that are there.
fn written(dir: &Path) -> u64 {
    let files = output_dirs(dir).into_iter().filter_map(|(_, dir)| fs::read_dir(dir).ok()).flatten();
    files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// All files of rows below the output, by name. Those of several directories have different parts in their names.
fn outputs(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut files = BTreeMap::new();
    for (name, dir) in output_dirs(dir) {
        for entry in fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "rows") {
                let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let key = format!("{name}/{}", path.file_name().unwrap_or_default().display());
                if files.insert(key.clone(), text).is_some() {
                    return Err(format!("there are two files {key}"));
                }
            }
        }
    }
    Ok(files)
}

/// Compares all lines with those of the model; returns how many there are.
fn compare(options: &Options) -> Result<usize, String> {
    let files = outputs(&options.dir)?;
    let mut found: Vec<_> = files.values().flat_map(|text| text.split_inclusive('\n')).collect();
    found.sort_unstable();
    let expected = lines(options.seed, options.epochs, options.events, options.keys);
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    expected.iter().for_each(|line| *counts.entry(line).or_default() -= 1);
    found.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let missing: i64 = counts.values().filter(|count| **count < 0).sum();
    let known: std::collections::BTreeSet<_> = expected.iter().map(String::as_str).collect();
    let more = counts.iter().filter(|(_, count)| **count > 0);
    let (twice, besides): (Vec<_>, Vec<_>) = more.partition(|(line, _)| known.contains(**line));
    if missing == 0 && twice.is_empty() && besides.is_empty() {
        return Ok(found.len());
    }
    let example = |lines: &[(&&str, &i64)]| lines.first().map(|(line, _)| line.trim_end().to_owned());
    Err(format!(
        "{} lines missing, {} twice (such as {:?}), {} besides (such as {:?}), of {}",
        -missing,
        twice.len(),
        example(&twice),
        besides.len(),
        example(&besides),
        expected.len()
    ))
}

/// Runs the job once more, elsewhere and without kills: every file must have the same bytes.
fn compare_uninterrupted(options: &Options) -> Result<(), String> {
    let dir = options.dir.join("uninterrupted");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let quiet = Options {
        dir: dir.clone(),
        until: options.epochs,
        pause_us: 0,
        mistake: String::new(),
        ..options.clone()
    };
    run_stage(&quiet, 0, &mut Tally::default(), &mut 0)?;
    let (killed, quiet) = (outputs(&options.dir)?, outputs(&dir)?);
    let differ: Vec<_> =
        quiet.iter().filter(|(name, text)| killed.get(*name) != Some(text)).map(|(name, _)| name).collect();
    if differ.is_empty() && killed.len() == quiet.len() {
        return Ok(());
    }
    Err(format!("these files differ from those of a run without kills: {differ:?}"))
}
