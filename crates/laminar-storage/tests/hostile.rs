//! Bad surroundings: no space, no permission, a newer format, strange files. Each is a clear error or
//! harmless, and nothing that was acknowledged is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;

use laminar_storage::format::checksum::crc32c;
use laminar_storage::format::segment_header::SEGMENT_HEADER_LEN;
use laminar_storage::vfs::sim::{Duration, Fault, SimDisk};
use laminar_storage::{Epoch, Health, Opened, Settings, StateReader, Store, StoreBuilder, StoreError};

fn small() -> Settings {
    Settings {
        segment_bytes: 64 << 10,
        preallocate_bytes: 0,
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        ..Settings::default()
    }
}

fn on(disk: &SimDisk) -> StoreBuilder {
    Store::builder("/store").settings(small()).vfs(Arc::new(disk.clone()))
}

/// Writes epochs of one key each until something fails; returns the last acknowledged one.
fn write_until_error(opened: &mut Opened) -> (Epoch, StoreError) {
    let mut acked = opened.report.recovery_point;
    for round in 0_u32.. {
        let mut step = || -> Result<Epoch, StoreError> {
            let core = &mut opened.cores[0];
            core.put(&(round % 50).to_le_bytes(), &[7; 500])?;
            core.set_source_offset("rounds", u64::from(round));
            let epoch = core.seal_epoch()?;
            opened.store.wait_durable(epoch)?;
            if round % 20 == 19 {
                opened.store.checkpoint()?;
            }
            Ok(epoch)
        };
        match step() {
            Ok(epoch) => acked = epoch,
            Err(error) => return (acked, error),
        }
    }
    unreachable!("the loop ends with an error only")
}

/// A store that stopped because the disk was full has to start without space, or whoever restarts it has nothing. Again and
/// again, it has the state, and refuses every change with the cause.
fn reads_without_a_free_byte(disk: &SimDisk, reader: &StateReader) {
    disk.set_capacity(Some(0));
    for _ in 0..3 {
        let Opened { store, mut cores, report } = on(disk).open().unwrap();
        assert_eq!(report.recovery_point, reader.report().recovery_point);
        assert_eq!((report.keys, cores[0].len() as u64), (reader.report().keys, reader.report().keys));
        assert!(cores[0].iter().all(|(key, value)| reader.get(key) == Some(value)));
        assert_eq!(cores[0].source_offsets(), &reader.report().source_offsets);
        store.wait_durable(report.recovery_point).unwrap();
        let is_full = |error: StoreError| {
            let text = error.to_string();
            assert!(matches!(error, StoreError::Poisoned(_)) && error.detail().is_out_of_space(), "{text}");
            assert!(text.contains("/store/wal") && text.contains("Free space"), "{text}");
        };
        is_full(cores[0].put(b"k", b"v").unwrap_err());
        is_full(cores[0].try_put(b"k", b"v").unwrap_err());
        is_full(cores[0].delete(b"k").unwrap_err());
        is_full(cores[0].seal_epoch().unwrap_err());
        is_full(store.checkpoint().unwrap_err());
        is_full(store.savepoint("/saved").unwrap_err());
        assert!(on(disk).open().is_err_and(|error| matches!(error, StoreError::Locked(_))));
        let Health::Poisoned(cause) = store.health() else { panic!("{:?}", store.health()) };
        is_full(cause);
        is_full(store.close().unwrap_err());
    }
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    for budget in [0, 100, 5_000, 40_000, 70_000, 200_000] {
        let disk = SimDisk::new(1);
        let mut opened = on(&disk).open().unwrap();
        disk.set_capacity(Some(budget));
        let (acked, error) = write_until_error(&mut opened);
        let text = error.to_string();
        assert!(text.contains("/store/"), "names the place: {text}");
        assert!(text.contains("Free space"), "says what to do: {text}");
        if let Health::Poisoned(cause) = opened.store.health() {
            assert!(cause.to_string().contains("/store/"), "{cause}");
            let again = opened.cores[0].put(b"k", b"v").unwrap_err();
            assert!(matches!(again, StoreError::Poisoned(_)), "{again}");
        }
        drop(opened);
        // Looking needs no space at all.
        let reader = StateReader::open_with("/store", Arc::new(disk.clone())).unwrap();
        assert!(reader.report().recovery_point >= acked, "budget {budget}");
        reads_without_a_free_byte(&disk, &reader);
        // With space again the store goes on from everything acknowledged.
        disk.set_capacity(None);
        let opened = on(&disk).open().unwrap();
        assert!(opened.report.recovery_point >= acked, "budget {budget}");
        assert_eq!(opened.report.recovery_point, reader.report().recovery_point);
    }
}

