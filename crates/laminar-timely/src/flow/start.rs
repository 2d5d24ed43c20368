//! From what is on the disks of all processes to a worker that can go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

#[cfg(feature = "object-store")]
use laminar_storage::backup::{BackupError, WholeId};
use laminar_storage::error::Detail;
use laminar_storage::{CoreStore, Epoch, Opened, StoreError};
use serde::{Deserialize, Serialize};
use timely::scheduling::activate::SyncActivator;
use timely::worker::Worker;

use super::execute::lock;
use super::gather::gather;
use super::job::{Job, Recovered};
use super::rescale::{Rescaling, clean, rescale};
#[cfg(feature = "object-store")]
use crate::backups::Backups;
use crate::config::{Cluster, Config};
use crate::error::Error;
use crate::fail::{Pulse, StoreSlot};
use crate::layout::{Generation, Layout, Life, Part, Restored, Size, Stage};
use crate::ledger::Ledger;
use crate::recover::{Decision, Has, Origins, Recoverable, agree, decide};

/// What the workers of a process share.
pub(super) struct Process {
    pub(super) cluster: Cluster,
    pub(super) config: Config,
    pub(super) pulse: Arc<Pulse>,
    store: StoreSlot,
    /// Opened by the first worker, taken by each.
    cores: Mutex<Vec<Option<CoreStore>>>,
    /// The store's recovery point and generation.
    landed: OnceLock<Landed>,
    /// What the store's logs have synced, of all workers of this process.
    pub(super) durable: AtomicU64,
    /// Called when that grows.
    wakes: Mutex<Vec<SyncActivator>>,
    /// Where sinks may have more than the state.
    pub(super) restored: OnceLock<Restored>,
    /// Which history of the job this is, as far as it is known.
    pub(super) life: OnceLock<Life>,
    #[cfg(feature = "object-store")]
    backups: Backed,
}

/// What of a job's backups is a process' own.
#[cfg(feature = "object-store")]
#[derive(Default)]
struct Backed {
    backups: OnceLock<Backups>,
    /// Called when one is made.
    wakes: Mutex<Vec<SyncActivator>>,
    /// The last one, once it is asked for.
    last: OnceLock<WholeId>,
}

impl Process {
    pub(super) fn new(cluster: Cluster, config: Config, pulse: Arc<Pulse>) -> Self {
        Self {
            cluster,
            config,
            pulse,
            store: StoreSlot::default(),
            cores: Mutex::default(),
            landed: OnceLock::new(),
            durable: AtomicU64::new(0),
            wakes: Mutex::default(),
            restored: OnceLock::new(),
            life: OnceLock::new(),
            #[cfg(feature = "object-store")]
            backups: Backed::default(),
        }
    }

    pub(super) fn store_slot(&self) -> StoreSlot {
        Arc::clone(&self.store)
    }

    /// Calls this whenever a later epoch is durable in this process.
    pub(super) fn wake_when_durable(&self, activator: SyncActivator) {
        lock(&self.wakes).push(activator);
    }

    /// Takes note that an epoch is durable on all processes, so that no opening discards it.
    pub(super) fn settle(&self, epoch: Epoch) -> Result<(), Error> {
        self.pulse.beat();
        match self.store.get() {
            Some(store) => Ok(store.settle(epoch)?),
            None => Ok(()),
        }
    }

    pub(super) fn size(&self) -> Size {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Size { processes: number(self.cluster.processes()), workers: number(self.cluster.workers) }
    }

    pub(super) fn number(&self) -> u32 {
        u32::try_from(self.cluster.process).unwrap_or(u32::MAX)
    }

    fn layout(&self) -> Layout {
        Layout::new(&self.config.dir, &self.config.vfs)
    }

