//! What can go wrong with a backup.

use std::path::Path;

use crate::error::{Detail, io_detail};
use crate::incremental::IncrementalCheckpointError;

/// The result of everything here that can fail.
pub(super) type Result<T> = std::result::Result<T, BackupError>;

/// Failure of a backup or of a restore. None of them harms the store that is backed up, nor any backup that is
/// there. The variant is for programs, the [`Detail`] for people.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The object store did not answer, or with an error that may pass, as often as it was asked.
    #[error("{0}")]
    Unreachable(Box<Detail>),
    /// The object store understood and said no: permission, credentials, or an operation that it does not have.
    #[error("{0}")]
    Refused(Box<Detail>),
    /// Another opening of the store has taken the backups over. This one writes none any more.
    #[error("{0}")]
    Fenced(Box<Detail>),
    /// The backups at this place are those of another store.
    #[error("{0}")]
    Foreign(Box<Detail>),
    /// There is no such backup.
    #[error("{0}")]
    NotFound(Box<Detail>),
    /// What is in the object store is not what was written.
    #[error("{0}")]
    Corruption(Box<Detail>),
    /// A URL, a path or an option that cannot be used. Nothing was changed.
    #[error("{0}")]
    InvalidInput(Box<Detail>),
    /// A local file could not be read or written, or is damaged.
    #[error("{0}")]
    Local(Box<Detail>),
    /// It was asked to stop.
    #[error("{0}")]
    Stopped(Box<Detail>),
}

const _: () = assert!(size_of::<BackupError>() <= 16);

impl BackupError {
    /// What happened, where, and what to do.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Unreachable(d)
            | Self::Refused(d)
            | Self::Fenced(d)
            | Self::Foreign(d)
            | Self::NotFound(d)
            | Self::Corruption(d)
            | Self::InvalidInput(d)
            | Self::Local(d)
            | Self::Stopped(d) => d,
        }
    }

    /// True when the same backup may succeed later without any other action.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// True when there is no point in this writer trying again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Fenced(_) | Self::Foreign(_) | Self::InvalidInput(_))
    }

    pub(super) fn corruption(what: impl Into<std::borrow::Cow<'static, str>>, object: &str) -> Self {
        let remedy = "Restore an older backup (`laminar backups URL --verify` says which are whole), and make a new one that relies \
                      on none of them: `laminar backup --full`, BackupOptions::send_all. Where a job makes them, remove this object: \
                      the next backup sends its file again.";
        Self::Corruption(Box::new(Detail::new(what).at_path(object).remedy(remedy)))
    }

    pub(super) fn invalid(
        what: impl Into<std::borrow::Cow<'static, str>>,
        place: impl AsRef<Path>,
        remedy: &'static str,
    ) -> Self {
        Self::InvalidInput(Box::new(Detail::new(what).at_path(place).remedy(remedy)))
    }

    /// A local file operation failed.
    pub(super) fn local(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |e| {
            let detail = io_detail(action, path, e);
            let remedy = if detail.is_out_of_space() {
                "Free space on this file system, then run it again: it goes on where it stopped."
            } else {
                "Remove the cause, then run it again: it goes on where it stopped."
            };
            Self::Local(Box::new(detail.remedy(remedy)))
        }
    }
}

impl From<IncrementalCheckpointError> for BackupError {
    fn from(error: IncrementalCheckpointError) -> Self {
        Self::Local(Box::new(error.detail().clone()))
    }
}
