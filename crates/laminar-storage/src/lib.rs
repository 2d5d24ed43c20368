//! Crash-safe, embedded state store for thread-per-core programs.
#![deny(missing_docs)]

pub mod error;
pub mod format;
pub mod ids;
pub mod incremental;
pub mod per_core_wal;
pub mod report;
mod ring0;
pub mod store;
pub mod vfs;

pub use ids::{CheckpointId, CoreId, Epoch};
pub use report::{CoreReport, DigestCheck, PhaseTimes, RecoveryReport};
pub use ring0::MemoryStats;
pub use store::{
    CheckpointReceipt, CloseReceipt, CoreStore, Health, Opened, Pairs, Router, Settings, StateReader, Stats,
    Store, StoreBuilder, StoreError,
};
