//! LaminarDB's laminar-storage, the published predecessor, in two versions. Its package has the name of ours, so that a
//! program of its own measures each version, with the same keys, values and steps.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Costs, Rows};
use crate::keys::PAYLOAD;
use crate::place::clear;
use crate::table::{Cell, Table};
use crate::{Error, Run, interrupt};

/// What a table says of it.
pub const NOTE: &str = "LaminarDB (0.13.1 and 0.18.5) is measured in a program of its own: its checkpoint merges its log into a map in memory, writes a file about that, and empties the log; its checkpoint with state is handed a snapshot of a map that the program has, whole, and making it and emptying the log are part of the time; it syncs its log, but the files of neither kind of checkpoint, of which it keeps the last three";

/// What a table says without it.
pub const NOT_MEASURED: &str = "the published predecessor, LaminarDB 0.13.1 and 0.18.5: cargo build --release --manifest-path crates/laminar-bench/predecessor/Cargo.toml, then --predecessor with predecessor and with predecessor-0-13 in crates/laminar-bench/predecessor/target/release";

impl Rows<'_> {
    /// Adds what the program measures.
    pub fn add_predecessor(&mut self, program: &Path) -> Result<(), Error> {
        let dir = self.run.place.fresh("peer")?;
        let (rounds, openings) = (self.run.size(3, 7), self.run.size(3, 5));
        let told = told_by(program, "state", &dir, &[self.keys, rounds, openings])?;
        let name = name(&told)?;
        self.told_of(&told["checkpoint"], &name, "checkpoint")?;
        self.told_of(&told["checkpoint_with_state"], &name, "checkpoint with state")?;
        let opening = opening(&told["log"]["opening"])?;
        self.opening_row(format!("{name}: from its log alone"), vec![opening]);
        clear(&dir)
    }

    /// Adds what it tells of one kind of checkpoint.
    fn told_of(&mut self, told: &Value, name: &str, what: &str) -> Result<(), Error> {
        let costs = Costs {
            time: time(told, "time_ns")?,
            written: number(told, "written_bytes")?,
            on_disk: number(told, "on_disk_bytes")?,
        };
        let (back, keys) = (number(told, "keys_that_come_back")?, self.keys);
        self.checkpoint_row(format!("{name}: {what}; {back} of {keys} keys come back from it"), &costs, None);
        if !told["opening"].is_null() {
            self.opening_row(format!("{name}: after its last {what}"), vec![opening(&told["opening"])?]);
        }
        Ok(())
    }
}

/// Adds what the program tells of puts until they are durable.
pub fn durable(run: &Run, program: &Path, table: &mut Table) -> Result<(), Error> {
    let dir = run.place.fresh("peer")?;
    let told = told_by(program, "durable", &dir, &[run.keys_or(1_000_000, 1_000_000), run.size(1, 5)])?;
    let name = name(&told)?;
    for row in told["rows"].as_array().ok_or("the predecessor's program does not tell rows")? {
        let (puts, threads) = (number(row, "puts")?, number(row, "threads")?);
        let (batches, seconds) = (number(row, "batches")? as f64, time(row, "time_ns")?.as_secs_f64());
        let (all, written) = (batches * puts as f64, number(row, "written_bytes")? as f64);
        let synced = if puts == 1 { "every put".to_owned() } else { format!("every {puts} puts") };
        table.row(vec![
            Cell::Text(format!("{name}, its log, synced {synced}")),
            Cell::Count(threads),
            Cell::Count((all / seconds) as u64),
            Cell::Number(written / all, 1),
            Cell::Number(written / all / PAYLOAD as f64, 3),
            Cell::None,
            Cell::Number(puts as f64, 0),
            Cell::Number(batches / seconds, 0),
            Cell::None,
        ]);
    }
    clear(&dir)
}

/// Runs it.
fn told_by(program: &Path, what: &str, dir: &Path, numbers: &[u64]) -> Result<Value, Error> {
    let child = Command::new(program)
        .arg(what)
        .arg(dir)
        .args(numbers.iter().map(u64::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let on_signal = interrupt::Killed::new(child.id());
    let output = child.wait_with_output()?;
    drop(on_signal);
    if !output.status.success() {
        return Err(format!("{} ended with {}", program.display(), output.status).into());
    }
    let told = serde_json::from_slice(&output.stdout);
    Ok(told.map_err(|error| format!("what {} told: {error}", program.display()))?)
}

fn name(told: &Value) -> Result<String, Error> {
    let version = told["version"].as_str().ok_or("the predecessor's program does not tell its version")?;
    Ok(format!("LaminarDB {version}"))
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
