//! The running disk: every operation of [`Vfs`], numbered, traced, and failing when told to.

use std::fmt::{self, Debug};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::faults::{Class, Duration, Fault};
use super::image::Snapshot;
use super::machine::Machine;
use super::trace::{self, Call, Op, Stats};
use super::tree::{Ino, Tree};
use crate::vfs::{Access, FileKind, Vfs, VfsFile};

/// Where the simulated clock starts: 2023-11-14, so that labels look like labels.
pub(super) const CLOCK_START_NS: u64 = 1_700_000_000_000_000_000;
const CLOCK_STEP_NS: u64 = 1_000;

/// A simulated disk and the machine it is in. Clones are handles to the same disk.
#[derive(Clone)]
pub struct SimDisk {
    machine: Arc<Mutex<Machine>>,
}

impl Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.machine();
        write!(f, "SimDisk(seed {}, op {})", machine.seed, machine.ops)
    }
}

impl SimDisk {
    /// An empty disk. `seed` decides `random_u64` and everything else that is not asked for.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut machine = Machine::new(Tree::new(), seed, CLOCK_START_NS);
        machine.traced = Some(Vec::new());
        Self::from_machine(machine)
    }

    pub(super) fn from_machine(machine: Machine) -> Self {
        Self { machine: Arc::new(Mutex::new(machine)) }
    }

    /// A panicking test must still be able to look at its disk.
    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(
        &self,
        class: Class,
        call: Call<'_>,
        count: impl FnOnce(&T) -> u64,
        act: impl FnOnce(&mut Machine, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut machine = self.machine();
        let mut result = match machine.start(class) {
            Ok(fault) => act(&mut machine, fault).and_then(|done| match fault {
                Some(Fault::EioAfter) => Err(Errno::IO.into()),
                _ => Ok(done),
            }),
            Err(e) => Err(e),
        };
        let outcome = match &mut result {
            Ok(done) => Ok(count(done)),
            Err(e) => Err(e.kind()),
        };
        machine.finish(class, &call, outcome);
        result
    }

    fn handle(&self, ino: Ino, path: &Path, writable: bool) -> Arc<dyn VfsFile> {
        *self.machine().open.entry(ino).or_default() += 1;
        Arc::new(SimFile { disk: self.clone(), ino, path: path.to_owned(), writable })
    }

    /// The seed it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.machine().seed
    }

    /// How many operations were numbered so far.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.machine().ops
    }

    /// Whether operations that change nothing are numbered too, so that faults can hit them.
    /// Off at first.
    pub fn number_reads(&self, on: bool) {
        self.machine().number_reads = on;
    }

    /// Starts or stops tracing and forgets the trace so far. On at first for a new disk, off for
    /// a mounted image.
    pub fn set_tracing(&self, on: bool) {
        self.machine().traced = on.then(Vec::new);
    }

    /// Every operation since tracing began, those that failed included.
    #[must_use]
    pub fn trace(&self) -> Vec<Op> {
        self.machine().traced.clone().unwrap_or_default()
    }

    /// Equal for two runs exactly when their traces are.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        trace::hash(self.machine().traced.as_deref().unwrap_or_default())
    }

    /// Counts since the disk was made or mounted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.machine().stats
    }

    /// Starts recording a [`Snapshot`] now and after every operation that changes something, or
    /// stops and forgets them.
    pub fn record(&self, on: bool) {
        let mut machine = self.machine();
        let now = machine.snapshot(None);
        machine.recorded = on.then(|| vec![now]);
    }

    /// The snapshots recorded so far, oldest first. They stay recorded.
    #[must_use]
    pub fn history(&self) -> Vec<Snapshot> {
        self.machine().recorded.clone().unwrap_or_default()
    }

    /// The disk as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.machine().snapshot(None)
    }

    /// Equal (but for a hash collision) only when everything that decides what later operations do is equal:
    /// the content, what is pending, clock, random numbers, capacity, and what is open or locked. Planned
    /// faults and the number of operations are not part of it.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let machine = self.machine();
        let free = machine.free.map_or([0, 0], |free| [1, free]);
        let on = [machine.power, machine.read_only, machine.number_reads, machine.tree.names_lost];
        let words = [machine.seed, machine.random, machine.clock, u64::from(machine.tree.next_ino())];
        let words = words.into_iter().chain(free).chain([machine.tree.journaled]).chain(on.map(u64::from));
        let open = machine.open.iter().flat_map(|(ino, count)| [u64::from(*ino), u64::from(*count)]);
        let locks = machine.locks.iter().map(|ino| u64::from(*ino));
        let mix = |hash, word: u64| xxh3_64_with_seed(&word.to_le_bytes(), hash);
        words.chain(open).chain([u64::MAX]).chain(locks).fold(machine.snapshot(None).hash(), mix)
    }

    /// Plans a fault for the operation with number `op`; see [`SimDisk::ops`].
    pub fn fail_op(&self, op: u64, fault: Fault, duration: Duration) {
        self.machine().faults.plan(op, fault, duration);
    }

    /// Whether a failed sync of a directory lost names that programs still see. A file system stops where
    /// that happens; a program that is started again and goes on cannot know.
    #[must_use]
    pub fn has_lost_names(&self) -> bool {
        self.machine().tree.names_lost
    }

    /// Forgets all planned faults.
    pub fn clear_faults(&self) {
        self.machine().faults.clear();
    }

    /// Operations succeed again as far as the fault is concerned that was planned like this, the last one if several
    /// were. Others stay.
    pub fn end_fault(&self, op: u64, fault: Fault) {
        self.machine().faults.end(op, fault);
    }

    /// Whether the fault that is planned like this has met an operation that it applies to.
    #[must_use]
    pub fn has_fault_fired(&self, op: u64, fault: Fault) -> bool {
        self.machine().faults.has_fired(op, fault)
    }

    /// How often a planned fault met an operation it applies to.
    #[must_use]
    pub fn faults_fired(&self) -> u64 {
        self.machine().faults.fired()
    }

    /// From now on files may grow by `free` bytes together; `None` for no limit. What is removed or
    /// cut off gives its bytes back. With nothing free no entry can be created either.
    pub fn set_capacity(&self, free: Option<u64>) {
        self.machine().free = free;
    }

    /// Makes the file system read-only, or writable again.
    pub fn set_read_only(&self, on: bool) {
        self.machine().read_only = on;
    }

    /// Every later operation fails with `sim: power is off`.
    pub fn power_off(&self) {
        self.machine().power = false;
    }

    /// The power goes off before the operation after number `op`.
    pub fn power_off_after(&self, op: u64) {
        self.machine().power_off_after = Some(op);
    }

    /// Sets the clock, forwards or backwards; it goes on by a microsecond with every look at it.
    pub fn set_clock(&self, ns: u64) {
        self.machine().clock = ns;
    }
}

