//! What can go wrong with a job.

use laminar_storage::StoreError;
use laminar_storage::error::Detail;

/// Failure of a job. The variant is for programs, the [`Detail`] for people: what happened, where, and what to do now.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, name or call is not one that can be used. Nothing was changed.
    #[error("{0}")]
    Config(Box<Detail>),
    /// The processes did not find each other in time, or are not those of one job.
    #[error("{0}")]
    Connect(Box<Detail>),
    /// What the processes have on disk does not make one job. Nothing was changed.
    #[error("{0}")]
    Disagreement(Box<Detail>),
    /// A file operation failed.
    #[error("{0}")]
    Io(Box<Detail>),
    /// A sink failed, or is ahead of the state.
    #[error("{0}")]
    Sink(Box<Detail>),
    /// A worker thread ended before it was done.
    #[error("{0}")]
    Worker(Box<Detail>),
    /// What was read back from the state cannot be decoded.
    #[error("{0}")]
    Decode(Box<Detail>),
    /// Reported by the program itself.
    #[error("{0}")]
    Program(Box<Detail>),
    /// A worker's store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A backup failed, or what is in an object store is not a backup of a job.
    #[cfg(feature = "object-store")]
    #[error("{0}")]
    Backup(#[from] laminar_storage::backup::BackupError),
}

impl Error {
    /// What happened, where, and what to do.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Config(d)
            | Self::Connect(d)
            | Self::Disagreement(d)
            | Self::Io(d)
            | Self::Sink(d)
            | Self::Worker(d)
            | Self::Decode(d)
            | Self::Program(d) => d,
            Self::Store(error) => error.detail(),
            #[cfg(feature = "object-store")]
            Self::Backup(error) => error.detail(),
        }
    }

    /// An error of the program that uses the library, to be returned from what it runs on a worker.
    #[must_use]
    pub fn program(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Program(Box::new(Detail::new(what.into()).remedy(remedy.into())))
    }

    pub(crate) fn config(detail: Detail) -> Self {
        Self::Config(Box::new(detail))
    }

    pub(crate) fn connect(detail: Detail) -> Self {
        Self::Connect(Box::new(detail))
    }

    pub(crate) fn disagreement(detail: Detail) -> Self {
        Self::Disagreement(Box::new(detail))
    }

    pub(crate) fn sink(detail: Detail) -> Self {
        Self::Sink(Box::new(detail))
    }

    pub(crate) fn worker(detail: Detail) -> Self {
        Self::Worker(Box::new(detail))
    }

    pub(crate) fn decode(detail: Detail) -> Self {
        Self::Decode(Box::new(detail))
    }

    pub(crate) fn io(what: &'static str, path: &std::path::Path, error: std::io::Error) -> Self {
        let what = format!("{what}: {error}");
        Self::Io(Box::new(
            Detail::new(what)
                .at_path(path)
                .caused_by(error)
                .remedy("Look at the device and at who may write there, then start again."),
        ))
    }
}
