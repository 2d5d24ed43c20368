//! LMDB.

use std::path::Path;
use std::time::{Duration, Instant};

use lmdb::{Cursor, Database, Environment, Error as LmdbError, RwTransaction, Transaction, WriteFlags};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::Error;
use crate::keys::{key, value};

/// Addresses reserved for its file, which is only as large as it must be.
const MAP: usize = 64 << 30;

pub struct Lmdb {
    env: Environment,
    state: Database,
    /// Changes that the next commit makes durable.
    pending: Vec<(u64, u32)>,
}

/// LMDB in a directory, and the keys in it.
pub fn open(dir: &Path) -> Result<(Environment, Database), Error> {
    let dir = dir.join("lmdb");
    std::fs::create_dir_all(&dir)?;
    let env = Environment::new().set_map_size(MAP).open(&dir)?;
    let state = env.open_db(None)?;
    Ok((env, state))
}

impl Lmdb {
    /// A transaction with all changes in it.
    fn with_changes(&mut self) -> Result<RwTransaction<'_>, Error> {
        let mut transaction = self.env.begin_rw_txn()?;
        for (number, version) in self.pending.drain(..) {
            transaction.put(self.state, &key(number), &value(number, version), WriteFlags::empty())?;
        }
        Ok(transaction)
    }
}

impl Peer for Lmdb {
    const NAME: &'static str = "LMDB";
    const CHECKPOINT: Option<&'static str> =
        Some("one commit of the changes, which makes them durable as well");
    const LOG: Option<&'static str> = None;

    fn open(dir: &Path) -> Result<Self, Error> {
        let (env, state) = open(dir)?;
        Ok(Self { env, state, pending: Vec::new() })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        self.pending.extend(numbers.map(|number| (number, version)));
        Ok(())
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        Ok(self.with_changes()?.commit()?)
    }

    fn stall(&mut self, _: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error> {
        let mut given_up = self.env.begin_rw_txn()?;
        let alone = writer.alone(quiet, |number| {
            Ok(given_up.put(self.state, &key(number), &value(number, 0), WriteFlags::empty())?)
        })?;
        given_up.abort();
        let transaction = self.with_changes()?;
        let started = Instant::now();
        transaction.commit()?;
        let time = started.elapsed();
        Ok(Some(Stall { alone, beside: time, time }))
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        let transaction = self.env.begin_ro_txn()?;
        match transaction.get(self.state, &key(number)) {
            Ok(_) => Ok(true),
            Err(LmdbError::NotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn scan(&self) -> Result<u64, Error> {
        let transaction = self.env.begin_ro_txn()?;
        let mut there = 0;
        let mut cursor = transaction.open_ro_cursor(self.state)?;
        for row in cursor.iter() {
            there += u64::from(!std::hint::black_box(row?.1).is_empty());
        }
        Ok(there)
    }

    fn close(self) -> Result<(), Error> {
        drop(self.env);
        Ok(())
    }
}
