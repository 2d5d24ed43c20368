//! What the steps to a checkpoint refuse, and what lets the log be cut.

use super::*;
use crate::incremental::layout::EntryName;
use crate::incremental::retention::{Listing, sweep};

#[test]
fn the_last_id_and_the_last_epoch_can_be_used_and_nothing_beyond() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.set_epoch(Epoch::LAST.get());
    assert_eq!(manager.create_checkpoint(0).unwrap().epoch, Epoch::LAST.get());
    let _ = manager.create_checkpoint_as(CheckpointId(CheckpointId::LAST.get() - 1), WalPosition(0)).unwrap();
    assert_eq!(manager.next_checkpoint_id().unwrap(), CheckpointId::LAST);
    manager.set_epoch(Epoch::LAST.get() + 1);
    let error = manager.create_checkpoint(0).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)), "{error}");
    manager.set_epoch(Epoch::LAST.get());
    assert_eq!(manager.create_checkpoint(0).unwrap().id, CheckpointId::LAST.get());
    let error = manager.next_checkpoint_id().unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::AlreadyExists(_)), "{error}");
}

/// A checkpoint that another manager wrote is not this one's, and would let this one's log be cut.
#[test]
fn a_token_of_another_manager_publishes_nothing() {
    let disk = SimDisk::new(1);
    let mut ours = open(&disk).unwrap();
    let other = CheckpointConfig::new(Path::new("/other"));
    let mut other = IncrementalCheckpointManager::with_vfs(other, Arc::new(disk.clone())).unwrap();
    // Of the same id as one in flight here, and of one that is not.
    for (id, in_flight) in [(1, true), (2, false)] {
        other.put(b"k", b"theirs").unwrap();
        let theirs = other.write(CheckpointId(id), WalPosition(0)).unwrap();
        let own = in_flight.then(|| ours.write(CheckpointId(id), WalPosition(0)).unwrap());
        let error = ours.sync(theirs).unwrap_err();
        assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)), "{error}");
        if let Some(own) = own {
            let own = ours.sync(own).unwrap();
            let _ = ours.publish(own).unwrap();
        }
        // Theirs is lost with its token, and nothing goes on there before they open again.
        drop(other);
        let config = CheckpointConfig::new(Path::new("/other"));
        other = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    }
    other.put(b"k", b"theirs").unwrap();
    let theirs = other.write(CheckpointId(7), WalPosition(0)).unwrap();
    let theirs = other.sync(theirs).unwrap();
    let error = ours.publish(theirs).unwrap_err();
    assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)), "{error}");
    assert_eq!((ours.latest_checkpoint_id(), ours.get(b"k").unwrap()), (Some(1), None));
    assert!(ours.poisoned_by().is_none());
}

/// A checkpoint from before the log says nothing of the log, even where it has the log's identity.
#[test]
fn a_checkpoint_of_no_log_frees_nothing_of_it() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"k", b"v").unwrap();
    manager.create_checkpoint(0).unwrap();
    manager.bind_wal(manager.store_id()).unwrap();
    assert!(bound_checkpoint(&mut manager, 1, 10).unwrap().wal_floor().is_none());
    assert_eq!(bound_checkpoint(&mut manager, 2, 20).unwrap().wal_floor().unwrap().cuts, [Sequence(10)]);
}

/// The log is cut by what this manager published, never by what somebody put in its place.
#[test]
fn a_checkpoint_that_was_replaced_by_another_good_one_frees_nothing() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.bind_wal(StoreId(99)).unwrap();
    manager.put(b"k", b"v").unwrap();
    let _ = bound_checkpoint(&mut manager, 1, 10).unwrap();
    let twin = disk.snapshot().restart();
    let _ = bound_checkpoint(&mut manager, 2, 20).unwrap();
    let mut other = open(&twin).unwrap();
    other.bind_wal(StoreId(99)).unwrap();
    let _ = bound_checkpoint(&mut other, 2, 25).unwrap();
    let manifest = dir_of(2).join("metadata.json");
    disk.overwrite(&manifest, &twin.read_file(&manifest).unwrap()).unwrap();
    CheckpointReader::open(&disk, &dir_of(2)).unwrap().verify().unwrap();
    assert!(bound_checkpoint(&mut manager, 3, 30).unwrap().wal_floor().is_none());
}

