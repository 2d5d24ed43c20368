//! Crash-safe, embedded state store for thread-per-core programs.
#![deny(missing_docs)]

pub mod error;
pub mod format;
pub mod ids;
pub mod incremental;
pub mod per_core_wal;
mod ring0;
pub mod store;
pub mod vfs;
