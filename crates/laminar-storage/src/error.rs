//! What every error of the crate carries: what happened, where, and what to do now.
//!
//! The error enums of the modules (`incremental::IncrementalCheckpointError`,
//! `per_core_wal::PerCoreWalError`, `store::StoreError`) say *which kind* of
//! failure it is, so that a program can branch on it; the boxed [`Detail`] inside says the rest to
//! a person.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::{CoreId, Epoch};

/// What happened, where, and what to do now.
///
/// Displayed as one sentence each: `path at offset (core, epoch): what. Remedy`.
#[derive(Clone, Debug)]
pub struct Detail {
    what: Cow<'static, str>,
    path: Option<PathBuf>,
    core: Option<CoreId>,
    offset: Option<u64>,
    epoch: Option<Epoch>,
    remedy: Cow<'static, str>,
    source: Option<Arc<io::Error>>,
}

impl Detail {
    /// Starts a detail with what happened, without a full stop.
    #[must_use]
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            path: None,
            core: None,
            offset: None,
            epoch: None,
            remedy: Cow::Borrowed(""),
            source: None,
        }
    }

    /// Names the file or directory.
    #[must_use]
    pub fn at_path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_path_buf());
        self
    }

    /// Names the core.
    #[must_use]
    pub fn on_core(mut self, core: CoreId) -> Self {
        self.core = Some(core);
        self
    }

    /// Names the byte offset in the file.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Names the epoch.
    #[must_use]
    pub fn in_epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// Says what to do now, as a full sentence.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Keeps the operating system's error.
    #[must_use]
    pub fn caused_by(mut self, source: io::Error) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What happened.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The file or directory, where one is concerned.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The core, where one is concerned.
    #[must_use]
    pub fn core(&self) -> Option<CoreId> {
        self.core
    }

    /// The byte offset in the file, where one is known.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The epoch, where one is concerned.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The operating system's error behind it, if any.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        self.source.as_deref()
    }

    /// True when the file system, or what this user may have of it, is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        let full = |error: &io::Error| is_full(error.kind());
        self.io_error().is_some_and(full)
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}", path.display())?;
            if let Some(offset) = self.offset {
                write!(f, " at {offset}")?;
            }
        }
        // Without a path, the place stands alone.
        let [open, close] = if self.path.is_some() { [" (", ")"] } else { ["", ""] };
        match (self.core, self.epoch) {
            (Some(core), Some(epoch)) => write!(f, "{open}core {core}, epoch {epoch}{close}")?,
            (Some(core), None) => write!(f, "{open}core {core}{close}")?,
            (None, Some(epoch)) => write!(f, "{open}epoch {epoch}{close}")?,
            (None, None) => {}
        }
        if self.path.is_some() || self.core.is_some() || self.epoch.is_some() {
            f.write_str(": ")?;
        }
        f.write_str(&self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        f.write_str(".")?;
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Detail {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Shorthand for the detail of a failed file operation.
pub(crate) fn io_detail(action: &'static str, path: &Path, source: io::Error) -> Detail {
    let too_many =
        [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    let remedy = match source.kind() {
        _ if too_many.contains(&source.raw_os_error()) => {
            "Raise the limit of open files (`ulimit -n`; about 100 for each core are enough), then open again; \
             nothing acknowledged is lost"
        }
        io::ErrorKind::PermissionDenied => "Give this user read and write permission, then open again",
        full if is_full(full) => {
            "Free space on this file system, then open again; nothing acknowledged is lost"
        }
        io::ErrorKind::FileTooLarge => {
            "Raise the limit of the size of files (`ulimit -f`, or of the file system), then open again; nothing \
             acknowledged is lost"
        }
        io::ErrorKind::ReadOnlyFilesystem => "Mount the file system writable, then open again",
        io::ErrorKind::NotFound => "Check the path",
        _ => "Check the device and the system log, then open again",
    };
    Detail::new(action).at_path(path).caused_by(source).remedy(format!("{remedy}."))
}
