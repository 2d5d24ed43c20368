//! Whole stores with all their threads, on the simulated disk, in many orders: shuttle decides at every lock and
//! atomic who goes on, and `LAMINAR_SCHEDULES` says in how many ways. A failure prints a schedule;
//! `LAMINAR_REPLAY` with that text runs it again.
//!
//! After each run the power is cut: what was not synced is lost, and exactly what was acknowledged has to be found.

use std::io;
use std::path::Path;
use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

use super::*;
use crate::vfs::sim::{Duration as FaultDuration, Fault, ImageId, Keep, SimDisk};
use crate::vfs::{Access, FileKind, Vfs, VfsFile};

const DIR: &str = "/store";

/// A simulated disk for a store with threads: every sync gives the others a chance.
#[derive(Debug)]
struct Threaded(SimDisk);

impl Vfs for Threaded {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.0.create_new(path)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        self.0.open(path, access)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.0.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.0.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.0.hard_link(existing, new)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        thread::yield_now();
        self.0.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.0.lock(path)
    }
    fn sync_many(&self, files: &[Arc<dyn VfsFile>]) -> Vec<io::Result<()>> {
        let sync = |file: &Arc<dyn VfsFile>| {
            thread::yield_now();
            file.sync_data()
        };
        files.iter().map(sync).collect()
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.0.random_u64()
    }
}

fn settings() -> Settings {
    Settings {
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        segment_bytes: 64 << 10,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        ..Settings::default()
    }
}

/// A store of `cores` on a new disk.
fn open(cores: usize) -> (SimDisk, Arc<Store>, Vec<CoreStore>) {
    let disk = SimDisk::new(7);
    let vfs = Arc::new(Threaded(disk.clone()));
    let opened = Store::builder(DIR).cores(cores).settings(settings()).vfs(vfs).open().unwrap();
    (disk, Arc::new(opened.store), opened.cores)
}

/// Puts the epoch's number under its own key and under a shared one, and seals, so often.
fn commit(core: &mut CoreStore, epochs: u64) -> Result<Epoch, StoreError> {
    let mut sealed = Epoch::ZERO;
    for _ in 0..epochs {
        let epoch = core.epoch().get().to_le_bytes();
        core.put(&epoch, b"was here")?;
        core.put(b"newest", &epoch)?;
        core.set_source_offset("input", core.epoch().get());
        sealed = core.seal_epoch()?;
    }
    Ok(sealed)
}

/// Cuts the power; what is found has to be every epoch up to the point on every core and nothing else. Returns the
/// point.
fn power_cut(disk: &SimDisk, cores: usize) -> u64 {
    let found = disk.snapshot().image(&ImageId::default()).mount();
    let vfs: Arc<dyn Vfs> = Arc::new(found);
    let opened = Store::builder(DIR).cores(cores).settings(settings()).vfs(vfs).open().unwrap();
    let point = opened.report.recovery_point.get();
    for core in &opened.cores {
        for epoch in 1..=point {
            assert_eq!(core.get(&epoch.to_le_bytes()), Some(&b"was here"[..]), "epoch {epoch} of {point}");
        }
        let newest = point.to_le_bytes();
        assert_eq!(core.get(b"newest"), (point > 0).then_some(&newest[..]));
        assert_eq!(core.len() as u64, if point > 0 { point + 1 } else { 0 }, "up to epoch {point}");
    }
    point
}

fn schedules() -> usize {
    let wanted = std::env::var("LAMINAR_SCHEDULES").ok().and_then(|n| n.replace('_', "").parse().ok());
    wanted.unwrap_or(1000)
}

/// Runs `scenario` in many orders: half of them such that few preemptions in the worst places are found, half at
/// random.
fn check(scenario: fn()) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    if let Ok(schedule) = std::env::var("LAMINAR_REPLAY") {
        return shuttle::replay(scenario, &schedule);
    }
    let half = schedules().div_ceil(2);
    Runner::new(PctScheduler::new(3, half), config.clone()).run(scenario);
    Runner::new(RandomScheduler::new(half), config).run(scenario);
}

