#![allow(clippy::cast_possible_truncation)] // small numbers made here

use std::io::ErrorKind;
use std::path::Path;

use super::*;
use crate::incremental::manager::tests::Contrary;
use crate::incremental::{CheckpointConfig, StateMap, validate_checkpoint_in};
use crate::vfs::create_dir_durably;
use crate::vfs::sim::{Duration as For, Fault, ImageId, ImagePolicy, Keep, SimDisk};

const SAVED: &str = "/saved";
const UNFINISHED_SAVED: &str = "/saved.unfinished";

fn open_on(vfs: Arc<dyn Vfs>) -> Result<IncrementalCheckpointManager> {
    let config = CheckpointConfig::new(Path::new("/c")).with_max_retained(1);
    IncrementalCheckpointManager::with_vfs(config, vfs)
}

fn open(disk: &SimDisk) -> IncrementalCheckpointManager {
    open_on(Arc::new(disk.clone())).unwrap()
}

/// Checkpoint number `n`: each has something new, something changed and something deleted.
fn checkpoint(manager: &mut IncrementalCheckpointManager, n: u8) -> Result<StateMap> {
    manager.put(&[n], &[n; 40])?;
    manager.put(b"all", &[n])?;
    if n > 1 {
        manager.delete(&[n - 1])?;
    }
    manager.set_epoch(u64::from(n));
    let id = manager.create_checkpoint(0)?.id;
    manager.load_checkpoint_state(id)
}

fn load(disk: &SimDisk, dir: &str) -> Result<StateMap> {
    let reader = CheckpointReader::open(disk, Path::new(dir))?;
    reader.verify()?;
    reader.load()
}

#[test]
fn a_savepoint_is_the_checkpoint_byte_for_byte_and_outlives_it() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    checkpoint(&mut manager, 1).unwrap();
    let state = checkpoint(&mut manager, 2).unwrap();
    let original = EntryName::Checkpoint(CheckpointId(2)).path(Path::new("/c"));
    let manifest = disk.read_file(original.join(MANIFEST_NAME)).unwrap();
    // Not in any checkpoint, so not in the savepoint.
    manager.put(b"later", b"x").unwrap();
    let receipt = manager.savepoint_with(SAVED, &[("job.json", b"{}")]).unwrap();
    assert_eq!((receipt.id, receipt.epoch, receipt.keys), (CheckpointId(2), Epoch(2), 2));
    assert_eq!((receipt.copied, receipt.path.as_path()), (0, Path::new(SAVED)));
    assert_eq!(receipt.files, validate_checkpoint_in(&disk, Path::new(SAVED)).unwrap().files.len());
    assert_eq!(disk.read_file(format!("{SAVED}/{MANIFEST_NAME}")).unwrap(), manifest);
    assert_eq!(disk.read_file(format!("{SAVED}/job.json")).unwrap(), b"{}");
    for n in 3..6 {
        checkpoint(&mut manager, n).unwrap();
    }
    assert!(disk.kind(&original).unwrap().is_none(), "retention took the checkpoint");
    assert_eq!(load(&disk, SAVED).unwrap(), state);
    let saved_again = manager.savepoint("/again").unwrap();
    assert_eq!(saved_again.id, CheckpointId(5));
    // And the other way round.
    for (path, _) in disk.files() {
        let path = Path::new("/").join(path);
        if path.starts_with("/again") || path.starts_with(SAVED) {
            disk.remove_file(&path).unwrap();
        }
    }
    drop(manager);
    assert_eq!(open(&disk).load_checkpoint_state(5).unwrap().get(b"all"), Some([5].as_slice()));
}

#[test]
fn a_savepoint_is_refused_where_it_must_not_be() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    assert!(matches!(manager.savepoint(SAVED), Err(IncrementalCheckpointError::NotFound(_))));
    checkpoint(&mut manager, 1).unwrap();
    disk.create_dir(Path::new("/there")).unwrap();
    let before = disk.files();
    for (dir, wanted) in [
        ("/c", "among the files"),
        ("/c/x", "among the files"),
        ("/c/checkpoint_0000000000000001/x", "among the files"),
        ("/there/../c/x", "among the files"),
        ("/missing/x", "does not exist"),
        ("/there", "already"),
        ("/there/", "already"),
        ("/there/checkpoint_0000000000000009", "name of a savepoint"),
        ("/there/x.unfinished", "name of a savepoint"),
        ("/", "name of a savepoint"),
    ] {
        let error = manager.savepoint(dir).unwrap_err();
        assert!(error.to_string().contains(wanted), "{dir}: {error}");
    }
    for name in ["", ".", "..", "a/b", "/a", "a/", MANIFEST_NAME, "state-0000000000000001-0000-0000.sst"] {
        let error = manager.savepoint_with(SAVED, &[(name, b"x")]).unwrap_err();
        assert!(error.to_string().contains("cannot be the name"), "{name}: {error}");
    }
    assert_eq!(disk.files(), before, "a refusal makes nothing");
    manager.savepoint("/there/x").unwrap();
}

