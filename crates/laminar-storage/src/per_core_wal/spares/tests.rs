use super::*;
use crate::format::segment_header::{Predecessor, SEGMENT_HEADER_LEN, SegmentHeader, WalMode};
use crate::ids::{
    CheckpointId, CoreId, Epoch, Incarnation, SegmentNumber, Sequence, StoreId, TimestampNs, WalPosition,
};
use crate::incremental::{CheckpointConfig, IncrementalCheckpointManager, Published};
use crate::per_core_wal::recovery::survey::{Segment, Survey};
use crate::per_core_wal::segment::{SegmentPolicy, create_segment};
use crate::per_core_wal::writer::CoreWalWriter;
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager, PerCoreWalReader, WalReadResult};
use crate::vfs::sim::{Duration, Fault, SimDisk};
use crate::vfs::write_all_at;

const WAL: &str = "/wal";

fn config(disk: &SimDisk) -> PerCoreWalConfig {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    PerCoreWalConfig::new(Path::new(WAL), 1).with_segment_size(4096).with_vfs(vfs)
}

/// Changes that fill some segments.
fn fill(manager: &mut PerCoreWalManager) {
    for key in 0..30_u32 {
        manager.writer(0).append_put(&key.to_le_bytes(), &[7; 700]).unwrap();
        manager.sync_all().unwrap();
    }
}

/// Checkpoints of whatever is in the log.
struct Checkpoints(IncrementalCheckpointManager, u64);

impl Checkpoints {
    fn new(disk: &SimDisk, store_id: StoreId) -> Self {
        let config = CheckpointConfig::new(Path::new("/checkpoints"));
        let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
        manager.bind_wal(store_id).unwrap();
        Self(manager, 0)
    }

    fn published(&mut self) -> Published {
        self.1 += 1;
        self.0.set_wal_cuts(&[Sequence(1 << 40)]).unwrap();
        self.0.create_checkpoint_as(CheckpointId(self.1), WalPosition(0)).unwrap()
    }
}

fn names(disk: &SimDisk, prefix: &str) -> Vec<String> {
    let entries = disk.read_dir(Path::new(WAL)).unwrap().into_iter().map(|(name, _)| name);
    entries.filter(|name| name.starts_with(prefix)).collect()
}

/// Segments that were new files.
fn created(disk: &SimDisk) -> usize {
    let is_segment = |path: &str| path.starts_with("/wal/wal-");
    disk.trace().iter().filter(|op| op.call == "create" && is_segment(&op.path)).count()
}

/// A log that has just been cut twice, so that there is something to use again.
fn with_spares(disk: &SimDisk) -> (PerCoreWalManager, Checkpoints) {
    let mut manager = PerCoreWalManager::new(config(disk)).unwrap();
    fill(&mut manager);
    let mut checkpoints = Checkpoints::new(disk, manager.store_id());
    let _ = checkpoints.published();
    assert!(manager.truncate_before(&checkpoints.published()).unwrap().segments >= 3);
    (manager, checkpoints)
}

#[test]
fn only_names_that_this_log_makes_are_those_of_spares() {
    let name = SegmentName { core: CoreId(3), number: SegmentNumber(9), incarnation: Incarnation(2) };
    let path = spare_path(Path::new(WAL), name);
    assert_eq!(path, Path::new("/wal/spare-3.00000002.00000009.log"));
    assert!(is_spare("spare-3.00000002.00000009.log"));
    for other in ["spare-3.log", "wal-3.00000002.00000009.log", "spare-3.00000002.00000009.log.tmp", "spare"]
    {
        assert!(!is_spare(other), "{other}");
    }
}

