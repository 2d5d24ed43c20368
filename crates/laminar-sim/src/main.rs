//! `laminar-sim`: runs scenarios on the simulated disk, and failures again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laminar_sim::registry::{AnyScenario, all, find, real};
use laminar_sim::{Distinct, FaultReport, Plan, Report, Sweep, Trail};
use laminar_storage::vfs::sim::{ImagePolicy, Profile};
use mimalloc::MiMalloc;

mod commands;
#[cfg(feature = "power-cut")]
mod power_cut;

/// Recoveries on the simulated disk allocate all the time, on all threads.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const USAGE: &str = "usage:
  laminar-sim list
  laminar-sim run    [NAME | --all] [--long] [--seed N] [--seeds N] [--profile posix|ext4] [--threads N]
                     [--bits N] [--random N] [--images N] [--depth N] [--nested N] [--one-in N]
                     [--for MINUTES] [--part I/N] [--seen FILE]
  laminar-sim faults [NAME | --all] [--seed N] [--images N] [--pairs N]
  laminar-sim faults NAME [--seed N] [--pairs N] --run N
  laminar-sim replay NAME SEED TRAIL
  laminar-sim real   NAME SEED DIRECTORY
--all: every scenario that has no mistake built in, as without a name. store-random-N: for any N.
--long: all selections of up to 12 pending items, three crashes deep, with millions of images.
--nested: images of crashes inside recoveries to spend on each depth; --one-in: of those one in so many.
--for: one seed after the other until the time is over, an equal share of it for every scenario.
--part: only the images of the I-th of N parts, for runs that share the work.
--seen: counts on from the distinct images in this file, if it is there, and leaves them all in it.
real: does what the scenario does on real files below an empty directory.
--pairs: runs with two faults, drawn from the seed, instead of every single one.
--run: of all these only that one, with its operations.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("laminar-sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything that was run passed.
fn run(arguments: &[String]) -> Result<bool, String> {
    let (command, rest) = arguments.split_first().ok_or(USAGE)?;
    match command.as_str() {
        "list" => {
            for entry in all() {
                let note = if entry.broken { "  (broken on purpose)" } else { "" };
                println!("{}{note}", entry.scenario.name());
            }
            Ok(true)
        }
        "run" => {
            let options = Options::parse(rest)?;
            let total = options.run_scenarios()?;
            Ok(total.failures.is_empty())
        }
        "faults" => {
            let options = Options::parse(rest)?;
            let mut total = FaultReport::default();
            for scenario in options.scenarios()? {
                let report = scenario.sweep_faults(options.seed, &options.sweep);
                println!("{}: {report}", scenario.name());
                for failure in report.failures.iter().take(options.plan.failures_max) {
                    println!("  {failure}");
                }
                report.traces.iter().for_each(|trace| print!("{trace}"));
                total.add(&report);
            }
            println!("all: {total}");
            Ok(total.failures.is_empty())
        }
        "replay" => {
            let [name, seed, trail] = rest else {
                return Err(USAGE.into());
            };
            let scenario = find(name)?;
            let seed = seed.parse().map_err(|e| format!("seed {seed}: {e}"))?;
            let trail: Trail = trail.parse()?;
            match scenario.replay(seed, &trail) {
                Ok(trace) => print!("passed\n{trace}"),
                Err(error) => {
                    println!("{error}");
                    return Ok(false);
                }
            }
            Ok(true)
        }
        "real" => {
            let [name, seed, directory] = rest else {
                return Err(USAGE.into());
            };
            let seed = seed.parse().map_err(|e| format!("seed {seed}: {e}"))?;
            find(name)?.run_real(seed, Path::new(directory)).map(|()| true)
        }
        "fuzz" => commands::fuzz(rest),
        "torture" => commands::torture(rest),
        "torture-child" => commands::torture_child(rest),
        #[cfg(feature = "power-cut")]
        "power-cut" => power_cut::power_cut(rest),
        #[cfg(feature = "power-cut")]
        laminar_sim::power::run::JOB => laminar_sim::power::run::job(rest).map(|()| true),
        #[cfg(not(feature = "power-cut"))]
        "power-cut" => Err("power-cut is in a build with --features power-cut".into()),
        _ => Err(format!("{USAGE}\n{}", commands::USAGE)),
    }
}

struct Options {
    name: Option<String>,
    seed: u64,
    seeds: u64,
    plan: Plan,
    seen: Option<PathBuf>,
    sweep: Sweep,
}

/// How often what was seen is saved before the end.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// A small plan, so that all scenarios together take a minute.
fn short() -> Plan {
    let policy = ImagePolicy { exhaustive_bits: 5, random: 8, torn_cuts: 1, ..ImagePolicy::default() };
    let nested_policy = ImagePolicy { exhaustive_bits: 3, random: 4, one_in: 8, ..policy.clone() };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Plan { policy, nested_policy, depth: 3, nested_images: 2_000, threads, ..Plan::default() }
}

/// Every selection of up to 12 pending items, and a million images at each depth of crashing.
fn long() -> Plan {
    let progress_every = Some(Duration::from_secs(30));
    let nested_policy = ImagePolicy { exhaustive_bits: 8, random: 32, ..ImagePolicy::default() };
    let policy = ImagePolicy::default();
    Plan { policy, nested_policy, nested_images: 1_000_000, progress_every, ..short() }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let plan = if arguments.iter().any(|a| a == "--long") { long() } else { short() };
        let mut options = Self { name: None, seed: 1, seeds: 1, plan, seen: None, sweep: Sweep::default() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                None => options.name = Some(argument.clone()),
                Some("long" | "all") => {}
                Some(flag) => options.set(flag, arguments.next().ok_or(USAGE)?)?,
            }
        }
        options.sweep.threads = options.plan.threads;
        Ok(options)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<(), String> {
        let bad = |e: &dyn std::fmt::Display| format!("--{flag} {value}: {e}");
        if flag == "profile" {
            let profile = match value {
                "posix" => Profile::PosixMinimal,
                "ext4" => Profile::Ext4Ordered,
                _ => return Err(bad(&"posix or ext4")),
            };
            (self.plan.policy.profile, self.plan.nested_policy.profile) = (profile, profile);
            return Ok(());
        }
        if flag == "part" {
            self.plan.part = value.parse().map_err(|e: String| bad(&e))?;
            return Ok(());
        }
        if flag == "seen" {
            self.seen = Some(value.into());
            return Ok(());
        }
        let value: u64 = value.parse().map_err(|e| bad(&e))?;
        let small = || u32::try_from(value).map_err(|e| bad(&e));
        match flag {
            "seed" => self.seed = value,
            "seeds" => self.seeds = value,
            "depth" => self.plan.depth = small()?,
            "bits" => self.plan.policy.exhaustive_bits = small()?,
            "random" => self.plan.policy.random = small()?,
            "nested" => self.plan.nested_images = value,
            "one-in" => self.plan.nested_policy.one_in = value,
            "threads" => self.plan.threads = small()? as usize,
            "images" => (self.plan.images_max, self.sweep.images_max) = (value, small()? as usize),
            "pairs" => self.sweep.pairs = value,
            "run" => self.sweep.only = Some(value),
            "for" => {
                let time = Duration::from_secs(value.saturating_mul(60));
                self.plan.until = Some(Instant::now().checked_add(time).ok_or("--for: too long")?);
                self.seeds = u64::MAX;
            }
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }

    /// Every scenario with every seed, until there are no more or the time is over.
    fn run_scenarios(&self) -> Result<Report, String> {
        let (start, mut total) = (Instant::now(), Report::default());
        let distinct = Arc::new(Distinct::default());
        if let Some(path) = self.seen.as_ref().filter(|path| path.exists()) {
            distinct.load(path).map_err(|e| format!("{}: {e}", path.display()))?;
            println!("before: {distinct}");
        }
        let mut saved = start;
        let plan = Plan { distinct: Some(Arc::clone(&distinct)), ..self.plan.clone() };
        let is_over = || plan.until.is_some_and(|until| Instant::now() >= until);
        let mut turns: Vec<_> =
            self.scenarios()?.into_iter().map(|s| (Duration::ZERO, self.seed, s)).collect();
        // Whose turn it is: of those with seeds left, the one that took the least time so far.
        let seeds = self.seeds();
        while let Some((spent, seed, scenario)) =
            turns.iter_mut().filter(|(_, seed, _)| seeds.contains(seed)).min_by_key(|(spent, ..)| *spent)
        {
            if is_over() {
                break;
            }
            let report = scenario.explore(*seed, &plan);
            *spent += report.elapsed;
            let cut = if is_over() { " (cut short: the time is over)" } else { "" };
            println!("{} {seed}: {report}{cut}", scenario.name());
            for failure in &report.failures {
                println!("  {failure}");
            }
            total.add(&report);
            *seed += 1;
            println!(
                "  so far {distinct}, {} failures, {} s",
                total.failures.len(),
                start.elapsed().as_secs()
            );
            if saved.elapsed() >= SAVE_EVERY {
                self.save(&distinct)?;
                saved = Instant::now();
            }
        }
        self.save(&distinct)?;
        println!("all: {total}");
        println!("all: {distinct}");
        Ok(total)
    }

    fn save(&self, distinct: &Distinct) -> Result<(), String> {
        let Some(path) = &self.seen else { return Ok(()) };
        distinct.save(path).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn seeds(&self) -> std::ops::Range<u64> {
        self.seed..self.seed.saturating_add(self.seeds)
    }

    fn scenarios(&self) -> Result<Vec<Box<dyn AnyScenario>>, String> {
        self.name.as_deref().map_or_else(|| Ok(real()), |name| Ok(vec![find(name)?]))
    }
}