    /// Hands out what was opened, and hears from now on when it is durable.
    pub(super) fn opened(self: &Arc<Self>, opened: Opened, generation: Generation) -> Result<(), Error> {
        let point = opened.report.recovery_point;
        self.durable.store(point.0, Ordering::Release);
        let process = Arc::downgrade(self);
        let wakes = !self.config.mistakes.wake_nobody;
        opened.store.on_durable(move |epoch| {
            let Some(process) = process.upgrade() else { return };
            process.durable.fetch_max(epoch.0, Ordering::AcqRel);
            if wakes {
                for activator in lock(&process.wakes).iter() {
                    // A worker that has ended needs no call.
                    let _ = activator.activate();
                }
            }
        });
        *lock(&self.cores) = opened.cores.into_iter().map(Some).collect();
        let _ = self.landed.set(Landed { point, generation });
        let store = Arc::new(opened.store);
        let _ = self.store.set(Arc::clone(&store));
        #[cfg(feature = "object-store")]
        if let Some(plan) = &self.config.backups {
            let process = Arc::downgrade(self);
            let part = self.part(generation, Stage::Current);
            let backups = Backups::start(plan, &store, &part, move || {
                let Some(process) = process.upgrade() else { return };
                for activator in lock(&process.backups.wakes).iter() {
                    // A worker that has ended needs no call.
                    let _ = activator.activate();
                }
            })?;
            let _ = self.backups.backups.set(backups);
        }
        Ok(())
    }

    pub(super) fn take_core(&self, local: usize) -> Result<(CoreStore, Landed), Error> {
        let core = lock(&self.cores).get_mut(local).and_then(Option::take);
        match (core, self.landed.get()) {
            (Some(core), Some(landed)) => Ok((core, *landed)),
            _ => {
                Err(Error::worker(Detail::new("the state of a worker was not opened").remedy("Report this.")))
            }
        }
    }

    /// Takes note that the state came from a backup, if so.
    pub(super) fn came_from(&self, restored: Option<Restored>) {
        if let Some(restored) = restored {
            // Every worker says the same.
            let _ = self.restored.set(restored);
        }
    }

    /// Takes note which history of the job goes on: that of part 0 of the generation that counts. Where there is none one begins.
    fn lives(&self, all: &[Has], generation: Generation) {
        let parts = all.iter().flat_map(|has| &has.parts);
        let firsts: Vec<_> = parts.filter(|part| (part.generation, part.part) == (generation, 0)).collect();
        let begins = || Life(self.config.vfs.random_u64());
        let life = match firsts.iter().find_map(|part| part.life) {
            None if firsts.is_empty() && self.number() == 0 => Some(begins()),
            life => life,
        };
        if let Some(life) = life {
            // Every worker of a process says so; where it begins the first does.
            let _ = self.life.set(life);
        }
    }

    /// Waits until everything up to `epoch` is durable in this process.
    pub(super) fn wait_durable(&self, epoch: Epoch) -> Result<(), Error> {
        match self.store.get() {
            Some(store) => Ok(store.wait_durable(epoch)?),
            None => Ok(()),
        }
    }

    /// Ends the store; what was sealed is durable.
    pub(super) fn close(&self) -> Result<(), Error> {
        if let Some(store) = self.store.get() {
            store.wait_durable(store.durable_epoch())?;
        }
        #[cfg(feature = "object-store")]
        if let (Some(backups), Some(last)) = (self.backups.backups.get(), self.backups.last.get()) {
            backups.finish(*last)?;
        }
        Ok(())
    }
}

#[cfg(feature = "object-store")]
impl Process {
    /// Calls this whenever a backup of this process' part is made.
    pub(super) fn wake_when_backed_up(&self, activator: SyncActivator) {
        lock(&self.backups.wakes).push(activator);
    }

    /// The last epoch of this run that this process has backed up; 0 before.
    pub(super) fn backed_up(&self) -> Epoch {
        self.backups.backups.get().map_or(Epoch::ZERO, Backups::done)
    }

    /// Why the last try to back this process' part up failed, if it did.
    pub(super) fn backup_error(&self) -> Option<BackupError> {
        self.backups.backups.get().and_then(Backups::error)
    }

