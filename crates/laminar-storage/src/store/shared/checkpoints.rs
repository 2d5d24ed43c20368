//! What makes checkpoints, on whichever thread, one at a time.

use std::path::Path;

use super::super::checkpointer::{CheckpointReceipt, Checkpointer};
use super::super::drain::DurableCut;
use super::super::error::StoreError;
use super::Shared;
use crate::error::Detail;
use crate::ids::Epoch;
use crate::incremental::SavepointReceipt;
use crate::sync::atomic::Ordering;
use crate::sync::lock;

impl Shared {
    /// Makes a checkpoint of the durable epoch.
    pub(crate) fn checkpoint(&self) -> Result<CheckpointReceipt, StoreError> {
        self.with_checkpointer(|checkpointer| self.checkpoint_with(checkpointer))
    }

    /// Makes a checkpoint of the durable epoch, and a savepoint of it before anybody can remove it.
    pub(crate) fn savepoint(
        &self,
        dir: &Path,
        own_files: &[(&str, &[u8])],
    ) -> Result<SavepointReceipt, StoreError> {
        self.with_checkpointer(|checkpointer| {
            // A name that cannot be used is not worth a checkpoint.
            checkpointer.check_savepoint(dir)?;
            self.checkpoint_with(checkpointer)?;
            checkpointer.savepoint(dir, own_files)
        })
    }

    pub(in crate::store) fn with_checkpointer<T>(
        &self,
        work: impl FnOnce(&mut Checkpointer) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.durable.check()?;
        let mut checkpointer = lock(&self.checkpointer);
        let Some(checkpointer) = checkpointer.as_mut() else {
            self.check_open()?;
            return Err(StoreError::closed(
                Detail::new("the store was closed").remedy("Open it again to go on."),
            ));
        };
        work(checkpointer)
    }

    pub(in crate::store) fn checkpoint_with(
        &self,
        checkpointer: &mut Checkpointer,
    ) -> Result<CheckpointReceipt, StoreError> {
        // In this order, so that what is not in the checkpoint is never taken for being there.
        let bytes = self.counters.wal_bytes.get();
        let cut = lock(&self.cuts).usable(self.settled_epoch()).clone();
        self.checkpoint_of(checkpointer, &cut, bytes)
    }

    /// Makes a checkpoint of the durable epochs up to `cut`. The next one that the size of the log asks for is due so much after
    /// `bytes` of it, also when this one could not go far: it would be asked for without an end.
    fn checkpoint_of(
        &self,
        checkpointer: &mut Checkpointer,
        cut: &DurableCut,
        bytes: u64,
    ) -> Result<CheckpointReceipt, StoreError> {
        let before = checkpointer.newest().map(|newest| newest.id);
        let result = checkpointer.checkpoint(cut);
        self.checkpointed_bytes.store(bytes, Ordering::Relaxed);
        // Also when the log could not be cut afterwards.
        let published = checkpointer.newest().filter(|newest| Some(newest.id) != before);
        if let Some(receipt) = published {
            self.counters.checkpoints.add(1);
            self.counters.checkpoint_bytes.set(receipt.bytes_written);
            self.counters.checkpoint_nanos.set(u64::try_from(receipt.time.as_nanos()).unwrap_or(u64::MAX));
            self.counters.checkpoint_next.set(receipt.id.next().0);
            self.counters.checkpoint_epoch.set(receipt.epoch.0);
            #[cfg(feature = "object-store")]
            if let Some(backups) = self.backups.get() {
                backups.checkpointed(receipt.id, receipt.bytes_written);
            }
            if let Some(made) = checkpointer.made() {
                lock(&self.estimator).made(self.opened.elapsed(), made);
            }
            self.complain();
        }
        match &result {
            Ok(_) if published.is_some() => *lock(&self.checkpoint_failure) = None,
            Ok(_) => lock(&self.estimator).nothing_new(self.opened.elapsed()),
            Err(error) => {
                checkpointer.make_room();
                if published.is_none() {
                    lock(&self.estimator).failed(self.opened.elapsed());
                }
                tracing::error!(%error, "a checkpoint failed");
                *lock(&self.checkpoint_failure) = Some(error.clone());
            }
        }
        result
    }

    /// Until a checkpoint holds exactly the end of `epoch`, none goes further.
    pub(crate) fn reserve_checkpoint(&self, epoch: Epoch) -> Result<(), StoreError> {
        let refused = lock(&self.cuts).reserve(epoch, self.settled_epoch());
        refused.map_err(|other| {
            let what = if other > epoch {
                format!("epoch {epoch} cannot be reserved for a checkpoint: it may hold {other} already")
            } else {
                format!("epoch {epoch} cannot be reserved for a checkpoint: {other} is, and is not made yet")
            };
            let remedy =
                "Reserve an epoch before it is settled, and make its checkpoint before the next one's.";
            StoreError::invalid(Detail::new(what).in_epoch(other).remedy(remedy))
        })
    }

    /// Makes a checkpoint that holds exactly the end of `epoch`.
    pub(crate) fn checkpoint_at(&self, epoch: Epoch) -> Result<CheckpointReceipt, StoreError> {
        self.with_checkpointer(|checkpointer| {
            let receipt = self.checkpoint_exactly(checkpointer, epoch)?;
            self.release(epoch);
            Ok(receipt)
        })
    }

    /// Checkpoints may go beyond `epoch` again: whoever reserved it has its checkpoint. Nothing else does that, not even
    /// a checkpoint of that epoch which somebody else asked for: it could be gone before it is looked for.
    pub(in crate::store) fn release(&self, epoch: Epoch) {
        lock(&self.cuts).made(epoch);
    }

    pub(in crate::store) fn checkpoint_exactly(
        &self,
        checkpointer: &mut Checkpointer,
        epoch: Epoch,
    ) -> Result<CheckpointReceipt, StoreError> {
        let refused = |what: String, remedy: &'static str| {
            Err(StoreError::invalid(Detail::new(what).in_epoch(epoch).remedy(remedy)))
        };
        if let Some(newest) = checkpointer.newest().filter(|newest| newest.epoch > epoch) {
            return refused(
                format!("the newest checkpoint holds epoch {} already", newest.epoch),
                "Reserve an epoch for a checkpoint before it is settled.",
            );
        }
        let known = self.settled_epoch().is_none_or(|settled| epoch <= settled);
        let Some(cut) = lock(&self.cuts).at(epoch).filter(|_| known) else {
            return refused(
                "the epoch is not durable, or in a part of a whole not settled".into(),
                "Wait for it.",
            );
        };
        let bytes = self.counters.wal_bytes.get();
        self.checkpoint_of(checkpointer, &cut, bytes)
    }
}
