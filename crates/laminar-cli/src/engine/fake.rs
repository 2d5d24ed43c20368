//! A store in memory that can be opened again at any epoch: every crash the real one may survive.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use super::{Checkpoint, CoreEngine, Engine, OpenOptions, Opened, Report, Router, StateView, Stats};
use crate::error::Result;

type Change = (Vec<u8>, Option<Vec<u8>>);

/// What one "directory" holds: for every epoch the changes and offsets of every core.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    epochs: BTreeMap<u64, (Vec<Change>, BTreeMap<String, u64>)>,
    /// Number of cores that have sealed an epoch.
    sealed: BTreeMap<u64, usize>,
}

fn disks() -> &'static Mutex<HashMap<PathBuf, Arc<Mutex<Disk>>>> {
    static DISKS: OnceLock<Mutex<HashMap<PathBuf, Arc<Mutex<Disk>>>>> = OnceLock::new();
    DISKS.get_or_init(Mutex::default)
}

/// The disk of a directory.
pub fn disk(dir: &std::path::Path) -> Arc<Mutex<Disk>> {
    disks().lock().unwrap().entry(dir.to_owned()).or_default().clone()
}

impl Disk {
    /// Epochs that exist.
    pub fn epochs(&self) -> Vec<u64> {
        self.epochs.keys().copied().collect()
    }

    /// The same disk after a crash that leaves `epoch` as the recovery point.
    pub fn cut(&mut self, epoch: u64) {
        self.epochs.retain(|e, _| *e <= epoch);
        self.sealed.retain(|e, _| *e <= epoch);
    }

    /// Changes in all epochs.
    pub fn records(&self) -> usize {
        self.epochs.values().map(|(changes, _)| changes.len()).sum()
    }

    fn state(&self) -> (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<String, u64>) {
        let mut state = BTreeMap::new();
        let mut all = BTreeMap::new();
        for (changes, offsets) in self.epochs.values() {
            for (key, value) in changes {
                match value {
                    Some(value) => state.insert(key.clone(), value.clone()),
                    None => state.remove(key),
                };
            }
            all.extend(offsets.clone());
        }
        (state, all)
    }

    fn report(&self) -> Report {
        let (state, source_offsets) = self.state();
        let epoch = self.epochs.keys().last().copied().unwrap_or(0);
        Report { epoch, source_offsets, keys: state.len() as u64, ..Report::default() }
    }
}

pub struct FakeEngine {
    disk: Arc<Mutex<Disk>>,
    cores: usize,
}

pub struct FakeCore {
    disk: Arc<Mutex<Disk>>,
    epoch: u64,
    state: HashMap<Vec<u8>, Vec<u8>>,
    changes: Vec<Change>,
    offsets: BTreeMap<String, u64>,
}

impl Engine for FakeEngine {
    type Core = FakeCore;

    fn look(dir: &std::path::Path) -> Option<Report> {
        Some(disk(dir).lock().unwrap().report())
    }

    fn open(options: &OpenOptions) -> Result<Opened<Self>> {
        let disk = disk(&options.dir);
        let cores = options.cores;
        let router = Router::new(cores, move |key| {
            usize::try_from(xxhash_rust::xxh3::xxh3_64(key) % cores as u64).unwrap()
        });
        let (state, _) = disk.lock().unwrap().state();
        let report = disk.lock().unwrap().report();
        let mut made: Vec<FakeCore> = (0..cores)
            .map(|_| FakeCore {
                disk: disk.clone(),
                // A real store skips numbers after a crash.
                epoch: report.epoch + 10,
                state: HashMap::new(),
                changes: Vec::new(),
                offsets: BTreeMap::new(),
            })
            .collect();
        for (key, value) in state {
            made[router.core_of(&key)].state.insert(key, value);
        }
        Ok(Opened { engine: Self { disk, cores }, cores: made, report, router })
    }

    fn durable_epoch(&self) -> u64 {
        let disk = self.disk.lock().unwrap();
        disk.sealed.iter().filter(|(_, n)| **n == self.cores).map(|(e, _)| *e).max().unwrap_or(0)
    }

    fn wait_durable(&self, epoch: u64) -> Result<()> {
        assert!(
            self.disk.lock().unwrap().epochs.keys().all(|e| *e <= epoch),
            "nothing is sealed after the last mark"
        );
        Ok(())
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::default())
    }

    #[cfg(feature = "object-store")]
    fn backed_up(&self) -> Option<crate::backup::running::BackedUp> {
        None
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn close(self) -> Result<()> {
        Ok(())
    }
}

impl CoreEngine for FakeCore {
    fn update<'v, F>(&mut self, key: &[u8], change: F) -> Result<()>
    where
        F: FnOnce(Option<&[u8]>) -> Option<&'v [u8]>,
    {
        let new = change(self.state.get(key).map(Vec::as_slice)).map(<[u8]>::to_vec);
        self.changes.push((key.to_vec(), new.clone()));
        match new {
            Some(value) => self.state.insert(key.to_vec(), value),
            None => self.state.remove(key),
        };
        Ok(())
    }

    fn visit(&self, keys: &[&[u8]], visit: &mut dyn FnMut(Option<&[u8]>)) {
        keys.iter().for_each(|key| visit(self.state.get(*key).map(Vec::as_slice)));
    }

    fn set_source_offset(&mut self, name: &str, offset: u64) {
        self.offsets.insert(name.to_owned(), offset);
    }

    fn seal_epoch(&mut self) -> Result<u64> {
        let epoch = self.epoch;
        self.epoch += 1;
        let mut disk = self.disk.lock().unwrap();
        let (changes, offsets) = disk.epochs.entry(epoch).or_default();
        changes.append(&mut self.changes);
        offsets.extend(self.offsets.clone());
        *disk.sealed.entry(epoch).or_default() += 1;
        Ok(epoch)
    }

    fn len(&self) -> u64 {
        self.state.len() as u64
    }
}

/// A view of a disk.
pub struct FakeView {
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    report: Report,
}

impl StateView for FakeView {
    fn open(dir: &std::path::Path) -> Result<Self> {
        let disk = disk(dir);
        let disk = disk.lock().unwrap();
        Ok(Self { state: disk.state().0, report: disk.report() })
    }

    fn for_each<'s>(&'s self, visit: &mut dyn FnMut(&'s [u8], &'s [u8])) {
        // Any order but the sorted one, so that nothing relies on it.
        for (key, value) in self.state.iter().rev() {
            visit(key, value);
        }
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(key).map(Vec::as_slice)
    }

    fn report(&self) -> &Report {
        &self.report
    }
}
