//! The unavoidable work of a checkpoint: gather the changed records, put a checksum over every block, and make
//! file, manifest and names durable. Every table with a floor of checkpoints has this one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum};

use crate::bytes::disk_bytes;
use crate::keys::{PAYLOAD, key, value};
use crate::place::clear;
use crate::{Error, Run};

/// What a table says of it.
pub const NOTE: &str = "floor: the same records copied from one vector in the order of the keys' numbers, CRC-32C per 32 KiB, one file, one manifest, both synced, renamed, two directories synced; nothing is read back or removed";

/// Bytes per checksum, as in a state file.
const BLOCK: usize = 32 << 10;
/// What a record has beside key and value in a state file.
const RECORD_HEADER: usize = 6;

/// All records, and the directory that the checkpoints are made in.
pub struct Floor {
    dir: PathBuf,
    records: Vec<u8>,
    made: u64,
}

/// What one checkpoint came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    pub time: Duration,
    /// What its files hold.
    pub bytes: u64,
}

impl Floor {
    pub fn new(run: &Run, keys: u64) -> Result<Self, Error> {
        let dir = run.place.fresh("floor")?;
        fs::create_dir(&dir)?;
        let records = (0..keys).flat_map(|n| key(n).into_iter().chain(value(n, 0))).collect();
        Ok(Self { dir, records, made: 0 })
    }

    pub fn checkpoint(&mut self, changed: &[u64]) -> Result<Made, Error> {
        self.made += 1;
        let (unfinished, name) =
            (self.dir.join("unfinished"), self.dir.join(format!("checkpoint-{}", self.made)));
        let started = Instant::now();
        fs::create_dir(&unfinished)?;
        let blocks = self.write_state(&unfinished.join("state"), changed)?;
        let mut manifest = File::create_new(unfinished.join("manifest"))?;
        write!(manifest, "{{\"records\":{},\"blocks\":{blocks}}}", changed.len())?;
        manifest.sync_data()?;
        sync_dir(&unfinished)?;
        fs::rename(&unfinished, &name)?;
        sync_dir(&self.dir)?;
        let time = started.elapsed();
        let made = Made { time, bytes: disk_bytes(&name) };
        // As much as the store keeps.
        if let Some(old) = self.made.checked_sub(3) {
            fs::remove_dir_all(self.dir.join(format!("checkpoint-{old}"))).or_else(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            })?;
        }
        Ok(made)
    }

    /// The records and the checksums of their blocks, synced; returns how many blocks there are.
    fn write_state(&self, path: &Path, changed: &[u64]) -> Result<usize, Error> {
        let mut file = File::create_new(path)?;
        let (mut block, mut out, mut crcs) = (Vec::with_capacity(BLOCK * 2), Vec::new(), Vec::new());
        for number in changed {
            let at = *number as usize * PAYLOAD;
            block.extend_from_slice(&[0; RECORD_HEADER]);
            block.extend_from_slice(self.records.get(at..at + PAYLOAD).unwrap_or_default());
            if block.len() >= BLOCK {
                crcs.push(checksum(CrcAlgorithm::Crc32Iscsi, &block) as u32);
                out.append(&mut block);
            }
            if out.len() >= 8 * BLOCK {
                file.write_all(&out)?;
                out.clear();
            }
        }
        crcs.push(checksum(CrcAlgorithm::Crc32Iscsi, &block) as u32);
        out.append(&mut block);
        out.extend(crcs.iter().flat_map(|crc| crc.to_le_bytes()));
        file.write_all(&out)?;
        file.sync_data()?;
        Ok(crcs.len())
    }

    /// Removes what was made.
    pub fn clear(self) -> Result<(), Error> {
        clear(&self.dir)
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    Ok(File::open(dir)?.sync_all()?)
}
