//! Savepoints of a store, and new stores that begin with one: what they hold, that neither side can harm
//! the other, and that a crash at any moment leaves all of it or nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::incremental::{
    CheckpointConfig, CheckpointReader, IncrementalCheckpointError, IncrementalCheckpointManager, diff,
    validate_checkpoint, validate_checkpoint_in,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};
use laminar_storage::{
    CoreStore, DigestCheck, Epoch, Health, Opened, Router, Settings, StateReader, Store, StoreBuilder,
    StoreError,
};

const STATE: &str = "/state";
const SAVED: &str = "/saved";
const FORK: &str = "/fork";

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn settings() -> Settings {
    Settings {
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        segment_bytes: 4 << 10,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        max_retained: 2,
        ..Settings::default()
    }
}

fn builder(disk: &SimDisk, dir: &str) -> StoreBuilder {
    Store::builder(dir).cores(2).settings(settings()).vfs(Arc::new(disk.clone()))
}

fn put(cores: &mut [CoreStore], key: &str, value: &str) {
    let core = Router::default().route(key.as_bytes(), cores.len());
    cores[core].put(key.as_bytes(), value.as_bytes()).unwrap();
}

fn seal(store: &Store, cores: &mut [CoreStore]) -> Result<Epoch, StoreError> {
    let mut epoch = Epoch::ZERO;
    for core in cores {
        epoch = core.seal_epoch()?;
    }
    store.wait_durable(epoch)?;
    Ok(epoch)
}

