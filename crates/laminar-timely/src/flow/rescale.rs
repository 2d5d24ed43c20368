//! From the state of one size of the job to that of another.
//!
//! The parts of the old generation are opened at the epoch that all of them have, as ever; their keys go through a dataflow
//! to the workers that own them now, which put them into new stores. These are sealed with an epoch above all old ones and
//! synced. When that is so everywhere, the new generation counts, and the old one is removed. A crash before leaves the old
//! one as it was; what was begun of the new one is then begun again, under another number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use laminar_storage::error::Detail;
use laminar_storage::{CoreStore, Epoch, Opened, Store, StoreError};
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::{Input, Operator, Probe};
use timely::dataflow::{InputHandle, ProbeHandle, StreamVec};
use timely::worker::Worker;

use super::gather::gather;
use super::or_end;
use super::sink::{part_of, part_of_committed};
use super::start::{Landed, Process, Stands, merged};
use crate::error::Error;
use crate::flow::keyed::owner_of;
use crate::layout::{Generation, Layout, Part, Restored, Size, Stage};
use crate::ledger::{Kind, split_key, undecodable};
use crate::recover::{Origins, Recoverable, agree};

/// Keys that are on their way at a time.
const BATCH: usize = 1 << 14;

/// What is distributed, from where to where.
pub(super) struct Rescaling {
    pub(super) from: Generation,
    pub(super) size: Size,
    /// Where the old state came from, if from backups.
    pub(super) origins: Origins,
    /// Parts that this process reads.
    pub(super) parts: Vec<u32>,
    pub(super) to: Generation,
}

/// Where a key goes, or everywhere.
enum Place {
    Worker(u64),
    Everywhere,
}

fn place_of(key: &[u8]) -> Result<Place, Error> {
    match split_key(key) {
        Some((Kind::State, _, rest)) => Ok(Place::Worker(owner_of(rest))),
        // The end of the window stands before the key.
        Some((Kind::Window, _, rest)) => Ok(Place::Worker(owner_of(rest.get(8..).unwrap_or_default()))),
        Some((Kind::Waiting, _, _)) => {
            let (part, _) =
                part_of(key).ok_or_else(|| undecodable("the key of rows that wait for a sink"))?;
            Ok(Place::Worker(u64::from(part.worker)))
        }
        Some((Kind::Committed, _, _)) => {
            let part = part_of_committed(key).ok_or_else(|| undecodable("the key of what a sink has"))?;
            Ok(Place::Worker(u64::from(part.worker)))
        }
        // The same on all workers.
        Some((Kind::Note, _, _)) => Ok(Place::Everywhere),
        None => Err(undecodable("a key of the state")),
    }
}

/// Distributes the state. All workers of all processes call it; each gets its core.
pub(super) fn rescale(
    worker: &mut Worker,
    process: &Arc<Process>,
    layout: &Layout,
    work: &Rescaling,
) -> Result<(CoreStore, Landed), Error> {
    let pulse = Arc::clone(&process.pulse);
    let local = worker.index() % process.cluster.workers;
    let (point, old) = if local == 0 {
        open_old(worker, process, layout, work)?
    } else {
        gather(worker, &pulse, &None::<Recoverable>)?;
        (Epoch::ZERO, Vec::new())
    };
    let restored = work.origins.newest();
    let cores = || old.iter().flat_map(|opened| &opened.cores);
    let mine = Stands {
        first: cores()
            .map(|core| core.epoch())
            .chain(restored.map(Restored::unused))
            .max()
            .unwrap_or_default()
            .0,
        offsets: merged(cores().map(|core| core.source_offsets().clone())),
    };
    // Also a barrier: behind it, all have cut what was not agreed on.
    let all = gather(worker, &pulse, &mine)?;
    let epoch = Epoch(all.iter().map(|stands| stands.first).max().unwrap_or_default());
    let offsets = merged(all.into_iter().map(|stands| stands.offsets));
    if local == 0 {
        // Nothing has happened since, so that sinks may still have more.
        let still = restored.filter(|restored| restored.is_still(point));
        process.came_from(still.map(|restored| Restored { at: epoch, ..restored }));
        layout.write(&process.part(work.to, Stage::Filling))?;
        process.opened(process.builder(layout, work.to).open_as_part(Ok)?, work.to)?;
    }
    gather(worker, &pulse, &())?;
    let (core, _) = process.take_core(local)?;
    let mut core = distribute(worker, process, cores(), core)?;
    if worker.index() == 0 {
        offsets.iter().for_each(|(source, offset)| core.set_source_offset(source, *offset));
    }
    core.seal_epoch_to(epoch)?;
    gather(worker, &pulse, &())?;
    if local == 0 {
        process.wait_durable(epoch)?;
        layout.write(&process.part(work.to, Stage::Ready))?;
    }
    gather(worker, &pulse, &())?;
    // Everything is everywhere: from here on the new generation counts.
    if local == 0 {
        layout.write(&process.part(work.to, Stage::Current))?;
        process.settle(epoch)?;
        drop(old);
        work.parts.iter().try_for_each(|part| layout.remove(work.from, *part))?;
        tracing::info!(from = %work.size, to = %process.size(), %epoch, "the state was distributed anew");
    }
    Ok((core, Landed { point: epoch, generation: work.to }))
}

