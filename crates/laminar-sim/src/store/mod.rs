//! Scenarios of the whole store: a script of what a program does, judged by the oracle wherever it is
//! crashed.
//!
//! On a simulated disk a store starts no threads, so a script is the same on every run. Keys go to the
//! core that the default router says, so that the same script works with any number of cores.

use laminar_storage::ids::{CoreId, Epoch};
use laminar_storage::incremental::ManagerOptions;
use laminar_storage::vfs::sim::{Duration, Fault, SimDisk};
use laminar_storage::{
    CheckpointReceipt, Compression, CoreStore, Health, Opened, Router, Settings, Store, StoreError,
};

use crate::driver::Scenario;
use crate::log::Log;
use crate::oracle::{Model, Recovered};

mod check;
mod random;
mod savepoints;
mod scripts;

use check::{
    look_for, needs_space, recovered_routed, refuses_changes, same_as_reader, seen_by, survives_power_cut,
};
pub use check::{open, recovered};
pub use random::random_scenario;
pub use scripts::store_scenarios;

/// Where the store is on the disk.
pub const DIR: &str = "/state";

/// One thing that a program does with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Gives each key of a range a new value of so many bytes.
    Put(u32, u32, usize),
    /// Deletes a key.
    Delete(u32),
    /// Appends to the value of a key, or makes one.
    Update(u32),
    /// Deletes a key by an update.
    Take(u32),
    /// As `Put`, in one call per core.
    Batch(u32, u32, usize),
    /// Sets the source offset of a core.
    Offset(usize, u64),
    /// Removes the source offset that `Offset` sets.
    Forget(usize),
    /// Sets the watermark of a core.
    Watermark(usize, i64),
    /// Closes a core's epoch.
    Seal(usize),
    /// Closes every core's epoch.
    SealAll,
    /// Closes this many epochs of a core at once.
    Jump(usize, u64),
    /// Waits until everything that all cores have closed is durable. In a part of a whole it is settled then.
    Ack,
    /// As `Ack`, in a part of a whole, where another part does not have it: nothing is settled.
    Wait,
    /// Lets Ring 1 find nothing to do.
    Idle,
    /// Makes a checkpoint.
    Checkpoint,
    /// Reserves the end of the epoch that all cores are in for a checkpoint.
    Reserve,
    /// Makes that checkpoint, of exactly that epoch.
    CheckpointReserved,
    /// Makes the savepoint of this number.
    Savepoint(u8),
    /// Begins a store of so many cores with the savepoint of this number, changes it and closes it.
    Fork(u8, u16),
    /// Closes the store.
    Close,
    /// Drops the store and its cores without closing it.
    Drop,
    /// From now on operations fail like this, for ever.
    Break(Fault),
    /// Waits as `Ack` does, and is refused for good.
    Refused,
    /// Operations succeed again.
    Repair,
    /// So many bytes are left on the disk; all there is need of when `None`.
    Free(Option<u64>),
    /// Opens the store again with so many cores, or as many as before for 0, closing it first.
    Open(u16),
}

/// A script, the settings it runs with, and what recovery from its crashes does.
#[derive(Clone, Debug)]
pub struct StoreScenario {
    /// Its name.
    pub name: String,
    /// Cores at first.
    pub cores: u16,
    /// Cores that recovery opens the store with; as many as the model has when `None`.
    pub recover_cores: Option<u16>,
    /// Whether recovery makes a checkpoint of its own.
    pub recover_checkpoint: bool,
    /// Settings of every opening.
    pub settings: Settings,
    /// When checkpoints spill and merge.
    pub manager: ManagerOptions,
    /// Which core has a key, unless it is the library's choice.
    pub router: Option<fn(&[u8], usize) -> usize>,
    /// Whether the store is a part of a whole, which has of every epoch only what was acknowledged here: every opening lands on that.
    pub part: bool,
    /// What is done.
    pub script: Vec<Do>,
}

impl StoreScenario {
    /// Savepoints that the script makes have smaller numbers than this.
    fn savepoints(&self) -> u8 {
        let numbers =
            self.script.iter().filter_map(|act| if let Do::Savepoint(n) = act { Some(n + 1) } else { None });
        numbers.max().unwrap_or(0)
    }

    /// Which core has a key.
    #[must_use]
    pub fn router(&self) -> Router {
        self.router.map_or_else(Router::default, Router::new)
    }