fn contents(cores: &[CoreStore]) -> State {
    cores.iter().flat_map(|core| core.iter()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

fn saved_state(disk: &SimDisk, dir: &str) -> State {
    CheckpointReader::open(disk, Path::new(dir)).unwrap().load().unwrap().into_iter().collect()
}

/// A store with some epochs and checkpoints, a savepoint of it, and what the savepoint holds.
fn saved(disk: &SimDisk) -> (Opened, Epoch, State) {
    let mut opened = builder(disk, STATE).open().unwrap();
    let cores = &mut opened.cores;
    for round in 0..3 {
        for n in round..round + 4 {
            put(cores, &format!("key{n}"), &format!("{round}/{n}"));
        }
        cores[1].set_source_offset("orders", round * 10 + 7);
        cores[0].set_watermark(5);
        cores[1].set_watermark(-3);
        seal(&opened.store, cores).unwrap();
        opened.store.checkpoint().unwrap();
    }
    let state = contents(cores);
    put(cores, "later", "not sealed");
    let receipt = opened.store.savepoint(SAVED).unwrap();
    assert_eq!((receipt.epoch, receipt.keys), (opened.store.durable_epoch(), state.len() as u64));
    assert_eq!(saved_state(disk, SAVED), state);
    let epoch = receipt.epoch;
    (opened, epoch, state)
}

#[test]
fn a_savepoint_of_everything_durable_outlives_the_store() {
    let disk = SimDisk::new(1);
    let (mut opened, epoch, state) = saved(&disk);
    for round in 0..4 {
        put(&mut opened.cores, "key0", &round.to_string());
        seal(&opened.store, &mut opened.cores).unwrap();
        // One that needs a checkpoint of its own first.
        let receipt = opened.store.savepoint(format!("/saved-{round}")).unwrap();
        assert_eq!(receipt.epoch, opened.store.durable_epoch());
        assert_eq!(saved_state(&disk, &format!("/saved-{round}")), contents(&opened.cores));
    }
    assert_eq!(saved_state(&disk, SAVED), state, "retention did not touch it");
    assert!(matches!(opened.store.health(), Health::Running));
    let metadata = validate_checkpoint_in(&disk, Path::new(SAVED)).unwrap();
    assert_eq!((metadata.epoch, metadata.watermark), (epoch.get(), Some(-3)));
    assert_eq!(metadata.source_offsets["orders"], 27);
}

#[test]
fn an_empty_store_has_a_savepoint_too() {
    let disk = SimDisk::new(1);
    let opened = builder(&disk, STATE).open().unwrap();
    assert_eq!(opened.store.savepoint(SAVED).unwrap().keys, 0);
    let forked = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
    assert_eq!(forked.report.recovery_point, Epoch::ZERO);
    assert_eq!(contents(&forked.cores), State::new());
}

#[test]
fn savepoints_are_refused_where_they_must_not_be() {
    let disk = SimDisk::new(1);
    let (mut opened, ..) = saved(&disk);
    put(&mut opened.cores, "key0", "new");
    seal(&opened.store, &mut opened.cores).unwrap();
    let checkpoints = opened.store.stats().checkpoints;
    for (dir, wanted) in [
        (SAVED, "already"),
        ("/state/wal/x", "among the files"),
        ("/state/checkpoints/x", "among the files"),
        ("/nowhere/x", "does not exist"),
    ] {
        let error = opened.store.savepoint(dir).unwrap_err();
        assert!(matches!(&error, StoreError::InvalidInput(d) if d.to_string().contains(wanted)), "{error}");
    }
    assert_eq!(opened.store.stats().checkpoints, checkpoints, "a refusal costs no checkpoint");
    opened.store.savepoint("/state/inside").unwrap();
    drop(opened);
    // It is nothing to the store.
    assert_eq!(contents(&builder(&disk, STATE).open().unwrap().cores)[b"key0".as_slice()], b"new");
}

#[test]
fn a_fork_goes_on_by_itself_with_any_number_of_cores() {
    for cores in [2, 1, 5] {
        let disk = SimDisk::new(1);
        let (mut original, epoch, state) = saved(&disk);
        let fork = || builder(&disk, FORK).cores(cores);
        let Opened { store, cores: mut forked, report } = fork().from_savepoint(SAVED).open().unwrap();
        assert_eq!((report.recovery_point, report.digest), (epoch, DigestCheck::Verified), "{cores}");
        assert_eq!((report.source_offsets["orders"], report.watermark), (27, Some(-3)), "{cores}");
        assert_eq!(contents(&forked), state, "{cores}");
        put(&mut forked, "fork", "1");
        let first = seal(&store, &mut forked).unwrap();
        assert!(first > epoch);
        put(&mut original.cores, "original", "1");
        seal(&original.store, &mut original.cores).unwrap();
        // As after a crash: from the log on top of the savepoint, then on top of its own checkpoints.
        for round in 0..4 {
            let disk = disk.snapshot().flushed().mount();
            let opened = builder(&disk, FORK).cores(cores).open().unwrap();
            let mut expected = contents(&forked);
            assert_eq!(contents(&opened.cores), expected, "{cores}");
            assert!(!expected.contains_key(b"original".as_slice()));
            assert_eq!(opened.report.source_offsets["orders"], 27);
            put(&mut forked, "fork", &round.to_string());
            seal(&store, &mut forked).unwrap();
            store.checkpoint().unwrap();
            expected = contents(&forked);
            let reader = StateReader::open_with(FORK, Arc::new(disk.clone())).unwrap();
            assert_eq!(reader.report().recovery_point, opened.report.recovery_point);
            assert_eq!(expected.len(), state.len() + 1);
        }
        // A fork of the fork.
        store.savepoint("/saved-fork").unwrap();
        let expected = contents(&forked);
        drop((store, forked));
        let again = builder(&disk, "/fork2").cores(cores + 1).from_savepoint("/saved-fork").open().unwrap();
        assert_eq!(contents(&again.cores), expected, "{cores}");
        assert_eq!(contents(&fork().open().unwrap().cores), expected, "{cores}");
        assert_eq!(saved_state(&disk, SAVED), state, "{cores}");
        assert!(contents(&original.cores).contains_key(b"original".as_slice()));
    }
}

#[test]
fn checkpoints_made_without_a_store_can_begin_one() {
    let disk = SimDisk::new(1);
    let config = CheckpointConfig::new(Path::new("/c"));
    let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    manager.put(b"a", b"1").unwrap();
    manager.set_epoch(41);
    manager.create_checkpoint(0).unwrap();
    manager.savepoint(SAVED).unwrap();
    let opened = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
    assert_eq!(opened.report.recovery_point, Epoch(41));
    assert_eq!(contents(&opened.cores)[b"a".as_slice()], b"1");
}

/// Nothing of a savepoint goes into a directory that has a state, but a try that was interrupted, or that
/// nothing followed, may be made again.
#[test]
fn a_savepoint_is_never_mixed_with_a_state() {
    let disk = SimDisk::new(1);
    let (opened, epoch, state) = saved(&disk);
    drop(opened);
    let refused = |dir: &str, from: &str| {
        let before = disk.files();
        let error = builder(&disk, dir).from_savepoint(from).open().unwrap_err();
        assert!(matches!(&error, StoreError::InvalidInput(_)), "{error}");
        let without_locks = |files: Vec<(PathBuf, u64)>| -> Vec<_> {
            files.into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect()
        };
        assert_eq!(without_locks(disk.files()), without_locks(before), "a refusal changes nothing");
        error.to_string()
    };
    assert!(refused(STATE, SAVED).contains("there is a state already"));
    assert!(refused(FORK, "/nowhere").contains("no savepoint"));
    assert!(refused(FORK, STATE).contains("no savepoint"));
    for _ in 0..2 {
        let opened = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
        assert_eq!((opened.report.recovery_point, contents(&opened.cores)), (epoch, state.clone()));
    }
    let mut opened = builder(&disk, FORK).open().unwrap();
    opened.store.savepoint("/saved-fork").unwrap();
    assert!(refused("/saved-fork", "/saved-fork").contains("inside the savepoint"));
    assert!(refused("/saved-fork/x", "/saved-fork").contains("inside the savepoint"));
    put(&mut opened.cores, "fork", "1");
    seal(&opened.store, &mut opened.cores).unwrap();
    drop(opened);
    assert!(refused(FORK, SAVED).contains("there is a state already"));
    // Of another savepoint than the one that is there.
    let mut other = builder(&disk, "/other").from_savepoint(SAVED).open().unwrap();
    put(&mut other.cores, "other", "1");
    seal(&other.store, &mut other.cores).unwrap();
    other.store.savepoint("/saved-other").unwrap();
    drop(other);
    drop(builder(&disk, "/fork2").from_savepoint("/saved-other").open().unwrap());
    assert!(refused("/fork2", SAVED).contains("there is a state already"));
}

/// A log that was begun on a savepoint does not begin where the state begins. Without the checkpoint that the
/// savepoint became, it looked like a complete, empty log, and opening gave an empty state at the
/// savepoint's epoch, without a word.
#[test]
fn a_fork_that_lost_its_savepoint_is_refused_and_not_empty() {
    let all =
        [(false, 0), (true, 0), (false, 1), (false, 2)].map(|case| [(case, "remove"), (case, "damage")]);
    for ((change, idle_openings), then) in all.into_iter().flatten() {
        let disk = SimDisk::new(1);
        let (original, _, state) = saved(&disk);
        drop(original);
        let mut opened = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
        if change {
            put(&mut opened.cores, "fork", "1");
            seal(&opened.store, &mut opened.cores).unwrap();
        }
        opened.cores.clear();
        opened.store.close().unwrap();
        // The second log of a fork has a predecessor, and still nothing of what the fork began with.
        for _ in 0..idle_openings {
            builder(&disk, FORK).open().unwrap().store.close().unwrap();
        }
        let imported: Vec<_> = disk.files().into_iter().map(|(path, _)| Path::new("/").join(path)).collect();
        let imported =
            imported.iter().filter(|path| path.starts_with("/fork/checkpoints/checkpoint_0000000000000003"));
        let mut changed = 0;
        for path in imported {
            changed += 1;
            if then == "remove" {
                disk.remove_file(path).unwrap();
            } else if path.ends_with("metadata.json") {
                disk.flip_bit(path, 200).unwrap();
            }
        }
        assert!(changed > 1);
        if then == "remove" {
            disk.remove_dir(Path::new("/fork/checkpoints/checkpoint_0000000000000003")).unwrap();
        }
        let error = builder(&disk, FORK).open().unwrap_err();
        assert!(error.is_corruption(), "{change} {idle_openings} {then}: {error}");
        let error = StateReader::open_with(FORK, Arc::new(disk.clone())).unwrap_err();
        assert!(error.is_corruption(), "{change} {idle_openings} {then}: {error}");
        assert_eq!(saved_state(&disk, SAVED), state, "the savepoint's own manifest is another file");
    }
}

#[test]
fn a_damaged_savepoint_is_an_error_and_makes_no_store() {
    let disk = SimDisk::new(1);
    let (opened, _, state) = saved(&disk);
    drop(opened);
    let files: Vec<_> =
        disk.files().into_iter().map(|(path, len)| (Path::new("/").join(path), len)).collect();
    let mut tried = 0;
    for (path, len) in files.iter().filter(|(path, _)| path.starts_with(SAVED)) {
        for byte in 0..*len {
            disk.flip_bit(path, byte * 8 + byte % 8).unwrap();
            let error = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap_err();
            let place = format!("{} byte {byte}: {error}", path.display());
            assert!(matches!(error, StoreError::Corruption(_) | StoreError::NewerFormat(_)), "{place}");
            assert!(error.detail().path().is_some_and(|at| at.starts_with(SAVED)), "{place}");
            disk.flip_bit(path, byte * 8 + byte % 8).unwrap();
            tried += 1;
        }
    }
    assert!(tried > 500, "{tried}");
    assert!(disk.read_dir(Path::new("/fork/checkpoints")).unwrap().iter().all(|(name, _)| name == "LOCK"));
    for (path, _) in files.iter().filter(|(path, _)| path.starts_with(SAVED)) {
        let bytes = disk.read_file(path).unwrap();
        disk.remove_file(path).unwrap();
        builder(&disk, FORK).from_savepoint(SAVED).open().unwrap_err();
        disk.create_new(path).unwrap();
        disk.overwrite(path, &bytes).unwrap();
    }
    let opened = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
    assert_eq!(contents(&opened.cores), state);
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_store_goes_on() {
    let disk = SimDisk::new(1);
    let (mut opened, ..) = saved(&disk);
    disk.set_capacity(Some(0));
    let error = opened.store.savepoint("/more").unwrap_err();
    assert!(matches!(&error, StoreError::Io(_)), "{error}");
    assert!(error.to_string().contains("Free space") && error.to_string().contains("goes on"), "{error}");
    assert!(disk.kind(Path::new("/more")).unwrap().is_none());
    let error = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap_err();
    assert!(matches!(&error, StoreError::Io(_)), "{error}");
    disk.set_capacity(None);
    assert!(matches!(opened.store.health(), Health::Running));
    put(&mut opened.cores, "key0", "after");
    seal(&opened.store, &mut opened.cores).unwrap();
    opened.store.checkpoint().unwrap();
    opened.store.savepoint("/more").unwrap();
    assert_eq!(saved_state(&disk, "/more"), contents(&opened.cores));
    builder(&disk, FORK).from_savepoint("/more").open().unwrap();
}

/// Whatever moment the power goes while a fork is begun: there is no store yet, and the same call begins it, or
/// the fork is there.
#[test]
fn a_power_cut_while_a_fork_is_begun_leaves_a_fork_or_nothing() {
    // With one checkpoint to be kept, re-sharding removed the one that the fork began with, and with it the
    // only sign that the fork may be begun again.
    for (cores, max_retained) in [(2, 2), (3, 2), (3, 1)] {
        let disk = SimDisk::new(7);
        let (original, epoch, state) = saved(&disk);
        drop(original);
        let disk = disk.snapshot().flushed().mount();
        disk.record(true);
        let builder = |disk: &SimDisk, dir: &str| {
            builder(disk, dir).cores(cores).settings(Settings { max_retained, ..settings() })
        };
        let mut opened = builder(&disk, FORK).from_savepoint(SAVED).open().unwrap();
        let returned = disk.ops();
        put(&mut opened.cores, "fork", "1");
        let own = seal(&opened.store, &mut opened.cores).unwrap();
        let acked = disk.ops();
        let after = contents(&opened.cores);
        opened.store.checkpoint().unwrap();
        drop(opened);
        let policy = ImagePolicy { exhaustive_bits: 4, random: 4, torn_cuts: 1, ..ImagePolicy::default() };
        let (mut begun, mut refused) = (0, 0);
        for snapshot in disk.history() {
            for image in snapshot.images(&policy) {
                let disk = image.mount();
                let place = format!("{cores} cores, op {} image {:?}", snapshot.op(), image.id());
                let open = |again: bool| {
                    let builder = builder(&disk, FORK);
                    if again { builder.from_savepoint(SAVED).open() } else { builder.open() }
                };
                assert_eq!(saved_state(&disk, SAVED), state, "{place}");
                let opened = match open(true) {
                    Ok(opened) => {
                        begun += 1;
                        assert!(snapshot.op() < acked, "{place}: what was acknowledged was passed over");
                        assert_eq!(opened.report.recovery_point, epoch, "{place}");
                        opened
                    }
                    Err(StoreError::InvalidInput(_)) => {
                        refused += 1;
                        assert!(snapshot.op() >= returned, "{place}: nothing was changed yet");
                        open(false).unwrap_or_else(|e| panic!("{place}: {e}"))
                    }
                    Err(error) => panic!("{place}: {error}"),
                };
                let point = opened.report.recovery_point;
                assert!(point == epoch || point == own, "{place}: {point}");
                assert!(snapshot.op() < acked || point == own, "{place}: {point}");
                assert_eq!(
                    contents(&opened.cores),
                    if point == own { after.clone() } else { state.clone() },
                    "{place}"
                );
                assert_eq!(opened.report.source_offsets["orders"], 27, "{place}");
                drop(opened);
                // And it is there for good.
                let opened = open(false).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert_eq!(opened.report.recovery_point, point, "{place}");
            }
        }
        assert!(begun > 50 && refused > 50, "{begun} {refused}");
    }
}

#[test]
fn on_a_real_disk_each_side_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let open = |name: &str| Store::builder(at(name)).cores(2).settings(settings());
    let mut opened = open("state").open().unwrap();
    for n in 0..200 {
        put(&mut opened.cores, &format!("key{n}"), &"x".repeat(n));
    }
    let epoch = seal(&opened.store, &mut opened.cores).unwrap();
    let state = contents(&opened.cores);
    let receipt = opened.store.savepoint_with(at("saved"), &[("note", b"hello")]).unwrap();
    assert_eq!((receipt.epoch, receipt.path), (epoch, at("saved")));
    opened.store.savepoint(at("gone")).unwrap();
    // A savepoint that is deleted is nothing to the store.
    std::fs::remove_dir_all(at("gone")).unwrap();
    put(&mut opened.cores, "key0", "changed");
    seal(&opened.store, &mut opened.cores).unwrap();
    drop(opened);
    let opened = open("state").open().unwrap();
    assert_eq!(contents(&opened.cores)[b"key0".as_slice()], b"changed");
    drop(opened);
    // Nor is the store anything to its savepoint, or the savepoint to its fork.
    std::fs::remove_dir_all(at("state")).unwrap();
    assert_eq!(validate_checkpoint(&at("saved")).unwrap().key_count, 200);
    assert_eq!(std::fs::read(at("saved/note")).unwrap(), b"hello");
    drop(open("fork").from_savepoint(at("saved")).open().unwrap());
    std::fs::rename(at("saved"), at("moved")).unwrap();
    std::fs::remove_dir_all(at("moved")).unwrap();
    let opened = open("fork").open().unwrap();
    assert_eq!(contents(&opened.cores), state);
    opened.store.savepoint(at("saved")).unwrap();
    assert_eq!(validate_checkpoint(&at("saved")).unwrap().key_count, 200);
}

/// Savepoints while changes, seals and automatic checkpoints go on.
#[test]
fn savepoints_of_a_busy_store_are_each_one_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let busy = Settings { checkpoint_interval_ms: 1, max_retained: 1, ..settings() };
    let Opened { store, mut cores, .. } =
        Store::builder(dir.path().join("state")).cores(1).settings(busy).open().unwrap();
    let mut core = cores.remove(0);
    let writer = std::thread::spawn(move || {
        for n in 1..=400_u64 {
            // Every epoch has the same number under two keys.
            core.put(b"a", &n.to_le_bytes()).unwrap();
            core.put(b"b", &n.to_le_bytes()).unwrap();
            core.put(format!("key{n}").as_bytes(), &[0; 50]).unwrap();
            core.seal_epoch().unwrap();
        }
        core
    });
    let mut made = Vec::new();
    while !writer.is_finished() || made.is_empty() {
        let saved = dir.path().join(format!("saved{}", made.len()));
        let before = store.durable_epoch();
        let receipt = store.savepoint(&saved).unwrap();
        assert!(receipt.epoch >= before);
        made.push(saved);
    }
    drop(writer.join().unwrap());
    let vfs: Arc<dyn Vfs> = Arc::new(laminar_storage::vfs::OsVfs::new());
    let mut before: Option<CheckpointReader> = None;
    for saved in &made {
        validate_checkpoint(saved).unwrap();
        let reader = CheckpointReader::open(vfs.as_ref(), saved).unwrap();
        let state = reader.load().unwrap();
        assert_eq!(state.get(b"a"), state.get(b"b"));
        if let Some(before) = &before {
            let summary = diff(before, &reader, |_| Ok::<_, IncrementalCheckpointError>(())).unwrap();
            assert_eq!(summary.removed, 0);
            assert_eq!(summary.is_equal(), before.metadata().epoch == reader.metadata().epoch);
        }
        before = Some(reader);
    }
    store.close().unwrap();
}
