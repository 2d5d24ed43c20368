//! Recovery of all cores' logs, core by core.

use std::path::Path;

use super::repair::repair_segments;
use super::survey::Survey;
use crate::error::Detail;
use crate::incremental::recovery::locate::Failure;
use crate::incremental::{RecoveredState, RecoveryConfig, ReplayedChange, StateMap, recover_parts};
use crate::per_core_wal::stats::{SegmentStats, segment_stats};
use crate::per_core_wal::{MergedEntries, PerCoreWalConfig, PerCoreWalEntry, PerCoreWalError};
use crate::report::RecoveryReport;

/// Recovers checkpoint and logs, showing where each change came from.
#[derive(Clone, Debug)]
pub struct PerCoreRecoveryManager {
    wal: PerCoreWalConfig,
    recovery: RecoveryConfig,
}

/// What was recovered, core by core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerCoreRecoveredState {
    /// The checkpoint's state, with the epoch, offsets and watermark of the end.
    pub base_state: RecoveredState,
    /// Every change in the logs that the checkpoint does not contain, in the total order.
    pub state_changes: Vec<ReplayedChange>,
    /// Per core, the bytes of its log that count.
    pub wal_positions: Vec<u64>,
    /// Number of those changes.
    pub entries_replayed: u64,
    /// Epoch that the state is of.
    pub final_epoch: u64,
    /// What recovery did.
    pub report: RecoveryReport,
}

impl PerCoreRecoveredState {
    /// The whole state: the checkpoint's with all changes applied.
    #[must_use]
    pub fn state(&self) -> StateMap {
        let mut state = self.base_state.state.clone();
        for change in &self.state_changes {
            state.apply(&change.key, change.value.as_deref());
        }
        state
    }

    /// The value of a key at the end.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        match self.state_changes.iter().rev().find(|change| change.key == key) {
            Some(change) => change.value.as_deref(),
            None => self.base_state.get(key),
        }
    }
}

impl PerCoreRecoveryManager {
    /// Recovers the log of `wal` with the checkpoints and the mode of `recovery`.
    #[must_use]
    pub fn new(wal: PerCoreWalConfig, recovery: RecoveryConfig) -> Self {
        Self { wal, recovery }
    }

    /// Recovers checkpoint and logs. Directories that do not exist yet are an empty state. The digests that a
    /// [`crate::Store`] stored are compared, although the changes are kept apart from the checkpoint's state.
    ///
    /// # Errors
    /// `InvalidCore` when the log has another number of cores; `Corrupted`, `SegmentNotFound`,
    /// `NewerFormat` or `Checkpoint` when what is there is not whole; `Corrupted` also when the state does not have the
    /// digest that was stored with it; `Io`. Nothing was changed then.
    pub fn recover(&self) -> Result<PerCoreRecoveredState, PerCoreWalError> {
        self.wal.validate()?;
        let mut config = self.recovery.clone();
        config.wal_path.clone_from(&self.wal.base_dir);
        let config = config.with_vfs(self.wal.vfs().clone());
        let parts = recover_parts(&config).map_err(|failure| match failure {
            Failure::Log(error) => error,
            Failure::Checkpoint(error) => PerCoreWalError::Checkpoint(Box::new(error.detail().clone())),
        })?;
        let cores = parts.positions.len();
        if cores != 0 && cores != self.wal.num_cores {
            return Err(PerCoreWalError::InvalidCore(Box::new(
                Detail::new(format!("this log has {cores} cores and was opened for {}", self.wal.num_cores))
                    .at_path(&self.wal.base_dir)
                    .remedy("Recover it with its own number of cores."),
            )));
        }
        Ok(PerCoreRecoveredState {
            entries_replayed: parts.changes.len() as u64,
            final_epoch: parts.state.epoch,
            report: parts.state.report.clone(),
            wal_positions: parts.positions,
            state_changes: parts.changes,
            base_state: parts.state,
        })
    }

    /// Every valid record of the logs, in the total order, whatever the checkpoints hold.
    ///
    /// # Errors
    /// As [`Self::recover`].
    pub fn recover_wal_only(&self) -> Result<Vec<PerCoreWalEntry>, PerCoreWalError> {
        let survey = self.survey()?;
        let logs = survey.cores.iter().map(|log| log.core);
        let cursors = logs.map(|core| super::cursor::CoreCursor::whole(self.wal.vfs(), &survey, core));
        MergedEntries::new(cursors.collect()).collect()
    }

    /// Cuts torn tails off all segments; returns how many bytes that was. Nothing acknowledged is in
    /// them. The log must not be in use.
    ///
    /// # Errors
    /// `Locked` when it is; otherwise as [`Self::recover`].
    pub fn repair_all_segments(&self) -> Result<u64, PerCoreWalError> {
        self.wal.validate()?;
        repair_segments(self.wal.vfs(), &self.wal.base_dir)
    }

    /// Facts about every segment, by core, oldest first.
    ///
    /// # Errors
    /// As [`Self::recover`].
    pub fn segment_stats(&self) -> Result<Vec<SegmentStats>, PerCoreWalError> {
        Ok(segment_stats(&self.survey()?))
    }

    fn survey(&self) -> Result<Survey, PerCoreWalError> {
        self.wal.validate()?;
        Survey::whole(self.wal.vfs(), &self.wal.base_dir, &[])
    }
}

/// Recovers the newest checkpoint and every valid synced record of a log of `cores` cores.
///
/// # Errors
/// As [`PerCoreRecoveryManager::recover`].
pub fn recover_per_core(
    wal_dir: &Path,
    checkpoint_dir: &Path,
    cores: usize,
) -> Result<PerCoreRecoveredState, PerCoreWalError> {
    let wal = PerCoreWalConfig::new(wal_dir, cores);
    PerCoreRecoveryManager::new(wal, RecoveryConfig::new(checkpoint_dir, wal_dir)).recover()
}
