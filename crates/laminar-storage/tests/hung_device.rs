//! A device that does not answer: what is put meanwhile waits for as long as it was told to, and not for ever; what is taken
//! beside a sync is in memory, and not part of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use laminar_storage::vfs::sim::{ImageId, SimDisk};
use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile};
use laminar_storage::{CoreStore, Epoch, Opened, Settings, Store, StoreError};

/// Whoever waits longer than this waits for what will never be, and says so. Far longer than anything here takes.
const HUNG: Duration = Duration::from_secs(120);

/// Syncs of the log wait while it is shut.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    /// So many syncs pass in spite of that.
    permits: usize,
    /// Those that pass fail.
    failing: bool,
    /// Syncs that have come and not gone.
    inside: usize,
    /// Since the beginning.
    syncs: usize,
    /// Writes to the log while a sync was inside.
    writes_beside: usize,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn set(&self, shut: bool) {
        self.change(|state| state.shut = shut);
    }

    fn wait_for(&self, what: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (state, waited) = self.changed.wait_timeout_while(state, HUNG, |state| !what(state)).unwrap();
        let seen = format!("{state:?}");
        // It is needed to open the gate, also after a panic.
        drop(state);
        assert!(!waited.timed_out(), "{seen}");
    }

    fn syncs(&self) -> usize {
        self.state.lock().unwrap().syncs
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.change(|state| {
            state.inside += 1;
            state.syncs += 1;
        });
        let waits = |state: &mut State| state.shut && state.permits == 0;
        let mut state = self.changed.wait_while(self.state.lock().unwrap(), waits).unwrap();
        state.permits -= usize::from(state.shut);
        let failing = state.failing;
        drop(state);
        let result = if failing { Err(io::Error::other("the device is gone")) } else { sync() };
        self.change(|state| state.inside -= 1);
        result
    }
}

struct OpenedAtTheEnd<'a>(&'a Gate);

impl Drop for OpenedAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(Debug)]
struct Device {
    files: Arc<dyn Vfs>,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct File {
    file: Arc<dyn VfsFile>,
    gate: Arc<Gate>,
}

impl Device {
    fn wrap(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        if path.extension().is_some_and(|extension| extension == "log") {
            return Arc::new(File { file, gate: Arc::clone(&self.gate) });
        }
        file
    }
}

impl VfsFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.gate.change(|state| state.writes_beside += usize::from(state.inside > 0));
        self.file.write_at(buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate.sync(|| self.file.sync_data())
    }
}

impl Vfs for Device {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.files.create_new(path)?))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.wrap(path, self.files.open(path, access)?))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.files.create_dir(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.files.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.files.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.files.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.files.remove_dir(path)
    }
    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.files.hard_link(existing, new)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.files.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.files.lock(path)
    }
    fn parallel(&self) -> bool {
        true
    }
    fn now_ns(&self) -> u64 {
        self.files.now_ns()
    }
    fn random_u64(&self) -> u64 {
        self.files.random_u64()
    }
}

fn becomes_durable(store: &Store, epoch: Epoch) {
    assert!(store.wait_durable_for(epoch, HUNG).unwrap(), "{epoch} of {:?}", store.stats());
}

/// Until Ring 1 has taken so many changes.
fn takes(store: &Store, changes: u64) {
    let started = Instant::now();
    while store.stats().changes_drained < changes {
        assert!(started.elapsed() < HUNG, "{changes} of {:?}", store.stats());
        sleep(Duration::from_millis(1));
    }
}

/// `put_batch` looked for room in the ring, where there was some, in place of room in the state, where there was none
/// before the device went on; so it began anew each time, with a new timeout. Found by reading.
#[test]
fn putting_into_a_full_state_beside_a_hung_device_ends() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::<Gate>::default();
    let settings = Settings { state_limit_bytes: 4 << 20, put_timeout_ms: 20, ..Settings::default() };
    let device = Device { files: Arc::new(OsVfs::new()), gate: Arc::clone(&gate) };
    let builder = Store::builder(dir.path()).settings(settings).vfs(Arc::new(device));
    let Opened { store, mut cores, .. } = builder.open().unwrap();
    let core = &mut cores[0];
    let value = vec![1; 20_000];
    for key in 0..16_u8 {
        core.put(&[key], &value).unwrap();
    }
    let epoch = core.seal_epoch().unwrap();
    becomes_durable(&store, epoch);

    gate.set(true);
    // Were an assertion to fail, the store could not be closed before the device goes on.
    let _opened = OpenedAtTheEnd(&gate);
    core.seal_epoch().unwrap();
    // What is replaced is given back once it is in the log, which nothing gets into any more as soon as Ring 1 syncs: it takes
    // what comes meanwhile first, up to a bound, which 2,000 puts were not always beyond.
    let put =
        |core: &mut CoreStore| (0..1_000_000).find_map(|n: u32| core.put(&[(n % 16) as u8], &value).err());
    assert!(matches!(put(core), Some(StoreError::StateFull(_) | StoreError::Backpressure(_))));
    let pairs: Vec<_> = (0..16_u8).map(|key| ([key], &value)).collect();
    let batch = |core: &mut CoreStore| (0..200).find_map(|_| core.put_batch(&pairs).err());
    assert!(matches!(batch(core), Some(StoreError::StateFull(_) | StoreError::Backpressure(_))));

    gate.set(false);
    let epoch = core.seal_epoch().unwrap();
    becomes_durable(&store, epoch);
    core.put_batch(&pairs).unwrap();
    drop(cores);
    store.close().unwrap();
}

