//! Places that are directories of this machine: what is confirmed is on the disk, and no half of a file stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeSet;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use laminar_backup_tests::faults::{Fault, Faulty, Kind};
use laminar_backup_tests::stores::{Checkpoints, owner, quick, restored, target, writer};
use laminar_storage::backup::object_store::ObjectStore;
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::{
    BackupError, BackupOptions, BackupTarget, BackupWriter, list_backups, verify_backup,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{Duration as For, Fault as DiskFault, SimDisk};

fn chunks(inner: &Arc<InMemory>) -> BTreeSet<String> {
    let listed = inner.list(None).try_collect::<Vec<_>>().now_or_never().unwrap().unwrap();
    let names = listed.into_iter().map(|meta| meta.location.to_string());
    names.filter(|name| name.contains("/files/")).collect()
}

/// Its objects are said to be in a directory of this disk, so that both can fail.
fn in_directory(store: &Arc<dyn ObjectStore>, disk: &SimDisk) -> BackupTarget {
    target(store).in_directory(Arc::new(disk.clone()), FilePath::new("/disk"))
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(1);
    for dir in ["/disk", "/disk/a", "/disk/a/prefix", "/disk/a/prefix/files", "/disk/a/prefix/log"] {
        disk.create_dir(FilePath::new(dir)).unwrap();
    }
    disk
}

/// A file that is linked to its name and whose folder could not be synced is found when its put is made again. It was taken for
/// put, although a power cut could take it.
#[test]
fn a_file_whose_name_may_not_be_on_the_disk_is_put_under_another() {
    let checkpoints = Checkpoints::new(2);
    for victim in 0..4 {
        let inner = Arc::new(InMemory::new());
        let put = AtomicUsize::new(0);
        let store: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
            let is_chunk = kind == Kind::Put && path.as_ref().contains("/files/");
            let is_it = is_chunk && put.fetch_add(1, Ordering::SeqCst) == victim;
            if is_it { Fault::LostReply } else { Fault::None }
        });
        let target = in_directory(&store, &disk());
        let mut writer = BackupWriter::open(&target, &quick(), owner(1, 1)).unwrap();
        let error = writer.back_up(&checkpoints.open(0), &[]).unwrap_err();
        assert!(matches!(error, BackupError::Local(_)) && !error.is_final(), "{victim}: {error}");
        assert!(list_backups(&target, &quick()).unwrap().is_empty());
        let doubtful = chunks(&inner);
        assert!(!doubtful.is_empty());
        writer.back_up(&checkpoints.open(0), &[]).unwrap();
        assert!(chunks(&inner).is_disjoint(&doubtful), "{victim}: nothing of that attempt is used");
        assert_eq!(restored(&store), *checkpoints.state(0));
    }
}

/// The same with the record: that it can be read does not mean that it is on the disk, and only a record that is makes the
/// backup one that is confirmed.
#[test]
fn a_record_whose_name_may_not_be_on_the_disk_is_followed_by_another() {
    let checkpoints = Checkpoints::new(2);
    let inner = Arc::new(InMemory::new());
    let armed = Arc::new(AtomicUsize::new(0));
    let fails = Arc::clone(&armed);
    let store: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
        let is_record = kind == Kind::Put && path.as_ref().contains("/log/");
        if is_record && fails.swap(0, Ordering::SeqCst) == 1 { Fault::LostReply } else { Fault::None }
    });
    let mut writer = BackupWriter::open(&in_directory(&store, &disk()), &quick(), owner(1, 1)).unwrap();
    let first = writer.back_up(&checkpoints.open(0), &[]).unwrap();
    armed.store(1, Ordering::SeqCst);
    let error = writer.back_up(&checkpoints.open(1), &[]).unwrap_err();
    assert!(matches!(error, BackupError::Local(_)), "{error}");
    let receipt = writer.back_up(&checkpoints.open(1), &[]).unwrap();
    assert!(receipt.is_new && receipt.id.get() == first.id.get() + 2, "{receipt:?}");
    let again = writer.back_up(&checkpoints.open(1), &[]).unwrap();
    assert_eq!((again.is_new, again.id), (false, receipt.id), "{again:?}");
    assert_eq!(restored(&store), *checkpoints.state(1));
}

