//! Puts of other stores with the same keys, none of them durable when it returns.

use lmdb::{Transaction as _, WriteFlags};

use super::Rows;
use super::yardsticks::measure;
use crate::keys::{Stamp, key};
#[cfg(feature = "peer-rocksdb")]
use crate::peers::rocks;
use crate::peers::{lmdb as lmdb_peer, others};
use crate::place::clear;
use crate::{Error, Run};

/// What a table says of the rows.
pub const NOTE: &str = "other stores: none of their puts is durable when it returns, nor later. RocksDB has no log, or one that is given to the system and never synced, as fjall's journal is, whose background threads write tables meanwhile; redb and LMDB put into one transaction, which is given up at the end. A tenth as many puts as elsewhere, after every key was put once";

pub fn run(run: &Run, keys: u64, uniform: &[u32], rows: &mut Rows) -> Result<(), Error> {
    let few = &uniform[..uniform.len().min(run.size(200_000, 1_000_000))];
    let dir = run.place.fresh("peer")?;
    std::fs::create_dir_all(&dir)?;
    #[cfg(feature = "peer-rocksdb")]
    for (log, name) in [(false, "no log"), (true, "log not synced")] {
        let database = rocks::open(&dir)?;
        rocks::one_memtable(&database)?;
        let mut writes = rocksdb::WriteOptions::default();
        writes.disable_wal(!log);
        row(&format!("RocksDB, {name}, put, uniform"), keys, few, rows, |number, stamp| {
            Ok(database.put_opt(key(number), stamp, &writes)?)
        })?;
        drop(database);
        clear(&dir)?;
        std::fs::create_dir_all(&dir)?;
    }
    {
        let (_database, state) = others::fjall(&dir)?;
        row("fjall, journal not synced, put, uniform", keys, few, rows, |number, stamp| {
            Ok(state.insert(key(number), stamp)?)
        })?;
    }
    {
        let database = others::redb(&dir)?;
        let transaction = database.begin_write()?;
        let mut table = transaction.open_table(others::TABLE)?;
        row("redb, in one transaction, not committed, put, uniform", keys, few, rows, |number, stamp| {
            table.insert(key(number).as_slice(), stamp)?;
            Ok(())
        })?;
        drop(table);
        transaction.abort()?;
    }
    {
        let (environment, state) = lmdb_peer::open(&dir)?;
        let mut transaction = environment.begin_rw_txn()?;
        row("LMDB, in one transaction, not committed, put, uniform", keys, few, rows, |number, stamp| {
            Ok(transaction.put(state, &key(number), &stamp, WriteFlags::empty())?)
        })?;
        transaction.abort();
    }
    clear(&dir)
}

/// Puts every key once, and then those that are measured.
fn row(
    name: &str,
    keys: u64,
    numbers: &[u32],
    rows: &mut Rows,
    mut put: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut stamp, mut failed) = (Stamp::new(), None);
    (0..keys).try_for_each(|number| put(number, stamp.at(0)))?;
    let mut one = |number, at| {
        if failed.is_none() {
            failed = put(number, stamp.at(at)).err();
        }
    };
    let outcome = measure(name, numbers, &mut one)?;
    rows.row(&outcome);
    failed.map_or(Ok(()), Err)
}
