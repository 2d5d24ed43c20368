//! The command line, which the programs of all versions have.

use std::num::ParseIntError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use crate::Error;
use crate::measure::Plan;
use crate::rates;

const USAGE: &str = "usage: predecessor state DIR KEYS ROUNDS OPENINGS
       predecessor durable DIR KEYS SECONDS
  DIR       directory for its stores, which it leaves there
  KEYS      keys of the state, of which one in 100 changes between two checkpoints
  ROUNDS    checkpoints that are measured
  OPENINGS  openings that are measured
  SECONDS   how long a rate is measured";

/// Measures this version.
pub fn main(version: &str) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match measured(&args) {
        Ok(mut figures) => {
            figures["version"] = version.into();
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("predecessor: {error}");
            ExitCode::from(2)
        }
    }
}

fn measured(args: &[String]) -> Result<Value, Error> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["state", dir, keys, rounds, openings] => {
            let plan = Plan {
                dir: PathBuf::from(dir),
                keys: number("KEYS", keys)?,
                rounds: number("ROUNDS", rounds)?,
                openings: number("OPENINGS", openings)?,
            };
            plan.measure()
        }
        ["durable", dir, keys, seconds] => {
            let time = Duration::from_secs(number("SECONDS", seconds)?);
            rates::measure(&PathBuf::from(dir), number("KEYS", keys)?, time)
        }
        _ => Err(USAGE.into()),
    }
}

/// Without any of what is counted there is no median.
fn number<T: FromStr<Err = ParseIntError> + Default + PartialEq>(name: &str, text: &str) -> Result<T, Error> {
    let number: T = text.parse().map_err(|error| format!("{name}: {error}"))?;
    if number == T::default() { Err(format!("{name} is at least 1").into()) } else { Ok(number) }
}