/// Every folder on the way to what a record refers to is synced before the record is put, and a sync that fails is told.
#[test]
fn no_backup_is_confirmed_while_a_folder_cannot_be_synced() {
    let checkpoints = Checkpoints::new(2);
    let mut failed = 0;
    for at in 0.. {
        let (inner, disk) = (Arc::new(InMemory::new()), disk());
        let store: Arc<dyn ObjectStore> = inner.clone();
        let target = in_directory(&store, &disk);
        let first_op = disk.ops() + 1;
        disk.fail_op(first_op + at, DiskFault::Eio, For::Once);
        let opened = BackupWriter::open(&target, &quick(), owner(1, 1));
        let in_opening = opened.is_err();
        let mut writer = opened.unwrap_or_else(|error| {
            assert!(matches!(error, BackupError::Local(_)), "{at}: {error}");
            BackupWriter::open(&target, &quick(), owner(1, 1)).unwrap()
        });
        let mut failed_here = in_opening;
        if let Err(error) = writer.back_up(&checkpoints.open(0), &[]) {
            assert!(matches!(error, BackupError::Local(_)), "{at}: {error}");
            assert!(list_backups(&target, &quick()).unwrap().is_empty(), "{at}");
            failed_here = true;
        }
        writer.back_up(&checkpoints.open(0), &[]).unwrap();
        assert_eq!(restored(&store), *checkpoints.state(0), "{at}");
        failed += usize::from(failed_here);
        if !disk.has_fault_fired(first_op + at, DiskFault::Eio) {
            break;
        }
    }
    // The place, the two folders and the two above, before each of two records; and the place behind what says what it is.
    assert_eq!(failed, 11);
}

/// An object store elsewhere says nothing of disks: a reply that is lost is a reply that is lost.
#[test]
fn elsewhere_a_lost_reply_is_no_failure() {
    let checkpoints = Checkpoints::new(1);
    let inner = Arc::new(InMemory::new());
    let store: Arc<dyn ObjectStore> = Faulty::new(&inner, |number, kind, _| match kind {
        Kind::Put if number % 3 == 0 => Fault::LostReply,
        _ => Fault::None,
    });
    writer(&store, 1).back_up(&checkpoints.open(0), &[]).unwrap();
    assert_eq!(restored(&store), *checkpoints.state(0));
}

/// A process that is killed while it puts into a directory leaves the file that it was writing, which nothing lists.
#[test]
fn what_a_killed_process_was_writing_into_a_directory_is_swept() {
    let checkpoints = Checkpoints::full(2);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("place");
    let target = BackupTarget::create(place.to_str().unwrap()).unwrap();
    let options: BackupOptions = quick().attempts(2, Duration::ZERO);
    let open = |life| BackupWriter::open(&target, &options, owner(1, life)).unwrap();
    open(1).back_up(&checkpoints.open(0), &[]).unwrap();
    // Claim 1, backup 2; the next claim is 3.
    let ours = [
        "laminar-backups#1",
        "log/0000000000000002.json#1",
        "log/0000000000000003.json#12",
        "files/0000000000000001-00000000-00000000#1",
        "files/0000000000000003-00000007-00000000#2",
    ];
    // Of a later writer, or of nobody that we know.
    let others = [
        "log/00000000000000ff.json#1",
        "files/00000000000000ff-00000000-00000000#1",
        "files/notes#1",
        "files/0000000000000001-00000000-00000000#x",
        "notes#1",
    ];
    for name in ours.iter().chain(&others) {
        std::fs::write(place.join(name), b"half of it").unwrap();
    }
    open(2).back_up(&checkpoints.open(1), &[]).unwrap();
    for name in ours {
        assert!(!place.join(name).exists(), "{name}");
    }
    for name in others {
        assert!(place.join(name).exists(), "{name}");
    }
    for backup in list_backups(&target, &options).unwrap() {
        verify_backup(&target, Some(backup.id), &options, |_| {}).unwrap();
    }
}