    /// As [`Self::settle`], up to the epoch of a backup of the job, whose id came in the dataflow.
    pub(super) fn settle_marked(&self, id: &str) -> Result<(), Error> {
        self.pulse.beat();
        self.backups.backups.get().map_or(Ok(()), |backups| backups.settle(id.parse()?))
    }

    /// Takes note which is the last backup of the job; [`Self::close`] makes it.
    pub(super) fn back_up_last(&self, id: &str) -> Result<(), Error> {
        // Every worker says so.
        let _ = self.backups.last.set(id.parse()?);
        Ok(())
    }
}

/// What a worker says last, before its dataflow is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stands {
    /// The first epoch that was never used here.
    pub(super) first: u64,
    pub(super) offsets: BTreeMap<String, u64>,
}

/// Source offsets of all workers: of a source that several know, the one that read it last is the furthest.
pub(crate) fn merged(all: impl IntoIterator<Item = BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut offsets = BTreeMap::new();
    for (source, offset) in all.into_iter().flatten() {
        let known = offsets.entry(source).or_insert(offset);
        *known = offset.max(*known);
    }
    offsets
}

/// Where the state of a process is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landed {
    pub(super) point: Epoch,
    pub(super) generation: Generation,
}

/// Brings a worker to where it can go on. All workers of all processes call it.
pub(super) fn start(worker: &mut Worker, process: &Arc<Process>) -> Result<Job, Error> {
    let local = worker.index() % process.cluster.workers;
    let layout = process.layout();
    let parts = if local == 0 { layout.parts()? } else { Vec::new() };
    let has = Has {
        process: process.number(),
        job: process.config.job.clone(),
        size: process.size(),
        restorable: local == 0 && parts.is_empty() && process.config.restorable(),
        parts,
        backups: process.config.backs_up(),
        backed_up: if local == 0 { process.config.backed_up() } else { 0 },
    };
    let all = gather(worker, &process.pulse, &has)?;
    let decision = decide(&all, process.config.other_size)?;
    let (Decision::Open { generation, .. } | Decision::Rescale { from: generation, .. }) = &decision;
    process.lives(&all, *generation);
    let (core, landed) = match decision {
        Decision::Open { generation, begun } => {
            let origins = Origins::of(&all, generation);
            process.came_from(origins.newest());
            open(worker, process, &layout, generation, begun, &origins)?;
            // A barrier: whoever is behind it knows that all have cut what was not agreed on, durably.
            gather(worker, &process.pulse, &())?;
            if local == 0 && begun {
                now_counts(process, &layout, generation)?;
                clean(&layout, process.number(), generation, &seen_by(&all))?;
            }
            process.take_core(local)?
        }
        Decision::Rescale { from, size, readers, to } => {
            if local == 0 {
                // What earlier tries left would be there as often as they failed, on a disk that may be full because of that.
                clean(&layout, process.number(), from, &seen_by(&all))?;
            }
            let mine = readers.into_iter().filter(|(_, reader)| *reader == process.number());
            let parts = mine.map(|(part, _)| part).collect();
            rescale(
                worker,
                process,
                &layout,
                &Rescaling { from, size, origins: Origins::of(&all, from), parts, to },
            )?
        }
    };
    let unused = process.restored.get().map_or(Epoch::ZERO, |restored| restored.unused());
    let mine = Stands { first: core.epoch().max(unused).0, offsets: core.source_offsets().clone() };
    let all = gather(worker, &process.pulse, &mine)?;
    let first = Epoch(all.iter().map(|stands| stands.first).max().unwrap_or_default());
    let offsets = merged(all.into_iter().map(|stands| stands.offsets));
    let ledger = Ledger::new(core, first, offsets.clone())?;
    let recovered = Recovered { point: landed.point, first, generation: landed.generation, offsets };
    Job::new(worker, process, ledger, recovered)
}

