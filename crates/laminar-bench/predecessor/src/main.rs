//! Measures the published predecessor, LaminarDB's laminar-storage 0.18.5, with the keys, the values and the steps
//! that `laminar-bench peers` has for other stores, and tells the figures in one line of JSON.

#[path = "../../src/bytes.rs"]
mod bytes;
#[path = "../../src/keys.rs"]
#[allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "laminar-bench needs all of it, and allows that"
)]
mod keys;
mod measure;
mod store;

use std::num::ParseIntError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use crate::measure::Plan;

/// Whatever stops a run.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "usage: predecessor DIR KEYS ROUNDS OPENINGS
  DIR       directory for its stores, which it leaves there
  KEYS      keys of the state, of which one in 100 changes between two checkpoints
  ROUNDS    checkpoints that are measured
  OPENINGS  openings that are measured";

fn main() -> ExitCode {
    match plan().and_then(|plan| plan.measure()) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("predecessor: {error}");
            ExitCode::from(2)
        }
    }
}

fn plan() -> Result<Plan, Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, keys, rounds, openings] = args.as_slice() else { return Err(USAGE.into()) };
    let plan = Plan {
        dir: PathBuf::from(dir),
        keys: number("KEYS", keys)?,
        rounds: number("ROUNDS", rounds)?,
        openings: number("OPENINGS", openings)?,
    };
    // Without any of them there is no median.
    if plan.keys == 0 || plan.rounds == 0 || plan.openings == 0 {
        return Err("KEYS, ROUNDS and OPENINGS are at least 1".into());
    }
    Ok(plan)
}

fn number<T: FromStr<Err = ParseIntError>>(name: &str, text: &str) -> Result<T, Error> {
    Ok(text.parse().map_err(|error| format!("{name}: {error}"))?)
}
