//! Scenarios of the whole store: a script of what a program does, judged by the oracle wherever it is
//! crashed.
//!
//! On a simulated disk a store starts no threads, so a script is the same on every run. Keys go to the
//! core that the default router says, so that the same script works with any number of cores.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use laminar_storage::ids::{CoreId, Epoch};
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{
    CoreStore, DigestCheck, Health, Opened, Router, Settings, StateReader, Store, StoreError,
};

use crate::driver::Scenario;
use crate::log::Log;
use crate::oracle::{CoreView, Model, Recovered, State};

/// Where the store is on the disk.
pub const DIR: &str = "state";

/// One thing that a program does with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Gives each key of a range a new value of so many bytes.
    Put(u32, u32, usize),
    /// Deletes a key.
    Delete(u32),
    /// Appends to the value of a key, or makes one.
    Update(u32),
    /// Sets the source offset of a core.
    Offset(usize, u64),
    /// Sets the watermark of a core.
    Watermark(usize, i64),
    /// Closes a core's epoch.
    Seal(usize),
    /// Closes every core's epoch.
    SealAll,
    /// Closes this many epochs of a core at once.
    Jump(usize, u64),
    /// Waits until everything that all cores have closed is durable.
    Ack,
    /// Lets Ring 1 find nothing to do.
    Idle,
    /// Makes a checkpoint.
    Checkpoint,
    /// Closes the store.
    Close,
    /// Drops the store and its cores without closing it.
    Drop,
    /// Opens the store again with so many cores, or as many as before for 0, closing it first.
    Open(u16),
}

/// A script, the settings it runs with, and what recovery from its crashes does.
#[derive(Clone, Debug)]
pub struct StoreScenario {
    /// Its name.
    pub name: &'static str,
    /// Cores at first.
    pub cores: u16,
    /// Cores that recovery opens the store with; as many as the model has when `None`.
    pub recover_cores: Option<u16>,
    /// Whether recovery makes a checkpoint of its own.
    pub recover_checkpoint: bool,
    /// Settings of every opening.
    pub settings: Settings,
    /// What is done.
    pub script: Vec<Do>,
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
        max_retained: 2,
    }
}

/// The name of key number `n`.
#[must_use]
pub fn key(n: u32) -> Vec<u8> {
    format!("key{n}").into_bytes()
}

/// A store in use, and the log of what is expected of it.
pub struct Live<'a> {
    scenario: &'a StoreScenario,
    disk: &'a SimDisk,
    log: &'a mut Log<Model>,
    store: Option<Store>,
    cores: Vec<CoreStore>,
    /// Makes every value different.
    round: u64,
    /// The first failed checkpoint; everything else goes on without it.
    failed: Option<String>,
}

impl<'a> Live<'a> {
    /// Nothing is open yet.
    pub fn new(scenario: &'a StoreScenario, disk: &'a SimDisk, log: &'a mut Log<Model>) -> Self {
        Self { scenario, disk, log, store: None, cores: Vec::new(), round: 0, failed: None }
    }

    fn store(&self) -> Result<&Store, String> {
        self.store.as_ref().ok_or_else(|| "the store is not open".to_owned())
    }

    /// Opens the store and judges what it recovered.
    ///
    /// # Errors
    /// What is wrong with it, or why it does not open.
    pub fn open(&mut self, cores: u16) -> Result<(), String> {
        self.close()?;
        let seen = look(self.disk)?;
        let opened = open(self.disk, cores, &self.scenario.settings).map_err(|e| format!("open: {e}"))?;
        let (found, layout) = recovered(&opened)?;
        self.log.model().check_recovered(&found)?;
        if let Some(seen) = seen {
            same_as_reader(&seen, &found)?;
        }
        let Opened { store, cores, .. } = opened;
        let next = cores.first().map_or(Epoch::ZERO, CoreStore::epoch);
        if next <= found.epoch {
            return Err(format!("epoch {next} is used again after {}", found.epoch));
        }
        self.log.note(self.disk, |model| model.adopt(found.epoch, next, layout));
        self.round += found.epoch.get() * 1000;
        (self.store, self.cores) = (Some(store), cores);
        Ok(())
    }

