use super::*;
use crate::format::frame::{FRAME_HEADER_LEN, FrameHeader};
use crate::format::segment_header::{SEGMENT_HEADER_LEN, frame_salt};
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
use crate::vfs::sim::SimDisk;

/// A header whose checksum is right and whose fields have no meaning was written like that, and what
/// follows it cannot be found; with any other bytes in its place the end is torn.
#[test]
fn a_right_checksum_over_senseless_fields_is_damage_and_no_tear() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    manager.writer(0).append_put(b"key", b"value").unwrap();
    manager.sync_all().unwrap();
    let path = manager.writer(0).path().to_path_buf();
    drop(manager);
    let survey = || Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[]);
    let segment = survey().unwrap().cores[0].segments[0].clone();
    let good = FrameHeader {
        payload_crc: 0,
        payload_len: 0,
        core: CoreId::ZERO,
        records: 1,
        synced_len: 0,
        epoch: Epoch(1),
        first_sequence: Sequence(9),
        first_timestamp: TimestampNs(9),
    };
    let senseless = [
        FrameHeader { records: 0, ..good },
        FrameHeader { payload_len: u32::MAX, ..good },
        FrameHeader { synced_len: segment.len + 8, ..good },
    ];
    let file = vfs.open(&path, crate::vfs::Access::ReadWrite).unwrap();
    for header in senseless {
        let bytes = header.encode(&segment.header.salt(), segment.len);
        crate::vfs::write_all_at(file.as_ref(), &bytes, segment.len).unwrap();
        let error = survey().unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains("case E"), "{header:?}: {error}");
        for bit in [0, FRAME_HEADER_LEN * 8 - 1] {
            let mut torn = bytes;
            torn[bit / 8] ^= 1 << (bit % 8);
            crate::vfs::write_all_at(file.as_ref(), &torn, segment.len).unwrap();
            let last = survey().unwrap().cores[0].segments[0].clone();
            assert_eq!((last.case, last.len), ('C', segment.len), "{header:?}");
        }
    }
}

use crate::ids::WalPosition;
use crate::per_core_wal::recovery::plan::tests::{STORE, current, log_of, segment};

/// Two cores in incarnation 2, of which nothing is established.
fn survey_of(segments: Vec<Segment>) -> Survey {
    Survey { store_id: Some(STORE), cores: segments.into_iter().map(log_of).collect(), ..Survey::default() }
}

#[test]
fn the_position_counts_the_frames_of_all_segments() {
    let mut last = segment(0, 2);
    last.header.base_position = WalPosition(1_000);
    last.len = SEGMENT_HEADER_LEN as u64 + 64;
    assert_eq!(log_of(last).position(), 1_064);
}

#[test]
fn what_is_left_to_read_is_what_the_checkpoint_does_not_cover() {
    let (mut some, mut all) = (segment(0, 2), segment(1, 2));
    (some.start, some.len) = (300, 512);
    (all.start, all.len) = (512, 512);
    assert_eq!(survey_of(vec![some, all]).uncovered(), 212);
}

#[test]
fn an_incarnation_without_records_decides_nothing() {
    let (mut old, mut new) = (segment(0, 2), segment(1, 3));
    (old.header.core_count, new.header.core_count) = (2, 5);
    new.header.mode = WalMode::Plain;
    let counted = |records: [u64; 2], current: Option<Current>| {
        (old.records, new.records) = (records[0], records[1]);
        let survey = Survey { current, ..survey_of(vec![old.clone(), new.clone()]) };
        (survey.core_count(), survey.mode())
    };
    let mut counted = counted;
    let (plain, epochs) = (Some(WalMode::Plain), Some(WalMode::Epochs));
    assert_eq!(counted([1, 0], None), (2, epochs));
    assert_eq!(counted([1, 1], None), (5, plain));
    assert_eq!(counted([0, 0], None), (5, plain));
    // `CURRENT` names incarnation 2, or a later one that counts although it is empty.
    assert_eq!(counted([1, 0], current(7)), (7, epochs));
    assert_eq!(counted([1, 1], current(7)), (5, plain));
    let third = current(7).map(|current| Current { incarnation: Incarnation(3), ..current });
    assert_eq!(counted([1, 1], third), (7, plain));
    assert_eq!(Survey::default().core_count(), 0);
    assert_eq!(Survey::default().mode(), None);
}

