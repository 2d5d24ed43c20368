//! Why a segment is refused, in words.

use std::path::Path;

use super::cases::Case;
use crate::error::Detail;
use crate::format::segment_header::SegmentHeader;
use crate::ids::{CoreId, Epoch};
use crate::per_core_wal::error::PerCoreWalError;

pub(super) fn refused(
    case: &Case,
    path: &Path,
    offset: u64,
    core: CoreId,
    epoch: Epoch,
    what: &str,
) -> PerCoreWalError {
    let mut detail = Detail::new(format!("case {}: {}{what}", case.label, case.meaning))
        .at_path(path)
        .at_offset(offset)
        .on_core(core)
        .remedy(
            "This is damage, not a crash: restore the file from a copy, or read what is left with \
             PerCoreWalReader. Nothing was changed.",
        );
    if epoch != Epoch::ZERO {
        detail = detail.in_epoch(epoch);
    }
    if case.label == 'F' {
        return PerCoreWalError::SegmentNotFound(Box::new(detail));
    }
    PerCoreWalError::corrupted(detail)
}

pub(super) fn foreign(path: &Path, header: &SegmentHeader) -> PerCoreWalError {
    PerCoreWalError::corrupted(
        Detail::new(format!("this segment belongs to another log ({:016x})", header.store_id.0))
            .at_path(path)
            .at_offset(0)
            .on_core(header.core)
            .remedy("Put back the file that belongs here; nothing was changed."),
    )
}
