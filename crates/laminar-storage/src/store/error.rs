//! What can go wrong with a store.

use crate::error::Detail;
use crate::incremental::IncrementalCheckpointError;
use crate::incremental::recovery::locate::Failure;
use crate::per_core_wal::PerCoreWalError;
use crate::ring0::Ring0Error;

/// Failure of a store. The variant is for programs, the [`Detail`] for people.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
    #[error("{0}")]
    Io(Box<Detail>),
    /// Something on disk is not what was written. Nothing was changed.
    #[error("{0}")]
    Corruption(Box<Detail>),
    /// The directory is in use by this or another process.
    #[error("{0}")]
    Locked(Box<Detail>),
    /// Written by a later version of the format.
    #[error("{0}")]
    NewerFormat(Box<Detail>),
    /// A setting, key, value, name or epoch is outside its bounds. Nothing was changed.
    #[error("{0}")]
    InvalidInput(Box<Detail>),
    /// Ring 1 is behind: the changelog ring is full. Nothing was changed; try again.
    #[error("{0}")]
    Backpressure(Box<Detail>),
    /// The core's state has reached the limit set for it, or the system gives no more memory.
    /// Nothing was changed.
    #[error("{0}")]
    StateFull(Box<Detail>),
    /// An earlier write or sync failed; this is that first cause. Reads still work; reopen to recover
    /// from disk.
    #[error("{0}")]
    Poisoned(Box<Detail>),
    /// The store was closed, or a core was dropped, so that this can never happen any more.
    #[error("{0}")]
    Closed(Box<Detail>),
}

const _: () = assert!(size_of::<StoreError>() <= 16);

impl StoreError {
    /// What happened, where, and what to do.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Io(d)
            | Self::Corruption(d)
            | Self::Locked(d)
            | Self::NewerFormat(d)
            | Self::InvalidInput(d)
            | Self::Backpressure(d)
            | Self::StateFull(d)
            | Self::Poisoned(d)
            | Self::Closed(d) => d,
        }
    }

    /// True when the same call may succeed later without any other action.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Backpressure(_) | Self::Locked(_))
    }

    /// True when data on disk is not what was written.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corruption(_))
    }

    pub(crate) fn invalid(detail: Detail) -> Self {
        Self::InvalidInput(Box::new(detail))
    }

    pub(crate) fn closed(detail: Detail) -> Self {
        Self::Closed(Box::new(detail))
    }

    pub(crate) fn corruption(detail: Detail) -> Self {
        Self::Corruption(Box::new(detail))
    }

    /// The error that every later call returns once `self` has poisoned the store.
    pub(crate) fn poison(&self) -> Self {
        Self::Poisoned(Box::new(self.detail().clone()))
    }

    pub(crate) fn of_ring0(error: &Ring0Error, core: crate::ids::CoreId) -> Self {
        let detail = Detail::new(error.to_string()).on_core(core);
        match error {
            Ring0Error::RingFull => Self::Backpressure(Box::new(
                detail.remedy("Try again shortly, or use put, which waits; nothing was changed."),
            )),
            Ring0Error::StateFull { .. } => Self::StateFull(Box::new(
                detail.remedy("Raise settings.state_limit_bytes or use more cores; nothing was changed."),
            )),
            Ring0Error::Memory(_) => Self::StateFull(Box::new(
                detail.remedy(
                    "Free memory, allow more address space (`ulimit -v`) or set a lower settings.state_limit_bytes; \
                     nothing was changed.",
                ),
            )),
            Ring0Error::KeyTooLong(_) | Ring0Error::ValueTooLong(_) => Self::InvalidInput(Box::new(
                detail.remedy("Keys may have 65,535 bytes, values 16 MiB; nothing was changed."),
            )),
            Ring0Error::EpochPassed { .. } => {
                Self::InvalidInput(Box::new(detail.remedy("Seal the current epoch or a later one.")))
            }
            Ring0Error::NotQuiet => {
                Self::InvalidInput(Box::new(detail.remedy("Report this and try again; nothing was changed.")))
            }
        }
    }
}

impl From<PerCoreWalError> for StoreError {
    fn from(error: PerCoreWalError) -> Self {
        let detail = Box::new(error.detail().clone());
        match error {
            PerCoreWalError::Io(_) => Self::Io(detail),
            PerCoreWalError::Locked(_) => Self::Locked(detail),
            PerCoreWalError::NewerFormat(_) => Self::NewerFormat(detail),
            PerCoreWalError::Poisoned(_) => Self::Poisoned(detail),
            PerCoreWalError::InvalidCore(_)
            | PerCoreWalError::InvalidInput(_)
            | PerCoreWalError::EpochMismatch(_) => Self::InvalidInput(detail),
            PerCoreWalError::ChecksumMismatch(_)
            | PerCoreWalError::TornWrite(_)
            | PerCoreWalError::Corrupted(_)
            | PerCoreWalError::SegmentNotFound(_)
            | PerCoreWalError::Checkpoint(_) => Self::Corruption(detail),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Checkpoint(error) => error.into(),
            Failure::Log(error) => error.into(),
        }
    }
}

impl From<IncrementalCheckpointError> for StoreError {
    fn from(error: IncrementalCheckpointError) -> Self {
        let detail = Box::new(error.detail().clone());
        match error {
            IncrementalCheckpointError::Io(_) => Self::Io(detail),
            IncrementalCheckpointError::UnsupportedVersion(_) => Self::NewerFormat(detail),
            IncrementalCheckpointError::Poisoned(_) => Self::Poisoned(detail),
            IncrementalCheckpointError::Backpressure(_) => Self::Backpressure(detail),
            IncrementalCheckpointError::InvalidConfig(_)
            | IncrementalCheckpointError::AlreadyExists(_)
            | IncrementalCheckpointError::EpochMismatch(_) => Self::InvalidInput(detail),
            IncrementalCheckpointError::Corruption(_)
            | IncrementalCheckpointError::ChecksumMismatch(_)
            | IncrementalCheckpointError::NotFound(_) => Self::Corruption(detail),
        }
    }
}
