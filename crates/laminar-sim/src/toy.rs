//! A log of one file, small enough to be seen to be right, and the same log with one mistake at a
//! time. It proves the harness: the right one passes, and every mistake is caught.
//!
//! ```text
//! log:  magic, 8 bytes | record, record, …      record: number, value, checksum, 8 bytes each
//! ```
//!
//! Record `n` is epoch `n`. It is written, synced and acknowledged. Recovery keeps the records up to
//! the first bad one, cuts off the rest, makes what it found durable, and appends one more.

use std::io;
use std::path::Path;
use std::sync::Arc;

use laminar_storage::ids::{CoreId, Epoch};
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::vfs::{Access, Vfs, VfsFile, create_dir_durably, read_small_file, write_all_at};

use crate::driver::Scenario;
use crate::log::Log;
use crate::oracle::{Model, Recovered, State};

const MAGIC: &[u8; 8] = b"TOY-LOG\n";
const RECORD: usize = 24;
const DIR: &str = "toy";
const CORE: CoreId = CoreId(0);

/// One mistake, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Right.
    None,
    /// The header is renamed into place without having been synced.
    RenameBeforeSync,
    /// The directory is not synced after the rename.
    NoDirSync,
    /// The directory's own entry is not synced.
    NoParentSync,
    /// Records are acknowledged without a sync.
    NoSync,
    /// Records are acknowledged before the sync.
    AckBeforeSync,
    /// A failed sync is tried again.
    RetriedSync,
    /// Recovery works with what it read without making it durable.
    RecoveryWithoutSync,
    /// Recovery leaves what lies behind the first bad record where it is.
    NoCut,
    /// Records carry no checksum, only a number.
    NoChecksum,
    /// A short write counts as a complete one.
    ShortWriteIgnored,
}

/// All mistakes that a crash reveals, without a fault.
pub const CRASH_MISTAKES: &[Mistake] = &[
    Mistake::RenameBeforeSync,
    Mistake::NoDirSync,
    Mistake::NoParentSync,
    Mistake::NoSync,
    Mistake::AckBeforeSync,
    Mistake::RecoveryWithoutSync,
    Mistake::NoCut,
    Mistake::NoChecksum,
];

/// The mistakes that only a fault reveals.
pub const FAULT_MISTAKES: &[Mistake] = &[Mistake::RetriedSync, Mistake::ShortWriteIgnored];

/// The scenario: a few batches of records, each synced and acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    /// What is done wrong.
    pub mistake: Mistake,
    /// How many batches.
    pub batches: u64,
    /// Records per batch; a batch is synced and acknowledged as a whole.
    pub batch: u64,
}

impl Toy {
    /// The usual size.
    #[must_use]
    pub fn new(mistake: Mistake) -> Self {
        Self { mistake, batches: 2, batch: 3 }
    }

    fn has(self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }
}