    /// Does one thing.
    ///
    /// # Errors
    /// What the store said.
    pub fn act(&mut self, act: Do) -> Result<(), String> {
        match act {
            Do::Put(from, to, len) => (from..to).try_for_each(|n| self.put(n, len)),
            Do::Delete(n) => self.delete(n),
            Do::Update(n) => self.update(n),
            Do::Offset(core, offset) => {
                self.cores[core].set_source_offset(&format!("source{core}"), offset);
                self.cores[core].set_source_offset("shared", offset);
                let model = self.log.model_mut();
                model.offset(core_id(core), &format!("source{core}"), offset);
                model.offset(core_id(core), "shared", offset);
                Ok(())
            }
            Do::Watermark(core, watermark) => {
                self.cores[core].set_watermark(watermark);
                self.log.model_mut().watermark(core_id(core), watermark);
                Ok(())
            }
            Do::Seal(core) => self.seal_to(core, 1),
            Do::SealAll => (0..self.cores.len()).try_for_each(|core| self.seal_to(core, 1)),
            Do::Jump(core, epochs) => self.seal_to(core, epochs),
            Do::Ack => self.ack(),
            Do::Idle => text(self.store()?.wait_durable(self.log.model().acked())),
            Do::Checkpoint => self.checkpoint(),
            Do::Close => self.close(),
            Do::Drop => {
                self.cores.clear();
                self.store = None;
                Ok(())
            }
            Do::Open(0) => self.open(u16::try_from(self.log.model().core_count()).unwrap_or(1)),
            Do::Open(cores) => self.open(cores),
        }
    }

    fn value(&mut self, n: u32, len: usize) -> Vec<u8> {
        self.round += 1;
        let mut value = format!("{n}/{}/", self.round).into_bytes();
        let mut filler = self.round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        while value.len() < len {
            filler ^= filler << 13;
            filler ^= filler >> 7;
            filler ^= filler << 17;
            value.push(filler.to_le_bytes()[0]);
        }
        value
    }

    fn route(&self, n: u32) -> usize {
        Router::default().route(&key(n), self.cores.len())
    }

    fn put(&mut self, n: u32, len: usize) -> Result<(), String> {
        let (core, key, value) = (self.route(n), key(n), self.value(n, len));
        text(self.cores[core].put(&key, &value))?;
        self.log.model_mut().put(core_id(core), &key, &value);
        Ok(())
    }

    fn delete(&mut self, n: u32) -> Result<(), String> {
        let (core, key) = (self.route(n), key(n));
        text(self.cores[core].delete(&key))?;
        self.log.model_mut().delete(core_id(core), &key);
        Ok(())
    }