#[test]
fn what_a_crash_left_is_removed_and_what_others_left_is_not() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    let state = checkpoint(&mut manager, 1).unwrap();
    disk.create_dir(Path::new(UNFINISHED_SAVED)).unwrap();
    for name in [MANIFEST_NAME, "state-0000000000000001-0000-8000.sst", "job.json"] {
        disk.create_new(&Path::new(UNFINISHED_SAVED).join(name)).unwrap();
    }
    let error = manager.savepoint(SAVED).unwrap_err();
    assert!(error.to_string().contains("another origin"), "{error}");
    assert!(disk.kind(&Path::new(UNFINISHED_SAVED).join("job.json")).unwrap().is_some());
    manager.savepoint_with(SAVED, &[("job.json", b"1")]).unwrap();
    assert!(disk.kind(Path::new(UNFINISHED_SAVED)).unwrap().is_none());
    assert_eq!(load(&disk, SAVED).unwrap(), state);
}

#[test]
fn a_savepoint_without_links_is_a_copy() {
    let disk = SimDisk::new(1);
    let mut manager = open_on(Contrary::without_links(&disk, ErrorKind::CrossesDevices)).unwrap();
    checkpoint(&mut manager, 1).unwrap();
    let state = checkpoint(&mut manager, 2).unwrap();
    let receipt = manager.savepoint(SAVED).unwrap();
    assert!(receipt.copied > 0 && receipt.copied == receipt.files, "{receipt:?}");
    for image in disk.snapshot().images(&few_images()) {
        assert_eq!(load(&image.mount(), SAVED).unwrap(), state);
    }
}

fn few_images() -> ImagePolicy {
    ImagePolicy { exhaustive_bits: 6, random: 6, torn_cuts: 1, ..ImagePolicy::default() }
}

/// Two checkpoints, a savepoint of the second, and a third, which removes the second.
fn history(disk: &SimDisk, vfs: Arc<dyn Vfs>, done: &mut Option<u64>) -> Result<()> {
    let mut manager = open_on(vfs)?;
    checkpoint(&mut manager, 1)?;
    checkpoint(&mut manager, 2)?;
    manager.savepoint_with(SAVED, &[("job.json", b"{\"a\":1}")])?;
    *done = Some(disk.ops());
    checkpoint(&mut manager, 3)?;
    Ok(())
}

#[test]
fn a_power_cut_after_any_operation_leaves_a_savepoint_or_none() {
    for links in [true, false] {
        let disk = SimDisk::new(3);
        disk.record(true);
        let vfs: Arc<dyn Vfs> = if links {
            Arc::new(disk.clone())
        } else {
            Contrary::without_links(&disk, ErrorKind::CrossesDevices)
        };
        let mut done = None;
        history(&disk, vfs, &mut done).unwrap();
        let done = done.unwrap();
        let model = load(&disk, SAVED).unwrap();
        let (mut absent, mut complete, mut leftovers) = (0, 0, 0);
        for snapshot in disk.history() {
            for image in snapshot.images(&few_images()) {
                let disk = image.mount();
                let place = format!("links {links} op {} image {:?}", snapshot.op(), image.id());
                let mut manager = open_on(Arc::new(disk.clone())).unwrap_or_else(|e| panic!("{place}: {e}"));
                leftovers += u64::from(disk.kind(Path::new(UNFINISHED_SAVED)).unwrap().is_some());
                if disk.kind(Path::new(SAVED)).unwrap().is_some() {
                    assert_eq!(
                        load(&disk, SAVED).unwrap_or_else(|e| panic!("{place}: {e}")),
                        model,
                        "{place}"
                    );
                    assert_eq!(disk.read_file("/saved/job.json").unwrap(), b"{\"a\":1}", "{place}");
                    complete += 1;
                } else {
                    assert!(snapshot.op() < done, "{place}: it was there");
                    absent += 1;
                    // The same call makes it.
                    let state = checkpoint(&mut manager, 9).unwrap_or_else(|e| panic!("{place}: {e}"));
                    manager
                        .savepoint_with(SAVED, &[("job.json", b"2")])
                        .unwrap_or_else(|e| panic!("{place}: {e}"));
                    assert_eq!(load(&disk, SAVED).unwrap(), state, "{place}");
                }
                checkpoint(&mut manager, 10).unwrap_or_else(|e| panic!("{place}: {e}"));
            }
        }
        assert!(absent > 20 && complete > 20 && leftovers > 20, "{absent} {complete} {leftovers}");
    }
}