#[test]
fn the_incarnations_are_those_with_records_behind_the_checkpoint() {
    let (mut used, mut unused) = (segment(0, 2), segment(1, 3));
    (used.records, unused.records) = (1, 0);
    let survey = survey_of(vec![used, unused]);
    // Every log ends with sequence 10.
    let behind = |sequence| survey.incarnations(|_| Sequence(sequence)).into_iter().collect::<Vec<_>>();
    assert_eq!(behind(9), [Incarnation(2)]);
    assert_eq!(behind(10), []);
}

#[test]
fn every_core_of_an_established_incarnation_has_a_segment_of_it() {
    let check = |segments: Vec<Segment>| {
        let survey = Survey { current: current(2), ..survey_of(segments) };
        survey.require_established(Path::new("/wal"))
    };
    check(vec![segment(0, 2), segment(1, 2)]).unwrap();
    check(vec![segment(0, 3), segment(1, 2)]).unwrap();
    for missing in [check(vec![segment(0, 2)]), check(vec![segment(0, 2), segment(1, 1)])] {
        let error = missing.unwrap_err();
        assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    }
}

/// A closed and reopened log of one core: incarnation 1 with records, incarnation 2 just begun.
fn reopened(disk: &SimDisk) -> (Arc<dyn Vfs>, Vec<SegmentName>) {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config.clone()).unwrap();
    manager.writer(0).append_put(b"key", b"value").unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    drop(PerCoreWalManager::new(config).unwrap());
    let names = list_segments(disk, Path::new("/wal")).unwrap();
    assert_eq!(names.len(), 2);
    (vfs, names)
}

fn whole(vfs: &Arc<dyn Vfs>) -> Result<Survey, PerCoreWalError> {
    Survey::up_to(vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[])
}

fn path_of(name: SegmentName) -> PathBuf {
    Path::new("/wal").join(name.file_name())
}

#[test]
fn an_unreadable_first_segment_is_refused_once_it_was_established() {
    let disk = SimDisk::new(1);
    let (vfs, names) = reopened(&disk);
    disk.flip_bit(path_of(names[1]), 100).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(error.to_string().contains("case J"), "{error}");
    // Before `CURRENT` named its incarnation, its creation may have been interrupted.
    let earlier = Current { store_id: STORE, incarnation: Incarnation(1), core_count: 1 };
    let header = read_header(vfs.as_ref(), &path_of(names[0])).unwrap().unwrap();
    let earlier = Current { store_id: header.store_id, ..earlier };
    disk.overwrite(Path::new("/wal").join(CURRENT), &earlier.encode()).unwrap();
    let survey = whole(&vfs).unwrap();
    assert_eq!(survey.leftovers, [path_of(names[1])]);
    assert_eq!(survey.cores[0].segments.len(), 1);
    // A frame in it says that it was complete: case I, also behind bytes that are none.
    let salt = frame_salt(header.store_id, names[1].incarnation, CoreId(0), names[1].number);
    for at in [SEGMENT_HEADER_LEN as u64, SEGMENT_HEADER_LEN as u64 + 64] {
        let frame = FrameHeader {
            payload_crc: salt.crc(&[b""]),
            payload_len: 0,
            core: CoreId(0),
            records: 1,
            synced_len: 0,
            epoch: Epoch(1),
            first_sequence: Sequence(9),
            first_timestamp: TimestampNs(9),
        };
        disk.patch(path_of(names[1]), at, &frame.encode(&salt, at)).unwrap();
        let error = whole(&vfs).unwrap_err();
        assert!(error.to_string().contains("case I"), "{error}");
        disk.patch(path_of(names[1]), at, &[0xff; FRAME_HEADER_LEN]).unwrap();
    }
    // With a successor it was closed once: case H.
    whole(&vfs).unwrap();
    let vfs_only = Walk {
        vfs: vfs.as_ref(),
        dir: Path::new("/wal"),
        current: None,
        covered: Coverage::Unknown,
        ends: &[],
        store_id: Some(header.store_id),
        synced: Vec::new(),
        watch: &Watch::default(),
    };
    let error = vfs_only.unreadable(names[1], false, true, 0, &path_of(names[1])).unwrap_err();
    assert!(error.to_string().contains("case H"), "{error}");
}

