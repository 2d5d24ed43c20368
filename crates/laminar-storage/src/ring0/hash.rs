//! The hash of a key in memory. Never stored: it is seeded anew in every process, so that nobody
//! can prepare keys that collide.

use std::sync::LazyLock;

use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

static OF_PROCESS: LazyLock<RapidSecrets> = LazyLock::new(|| RapidSecrets::seed(seed()));

/// Tests always see the same placement of keys, so that a failure repeats.
#[cfg(test)]
fn seed() -> u64 {
    0x1a31_7a40_5eed
}

#[cfg(not(test))]
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Hashes keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHasher {
    secrets: &'static RapidSecrets,
    /// Bits of the hash that are kept, so that tests can make keys collide.
    #[cfg(test)]
    pub(super) keep: u64,
}

impl KeyHasher {
    /// The hasher that everything in this process uses.
    #[inline]
    pub(crate) fn of_process() -> Self {
        Self {
            secrets: &OF_PROCESS,
            #[cfg(test)]
            keep: u64::MAX,
        }
    }

    /// The hash of `key`.
    #[inline]
    pub(crate) fn hash(self, key: &[u8]) -> u64 {
        let hash = rapidhash_v3_nano_inline::<true, false>(key, self.secrets);
        #[cfg(test)]
        let hash = hash & self.keep;
        hash
    }
}