#[test]
fn a_savepoint_that_fails_harms_nobody() {
    let clean = SimDisk::new(3);
    let mut manager = open(&clean);
    checkpoint(&mut manager, 1).unwrap();
    checkpoint(&mut manager, 2).unwrap();
    let before = clean.ops();
    manager.savepoint(SAVED).unwrap();
    let after = clean.ops();
    let faults = [
        Fault::Eio,
        Fault::EioAfter,
        Fault::Enospc,
        Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false },
        Fault::SyncDropsAndCleans { keep: Keep::All, reads_old: true },
        Fault::SyncDropsAndCleans { keep: Keep::All, reads_old: false },
    ];
    let mut failed = 0;
    for (fault, links) in faults.into_iter().flat_map(|fault| [(fault, true), (fault, false)]) {
        // Copying takes more operations.
        for op in before + 1..=after + if links { 0 } else { 8 } {
            for duration in [For::Once, For::Forever] {
                let disk = SimDisk::new(3);
                let vfs: Arc<dyn Vfs> = if links {
                    Arc::new(disk.clone())
                } else {
                    Contrary::without_links(&disk, ErrorKind::CrossesDevices)
                };
                let mut manager = open_on(vfs).unwrap();
                checkpoint(&mut manager, 1).unwrap();
                let state = checkpoint(&mut manager, 2).unwrap();
                let place = format!("op {op} {fault:?} {duration:?} links {links}");
                disk.fail_op(op, fault, duration);
                let result = manager.savepoint(SAVED);
                disk.clear_faults();
                // Also when the power fails while it is taken back: it once had its name on disk, and no manifest.
                for image in disk.snapshot().images(&few_images()).map(|image| image.mount()) {
                    if image.kind(Path::new(SAVED)).unwrap().is_some() {
                        assert_eq!(load(&image, SAVED).unwrap(), state, "{place}");
                    }
                }
                assert!(manager.poisoned_by().is_none(), "{place}");
                if let Err(error) = &result {
                    failed += 1;
                    assert!(error.to_string().contains("the store goes on"), "{place}: {error}");
                    // If the disk let us take nothing back, what is there is complete.
                    if disk.kind(Path::new(SAVED)).unwrap().is_some() {
                        assert_eq!(load(&disk, SAVED).unwrap(), state, "{place}");
                    } else {
                        manager.savepoint(SAVED).unwrap_or_else(|e| panic!("{place}: {e}"));
                        for image in disk.snapshot().images(&few_images()) {
                            assert_eq!(load(&image.mount(), SAVED).unwrap(), state, "{place}");
                        }
                    }
                }
                checkpoint(&mut manager, 3).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert_eq!(load(&disk, SAVED).unwrap(), state, "{place}");
            }
        }
    }
    assert!(failed > 80, "{failed}");
}

#[test]
fn a_damaged_checkpoint_makes_no_savepoint() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    checkpoint(&mut manager, 1).unwrap();
    let manifest = EntryName::Checkpoint(CheckpointId(1)).path(Path::new("/c")).join(MANIFEST_NAME);
    disk.flip_bit(&manifest, 99).unwrap();
    assert!(manager.savepoint(SAVED).unwrap_err().is_corruption());
    assert!(disk.kind(Path::new(SAVED)).unwrap().is_none());
    disk.flip_bit(&manifest, 99).unwrap();
    manager.savepoint(SAVED).unwrap();
}

/// The disk took every write and every sync and still has something else under the final name.
#[test]
fn what_reads_back_different_is_no_savepoint() {
    let damages: [fn(&SimDisk, &Path); 3] = [
        |disk, dir| disk.flip_bit(dir.join("job.json"), 3).unwrap(),
        |disk, dir| disk.flip_bit(dir.join(MANIFEST_NAME), 8 * 70).unwrap(),
        |disk, dir| drop(disk.remove(dir.join("state-0000000000000001-0000-8000.sst"))),
    ];
    for (nth, damage) in damages.into_iter().enumerate() {
        let disk = SimDisk::new(1);
        let mut manager = open(&disk);
        checkpoint(&mut manager, 1).unwrap();
        drop(manager);
        let manager = open_on(Contrary::meddling(&disk, damage)).unwrap();
        let error = manager.savepoint_with(SAVED, &[("job.json", b"{}")]).unwrap_err();
        assert!(error.is_corruption(), "{nth}: {error}");
        assert!(disk.kind(Path::new(SAVED)).unwrap().is_none(), "{nth}");
        assert!(manager.poisoned_by().is_none(), "{nth}: {error}");
    }
}

