//! Counters that all threads of a store share, and what is shown of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ids::{CheckpointId, Epoch};
use crate::store::StoreError;
use crate::store::objective::Estimator;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of the background work.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) drained: Counter,
    pub(crate) logged: Counter,
    pub(crate) syncs: Counter,
    pub(crate) wal_bytes: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoint_bytes: Counter,
    pub(crate) checkpoint_nanos: Counter,
    /// Id of the newest checkpoint plus one; 0 for none.
    pub(crate) checkpoint_next: Counter,
    pub(crate) checkpoint_epoch: Counter,
}

/// Figures since the store was opened, from [`crate::Store::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The newest durable epoch.
    pub durable_epoch: Epoch,
    /// Changes taken over by Ring 1.
    pub changes_drained: u64,
    /// Changes written to the log; fewer, where keys changed several times within a batch.
    pub changes_logged: u64,
    /// Group commits.
    pub syncs: u64,
    /// Bytes of all logs since they began.
    pub wal_bytes: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// The newest checkpoint, of this opening or of an earlier one.
    pub last_checkpoint: Option<CheckpointId>,
    /// Epoch whose end the newest checkpoint holds.
    pub last_checkpoint_epoch: Epoch,
    /// Bytes that the last checkpoint of this opening wrote.
    pub last_checkpoint_bytes: u64,
    /// How long it took.
    pub last_checkpoint_time: Duration,
    /// Bytes of log that opening would replay if the process died now: those since the newest checkpoint.
    pub wal_bytes_behind: u64,
    /// How long opening would take if the process died now, as far as can be told from what the last
    /// opening and the checkpoints took: loading the newest checkpoint, and replaying that log.
    pub estimated_recovery: Duration,
    /// [`crate::Settings::recovery_objective_ms`] cannot be kept, because loading the checkpoint alone takes
    /// more than three quarters of it. It was also said once, as a warning.
    pub recovery_objective_out_of_reach: bool,
    /// Checkpoints since the one that was backed up last; [`crate::Store::backup_status`] says more.
    #[cfg(feature = "object-store")]
    pub backup_checkpoints_behind: u64,
    /// Bytes that those wrote.
    #[cfg(feature = "object-store")]
    pub backup_bytes_behind: u64,
    /// Backups that failed since the last one that did not.
    #[cfg(feature = "object-store")]
    pub backup_failures: u64,
}

impl Stats {
    #[cfg(feature = "object-store")]
    pub(crate) fn with_backups(self, status: &crate::backup::BackupStatus) -> Self {
        Self {
            backup_checkpoints_behind: status.checkpoints_behind,
            backup_bytes_behind: status.bytes_behind,
            backup_failures: status.failures,
            ..self
        }
    }

    pub(crate) fn of(counters: &Counters, durable_epoch: Epoch, estimator: &Estimator) -> Self {
        let wal_bytes = counters.wal_bytes.get();
        Self {
            durable_epoch,
            changes_drained: counters.drained.get(),
            changes_logged: counters.logged.get(),
            syncs: counters.syncs.get(),
            wal_bytes,
            checkpoints: counters.checkpoints.get(),
            last_checkpoint: counters.checkpoint_next.get().checked_sub(1).map(CheckpointId),
            last_checkpoint_epoch: Epoch(counters.checkpoint_epoch.get()),
            last_checkpoint_bytes: counters.checkpoint_bytes.get(),
            last_checkpoint_time: Duration::from_nanos(counters.checkpoint_nanos.get()),
            wal_bytes_behind: estimator.behind(wal_bytes),
            estimated_recovery: estimator.recovery(wal_bytes),
            recovery_objective_out_of_reach: estimator.is_out_of_reach(),
            #[cfg(feature = "object-store")]
            backup_checkpoints_behind: 0,
            #[cfg(feature = "object-store")]
            backup_bytes_behind: 0,
            #[cfg(feature = "object-store")]
            backup_failures: 0,
        }
    }
}

/// Is the store in order? From [`crate::Store::health`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Health {
    /// It writes, syncs and acknowledges.
    Running,
    /// A write or sync failed, or the disk was full when the store was opened. Reads work, nothing is acknowledged any
    /// more; reopen to recover.
    Poisoned(StoreError),
    /// The durable log works, but the last automatic checkpoint failed; the log grows until one
    /// succeeds, and reopening tries again.
    CheckpointsFailing(StoreError),
}

impl Health {
    /// True while the store does all its work.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }
}
