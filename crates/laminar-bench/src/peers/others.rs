//! redb and fjall.

use std::path::Path;
use std::time::{Duration, Instant};

use fjall::{Database as FjallDatabase, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::ReadableTable as _;
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::Error;
use crate::keys::{key, value};

pub const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");

/// redb in a directory.
pub fn redb(dir: &Path) -> Result<Database, Error> {
    Ok(Database::builder().set_cache_size(1 << 30).create(dir.join("redb"))?)
}

/// fjall in a directory, and the keys in it.
pub fn fjall(dir: &Path) -> Result<(FjallDatabase, Keyspace), Error> {
    let database = FjallDatabase::builder(dir.join("fjall")).cache_size(1 << 30).open()?;
    let state = database.keyspace("state", KeyspaceCreateOptions::default)?;
    Ok((database, state))
}

pub struct Redb {
    database: Database,
    /// Changes that the next commit makes durable.
    pending: Vec<(u64, u32)>,
}

impl Redb {
    /// A transaction with all changes in it.
    fn with_changes(&mut self) -> Result<WriteTransaction, Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (number, version) in self.pending.drain(..) {
                table.insert(key(number).as_slice(), value(number, version).as_slice())?;
            }
        }
        Ok(transaction)
    }
}

impl Peer for Redb {
    const NAME: &'static str = "redb";
    const CHECKPOINT: Option<&'static str> =
        Some("one commit of the changes, which makes them durable as well");
    const LOG: Option<&'static str> = None;

    fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { database: redb(dir)?, pending: Vec::new() })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        self.pending.extend(numbers.map(|number| (number, version)));
        Ok(())
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        Ok(self.with_changes()?.commit()?)
    }

    fn stall(&mut self, _: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error> {
        let given_up = self.database.begin_write()?;
        let mut table = given_up.open_table(TABLE)?;
        let alone = writer.alone(quiet, |number| {
            table.insert(key(number).as_slice(), value(number, 0).as_slice())?;
            Ok(())
        })?;
        drop(table);
        given_up.abort()?;
        let transaction = self.with_changes()?;
        let started = Instant::now();
        transaction.commit()?;
        let time = started.elapsed();
        Ok(Some(Stall { alone, beside: time, time }))
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(table.get(key(number).as_slice())?.is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let mut there = 0;
        for row in table.iter()? {
            there += u64::from(!std::hint::black_box(row?.1.value()).is_empty());
        }
        debug_assert_eq!(there, table.len()?);
        Ok(there)
    }

    fn close(self) -> Result<(), Error> {
        Ok(())
    }
}

pub struct Fjall {
    database: FjallDatabase,
    state: Keyspace,
}

/// Puts in a batch.
const BATCH: usize = 1024;

impl Peer for Fjall {
    const NAME: &'static str = "fjall";
    /// Opening replays as much of its journal as is not in its tree.
    const CHECKPOINT: Option<&'static str> = None;
    const LOG: Option<&'static str> = None;

    fn open(dir: &Path) -> Result<Self, Error> {
        let (database, state) = fjall(dir)?;
        Ok(Self { database, state })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        let numbers: Vec<u64> = numbers.collect();
        for part in numbers.chunks(BATCH) {
            let mut batch = self.database.batch();
            for number in part {
                batch.insert(&self.state, key(*number), value(*number, version));
            }
            batch.commit()?;
        }
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    fn stall(&mut self, _: &Path, _: &mut Writer, _: Duration) -> Result<Option<Stall>, Error> {
        Ok(None)
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        Ok(self.state.get(key(number))?.is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        let mut there = 0;
        for row in self.state.iter() {
            there += u64::from(!row.value()?.is_empty());
        }
        Ok(there)
    }

    fn close(self) -> Result<(), Error> {
        Ok(())
    }
}
