//! Incremental checkpoints: only what changed is written, every directory stands on its own.
//!
//! # What it is for
//! Keeping a state of keys and values on disk so that it can be had again, exactly, after any crash,
//! at the cost of what changed and not of what there is.
//!
//! # What it is not
//! Not durable between checkpoints: that is the write-ahead log's part ([`crate::per_core_wal`]).
//!
//! # Picture
//! ```text
//! checkpoints/LOCK                                   held by one manager
//! checkpoints/checkpoint_0000000000000007/metadata.json
//!                                        /state-0000000000000003-0000-8000.sst   linked, a range of the base
//!                                        /state-0000000000000007-0000-0000.sst   written by 7, a delta
//! checkpoints/checkpoint_0000000000000008.tmp/       being written; swept when opened
//! checkpoints/checkpoint_0000000000000002.trash/     being deleted; swept when opened
//! ```
//!
//! # Invariants
//! 1. A directory under its final name is complete, durable and was read back.
//! 2. A manifest lists every file it needs, with length and checksum; any other directory can be
//!    deleted.
//! 3. Nothing that is read from disk is used before its checksum was checked, and nothing is
//!    allocated for a length that the file does not have.
//! 4. A failure to write stops the manager; what was published stays as it is.
//!
//! # To change this
//! A change of bytes belongs in [`crate::format::state_file`] and [`crate::format::manifest`], with
//! the golden tests there.

mod base;
pub mod changelog;
mod checkpoint_reader;
mod config;
mod diff;
mod error;
pub(crate) mod lanes;
pub mod layout;
mod links;
mod manager;
pub mod merge;
mod metadata;
pub(crate) mod open;
pub mod overlay;
mod publish;
pub(crate) mod recovery;
mod reshard;
mod retention;
pub(crate) mod savepoint;
mod spill;
mod staged;
pub mod state_file;
mod state_map;
mod tokens;
mod validate;
mod write;

pub use crate::format::compression::Compression;
pub use crate::per_core_wal::RecoveryMode;
pub use changelog::{
    ChangelogConsumer, ChangelogProducer, StateChangelogBuffer, StateChangelogEntry, StateOp, UnknownStateOp,
};
pub use checkpoint_reader::{CheckpointReader, read_manifest};
pub use config::CheckpointConfig;
pub use diff::{Contents, DiffSummary, Difference, diff};
pub use error::IncrementalCheckpointError;
pub use layout::can_be_own_file;
pub use manager::{IncrementalCheckpointManager, ManagerOptions, StateChange};
pub use metadata::{CheckpointFile, CoreDigest, CoreOffsets, IncrementalCheckpointMetadata, WalCut, flatten};
pub(crate) use recovery::recover_parts;
pub use recovery::{RecoveredState, RecoveryConfig, RecoveryManager, ReplayedChange};
pub use retention::Listing;
pub use savepoint::SavepointReceipt;
pub use state_map::{IntoIter, Iter, StateMap};
pub use tokens::{Published, Synced, WalFloor, Written};
pub use validate::{validate_checkpoint, validate_checkpoint_in, wal_size, wal_size_in};
