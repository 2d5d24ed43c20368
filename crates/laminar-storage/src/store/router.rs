//! Which core a key belongs to.

use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::CoreId;

/// Virtual nodes over which keys are spread. A core owns whole ones.
const VIRTUAL_NODES: u64 = 4096;

type Route = dyn Fn(&[u8], usize) -> usize + Send + Sync;

/// Says which of `n` cores owns a key; used when a store is opened with another number of cores, or on
/// a log that the low-level functions wrote.
#[derive(Clone)]
pub struct Router(Option<Arc<Route>>);

impl Router {
    /// The user's own function, from a key and a number of cores to a core below that number. It must
    /// always give the same answer.
    pub fn new(route: impl Fn(&[u8], usize) -> usize + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(route)))
    }

    /// The core of `key` among `cores`.
    ///
    /// ```
    /// use laminar_storage::Router;
    /// assert!(Router::default().route(b"key", 4) < 4);
    /// assert_eq!(Router::default().route(b"key", 1), 0);
    /// ```
    #[must_use]
    pub fn route(&self, key: &[u8], cores: usize) -> usize {
        match &self.0 {
            Some(route) => route(key, cores),
            None => {
                let node = xxh3_64(key) % VIRTUAL_NODES;
                // Contiguous runs of nodes, of equal length give or take one.
                usize::try_from(node * cores as u64 / VIRTUAL_NODES).unwrap_or(0)
            }
        }
    }

    /// As [`Self::route`]; `None` when the user's function leaves the range.
    pub(crate) fn core(&self, key: &[u8], cores: u16) -> Option<CoreId> {
        let core = self.route(key, usize::from(cores));
        u16::try_from(core).ok().filter(|core| *core < cores).map(CoreId)
    }
}

impl Default for Router {
    /// xxh3 of the key over virtual nodes.
    fn default() -> Self {
        Self(None)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Router(user's)" } else { "Router(xxh3)" })
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_and_stay_in_range() {
        for cores in [1, 2, 3, 4, 7, 16] {
            let mut counts = vec![0_u32; cores];
            for key in 0..20_000_u32 {
                counts[Router::default().route(&key.to_le_bytes(), cores)] += 1;
            }
            let fair = 20_000 / u32::try_from(cores).unwrap();
            assert!(counts.iter().all(|c| *c > fair * 8 / 10 && *c < fair * 12 / 10), "{counts:?}");
        }
    }
}
