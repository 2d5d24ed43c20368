//! Logs for the table: written and opened by the real code, up to the place in the life of a log where the
//! segment in question stands. What has happened to its bytes is told in `bytes`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::segment_header::WalMode;
use crate::format::synced::{SLOT_LEN, Synced};
use crate::ids::{CoreId, Epoch, Sequence};
use crate::per_core_wal::incarnation::Beginning;
use crate::per_core_wal::reader::read_header;
use crate::per_core_wal::recovery::identity::{CURRENT, SYNCED};
use crate::per_core_wal::segment::{SegmentName, list_segments};
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager, WalOperation};
use crate::vfs::Vfs;
use crate::vfs::sim::SimDisk;

/// A `Store` has its log there.
pub(super) const DIR: &str = "/store/wal";
/// Five frames of the short kind fill a segment, one of the long kind does.
const SEGMENT: u64 = 4096;
const SHORT: usize = 700;
const LONG: usize = 3900;

/// How many cores a log has, and who acknowledges its records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) cores: usize,
    pub(super) mode: WalMode,
}

impl Kind {
    /// The core of the segment in question. All others are sound.
    pub(super) fn core(self) -> usize {
        self.cores - 1
    }

    pub(super) fn config(self, vfs: &Arc<dyn Vfs>) -> PerCoreWalConfig {
        let config = PerCoreWalConfig::new(Path::new(DIR), self.cores).with_vfs(Arc::clone(vfs));
        config.with_segment_size(SEGMENT)
    }
}

/// A record as readers show it: core, epoch, what it does.
pub(super) type Shown = (usize, u64, WalOperation);

/// A log that is being written. Every round writes one frame on each core: a put and the epoch's barrier.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) disk: SimDisk,
    kind: Kind,
    manager: Option<PerCoreWalManager>,
    epoch: u64,
    /// What was synced, with the segment it went to.
    pub(super) written: Vec<(PathBuf, Shown)>,
}

impl Log {
    pub(super) fn new(kind: Kind) -> Self {
        Self { disk: SimDisk::new(1), kind, manager: None, epoch: 0, written: Vec::new() }
    }

    /// The process dies, and so leaves no confirmation behind its last record.
    pub(super) fn kill(&mut self) {
        let killed = self.disk.snapshot().restart();
        self.manager = None;
        self.disk = killed;
    }

    /// The process dies, another one opens the log.
    fn open(&mut self) {
        self.kill();
        let vfs: Arc<dyn Vfs> = Arc::new(self.disk.clone());
        let config = self.kind.config(&vfs);
        self.manager = Some(match self.kind.mode {
            WalMode::Plain => PerCoreWalManager::new(config).unwrap(),
            WalMode::Epochs => self.open_as_a_store_does(config),
        });
    }

    fn open_as_a_store_does(&self, config: PerCoreWalConfig) -> PerCoreWalManager {
        let (lock, survey) = PerCoreWalManager::examine(&config).unwrap();
        let beginning = Beginning {
            core_count: u16::try_from(self.kind.cores).unwrap(),
            mode: WalMode::Epochs,
            epoch: Epoch(self.epoch + 1),
            after: Sequence::ZERO,
            void_above: Epoch(self.epoch),
            reset: false,
        };
        let secured = PerCoreWalManager::secure(&config, &survey).unwrap();
        PerCoreWalManager::begin(config, lock, secured, beginning).unwrap()
    }

    fn manager(&mut self) -> &mut PerCoreWalManager {
        self.manager.as_mut().unwrap()
    }

    /// The segment in use of the core in question.
    fn path(&mut self) -> PathBuf {
        let core = self.kind.core();
        self.manager().writer(core).path().to_path_buf()
    }

    /// Appends a round, and returns what it will have written once it is synced.
    fn append(&mut self, len: usize) -> Vec<(PathBuf, Shown)> {
        let epoch = self.epoch + 1;
        self.manager().set_epoch_all(epoch).unwrap();
        let mut round = Vec::new();
        for core in 0..self.kind.cores {
            let (key, value) = (format!("{core}-{epoch}").into_bytes(), vec![7; len]);
            let writer = self.manager().writer(core);
            writer.append_put(&key, &value).unwrap();
            writer.append_epoch_barrier().unwrap();
            let path = writer.path().to_path_buf();
            round.push((path.clone(), (core, epoch, WalOperation::Put { key, value })));
            round.push((path, (core, epoch, WalOperation::EpochBarrier { epoch })));
        }
        round
    }

    fn sync(&mut self, round: Vec<(PathBuf, Shown)>) {
        self.manager().sync_all().unwrap();
        self.epoch += 1;
        self.written.extend(round);
    }

    fn write(&mut self, frames: usize) {
        for _ in 0..frames {
            let round = self.append(SHORT);
            self.sync(round);
        }
    }

    /// Writes until a new segment was begun, and then so much that it holds this many frames.
    fn fill(&mut self, frames: usize) {
        let full = self.path();
        loop {
            let round = self.append(SHORT);
            if self.path() == full {
                self.sync(round);
            } else if frames == 0 {
                // What made the segment necessary was not written any more.
                return self.kill();
            } else {
                self.sync(round);
                return self.write(frames - 1);
            }
        }
    }

    /// Goes on in a new segment.
    fn roll(&mut self) {
        let full = self.path();
        let round = self.append(LONG);
        self.sync(round);
        assert_ne!(self.path(), full);
    }