    /// How many cores recovery opens the store with.
    fn cores_to_recover(&self, model: &Model) -> u16 {
        self.recover_cores.unwrap_or(u16::try_from(model.core_count()).unwrap_or(1))
    }
}

/// Small, so that many openings fit into a second.
#[must_use]
pub fn small_settings() -> Settings {
    Settings {
        ring_capacity: 64,
        put_timeout_ms: 30_000,
        state_limit_bytes: 4 << 20,
        segment_bytes: 4 << 10,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        recovery_objective_ms: 0,
        max_retained: 2,
        compression: Compression::None,
    }
}

/// The name of key number `n`. Other seeds have other keys, some of them long.
#[must_use]
pub fn key(seed: u64, n: u32) -> Vec<u8> {
    let mut key = b"key".to_vec();
    if seed != 1 {
        key.extend(mixed(seed, u64::from(n)).to_be_bytes().iter().take(1 + n as usize % 3));
        key.resize(key.len() + (n as usize % 5) * 7, b'-');
    }
    key.extend(n.to_string().as_bytes());
    key
}

/// A number that two others decide.
fn mixed(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x2545_f491_4f6c_dd1d);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}

/// A store in use, and the log of what is expected of it.
pub struct Live<'a> {
    scenario: &'a StoreScenario,
    disk: &'a SimDisk,
    log: &'a mut Log<Model>,
    store: Option<Store>,
    cores: Vec<CoreStore>,
    router: Router,
    /// Decides keys and values.
    seed: u64,
    /// Makes every value different.
    round: u64,
    /// The first failed checkpoint; everything else goes on without it.
    failed: Option<String>,
    /// What no checkpoint may go beyond.
    reserved: Option<Epoch>,
    /// What `Break` planned, and since when.
    broken: Option<(u64, Fault)>,
}

impl<'a> Live<'a> {
    /// Nothing is open yet.
    pub fn new(scenario: &'a StoreScenario, disk: &'a SimDisk, log: &'a mut Log<Model>) -> Self {
        Self {
            scenario,
            disk,
            log,
            store: None,
            cores: Vec::new(),
            router: scenario.router(),
            seed: disk.seed(),
            round: 0,
            failed: None,
            reserved: None,
            broken: None,
        }
    }

    fn store(&self) -> Result<&Store, String> {
        self.store.as_ref().ok_or_else(|| "the store is not open".to_owned())
    }

    /// Opens the store and judges what it recovered, and that a reader sees the same.
    ///
    /// # Errors
    /// What is wrong with it, or why it does not open.
    pub fn open(&mut self, cores: u16) -> Result<(), String> {
        self.close()?;
        let seen = look_for(&self.log.vfs(self.disk), self.disk, self.log.model())?;
        // A reader of a part sees what is durable in it, and knows nothing of the others.
        let seen = seen.filter(|_| !self.scenario.part);
        self.open_with(cores, |found| seen.map_or(Ok(()), |seen| same_as_reader(&seen, found)))
    }

    /// Opens the store again after [`Self::open`] and a crash at once: it must be the same state.
    fn open_again(&mut self, cores: u16) -> Result<(), String> {
        self.open_with(cores, |_| Ok(())).map_err(|e| format!("opened twice: {e}"))
    }

    fn open_with(
        &mut self,
        cores: u16,
        also: impl FnOnce(&Recovered) -> Result<(), String>,
    ) -> Result<(), String> {
        let scenario = self.scenario;
        let vfs = self.log.vfs(self.disk);
        let acked = self.log.model().acked();
        let opened = scenario.open_on(&vfs, cores, self.log.model()).map_err(|e| format!("open: {e}"))?;
        let (found, layout) = recovered_routed(&opened, &scenario.router())?;
        self.log.model().check_recovered(&found)?;
        if scenario.part && found.epoch != acked {
            return Err(format!("WRONG: agreed on {acked}, but it is {}", found.epoch));
        }
        also(&found)?;
        let Opened { store, cores, .. } = opened;
        let next = cores.first().map_or(Epoch::ZERO, CoreStore::epoch);
        if next <= found.epoch {
            return Err(format!("WRONG: epoch {next} is used again after {}", found.epoch));
        }
        self.log.note(self.disk, |model| model.adopt(found.epoch, next, layout));
        self.round += found.epoch.get() * 1000;
        (self.store, self.cores, self.reserved) = (Some(store), cores, None);
        Ok(())
    }

