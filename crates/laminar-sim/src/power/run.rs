//! Several jobs at a time, each a process in a mount namespace of its own that makes recordings and cuts.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use laminar_storage::ids::Epoch;

use super::cut::{Cursor, stretches};
use super::judge::Fault;
use super::machine::{Place, check};
use super::recording::Recording;
use super::round::{Start, examine, keep, probe, record, try_one};
use super::tally::{Count, Tally};
use crate::dice::{Dice, mixed};

/// Power cuts in a row before the next recording begins with a new file system.
const DEPTH_MAX: u64 = 3;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An existing directory that the jobs cover with their own, each in its namespace.
    pub dir: PathBuf,
    /// Images to mount, about.
    pub mounts: u64,
    /// Of those, in each recording.
    pub per_recording: u64,
    /// Jobs at a time.
    pub jobs: u64,
    /// Decides everything but what kernel and threads do.
    pub seed: u64,
    /// The file system.
    pub kind: String,
    /// Its mount options; drawn from several when not given.
    pub options: Option<String>,
    /// More arguments for the program that makes it, between spaces.
    pub make: String,
    /// Where the recordings of findings are kept.
    pub keep: PathBuf,
    /// Says how far it is, this often.
    pub progress_every: Duration,
}

/// A power cut of a recording that was kept.
#[derive(Clone, Debug)]
pub struct Again {
    /// The recording.
    pub recording: PathBuf,
    /// Where its stretch begins.
    pub position: usize,
    /// Which part of it is kept.
    pub choice: u64,
}

/// The word for a job; its other arguments are those of [`job`].
pub const JOB: &str = "power-cut-job";

/// Runs all jobs; returns what they counted and what they found.
///
/// # Errors
/// It cannot run here.
pub fn power_cut(plan: &Plan) -> Result<(Tally, Vec<String>), String> {
    check(&plan.kind)?;
    let begin = Instant::now();
    let sum = Mutex::new((Tally::default(), Vec::new(), begin));
    let jobs = plan.jobs.max(1);
    let share = plan.mounts.div_ceil(jobs);
    let all = |job: u64| {
        let numbers = [mixed(plan.seed, job), share, plan.per_recording].map(|number| number.to_string());
        let mut arguments = numbers.to_vec();
        let options = plan.options.clone().unwrap_or_else(|| "?".into());
        arguments.extend([plan.kind.clone(), plan.make.clone(), options]);
        in_namespace(&plan.dir, &plan.keep, &arguments, |line| {
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            match line.split_once(' ') {
                Some(("tally", numbers)) => sum.0.add_all(&Tally::from_line(numbers).unwrap_or_default()),
                _ => sum.1.push(line.to_owned()),
            }
            if sum.2.elapsed() >= plan.progress_every {
                sum.2 = Instant::now();
                let (mounts, cuts) = (sum.0.get(Count::Mounts), sum.0.get(Count::Cuts));
                eprintln!("  {mounts} mounts at {cuts} cuts after {} s", begin.elapsed().as_secs());
            }
        })
    };
    let ends: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|job| scope.spawn(move || all(job))).collect();
        let end = |thread: ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        threads.into_iter().map(end).collect()
    });
    let (tally, mut findings, _) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    // A job that could not go on has not shown anything.
    findings.extend(ends.into_iter().filter_map(Result::err));
    Ok((tally, findings))
}

/// Makes one power cut again; what is wrong after it.
///
/// # Errors
/// It cannot run here.
pub fn again(dir: &Path, again: &Again) -> Result<Option<String>, String> {
    let loaded = load(&again.recording)?;
    check(&loaded.kind)?;
    let recording = again.recording.canonicalize().map_err(|e| e.to_string())?;
    let numbers = [again.position.to_string(), again.choice.to_string(), recording.display().to_string()];
    let mut said = Vec::new();
    in_namespace(dir, Path::new("-"), &numbers, |line| said.push(line.to_owned()))?;
    Ok((!said.is_empty()).then(|| said.join("\n")))
}

fn load(path: &Path) -> Result<Recording, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Recording::load(&mut BufReader::new(file)).map_err(|e| format!("{}: {e}", path.display()))
}

/// Runs a job where its mounts are seen by nobody else, and hears what it says.
fn in_namespace(
    dir: &Path,
    keep: &Path,
    arguments: &[String],
    mut hear: impl FnMut(&str),
) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .arg(JOB)
        .args([dir, keep])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("unshare: {e}"))?;
    let out = child.stdout.take().ok_or("no pipe")?;
    for line in BufReader::new(out).lines() {
        hear(&line.map_err(|e| e.to_string())?);
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("a job ended with {status}")) }
}