/// There were 32 epochs at most to a sync, however many waited: with small epochs a device that takes long for a sync was used
/// for a small part of what it can do.
#[test]
fn all_epochs_that_waited_for_the_device_share_its_next_sync() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::<Gate>::default();
    let device = Device { files: Arc::new(OsVfs::new()), gate: Arc::clone(&gate) };
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).vfs(Arc::new(device)).open().unwrap();
    let core = &mut cores[0];
    let before = store.stats().syncs;
    let opened_at_the_end = OpenedAtTheEnd(&gate);
    gate.set(true);
    let mut last = store.durable_epoch();
    for key in 0..1000_u32 {
        core.put(&key.to_le_bytes(), b"a value").unwrap();
        last = core.seal_epoch().unwrap();
    }
    drop(opened_at_the_end);
    becomes_durable(&store, last);
    // That which waited, unless Ring 1 had not begun yet, and that of all the others.
    assert!((1..=2).contains(&(store.stats().syncs - before)), "{:?}", store.stats());
    drop(cores);
    store.close().unwrap();
}

/// More than Ring 1 takes in a turn, so that something is left when it syncs.
const EPOCHS: u64 = 300;
const PUTS: u64 = 1000;

/// A store that a sync on its way holds up. It goes on before it is closed, which waits for that sync.
struct HeldUp<'a> {
    goes_on: OpenedAtTheEnd<'a>,
    opened: Opened,
    /// What is durable.
    first: Epoch,
    /// What was sealed.
    last: Epoch,
}

/// A store on a simulated disk with a sync on its way, beside which Ring 1 has taken everything that was put.
fn with_a_sync_on_its_way<'a>(disk: &SimDisk, gate: &'a Arc<Gate>, cores: usize) -> HeldUp<'a> {
    let settings = Settings {
        ring_capacity: 1 << 19,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        ..Settings::default()
    };
    let device = Device { files: Arc::new(disk.clone()), gate: Arc::clone(gate) };
    let builder = Store::builder("/s").cores(cores).settings(settings).vfs(Arc::new(device));
    let opened = builder.open().unwrap();
    let goes_on = OpenedAtTheEnd(gate);
    let mut held_up = HeldUp { goes_on, opened, first: Epoch::ZERO, last: Epoch::ZERO };
    let Opened { store, cores, .. } = &mut held_up.opened;
    held_up.first = sync_one_put(cores, gate);
    // The sync of the first put waits; and meanwhile all the others come, which it holds up.
    let syncs = gate.syncs();
    held_up.last = put_all_the_others(&mut cores[0]);
    gate.change(|state| state.permits = 1);
    becomes_durable(store, held_up.first);
    gate.wait_for(|state| state.syncs == syncs + 1);
    takes(store, EPOCHS * PUTS + 1);
    held_up
}

/// Shuts the gate before a sync of one put of the first core, and of nothing else. Returns the epoch of the put.
///
/// It is put while the sync before it waits, in which every core has something. When Ring 1 has nothing to do between two syncs it
/// leaves evidence of the first in every log, which the second makes durable as well: then there was a log more to sync
/// than the test allowed, and it waited for ever where its thread was a little late.
fn sync_one_put(cores: &mut [CoreStore], gate: &Gate) -> Epoch {
    let all = cores.len();
    let (core, others) = cores.split_first_mut().unwrap();
    // The others close every epoch that there will be, and have nothing more to sync.
    let last = Epoch(core.epoch().get() + EPOCHS + 1);
    others.iter_mut().for_each(|core| core.seal_epoch_to(last).unwrap());
    let syncs = gate.syncs();
    gate.set(true);
    core.seal_epoch().unwrap();
    gate.wait_for(|state| state.syncs > syncs);
    core.put(b"first", b"value").unwrap();
    let first = core.seal_epoch().unwrap();
    gate.change(|state| state.permits = all);
    gate.wait_for(|state| state.syncs == syncs + all + 1);
    first
}

