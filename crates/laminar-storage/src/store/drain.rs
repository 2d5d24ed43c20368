//! Ring 1: from the changelog rings of all cores to durable epochs.
//!
//! A [`Drain`] is a machine that makes one turn at a time: take what every core's ring holds, leave
//! out values that were replaced within a batch, append, and when an epoch is closed on every core, sync all
//! logs in parallel and publish it. The background thread turns it as fast as the device answers;
//! there is no timer that holds an epoch back.
//!
//! Where changes wait when a sync begins, another thread syncs, and this one goes on taking them into
//! memory, up to a bound: a sync takes the device long, and the processors nearly nothing. Where none
//! wait it syncs by itself, so that nobody has to be woken.
//!
//! Order (invariants I2, I11, I20): append, sync, publish. Slots are released to Ring 0 as soon as their
//! bytes are in the writer's buffer. The first failure ends the machine.

use std::sync::Arc;

use super::error::StoreError;
use super::settled::Settled;
use super::stats::Counters;
use crate::format::record::Record;
use crate::ids::{Epoch, SegmentNumber};
use crate::incremental::StateOp;
use crate::pace::Commits;
use crate::per_core_wal::incarnation::leave_evidence;
use crate::per_core_wal::writer::CoreWalWriter;
use crate::per_core_wal::{Meanwhile, PerCoreWalError, Syncer, sync_writers, sync_writers_beside};
use crate::ring0::CoreDrain;
use crate::sabotage::{Sabotage, sabotaged};

/// Entries taken from a core at a time: enough to coalesce, little enough to stay in cache.
const BATCH: usize = 8192;
/// Entries taken from a core per turn at most, so that no core keeps the others from a sync.
const ENTRIES_PER_TURN: usize = 32 * BATCH;
/// Entries that wait, of all cores, from which on a sync leaves its thread to them: to take fewer is done sooner than another
/// thread is woken. Of small rings, which are full soon, it is one part in `PART_OF_A_RING`.
const WORTH_A_THREAD: usize = 512;
const PART_OF_A_RING: usize = 8;
/// Bytes of keys and values taken from a core at a time beside a sync.
const BATCH_BESIDE_A_SYNC: usize = 1 << 20;
/// How far ahead the records of a batch are fetched: a batch is larger than the nearest caches.
const FETCH_AHEAD: usize = 16;

/// One core as Ring 1 sees it.
#[derive(Debug)]
struct Lane {
    drain: CoreDrain,
    /// Last epoch whose barrier is in the writer.
    sealed: Epoch,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Something was drained or synced; there may be more.
    pub(crate) worked: bool,
    /// A new durable epoch.
    pub(crate) durable: Option<Epoch>,
}

/// Where every core's log ended when an epoch became durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurableCut {
    pub(crate) epoch: Epoch,
    /// Per core: the segment in use and its durable length.
    pub(crate) ends: Vec<(SegmentNumber, u64)>,
}

/// The Ring 1 machine.
#[derive(Debug)]
pub(crate) struct Drain {
    lanes: Vec<Lane>,
    /// Syncs while this thread goes on. It goes before the writers whose files it has.
    syncer: Syncer,
    writers: Vec<CoreWalWriter>,
    durable: Epoch,
    /// For whoever wants the device too.
    commits: Arc<Commits>,
    /// In a part of a whole: what is durable on all parts, which alone counts as acknowledged.
    settled: Option<Arc<Settled>>,
}

impl Drain {
    pub(crate) fn new(
        drains: Vec<CoreDrain>,
        writers: Vec<CoreWalWriter>,
        durable: Epoch,
        commits: Arc<Commits>,
        settled: Option<Arc<Settled>>,
    ) -> Self {
        let lanes = drains.into_iter().map(|drain| Lane { drain, sealed: durable }).collect();
        Self { lanes, syncer: Syncer::default(), writers, durable, commits, settled }
    }

    pub(crate) fn cores(&self) -> usize {
        self.lanes.len()
    }

    /// Makes one turn.
    pub(crate) fn turn(&mut self, counters: &Counters) -> Result<Turn, StoreError> {
        let mut turn = Turn::default();
        for core in 0..self.lanes.len() {
            // What is there now, in however many epochs; what comes meanwhile goes into the next sync.
            let (Some(lane), Some(writer)) = (self.lanes.get_mut(core), self.writers.get_mut(core)) else {
                continue;
            };
            let mut left = lane.drain.pending().min(ENTRIES_PER_TURN);
            while left > 0 {
                left = left.saturating_sub(lane.take(writer, usize::MAX, counters)?.max(1));
                turn.worked = true;
            }
        }
        let sealed = self.sealed();
        if sealed > self.durable {
            if !sabotaged(Sabotage::AcknowledgedBeforeSync) {
                self.sync(counters)?;
            }
            // Not what was sealed beside the sync: that is not part of it.
            self.durable = if sabotaged(Sabotage::CameBesideCounts) { self.sealed() } else { sealed };
            let acknowledged = self.acknowledged();
            for writer in &mut self.writers {
                writer.acknowledge(acknowledged);
            }
            counters.syncs.add(1);
            turn.worked = true;
            turn.durable = Some(self.durable);
        }
        Ok(turn)
    }