    fn update(&mut self, n: u32) -> Result<(), String> {
        let (core, key) = (self.route(n), key(n));
        let mut new = Vec::new();
        let result = self.cores[core].update(&key, |old| {
            new = [old.unwrap_or_default(), b"+"].concat();
            Some(new.clone())
        });
        text(result)?;
        self.log.model_mut().put(core_id(core), &key, &new);
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
                    return Err(format!("waited for {epoch}, {} is durable", store.durable_epoch()));
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

    fn checkpoint(&mut self) -> Result<(), String> {
        let store = self.store()?;
        match store.checkpoint() {
            Ok(receipt) => {
                if receipt.epoch < self.log.model().acked() {
                    return Err(format!("a checkpoint of {}", receipt.epoch));
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
            return Err(format!("closed at {}, {sealed} was sealed", receipt.durable_epoch));
        }
        self.log.note(self.disk, |model| model.ack(sealed));
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

/// Keeps the library's helper thread alive between the openings, which would start and end it each time.
fn keep_helper() {
    static KEPT: Mutex<Option<Opened>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        let builder = Store::builder(DIR).settings(small_settings()).vfs(Arc::new(SimDisk::new(0)));
        *kept = builder.open().ok();
    }
}

/// Opens the store on a disk.
///
/// # Errors
/// As [`laminar_storage::StoreBuilder::open`].
pub fn open(disk: &SimDisk, cores: u16, settings: &Settings) -> Result<Opened, StoreError> {
    keep_helper();
    let builder = Store::builder(DIR).cores(usize::from(cores)).settings(settings.clone());
    builder.vfs(Arc::new(disk.clone())).open()
}

/// What an opened store holds, as the oracle wants it and core by core.
///
/// # Errors
/// When the store contradicts itself.
pub fn recovered(opened: &Opened) -> Result<(Recovered, Vec<CoreView>), String> {
    let Opened { cores, report, .. } = opened;
    let mut layout = Vec::new();
    let (mut offsets, mut watermark) = (BTreeMap::<String, u64>::new(), None);
    for (index, core) in cores.iter().enumerate() {
        let state: State = core.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        if state.len() != core.len() || state.iter().any(|(k, v)| core.get(k) != Some(v)) {
            return Err(format!("core {index} contradicts itself"));
        }
        if let Some(key) = state.keys().find(|k| Router::default().route(k, cores.len()) != index) {
            return Err(format!("core {index} has {}, which is not its own", key.escape_ascii()));
        }
        for (source, offset) in core.source_offsets() {
            let known = offsets.entry(source.clone()).or_default();
            *known = (*known).max(*offset);
        }
        watermark = [watermark, core.watermark()].into_iter().flatten().min();
        layout.push((state, core.source_offsets().clone(), core.watermark()));
    }
    if (&offsets, watermark) != (&report.source_offsets, report.watermark) {
        let reported = (&report.source_offsets, report.watermark);
        return Err(format!("offsets {offsets:?} {watermark:?}, reported {reported:?}"));
    }
    let epoch = report.recovery_point;
    if epoch != Epoch::ZERO && report.digest != DigestCheck::Verified {
        return Err(format!("the digest at epoch {epoch} is {:?}", report.digest));
    }
    let state = layout.iter().map(|(state, ..)| state.clone()).collect();
    Ok((Recovered { epoch, state, offsets, watermark }, layout))
}

/// What a reader sees; `None` when there is no store. It changes nothing.
fn look(disk: &SimDisk) -> Result<Option<StateReader>, String> {
    let before = disk.stats();
    let seen = match StateReader::open_with(DIR, Arc::new(disk.clone())) {
        Ok(reader) => Some(reader),
        Err(StoreError::InvalidInput(_)) => None,
        Err(error) => return Err(format!("reader: {error}")),
    };
    let after = disk.stats();
    let changes = |stats: laminar_storage::vfs::sim::Stats| {
        (stats.writes, stats.sync_data, stats.sync_dir, stats.created)
    };
    if changes(before) != changes(after) {
        return Err("a reader changed the disk".into());
    }
    Ok(seen)
}

fn same_as_reader(seen: &StateReader, found: &Recovered) -> Result<(), String> {
    let all: State = found.state.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let read: State = seen.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    let report = seen.report();
    if report.recovery_point != found.epoch || read != all {
        return Err(format!(
            "a reader saw epoch {} with {} keys, opening gave epoch {} with {} keys",
            report.recovery_point,
            read.len(),
            found.epoch,
            all.len()
        ));
    }
    if (&report.source_offsets, report.watermark) != (&found.offsets, found.watermark) {
        return Err("a reader saw other offsets or another watermark".into());
    }
    Ok(())
}

impl Scenario for StoreScenario {
    type Model = Model;

    fn name(&self) -> String {
        self.name.to_owned()
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

    /// Opens, judges, sometimes opens again at once, writes one more epoch, and opens again.
    fn recover(&self, disk: &SimDisk, log: &mut Log<Model>) -> Result<(), String> {
        let cores = self.recover_cores.unwrap_or(u16::try_from(log.model().core_count()).unwrap_or(1));
        let mut live = Live::new(self, disk, log);
        live.open(cores)?;
        if live.round.is_multiple_of(3) {
            live.act(Do::Drop)?;
            live.open(cores)?;
        }
        for act in [Do::Put(0, 3, 20), Do::Offset(0, 77), Do::SealAll, Do::Ack] {
            live.act(act)?;
        }
        if self.recover_checkpoint {
            live.act(Do::Checkpoint)?;
        }
        live.act(Do::Put(3, 4, 20))?;
        live.act(Do::Drop)?;
        live.open(cores)?;
        live.close()?;
        live.end()
    }
}

/// A scenario with the small settings.
fn scenario(name: &'static str, cores: u16, script: Vec<Do>) -> StoreScenario {
    let settings = small_settings();
    StoreScenario { name, cores, recover_cores: None, recover_checkpoint: false, settings, script }
}

/// An epoch in which something of everything happens.
fn epoch(first: u32, len: usize) -> Vec<Do> {
    vec![
        Do::Put(first, first + 3, len),
        Do::Update(first),
        Do::Delete(first + 1),
        Do::Offset(0, u64::from(first)),
        Do::Watermark(0, i64::from(first) - 5),
        Do::SealAll,
        Do::Ack,
    ]
}

/// All scenarios of the store.
#[must_use]
pub fn store_scenarios() -> Vec<StoreScenario> {
    let mut all = vec![
        scenario("store-one-core", 1, [epoch(0, 30), epoch(1, 30), epoch(2, 300)].concat()),
        scenario("store-two-cores", 2, two_cores()),
        scenario("store-tails", 2, tails()),
        scenario("store-jumps", 2, jumps()),
        scenario("store-idle", 2, idle()),
        scenario("store-reopen", 2, reopen()),
        scenario("store-roll", 1, roll()),
        scenario("store-checkpoints", 2, checkpoints()),
        scenario("store-full-ring", 1, full_ring()),
        scenario("store-reshard", 2, reshard()),
    ];
    let mut retained = scenario("store-retain-one", 1, checkpoints());
    retained.settings.max_retained = 1;
    retained.recover_checkpoint = true;
    all.push(retained);
    let mut ahead = scenario("store-preallocated", 2, [epoch(0, 30), roll_two()].concat());
    ahead.settings.preallocate_bytes = 4 << 10;
    all.push(ahead);
    let mut other = scenario("store-recover-resharded", 2, two_cores());
    other.recover_cores = Some(3);
    all.push(other);
    let mut fewer = scenario("store-recover-one-core", 3, two_cores());
    fewer.recover_cores = Some(1);
    fewer.recover_checkpoint = true;
    all.push(fewer);
    all
}

fn two_cores() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Offset(1, 9), Do::Watermark(1, 3)]);
    script.extend(epoch(4, 200));
    script.push(Do::Checkpoint);
    script.extend(epoch(2, 50));
    script
}

/// Changes that are never sealed, and an epoch that only one core seals.
fn tails() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Put(0, 6, 40), Do::Seal(0), Do::Put(0, 6, 40), Do::Ack, Do::Close]);
    script.push(Do::Open(2));
    script.extend([Do::Put(0, 4, 30), Do::Seal(1), Do::Ack, Do::Put(2, 6, 30), Do::Seal(1)]);
    script.extend([Do::Seal(0), Do::Ack, Do::Put(6, 9, 10), Do::Drop, Do::Open(2)]);
    script
}

