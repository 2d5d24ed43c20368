//! The unavoidable work of a checkpoint, and of opening.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum};
use hashbrown::HashMap;

use super::changed;
use crate::keys::{PAYLOAD, key, value};
use crate::place::clear;
use crate::{Error, Run, recovery};

/// Records under one CRC.
const BLOCK: usize = 128;

pub struct Floor {
    pub checkpoint: Duration,
    /// What its file holds.
    pub bytes: u64,
    pub opening: Duration,
}

impl Floor {
    pub fn measure(run: &Run, keys: u64) -> Result<Self, Error> {
        let opening = recovery::plain_floor(run, keys)?;
        let mut state = HashMap::with_capacity(keys as usize);
        for number in 0..keys {
            state.insert(key(number), value(number, 0));
        }
        let mut dirty: Vec<[u8; crate::keys::KEY]> = changed(keys).map(key).collect();
        let dir = run.place.fresh("peer-floor")?;
        fs::create_dir_all(&dir)?;
        let (mut times, mut bytes) = (Vec::new(), 0);
        for round in 0..run.size(3, 7) {
            let started = Instant::now();
            dirty.sort_unstable();
            let mut out = Vec::with_capacity(dirty.len() * (PAYLOAD + 4));
            for block in dirty.chunks(BLOCK) {
                let start = out.len();
                for key in block {
                    out.extend_from_slice(key);
                    out.extend_from_slice(state.get(key).ok_or("a key is not there")?);
                }
                let crc = checksum(CrcAlgorithm::Crc32Iscsi, out.get(start..).unwrap_or_default()) as u32;
                out.extend_from_slice(&crc.to_le_bytes());
            }
            publish(&dir, round, &out)?;
            times.push(started.elapsed());
            bytes = out.len() as u64;
            // The next round finds them in no order.
            dirty.sort_unstable_by_key(|key| crate::keys::mix(u64::from(key[0]) ^ round));
        }
        clear(&dir)?;
        times.sort_unstable();
        Ok(Self { checkpoint: times.get(times.len() / 2).copied().unwrap_or_default(), bytes, opening })
    }
}

/// A directory with a file and a manifest, under a temporary name at first.
fn publish(dir: &Path, round: u64, bytes: &[u8]) -> Result<(), Error> {
    let (pending, final_name) = (dir.join("pending"), dir.join(format!("checkpoint-{round}")));
    fs::create_dir(&pending)?;
    for (name, bytes) in [("state", bytes), ("manifest", &[7; 256])] {
        let mut file = File::create(pending.join(name))?;
        file.write_all(bytes)?;
        file.sync_data()?;
    }
    File::open(&pending)?.sync_all()?;
    fs::rename(&pending, final_name)?;
    Ok(File::open(dir)?.sync_all()?)
}
