use super::*;
use crate::ids::{CoreId, Incarnation, SegmentNumber, StoreId};
use crate::per_core_wal::recovery::cursor::CoreCursor;
use crate::per_core_wal::recovery::plan::Span;
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
use crate::vfs::sim::SimDisk;

fn dir() -> &'static Path {
    Path::new("/wal")
}

/// A log of one core whose segments hold a few records each.
struct Growing {
    disk: SimDisk,
    vfs: Arc<dyn Vfs>,
    manager: PerCoreWalManager,
    /// Header of its first segment.
    first: SegmentHeader,
    puts: usize,
}

impl Growing {
    fn new() -> Self {
        let disk = SimDisk::new(1);
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let config = PerCoreWalConfig::new(dir(), 1).with_segment_size(4096).with_vfs(Arc::clone(&vfs));
        let manager = PerCoreWalManager::new(config).unwrap();
        let first = manager.headers()[0];
        Self { disk, vfs, manager, first, puts: 0 }
    }

    /// Appends this many records, each synced by itself.
    fn grow(&mut self, records: usize) {
        for _ in 0..records {
            self.manager.writer(0).append_put(b"key", &[7; 500]).unwrap();
            self.manager.sync_all().unwrap();
            self.puts += 1;
        }
    }

    /// Appends until this many segments follow the first one.
    fn roll(&mut self, segments: u32) {
        while self.newest().number.0 < self.first.number.0 + segments {
            self.grow(1);
        }
    }

    fn newest(&self) -> SegmentHeader {
        self.manager.headers()[0]
    }

    fn end(&self) -> LogEnd {
        self.manager.ends()[0]
    }

    fn beginning(&self) -> Place {
        Place::beginning(self.first)
    }

    fn stretches(&self, from: &Place) -> Result<Vec<Stretch>, PerCoreWalError> {
        from.up_to(&self.vfs, dir(), self.end())
    }

    /// The sequences of the puts between a place and the end, and the place that is reached.
    fn read(&self, from: &Place) -> (Vec<u64>, Option<Place>) {
        let mut sequences = Vec::new();
        let everything = Span { after: Sequence::ZERO, from_epoch: Epoch::ZERO, up_to: Epoch::MAX };
        let cursor = CoreCursor::over(&self.vfs, self.stretches(from).unwrap(), everything);
        let done = cursor
            .replay(|_, at| {
                sequences.push(at.sequence);
                Ok(())
            })
            .unwrap();
        (sequences, done.reached.place)
    }
}

#[test]
fn what_was_appended_is_read_once_over_any_number_of_segments() {
    let mut log = Growing::new();
    let mut at = log.beginning();
    assert_eq!(at.position(), 0);
    assert_eq!(log.read(&at), (vec![], None), "nothing was appended");
    let mut all = Vec::new();
    for (round, segments) in [0, 1, 1, 4, 6].into_iter().enumerate() {
        log.roll(segments);
        log.grow(1);
        let (more, reached) = log.read(&at);
        at = reached.unwrap();
        all.extend(more);
        assert_eq!(at.sequence.0, *all.last().unwrap(), "round {round}");
        assert_eq!(at.position(), log.manager.synced_positions()[0], "round {round}");
        assert_eq!(log.read(&at), (vec![], None), "round {round}");
    }
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    assert_eq!(all.len(), log.puts);
    assert_eq!(log.read(&log.beginning()).0, all);
}

#[test]
fn a_place_that_is_not_in_this_log_is_refused() {
    let mut log = Growing::new();
    log.roll(2);
    let next = log.next_of(&log.first);
    let at = log.beginning();
    // As far as the first segment counts, and with its last record.
    let last = Place { offset: next.previous.len, sequence: next.last_sequence, ..at };
    assert_eq!(log.stretches(&last).unwrap().len(), 3);
    for wrong in [
        Place { offset: last.offset + 8, ..last },
        Place { sequence: last.sequence.next(), ..last },
        Place { segment: SegmentHeader { void_above: Epoch(9), ..log.first }, ..at },
    ] {
        assert!(log.stretches(&wrong).unwrap_err().is_corruption(), "{wrong:?}");
    }
}

#[test]
fn an_end_before_the_place_is_refused() {
    let mut log = Growing::new();
    log.grow(1);
    let (number, len) = log.end();
    let at = Place { offset: len, ..log.beginning() };
    let up_to = |end| at.up_to(&log.vfs, dir(), end).map(|stretches| stretches.len());
    assert_eq!(up_to((number, len)).unwrap(), 1);
    assert_eq!(up_to((number, len + 8)).unwrap(), 1);
    assert!(up_to((number, len - 8)).unwrap_err().is_corruption());
    assert!(up_to((SegmentNumber(number.0 - 1), len)).unwrap_err().is_corruption());
    assert!(up_to((number.next(), len)).is_err(), "there is no such segment");
}

impl Growing {
    fn path_after(&self, header: &SegmentHeader) -> std::path::PathBuf {
        let name = SegmentName { number: header.number.next(), ..SegmentName::of(header) };
        dir().join(name.file_name())
    }

    /// Header of the segment behind this one.
    fn next_of(&self, header: &SegmentHeader) -> SegmentHeader {
        read_header(self.vfs.as_ref(), &self.path_after(header)).unwrap().unwrap()
    }
}

#[test]
fn a_segment_that_continues_another_one_is_refused() {
    let mut log = Growing::new();
    log.roll(1);
    let at = log.beginning();
    let next = log.next_of(&log.first);
    let mut others = [next; 3];
    others[0].store_id = StoreId(next.store_id.0 ^ 1);
    others[1].previous.incarnation = Incarnation(next.previous.incarnation.0 + 1);
    others[2].previous.number = next.previous.number.next();
    let path = log.path_after(&log.first);
    for other in others {
        log.disk.patch(&path, 0, &other.encode()).unwrap();
        assert!(log.stretches(&at).unwrap_err().is_corruption(), "{other:?}");
    }
    log.disk.patch(&path, 0, &next.encode()).unwrap();
    assert_eq!(log.stretches(&at).unwrap().len(), 2);
    assert_eq!(next.core, CoreId(0));
}
