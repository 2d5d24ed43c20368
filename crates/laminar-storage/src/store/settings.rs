//! What a user can set, as plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::error::Detail;
use crate::format::compression::Compression;

/// Settings of a store. The defaults suit a first user; `open` checks every bound.
///
/// ```
/// use laminar_storage::Settings;
/// let settings = Settings { checkpoint_interval_ms: 10_000, ..Settings::default() };
/// assert!(settings.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Entries of each core's changelog ring, 32 bytes each, rounded up to a power of two. A larger
    /// ring absorbs longer stalls of the device. 64 to 2^24; default 65,536.
    pub ring_capacity: usize,
    /// Milliseconds that `put` and its siblings wait when the ring is full before they return
    /// [`StoreError::Backpressure`]. 0 to 3,600,000; default 30,000.
    pub put_timeout_ms: u64,
    /// Address space reserved for each core's records, in bytes; memory is used as records need it, and an eighth of
    /// that ahead, at most 64 MiB, and as much for the index; sealing and deleting have some beside it, and opening as much
    /// again, because a later file of a checkpoint may add before it deletes. 4 MiB to 16 TiB; default 64 GiB. All cores
    /// together get at most 10 TiB: with 1024 cores each has 10 GiB.
    pub state_limit_bytes: u64,
    /// Bytes after which a WAL segment is closed. 4 KiB to 16 GiB; default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of every segment that are written and synced ahead where its file is a new one, which makes later syncs cheaper.
    /// After some checkpoints most are not: files of segments that the log was cut by are used again.
    /// At most `segment_bytes`; default 4 MiB.
    pub preallocate_bytes: u64,
    /// Milliseconds between automatic checkpoints; 0 for none by time. At most 2,592,000,000, which is
    /// 30 days; default 60,000.
    pub checkpoint_interval_ms: u64,
    /// WAL bytes written since the last checkpoint that trigger one; 0 for none by size. At most 2^50;
    /// default 256 MiB.
    pub checkpoint_wal_bytes: u64,
    /// Milliseconds that opening should take at most after a crash; 0 for no such objective. Checkpoints are
    /// made as early as that needs, going by how fast loading and replaying were measured, beside those
    /// by time and by size. Loading the newest checkpoint is part of it: when that alone takes more than
    /// three quarters, the objective is out of reach, which is said once as a warning and in
    /// [`crate::Stats::recovery_objective_out_of_reach`]; replaying is then kept to a quarter.
    /// Where there is an objective, checkpoints do not leave most of the device to group commit, as they do else.
    /// 0 to 3,600,000; default 0.
    pub recovery_objective_ms: u64,
    /// Checkpoints kept; the WAL is kept back to the second newest. 1 to 10,000; default 3.
    pub max_retained: usize,
    /// How the state files of new checkpoints are compressed; `"none"` or `"lz4"`. Can be changed at any
    /// opening, files of either kind are read. Default none.
    pub compression: Compression,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ring_capacity: 1 << 16,
            put_timeout_ms: 30_000,
            state_limit_bytes: 64 << 30,
            segment_bytes: 64 << 20,
            preallocate_bytes: 4 << 20,
            checkpoint_interval_ms: 60_000,
            checkpoint_wal_bytes: 256 << 20,
            recovery_objective_ms: 0,
            max_retained: 3,
            compression: Compression::None,
        }
    }
}

impl Settings {
    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`StoreError::InvalidInput`] naming the field, its value and the bound.
    pub fn validate(&self) -> Result<(), StoreError> {
        within("ring_capacity", self.ring_capacity as u64, 64, 1 << 24)?;
        within("put_timeout_ms", self.put_timeout_ms, 0, 3_600_000)?;
        within("state_limit_bytes", self.state_limit_bytes, 4 << 20, 16 << 40)?;
        within("segment_bytes", self.segment_bytes, 4 << 10, 16 << 30)?;
        within("preallocate_bytes", self.preallocate_bytes, 0, self.segment_bytes)?;
        within("checkpoint_interval_ms", self.checkpoint_interval_ms, 0, 30 * 24 * 3_600_000)?;
        within("checkpoint_wal_bytes", self.checkpoint_wal_bytes, 0, 1 << 50)?;
        within("recovery_objective_ms", self.recovery_objective_ms, 0, 3_600_000)?;
        within("max_retained", self.max_retained as u64, 1, 10_000)
    }

    pub(crate) fn recovery_objective(&self) -> Option<Duration> {
        (self.recovery_objective_ms != 0).then(|| Duration::from_millis(self.recovery_objective_ms))
    }

    pub(crate) fn put_timeout(&self) -> Duration {
        Duration::from_millis(self.put_timeout_ms)
    }
}

fn within(field: &str, value: u64, min: u64, max: u64) -> Result<(), StoreError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(StoreError::invalid(
        Detail::new(format!("settings.{field} is {value}, must be {min}..={max}"))
            .remedy("Correct it and open again; nothing was changed."),
    ))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_a_bad_field_is_named_with_its_bound() {
        Settings::default().validate().unwrap();
        let error = Settings { max_retained: 0, ..Settings::default() }.validate().unwrap_err();
        assert!(error.to_string().contains("settings.max_retained is 0, must be 1..=10000"), "{error}");
        let bad = Settings { preallocate_bytes: 65 << 20, ..Settings::default() };
        assert!(bad.validate().is_err());
        let error =
            Settings { recovery_objective_ms: 3_600_001, ..Settings::default() }.validate().unwrap_err();
        assert!(error.to_string().contains("settings.recovery_objective_ms is 3600001"), "{error}");
    }

    #[test]
    fn settings_are_plain_data() {
        let settings: Settings =
            serde_json::from_str(r#"{"max_retained": 5, "compression": "lz4"}"#).unwrap();
        assert_eq!(
            settings,
            Settings { max_retained: 5, compression: Compression::Lz4, ..Settings::default() }
        );
        assert!(serde_json::from_str::<Settings>(r#"{"max_retainedd": 5}"#).is_err());
    }
}
