//! Cutting torn tails off segment files.
//!
//! Recovery never needs this: it passes torn tails over, and never appends behind them. It is for
//! those who want the files themselves to end where their records end.

use std::path::Path;
use std::sync::Arc;

use super::survey::Survey;
use crate::ids::Sequence;
use crate::per_core_wal::PerCoreWalConfig;
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::manager::lock_directory;
use crate::vfs::{Access, Vfs};

/// Cuts every torn tail of a log, durably; returns how many bytes that was. The log is looked at under
/// its lock: what a writer is just appending looks torn, too.
pub(crate) fn repair_segments(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<u64, PerCoreWalError> {
    let io = |e| PerCoreWalError::io("could not look at the log directory", dir, e);
    if vfs.kind(dir).map_err(io)?.is_none() {
        return Ok(0);
    }
    let _lock = lock_directory(&PerCoreWalConfig::new(dir, 1).with_vfs(Arc::clone(vfs)))?;
    let survey = Survey::of(vfs, dir, &|_| Sequence::ZERO)?;
    let torn = || survey.cores.iter().flat_map(|log| &log.segments).filter(|segment| segment.dropped > 0);
    let mut cut = 0;
    for segment in torn() {
        let io = |e| PerCoreWalError::io("could not cut the torn end off", &segment.path, e);
        let file = vfs.open(&segment.path, Access::ReadWrite).map_err(io)?;
        file.set_len(segment.len).map_err(io)?;
        file.sync_data().map_err(io)?;
        cut += segment.dropped;
    }
    Ok(cut)
}