#[test]
fn a_segment_that_is_shorter_than_its_successor_says_is_refused() {
    let disk = SimDisk::new(1);
    let (vfs, names) = reopened(&disk);
    let closed = whole(&vfs).unwrap().cores[0].segments[0].clone();
    assert_eq!((closed.case, closed.dropped), ('A', 0));
    // Cut between two frames, so that what is left is sound.
    disk.truncate(path_of(names[0]), SEGMENT_HEADER_LEN as u64).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(error.to_string().contains("case D"), "{error}");
    disk.remove(path_of(names[0])).unwrap();
    let survey = whole(&vfs).unwrap();
    assert_eq!(survey.cores[0].segments.len(), 1, "the plan says whether that is enough");
}

#[test]
fn a_segment_that_announces_one_that_is_not_there_is_missing_something() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_segment_size(4096);
    let mut manager = PerCoreWalManager::new(config.with_vfs(Arc::clone(&vfs))).unwrap();
    while list_segments(&disk, Path::new("/wal")).unwrap().len() < 3 {
        manager.writer(0).append_put(b"key", &[7; 500]).unwrap();
        manager.sync_all().unwrap();
    }
    drop(manager);
    let names = list_segments(&disk, Path::new("/wal")).unwrap();
    assert_eq!(whole(&vfs).unwrap().cores[0].segments.len(), 3);
    let newest = disk.read_file(path_of(names[2])).unwrap();
    disk.remove(path_of(names[2])).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(matches!(&error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    assert!(error.to_string().contains("case F"), "{error}");
    let file = disk.create_new(&path_of(names[2])).unwrap();
    crate::vfs::write_all_at(file.as_ref(), &newest, 0).unwrap();
    // The one in the middle: neither covered nor there.
    disk.remove(path_of(names[1])).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(matches!(&error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    assert!(error.to_string().contains(&names[1].file_name()), "{error}");
    // What the newest one does not reach back to is in the checkpoint.
    let border = read_header(vfs.as_ref(), &path_of(names[2])).unwrap().unwrap().last_sequence;
    let covered = |sequence: u64| Survey::up_to(&vfs, Path::new("/wal"), &move |_| Sequence(sequence), &[]);
    assert_eq!(covered(border.0).unwrap().cores[0].segments.len(), 1);
    assert!(covered(border.0 - 1).is_err());
}

#[test]
fn a_reset_counts_once_current_names_it_or_a_record_stands_in_it() {
    let disk = SimDisk::new(1);
    let interrupted = |segment: &Segment, current: Option<Current>| {
        let covered = Coverage::UpTo(&|_| Sequence::ZERO);
        let dir = Path::new("/wal");
        let walk = Walk {
            vfs: &disk,
            dir,
            current,
            covered,
            ends: &[],
            store_id: None,
            synced: Vec::new(),
            watch: &Watch::default(),
        };
        walk.is_interrupted_reset(segment)
    };
    let mut reset = segment(0, 3);
    (reset.records, reset.header.previous) = (0, Default::default());
    assert!(interrupted(&reset, current(2)) && interrupted(&reset, None));
    assert!(!interrupted(&Segment { records: 1, ..reset.clone() }, current(2)));
    reset.header.incarnation = Incarnation(2);
    assert!(!interrupted(&reset, current(2)));
    assert!(!interrupted(&Segment { records: 0, ..segment(0, 3) }, current(2)));
}

#[test]
fn a_reset_that_was_interrupted_gives_up_nothing() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    manager.writer(0).append_put(b"key", b"value").unwrap();
    manager.sync_all().unwrap();
    let (old, current) = (manager.writer(0).path().to_path_buf(), Path::new("/wal").join(CURRENT));
    let before = (disk.read_file(&old).unwrap(), disk.read_file(&current).unwrap());
    manager.reset_all().unwrap();
    let new = manager.writer(0).path().to_path_buf();
    drop(manager);
    // As if the crash had come before `CURRENT` was replaced and anything removed.
    let file = disk.create_new(&old).unwrap();
    crate::vfs::write_all_at(file.as_ref(), &before.0, 0).unwrap();
    assert_eq!(whole(&vfs).unwrap().leftovers, std::slice::from_ref(&old), "the reset took effect");
    disk.overwrite(&current, &before.1).unwrap();
    let survey = whole(&vfs).unwrap();
    assert_eq!(survey.leftovers, std::slice::from_ref(&new));
    assert_eq!(survey.cores[0].segments[0].path, old);
    // Alone it is a first start, and nobody's reset.
    disk.remove(&old).unwrap();
    disk.remove(&current).unwrap();
    assert_eq!(whole(&vfs).unwrap().cores[0].segments[0].path, new);
}

#[test]
fn zeros_written_ahead_are_a_clean_end_of_a_segment_in_use_only() {
    let disk = SimDisk::new(1);
    let (vfs, names) = reopened(&disk);
    for name in &names {
        let len = disk.read_file(path_of(*name)).unwrap().len() as u64;
        let file = vfs.open(&path_of(*name), crate::vfs::Access::ReadWrite).unwrap();
        crate::vfs::write_all_at(file.as_ref(), &[0; 4096], len).unwrap();
    }
    let survey = whole(&vfs).unwrap();
    let ends: Vec<_> = survey.cores[0].segments.iter().map(|s| (s.case, s.dropped)).collect();
    assert_eq!(ends, [('A', 0), ('B', 0)]);
}

/// A roll that a crash interrupted, and then an opening that a crash interrupted before it swept what the roll
/// had left behind.
#[test]
fn a_segment_that_the_chain_leads_past_was_never_completed() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config.clone()).unwrap();
    manager.writer(0).append_put(b"key", b"value").unwrap();
    manager.sync_all().unwrap();
    drop(manager);
    let first = list_segments(&disk, Path::new("/wal")).unwrap()[0];
    let begun = SegmentName { number: first.number.next(), ..first };
    let begin = |name: SegmentName| {
        let file = disk.create_new(&path_of(name)).unwrap();
        crate::vfs::write_all_at(file.as_ref(), &[0; SEGMENT_HEADER_LEN], 0).unwrap();
    };
    begin(begun);
    drop(PerCoreWalManager::new(config).unwrap());
    let names = list_segments(&disk, Path::new("/wal")).unwrap();
    let [_, last] = names[..] else { panic!("{names:?}") };
    assert_eq!(
        (names[0], last.number),
        (first, begun.number.next()),
        "it was swept, its number is not used again"
    );
    begin(begun);
    let survey = whole(&vfs).unwrap();
    assert_eq!(survey.leftovers, [path_of(begun)]);
    assert_eq!(survey.cores[0].segments.len(), 2);
    // Numbers are used once: no crash leaves another segment with that of one of the two that are linked.
    for number in [first.number, last.number] {
        let stranger = SegmentName { number, incarnation: Incarnation(first.incarnation.0 + 8), ..first };
        let stranger = SegmentName {
            incarnation: if number == first.number { stranger.incarnation } else { first.incarnation },
            ..stranger
        };
        begin(stranger);
        let error = whole(&vfs).unwrap_err();
        assert!(matches!(&error, PerCoreWalError::SegmentNotFound(_)), "{number:?}: {error}");
        disk.remove(path_of(stranger)).unwrap();
    }
    whole(&vfs).unwrap();
}