/// Returns the last epoch.
fn put_all_the_others(core: &mut CoreStore) -> Epoch {
    let mut last = Epoch::ZERO;
    for epoch in 0..EPOCHS {
        for put in 0..PUTS {
            // What is left is more than Ring 1 gathers in memory otherwise.
            core.put(&put.to_le_bytes(), &[epoch.to_le_bytes(); 8].concat()).unwrap();
        }
        last = core.seal_epoch().unwrap();
    }
    last
}

/// What a store has after the power was cut, when everything that was not synced is gone: how many epochs.
fn after_a_power_cut(disk: &SimDisk) -> (Epoch, u64) {
    let disk = disk.snapshot().image(&ImageId::default()).mount();
    let opened = Store::builder("/s").vfs(Arc::new(disk)).open().unwrap();
    let value = |core: &CoreStore, key: u64| {
        core.get(&key.to_le_bytes()).map(|value| u64::from_le_bytes(*value.first_chunk().unwrap()))
    };
    let newest = value(&opened.cores[0], 0);
    assert!((0..PUTS).all(|key| value(&opened.cores[0], key) == newest));
    (opened.store.durable_epoch(), newest.map_or(0, |newest| newest + 1))
}

#[test]
fn what_comes_beside_a_sync_is_not_part_of_it() {
    let (disk, gate) = (SimDisk::new(1), Arc::<Gate>::default());
    let HeldUp { opened, goes_on, first, last } = with_a_sync_on_its_way(&disk, &gate, 1);
    assert_eq!(opened.store.durable_epoch(), first);
    assert_eq!(after_a_power_cut(&disk).1, 0);
    gate.change(|state| state.permits = 1);
    let next = first.next();
    becomes_durable(&opened.store, next);
    let durable = opened.store.durable_epoch();
    assert!(durable > next && durable < last, "{first} {durable} {last}");
    let (recovered, epochs) = after_a_power_cut(&disk);
    assert!(recovered >= durable && epochs == durable.get() - first.get(), "{durable} {recovered} {epochs}");
    drop(goes_on);
    becomes_durable(&opened.store, last);
    assert_eq!(after_a_power_cut(&disk).1, EPOCHS);
    drop(opened.cores);
    opened.store.close().unwrap();
}

fn ends_without_a_write_beside_a_sync(held_up: HeldUp<'_>, gate: &Gate) {
    let HeldUp { opened, goes_on, last, .. } = held_up;
    drop(goes_on);
    becomes_durable(&opened.store, last);
    let beside = gate.state.lock().unwrap().writes_beside;
    assert_eq!(beside, 0);
    drop(opened.cores);
    opened.store.close().unwrap();
}

/// What a device does with a write that comes while it syncs is its own affair: there is none.
#[test]
fn nothing_is_written_while_a_sync_is_on_its_way() {
    let (disk, gate) = (SimDisk::new(1), Arc::<Gate>::default());
    ends_without_a_write_beside_a_sync(with_a_sync_on_its_way(&disk, &gate, 1), &gate);
}

/// It wrote, and went on in other segments, while those who waited for the sync of the other core had to wait for that too. Found
/// by reading.
#[test]
fn a_log_that_has_nothing_to_sync_waits_for_the_others() {
    let (disk, gate) = (SimDisk::new(1), Arc::<Gate>::default());
    let mut held_up = with_a_sync_on_its_way(&disk, &gate, 2);
    let Opened { store, cores, .. } = &mut held_up.opened;
    let taken = store.stats().changes_drained;
    for put in 0..8_000_u64 {
        cores[1].put(&put.to_le_bytes(), &[1; 1000]).unwrap();
    }
    // More than is written at once otherwise, and less than is gathered.
    takes(store, taken + 3_000);
    ends_without_a_write_beside_a_sync(held_up, &gate);
}

#[test]
fn a_sync_that_fails_takes_what_came_beside_it_along() {
    let (disk, gate) = (SimDisk::new(1), Arc::<Gate>::default());
    let mut held_up = with_a_sync_on_its_way(&disk, &gate, 1);
    let Opened { store, cores, .. } = &mut held_up.opened;
    gate.change(|state| (state.failing, state.shut) = (true, false));
    let error = store.wait_durable_for(held_up.last, HUNG).unwrap_err();
    assert!(error.to_string().contains("could not sync the segment"), "{error}");
    assert_eq!(store.durable_epoch(), held_up.first);
    cores[0].put(b"key", b"value").unwrap_err();
    drop(held_up);
    assert_eq!(after_a_power_cut(&disk).1, 0);
}