/// A copy stands in for a link only where the file system has none: any other failure may be that of
/// the device, and stops the manager.
#[test]
fn a_link_that_fails_is_not_worked_around() {
    let refusals = [
        ErrorKind::CrossesDevices,
        ErrorKind::PermissionDenied,
        ErrorKind::Unsupported,
        ErrorKind::TooManyLinks,
    ];
    let failures = [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::NotFound];
    for kind in refusals.into_iter().chain(failures) {
        let disk = SimDisk::new(1);
        let vfs = Contrary::without_links(&disk, kind);
        let mut manager = IncrementalCheckpointManager::with_vfs(config(), vfs).unwrap();
        manager.put(b"k", &[1; 500]).unwrap();
        manager.create_checkpoint(0).unwrap();
        manager.put(b"l", b"v").unwrap();
        let second = manager.create_checkpoint(0);
        if refusals.contains(&kind) {
            assert_eq!(second.unwrap().files.len(), 2, "{kind}");
            continue;
        }
        let error = second.unwrap_err();
        assert!(matches!(error, IncrementalCheckpointError::Io(_)), "{kind}: {error}");
        assert!(manager.poisoned_by().is_some(), "{kind}");
    }
}

/// What is swept is gone for good, so that nothing of it can come back under a new directory of its name.
#[test]
fn what_is_swept_stays_away_after_a_power_cut() {
    let disk = SimDisk::new(1);
    let (pending, foreign) = (EntryName::Pending(CheckpointId(4)), EntryName::Trash(CheckpointId(3)));
    let dir = Path::new("/c");
    for (entry, file) in [(pending, "metadata.json"), (foreign, "mine.txt")] {
        create_dir_durably(&disk, &entry.path(dir)).unwrap();
        disk.overwrite(entry.path(dir).join(file), b"x").unwrap();
    }
    let leftovers = Listing::read(&disk, dir).unwrap().leftovers;
    assert_eq!(leftovers.len(), 2);
    assert_eq!(sweep(&disk, dir, &leftovers).unwrap(), [foreign]);
    let after = disk.snapshot().image(&ImageId::default()).mount();
    assert_eq!(Listing::read(&after, dir).unwrap().leftovers, [foreign]);
    // Where nothing went, there is nothing to make durable.
    let before = disk.stats().sync_dir;
    assert_eq!(sweep(&disk, dir, &[foreign]).unwrap(), [foreign]);
    assert_eq!(disk.stats().sync_dir, before);
}

/// The directory says which checkpoint it is going to be, to whoever looks at it meanwhile or after a crash.
#[test]
fn what_was_spilled_waits_under_the_id_that_was_chosen() {
    let disk = SimDisk::new(1);
    let mut manager = open_with(&disk, ManagerOptions { overlay_budget: 150, ..ManagerOptions::default() });
    for n in 0..50_u8 {
        manager.put(&[n], &[n; 20]).unwrap();
    }
    let leftovers = || Listing::read(&disk, Path::new("/c")).unwrap().leftovers;
    assert_eq!(leftovers(), [EntryName::Pending(CheckpointId(1))]);
    let written = manager.write(CheckpointId(40), WalPosition(0)).unwrap();
    assert_eq!(leftovers(), [EntryName::Pending(CheckpointId(40))]);
    drop(written);
}

/// Whoever has to restore a file must hear which one: that of the newest checkpoint, which has it by a link.
#[test]
fn damage_is_named_where_the_newest_checkpoint_has_it() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    manager.put(b"k", &[1; 500]).unwrap();
    let file = manager.create_checkpoint(0).unwrap().sst_files.remove(0);
    manager.put(b"l", b"v").unwrap();
    manager.create_checkpoint(0).unwrap();
    disk.flip_bit(dir_of(2).join(&file), 8 * 100).unwrap();
    let error = manager.get(b"k").unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert_eq!(error.detail().path(), Some(dir_of(2).join(&file).as_path()));
}

/// On a full disk the log needs the room more than a checkpoint that will never be published.
#[test]
fn a_checkpoint_that_found_no_room_gives_back_what_it_took() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk).unwrap();
    for n in 0..50_u8 {
        manager.put(&[n], &[n; 200]).unwrap();
    }
    disk.set_capacity(Some(3000));
    assert!(manager.create_checkpoint(0).is_err());
    assert!(Listing::read(&disk, Path::new("/c")).unwrap().leftovers.is_empty());
    assert_eq!(manager.get(&[7]).unwrap().unwrap(), [7; 200]);
}