#[test]
fn no_more_are_kept_than_were_taken_since_the_last_truncation() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let file = |name: &str| {
        let path = Path::new("/").join(name);
        disk.create_new(&path).unwrap();
        path
    };
    let spares = Spares::new(&vfs);
    assert_eq!(spares.take(), None);
    assert_eq!(spares.take(), None);
    assert_eq!(spares.room(), 2);
    spares.keep(vec![file("one"), file("two")]);
    assert!(spares.take().is_some());
    // One was needed, and one is there: there is no room, and nothing is too much.
    assert_eq!(spares.room(), 0);
    assert_eq!(spares.room(), 0);
    assert_eq!(spares.take(), None, "nothing was needed, so nothing is kept");
    let left = disk.read_dir(Path::new("/")).unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_is_cut_off_becomes_the_next_segments() {
    let disk = SimDisk::new(1);
    let (mut manager, mut checkpoints) = with_spares(&disk);
    for round in 0..4 {
        let spares = names(&disk, PREFIX).len();
        assert!(spares >= 4, "{spares}");
        let (created, segments) = (created(&disk), names(&disk, "wal-").len());
        fill(&mut manager);
        let begun = names(&disk, "wal-").len() - segments;
        // Files are made only when there are none to be had; after a while there are enough.
        assert_eq!(self::created(&disk) - created, begun.saturating_sub(spares), "{round}");
        assert!(round < 2 || begun <= spares, "{begun} {spares}");
        assert_eq!(names(&disk, PREFIX).len(), spares.saturating_sub(begun));
        manager.truncate_before(&checkpoints.published()).unwrap();
    }
    let entries = manager.merge_segments().unwrap();
    assert!(entries.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    drop(manager);
    assert_eq!(names(&disk, PREFIX), [""; 0], "they go with the log");
}

/// Whoever reads it is told of no torn end, and recovery reports none.
#[test]
fn a_segment_of_a_used_file_ends_in_order() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let (mut manager, _checkpoints) = with_spares(&disk);
    while !manager.writer(0).header().reused {
        manager.writer(0).append_put(b"key", &[2; 700]).unwrap();
    }
    let path = manager.writer(0).path().to_path_buf();
    for len in [0, 10, 100, 47, 1] {
        manager.writer(0).append_put(b"key", &vec![1; len]).unwrap();
        manager.writer(0).sync().unwrap();
        let survey = Survey::up_to(&vfs, Path::new(WAL), &|_| Sequence::ZERO, &[]).unwrap();
        let last = survey.cores[0].segments.last().unwrap();
        assert_eq!((&last.path, last.case, last.dropped, last.header.reused), (&path, 'B', 0, true));
        assert!(last.len + 1000 < last.file_len, "old bytes follow");
        let mut reader = PerCoreWalReader::open_with(&disk, 0, &path, 0).unwrap();
        assert_eq!(reader.find_valid_end().unwrap(), last.len);
        assert_eq!(reader.read_next().unwrap(), WalReadResult::Eof);
    }
}

/// However many old bytes are left behind the last frame.
#[test]
fn a_segment_of_a_used_file_ends_in_order_up_to_its_last_bytes() {
    let (_, _, ends) = new_bytes(&[0xA5; 4096], &[31]);
    let end = usize::try_from(ends[1]).unwrap();
    for left in (0..=64).step_by(8) {
        let (bytes, name, _) = new_bytes(&vec![0xA5; end + left], &[31]);
        let disk = SimDisk::new(1);
        let path = Path::new("/").join(&name);
        write_all_at(disk.create_new(&path).unwrap().as_ref(), &bytes, 0).unwrap();
        let mut reader = PerCoreWalReader::open_with(&disk, 0, &path, 0).unwrap();
        assert_eq!(reader.find_valid_end().unwrap(), ends[1], "{left}");
        assert_eq!(reader.read_next().unwrap(), WalReadResult::Eof, "{left}");
        let found = surveyed(&bytes, &name);
        assert_eq!((found.case, found.len, found.dropped), ('B', ends[1], 0), "{left}");
    }
}

/// What it had read ahead was older than what stood there; two syncs later it spoke of damage.
#[test]
fn a_reader_goes_on_with_what_is_written_behind_the_end_it_found() {
    let disk = SimDisk::new(1);
    let mut manager = PerCoreWalManager::new(config(&disk).with_preallocation(4096)).unwrap();
    let path = manager.writer(0).path().to_path_buf();
    let mut reader = PerCoreWalReader::open_with(&disk, 0, &path, 0).unwrap();
    for round in 0..3 {
        assert_eq!(reader.read_next().unwrap(), WalReadResult::Eof, "{round}");
        for key in [b"one", b"two"] {
            manager.writer(0).append_put(key, b"value").unwrap();
            manager.sync_all().unwrap();
        }
        assert_eq!(reader.read_all().unwrap().len(), 2, "{round}");
    }
}

/// It would have ended without a word, or been told of damage.
#[test]
fn whoever_reads_a_segment_whose_file_becomes_another_is_told_so() {
    let disk = SimDisk::new(1);
    let mut manager = PerCoreWalManager::new(config(&disk)).unwrap();
    fill(&mut manager);
    let oldest = Path::new(WAL).join(&names(&disk, "wal-")[0]);
    let mut reader = PerCoreWalReader::open_with(&disk, 0, &oldest, 0).unwrap();
    let mut checkpoints = Checkpoints::new(&disk, manager.store_id());
    let _ = checkpoints.published();
    manager.truncate_before(&checkpoints.published()).unwrap();
    fill(&mut manager);
    assert_eq!(names(&disk, PREFIX), [""; 0]);
    let error = reader.read_all().unwrap_err();
    assert!(error.to_string().contains("its file is used for another"), "{error}");
}