/// An open file of a simulated disk.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    ino: Ino,
    path: PathBuf,
    writable: bool,
}

impl SimFile {
    fn call(&self, call: &'static str) -> Call<'_> {
        Call::new(call, &self.path)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut machine = self.disk.machine();
        if let Some(count) = machine.open.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                machine.open.remove(&self.ino);
                machine.release(Some(self.ino));
            }
        }
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let call = self.call("pread").range(offset, buf.len() as u64);
        self.disk.run(
            Class::Read,
            call,
            |n| *n as u64,
            |m, fault| {
                m.stats.reads += 1;
                let len = match fault {
                    Some(Fault::ShortRead(short)) => short.of(buf.len()),
                    _ => buf.len(),
                };
                let n = m.tree.file(self.ino)?.cached.read(&mut buf[..len], offset);
                m.stats.bytes_read += n as u64;
                Ok(n)
            },
        )
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        let call = self.call("pwrite").range(offset, buf.len() as u64);
        self.disk.run(
            Class::Write,
            call,
            |n| *n as u64,
            |m, fault| {
                m.stats.writes += 1;
                let len = match fault {
                    Some(Fault::ShortWrite(short)) => short.of(buf.len()),
                    _ => buf.len(),
                };
                m.write(self.ino, &buf[..len], offset)
            },
        )
    }

    fn size(&self) -> io::Result<u64> {
        let call = self.call("stat");
        self.disk.run(Class::Look, call, |n| *n, |m, _| Ok(m.tree.file(self.ino)?.cached.len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(Errno::INVAL.into());
        }
        let call = self.call("ftruncate").range(0, len);
        self.disk.run(
            Class::Grow,
            call,
            |()| 0,
            |m, _| {
                let before = m.tree.file(self.ino)?.cached.len();
                if let Some(free) = &mut m.free {
                    // Growing this way leaves a hole and takes no space; shrinking gives some back.
                    *free = free.saturating_add(before.saturating_sub(len));
                }
                let op = m.ops;
                m.tree.file_mut(self.ino)?.set_len(op, len);
                Ok(())
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        let call = self.call("fdatasync");
        let sync = |m: &mut Machine, fault| m.sync_file(self.ino, fault);
        self.disk.run(Class::SyncFile, call, |n| *n, sync)?;
        Ok(())
    }
}

/// A held lock.
#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    ino: Ino,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.machine().locks.retain(|ino| *ino != self.ino);
    }
}