#[test]
fn shuttle_group_commit_acknowledges_what_survives_a_power_cut() {
    check(|| {
        let (disk, store, cores) = open(2);
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (note, watched) = (Arc::clone(&told), disk.clone());
        store.on_durable(move |epoch| {
            assert!(power_cut(&watched, 2) >= epoch.get());
            note.lock().unwrap().push(epoch.get());
        });
        let work = |mut core: CoreStore| {
            thread::spawn(move || {
                commit(&mut core, 2).unwrap();
                core
            })
        };
        let threads: Vec<_> = cores.into_iter().map(work).collect();
        let theirs = Arc::clone(&store);
        let waiter = thread::spawn(move || theirs.wait_durable(Epoch(1)).map(|()| theirs.durable_epoch()));
        store.wait_durable(Epoch(2)).unwrap();
        assert_eq!(power_cut(&disk, 2), 2);
        assert!(waiter.join().unwrap().unwrap() >= Epoch(1));
        let cores: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let store = Arc::into_inner(store).unwrap();
        assert_eq!(store.close().unwrap().durable_epoch, Epoch(2));
        drop(cores);
        let told = told.lock().unwrap();
        assert!(told.is_sorted_by(|a, b| a < b) && told.last() == Some(&2), "{told:?}");
    });
}

#[test]
fn shuttle_close_keeps_what_it_says_while_cores_go_on() {
    check(|| {
        let (disk, store, cores) = open(2);
        let work = |mut core: CoreStore| thread::spawn(move || drop(commit(&mut core, 2)));
        let threads: Vec<_> = cores.into_iter().map(work).collect();
        let receipt = Arc::into_inner(store).unwrap().close().unwrap();
        assert_eq!(power_cut(&disk, 2), receipt.durable_epoch.get());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn shuttle_whoever_waits_for_a_dropped_core_is_told() {
    check(|| {
        let (disk, store, mut cores) = open(2);
        let mut second = cores.pop().unwrap();
        let mut first = cores.pop().unwrap();
        let one = thread::spawn(move || commit(&mut first, 2).map(drop));
        let two = thread::spawn(move || commit(&mut second, 1).map(drop));
        let error = store.wait_durable(Epoch(2)).unwrap_err();
        assert!(error.to_string().contains("core 1 was dropped"), "{error}");
        one.join().unwrap().unwrap();
        two.join().unwrap().unwrap();
        drop(store);
        assert_eq!(power_cut(&disk, 2), 1);
    });
}

#[test]
fn shuttle_a_failed_sync_poisons_everybody_and_nothing_is_acknowledged_after_it() {
    check(|| {
        let (disk, store, mut cores) = open(2);
        let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
        disk.fail_op(disk.ops() + 1, fault, FaultDuration::Forever);
        store.on_durable(|epoch| panic!("epoch {epoch} was acknowledged"));
        let mut second = cores.pop().unwrap();
        let mut first = cores.pop().unwrap();
        let one = thread::spawn(move || commit(&mut first, 2));
        let two = thread::spawn(move || commit(&mut second, 2));
        let error = store.wait_durable(Epoch(1)).unwrap_err();
        assert!(error.to_string().contains("could not sync"), "{error}");
        for thread in [one, two] {
            if let Err(error) = thread.join().unwrap() {
                assert!(error.to_string().contains("could not sync"), "{error}");
            }
        }
        assert_eq!(store.durable_epoch(), Epoch::ZERO);
        assert!(matches!(store.health(), Health::Poisoned(_)));
        disk.clear_faults();
        assert!(Arc::into_inner(store).unwrap().close().is_err());
        assert_eq!(power_cut(&disk, 2), 0);
    });
}

#[test]
fn shuttle_checkpoints_while_cores_commit() {
    check(|| {
        let (disk, store, cores) = open(2);
        let work = |mut core: CoreStore| thread::spawn(move || drop(commit(&mut core, 3)));
        let threads: Vec<_> = cores.into_iter().map(work).collect();
        let mut newest = Epoch::ZERO;
        for wanted in 1..=3 {
            store.wait_durable(Epoch(wanted)).unwrap();
            let receipt = store.checkpoint().unwrap();
            assert!(receipt.epoch >= Epoch(wanted) && receipt.epoch >= newest);
            newest = receipt.epoch;
            assert!(power_cut(&disk, 2) >= newest.get());
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(store);
        assert_eq!(power_cut(&disk, 2), 3);
    });
}

#[test]
fn shuttle_a_full_ring_makes_whoever_puts_wait() {
    check(|| {
        let (_, store, mut cores) = open(1);
        let mut core = cores.pop().unwrap();
        for n in 0..100_u64 {
            core.put(&n.to_le_bytes(), b"value").unwrap();
        }
        let epoch = core.seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        assert_eq!(core.len(), 100);
    });
}
