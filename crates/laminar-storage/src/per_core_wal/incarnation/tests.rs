//! What an opening does before it builds on what it found, seen by the operations that reach the disk.

use std::path::PathBuf;

use super::*;
use crate::format::segment_header::SEGMENT_HEADER_LEN;
use crate::per_core_wal::recovery::identity::{read_closed, read_current};
use crate::per_core_wal::recovery::plan::tests::segment;
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
use crate::vfs::sim::{Duration, Fault, SimDisk};

fn dir() -> &'static Path {
    Path::new("/wal")
}

fn config(disk: &SimDisk) -> PerCoreWalConfig {
    PerCoreWalConfig::new(dir(), 1).with_vfs(Arc::new(disk.clone()))
}

/// A log with one record of this many bytes; the path of its only segment.
fn written(disk: &SimDisk, len: usize) -> PathBuf {
    let mut manager = PerCoreWalManager::new(config(disk)).unwrap();
    manager.writer(0).append_put(b"key", &vec![7; len]).unwrap();
    manager.sync_all().unwrap();
    manager.writer(0).path().to_path_buf()
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.read_dir(dir()).unwrap().into_iter().map(|(name, _)| name).collect()
}

/// Whoever wrote the end of the log may have died of a failed sync, which shows bytes that are not on the
/// disk: every byte that no later frame proves is written again, and the length too, and then synced.
#[test]
fn the_unproven_end_of_the_log_is_written_again_and_synced_before_anything_new() {
    let disk = SimDisk::new(1);
    let path = written(&disk, 2 * REWRITE_CHUNK);
    let survey = Survey::up_to(config(&disk).vfs(), dir(), &|_| Sequence::ZERO, &[]).unwrap();
    let segment = survey.cores[0].segments[0].clone();
    let content = disk.read_file(&path).unwrap();
    disk.set_tracing(true);
    drop(PerCoreWalManager::new(config(&disk)).unwrap());
    let trace = disk.trace();
    let old = |call: &str| {
        let path = path.display().to_string();
        let call = call.to_owned();
        trace.iter().enumerate().filter(move |(_, op)| op.call == call && *op.path == *path)
    };
    let writes: Vec<_> = old("pwrite").map(|(_, op)| (op.offset, op.len)).collect();
    let mut expected = Vec::new();
    let mut at = segment.proven;
    while at < segment.len {
        expected.push((at, (segment.len - at).min(REWRITE_CHUNK as u64)));
        at += REWRITE_CHUNK as u64;
    }
    assert!(!expected.is_empty(), "{segment:?}");
    assert_eq!(writes, expected);
    // A hole makes the system write the length, and needs no space.
    let lengths: Vec<_> = old("ftruncate").map(|(_, op)| op.len).collect();
    assert_eq!(lengths, [segment.file_len + FRAME_ALIGN as u64]);
    let (synced, _) = old("fdatasync").next().unwrap();
    let created = trace.iter().position(|op| op.call == "create" && op.path.ends_with(".log")).unwrap();
    assert!(synced < created, "synced as number {synced}, created as number {created}");
    let after = disk.read_file(&path).unwrap();
    assert_eq!(after, [content.as_slice(), &[0; FRAME_ALIGN]].concat());
}

/// The log of a core that is no longer there has no successor: it grew with every opening.
#[test]
fn the_log_of_a_departed_core_is_written_again_once() {
    let disk = SimDisk::new(1);
    let path = written(&disk, 5);
    let mut survey = Survey::up_to(config(&disk).vfs(), dir(), &|_| Sequence::ZERO, &[]).unwrap();
    let before = disk.read_file(&path).unwrap().len();
    make_durable(config(&disk).vfs(), dir(), &survey).unwrap();
    assert_eq!(disk.read_file(&path).unwrap().len(), before + FRAME_ALIGN);
    // The opening after that established an incarnation in which this core is not.
    survey.current.as_mut().unwrap().incarnation = survey.max_incarnation.next();
    make_durable(config(&disk).vfs(), dir(), &survey).unwrap();
    assert_eq!(disk.read_file(&path).unwrap().len(), before + FRAME_ALIGN);
}

#[test]
fn what_is_proven_is_not_written_again() {
    let disk = SimDisk::new(1);
    let file = disk.create_new(Path::new("/segment")).unwrap();
    write_all_at(file.as_ref(), &[7; 512], 0).unwrap();
    let whole = segment(0, 1);
    assert_eq!((whole.proven, whole.len), (512, 512));
    let before = disk.ops();
    write_again(&whole, file.as_ref()).unwrap();
    assert_eq!(disk.ops(), before);
    write_again(&Segment { proven: 504, ..whole }, file.as_ref()).unwrap();
    assert_eq!(file.size().unwrap(), 512 + FRAME_ALIGN as u64);
}

#[test]
fn a_file_that_ends_within_a_frame_is_cut_and_not_completed() {
    let disk = SimDisk::new(1);
    let file = disk.create_new(Path::new("/segment")).unwrap();
    write_all_at(file.as_ref(), &[7; 600], 0).unwrap();
    let torn = Segment { proven: 504, file_len: 600, ends_in_frame: true, ..segment(0, 1) };
    write_again(&torn, file.as_ref()).unwrap();
    assert_eq!(disk.read_file("/segment").unwrap(), [7; 512]);
}

