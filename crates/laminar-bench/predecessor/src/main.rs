//! What `laminar-bench peers` asks of the predecessor, LaminarDB's storage crate: a program of its own, because its package has
//! the name of ours. Prints one JSON object.
//!
//! It is used as its documentation says: changes are appended to the log of one core and synced; its coordinator makes
//! checkpoints of that; `recover_per_core` brings back what is there.

#[allow(dead_code, reason = "of what the other measurements need, too")]
#[path = "../../src/keys.rs"]
mod keys;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use laminar_storage::incremental::CheckpointConfig;
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, CoreWalWriter, PerCoreWalConfig, PerCoreWalManager, recover_per_core,
};

use crate::keys::{changed, key, value};

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let measured = match arguments.as_slice() {
        [dir, keys, rounds, openings] => measure(Path::new(dir), keys, rounds, openings),
        _ => Err("usage: laminar-bench-predecessor DIR KEYS ROUNDS OPENINGS".into()),
    };
    match measured {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("laminar-bench-predecessor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(dir: &Path, keys: &str, rounds: &str, openings: &str) -> Result<String, Error> {
    let (keys, rounds, openings) = (keys.parse()?, rounds.parse()?, openings.parse()?);
    let (time, written) = checkpoints(&dir.join("checkpointed"), keys, rounds)?;
    let came_back = recover(&dir.join("checkpointed"))?.len();
    let opening = from_its_log(&dir.join("logged"), keys, openings)?;
    Ok(format!(
        r#"{{"checkpoint_ns":{},"written":{written},"came_back":{came_back},"from_log_ns":{}}}"#,
        time.as_nanos(),
        opening.as_nanos()
    ))
}

/// The median of the checkpoints after one in a hundred keys changed, and what it wrote.
fn checkpoints(dir: &Path, keys: u64, rounds: u32) -> Result<(Duration, u64), Error> {
    let mut coordinator =
        CheckpointCoordinator::new(log(dir)?, CheckpointConfig::new(&dir.join("checkpoints")))?;
    put(coordinator.wal_manager_mut().writer(0), 0..keys, 0)?;
    coordinator.create_checkpoint(1)?;
    let mut taken = Vec::new();
    for round in 1..=rounds {
        put(coordinator.wal_manager_mut().writer(0), changed(keys), round)?;
        let (started, before) = (Instant::now(), written_bytes()?);
        coordinator.create_checkpoint(u64::from(round) + 1)?;
        taken.push((started.elapsed(), written_bytes()? - before));
    }
    taken.sort_unstable();
    Ok(taken.get(taken.len() / 2).copied().ok_or("no round")?)
}

/// The median time until a map has all that the log has.
fn from_its_log(dir: &Path, keys: u64, openings: usize) -> Result<Duration, Error> {
    put(log(dir)?.writer(0), 0..keys, 0)?;
    let mut taken = Vec::new();
    for _ in 0..openings {
        let started = Instant::now();
        let map = recover(dir)?;
        taken.push(started.elapsed());
        let (first, last) = (key(0), key(keys - 1));
        let right = |at: &[u8], number| map.get(at).is_some_and(|found| *found == value(number, 0));
        if map.len() as u64 != keys || !right(&first, 0) || !right(&last, keys - 1) {
            return Err(format!("{} of {keys} keys came back from the log", map.len()).into());
        }
    }
    taken.sort_unstable();
    Ok(taken.get(taken.len() / 2).copied().ok_or("no opening")?)
}

fn log(dir: &Path) -> Result<PerCoreWalManager, Error> {
    let log = dir.join("log");
    std::fs::create_dir_all(&log)?;
    Ok(PerCoreWalManager::new(PerCoreWalConfig::new(&log, 1))?)
}

/// Appends and syncs.
fn put(writer: &mut CoreWalWriter, numbers: impl Iterator<Item = u64>, version: u32) -> Result<(), Error> {
    for number in numbers {
        writer.append_put(&key(number), &value(number, version))?;
    }
    Ok(writer.sync()?)
}

/// Everything that comes back.
fn recover(dir: &Path) -> Result<HashMap<Vec<u8>, Vec<u8>>, Error> {
    let recovered = recover_per_core(&dir.join("log"), &dir.join("checkpoints"), 1)?;
    if recovered.base_state.state_snapshot.is_some() {
        return Err("its checkpoint has a state, which nobody here expected or reads".into());
    }
    let mut map = HashMap::new();
    for change in recovered.state_changes {
        match change.value {
            Some(value) => drop(map.insert(change.key, value)),
            None => drop(map.remove(&change.key)),
        }
    }
    Ok(map)
}

/// Bytes that this process has given the system to write.
fn written_bytes() -> Result<u64, Error> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(line.ok_or("no wchar in /proc/self/io")?.trim().parse()?)
}