/// Cores that seal several epochs at once, at different times.
fn jumps() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Put(0, 4, 20), Do::Jump(0, 3), Do::Put(4, 8, 20), Do::Seal(1), Do::Ack]);
    script.extend([Do::Offset(1, 5), Do::Put(0, 8, 20), Do::Jump(1, 2), Do::Ack, Do::Checkpoint]);
    script.extend([Do::Jump(1, 4), Do::Put(0, 3, 9), Do::Jump(0, 2), Do::Ack, Do::Jump(0, 2), Do::Ack]);
    script
}

/// Ring 1 finds nothing to do between epochs, and leaves evidence.
fn idle() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Idle, Do::Put(0, 3, 20), Do::Idle]);
    script.extend(epoch(2, 30));
    script.extend([Do::Idle, Do::Idle, Do::SealAll, Do::Ack, Do::Idle]);
    script
}

/// Openings with and without anything new.
fn reopen() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Close, Do::Open(2), Do::Drop, Do::Open(2)]);
    script.extend(epoch(3, 30));
    script.extend([Do::Drop, Do::Open(2), Do::Checkpoint, Do::Close, Do::Open(2)]);
    script.extend(epoch(1, 30));
    script.push(Do::Open(2));
    script
}

/// One epoch over several segments, and segments of several epochs.
fn roll() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 5, 1500), Do::SealAll, Do::Ack];
    script.extend([Do::Put(2, 4, 900), Do::Delete(0), Do::SealAll, Do::Put(3, 6, 1200), Do::SealAll]);
    script.extend([Do::Ack, Do::Put(0, 4, 1800), Do::Idle, Do::SealAll, Do::Ack]);
    script
}

fn roll_two() -> Vec<Do> {
    vec![
        Do::Put(0, 8, 900),
        Do::SealAll,
        Do::Ack,
        Do::Put(4, 12, 700),
        Do::SealAll,
        Do::Ack,
        Do::Idle,
        Do::Checkpoint,
        Do::Put(1, 6, 900),
        Do::SealAll,
        Do::Ack,
    ]
}

/// Enough checkpoints for truncation, retention and merging.
fn checkpoints() -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..5 {
        script.extend([Do::Put(round, round + 4, 1100), Do::Delete(round * 2), Do::SealAll, Do::Ack]);
        script.push(Do::Checkpoint);
    }
    script.extend([Do::Open(0), Do::Put(1, 3, 900), Do::SealAll, Do::Ack, Do::Checkpoint]);
    script
}

/// Ring 1 works in the middle of epochs, because the ring is full.
fn full_ring() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 90, 4), Do::SealAll, Do::Put(40, 120, 4), Do::Ack];
    script.extend([Do::Put(0, 70, 4), Do::SealAll, Do::Ack, Do::Put(0, 80, 4)]);
    script
}

/// 2, 3, 1 and 2 cores.
fn reshard() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Watermark(1, 4), Do::Offset(1, 3)]);
    script.extend(epoch(3, 30));
    script.extend([Do::Put(0, 9, 10), Do::Seal(0), Do::Open(3), Do::Offset(2, 8), Do::Watermark(2, 1)]);
    script.extend(epoch(5, 30));
    script.extend([Do::Checkpoint, Do::Open(1)]);
    script.extend(epoch(2, 30));
    script.push(Do::Open(2));
    script.extend(epoch(6, 30));
    script
}