/// A power cut may leave an old `SYNCED`. Found by reading: a store that was then opened on a full disk said that an epoch is
/// durable, and nothing on the disk testified to it: damage of the last frame was taken for a torn write afterwards.
#[test]
fn what_was_said_to_be_durable_on_a_full_disk_is_missed_when_it_is_damaged() {
    for read_on_a_full_disk in [true, false] {
        let disk = SimDisk::new(1);
        let mut opened = on(&disk).open().unwrap();
        let synced = disk.read_file("/store/wal/SYNCED").unwrap();
        opened.cores[0].put(b"key", b"value").unwrap();
        let epoch = opened.cores[0].seal_epoch().unwrap();
        opened.store.wait_durable(epoch).unwrap();
        let disk = disk.snapshot().restart();
        drop(opened);
        disk.overwrite("/store/wal/SYNCED", &synced).unwrap();
        if read_on_a_full_disk {
            disk.set_capacity(Some(0));
            let opened = on(&disk).open().unwrap();
            assert_eq!((opened.report.recovery_point, opened.store.durable_epoch()), (epoch, epoch));
            drop(opened);
            disk.set_capacity(None);
        }
        let segment =
            disk.files().into_iter().map(|(path, _)| path).find(|path| path.extension().is_some()).unwrap();
        let mut bytes = disk.read_file(&segment).unwrap();
        bytes[SEGMENT_HEADER_LEN + 50] ^= 1;
        disk.overwrite(&segment, &bytes).unwrap();
        match on(&disk).open() {
            Err(error) => {
                assert!(read_on_a_full_disk && error.is_corruption(), "{error}");
                assert!(error.to_string().contains("SYNCED says that"), "{error}");
            }
            Ok(opened) => assert!(!read_on_a_full_disk && opened.report.recovery_point < epoch),
        }
    }
}

#[test]
fn a_read_only_file_system_can_be_read_and_says_so_when_opened() {
    let disk = SimDisk::new(1);
    let mut opened = on(&disk).open().unwrap();
    opened.cores[0].put(b"key", b"value").unwrap();
    let epoch = opened.cores[0].seal_epoch().unwrap();
    opened.store.wait_durable(epoch).unwrap();
    drop(opened);
    disk.set_read_only(true);
    let error = on(&disk).open().unwrap_err();
    assert!(matches!(error, StoreError::Io(_)) && error.to_string().contains("writable"), "{error}");
    let reader = StateReader::open_with("/store", Arc::new(disk.clone())).unwrap();
    assert_eq!(reader.get(b"key"), Some(b"value".as_slice()));
    disk.set_read_only(false);
    assert_eq!(on(&disk).open().unwrap().cores[0].get(b"key"), Some(b"value".as_slice()));
}

/// A closed store on the real file system, with a checkpoint.
fn closed_store(dir: &Path) {
    let Opened { store, mut cores, .. } = Store::builder(dir).settings(small()).open().unwrap();
    cores[0].put(b"key", b"value").unwrap();
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    store.checkpoint().unwrap();
    store.close().unwrap();
}

fn files(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

#[test]
fn a_directory_of_a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let mut all = Vec::new();
    files(dir.path(), &mut all);
    let mut tried = 0;
    for path in all {
        let original = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let newer = match name.as_str() {
            "CURRENT" => with_version(&original, 32),
            _ if name.starts_with("wal-") => with_version(&original, 252),
            _ => continue,
        };
        std::fs::write(&path, &newer).unwrap();
        let error = Store::builder(dir.path()).settings(small()).open().unwrap_err();
        assert!(matches!(error, StoreError::NewerFormat(_)), "{name}: {error}");
        assert!(error.to_string().contains("version 2") && error.to_string().contains("up to 1"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), newer, "left alone");
        std::fs::write(&path, original).unwrap();
        tried += 1;
    }
    assert_eq!(tried, 2);
    let opened = Store::builder(dir.path()).settings(small()).open().unwrap();
    assert_eq!(opened.cores[0].get(b"key"), Some(b"value".as_slice()));
}

/// The same header with format version 2 and a checksum that fits.
fn with_version(bytes: &[u8], crc_at: usize) -> Vec<u8> {
    let mut newer = bytes.to_vec();
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crc32c(&newer[..crc_at]);
    newer[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    newer
}

#[test]
fn strange_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let strange = ["notes.txt", "wal/wal-0.log.bak", "wal/.DS_Store", "checkpoints/README"];
    for name in strange {
        std::fs::write(dir.path().join(name), b"mine").unwrap();
    }
    std::fs::create_dir(dir.path().join("checkpoints/checkpoint_zz")).unwrap();
    let opened = Store::builder(dir.path()).settings(small()).open().unwrap();
    opened.store.checkpoint().unwrap();
    opened.store.close().unwrap();
    for name in strange {
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"mine", "{name}");
    }
    assert!(dir.path().join("checkpoints/checkpoint_zz").is_dir());
}

#[test]
fn a_file_where_the_directory_should_be_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    std::fs::write(&path, b"not a directory").unwrap();
    let error = Store::builder(&path).open().unwrap_err();
    assert!(error.to_string().contains("state"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"not a directory");
}

