//! LMDB.
#![expect(unsafe_code, reason = "LMDB maps its file, which nobody else may change meanwhile")]

use std::path::Path;
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, RwTxn};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::Error;
use crate::keys::{key, value};

/// Addresses reserved for its file, which is only as large as it must be.
const MAP: usize = 64 << 30;

pub struct Lmdb {
    env: Env,
    state: Database<'static, Bytes, Bytes>,
    /// Changes that the next commit makes durable.
    pending: Vec<(u64, u32)>,
}

impl Lmdb {
    /// A transaction with all changes in it.
    fn with_changes(&mut self) -> Result<RwTxn<'_>, Error> {
        let mut transaction = self.env.write_txn()?;
        for (number, version) in self.pending.drain(..) {
            self.state.put(&mut transaction, &key(number), &value(number, version))?;
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
        let dir = dir.join("lmdb");
        std::fs::create_dir_all(&dir)?;
        // SAFETY: the directory is this run's own, and no other process opens or changes what is in it.
        let env = unsafe { EnvOpenOptions::new().map_size(MAP).open(dir) }?;
        let state = env
            .create_databases_and_commit(env.write_txn()?, |databases, transaction| {
                databases.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
            })?
            .unwrap_commit();
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
        let mut given_up = self.env.write_txn()?;
        let alone = writer
            .alone(quiet, |number| Ok(self.state.put(&mut given_up, &key(number), &value(number, 0))?))?;
        given_up.abort();
        let transaction = self.with_changes()?;
        let started = Instant::now();
        transaction.commit()?;
        let time = started.elapsed();
        Ok(Some(Stall { alone, beside: time, time }))
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        let transaction = self.env.read_txn()?;
        Ok(self.state.get(&transaction, &key(number))?.is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        let transaction = self.env.read_txn()?;
        let mut there = 0;
        for row in self.state.iter(&transaction)? {
            there += u64::from(!std::hint::black_box(row?.1).is_empty());
        }
        Ok(there)
    }

    fn close(self) -> Result<(), Error> {
        // In one process it can be opened again only once it is closed.
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}
