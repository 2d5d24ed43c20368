//! Real processes on the real file system, killed by SIGKILL at any moment of their lives, while they
//! open, write, make checkpoints and close; those that recover are killed, too. Whoever opens the
//! directory next must find exactly the state of an epoch, not older than any that was acknowledged.
//!
//! A kill is not a power cut: what was written stays in the page cache. The simulated disk is for that.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use laminar_storage::ids::Epoch;
use laminar_storage::{StateReader, Store, StoreError};

pub mod child;
pub mod truth;

use crate::dice::{Dice, mixed};
use crate::oracle::State;
use child::{Life, check_opened, settings};

/// Kills before a directory is closed, checked and replaced by an empty one.
const KILLS_PER_DIRECTORY: u64 = 60;

/// Between fork and exec a new process has every lock of this one. Nobody starts one while another
/// thread has a store open, which would seem locked for a moment after it was closed.
static FORKING: RwLock<()> = RwLock::new(());

/// When there was enough.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// After so many kills.
    Kills(u64),
    /// After so long: a soak.
    Time(Duration),
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kills(kills) => write!(f, "--kills {kills}"),
            Self::Time(time) => write!(f, "--for {}", time.as_secs().div_ceil(60)),
        }
    }
}

/// How far a run has come, over all workers.
#[derive(Debug)]
struct Progress {
    amount: Amount,
    start: Instant,
    kills: AtomicU64,
    failed: AtomicBool,
}

impl Progress {
    fn goes_on(&self) -> bool {
        let enough = match self.amount {
            Amount::Kills(kills) => self.kills.load(Ordering::Relaxed) >= kills,
            Amount::Time(time) => self.start.elapsed() >= time,
        };
        !enough && !self.failed.load(Ordering::Relaxed)
    }
}

/// How much, and of what.
#[derive(Clone, Debug)]
pub struct Torture {
    /// The program whose first argument `torture-child` is.
    pub program: PathBuf,
    /// Where the stores are; created when missing.
    pub dir: PathBuf,
    /// Processes to kill, or how long.
    pub amount: Amount,
    /// Numbers of cores to open with.
    pub cores: std::ops::RangeInclusive<usize>,
    /// Stores that are tortured at the same time.
    pub workers: u64,
    /// Decides everything but the exact moment.
    pub seed: u64,
    /// Says on standard error how far it is, this often.
    pub progress_every: Option<Duration>,
}

/// What was done and found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Processes killed, by what they were doing.
    pub kills: BTreeMap<&'static str, u64>,
    /// Of those, the ones killed while they recovered from a kill, by how many kills came right before.
    pub recoveries_killed: BTreeMap<u64, u64>,
    /// Processes that had ended before they could be killed.
    pub too_late: u64,
    /// Acknowledgements heard.
    pub acked: u64,
    /// States checked: by readers, by openings of the parent, and by children that went on.
    pub checked: [u64; 3],
    /// Openings with another number of cores than before.
    pub resharded: u64,
    /// Directories that lived from the first opening to the last.
    pub directories: u64,
    /// What went wrong, with the line that does the same again.
    pub findings: Vec<String>,
}

impl Report {
    /// Processes killed.
    #[must_use]
    pub fn killed(&self) -> u64 {
        self.kills.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (phase, count) in other.kills {
            *self.kills.entry(phase).or_default() += count;
        }
        for (depth, count) in other.recoveries_killed {
            *self.recoveries_killed.entry(depth).or_default() += count;
        }
        self.too_late += other.too_late;
        self.acked += other.acked;
        for (sum, count) in self.checked.iter_mut().zip(other.checked) {
            *sum += count;
        }
        self.resharded += other.resharded;
        self.directories += other.directories;
        self.findings.extend(other.findings);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [readers, openings, children] = self.checked;
        write!(
            f,
            "{} kills {:?}, of them in recovery after so many kills {:?}, {} too late; {} acknowledgements, states \
             checked by {readers} readers, {openings} openings and {children} children, {} openings with other \
             cores, {} directories, {} findings",
            self.killed(),
            self.kills,
            self.recoveries_killed,
            self.too_late,
            self.acked,
            self.resharded,
            self.directories,
            self.findings.len(),
        )
    }
}

