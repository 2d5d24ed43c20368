//! LaminarDB's storage crate 0.18.5, the published predecessor, in a program of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Costs, Rows};
use crate::Error;
use crate::machine::disk_bytes;
use crate::place::clear;

/// What a table says with it.
pub const NOTE: &str = "LaminarDB's checkpoint is a description without the state, not synced, after which its log is emptied: nothing in it can be compared with the others; from its log, its changes are put into a map";

/// What a table says without it.
pub const NOT_MEASURED: &str = "the published predecessor, LaminarDB 0.18.5: cargo build --release --manifest-path crates/laminar-bench/predecessor/Cargo.toml, then --predecessor crates/laminar-bench/predecessor/target/release/laminar-bench-predecessor";

impl Rows<'_> {
    /// Adds the rows that `program` measures.
    pub fn predecessor(&mut self, program: &Path) -> Result<(), Error> {
        let dir = self.run.place.fresh("peer")?;
        let (rounds, openings) = (self.run.size(3, 7), self.run.size(3, 5));
        let output = Command::new(program)
            .arg(&dir)
            .args([self.keys.to_string(), rounds.to_string(), openings.to_string()])
            .output()
            .map_err(|error| format!("could not run {}: {error}", program.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        let told: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| told[name].as_u64().ok_or_else(|| format!("it does not tell {name}"));
        let time = Duration::from_nanos(number("checkpoint_ns")?);
        let on_disk = disk_bytes(&dir.join("checkpointed"));
        let costs = Costs { time, written: number("written")?, on_disk };
        let what = format!(
            "LaminarDB 0.18.5: checkpoint, from which {} of {} keys come back",
            number("came_back")?,
            self.keys
        );
        self.checkpoint_row(what, &costs, None);
        let all = Duration::from_nanos(number("from_log_ns")?);
        self.opening_row("LaminarDB 0.18.5: from its log alone, into a map".into(), vec![(all, all)]);
        clear(&dir)
    }
}