/// A checkpoint that failed half way through reading the log had moved its cut past the commit records
/// of a core whose offsets it then threw away; the next one that succeeded said to contain them.
#[test]
fn offsets_survive_a_checkpoint_that_failed_and_was_tried_again() {
    let mut failed = 0;
    for read in 0..60 {
        let disk = SimDisk::new(1);
        let builder = Store::builder("/store").cores(2).settings(small()).vfs(Arc::new(disk.clone()));
        let Opened { store, mut cores, .. } = builder.clone().open().unwrap();
        for (core, name) in cores.iter_mut().zip(["s0", "s1"]) {
            core.put(name.as_bytes(), b"value").unwrap();
            core.set_source_offset(name, 7);
        }
        let epoch = cores.iter_mut().map(|core| core.seal_epoch().unwrap()).max().unwrap();
        store.wait_durable(epoch).unwrap();
        disk.number_reads(true);
        disk.fail_op(disk.ops() + read, Fault::Eio, Duration::Once);
        failed += u32::from(store.checkpoint().is_err());
        disk.clear_faults();
        let _ = store.checkpoint();
        drop((store, cores));
        let opened = builder.open().unwrap();
        assert_eq!(opened.report.source_offsets.len(), 2, "read {read}");
    }
    assert!(failed > 10, "{failed} checkpoints failed");
}

/// Three epochs of two segments each, a checkpoint after every one; the third is the first that cuts the log.
fn before_the_first_cut(disk: &SimDisk) -> Opened {
    let settings = Settings { segment_bytes: 4096, ..small() };
    let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk.clone()));
    let mut opened = builder.open().unwrap();
    for epoch in 0_u8..3 {
        for key in 0..20_u32 {
            opened.cores[0].put(&key.to_le_bytes(), &[epoch; 500]).unwrap();
        }
        let sealed = opened.cores[0].seal_epoch().unwrap();
        opened.store.wait_durable(sealed).unwrap();
        if epoch < 2 {
            opened.store.checkpoint().unwrap();
        }
    }
    opened
}

/// A log that could not be cut made a published checkpoint count as none: each further call wrote another one of
/// the same epoch, and when a directory could not be synced, for ever. Found by reading.
#[test]
fn a_checkpoint_counts_when_only_cutting_the_log_failed() {
    let disk = SimDisk::new(1);
    let opened = before_the_first_cut(&disk);
    let traced = disk.trace().len();
    let receipt = opened.store.checkpoint().unwrap();
    assert!(receipt.wal_bytes_removed > 0);
    let trace = disk.trace();
    let cuts = trace[traced..].iter().filter(|op| op.path.starts_with("/store/wal"));
    let cuts: Vec<_> = cuts.filter(|op| ["unlink", "fsync"].contains(&op.call)).map(|op| op.number).collect();
    assert!(cuts.len() >= 2, "{cuts:?}");
    for op in cuts {
        let disk = SimDisk::new(1);
        let opened = before_the_first_cut(&disk);
        disk.fail_op(op, Fault::Eio, Duration::Once);
        let error = opened.store.checkpoint().unwrap_err();
        assert_eq!(disk.faults_fired(), 1);
        assert!(matches!(error, StoreError::Io(_)) && error.to_string().contains("segment"), "{error}");
        let again = opened.store.checkpoint().unwrap();
        assert_eq!((again.id, again.epoch, again.changes), (receipt.id, receipt.epoch, 0));
        assert_eq!(opened.store.stats().last_checkpoint, Some(receipt.id));
        // Until a checkpoint can cut it, the log grows: its owner should know.
        assert!(matches!(opened.store.health(), Health::CheckpointsFailing(_)));
        drop(opened);
        let opened = Store::builder("/store").settings(small()).vfs(Arc::new(disk)).open().unwrap();
        assert_eq!((opened.report.recovery_point, opened.report.checkpoint), (again.epoch, Some(again.id)));
    }
}

/// A state of which most was overwritten was said to be full, because what was replaced had not been given back yet.
/// Found by reading.
#[test]
fn a_state_is_full_only_when_nothing_is_to_be_given_back() {
    let disk = SimDisk::new(1);
    let settings = Settings { ring_capacity: 1024, ..small() };
    let builder = Store::builder("/store").settings(settings).vfs(Arc::new(disk));
    let Opened { store, mut cores, .. } = builder.open().unwrap();
    for round in 0..3_u8 {
        for key in 0..48_u8 {
            cores[0].put(&[key], &vec![round; 60_000]).unwrap();
        }
    }
    let error = (48..).find_map(|key| cores[0].put(&[key], &[1; 60_000]).err()).unwrap();
    assert!(matches!(error, StoreError::StateFull(_)), "{error}");
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    assert_eq!(cores[0].get(&[7]), Some(vec![2; 60_000].as_slice()));
}
