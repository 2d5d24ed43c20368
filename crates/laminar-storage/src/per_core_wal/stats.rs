//! Sizes and counts of a log.

use std::path::{Path, PathBuf};

use super::error::PerCoreWalError;
use super::recovery::survey::Survey;
use super::segment::SegmentName;
use crate::vfs::{FileKind, Vfs};

/// Facts about one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentStats {
    /// Whose segment.
    pub core_id: usize,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file in bytes, with what was written ahead, or an earlier segment left in it.
    pub file_size: u64,
    /// Records in it, bookkeeping of the log included.
    pub entry_count: u64,
    /// Smallest epoch of a record; 0 without records.
    pub min_epoch: u64,
    /// Largest epoch of a record; 0 without records.
    pub max_epoch: u64,
}

/// Facts about every surveyed segment, by core, oldest first.
pub(crate) fn segment_stats(survey: &Survey) -> Vec<SegmentStats> {
    let segments = survey.cores.iter().flat_map(|log| &log.segments);
    segments
        .map(|segment| SegmentStats {
            core_id: segment.header.core.index(),
            path: segment.path.clone(),
            file_size: segment.file_len,
            entry_count: segment.records,
            min_epoch: segment.min_epoch.0,
            max_epoch: segment.max_epoch.0,
        })
        .collect()
}

/// Bytes of all segments in a directory.
pub(crate) fn total_size(vfs: &dyn Vfs, dir: &Path) -> Result<u64, PerCoreWalError> {
    let entries =
        vfs.read_dir(dir).map_err(|e| PerCoreWalError::io("could not list the log directory", dir, e))?;
    let sizes = entries.iter().filter_map(|(name, kind)| match kind {
        FileKind::File { len } if SegmentName::parse(name).is_some() => Some(*len),
        _ => None,
    });
    Ok(sizes.sum())
}
