//! This store.

use std::path::Path;
use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Opened, Settings, Store};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::Error;
use crate::keys::{key, value};

/// From one seal to the next beside a checkpoint, so that the log is written and synced meanwhile, too.
const SEALS: Duration = Duration::from_millis(1);

pub struct Laminar {
    store: Store,
    core: CoreStore,
}

impl Peer for Laminar {
    const NAME: &'static str = "laminar";
    const CHECKPOINT: Option<&'static str> = Some("checkpoint, and the log cut");
    const LOG: Option<&'static str> = Some("from its log alone");

    fn open(dir: &Path) -> Result<Self, Error> {
        let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
        let Opened { store, mut cores, .. } = Store::builder(dir).settings(settings).open()?;
        Ok(Self { store, core: cores.pop().ok_or("no core")? })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        for number in numbers {
            self.core.put(&key(number), &value(number, version))?;
        }
        Ok(self.store.wait_durable(self.core.seal_epoch()?)?)
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        self.store.checkpoint()?;
        Ok(())
    }

    fn stall(&mut self, _: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error> {
        let Self { store, core } = self;
        let mut sealed = Instant::now();
        let put = |number| {
            core.put(&key(number), &value(number, 0))?;
            if sealed.elapsed() >= SEALS {
                core.seal_epoch()?;
                sealed = Instant::now();
            }
            Ok(())
        };
        writer.beside(quiet, put, || Ok(store.checkpoint().map(drop)?)).map(Some)
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        Ok(self.core.get(&key(number)).is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        Ok(self.core.iter().filter(|(_, value)| !std::hint::black_box(value).is_empty()).count() as u64)
    }

    fn close(self) -> Result<(), Error> {
        drop(self.core);
        self.store.close()?;
        Ok(())
    }
}