    /// Opens the log, and dies before `CURRENT` says so.
    fn open_in_vain(&mut self, frames: usize) {
        let current = Path::new(DIR).join(CURRENT);
        let before = self.disk.read_file(&current).unwrap();
        self.open();
        self.write(frames);
        self.kill();
        self.disk.overwrite(current, &before).unwrap();
    }

    /// A log of so many frames on each core, whose process is dead.
    pub(super) fn begin_with_frames(&mut self, frames: usize) {
        self.open();
        self.write(frames);
        self.kill();
    }

    fn forget_current(&mut self) {
        self.kill();
        self.disk.remove(Path::new(DIR).join(CURRENT)).unwrap();
    }

    /// Segments of the core in question, oldest first.
    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let names = list_segments(&self.disk, Path::new(DIR)).unwrap().into_iter();
        let of_core = names.filter(|name| name.core.index() == self.kind.core());
        of_core.map(|name: SegmentName| Path::new(DIR).join(name.file_name())).collect()
    }
}

/// A place of a segment in the life of a log.
pub(super) struct Place {
    pub(super) what: &'static str,
    pub(super) required: bool,
    pub(super) successor: bool,
    /// The frames that it cannot be without.
    pub(super) least: usize,
    /// The segment before it says that this one is there.
    pub(super) announced: bool,
    /// `CURRENT` or another segment of one core says whose log it is.
    pub(super) identified: bool,
    /// Writes a log that has that many frames in the segment, and returns the segment.
    pub(super) write: fn(&mut Log, usize) -> PathBuf,
}

const PLACE: Place = Place {
    what: "",
    required: false,
    successor: false,
    least: 0,
    announced: false,
    identified: true,
    write: first,
};

pub(super) const PLACES: [Place; 11] = [
    Place { what: "the first of all", required: true, ..PLACE },
    Place { what: "the first of the second opening", required: true, write: first_again, ..PLACE },
    Place {
        what: "the first, with another one of its incarnation behind it",
        required: true,
        successor: true,
        least: 1,
        write: first_and_full,
        ..PLACE
    },
    Place {
        what: "the first, with one of an interrupted opening behind it",
        required: true,
        successor: true,
        write: before_an_interrupted_opening,
        ..PLACE
    },
    Place {
        what: "the first of all, before there is a CURRENT",
        identified: false,
        write: without_current,
        ..PLACE
    },
    Place { what: "the second of its incarnation", announced: true, write: second, ..PLACE },
    Place { what: "the second, of a roll that was interrupted", write: of_an_interrupted_roll, ..PLACE },
    Place { what: "the second of three", successor: true, least: 1, announced: true, write: middle, ..PLACE },
    Place { what: "the first of an interrupted opening", write: of_an_interrupted_opening, ..PLACE },
    Place { what: "the first of an earlier opening", successor: true, write: earlier, ..PLACE },
    Place {
        what: "the first of an earlier opening, without a CURRENT",
        successor: true,
        write: earlier_without_current,
        ..PLACE
    },
];

fn first(log: &mut Log, frames: usize) -> PathBuf {
    log.open();
    log.write(frames);
    log.path()
}

fn first_again(log: &mut Log, frames: usize) -> PathBuf {
    first(log, 2);
    first(log, frames)
}

fn first_and_full(log: &mut Log, frames: usize) -> PathBuf {
    let path = first(log, frames);
    log.roll();
    path
}

/// What stands before a segment behind which nothing was ever written is not looked at: hence the opening before.
fn before_an_interrupted_opening(log: &mut Log, frames: usize) -> PathBuf {
    let path = first_again(log, frames);
    log.open_in_vain(0);
    path
}

fn without_current(log: &mut Log, frames: usize) -> PathBuf {
    let path = first(log, frames);
    log.forget_current();
    path
}

fn second(log: &mut Log, frames: usize) -> PathBuf {
    log.open();
    log.fill(frames);
    log.kill();
    log.segments().pop().unwrap()
}

/// The segment was there, the record that announces it in the one before was not yet.
fn of_an_interrupted_roll(log: &mut Log, frames: usize) -> PathBuf {
    let path = second(log, frames);
    let header = read_header(&log.disk, &path).unwrap().unwrap();
    let first = &log.segments()[0];
    log.disk.truncate(first, header.previous.len).unwrap();
    if log.kind.mode == WalMode::Epochs {
        // Nor had it been synced.
        let note = Synced::of(&read_header(&log.disk, first).unwrap().unwrap(), header.previous.len);
        let (synced, at) = (Path::new(DIR).join(SYNCED), log.kind.core() * SLOT_LEN);
        let mut slots = log.disk.read_file(&synced).unwrap();
        slots[at..at + SLOT_LEN].copy_from_slice(&note.encode());
        log.disk.overwrite(synced, &slots).unwrap();
    }
    path
}

fn middle(log: &mut Log, frames: usize) -> PathBuf {
    log.open();
    log.fill(frames);
    let path = log.path();
    log.roll();
    path
}

fn of_an_interrupted_opening(log: &mut Log, frames: usize) -> PathBuf {
    first(log, 2);
    log.open_in_vain(frames);
    log.segments().pop().unwrap()
}

fn earlier(log: &mut Log, frames: usize) -> PathBuf {
    let path = first_again(log, frames);
    first(log, 1);
    path
}

fn earlier_without_current(log: &mut Log, frames: usize) -> PathBuf {
    let path = earlier(log, frames);
    log.forget_current();
    path
}

/// The core in question, as errors name it.
pub(super) fn core_id(kind: Kind) -> CoreId {
    CoreId(u16::try_from(kind.core()).unwrap())
}
