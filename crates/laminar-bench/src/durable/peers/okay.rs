//! okaywal: a log of entries, each of which is synced when it is committed. A batch is an entry, a put a chunk of it.

use std::path::Path;

use okaywal::{Configuration, LogVoid, WriteAheadLog};

use super::Logged;
use crate::Error;
use crate::keys::{KEY, PAYLOAD, Stamp, key};

/// With files of so many MiB, of which three quarters are filled before the next is begun. 1 is its default.
pub struct Okay<const MIB: u32> {
    log: WriteAheadLog,
}

impl<const MIB: u32> Logged for Okay<MIB> {
    const NAME: &'static str = if MIB == 1 { "okaywal, files of 1 MiB" } else { "okaywal, files of 64 MiB" };
    const KEEPS_STATE: bool = false;

    fn open(dir: &Path) -> Result<Self, Error> {
        let bytes = MIB << 20;
        let log = Configuration::default_for(dir)
            .preallocate_bytes(bytes)
            .checkpoint_after_bytes(u64::from(bytes) / 4 * 3)
            .open(LogVoid)?;
        Ok(Self { log })
    }

    fn put(&mut self, numbers: &[u32], stamp: &mut Stamp) -> Result<(), Error> {
        let mut entry = self.log.begin_entry()?;
        let mut record = [0; PAYLOAD];
        for (number, at) in numbers.iter().zip(0..) {
            record[..KEY].copy_from_slice(&key(u64::from(*number)));
            record[KEY..].copy_from_slice(stamp.at(at));
            entry.write_chunk(&record)?;
        }
        entry.commit()?;
        Ok(())
    }

    fn close(self) -> Result<(), Error> {
        Ok(self.log.shutdown()?)
    }
}
