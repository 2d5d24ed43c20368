//! The small files beside the segments: which incarnation is established, how far the log was acknowledged when
//! it was last closed in order, and how far it was synced.

use std::path::Path;

use crate::format::MAX_CORES;
use crate::format::closed::{CLOSED_LEN, Closed};
use crate::format::current::{CURRENT_LEN, Current, CurrentFault};
use crate::format::segment_header::HeaderFault;
use crate::format::synced::{SLOT_LEN, Synced};
use crate::ids::{Epoch, StoreId};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::reader::header_error;
use crate::vfs::{Vfs, read_small_file};

/// Name of the file that names the established incarnation.
pub(crate) const CURRENT: &str = "CURRENT";
/// Name of the file that names the last epoch acknowledged before an orderly end.
pub(crate) const CLOSED: &str = "CLOSED";

/// Name of the file that says how far every core's newest segment was synced.
pub(crate) const SYNCED: &str = "SYNCED";

/// Reads `CURRENT`. A damaged one is as good as none: what it says is also in the headers of the
/// segments, and losing it alone loses nothing.
pub(crate) fn read_current(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Current>, PerCoreWalError> {
    let path = dir.join(CURRENT);
    let bytes = match read_small_file(vfs, &path, CURRENT_LEN as u64 * 16) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData) => {
            return Ok(None);
        }
        Err(e) => return Err(PerCoreWalError::io("could not read the log's identity", &path, e)),
    };
    match Current::decode(&bytes) {
        Ok(current) => Ok(Some(current)),
        Err(CurrentFault::Damaged) => {
            tracing::warn!(path = %path.display(), "damaged; going by the segment headers instead");
            Ok(None)
        }
        Err(CurrentFault::Newer { version }) => Err(header_error(&path, HeaderFault::Newer { version })),
    }
}

/// Reads `CLOSED`. One that is missing, damaged or of another log proves nothing.
pub(crate) fn read_closed(
    vfs: &dyn Vfs,
    dir: &Path,
    store_id: Option<StoreId>,
) -> Result<Epoch, PerCoreWalError> {
    let path = dir.join(CLOSED);
    let bytes = match read_small_file(vfs, &path, CLOSED_LEN as u64) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData) => {
            return Ok(Epoch::ZERO);
        }
        Err(e) => return Err(PerCoreWalError::io("could not read how the log ended", &path, e)),
    };
    let closed = Closed::decode(&bytes).filter(|closed| Some(closed.store_id) == store_id);
    Ok(closed.map_or(Epoch::ZERO, |closed| closed.epoch))
}

/// Reads `SYNCED`. Slots that are missing or damaged prove nothing.
pub(crate) fn read_synced(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<Synced>, PerCoreWalError> {
    let path = dir.join(SYNCED);
    match read_small_file(vfs, &path, (MAX_CORES * SLOT_LEN) as u64) {
        Ok(bytes) => Ok(Synced::decode_all(&bytes).collect()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData) => {
            Ok(Vec::new())
        }
        Err(e) => Err(PerCoreWalError::io("could not read how far the log was synced", &path, e)),
    }
}
