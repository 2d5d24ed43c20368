//! RocksDB.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, IteratorMode, Options, WriteBatch};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::Error;
use crate::keys::{key, value};

pub struct Rocks {
    database: DB,
    /// Something was put since it was opened.
    put: bool,
}

/// Puts in a batch.
const BATCH: usize = 1024;

/// What a table says of opening it.
pub const NOTE: &str = "RocksDB was put into with one memtable of 1 GiB, and replays its log into memtables of 16 MiB, which it writes out as they fill: with keys in no order one of 1 GiB takes longer, also where it is not written out then (avoid_flush_during_recovery)";

/// Bytes of a memtable while puts are measured, so that the log of all that is put here can be one memtable's.
const ONE_MEMTABLE: usize = 1 << 30;
/// Bytes of a memtable while the log is replayed. Keys in no order cost reads from memory in a large one, 2.5 times
/// as much processor time with a million keys as in small ones that are written out as they fill.
const REPLAYED: usize = 16 << 20;

/// Opens it, as quickly as was found.
pub fn open(dir: &Path) -> Result<DB, Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(REPLAYED);
    options.set_max_background_jobs(2);
    Ok(DB::open(&options, dir.join("rocks"))?)
}

/// From here on all that is put stays in one memtable.
pub fn one_memtable(database: &DB) -> Result<(), Error> {
    Ok(database.set_options(&[("write_buffer_size", &ONE_MEMTABLE.to_string())])?)
}

/// Where the next checkpoint goes.
fn next_checkpoint(dir: &Path) -> PathBuf {
    let mut number = 1;
    loop {
        let target = dir.join(format!("checkpoint-{number}"));
        if !target.exists() {
            return target;
        }
        number += 1;
    }
}

impl Peer for Rocks {
    const NAME: &'static str = "RocksDB";
    const CHECKPOINT: Option<&'static str> = Some("checkpoint: memtable flushed, files linked");
    const LOG: Option<&'static str> = Some("from its log alone, tables of 16 MiB written out meanwhile");

    fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { database: open(dir)?, put: false })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        // Not when it is opened, the time of which is measured.
        if !self.put {
            one_memtable(&self.database)?;
            self.put = true;
        }
        let numbers: Vec<u64> = numbers.collect();
        for part in numbers.chunks(BATCH) {
            let mut batch = WriteBatch::default();
            for number in part {
                batch.put(key(*number), value(*number, version));
            }
            self.database.write(batch)?;
        }
        Ok(self.database.flush_wal(true)?)
    }

    fn checkpoint(&mut self, dir: &Path) -> Result<(), Error> {
        Ok(Checkpoint::new(&self.database)?.create_checkpoint(next_checkpoint(dir))?)
    }

    fn stall(&mut self, dir: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error> {
        let target = next_checkpoint(dir);
        let database = &self.database;
        let put = |number| Ok(database.put(key(number), value(number, 0))?);
        let checkpoint = || Ok(Checkpoint::new(database)?.create_checkpoint(target)?);
        writer.beside(quiet, put, checkpoint).map(Some)
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        Ok(self.database.get_pinned(key(number))?.is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        let mut there = 0;
        for row in self.database.iterator(IteratorMode::Start) {
            there += u64::from(!row?.1.is_empty());
        }
        Ok(there)
    }

    fn close(self) -> Result<(), Error> {
        Ok(())
    }
}