    /// Does one thing.
    ///
    /// # Errors
    /// What the store said.
    pub fn act(&mut self, act: Do) -> Result<(), String> {
        // A script for two cores runs on one as well.
        let own = |core: usize| core % self.cores.len().max(1);
        match act {
            Do::Put(from, to, len) => (from..to).try_for_each(|n| self.put(n, len)),
            Do::Delete(n) => self.delete(n),
            Do::Update(n) => self.update(n),
            Do::Take(n) => self.take(n),
            Do::Batch(from, to, len) => self.batch(from, to, len),
            Do::Offset(core, offset) => {
                let core = own(core);
                self.cores[core].set_source_offset(&format!("source{core}"), offset);
                self.cores[core].set_source_offset("shared", offset);
                let model = self.log.model_mut();
                model.offset(core_id(core), &format!("source{core}"), offset);
                model.offset(core_id(core), "shared", offset);
                Ok(())
            }
            Do::Forget(core) => {
                let core = own(core);
                let source = format!("source{core}");
                self.cores[core].remove_source_offset(&source);
                self.log.model_mut().forget_offset(core_id(core), &source);
                Ok(())
            }
            Do::Watermark(core, watermark) => {
                let core = own(core);
                self.cores[core].set_watermark(watermark);
                self.log.model_mut().watermark(core_id(core), watermark);
                Ok(())
            }
            Do::Seal(core) => self.seal_to(own(core), 1),
            Do::SealAll => (0..self.cores.len()).try_for_each(|core| self.seal_to(core, 1)),
            Do::Jump(core, epochs) => self.seal_to(own(core), epochs),
            Do::Ack => self.ack(),
            Do::Wait => text(self.store()?.wait_durable(self.log.model().sealed_by_all())),
            Do::Idle => text(self.store()?.wait_durable(self.log.model().acked())),
            Do::Checkpoint => self.checkpoint(Store::checkpoint),
            Do::Reserve => {
                let epoch = self.cores.iter().map(CoreStore::epoch).max().unwrap_or_default();
                self.reserved = Some(epoch);
                text(self.store()?.reserve_checkpoint(epoch))
            }
            Do::CheckpointReserved => {
                let epoch = self.reserved.ok_or("nothing is reserved")?;
                let mut made = false;
                self.checkpoint(|store| store.checkpoint_at(epoch).inspect(|_| made = true))?;
                // One that failed is still to come, and nothing goes beyond it before.
                self.reserved = self.reserved.filter(|_| !made);
                Ok(())
            }
            Do::Savepoint(n) => self.savepoint(n),
            Do::Fork(n, cores) => self.fork(n, cores),
            Do::Close => self.close(),
            Do::Drop => {
                self.cores.clear();
                self.store = None;
                Ok(())
            }
            Do::Break(fault) => {
                let op = self.disk.ops() + 1;
                self.disk.fail_op(op, fault, Duration::Forever);
                self.broken = Some((op, fault));
                Ok(())
            }
            Do::Refused => self.refused(),
            Do::Repair => {
                // Those that a sweep planned stay.
                if let Some((op, fault)) = self.broken.take() {
                    self.disk.end_fault(op, fault);
                }
                Ok(())
            }
            Do::Free(bytes) => {
                self.disk.set_capacity(bytes);
                Ok(())
            }
            Do::Open(0) => self.open(u16::try_from(self.log.model().core_count()).unwrap_or(1)),
            Do::Open(cores) => self.open(cores),
        }
    }

    fn value(&mut self, n: u32, len: usize) -> Vec<u8> {
        self.round += 1;
        let mut value = format!("{n}/{}/", self.round).into_bytes();
        let mut filler = mixed(self.seed, self.round);
        let len = if self.seed == 1 { len } else { len + filler.to_le_bytes()[7] as usize % 9 };
        while value.len() < len {
            filler ^= filler << 13;
            filler ^= filler >> 7;
            filler ^= filler << 17;
            value.push(filler.to_le_bytes()[0]);
        }
        value
    }

    /// The core of a key, and the key.
    fn route(&self, n: u32) -> (usize, Vec<u8>) {
        let key = key(self.seed, n);
        (self.router.route(&key, self.cores.len()), key)
    }

