//! `laminar-sim`: runs scenarios on the simulated disk, and failures again.

use std::process::ExitCode;

use laminar_sim::registry::{AnyScenario, all, find, real};
use laminar_sim::{Plan, Trail};

const USAGE: &str = "usage:
  laminar-sim list
  laminar-sim run [NAME] [--seed N] [--depth N] [--bits N] [--nested-every N] [--nested-kills-every N]
                   [--threads N] [--images N]
  laminar-sim faults [NAME] [--seed N] [--bits N]
  laminar-sim replay NAME SEED TRAIL
without NAME: every scenario that has no mistake built in";

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
            let mut passed = true;
            for scenario in options.scenarios()? {
                let report = scenario.explore(options.seed, &options.plan);
                println!("{}: {report}", scenario.name());
                for failure in &report.failures {
                    println!("  {failure}");
                    passed = false;
                }
            }
            Ok(passed)
        }
        "faults" => {
            let options = Options::parse(rest)?;
            let mut passed = true;
            for scenario in options.scenarios()? {
                let report = scenario.sweep_faults(options.seed, &options.plan.policy);
                println!("{}: {report}", scenario.name());
                for failure in report.failures.iter().take(options.plan.failures_max) {
                    println!("  {failure}");
                    passed = false;
                }
            }
            Ok(passed)
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
        _ => Err(USAGE.into()),
    }
}

struct Options {
    name: Option<String>,
    seed: u64,
    plan: Plan,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self { name: None, seed: 1, plan: Plan::default() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--") else {
                options.name = Some(argument.clone());
                continue;
            };
            let value = arguments.next().ok_or(USAGE)?;
            let value: u64 = value.parse().map_err(|e| format!("--{flag} {value}: {e}"))?;
            let small = || u32::try_from(value).map_err(|e| format!("--{flag} {value}: {e}"));
            match flag {
                "seed" => options.seed = value,
                "depth" => options.plan.depth = small()?,
                "bits" => options.plan.policy.exhaustive_bits = small()?,
                "nested-kills-every" => options.plan.nested_kills_every = value,
                "nested-every" => options.plan.nested_every = value,
                "threads" => options.plan.threads = small()? as usize,
                "images" => options.plan.images_max = value,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }

    fn scenarios(&self) -> Result<Vec<Box<dyn AnyScenario>>, String> {
        match &self.name {
            Some(name) => Ok(vec![find(name)?]),
            None => Ok(real()),
        }
    }
}