/// Nobody would know of what was renamed before the failure.
#[test]
fn a_truncation_that_fails_leaves_no_spare_behind() {
    let disk = SimDisk::new(1);
    let mut manager = PerCoreWalManager::new(config(&disk)).unwrap();
    fill(&mut manager);
    let mut checkpoints = Checkpoints::new(&disk, manager.store_id());
    let _ = checkpoints.published();
    let published = checkpoints.published();
    // A plain log's segments go one by one: the first is renamed, and the directory cannot be synced.
    disk.fail_op(disk.ops() + 2, Fault::Eio, Duration::Once);
    manager.truncate_before(&published).unwrap_err();
    assert_eq!(names(&disk, PREFIX), [""; 0]);
}

#[test]
fn a_file_that_is_far_too_long_is_not_kept() {
    let disk = SimDisk::new(1);
    let mut manager = PerCoreWalManager::new(config(&disk)).unwrap();
    for len in [9000, 700, 9000, 700, 700, 700, 700, 700, 700, 700, 700, 700, 700] {
        manager.writer(0).append_put(b"key", &vec![1; len]).unwrap();
        manager.sync_all().unwrap();
    }
    let mut checkpoints = Checkpoints::new(&disk, manager.store_id());
    let _ = checkpoints.published();
    assert!(manager.truncate_before(&checkpoints.published()).unwrap().segments >= 3);
    let lens =
        names(&disk, PREFIX).into_iter().map(|name| disk.read_file(Path::new(WAL).join(name)).unwrap().len());
    let lens: Vec<_> = lens.collect();
    assert!(!lens.is_empty() && lens.iter().all(|len| *len < 5000), "{lens:?}");
}

#[test]
fn only_files_of_this_opening_are_used_again() {
    let disk = SimDisk::new(1);
    let (mut manager, _checkpoints) = with_spares(&disk);
    fill(&mut manager);
    let store_id = manager.store_id();
    std::mem::forget(manager);
    let image = disk.snapshot().image(&crate::vfs::sim::ImageId::default()).mount();
    let left = names(&image, PREFIX);
    let mut manager = PerCoreWalManager::new(config(&image)).unwrap();
    assert_eq!(names(&image, PREFIX), [""; 0], "of {left:?}");
    let mut checkpoints = Checkpoints::new(&image, store_id);
    checkpoints.1 = 10;
    // Enough room for spares, and only segments of the first opening to be had.
    fill(&mut manager);
    let _ = checkpoints.published();
    let first = |disk: &SimDisk| names(disk, "wal-0.00000001.");
    assert!(first(&image).len() > 2);
    manager.truncate_before(&checkpoints.published()).unwrap();
    assert_eq!(first(&image), [""; 0]);
    let spares = names(&image, PREFIX);
    assert!(!spares.is_empty() && spares.iter().all(|name| name.contains(".00000002.")), "{spares:?}");
}

#[test]
fn a_spare_that_somebody_removed_is_not_missed() {
    let disk = SimDisk::new(1);
    let (mut manager, _checkpoints) = with_spares(&disk);
    for name in names(&disk, PREFIX) {
        disk.remove_file(&Path::new(WAL).join(name)).unwrap();
    }
    fill(&mut manager);
    assert_eq!(manager.merge_segments().unwrap().last().unwrap().core_id, 0);
}

fn header(core: u16, incarnation: u64, number: u32, last_sequence: u64) -> SegmentHeader {
    SegmentHeader {
        store_id: StoreId(77),
        incarnation: Incarnation(incarnation),
        number: SegmentNumber(number),
        core: CoreId(core),
        core_count: 2,
        mode: WalMode::Epochs,
        base_position: WalPosition(0),
        last_sequence: Sequence(last_sequence),
        last_epoch: Epoch(1),
        sealed_epoch: Epoch(1),
        last_timestamp: TimestampNs(1),
        void_above: Epoch::ZERO,
        previous: Predecessor::default(),
        reused: false,
    }
}

fn begun(disk: &SimDisk, header: SegmentHeader, segment_size: u64) -> (CoreWalWriter, Arc<Spares>) {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let spares = Arc::new(Spares::new(&vfs));
    let dir = PathBuf::from("/");
    let (path, file) = create_segment(disk, &dir, &header, 0).unwrap();
    let policy = SegmentPolicy {
        vfs,
        dir,
        segment_size,
        preallocation: 0,
        names: Arc::default(),
        spares: Arc::clone(&spares),
        evidence: None,
    };
    (CoreWalWriter::start(policy, header, path, file, Epoch(2)), spares)
}

/// What stands in a file before it is used again: a put of each length, each a frame of its own.
fn old_bytes(header: SegmentHeader, lens: impl Iterator<Item = usize>) -> Vec<u8> {
    let disk = SimDisk::new(1);
    let (mut writer, _spares) = begun(&disk, header, 1 << 20);
    for len in lens {
        writer.append_put(b"old key", &vec![0xA5; len]).unwrap();
        writer.sync().unwrap();
    }
    disk.read_file(writer.path()).unwrap()
}