/// Whoever reads a log while it grows sees what is durable, and no more.
#[test]
fn a_growing_segment_counts_up_to_the_end_that_is_given() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    let mut ends = Vec::new();
    for _ in 0..2 {
        manager.writer(0).append_put(b"key", b"value").unwrap();
        manager.sync_all().unwrap();
        ends.push(manager.ends()[0]);
    }
    for (records, end) in (1..).zip(ends) {
        let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[end]).unwrap();
        let segment = &survey.cores[0].segments[0];
        assert_eq!((segment.len, segment.records, segment.case), (end.1, records, 'B'));
    }
}

#[test]
fn reading_begins_behind_the_frames_that_the_checkpoint_covers() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    let mut starts = vec![SEGMENT_HEADER_LEN as u64];
    // Each frame has two records.
    for _ in 0..3 {
        manager.writer(0).append_put(b"key", b"value").unwrap();
        manager.writer(0).append_delete(b"key").unwrap();
        manager.sync_all().unwrap();
        starts.push(manager.ends()[0].1);
    }
    for covered in 0..=7 {
        let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence(covered), &[]).unwrap();
        let segment = &survey.cores[0].segments[0];
        let whole_frames = usize::try_from(covered / 2).unwrap().min(3);
        assert_eq!((segment.start, segment.len), (starts[whole_frames], starts[3]), "{covered}");
    }
}

