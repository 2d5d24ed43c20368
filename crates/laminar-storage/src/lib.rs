//! Crash-safe, embedded state store for thread-per-core programs: stream processors, event-driven
//! services, ledgers, feature stores.
//!
//! # What it is for
//! A program whose working state is keys and values, each key owned by one thread, and which must go on
//! after any crash exactly where it stopped, together with its positions in its inputs. Changes run at
//! memory speed on the thread that owns the key. Logging, syncing, checkpoints and recovery happen behind
//! it.
//!
//! # What it is not
//! Not a SQL engine, not a transaction store for several writers of one key, not a network server. The
//! live state is held in memory, and there is no replication.
//!
//! # Quick start
//! ```
//! use laminar_storage::{Opened, Store};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temporary = tempfile::tempdir()?;
//! # let dir = temporary.path().join("state");
//! let Opened { store, mut cores, report } = Store::builder(&dir).cores(1).open()?;
//! let core = &mut cores[0];
//! // Where to go on reading: 0 in a new directory, else what belongs to the recovered state.
//! let start = report.source_offsets.get("orders").copied().unwrap_or(0);
//!
//! core.put(b"customer/17", b"3 orders")?;              // visible at once
//! core.set_source_offset("orders", start + 1);         // belongs to the same epoch
//! let epoch = core.seal_epoch()?;                      // closes the epoch on this core
//! store.wait_durable(epoch)?;                          // survives a power failure from here on
//! assert_eq!(core.get(b"customer/17"), Some(b"3 orders".as_slice()));
//! store.close()?;
//! # drop(cores);
//!
//! let Opened { cores, report, .. } = Store::builder(&dir).cores(1).open()?;
//! assert_eq!(report.recovery_point, epoch);
//! assert_eq!(report.source_offsets["orders"], start + 1);
//! assert_eq!(cores[0].get(b"customer/17"), Some(b"3 orders".as_slice()));
//! # Ok(()) }
//! ```
//! Larger examples: `examples/quick_start.rs`, `examples/two_cores.rs` (a thread per core) and
//! `examples/exactly_once.rs` (restart with source offsets).
//!
//! # Picture
//! ```text
//!  Ring 0   one per core, on the core's own thread
//!           put ─▶ record in the arena, index ─▶ changelog ring, 32 bytes per change
//!                                                      │
//!  Ring 1   one background thread                      ▼
//!           drain ─▶ newest values only ─▶ append to every core's log ─▶ sync all logs ─▶ epoch durable
//!                                                      │
//!  Checkpoints   another background thread             ▼
//!           read the log since the last one ─▶ write what changed ─▶ publish ─▶ cut the log
//!
//!  Opening: newest good checkpoint + log = the state at the end of the last durable epoch
//! ```
//!
//! # Epochs
//! An epoch is a numbered group of changes, the unit of atomicity over all cores. Every core closes each
//! epoch with [`CoreStore::seal_epoch`]; it is durable once every core has closed it and all logs are
//! synced. After a crash the store opens at an epoch R that is at least every one that was reported
//! durable, and holds all changes of epochs up to R, none of later ones, on every core, with the source
//! offsets and the watermark of R.
//!
//! # Modules
//! | module | what it is |
//! |---|---|
//! | [`store`] | what people use: [`Store`], [`CoreStore`], [`Settings`], [`StateReader`], [`Router`] |
//! | [`incremental`] | changelog, checkpoints, and recovery into a map |
//! | [`per_core_wal`] | the write-ahead log: writers, readers, merging, recovery |
//! | [`mod@format`] | bytes and structs, without I/O |
//! | [`vfs`] | the operations the rest reaches the disk through, and a simulated disk |
//! | [`report`], [`error`], [`ids`] | what recovery did; what errors carry; the id types |
//!
//! [`Store`] is built from `incremental` and `per_core_wal`; both can be used without it.
//!
//! # Limits
//! - Keys have up to 65,535 bytes, values up to 16 MiB; a store has up to 1024 cores.
//! - The live state of all cores must fit in memory; [`Settings::state_limit_bytes`] bounds it per core.
//! - One process per directory. [`StateReader`] may look at a directory that is in use.
//! - A key belongs to one core. The store does not check that the caller routes keys consistently;
//!   [`Router`] is there to do it, and must agree when the number of cores changes.
//! - There are no range scans in key order on a core; [`CoreStore::iter`] has no particular order.
//! - Only 64-bit targets; `unsafe` code is confined to the private module `ring0`.
//!
//! The Cargo feature `object-store` adds the module `backup`: checkpoints in S3, Google Cloud Storage, Azure or a directory, and back.
//! The other one, `sabotage`, breaks the store on purpose, to test its tests. In the repository, `docs/ARCHITECTURE.md` says how the parts work
//! together, `docs/INVARIANTS.md` what they rely on, `docs/FORMAT.md` draws every byte on disk, and
//! `docs/RECOVERY.md` explains what recovery decides and every error.
#![deny(missing_docs)]

#[cfg(feature = "object-store")]
pub mod backup;
pub mod error;
pub mod format;
pub mod ids;
pub mod incremental;
mod pace;
mod parallel;
pub mod per_core_wal;
mod progress;
pub mod report;
mod ring0;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod store;
mod sync;
pub mod vfs;

pub use format::compression::Compression;
pub use ids::{CheckpointId, CoreId, Epoch};
pub use incremental::SavepointReceipt;
pub use progress::{RecoveryPhase, RecoveryProgress};
pub use report::{CoreReport, DigestCheck, PhaseTimes, RecoveryReport};
pub use ring0::MemoryStats;
pub use store::{
    CheckpointReceipt, CloseReceipt, CoreStore, Health, Opened, Pairs, Router, Settings, StateReader, Stats,
    Store, StoreBuilder, StoreError, Values,
};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeDoctests;