/// Opens the old parts that this process reads, at the epoch that all old parts have, which is returned with them.
fn open_old(
    worker: &mut Worker,
    process: &Arc<Process>,
    layout: &Layout,
    work: &Rescaling,
) -> Result<(Epoch, Vec<Opened>), Error> {
    work.parts.iter().try_for_each(|part| layout.require_store(work.from, *part))?;
    let mut failure = None;
    let mut opened = Vec::new();
    let mut all_agree = |lowest: Option<Epoch>| {
        let own = lowest.map(|lowest| Recoverable { process: process.number(), epoch: lowest.0, new: false });
        let agreed = gather(worker, &process.pulse, &own).and_then(|all| {
            let all: Vec<_> = all.into_iter().flatten().collect();
            let agreed = agree(&all).map(Epoch)?;
            work.origins.check(agreed)?;
            Ok(agreed)
        });
        agreed.map_err(|error| {
            let detail = error.detail().clone();
            failure = Some(error);
            StoreError::InvalidInput(Box::new(detail))
        })
    };
    let dirs: Vec<_> = work.parts.iter().map(|part| layout.store_dir(work.from, *part)).collect();
    let build = |dir: &std::path::PathBuf| process.store_builder(dir, work.size.workers as usize);
    let result = open_nested(&dirs, &build, None, &mut opened, &mut all_agree);
    match (result, failure) {
        (Ok(agreed), _) => Ok((agreed, opened)),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(error.into()),
    }
}

/// Opens one part while the next one is being opened, so that all are surveyed before any is changed, and the process can
/// say what the smallest of their recovery points is.
fn open_nested(
    dirs: &[std::path::PathBuf],
    build: &dyn Fn(&std::path::PathBuf) -> laminar_storage::StoreBuilder,
    lowest: Option<Epoch>,
    opened: &mut Vec<Opened>,
    agree: &mut dyn FnMut(Option<Epoch>) -> Result<Epoch, StoreError>,
) -> Result<Epoch, StoreError> {
    let Some((dir, rest)) = dirs.split_first() else { return agree(lowest) };
    let mut agreed = Epoch::ZERO;
    let part = build(dir).open_as_part(|found| {
        let lowest = lowest.map_or(found, |lowest| lowest.min(found));
        agreed = open_nested(rest, build, Some(lowest), opened, agree)?;
        Ok(agreed)
    })?;
    opened.push(part);
    Ok(agreed)
}

type Pair = (u64, Vec<u8>, Vec<u8>);

/// Sends the pairs of the old cores to their owners, and puts what comes into the new one.
fn distribute<'a>(
    worker: &mut Worker,
    process: &Arc<Process>,
    old: impl Iterator<Item = &'a CoreStore>,
    core: CoreStore,
) -> Result<CoreStore, Error> {
    let core = Rc::new(RefCell::new(core));
    let (puts, pulse) = (Rc::clone(&core), Arc::clone(&process.pulse));
    let mut input = InputHandle::new();
    let probe: ProbeHandle<u64> = worker.dataflow::<u64, _, _>(|scope| {
        let stream: StreamVec<u64, Pair> = scope.input_from(&mut input);
        let put = stream.unary::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            Exchange::new(|(to, _, _): &Pair| *to),
            "distribute",
            move |_, _| {
                move |input, _| {
                    input.for_each_stamp(|_, data| {
                        pulse.beat();
                        for (_, key, value) in data.flat_map(std::mem::take) {
                            or_end(puts.borrow_mut().put(&key, &value));
                        }
                    });
                }
            },
        );
        put.probe().0
    });
    let _waits = process.pulse.waits();
    let (peers, mut batch) = (worker.peers() as u64, 0);
    for (key, value) in old.flat_map(CoreStore::iter) {
        let to = match place_of(key)? {
            Place::Worker(worker) => worker..worker.saturating_add(1),
            Place::Everywhere => 0..peers,
        };
        to.for_each(|to| input.send((to, key.to_vec(), value.to_vec())));
        batch += 1;
        if batch == BATCH {
            batch = 0;
            let round = *input.time();
            input.advance_to(round + 1);
            while probe.less_than(&round.saturating_sub(2)) {
                worker.step_or_park(Some(Duration::from_millis(100)));
            }
            process.pulse.beat();
        }
    }
    input.close();
    while !probe.done() {
        worker.step_or_park(Some(Duration::from_millis(100)));
    }
    // The operator goes with the dataflow, once that is stepped to its end.
    while Rc::strong_count(&core) > 1 {
        worker.step_or_park(Some(Duration::from_millis(10)));
    }
    Rc::into_inner(core).map(RefCell::into_inner).ok_or_else(|| {
        Error::worker(
            Detail::new("the dataflow that distributes the state did not end").remedy("Report this."),
        )
    })
}

impl Process {
    /// What this process' part says about itself.
    pub(super) fn part(&self, generation: Generation, stage: Stage) -> Part {
        let mut part = Part::new(&self.config.job, generation, self.number(), self.size(), stage);
        part.restored = self.restored.get().copied();
        part.life = self.life.get().copied();
        part
    }

    /// Opens this process' part of a generation.
    pub(super) fn builder(&self, layout: &Layout, generation: Generation) -> laminar_storage::StoreBuilder {
        self.store_builder(&layout.store_dir(generation, self.number()), self.cluster.workers)
    }

    fn store_builder(&self, dir: &std::path::Path, cores: usize) -> laminar_storage::StoreBuilder {
        let builder = Store::builder(dir).cores(cores);
        builder.settings(self.config.settings.clone()).vfs(Arc::clone(&self.config.vfs))
    }
}

/// Removes parts of generations before this one that were left behind, and parts of later ones that were never finished.
pub(super) fn clean(
    layout: &Layout,
    process: u32,
    current: Generation,
    seen_by: &BTreeMap<(Generation, u32), u32>,
) -> Result<(), Error> {
    let left = seen_by.iter().filter(|((generation, _), first)| *generation != current && **first == process);
    left.map(|(place, _)| *place).try_for_each(|(generation, part)| layout.remove(generation, part))
}
