//! Power cuts on a real file system: ext4 runs for real on a disk that remembers every write and every
//! flush in order; of that recording every state is made that a power cut could have left, mounted, so that
//! the file system replays its journal, and judged as a tortured store is.
//!
//! What a disk keeps: everything written before its last flush; of the later writes any, in any
//! order, whole or by sectors. This is all that a device promises that honours flushes.
//!
//! [`disk`], [`recording`] and [`cut`] are plain computing. The rest needs Linux, root and FUSE, and the
//! feature `power-cut`.

pub mod cut;
pub mod disk;
pub mod recording;
pub mod tally;

#[cfg(feature = "power-cut")]
pub mod device;
#[cfg(feature = "power-cut")]
pub mod judge;
#[cfg(feature = "power-cut")]
pub mod machine;
#[cfg(feature = "power-cut")]
pub mod round;
#[cfg(feature = "power-cut")]
pub mod run;

/// The smallest unit that a disk writes whole.
pub const SECTOR: usize = 512;