    fn put(&mut self, n: u32, len: usize) -> Result<(), String> {
        let ((core, key), value) = (self.route(n), self.value(n, len));
        text(self.cores[core].put(&key, &value))?;
        self.log.model_mut().put(core_id(core), &key, &value);
        Ok(())
    }

    fn delete(&mut self, n: u32) -> Result<(), String> {
        let (core, key) = self.route(n);
        text(self.cores[core].delete(&key))?;
        self.log.model_mut().delete(core_id(core), &key);
        Ok(())
    }

    fn update(&mut self, n: u32) -> Result<(), String> {
        let (core, key) = self.route(n);
        let mut new = Vec::new();
        let result = self.cores[core].update(&key, |old| {
            new = [old.unwrap_or_default(), b"+"].concat();
            Some(new.clone())
        });
        text(result)?;
        self.log.model_mut().put(core_id(core), &key, &new);
        Ok(())
    }

    fn take(&mut self, n: u32) -> Result<(), String> {
        let (core, key) = self.route(n);
        text(self.cores[core].update(&key, |_| None::<Vec<u8>>))?;
        self.log.model_mut().delete(core_id(core), &key);
        Ok(())
    }

    fn batch(&mut self, from: u32, to: u32, len: usize) -> Result<(), String> {
        let mut batches = vec![Vec::new(); self.cores.len()];
        for n in from..to {
            let ((core, key), value) = (self.route(n), self.value(n, len));
            batches[core].push((key, value));
        }
        for (core, batch) in batches.iter().enumerate() {
            text(self.cores[core].put_batch(batch))?;
            for (key, value) in batch {
                self.log.model_mut().put(core_id(core), key, value);
            }
        }
        Ok(())
    }

    fn seal_to(&mut self, core: usize, epochs: u64) -> Result<(), String> {
        let last = Epoch(self.log.model().open_epoch(core_id(core)).get() + epochs - 1);
        self.log.note(self.disk, |model| model.seal_to(core_id(core), last));
        text(self.cores[core].seal_epoch_to(last))
    }

    /// Waits for everything; a refusal must be for good.
    fn ack(&mut self) -> Result<(), String> {
        let epoch = self.log.model().sealed_by_all();
        let store = self.store()?;
        match store.wait_durable(epoch) {
            Ok(()) => {
                if store.durable_epoch() < epoch {
                    return Err(format!("WRONG: waited for {epoch}, {} is durable", store.durable_epoch()));
                }
                if self.scenario.part {
                    text(store.settle(epoch))?;
                }
                self.log.note(self.disk, |model| model.ack(epoch));
                Ok(())
            }
            Err(error) => {
                self.must_stay_poisoned(epoch);
                Err(error.to_string())
            }
        }
    }

    /// Waits for everything, which must fail.
    fn refused(&mut self) -> Result<(), String> {
        let epoch = self.log.model().sealed_by_all();
        match self.store()?.wait_durable(epoch) {
            Ok(()) => Err(format!("WRONG: epoch {epoch} was acknowledged although the disk failed")),
            Err(_) => {
                self.must_stay_poisoned(epoch);
                Ok(())
            }
        }
    }

    /// Invariant I11: after a failure nothing is acknowledged or accepted, and reads go on.
    fn must_stay_poisoned(&mut self, epoch: Epoch) {
        let Some(store) = &self.store else { return };
        let before = store.durable_epoch();
        assert!(matches!(store.health(), Health::Poisoned(_)), "failed, but {:?}", store.health());
        let again = store.wait_durable(epoch);
        assert!(matches!(again, Err(StoreError::Poisoned(_))), "asked again: {again:?}");
        assert_eq!(store.durable_epoch(), before, "acknowledged after a failure");
        for (index, core) in self.cores.iter_mut().enumerate() {
            assert!(core.put(b"after", b"failure").is_err(), "a poisoned store took a change");
            let expected = self.log.model().state(core_id(index));
            assert!(expected.iter().all(|(k, v)| core.get(k) == Some(v)), "reads failed");
        }
    }