/// The same file after it was used again: what is in it, its name, and where its frames end.
fn new_bytes(old: &[u8], lens: &[usize]) -> (Vec<u8>, String, Vec<u64>) {
    let disk = SimDisk::new(1);
    let (mut writer, spares) = begun(&disk, header(0, 3, 8, 1000), 4096);
    writer.append_put(b"fills", &[1; 3900]).unwrap();
    writer.sync().unwrap();
    let spare = Path::new("/spare-0.00000003.00000007.log");
    write_all_at(disk.create_new(spare).unwrap().as_ref(), old, 0).unwrap();
    spares.keep(vec![spare.to_path_buf()]);
    let mut ends = vec![SEGMENT_HEADER_LEN as u64];
    for len in lens {
        writer.append_put(b"new key", &vec![0x5A; *len]).unwrap();
        writer.sync().unwrap();
        ends.push(writer.synced_len());
    }
    let name = SegmentName::of(writer.header()).file_name();
    (disk.read_file(writer.path()).unwrap(), name, ends)
}

const NEW: [&[usize]; 6] = [
    &[3, 40, 0, 111, 5, 64],
    &[200, 1, 1, 90],
    &[0, 0, 0, 0, 0, 0, 0, 0],
    &[500],
    &[7, 15, 23, 31, 39, 47, 55],
    &[1, 255, 2, 127, 3, 63],
];

/// Everything a file can be that is used again, up to where the new bytes came: whatever old bytes follow, at whatever
/// place their frames begin, of this core, another, or an earlier opening, exactly the new frames that are whole are found.
#[test]
fn no_old_frame_is_found_behind_any_length_of_new_ones() {
    let (overlays, in_order) = overlay(0..16, &NEW[..2]);
    assert!(overlays > 100_000 && in_order > 1000, "{overlays} {in_order}");
}

#[test]
#[ignore = "ten million of them take minutes; docs/TESTING.md has the command"]
fn no_old_frame_is_found_in_ten_million_overlays() {
    let (overlays, _) = overlay(0..640, &NEW);
    println!("{overlays} overlays");
    assert!(overlays > 10_000_000, "{overlays}");
}

/// Overlays of files with old frames of these shapes, and how many of them ended in order.
fn overlay(shapes: std::ops::Range<usize>, news: &[&[usize]]) -> (u64, u64) {
    let (mut overlays, mut in_order) = (0, 0);
    for shape in shapes {
        // Old frames begin everywhere: their lengths grow by eight bytes and more, and the first one's too.
        let lens = || (0..14).map(move |n| (shape + n) * (8 + shape / 13) % 104 + shape % 5);
        for of in [header(0, 3, 7, 500), header(1, 3, 7, 500), header(0, 2, 7, 500)] {
            let old = old_bytes(of, lens());
            for new in news {
                let (bytes, name, ends) = new_bytes(&old, new);
                for at in SEGMENT_HEADER_LEN..=bytes.len() {
                    let overlay = [&bytes[..at], old.get(at..).unwrap_or_default()].concat();
                    let cut_off = judge(&overlay, &name, at, &bytes, &ends);
                    in_order += u64::from(cut_off);
                    overlays += 1;
                }
            }
        }
    }
    (overlays, in_order)
}

/// Judges what is found in a file that has its new `bytes` up to `at`; whether zeros cut off what follows.
fn judge(overlay: &[u8], name: &str, at: usize, bytes: &[u8], ends: &[u64]) -> bool {
    let found = surveyed(overlay, name);
    let whole = ends.iter().rev().find(|end| **end <= at as u64).unwrap();
    // Old bytes may be the very same as the new ones.
    let len = usize::try_from(found.len).unwrap();
    assert!(found.len >= *whole && ends.contains(&found.len), "{at}: {found:?}");
    assert_eq!(overlay[..len], bytes[..len]);
    let cut_off = overlay[len..].iter().take(48).all(|byte| *byte == 0);
    assert_eq!(found.case, if cut_off { 'B' } else { 'C' }, "{at}: {found:?}");
    // One frame is torn, and nothing behind its end; behind the last frame there is only room for a header.
    let end = ends.iter().find(|end| **end > found.len).map_or(48, |end| end - found.len);
    assert!(found.dropped <= if cut_off { 0 } else { end }, "{at}: {found:?}");
    cut_off
}

fn surveyed(bytes: &[u8], name: &str) -> Segment {
    let disk = SimDisk::new(1);
    write_all_at(disk.create_new(&Path::new("/").join(name)).unwrap().as_ref(), bytes, 0).unwrap();
    let vfs: Arc<dyn Vfs> = Arc::new(disk);
    let survey = Survey::up_to(&vfs, Path::new("/"), &|_| Sequence::ZERO, &[]).unwrap();
    survey.cores[0].segments[0].clone()
}