/// Makes the first backup of a job that has another size than before, before any row goes to a sink of that size. Were the job
/// restored from an older backup, nobody would know of that sink, and its rows would be there twice. But not before the sinks of
/// the size before are cut back to the state: restored from this backup, nobody would know of those. All workers call it.
#[cfg(feature = "object-store")]
pub(super) fn begin_backups(
    worker: &mut Worker,
    process: &Arc<Process>,
    landed: &Recovered,
) -> Result<(), Error> {
    if process.config.backups.is_none() {
        return Ok(());
    }
    let (layout, local) = (process.layout(), worker.index() % process.cluster.workers);
    let is_own = |part: &Part| (part.generation, part.part) == (landed.generation, process.number());
    let own = if local == 0 { layout.parts()?.into_iter().find(is_own) } else { None };
    let needed = landed.generation.0 > 1 && own.as_ref().is_some_and(|own| !own.backed_up);
    let mine = (needed, WholeId::new(landed.point).to_string());
    let all = gather(worker, &process.pulse, &mine)?;
    let (true, Some((_, id))) = (all.iter().any(|(needed, _)| *needed), all.first()) else { return Ok(()) };
    if let (Some(mut own), Some(backups)) = (own, process.backups.backups.get()) {
        tracing::info!(id, "the first backup in this size is made before the job begins");
        backups.back_up_now(id.parse()?)?;
        own.backed_up = true;
        layout.write(&own)?;
    }
    gather(worker, &process.pulse, &()).map(drop)
}

/// Which process, the first of them, sees which part.
fn seen_by(all: &[Has]) -> BTreeMap<(Generation, u32), u32> {
    let mut seen = BTreeMap::new();
    for has in all {
        for part in &has.parts {
            let first = seen.entry((part.generation, part.part)).or_insert(has.process);
            *first = has.process.min(*first);
        }
    }
    seen
}

/// Notes that all parts of a generation are filled, before what they were filled from goes: whoever was to note it may have been killed.
fn now_counts(process: &Process, layout: &Layout, generation: Generation) -> Result<(), Error> {
    let own = |part: &Part| (part.generation, part.part) == (generation, process.number());
    match layout.parts()?.into_iter().find(own) {
        Some(mut part) if part.stage == Stage::Ready => {
            part.stage = Stage::Current;
            layout.write(&part)
        }
        _ => Ok(()),
    }
}

/// Opens this process' part at the epoch that all have. The first worker does it, the others help to agree.
fn open(
    worker: &mut Worker,
    process: &Arc<Process>,
    layout: &Layout,
    generation: Generation,
    begun: bool,
    origins: &Origins,
) -> Result<(), Error> {
    let pulse = Arc::clone(&process.pulse);
    if !worker.index().is_multiple_of(process.cluster.workers) {
        return gather(worker, &pulse, &None::<Recoverable>).map(drop);
    }
    let number = process.number();
    let own = |part: &Part| (part.generation, part.part) == (generation, number);
    let stage = layout.parts()?.iter().find(|part| own(part)).map(|part| part.stage);
    let new = !begun && stage != Some(Stage::Current);
    let write = |stage| layout.write(&process.part(generation, stage));
    if stage.is_some_and(|stage| stage > Stage::Filling) {
        layout.require_store(generation, number)?;
    }
    if stage.is_none() {
        // Whose it is stands there before anything else does.
        write(Stage::Filling)?;
    }
    let mut failure = None;
    let opened = process.builder(layout, generation).open_as_part(|found| {
        let agreed = (|| {
            let own = Some(Recoverable { process: number, epoch: found.0, new });
            let all = gather(worker, &pulse, &own)?;
            let all: Vec<_> = all.into_iter().flatten().collect();
            let agreed = agree(&all)?;
            origins.check(Epoch(agreed))?;
            if new {
                // Durable before anybody can seal anything: whoever seals knows that all have begun.
                write(Stage::Current)?;
            }
            Ok(Epoch(agreed))
        })();
        agreed.map_err(|error: Error| {
            let detail = error.detail().clone();
            failure = Some(error);
            StoreError::InvalidInput(Box::new(detail))
        })
    });
    match (opened, failure) {
        (Ok(opened), _) => {
            tracing::info!(process = number, report = ?opened.report, "recovered");
            process.opened(opened, generation)
        }
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(error.into()),
    }
}
