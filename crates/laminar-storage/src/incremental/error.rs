//! What can go wrong with checkpoints.

use std::io;

use crate::error::{Detail, io_detail};
use crate::format::FORMAT_VERSION;
use crate::format::state_file::Fault;
use std::path::Path;

/// Why a checkpoint operation failed: the kind to branch on, and the [`Detail`] for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncrementalCheckpointError {
    /// The operating system refused an operation.
    #[error("{0}")]
    Io(Box<Detail>),
    /// Bytes, a file, or a directory are not what they must be.
    #[error("{0}")]
    Corruption(Box<Detail>),
    /// There is no such checkpoint.
    #[error("{0}")]
    NotFound(Box<Detail>),
    /// A setting or an argument cannot be used.
    #[error("{0}")]
    InvalidConfig(Box<Detail>),
    /// The checkpoint id is used already.
    #[error("{0}")]
    AlreadyExists(Box<Detail>),
    /// The epoch does not fit what is there already.
    #[error("{0}")]
    EpochMismatch(Box<Detail>),
    /// Bytes do not match their checksum.
    #[error("{0}")]
    ChecksumMismatch(Box<Detail>),
    /// There is no room now; the same call can succeed later.
    #[error("{0}")]
    Backpressure(Box<Detail>),
    /// An earlier failure stopped the manager; the detail holds that first cause.
    #[error("{0}")]
    Poisoned(Box<Detail>),
    /// Written by a newer version of this library.
    #[error("{0}")]
    UnsupportedVersion(Box<Detail>),
}

const _: () = assert!(size_of::<IncrementalCheckpointError>() <= 16);

impl IncrementalCheckpointError {
    /// What happened, where, and what to do.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Io(detail)
            | Self::Corruption(detail)
            | Self::NotFound(detail)
            | Self::InvalidConfig(detail)
            | Self::AlreadyExists(detail)
            | Self::EpochMismatch(detail)
            | Self::ChecksumMismatch(detail)
            | Self::Backpressure(detail)
            | Self::Poisoned(detail)
            | Self::UnsupportedVersion(detail) => detail,
        }
    }

    /// True when the same call can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Backpressure(_) => true,
            Self::Io(detail) => detail.io_error().is_some_and(|e| {
                matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::ResourceBusy
                )
            }),
            _ => false,
        }
    }

    /// True when what is on disk is not what was written.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corruption(_) | Self::ChecksumMismatch(_))
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io(Box::new(io_detail(action, path, source)))
    }

    pub(crate) fn corruption(detail: Detail) -> Self {
        Self::Corruption(Box::new(with_remedy(detail)))
    }

    pub(crate) fn invalid(detail: Detail) -> Self {
        Self::InvalidConfig(Box::new(detail))
    }

    /// Turns a decoder's verdict into an error; `place` says where the bytes came from.
    pub(crate) fn from_fault(fault: &Fault, place: Detail) -> Self {
        match fault {
            Fault::Damaged(what) => Self::corruption(restate(&place, *what)),
            Fault::Checksum { what, stored, computed } => {
                let said = format!("{what} checksum {stored:#010x} stored, {computed:#010x} computed");
                Self::ChecksumMismatch(Box::new(with_remedy(restate(&place, said))))
            }
            Fault::NewerVersion { found } => Self::newer_version(*found, restate(&place, "")),
            Fault::Foreign { found } => Self::corruption(restate(
                &place,
                format!(
                    "a foreign file: it says it is part {} of core {} of checkpoint {:016x} of store {:016x}",
                    found.part,
                    found.core,
                    found.checkpoint.get(),
                    found.store_id.get()
                ),
            )),
        }
    }

    /// Says that bytes are from a later version; both versions are named.
    pub(crate) fn newer_version(found: u32, place: Detail) -> Self {
        let said = format!("format version {found}, this library reads up to version {FORMAT_VERSION}");
        Self::UnsupportedVersion(Box::new(
            restate(&place, said).remedy("Open it with the version of laminar-storage that wrote it."),
        ))
    }
}

/// The same place with other words.
fn restate(place: &Detail, what: impl Into<std::borrow::Cow<'static, str>>) -> Detail {
    let mut detail = Detail::new(what);
    if let Some(path) = place.path() {
        detail = detail.at_path(path);
    }
    if let Some(core) = place.core() {
        detail = detail.on_core(core);
    }
    if let Some(offset) = place.offset() {
        detail = detail.at_offset(offset);
    }
    if let Some(epoch) = place.epoch() {
        detail = detail.in_epoch(epoch);
    }
    detail
}

fn with_remedy(detail: Detail) -> Detail {
    detail.remedy("Run 'laminar verify', and recover from an older checkpoint or from a copy.")
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        let path = Path::new("/x");
        let busy = IncrementalCheckpointError::io("lock", path, io::ErrorKind::WouldBlock.into());
        assert!(busy.is_transient() && !busy.is_corruption());
        let full = IncrementalCheckpointError::io("write", path, io::ErrorKind::StorageFull.into());
        assert!(!full.is_transient());
        let rotten = IncrementalCheckpointError::corruption(Detail::new("rotten").at_path(path));
        assert!(rotten.is_corruption() && !rotten.is_transient());
        assert!(rotten.to_string().starts_with("/x: rotten. Run 'laminar verify'"));
        assert_eq!(rotten.detail().path(), Some(path));
    }
}