impl Vfs for SimDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let call = Call::new("create", path);
        let ino = self.run(Class::NewEntry, call, |_| 0, |m, _| m.create_file(path))?;
        Ok(self.handle(ino, path, true))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let writable = access == Access::ReadWrite;
        let call = Call::new("open", path);
        let ino = self.run(
            Class::Look,
            call,
            |_| 0,
            |m, _| {
                let ino = m.lookup(path)?;
                m.tree.file(ino)?;
                if writable && m.read_only {
                    return Err(Errno::ROFS.into());
                }
                Ok(ino)
            },
        )?;
        Ok(self.handle(ino, path, writable))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let call = Call::new("mkdir", path);
        self.run(Class::NewEntry, call, |n| *n, |m, _| m.create_dir(path))?;
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        let call = Call::new("readdir", path);
        self.run(
            Class::Look,
            call,
            |names: &Vec<_>| names.len() as u64,
            |m, _| {
                let dir = m.lookup(path)?;
                let dir = m.tree.dir(dir)?;
                let entry = |(name, ino): (&Arc<str>, &Ino)| (name.to_string(), m.kind_of(*ino));
                Ok(dir.cached.iter().map(entry).collect())
            },
        )
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        let call = Call::new("stat", path);
        self.run(
            Class::Look,
            call,
            |_| 0,
            |m, _| match m.lookup(path) {
                Ok(ino) => Ok(Some(m.kind_of(ino))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            },
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = Call::new("rename", from).to(to);
        self.run(Class::Change, call, |n| *n, |m, _| m.rename(from, to))?;
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let call = Call::new("unlink", path);
        self.run(Class::Change, call, |n| *n, |m, _| m.remove(path, false))?;
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let call = Call::new("rmdir", path);
        self.run(Class::Change, call, |n| *n, |m, _| m.remove(path, true))?;
        Ok(())
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let call = Call::new("link", existing).to(new);
        let link = |m: &mut Machine, _| m.hard_link(existing, new);
        self.run(Class::NewEntry, call, |n| *n, link)?;
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let call = Call::new("fsync", path);
        let sync = |m: &mut Machine, fault| m.sync_dir(path, fault);
        self.run(Class::SyncDir, call, |n| *n, sync)?;
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let exists = self.machine().lookup(path).is_ok();
        let class = if exists { Class::Look } else { Class::NewEntry };
        let call = Call::new("flock", path);
        let ino = self.run(
            class,
            call,
            |_| 0,
            |m, _| {
                let ino = match m.lookup(path) {
                    Ok(ino) => ino,
                    Err(_) => m.create_file(path)?,
                };
                m.tree.file(ino)?;
                if m.locks.contains(&ino) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                m.locks.push(ino);
                Ok(ino)
            },
        )?;
        let disk = self.clone();
        Ok(Box::new(SimLock { disk, ino }))
    }

    fn parallel(&self) -> bool {
        false
    }

    fn now_ns(&self) -> u64 {
        let mut machine = self.machine();
        machine.clock = machine.clock.saturating_add(CLOCK_STEP_NS);
        machine.clock
    }

    fn random_u64(&self) -> u64 {
        let mut machine = self.machine();
        machine.random = xxh3_64_with_seed(b"random", machine.random);
        machine.random
    }
}