#[test]
fn what_is_cut_off_a_torn_end_is_counted() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    manager.writer(0).append_put(b"key", b"value").unwrap();
    manager.sync_all().unwrap();
    let (path, len) = (manager.writer(0).path().to_path_buf(), manager.ends()[0].1);
    let file = vfs.open(&path, crate::vfs::Access::ReadWrite).unwrap();
    crate::vfs::write_all_at(file.as_ref(), &[0xff; 100], len).unwrap();
    let segment = whole(&vfs).unwrap().cores[0].segments[0].clone();
    assert_eq!((segment.case, segment.len, segment.file_len), ('C', len, len + 100));
    assert_eq!(segment.dropped, 100);
}

/// `CURRENT` says whose log it is, and a segment of another one is none of it.
#[test]
fn segments_of_another_log_are_refused() {
    let disk = SimDisk::new(1);
    let (vfs, _) = reopened(&disk);
    let path = Path::new("/wal").join(CURRENT);
    let current = read_current(vfs.as_ref(), Path::new("/wal")).unwrap().unwrap();
    let other = Current { store_id: StoreId(current.store_id.0 ^ 1), ..current };
    disk.overwrite(&path, &other.encode()).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("another log"), "{error}");
    disk.overwrite(&path, &current.encode()).unwrap();
    whole(&vfs).unwrap();
}

#[test]
fn a_segment_of_an_established_incarnation_is_missed_when_it_is_gone() {
    let disk = SimDisk::new(1);
    let (vfs, names) = reopened(&disk);
    disk.remove(path_of(names[1])).unwrap();
    let error = whole(&vfs).unwrap_err();
    assert!(matches!(&error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    assert!(error.to_string().contains("CURRENT says"), "{error}");
}

/// Whose directory was taken by another log, or by a later opening of his own, must not write there.
#[test]
fn the_established_incarnation_is_told_from_every_other_one() {
    let header = segment(0, 2).header;
    let current = current(2).unwrap();
    assert!(current.is_of(&header));
    assert!(!current.is_of(&segment(0, 3).header));
    assert!(!Current { store_id: StoreId(STORE.0 + 1), ..current }.is_of(&header));
}
