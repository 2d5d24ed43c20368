//! Identifiers: one newtype per meaning, so that an epoch can never be passed where a sequence is
//! wanted.
//!
//! All of them are plain unsigned integers with the layout of their inner type. Inside the crate no
//! bare `u64` crosses a module; only the two contract modules ([`crate::incremental`] and
//! [`crate::per_core_wal`]) show plain integers at their surface, and convert at once.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The smallest value.
            pub const ZERO: Self = Self(0);
            /// The largest value.
            pub const MAX: Self = Self(<$inner>::MAX);

            /// The plain integer.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The next value; stays at [`Self::MAX`] once there.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A numbered group of changes, the unit of atomicity across cores. Never reused, not even
    /// after a crash. Epoch 0 means "before anything was sealed".
    Epoch(u64)
}
id! {
    /// One shard of the state and the one thread that owns it, `0..cores`.
    CoreId(u16)
}
id! {
    /// A checkpoint; ids grow, newest is largest. Shown as 16 hexadecimal digits in directory names.
    CheckpointId(u64)
}
id! {
    /// Position of a record in the total order of one core's log. Grows by one per record and is
    /// never reused, not even for records that recovery discarded.
    Sequence(u64)
}
id! {
    /// One open of a write-ahead log. Stands in every segment header and salts every checksum.
    Incarnation(u64)
}
id! {
    /// Number of a segment within one core's log; grows across incarnations.
    SegmentNumber(u32)
}
id! {
    /// Byte position in a core's log: bytes of all earlier segments plus the offset in this one.
    WalPosition(u64)
}
id! {
    /// Nanoseconds since the Unix epoch, made strictly increasing per core by the writer.
    TimestampNs(u64)
}
id! {
    /// Random number given to a log or a checkpoint set when it is created; tells a foreign file.
    StoreId(u64)
}
#[cfg(feature = "object-store")]
id! {
    /// Number of a record in the log of the backups at one place; grows by one per record. A backup has that of the
    /// record that made it count.
    BackupId(u64)
}

impl Epoch {
    /// Largest epoch that can be used, 2^63 - 1: there is always a next one.
    pub const LAST: Self = Self(u64::MAX >> 1);
}

impl CheckpointId {
    /// Largest id that can be used, 2^63 - 1: there is always a next one.
    pub const LAST: Self = Self(u64::MAX >> 1);
}

impl Incarnation {
    /// Largest incarnation that can be used, 2^63 - 1: there is always a next one.
    pub const LAST: Self = Self(u64::MAX >> 1);
}

impl SegmentNumber {
    /// Largest segment number that an opening can begin behind, 2^31 - 1, so that it can go on rolling.
    pub const LAST: Self = Self(u32::MAX >> 1);
}

impl TimestampNs {
    /// Clocks that say more than this, 2^63 - 1, are taken to say this: there is always a later time.
    pub const LAST_OF_CLOCK: Self = Self(u64::MAX >> 1);
}

impl CoreId {
    /// The core as an index into per-core vectors.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

const _: () = assert!(size_of::<Epoch>() == 8 && size_of::<CoreId>() == 2);
