//! The write-ahead log: one per core, no lock between them, merged by epoch.
//!
//! Every core appends to its own segments; nothing is shared but the directory. An epoch is closed on
//! a core by a barrier, and durable once the barriers of *all* cores are synced. Records of all cores
//! have one total order, `(epoch, timestamp_ns, core_id, sequence)`, which never contradicts the order
//! in which a core wrote.
//!
//! It is not a log for several writers per core, and it does not interpret keys or values.
//!
//! | to | use |
//! |---|---|
//! | write | [`PerCoreWalManager`], and per thread its [`CoreWalWriter`]s |
//! | read one segment | [`PerCoreWalReader`] |
//! | merge all cores | [`PerCoreWalManager::merged`] |
//!
//! To change what stands on disk, also touch `format/`, `docs/FORMAT.md` and the golden files; to
//! change what recovery decides, `recovery/cases.rs` and `docs/RECOVERY.md`.

pub(crate) mod apply;
mod config;
mod coordinator;
mod entry;
mod error;
pub(crate) mod evidence;
mod frames;
pub(crate) mod incarnation;
mod limits;
pub(crate) mod manager;
mod merge;
mod names;
mod reader;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod spares;
mod stats;
mod sync;
pub(crate) mod truncate;
pub(crate) mod writer;

pub use config::PerCoreWalConfig;
pub use coordinator::CheckpointCoordinator;
pub(crate) use entry::Stamp;
pub use entry::{PerCoreWalEntry, WalOperation};
pub use error::PerCoreWalError;
pub use manager::PerCoreWalManager;
pub(crate) use manager::TruncationScope;
pub use merge::MergedEntries;
pub(crate) use merge::MergedRecords;
pub use reader::{PerCoreWalReader, WalReadResult};
pub use recovery::manager::{PerCoreRecoveredState, PerCoreRecoveryManager, recover_per_core};
pub use recovery::plan::RecoveryMode;
pub use stats::SegmentStats;
pub(crate) use stats::segment_stats;
pub(crate) use sync::{Meanwhile, Syncer, sync_writers, sync_writers_beside};
pub use truncate::Truncation;
pub use writer::CoreWalWriter;
