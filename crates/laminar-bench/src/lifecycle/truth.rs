//! What a store of the life cycle must hold, computed from nothing but the plan: numbers of keys,
//! versions and epochs. The process that writes and the one that compares share only these functions.

use laminar_storage::{CoreStore, Router};

use crate::keys::{key, mix, value};

/// Puts per epoch and core while the store is filled.
pub const FILL: usize = 8192;
/// Changes per epoch, over all cores, in the tail that a kill interrupts.
pub const TAIL: u64 = 1000;

/// Which keys there are and who owns them.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub keys: u64,
    pub cores: usize,
}

impl Plan {
    /// Numbers of the keys that a core owns, in the order they are put.
    pub fn owned(self, core: usize) -> Vec<u32> {
        let router = Router::default();
        (0..self.keys as u32).filter(|n| router.route(&key(u64::from(*n)), self.cores) == core).collect()
    }

    /// Epochs that filling takes: those of the core with most keys.
    pub fn fill_epochs(self) -> u64 {
        let router = Router::default();
        let mut counts = vec![0_usize; self.cores];
        for n in 0..self.keys {
            counts[router.route(&key(n), self.cores)] += 1;
        }
        counts.into_iter().max().unwrap_or(0).div_ceil(FILL) as u64
    }

    /// Is a key among the 1 % that change between the two checkpoints?
    pub fn changes(number: u64) -> bool {
        mix(number ^ 0x1234_5678_9ABC).is_multiple_of(100)
    }

    /// The changes of an epoch of the tail, in order: key number, and its new version or none.
    pub fn tail(self, epoch: u64) -> impl Iterator<Item = (u64, Option<u32>)> {
        (0..TAIL).map(move |n| {
            let drawn = mix(mix(epoch).wrapping_add(n));
            let number = drawn % self.keys;
            // Among them keys that are deleted, also such as are put again within the epoch.
            let put = !(drawn >> 40).is_multiple_of(8);
            (number, put.then_some(epoch as u32 + 1))
        })
    }
}

/// The state at the end of an epoch: per key its version, or none. Version 0 is the filling.
#[derive(Debug)]
pub struct Truth {
    versions: Vec<Option<u32>>,
    pub live: u64,
}

impl Truth {
    /// Of an epoch at or after the one that changed 1 %, which is `changed`.
    pub fn at(plan: Plan, changed: u64, epoch: u64) -> Self {
        let mut versions: Vec<_> = (0..plan.keys).map(|n| Some(u32::from(Plan::changes(n)))).collect();
        for epoch in changed + 1..=epoch {
            for (number, version) in plan.tail(epoch) {
                versions[number as usize] = version;
            }
        }
        let live = versions.iter().flatten().count() as u64;
        Self { versions, live }
    }

    /// Compares every key, and that there are no others. Returns the differences, and the first of
    /// them in words.
    pub fn compare(&self, cores: &[CoreStore]) -> (u64, Option<String>) {
        let router = Router::default();
        let (mut differences, mut first) = (0, None);
        let mut differs = |what: String| {
            differences += 1;
            first.get_or_insert(what);
        };
        for (number, version) in self.versions.iter().enumerate() {
            let key = key(number as u64);
            let owner = router.route(&key, cores.len());
            let found = cores.get(owner).and_then(|core| core.get(&key));
            let wanted = version.map(|version| value(number as u64, version));
            if found != wanted.as_ref().map(<[u8; _]>::as_slice) {
                differs(format!("key {number} on core {owner} should have version {version:?}"));
            }
        }
        let there: u64 = cores.iter().map(|core| core.len() as u64).sum();
        let iterated: u64 = cores.iter().map(|core| core.iter().count() as u64).sum();
        for (what, count) in [("has", there), ("iterates over", iterated)] {
            if count != self.live {
                differs(format!("the store {what} {count} keys, not {}", self.live));
            }
        }
        (differences, first)
    }
}

#[cfg(test)]
mod tests {
    use laminar_storage::Store;

    use super::*;

    #[test]
    fn every_kind_of_difference_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { keys: 1000, cores: 2 };
        let mut opened = Store::builder(dir.path()).cores(plan.cores).open().unwrap();
        for core in 0..plan.cores {
            for number in plan.owned(core).into_iter().map(u64::from) {
                let version = u32::from(Plan::changes(number));
                opened.cores[core].put(&key(number), &value(number, version)).unwrap();
            }
        }
        let truth = Truth::at(plan, 5, 5);
        assert_eq!(truth.compare(&opened.cores), (0, None));
        assert!(Truth::at(plan, 5, 6).compare(&opened.cores).0 > 100);

        let number = u64::from(plan.owned(0)[0]);
        opened.cores[0].put(&key(number), &value(number, 9)).unwrap();
        assert_eq!(truth.compare(&opened.cores).0, 1);
        opened.cores[0].put(b"one that should not be there", b"").unwrap();
        assert_eq!(truth.compare(&opened.cores).0, 3);
        opened.cores[0].delete(&key(number)).unwrap();
        assert_eq!(truth.compare(&opened.cores).0, 1, "a missing and a foreign key: only the counts agree");
    }
}
