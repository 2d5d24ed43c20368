//! Where checkpoints go, when they are due, and how many are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::IncrementalCheckpointError;
use crate::error::Detail;
use crate::format::compression::Compression;
use crate::vfs::absolute;

/// Settings of checkpoints. Plain values: nothing happens before a manager is opened with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The directory of the checkpoints; created when missing.
    pub checkpoint_dir: PathBuf,
    /// The write-ahead log, a file or the directory of the segments. Only its size is looked at,
    /// to know when a checkpoint is due.
    pub wal_path: Option<PathBuf>,
    /// A checkpoint is due this long after the last one, or after opening. Default: 60 s.
    pub interval: Duration,
    /// How many checkpoints are kept, at least 1. Default: 3.
    pub max_retained: usize,
    /// Whether the coordinator may remove WAL that no retained checkpoint needs. Default: yes.
    pub truncate_wal: bool,
    /// A checkpoint is due before its time once the WAL has this many bytes. Default: 64 MiB.
    pub min_wal_size_for_checkpoint: u64,
    /// Whether a checkpoint writes only what changed. When not, each rewrites everything.
    /// Default: yes.
    pub incremental: bool,
    /// How state files are compressed. Default: not at all.
    pub compression: Compression,
}

impl CheckpointConfig {
    /// The default settings with checkpoints in `checkpoint_dir`.
    #[must_use]
    pub fn new(checkpoint_dir: &Path) -> Self {
        Self {
            checkpoint_dir: absolute(checkpoint_dir),
            wal_path: None,
            interval: Duration::from_secs(60),
            max_retained: 3,
            truncate_wal: true,
            min_wal_size_for_checkpoint: 64 << 20,
            incremental: true,
            compression: Compression::None,
        }
    }

    /// Sets [`Self::wal_path`].
    #[must_use]
    pub fn with_wal_path(mut self, path: &Path) -> Self {
        self.wal_path = Some(absolute(path));
        self
    }

    /// Sets [`Self::interval`].
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets [`Self::max_retained`].
    #[must_use]
    pub fn with_max_retained(mut self, max: usize) -> Self {
        self.max_retained = max;
        self
    }

    /// Sets [`Self::truncate_wal`].
    #[must_use]
    pub fn with_truncate_wal(mut self, enabled: bool) -> Self {
        self.truncate_wal = enabled;
        self
    }

    /// Sets [`Self::min_wal_size_for_checkpoint`].
    #[must_use]
    pub fn with_min_wal_size(mut self, bytes: u64) -> Self {
        self.min_wal_size_for_checkpoint = bytes;
        self
    }

    /// Sets [`Self::incremental`].
    #[must_use]
    pub fn with_incremental(mut self, enabled: bool) -> Self {
        self.incremental = enabled;
        self
    }

    /// Sets [`Self::compression`].
    #[must_use]
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Checks that the settings make sense together.
    ///
    /// # Errors
    /// `InvalidConfig`, naming the field, its value, and the bound.
    pub fn validate(&self) -> Result<(), IncrementalCheckpointError> {
        let remedy = "Correct it and open again; nothing was changed.";
        let refuse =
            |what: String| Err(IncrementalCheckpointError::invalid(Detail::new(what).remedy(remedy)));
        if self.checkpoint_dir.as_os_str().is_empty() {
            return refuse("checkpoint_dir is empty, it must name a directory".into());
        }
        if self.max_retained == 0 {
            return refuse("max_retained is 0, it must be at least 1".into());
        }
        if self.interval.is_zero() {
            return refuse("interval is 0 s, it must be more than 0 s".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_as_documented_and_valid() {
        let config = CheckpointConfig::new(Path::new("/c"));
        assert_eq!(config.interval, Duration::from_secs(60));
        assert_eq!(config.max_retained, 3);
        assert!(config.truncate_wal && config.incremental);
        assert_eq!(config.min_wal_size_for_checkpoint, 64 * 1024 * 1024);
        config.validate().unwrap();
    }

    #[test]
    fn a_refusal_names_field_value_and_bound() {
        let config = CheckpointConfig::new(Path::new("/c"));
        let error = config.clone().with_max_retained(0).validate().unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("max_retained is 0, it must be at least 1. Correct it"), "{said}");
        assert!(config.clone().with_interval(Duration::ZERO).validate().is_err());
        assert!(CheckpointConfig::new(Path::new("")).validate().is_err());
    }
}