fn sum(number: u64, value: u64) -> u64 {
    // Neither linear in its input nor zero for zeros; that is all a toy needs.
    let mixed = (number ^ value.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

struct ToyLog<'a> {
    toy: Toy,
    disk: &'a SimDisk,
    file: Arc<dyn VfsFile>,
    next: u64,
}

fn end_of(records: u64) -> u64 {
    MAGIC.len() as u64 + records * RECORD as u64
}

impl<'a> ToyLog<'a> {
    fn create(toy: Toy, disk: &'a SimDisk) -> io::Result<Self> {
        let dir = Path::new(DIR);
        if toy.has(Mistake::NoParentSync) {
            match disk.create_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        } else {
            create_dir_durably(disk, dir)?;
        }
        let temporary = dir.join("log.tmp");
        if disk.kind(&temporary)?.is_some() {
            disk.remove_file(&temporary)?;
        }
        let file = disk.create_new(&temporary)?;
        write_all_at(file.as_ref(), MAGIC, 0)?;
        if !toy.has(Mistake::RenameBeforeSync) {
            file.sync_data()?;
        }
        disk.rename(&temporary, &dir.join("log"))?;
        if !toy.has(Mistake::NoDirSync) {
            disk.sync_dir(dir)?;
        }
        Ok(Self { toy, disk, file, next: 1 })
    }

    /// Opens or creates, and returns the values found.
    fn open(toy: Toy, disk: &'a SimDisk) -> io::Result<(Self, Vec<u64>)> {
        let path = Path::new(DIR).join("log");
        let there = disk.kind(Path::new(DIR))?.is_some() && disk.kind(&path)?.is_some();
        if !there {
            return Ok((Self::create(toy, disk)?, Vec::new()));
        }
        let bytes = read_small_file(disk, &path, 1 << 20)?;
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(io::Error::other("the log has no header"));
        }
        let mut values = Vec::new();
        for record in bytes[MAGIC.len()..].chunks_exact(RECORD) {
            let (number, value) = (word(record, 0), word(record, 8));
            let good = toy.has(Mistake::NoChecksum) || word(record, 16) == sum(number, value);
            if number != values.len() as u64 + 1 || !good {
                break;
            }
            values.push(value);
        }
        let file = disk.open(&path, Access::ReadWrite)?;
        let count = values.len() as u64;
        if !toy.has(Mistake::NoCut) && file.size()? != end_of(count) {
            file.set_len(end_of(count))?;
        }
        if !toy.has(Mistake::RecoveryWithoutSync) {
            // Whoever wrote this may have died of a failed sync, after which these bytes count as clean
            // without being on the disk: they and the size must be written again to be synced.
            let (kept, size) = (MAGIC.len() + values.len() * RECORD, file.size()?);
            write_all_at(file.as_ref(), &bytes[..kept], 0)?;
            file.set_len(size + 1)?;
            file.set_len(size)?;
            file.sync_data()?;
            create_dir_durably(disk, Path::new(DIR))?;
            disk.sync_dir(Path::new(DIR))?;
        }
        let log = Self { toy, disk, file, next: count + 1 };
        Ok((log, values))
    }

    fn append(&mut self, value: u64) -> io::Result<()> {
        let mut record = Vec::with_capacity(RECORD);
        for word in [self.next, value, sum(self.next, value)] {
            record.extend_from_slice(&word.to_le_bytes());
        }
        let offset = end_of(self.next - 1);
        if self.toy.has(Mistake::ShortWriteIgnored) {
            self.file.write_at(&record, offset)?;
        } else {
            write_all_at(self.file.as_ref(), &record, offset)?;
        }
        self.next += 1;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match self.file.sync_data() {
            Err(_) if self.toy.has(Mistake::RetriedSync) => self.file.sync_data(),
            other => other,
        }
    }

    /// Appends a batch, syncs and acknowledges it.
    fn batch(&mut self, count: u64, log: &mut Log<Model>) -> io::Result<()> {
        let mut last = Epoch::ZERO;
        for _ in 0..count {
            let value = self.disk.random_u64();
            last = log.note(self.disk, |model| {
                model.put(CORE, &self.next.to_le_bytes(), &value.to_le_bytes());
                model.seal(CORE)
            });
            self.append(value)?;
        }
        if self.toy.has(Mistake::AckBeforeSync) {
            log.note(self.disk, |model| model.ack(last));
        }
        if !self.toy.has(Mistake::NoSync) {
            self.sync()?;
        }
        log.note(self.disk, |model| model.ack(last));
        Ok(())
    }
}

fn recovered(values: &[u64]) -> Recovered {
    let record = |(i, value): (usize, &u64)| {
        let number = i as u64 + 1;
        (number.to_le_bytes().to_vec(), value.to_le_bytes().to_vec())
    };
    let state: State = values.iter().enumerate().map(record).collect();
    Recovered { epoch: Epoch(values.len() as u64), state: vec![state], ..Recovered::default() }
}

impl Scenario for Toy {
    type Model = Model;

    fn name(&self) -> String {
        format!("toy-{:?}", self.mistake)
    }

    fn start(&self) -> Model {
        Model::new(1)
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let work = |log: &mut Log<Model>| -> io::Result<()> {
            let mut toy = ToyLog::create(*self, disk)?;
            for _ in 0..self.batches {
                toy.batch(self.batch, log)?;
            }
            Ok(())
        };
        work(log).map_err(|e| e.to_string())
    }

