//! A disk in memory that forgets, tears and reorders what was not synced.
//!
//! The crash tests run the production code on a [`SimDisk`], take a [`Snapshot`] after every
//! operation, and from each snapshot build every [`Image`] that a power cut may leave. It is not a
//! model of one file system: it does what POSIX permits, which is worse than any of them.
//!
//! # What may survive
//! 1. A write is cut into *atoms* at multiples of 512 bytes. Each atom that was not synced may be
//!    there or not, in any combination; one of them may be torn at any byte. Of the same bytes written again
//!    and again, in place in a durable file, only the last version may be there, or what was synced before.
//! 2. A file's size is durable apart from its bytes: bytes may be there without the size that shows
//!    them (they are lost), and the size without the bytes (zeros or garbage). Of several sizes any
//!    may survive; a shrinking that is passed over never happened.
//! 3. `sync_data` makes the bytes and the size of one file durable and nothing else: a file whose
//!    directory entry was not synced may be gone.
//! 4. Each new, removed or renamed entry may be there or not, in any combination, until its directory
//!    is synced; except that a name's later change implies the earlier ones, that a removed
//!    directory was emptied first, and that what moves into a new directory finds it there.
//! 5. A rename is one change: never both names, never neither. Between two directories it is durable
//!    only when both were synced. Nothing orders it after the bytes of the file it renames.
//! 6. A removed name may come back, with its bytes. A directory whose own entry is lost takes its
//!    content with it, synced or not.
//! 7. After a sync that failed, what it should have written is lost or not, and counts as clean.
//!
//! [`Profile::Ext4Ordered`] keeps from this what a journal in ordered mode can do.
//!
//! # Invariants
//! Same seed, same calls, same answers: nothing here depends on time, addresses or hash order.

mod content;
mod damage;
mod disk;
mod faults;
mod image;
mod image_id;
mod machine;
mod select;
mod trace;
mod tree;

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;

pub use disk::SimDisk;
pub use faults::{Duration, Fault, Keep, Short};
pub use image::{CLOCK_JUMP_NS, Image, Snapshot};
pub use image_id::{ImageId, Torn};
pub use select::{ImagePolicy, Images, Profile};
pub use trace::{Op, Stats};
