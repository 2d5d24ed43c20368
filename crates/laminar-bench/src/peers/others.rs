//! redb and fjall.

use std::path::Path;

use fjall::{Database as FjallDatabase, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::ReadableTable as _;
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::Peer;
use crate::Error;
use crate::keys::{key, value};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");

pub struct Redb {
    database: Database,
    /// Changes that the next commit makes durable.
    pending: Vec<(u64, u32)>,
}

impl Peer for Redb {
    const NAME: &'static str = "redb";
    const CHECKPOINT: Option<&'static str> =
        Some("one commit of the changes, which makes them durable as well");
    const LOG: Option<&'static str> = None;

    fn open(dir: &Path) -> Result<Self, Error> {
        let database = Database::builder().set_cache_size(1 << 30).create(dir.join("redb"))?;
        Ok(Self { database, pending: Vec::new() })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        self.pending.extend(numbers.map(|number| (number, version)));
        Ok(())
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (number, version) in self.pending.drain(..) {
                table.insert(key(number).as_slice(), value(number, version).as_slice())?;
            }
        }
        Ok(transaction.commit()?)
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
        let database = FjallDatabase::builder(dir.join("fjall")).cache_size(1 << 30).open()?;
        let state = database.keyspace("state", KeyspaceCreateOptions::default)?;
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