    fn recover(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let (mut toy, values) = ToyLog::open(*self, disk).map_err(|e| e.to_string())?;
        let found = recovered(&values);
        log.model().check_recovered(&found)?;
        log.note(disk, |model| model.landed(found.epoch, found.epoch.next()));
        toy.batch(1, log).map_err(|e| e.to_string())?;
        drop(toy);
        let (_, values) = ToyLog::open(*self, disk).map_err(|e| e.to_string())?;
        log.model().check_recovered(&recovered(&values))
    }

    /// All of it was done in `recover`.
    fn go_on(&self, _disk: &SimDisk, _log: &mut Log<Model>) -> Result<(), String> {
        Ok(())
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<Model>) -> Result<(), String> {
        match ToyLog::open(*self, disk) {
            Ok((_, values)) => log.model().check_recovered(&recovered(&values)),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use laminar_storage::vfs::sim::Profile;

    use super::*;
    use crate::driver::{Plan, explore, replay};
    use crate::faults::{Sweep, sweep_faults};
    use crate::trail::Trail;

    #[test]
    fn the_right_log_survives_every_crash_and_every_crash_of_its_recovery() {
        let toy = Toy::new(Mistake::None);
        for profile in [Profile::PosixMinimal, Profile::Ext4Ordered] {
            let mut plan = Plan { depth: 2, ..Plan::default() };
            plan.policy.profile = profile;
            plan.nested_policy.profile = profile;
            let report = explore(&toy, 1, &plan);
            println!("{profile:?}: {report}");
            assert!(report.failures.is_empty(), "{}", report.failures[0]);
            // So small a log leaves the same images after one crash as after three.
            assert!(report.images[0] > 10 && report.images_total() > 60, "{report}");
            assert!(report.nested > 60, "{report}");
        }
    }

    #[test]
    fn every_mistake_is_caught_by_a_crash_and_can_be_run_again() {
        for mistake in CRASH_MISTAKES {
            let toy = Toy::new(*mistake);
            let report = explore(&toy, 1, &Plan::default());
            println!("{mistake:?}: {report}");
            let failure = report.failures.first();
            let failure = failure.unwrap_or_else(|| panic!("{mistake:?} was not caught"));
            println!("  {failure}");
            let trail: Trail = failure.trail.to_string().parse().unwrap();
            let again = replay(&toy, 1, &trail).unwrap_err();
            assert!(again.starts_with(&failure.error), "{again}");
        }
    }

    #[test]
    fn a_journal_hides_some_mistakes() {
        let caught = |mistake, profile| {
            let mut plan = Plan::default();
            plan.policy.profile = profile;
            plan.nested_policy.profile = profile;
            !explore(&Toy::new(mistake), 1, &plan).failures.is_empty()
        };
        assert!(caught(Mistake::NoDirSync, Profile::PosixMinimal));
        assert!(!caught(Mistake::NoParentSync, Profile::Ext4Ordered));
        assert!(caught(Mistake::NoSync, Profile::Ext4Ordered));
        assert!(caught(Mistake::RenameBeforeSync, Profile::Ext4Ordered));
    }

    #[test]
    fn the_right_log_survives_every_fault() {
        let toy = Toy::new(Mistake::None);
        let report = sweep_faults(&toy, 1, &Sweep::default());
        println!("{report}");
        assert!(report.failures.is_empty(), "{}", report.failures[0]);
        assert!(report.runs > 100 && report.refused > 50, "{report}");
    }

    #[test]
    fn mistakes_with_errors_are_caught_by_faults() {
        for mistake in FAULT_MISTAKES {
            let toy = Toy::new(*mistake);
            assert!(explore(&toy, 1, &Plan::default()).failures.is_empty());
            let report = sweep_faults(&toy, 1, &Sweep::default());
            println!("{mistake:?}: {report}");
            let failure = report.failures.first();
            println!("  {}", failure.unwrap_or_else(|| panic!("{mistake:?} was not caught")));
        }
    }

    #[test]
    fn the_same_exploration_twice_is_the_same() {
        let toy = Toy::new(Mistake::NoSync);
        let plan = Plan { failures_max: usize::MAX, ..Plan::default() };
        let (first, second) = (explore(&toy, 5, &plan), explore(&toy, 5, &plan));
        assert_eq!(first.images, second.images);
        assert_eq!(first.failures, second.failures);
        let threads = Plan { threads: 2, ..plan };
        assert_eq!(explore(&toy, 5, &threads).images_total(), first.images_total());
    }
}
