//! A store in a container whose image brought the state along: its directories cannot be renamed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::incremental::{CheckpointConfig, IncrementalCheckpointManager};
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::vfs::{Access, FileKind, Vfs, VfsFile};
use laminar_storage::{CheckpointId, Health, Opened, Settings, Store};

/// An overlay file system: what was there when it was mounted is in the lower layer.
#[derive(Debug)]
struct Overlay {
    disk: SimDisk,
    lower: Vec<PathBuf>,
}

impl Overlay {
    fn on(disk: &SimDisk) -> Arc<Self> {
        let dirs = |path: PathBuf| path.parent().map(|dir| Path::new("/").join(dir));
        Arc::new(Self {
            disk: disk.clone(),
            lower: disk.files().into_iter().filter_map(|file| dirs(file.0)).collect(),
        })
    }
}

impl Vfs for Overlay {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.lower.iter().any(|dir| dir == from) {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        self.disk.rename(from, to)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.create_new(path)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.open(path, access)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.disk.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.disk.kind(path)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.disk.hard_link(existing, new)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.disk.lock(path)
    }
    fn parallel(&self) -> bool {
        self.disk.parallel()
    }
    fn now_ns(&self) -> u64 {
        self.disk.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}

fn open(vfs: Arc<dyn Vfs>) -> Opened {
    let settings = Settings {
        segment_bytes: 4 << 10,
        preallocate_bytes: 0,
        state_limit_bytes: 4 << 20,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        max_retained: 2,
        ..Settings::default()
    };
    Store::builder("/state").settings(settings).vfs(vfs).open().unwrap()
}

/// Makes some checkpoints; returns the bytes of the log.
fn work(opened: &mut Opened, checkpoints: u64) -> u64 {
    for n in 0..checkpoints * 20 {
        opened.cores[0].put(&(n % 50).to_le_bytes(), &[n.to_le_bytes()[0]; 100]).unwrap();
        let epoch = opened.cores[0].seal_epoch().unwrap();
        opened.store.wait_durable(epoch).unwrap();
        if n % 20 == 19 {
            opened.store.checkpoint().unwrap();
            assert!(matches!(opened.store.health(), Health::Running), "{:?}", opened.store.health());
        }
    }
    opened.store.durable_epoch().get()
}

/// A checkpoint of the image could not be moved to trash, and no further one was made, however often the store
/// was opened: the log grew for ever.
#[test]
fn old_checkpoints_in_a_read_only_layer_stop_nobody() {
    let disk = SimDisk::new(1);
    work(&mut open(Arc::new(disk.clone())), 4);
    let checkpoints = || {
        let names = disk.read_dir(Path::new("/state/checkpoints")).unwrap();
        names.into_iter().map(|(name, _)| name).filter(|name| name.starts_with("checkpoint_")).count()
    };
    let wal =
        || -> u64 { laminar_storage::incremental::wal_size_in(&disk, Path::new("/state/wal")).unwrap() };
    assert_eq!(checkpoints(), 2);
    let before = wal();
    for _ in 0..3 {
        let mut opened = open(Overlay::on(&disk));
        let of_the_image = checkpoints();
        work(&mut opened, 5);
        assert!(checkpoints() <= of_the_image + 2, "its own ones are removed as ever");
        assert!(wal() <= before + (8 << 10), "and the log is cut");
    }
    let config = CheckpointConfig::new(Path::new("/state/checkpoints"));
    let mut manager = IncrementalCheckpointManager::with_vfs(config, Overlay::on(&disk)).unwrap();
    let oldest = manager.list_checkpoints().unwrap().last().unwrap().id;
    let error = manager.delete_checkpoint(oldest).unwrap_err();
    assert!(error.to_string().contains("could not move the checkpoint to trash"), "{error}");
    assert!(manager.poisoned_by().is_none());
    drop(manager);
    let opened = open(Arc::new(disk.clone()));
    assert_eq!(opened.report.keys, 50);
    assert!(opened.report.checkpoint.unwrap_or(CheckpointId(0)) > CheckpointId(15));
}