/// Files of the store are durable where they are, and a sync of them would wait for nothing.
#[test]
fn a_savepoint_by_links_syncs_its_own_files_only() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    checkpoint(&mut manager, 1).unwrap();
    checkpoint(&mut manager, 2).unwrap();
    let before = disk.stats().sync_data;
    manager.savepoint_with(SAVED, &[("job.json", b"{}")]).unwrap();
    assert_eq!(disk.stats().sync_data - before, 2);
}

const NEW: &str = "/new";

/// A savepoint of two changes, and a place for a new set of checkpoints.
fn saved() -> (SimDisk, StateMap) {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    checkpoint(&mut manager, 1).unwrap();
    let state = checkpoint(&mut manager, 2).unwrap();
    manager.savepoint(SAVED).unwrap();
    drop(manager);
    create_dir_durably(&disk, Path::new(NEW)).unwrap();
    (disk, state)
}

fn begin(disk: &SimDisk, has_log: bool) -> Result<Imported> {
    import(disk, Path::new(SAVED), Path::new(NEW), has_log)
}

fn first_of_new() -> PathBuf {
    EntryName::Checkpoint(CheckpointId(2)).path(Path::new(NEW))
}

#[test]
fn a_savepoint_becomes_the_first_checkpoint_and_the_same_one_again() {
    let (disk, state) = saved();
    // What an earlier try left is no state.
    let unfinished = EntryName::Pending(CheckpointId(2)).path(Path::new(NEW));
    create_dir_durably(&disk, &unfinished).unwrap();
    for (has_log, existed) in [(false, false), (false, true), (true, true)] {
        let imported = begin(&disk, has_log).unwrap();
        assert_eq!((imported.epoch, imported.existed), (Epoch(2), existed));
        assert_eq!(load(&disk, &first_of_new().display().to_string()).unwrap(), state);
    }
    assert!(disk.kind(&unfinished).unwrap().is_none());
}

#[test]
fn a_savepoint_is_not_put_where_there_is_or_was_a_state() {
    let refused = |disk: &SimDisk, has_log, what: &str| {
        let before = disk.files();
        let error = begin(disk, has_log).unwrap_err();
        assert!(matches!(error, IncrementalCheckpointError::AlreadyExists(_)), "{what}: {error}");
        assert_eq!(disk.files(), before, "{what}");
    };
    refused(&saved().0, true, "a log");
    let (disk, _) = saved();
    create_dir_durably(&disk, &EntryName::Trash(CheckpointId(1)).path(Path::new(NEW))).unwrap();
    refused(&disk, false, "checkpoints that were removed");
    let (disk, _) = saved();
    let config = CheckpointConfig::new(Path::new(NEW));
    let mut other = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    checkpoint(&mut other, 1).unwrap();
    refused(&disk, false, "a checkpoint of another id");
    checkpoint(&mut other, 2).unwrap();
    refused(&disk, false, "a checkpoint of the same id and another content");
}

/// Whoever copied the savepoint to where it is need not have synced it, and links do not make it durable.
#[test]
fn what_was_copied_without_a_sync_is_durable_once_it_is_a_checkpoint() {
    let (disk, state) = saved();
    let copied = Path::new("/copied");
    disk.create_dir(copied).unwrap();
    for (name, _) in disk.read_dir(Path::new(SAVED)).unwrap() {
        let bytes = disk.read_file(Path::new(SAVED).join(&name)).unwrap();
        let file = disk.create_new(&copied.join(&name)).unwrap();
        write_all_at(file.as_ref(), &bytes, 0).unwrap();
    }
    import(&disk, copied, Path::new(NEW), false).unwrap();
    let after = disk.snapshot().image(&ImageId::default()).mount();
    assert_eq!(load(&after, &first_of_new().display().to_string()).unwrap(), state);
}

#[test]
fn on_a_full_disk_the_advice_is_to_free_space() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk);
    checkpoint(&mut manager, 1).unwrap();
    disk.set_capacity(Some(0));
    let error = manager.savepoint(SAVED).unwrap_err();
    assert!(error.to_string().contains("Free space"), "{error}");
    disk.set_capacity(None);
    manager.savepoint(SAVED).unwrap();
}
