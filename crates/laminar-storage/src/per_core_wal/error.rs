//! What can go wrong with a log.

use crate::error::{Detail, io_detail};
use std::io;
use std::path::Path;

/// Failure of the per-core write-ahead log. The variant is for programs, the [`Detail`] for people.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PerCoreWalError {
    /// A file operation failed.
    #[error("{0}")]
    Io(Box<Detail>),
    /// Bytes do not match their checksum.
    #[error("{0}")]
    ChecksumMismatch(Box<Detail>),
    /// The log ends inside a write. Normal after a crash, an error only where a whole log is required.
    #[error("{0}")]
    TornWrite(Box<Detail>),
    /// Something that was durable is missing, changed or contradicts itself.
    #[error("{0}")]
    Corrupted(Box<Detail>),
    /// A core number outside the log's cores, or a log with another number of cores.
    #[error("{0}")]
    InvalidCore(Box<Detail>),
    /// A segment that must be there is not.
    #[error("{0}")]
    SegmentNotFound(Box<Detail>),
    /// An epoch that would go backwards.
    #[error("{0}")]
    EpochMismatch(Box<Detail>),
    /// A key, value, name or setting is outside its bounds.
    #[error("{0}")]
    InvalidInput(Box<Detail>),
    /// The directory is in use by this or another process.
    #[error("{0}")]
    Locked(Box<Detail>),
    /// Written by a later version of the format.
    #[error("{0}")]
    NewerFormat(Box<Detail>),
    /// An earlier write or sync failed; this is that first cause. Reopen to recover from disk.
    #[error("{0}")]
    Poisoned(Box<Detail>),
    /// The checkpoint side failed.
    #[error("{0}")]
    Checkpoint(Box<Detail>),
}

const _: () = assert!(size_of::<PerCoreWalError>() <= 16);

impl PerCoreWalError {
    /// What happened, where, and what to do.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Io(d)
            | Self::ChecksumMismatch(d)
            | Self::TornWrite(d)
            | Self::Corrupted(d)
            | Self::InvalidCore(d)
            | Self::SegmentNotFound(d)
            | Self::EpochMismatch(d)
            | Self::InvalidInput(d)
            | Self::Locked(d)
            | Self::NewerFormat(d)
            | Self::Poisoned(d)
            | Self::Checkpoint(d) => d,
        }
    }

    /// True when the same call may succeed later without any other action.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Locked(_))
    }

    /// True when data on disk is not what was written.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(
            self,
            Self::ChecksumMismatch(_) | Self::TornWrite(_) | Self::Corrupted(_) | Self::SegmentNotFound(_)
        )
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io(Box::new(io_detail(action, path, source)))
    }

    pub(crate) fn corrupted(detail: Detail) -> Self {
        Self::Corrupted(Box::new(detail))
    }

    pub(crate) fn invalid(detail: Detail) -> Self {
        Self::InvalidInput(Box::new(detail))
    }

    /// The error that every later call returns once `self` has poisoned a writer.
    pub(crate) fn poison(&self) -> Self {
        Self::Poisoned(Box::new(self.detail().clone()))
    }
}