#[test]
fn a_log_whose_ids_cannot_grow_is_refused_by_name() {
    for (incarnation, number, fits) in [
        (Incarnation::LAST.0 - 1, SegmentNumber::LAST.0 - 1, true),
        (Incarnation::LAST.0, 5, false),
        (5, SegmentNumber::LAST.0, false),
    ] {
        let disk = SimDisk::new(1);
        let first = written(&disk, 5);
        let stray = SegmentName {
            core: CoreId(7),
            incarnation: Incarnation(incarnation),
            number: SegmentNumber(number),
        };
        disk.create_new(&dir().join(stray.file_name())).unwrap();
        let max = (stray.incarnation, stray.number);
        let survey = Survey { max_incarnation: max.0, max_number: max.1, ..Survey::default() };
        match refuse_last_ids(&disk, dir(), &survey) {
            Ok(()) => assert!(fits, "{stray:?}"),
            Err(error) => {
                assert!(!fits, "{error}");
                assert!(error.to_string().contains(&stray.file_name()), "{error}");
                assert!(!error.to_string().contains(&*first.file_name().unwrap().to_string_lossy()));
            }
        }
    }
}

#[test]
fn what_was_never_completely_created_is_swept() {
    let disk = SimDisk::new(1);
    written(&disk, 5);
    let unborn = SegmentName { core: CoreId(0), incarnation: Incarnation(2), number: SegmentNumber(9) };
    disk.create_new(&dir().join(unborn.file_name())).unwrap();
    drop(PerCoreWalManager::new(config(&disk)).unwrap());
    assert!(!names(&disk).contains(&unborn.file_name()), "{:?}", names(&disk));
}

#[test]
fn sweeping_passes_over_what_is_gone_and_stops_at_a_failure() {
    let disk = SimDisk::new(1);
    let path = written(&disk, 5);
    let manager = PerCoreWalManager::new(config(&disk)).unwrap();
    let policy = manager.truncation_scope().policy;
    let gone = dir().join("wal-0.0000000f.0000000f.log");
    let survey = Survey { leftovers: vec![gone, path.clone()], ..Survey::default() };
    disk.fail_op(disk.ops() + 2, Fault::Eio, Duration::Once);
    let error = sweep(&policy, &survey, false).unwrap_err();
    assert!(matches!(error, PerCoreWalError::Io(_)), "{error}");
    disk.clear_faults();
    sweep(&policy, &survey, false).unwrap();
    assert!(!disk.read_dir(dir()).unwrap().iter().any(|(name, _)| path.ends_with(name)));
}

#[test]
fn a_reset_removes_the_evidence_of_what_it_gives_up() {
    let disk = SimDisk::new(1);
    written(&disk, 5);
    let mut manager = PerCoreWalManager::new(config(&disk)).unwrap();
    let store_id = Some(manager.store_id());
    leave_evidence(manager.writer(0), Epoch(6));
    assert_eq!(read_closed(&disk, dir(), store_id).unwrap(), Epoch(6));
    assert_eq!(read_closed(&disk, dir(), Some(StoreId(1))).unwrap(), Epoch::ZERO, "of another log");
    assert_eq!(read_closed(&disk, dir(), None).unwrap(), Epoch::ZERO);
    manager.reset_all().unwrap();
    assert!(!names(&disk).contains(&CLOSED.to_owned()), "{:?}", names(&disk));
    assert_eq!(read_closed(&disk, dir(), store_id).unwrap(), Epoch::ZERO);
}

/// A file that cannot be read is not one that is not there.
#[test]
fn identity_and_evidence_that_cannot_be_read_are_errors() {
    let disk = SimDisk::new(1);
    written(&disk, 5);
    let mut manager = PerCoreWalManager::new(config(&disk)).unwrap();
    let store_id = manager.store_id();
    leave_evidence(manager.writer(0), Epoch(6));
    assert_eq!(read_current(&disk, dir()).unwrap().map(|current| current.store_id), Some(store_id));
    disk.number_reads(true);
    disk.fail_op(disk.ops() + 1, Fault::Eio, Duration::Once);
    assert!(matches!(read_current(&disk, dir()).unwrap_err(), PerCoreWalError::Io(_)));
    disk.fail_op(disk.ops() + 1, Fault::Eio, Duration::Once);
    assert!(matches!(read_closed(&disk, dir(), Some(store_id)).unwrap_err(), PerCoreWalError::Io(_)));
    // One of a later version is not taken for damage.
    let mut newer = read_current(&disk, dir()).unwrap().unwrap().encode();
    newer[8] = 2;
    let body = newer.len() - 4;
    let crc = crate::format::checksum::crc32c(&newer[..body]);
    newer[body..].copy_from_slice(&crc.to_le_bytes());
    let current = disk.read_file(dir().join(CURRENT)).unwrap();
    disk.overwrite(dir().join(CURRENT), &newer).unwrap();
    assert!(matches!(read_current(&disk, dir()).unwrap_err(), PerCoreWalError::NewerFormat(_)));
    disk.overwrite(dir().join(CURRENT), &current).unwrap();
    // One that is too long for what it is proves nothing, and is not read.
    for name in [CURRENT, CLOSED] {
        disk.overwrite(dir().join(name), &[7; 64 * SEGMENT_HEADER_LEN]).unwrap();
    }
    assert_eq!(read_current(&disk, dir()).unwrap(), None);
    assert_eq!(read_closed(&disk, dir(), Some(store_id)).unwrap(), Epoch::ZERO);
}