/// The entry of a job: `power-cut-job DIR KEEP …`. Each line that it says on standard output is a tally or a finding.
///
/// # Errors
/// What went wrong in it.
pub fn job(arguments: &[String]) -> Result<(), String> {
    end_with_parent();
    let usage = "not a job";
    let (dir, keep, rest) = match arguments {
        [dir, keep, rest @ ..] => (dir, Path::new(keep), rest),
        _ => return Err(usage.into()),
    };
    let number = |text: &String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    match rest {
        [position, choice, recording] => {
            let recording = load(Path::new(recording))?;
            let position = usize::try_from(number(position)?).map_err(|e| e.to_string())?;
            one(&Place::cover(Path::new(dir))?, &recording, position, number(choice)?)
        }
        [seed, mounts, per_recording, kind, make, options] => {
            let job = Job {
                seed: number(seed)?,
                mounts: number(mounts)?,
                per_recording: usize::try_from(number(per_recording)?).map_err(|e| e.to_string())?,
                kind,
                make,
                options: Some(options.as_str()).filter(|options| *options != "?"),
                keep,
            };
            job.run(&Place::cover(Path::new(dir))?)
        }
        _ => Err(usage.into()),
    }
}

/// The end of standard input is the end of the parent; the kernel takes the mounts away with the process.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::abort();
    });
}

fn one(place: &Place, recording: &Recording, position: usize, choice: u64) -> Result<(), String> {
    let all = stretches(recording);
    let stretch =
        all.iter().find(|stretch| stretch.begin == position).ok_or("no stretch begins at this position")?;
    let disk = Cursor::new(recording).image(stretch, choice);
    let (acknowledged, options) = (stretch.acknowledged, &recording.options);
    eprintln!("{stretch:?} of {} records, mounted with \"{options}\"", recording.records.len());
    match try_one(place, recording, &disk, acknowledged, &mut Tally::default()) {
        Ok(landed) => eprintln!("passed; acknowledged {acknowledged}, came back {landed:?}"),
        Err(fault) => println!("{fault:?}"),
    }
    Ok(())
}

struct Job<'a> {
    seed: u64,
    mounts: u64,
    per_recording: usize,
    kind: &'a str,
    make: &'a str,
    options: Option<&'a str>,
    keep: &'a Path,
}

impl Job<'_> {
    fn run(&self, place: &Place) -> Result<(), String> {
        let mut dice = Dice::new(self.seed);
        probe(place, self.fresh(place, &mut dice)?.blank)?;
        let (mut done, mut next, mut number) = (0, None::<Start>, 0u64);
        while done < self.mounts {
            let start = match next.take() {
                Some(start) if start.depth <= DEPTH_MAX => start,
                _ => self.fresh(place, &mut dice)?,
            };
            let mut tally = Tally::default();
            let found = match record(place, &start, &mut dice, &mut tally) {
                Ok(recording) => {
                    let left = usize::try_from(self.mounts - done).unwrap_or(usize::MAX);
                    match examine(place, &recording, self.per_recording.min(left), &mut dice, &mut tally) {
                        Ok(following) => {
                            next = following.map(|following| Start { depth: start.depth + 1, ..following });
                            None
                        }
                        Err(finding) => {
                            let name = format!("power-cut-{}-{number}.recording", self.seed);
                            let path = keep(&recording, self.keep, &name)?;
                            let (path, at, choice) = (path.display(), finding.position, finding.choice);
                            let (kind, options) = (&recording.kind, &recording.options);
                            Some(format!(
                                "laminar-sim power-cut --replay {path} --position {at} --choice {choice}  # {kind} \"{options}\": {}",
                                words(&finding.fault)
                            ))
                        }
                    }
                }
                Err(error) => Some(format!(
                    "while recording, {} \"{}\": {error}",
                    start.blank.kind, start.blank.options
                )),
            };
            tally.add(Count::Findings, u64::from(found.is_some()));
            println!("tally {}", tally.to_line());
            if let Some(found) = found {
                println!("{}", found.replace('\n', " "));
                return Ok(());
            }
            done += tally.get(Count::Mounts).max(1);
            number += 1;
        }
        Ok(())
    }

    /// A new file system of a kind that the dice choose.
    fn fresh(&self, place: &Place, dice: &mut Dice) -> Result<Start, String> {
        // Weaker and stronger than the default, which is each second one.
        let modes: &[&str] = match self.kind {
            "xfs" => &["nouuid"],
            _ => &["", "", "", "", "data=writeback", "data=journal", "noauto_da_alloc", "nodelalloc"],
        };
        let arguments: Vec<&str> = self.make.split_whitespace().collect();
        let drawn = modes.get(dice.index(modes.len())).copied().unwrap_or_default();
        let blank = Recording {
            truth: dice.draw(),
            floor: Epoch::ZERO,
            kind: self.kind.into(),
            options: self.options.unwrap_or(drawn).into(),
            base: place.make(self.kind, &arguments)?,
            records: Vec::new(),
        };
        Ok(Start { blank, expected: None, depth: 0 })
    }
}

fn words(fault: &Fault) -> String {
    match fault {
        Fault::Store(what) => what.clone(),
        Fault::Mount(what) => format!("the file system could not be mounted: {what}"),
        Fault::Harness(what) => format!("the harness: {what}"),
    }
}
