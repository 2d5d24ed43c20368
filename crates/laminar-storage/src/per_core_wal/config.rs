//! Where a log lives and how it is cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::PerCoreWalError;
use crate::error::Detail;
use crate::format::MAX_CORES;
use crate::format::segment_header::SEGMENT_HEADER_LEN;
use crate::vfs::{OsVfs, Vfs, absolute};

/// Where a log lives, how many cores it has, and how it is cut into segments.
///
/// ```
/// use laminar_storage::per_core_wal::PerCoreWalConfig;
/// let config = PerCoreWalConfig::new("/data/wal".as_ref(), 4).with_segment_size(8 << 20);
/// assert_eq!(config.num_cores, 4);
/// ```
#[derive(Clone, Debug)]
pub struct PerCoreWalConfig {
    /// Directory of the segments, made absolute; created when missing.
    pub base_dir: PathBuf,
    /// Number of cores, at least 1.
    pub num_cores: usize,
    /// A segment is closed once it is this many bytes long. Default 64 MiB, at least 4 KiB.
    pub segment_size: u64,
    /// Bytes of every new segment that are written with zeros and synced ahead, so that later syncs
    /// have no metadata to write. Default 0, at most [`Self::segment_size`].
    pub preallocation: u64,
    vfs: Arc<dyn Vfs>,
}

impl PerCoreWalConfig {
    /// A log of `cores` cores in `base_dir`, with the default settings.
    #[must_use]
    pub fn new(base_dir: &Path, cores: usize) -> Self {
        Self {
            base_dir: absolute(base_dir),
            num_cores: cores,
            segment_size: 64 << 20,
            preallocation: 0,
            vfs: Arc::new(OsVfs::new()),
        }
    }

    /// Sets [`Self::segment_size`].
    #[must_use]
    pub fn with_segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = bytes;
        self
    }

    /// Sets [`Self::preallocation`].
    #[must_use]
    pub fn with_preallocation(mut self, bytes: u64) -> Self {
        self.preallocation = bytes;
        self
    }

    /// Uses another outside world than the operating system: the I/O backend, or a simulated disk.
    #[must_use]
    pub fn with_vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// The outside world in use.
    #[must_use]
    pub fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    /// Checks every setting against its bounds.
    ///
    /// # Errors
    /// [`PerCoreWalError::InvalidInput`] naming the setting, its value and the bound.
    pub fn validate(&self) -> Result<(), PerCoreWalError> {
        let refuse = |what: String, remedy: &'static str| {
            Err(PerCoreWalError::invalid(Detail::new(what).at_path(&self.base_dir).remedy(remedy)))
        };
        if self.num_cores == 0 || self.num_cores > MAX_CORES {
            return refuse(
                format!("num_cores is {}, must be 1..={MAX_CORES}", self.num_cores),
                "Use one core per thread that owns state.",
            );
        }
        // Offsets in frames are kept in units of 8 bytes in 32 bits, with room for one last frame.
        let (min, max) = (4096.max(SEGMENT_HEADER_LEN as u64), 16 << 30);
        if self.segment_size < min || self.segment_size > max {
            return refuse(
                format!("segment_size is {}, must be {min}..={max}", self.segment_size),
                "64 MiB suits most.",
            );
        }
        if self.preallocation > self.segment_size {
            return refuse(
                format!(
                    "preallocation is {}, must be at most segment_size, {}",
                    self.preallocation, self.segment_size
                ),
                "Lower it, or leave it out.",
            );
        }
        Ok(())
    }
}