    fn checkpoint(
        &mut self,
        make: impl FnOnce(&Store) -> Result<CheckpointReceipt, StoreError>,
    ) -> Result<(), String> {
        let store = self.store()?;
        match make(store) {
            Ok(receipt) => {
                let acked = self.log.model().acked();
                if self.reserved.is_none() && receipt.epoch < acked {
                    return Err(format!("LOST: a checkpoint of {}", receipt.epoch));
                }
                if self.reserved.is_some_and(|reserved| receipt.epoch > reserved) {
                    return Err(format!("WRONG: a checkpoint of {}, beyond the reserved one", receipt.epoch));
                }
                if self.scenario.part && receipt.epoch > acked {
                    return Err(format!("WRONG: a checkpoint of {}, which is not settled", receipt.epoch));
                }
                Ok(())
            }
            // What is durable stays durable, and the log goes on.
            Err(error) => {
                self.failed.get_or_insert(error.to_string());
                Ok(())
            }
        }
    }

    fn close(&mut self) -> Result<(), String> {
        self.cores.clear();
        let Some(store) = self.store.take() else { return Ok(()) };
        let sealed = self.log.model().sealed_by_all();
        let receipt = store.close().map_err(|e| format!("close: {e}"))?;
        if receipt.durable_epoch != sealed {
            return Err(format!("LOST: closed at {}, {sealed} was sealed", receipt.durable_epoch));
        }
        if !self.scenario.part {
            self.log.note(self.disk, |model| model.ack(sealed));
        }
        Ok(())
    }

    fn end(self) -> Result<(), String> {
        self.failed.map_or(Ok(()), |error| Err(format!("checkpoint: {error}")))
    }
}

fn core_id(core: usize) -> CoreId {
    CoreId(u16::try_from(core).unwrap_or(u16::MAX))
}

fn text<T>(result: Result<T, StoreError>) -> Result<(), String> {
    result.map(drop).map_err(|e| e.to_string())
}

impl Scenario for StoreScenario {
    type Model = Model;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self) -> Model {
        Model::new(self.cores)
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let mut live = Live::new(self, disk, log);
        live.open(self.cores)?;
        self.script.iter().try_for_each(|act| live.act(*act))?;
        live.close()?;
        live.end()
    }

    /// Opens and judges, and crashes.
    fn recover(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let cores = self.cores_to_recover(log.model());
        let mut live = Live::new(self, disk, log);
        live.open_with(cores, |_| Ok(()))?;
        live.act(Do::Drop)
    }

    fn recover_after_a_reader(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let cores = self.cores_to_recover(log.model());
        let mut live = Live::new(self, disk, log);
        live.open(cores)?;
        live.act(Do::Drop)
    }

    /// Opens again, which must give the same, writes one more epoch, and looks whether that would survive a
    /// power cut and, of one in four epochs, opens once more to find it.
    fn go_on(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let cores = self.cores_to_recover(log.model());
        let mut live = Live::new(self, disk, log);
        live.round = live.log.model().acked().get() * 1000;
        live.open_again(cores)?;
        let open_a_third_time = live.log.model().acked().get() % 4 == 1;
        for act in [Do::Put(0, 3, 20), Do::Offset(0, 77), Do::SealAll, Do::Ack] {
            live.act(act)?;
        }
        if self.recover_checkpoint {
            live.act(Do::Checkpoint)?;
        }
        live.act(Do::Put(3, 4, 20))?;
        survives_power_cut(disk, live.log.model())?;
        live.act(Do::Drop)?;
        if open_a_third_time {
            live.open(cores)?;
        }
        live.check_savepoints()?;
        live.close()?;
        live.end()
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<Model>) -> Result<(), String> {
        let vfs = log.vfs(disk);
        if let Some(seen) = look_for(&vfs, disk, log.model())? {
            log.model().check_recovered(&seen_by(&seen))?;
        }
        // A part is laid out anew only once it has landed, for which there is no room.
        let as_it_is = StoreScenario { recover_cores: None, ..self.clone() };
        let cores = if self.part {
            as_it_is.cores_to_recover(log.model())
        } else {
            self.cores_to_recover(log.model())
        };
        match self.open_on(&vfs, cores, log.model()) {
            Ok(mut opened) => {
                log.model().check_recovered(&recovered_routed(&opened, &self.router())?.0)?;
                refuses_changes(&mut opened)
            }
            Err(StoreError::Io(detail)) if needs_space(disk, &detail) => Ok(()),
            Err(error) => Err(format!("open: {error}")),
        }
    }
}
