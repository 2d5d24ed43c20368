//! Backups of checkpoints in object stores: S3 and what is compatible with it, Google Cloud Storage, Azure, directories.
//! Only with the feature `object-store`.
//!
//! # What it is for
//! A state that survives the machine: every checkpoint, or those one chooses, is copied to a place elsewhere, as far as it
//! is not there already, and is restored from there on an empty machine.
//!
//! # What it is not
//! Not a tier that a store reads from, and no replication: what is durable since the newest checkpoint is in the log of the
//! machine only.
//!
//! # Picture
//! ```text
//! PREFIX/laminar-backups                 says what this is
//! PREFIX/log/0000000000000001.json       claim of the first writer
//! PREFIX/log/0000000000000002.json       a backup: manifest, objects; says which backups count
//! PREFIX/log/0000000000000003.json       claim of the writer that came after it
//! PREFIX/files/0000000000000001-00000000-00000000     chunk 0 of object 0 of the writer whose claim is record 1
//! ```
//!
//! # Invariants
//! 1. A backup counts from the moment its record is put, by one conditional put; everything it needs is there before (I16).
//! 2. Only the writer whose claim is the newest can make a backup count (I17).
//! 3. What a counting backup needs is never removed (I18).
//! 4. Nothing here changes anything of the store that is backed up.
//!
//! `docs/BACKUP.md` in the repository has the arguments for 1 to 3, and what is guaranteed when bucket or network fail.

mod catalog;
mod directory;
mod error;
mod log;
mod names;
mod options;
mod record;
mod remote;
mod restore;
mod runtime;
mod stop;
mod sweep;
mod target;
mod throttle;
mod upload;
mod whole;
pub(crate) mod worker;
mod writer;

pub use catalog::{BackupCatalog, BackupInfo, TransferProgress, list_backups, read_catalog, verify_backup};
pub use error::BackupError;
pub use options::BackupOptions;
pub use record::BackupOwner;
pub(crate) use record::Opening;
pub use restore::{RestoreReceipt, restore, restore_several, restore_with};
pub use target::BackupTarget;
pub use whole::{
    PartCheckpoint, PartWriter, WholeBackup, WholeBackups, WholeId, list_whole_backups, read_mark,
};
pub use worker::BackupStatus;
pub use writer::{BackupReceipt, BackupWriter};

pub use object_store;
