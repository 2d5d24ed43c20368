//! raft-engine, TiKV's log: a batch of keys and values, written and synced together.

use std::path::Path;

use raft_engine::{Config, Engine, LogBatch};

use super::Logged;
use crate::Error;
use crate::keys::{Stamp, key};

/// The raft group that all keys are in.
const GROUP: u64 = 1;

/// Puts in a batch while it is filled.
const FILLED: usize = 16_384;

pub struct Raft {
    engine: Engine,
    batch: LogBatch,
}

impl Logged for Raft {
    const NAME: &'static str = "raft-engine";
    const KEEPS_STATE: bool = true;

    fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.to_str().ok_or("raft-engine takes paths in UTF-8 only")?.to_owned();
        let engine = Engine::open(Config { dir, ..Config::default() })?;
        Ok(Self { engine, batch: LogBatch::default() })
    }

    fn put(&mut self, numbers: &[u32], stamp: &mut Stamp) -> Result<(), Error> {
        for part in numbers.chunks(FILLED) {
            for (number, at) in part.iter().zip(0..) {
                self.batch.put(GROUP, key(u64::from(*number)).to_vec(), stamp.at(at).to_vec())?;
            }
            // It is empty afterwards. Without an entry in it, it would not be synced, whatever it is asked.
            self.engine.write(&mut self.batch, true)?;
        }
        Ok(())
    }

    fn close(self) -> Result<(), Error> {
        Ok(())
    }
}