    /// The last epoch whose barrier every writer has.
    fn sealed(&self) -> Epoch {
        let sealed = self.lanes.iter().map(|lane| lane.sealed);
        let sealed = if sabotaged(Sabotage::FastestCoreAcknowledges) { sealed.max() } else { sealed.min() };
        sealed.unwrap_or(self.durable)
    }

    /// Syncs what was taken so far. Beside it, more is taken where enough of it waits.
    fn sync(&mut self, counters: &Counters) -> Result<(), PerCoreWalError> {
        let log_bytes = self.wal_bytes();
        let Self { lanes, writers, syncer, commits, .. } = self;
        let waits: usize = lanes.iter().map(|lane| lane.drain.pending()).sum();
        let ring = lanes.first().map_or(0, |lane| lane.drain.capacity());
        let worth_a_thread = WORTH_A_THREAD.min(ring / PART_OF_A_RING);
        let threads = writers.first().is_some_and(|writer| writer.vfs().parallel());
        commits.commit(log_bytes, || {
            if waits < worth_a_thread || !threads || cfg!(all(test, shuttle)) {
                return sync_writers(writers);
            }
            let mut turn = 0;
            sync_writers_beside(writers, syncer, |writers| take_beside(lanes, writers, &mut turn, counters))
        })
    }

    /// What the log testifies to: epochs that no opening will discard.
    fn acknowledged(&self) -> Epoch {
        self.settled.as_ref().map_or(self.durable, |settled| settled.epoch().min(self.durable))
    }

    /// Which epochs are settled, if the store is a part of a whole.
    pub(crate) fn settled(&self) -> Option<&Arc<Settled>> {
        self.settled.as_ref()
    }

    /// Is there something in a ring?
    pub(crate) fn has_work(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.drain.is_empty())
    }

    /// Leaves evidence of what is durable; for when there is nothing else to do.
    pub(crate) fn confirm(&mut self) -> Result<(), StoreError> {
        Ok(self.writers.iter_mut().try_for_each(CoreWalWriter::confirm)?)
    }

    /// Where the logs end, for whoever reads them while they grow.
    pub(crate) fn cut(&self) -> DurableCut {
        let ends = self.writers.iter().map(|writer| (writer.header().number, writer.synced_len())).collect();
        DurableCut { epoch: self.durable, ends }
    }

    /// Bytes of all logs since they began.
    pub(crate) fn wal_bytes(&self) -> u64 {
        self.writers.iter().map(CoreWalWriter::position).fold(0, u64::saturating_add)
    }

    /// Of them, those that are durable.
    pub(crate) fn synced_bytes(&self) -> u64 {
        self.writers.iter().map(CoreWalWriter::synced_position).fold(0, u64::saturating_add)
    }

    /// Leaves durable evidence of a clean end.
    pub(crate) fn end(&mut self) -> Result<(), StoreError> {
        let acknowledged = self.acknowledged();
        for writer in &mut self.writers {
            // Of a part more may have been settled since the last sync.
            writer.acknowledge(acknowledged);
        }
        self.confirm()?;
        sync_writers(&mut self.writers)?;
        if let Some(writer) = self.writers.first().filter(|_| acknowledged > Epoch::ZERO) {
            leave_evidence(writer, acknowledged);
        }
        Ok(())
    }
}

/// Takes a batch of the next core, in turns, in whose ring there is something and that has room for it in memory.
fn take_beside(
    lanes: &mut [Lane],
    writers: &mut [CoreWalWriter],
    turn: &mut usize,
    counters: &Counters,
) -> Result<Meanwhile, PerCoreWalError> {
    let mut meanwhile = Meanwhile::Full;
    let cores = lanes.len().min(writers.len());
    for _ in 0..cores {
        *turn = (*turn + 1) % cores;
        let (Some(lane), Some(writer)) = (lanes.get_mut(*turn), writers.get_mut(*turn)) else { continue };
        let room = writer.room_beside_a_sync();
        if room == 0 {
            continue;
        }
        if !lane.drain.is_empty() {
            lane.take(writer, room.min(BATCH_BESIDE_A_SYNC), counters)?;
            return Ok(Meanwhile::Worked);
        }
        meanwhile = Meanwhile::Idle;
    }
    Ok(meanwhile)
}

impl Lane {
    /// Takes one batch from a ring in which there is something, of so many bytes or a little more, and returns how many
    /// entries it had, the end of its epoch included.
    fn take(
        &mut self,
        writer: &mut CoreWalWriter,
        bytes: usize,
        counters: &Counters,
    ) -> Result<usize, PerCoreWalError> {
        let batch = self.drain.drain(BATCH, bytes);
        let mut written = 0;
        for index in batch.entries.clone() {
            self.drain.fetch(index + FETCH_AHEAD);
            if self.drain.is_superseded(index) {
                continue;
            }
            let Some(record) = self.drain.record(index) else { continue };
            let record = match record.op {
                StateOp::Put => Record::Put { key: record.key, value: record.value },
                StateOp::Delete => Record::Delete { key: record.key },
            };
            writer.append_drained(&record)?;
            written += 1;
        }
        counters.drained.add(batch.entries.len() as u64);
        counters.logged.add(written);
        if let Some(seal) = &batch.seal {
            writer.seal(seal.epoch, seal.commit.as_deref(), self.drain.digest())?;
            self.sealed = seal.epoch;
        }
        self.drain.release();
        Ok(batch.entries.len() + usize::from(batch.seal.is_some()))
    }
}
