//! What is measured.

use std::collections::HashSet;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::bytes::{disk_bytes, written_bytes};
use crate::keys::{changed, key, value};
use crate::store::{Checkpoint, Map, Store, read_log, recovered};

pub struct Plan {
    pub dir: PathBuf,
    pub keys: u64,
    pub rounds: u32,
    pub openings: usize,
}

impl Plan {
    /// Everything, one after the other.
    pub fn measure(&self) -> Result<Value, Error> {
        fs::create_dir_all(&self.dir).map_err(|error| format!("{}: {error}", self.dir.display()))?;
        Ok(json!({
            "keys": self.keys,
            "rounds": self.rounds,
            "openings": self.openings,
            "checkpoint": self.checkpoints("checkpoint", Checkpoint::OfLog)?,
            "checkpoint_with_state": self.checkpoints("checkpoint-with-state", Checkpoint::WithState)?,
            "log": self.log("log")?,
        }))
    }

    /// Checkpoints of one kind, and what comes back from the last.
    fn checkpoints(&self, name: &str, kind: Checkpoint) -> Result<Value, Error> {
        eprintln!("predecessor: {name}");
        let dir = self.dir.join(name);
        let mut store = self.filled(&dir, kind)?;
        store.checkpoint()?;
        let mut taken = Vec::new();
        for round in 1..=self.rounds {
            store.put(changed(self.keys), round)?;
            let (started, before) = (Instant::now(), written_bytes()?);
            store.checkpoint()?;
            taken.push((started.elapsed(), written_bytes()? - before));
        }
        drop(store);
        let (time, written) = median(taken)?;
        let on_disk = disk_bytes(&dir);
        let came_back = self.right(&recovered(&dir)?, self.rounds);
        // There is nothing to open where something is missing.
        let opening = (came_back == self.keys).then(|| self.openings(|| recovered(&dir))).transpose()?;
        Ok(json!({
            "time_ns": nanos(time)?,
            "written_bytes": written,
            "on_disk_bytes": on_disk,
            "keys_that_come_back": came_back,
            "opening": opening,
        }))
    }

    /// A log of all keys, with no checkpoint.
    fn log(&self, name: &str) -> Result<Value, Error> {
        eprintln!("predecessor: {name}");
        let dir = self.dir.join(name);
        drop(self.filled(&dir, Checkpoint::OfLog)?);
        let came_back = self.right(&read_log(&dir)?, 0);
        if came_back != self.keys {
            return Err(format!("{came_back} of {} keys come back from the log", self.keys).into());
        }
        let opening = self.openings(|| read_log(&dir))?;
        Ok(json!({ "on_disk_bytes": disk_bytes(&dir), "opening": opening }))
    }

    fn filled(&self, dir: &Path, kind: Checkpoint) -> Result<Store, Error> {
        let mut store = Store::create(dir, kind)?;
        store.put(0..self.keys, 0)?;
        Ok(store)
    }

    /// Until the map is complete and the first value read, and until all are.
    fn openings(&self, open: impl Fn() -> Result<Map, Error>) -> Result<Value, Error> {
        let mut opened = Vec::new();
        for _ in 0..self.openings {
            let started = Instant::now();
            let map = open()?;
            if !map.contains_key(key(self.keys / 2).as_slice()) {
                return Err("a key is not there".into());
            }
            let first = started.elapsed();
            let there = map.values().filter(|value| !black_box(value).is_empty()).count() as u64;
            opened.push((started.elapsed(), first));
            if there != self.keys {
                return Err(format!("{there} keys, not {}", self.keys).into());
            }
        }
        let (all, first) = median(opened)?;
        Ok(json!({ "first_ns": nanos(first)?, "all_ns": nanos(all)? }))
    }

    /// How many keys have the value that they must have after the changes of this version.
    fn right(&self, map: &Map, version: u32) -> u64 {
        let changed: HashSet<u64> = changed(self.keys).collect();
        let is_right = |number: &u64| {
            let version = if changed.contains(number) { version } else { 0 };
            map.get(key(*number).as_slice()).is_some_and(|there| *there == value(*number, version))
        };
        (0..self.keys).filter(is_right).count() as u64
    }
}

fn median<T: Ord + Copy>(mut taken: Vec<T>) -> Result<T, Error> {
    taken.sort_unstable();
    Ok(*taken.get(taken.len() / 2).ok_or("nothing was measured")?)
}

fn nanos(time: Duration) -> Result<u64, Error> {
    Ok(u64::try_from(time.as_nanos())?)
}
