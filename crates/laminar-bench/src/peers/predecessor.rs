//! LaminarDB's laminar-storage 0.18.5, the published predecessor. Its package has the name of ours, so that a program of
//! its own measures it, with the same keys, values and steps.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Costs, Rows};
use crate::Error;
use crate::place::clear;

const NAME: &str = "LaminarDB 0.18.5";

/// What a table says of it.
pub const NOTE: &str = "LaminarDB 0.18.5 is measured in a program of its own: its checkpoint merges its log into a map in memory, writes a file about that, and empties the log; its checkpoint with state is handed a snapshot of a map that the program has, whole, and making it and emptying the log are part of the time; it syncs its log, but the files of neither kind of checkpoint, of which it keeps the last three";

/// What a table says without it.
pub const NOT_MEASURED: &str = "the published predecessor, LaminarDB 0.18.5: cargo build --release --manifest-path crates/laminar-bench/predecessor/Cargo.toml, then --predecessor crates/laminar-bench/predecessor/target/release/predecessor";

impl Rows<'_> {
    /// Adds what the program measures.
    pub fn add_predecessor(&mut self, program: &Path) -> Result<(), Error> {
        let dir = self.run.place.fresh("peer")?;
        let told = self.told_by(program, &dir)?;
        self.told_of(&told["checkpoint"], "checkpoint")?;
        self.told_of(&told["checkpoint_with_state"], "checkpoint with state")?;
        let opening = opening(&told["log"]["opening"])?;
        self.opening_row(format!("{NAME}: from its log alone"), vec![opening]);
        clear(&dir)
    }

    /// Runs it.
    fn told_by(&self, program: &Path, dir: &Path) -> Result<Value, Error> {
        let (rounds, openings) = (self.run.size(3, 7), self.run.size(3, 5));
        let output = Command::new(program)
            .arg(dir)
            .args([self.keys.to_string(), rounds.to_string(), openings.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        if !output.status.success() {
            return Err(format!("{} ended with {}", program.display(), output.status).into());
        }
        let told = serde_json::from_slice(&output.stdout);
        Ok(told.map_err(|error| format!("what {} told: {error}", program.display()))?)
    }

    /// Adds what it tells of one kind of checkpoint.
    fn told_of(&mut self, told: &Value, what: &str) -> Result<(), Error> {
        let costs = Costs {
            time: time(told, "time_ns")?,
            written: number(told, "written_bytes")?,
            on_disk: number(told, "on_disk_bytes")?,
        };
        let (back, keys) = (number(told, "keys_that_come_back")?, self.keys);
        self.checkpoint_row(format!("{NAME}: {what}; {back} of {keys} keys come back from it"), &costs, None);
        if !told["opening"].is_null() {
            self.opening_row(format!("{NAME}: after its last {what}"), vec![opening(&told["opening"])?]);
        }
        Ok(())
    }
}

/// Until the first value is read, and until all are.
fn opening(told: &Value) -> Result<(Duration, Duration), Error> {
    Ok((time(told, "first_ns")?, time(told, "all_ns")?))
}

fn time(told: &Value, name: &str) -> Result<Duration, Error> {
    Ok(Duration::from_nanos(number(told, name)?))
}

fn number(told: &Value, name: &str) -> Result<u64, Error> {
    Ok(told[name].as_u64().ok_or_else(|| format!("the predecessor's program does not tell {name}"))?)
}