/// Kills until there were enough or something is wrong.
pub fn torture(plan: &Torture) -> Report {
    let progress = Progress {
        amount: plan.amount,
        start: Instant::now(),
        kills: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let sum = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for worker in 0..plan.workers.max(1) {
            let (progress, sum) = (&progress, &sum);
            scope.spawn(move || {
                let mut directory = 0;
                // A guess, until one has been measured.
                let mut spans = (Duration::from_millis(60), Duration::from_millis(15));
                while progress.goes_on() {
                    let mut victim = Victim::new(plan, worker, directory, spans);
                    if let Err(error) = victim.suffer(progress) {
                        progress.failed.store(true, Ordering::Relaxed);
                        victim.report.findings.push(format!(
                            "laminar-sim torture {} --workers {} --cores {}..{} --seed {}  # {}: {error}",
                            plan.amount,
                            plan.workers,
                            plan.cores.start(),
                            plan.cores.end(),
                            plan.seed,
                            victim.dir.display(),
                        ));
                    }
                    spans = (victim.life, victim.opening);
                    sum.lock().unwrap_or_else(PoisonError::into_inner).add(victim.report);
                    directory += 1;
                }
            });
        }
        if let Some(every) = plan.progress_every {
            let progress = &progress;
            scope.spawn(move || say_how_far(progress, every));
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn say_how_far(progress: &Progress, every: Duration) {
    let mut said = Instant::now();
    while progress.goes_on() {
        std::thread::sleep(Duration::from_millis(50));
        if said.elapsed() >= every {
            said = Instant::now();
            let (kills, seconds) =
                (progress.kills.load(Ordering::Relaxed), progress.start.elapsed().as_secs());
            eprintln!("  {kills} kills after {seconds} s, of {}", progress.amount);
        }
    }
}

/// One directory and its processes.
struct Victim<'a> {
    plan: &'a Torture,
    dir: PathBuf,
    truth: u64,
    dice: Dice,
    cores: usize,
    acked: Epoch,
    /// Where the next opening must land, when nothing was written since somebody looked.
    expected: Option<Epoch>,
    /// How long a life takes, and its opening, when nobody kills it.
    life: Duration,
    opening: Duration,
    report: Report,
}

impl<'a> Victim<'a> {
    fn new(plan: &'a Torture, worker: u64, directory: u64, (life, opening): (Duration, Duration)) -> Self {
        let truth = mixed(plan.seed, worker << 32 | directory);
        Self {
            plan,
            dir: plan.dir.join(format!("store-{worker}-{directory}")),
            truth,
            dice: Dice::new(truth),
            cores: *plan.cores.start(),
            acked: Epoch::ZERO,
            expected: None,
            life,
            opening,
            report: Report::default(),
        }
    }

    fn suffer(&mut self, progress: &Progress) -> Result<(), String> {
        std::fs::create_dir_all(&self.plan.dir).map_err(|e| format!("{}: {e}", self.plan.dir.display()))?;
        let mut killed = 0;
        while killed < KILLS_PER_DIRECTORY && progress.goes_on() {
            if killed == KILLS_PER_DIRECTORY / 3 {
                self.measure()?;
            }
            // In one of three the process that recovers is killed, and in some of those the next one.
            let depth = 1 + u64::from(self.dice.one_in(3)) + u64::from(self.dice.one_in(9));
            self.choose_cores();
            for before in 0..depth {
                if self.kill_one(before)? {
                    killed += 1;
                    progress.kills.fetch_add(1, Ordering::Relaxed);
                    if !progress.goes_on() {
                        break;
                    }
                }
            }
            self.look()?;
            if self.dice.one_in(8) {
                self.open()?;
            }
        }
        self.look()?;
        self.open()?;
        std::fs::remove_dir_all(&self.dir).map_err(|e| format!("could not be removed: {e}"))?;
        self.report.directories += 1;
        Ok(())
    }

    fn choose_cores(&mut self) {
        if self.dice.one_in(6) {
            let (from, to) = (*self.plan.cores.start(), *self.plan.cores.end());
            let cores = from + self.dice.index(to.saturating_sub(from) + 1);
            self.report.resharded += u64::from(cores != self.cores);
            self.cores = cores;
        }
    }

    fn spawn(&mut self) -> Result<(Child, BufReader<std::process::ChildStdout>), String> {
        let life = Life {
            truth: self.truth,
            seed: self.dice.draw(),
            cores: self.cores,
            acked: self.acked,
            expected: self.expected,
            settings: 0,
        };
        let alone = FORKING.write().unwrap_or_else(PoisonError::into_inner);
        let mut child = Command::new(&self.plan.program)
            .arg("torture-child")
            .arg(&self.dir)
            .args(life.to_arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("could not start {}: {e}", self.plan.program.display()))?;
        drop(alone);
        let mut out = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut line = String::new();
        out.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.trim() == "start" { Ok((child, out)) } else { Err(self.last_words(child, &line)) }
    }

    fn last_words(&self, mut child: Child, said: &str) -> String {
        let mut text = String::new();
        // What cannot be read is not known.
        let _ = child.stderr.take().map(|mut err| err.read_to_string(&mut text));
        let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
        format!("a child with {} cores ended with {status} after {said:?}: {}", self.cores, text.trim())
    }

    /// A life that is not killed, to know how long one takes.
    fn measure(&mut self) -> Result<(), String> {
        let (child, mut out) = self.spawn()?;
        let start = Instant::now();
        let (mut said, mut line) = (String::new(), String::new());
        while out.read_line(&mut line).map_err(|e| e.to_string())? > 0 {
            if line.starts_with("open ") {
                self.opening = start.elapsed();
            }
            said.push_str(&line);
            line.clear();
        }
        self.life = start.elapsed();
        self.heard(&said);
        if said.contains("closed ") { self.wait(child) } else { Err(self.last_words(child, &said)) }
    }

    fn wait(&self, mut child: Child) -> Result<(), String> {
        child.wait().map(drop).map_err(|e| e.to_string())
    }

    /// Starts a process and kills it; `before` such kills came right before. False when it had ended.
    fn kill_one(&mut self, before: u64) -> Result<bool, String> {
        // A process that is to be killed while it recovers does not live longer than that.
        let span = if before > 0 { self.opening } else { self.life };
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let delay = Duration::from_micros(self.dice.roll(micros + micros / 16));
        let (mut child, mut out) = self.spawn()?;
        std::thread::sleep(delay);
        child.kill().map_err(|e| format!("kill: {e}"))?;
        let mut said = String::new();
        out.read_to_string(&mut said).map_err(|e| e.to_string())?;
        let phase = self.heard(&said);
        let status = child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            self.report.too_late += 1;
            return Ok(false);
        }
        if std::os::unix::process::ExitStatusExt::signal(&status) != Some(9) {
            return Err(self.last_words(child, &said));
        }
        *self.report.kills.entry(phase).or_default() += 1;
        if before > 0 && phase == OPENING {
            *self.report.recoveries_killed.entry(before).or_default() += 1;
        }
        Ok(true)
    }

    /// Takes note of what a child said, and returns what it was doing at last.
    fn heard(&mut self, said: &str) -> &'static str {
        let mut phase = OPENING;
        for line in said.lines() {
            let (word, number) = line.split_once(' ').unwrap_or((line, "0"));
            let epoch = Epoch(number.parse().unwrap_or_default());
            match word {
                "open" => self.report.checked[2] += 1,
                "ack" | "closed" => self.report.acked += 1,
                _ => {}
            }
            self.acked = self.acked.max(epoch);
            phase = match word {
                "checkpoint" => "in a checkpoint",
                "closing" => "closing",
                "closed" => "after closing",
                _ => "writing",
            };
            self.expected = None;
        }
        phase
    }

    /// Reads the store without opening it.
    fn look(&mut self) -> Result<(), String> {
        let reader = match StateReader::open(&self.dir) {
            Ok(reader) => reader,
            Err(StoreError::InvalidInput(_)) if self.acked == Epoch::ZERO => return Ok(()),
            Err(error) => return Err(format!("reader: {error}")),
        };
        let report = reader.report();
        let state: State = reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let epoch = report.recovery_point;
        truth::check(self.truth, (epoch, self.acked), &state, &report.source_offsets, report.watermark)
            .map_err(|e| format!("reader: {e}"))?;
        if self.expected.is_some_and(|expected| expected != epoch) {
            return Err(format!("WRONG: a reader saw {:?} and then {epoch}", self.expected));
        }
        self.expected = Some(epoch);
        self.report.checked[0] += 1;
        Ok(())
    }

    /// Opens the store here, and closes it, or leaves it as a killed process would.
    fn open(&mut self) -> Result<(), String> {
        self.choose_cores();
        let _nobody_forks = FORKING.read().unwrap_or_else(PoisonError::into_inner);
        let builder = Store::builder(&self.dir).cores(self.cores).settings(settings());
        let opened = builder.open().map_err(|e| format!("open with {} cores: {e}", self.cores))?;
        let landed = check_opened(&opened, self.truth, self.acked)?;
        if self.expected.is_some_and(|expected| expected != landed) {
            return Err(format!("WRONG: a reader saw {:?}, opening landed on {landed}", self.expected));
        }
        self.report.checked[1] += 1;
        (self.acked, self.expected) = (landed, Some(landed));
        if self.dice.one_in(2) {
            drop(opened.cores);
            opened.store.close().map_err(|e| format!("close: {e}"))?;
        }
        Ok(())
    }
}

const OPENING: &str = "opening";

/// The entry of a child: `torture-child DIR …`.
///
/// # Errors
/// What went wrong in it.
pub fn child_main(arguments: &[String]) -> Result<(), String> {
    let (dir, life) = arguments.split_first().ok_or("no directory")?;
    child::live(Path::new(dir), &Life::from_arguments(life)?)
}
