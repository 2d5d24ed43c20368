//! What was known at each operation, so that a crash at that operation can be judged by it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::SimDisk;
use xxhash_rust::xxh3::Xxh3Default;

/// One version of the knowledge, from an operation on.
#[derive(Clone, Debug)]
pub(crate) struct Version<M> {
    /// Number of the last operation that had been done when this became known.
    op: u64,
    pub(crate) model: Arc<M>,
    /// Equal for equal models.
    pub(crate) fingerprint: u64,
}

/// A model of the expected state that remembers its versions by operation number.
///
/// Two kinds of facts go in, and the order against the disk decides which way they err:
///
/// - *an upper bound* (an epoch is being sealed, so it may be found from now on) is noted **before**
///   the call that may write it;
/// - *a lower bound* (an epoch was acknowledged, so it must be found from now on) is noted **after**
///   the call that returned it.
#[derive(Clone, Debug)]
pub struct Log<M> {
    model: M,
    versions: Vec<Version<M>>,
    /// Whether versions are remembered: not when nobody will ask for them.
    remembers: bool,
    /// Where operations go instead of the simulated disk.
    real: Option<Arc<dyn Vfs>>,
}

impl<M: Clone + Hash> Log<M> {
    /// A log that begins with what is known before the first operation.
    #[must_use]
    pub fn new(model: M) -> Self {
        let mut log = Self { model, versions: Vec::new(), remembers: true, real: None };
        log.stamp(0);
        log
    }

    /// A log of a run whose operations will not be crashed: it knows the model and forgets its versions.
    #[must_use]
    pub fn of_last(model: M) -> Self {
        Self { model, versions: Vec::new(), remembers: false, real: None }
    }

    /// A log of a run on something else than the simulated disk.
    #[must_use]
    pub fn of_real(model: M, real: Arc<dyn Vfs>) -> Self {
        Self { real: Some(real), ..Self::of_last(model) }
    }

    /// Where the run's operations go.
    #[must_use]
    pub fn vfs(&self, disk: &SimDisk) -> Arc<dyn Vfs> {
        self.real.clone().unwrap_or_else(|| Arc::new(disk.clone()))
    }

    /// The model as it is now.
    #[must_use]
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Changes the model without a new fact about the disk: changes that no crash may show yet.
    pub fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Changes the model and notes that a crash from now on is to be judged by it.
    pub fn note<T>(&mut self, disk: &SimDisk, change: impl FnOnce(&mut M) -> T) -> T {
        let done = change(&mut self.model);
        if self.remembers {
            self.stamp(disk.ops());
        }
        done
    }

    /// Equal for equal models.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        self.model.hash(&mut hasher);
        hasher.finish()
    }

    fn stamp(&mut self, op: u64) {
        let fingerprint = self.fingerprint();
        let version = Version { op, model: Arc::new(self.model.clone()), fingerprint };
        match self.versions.last_mut() {
            Some(last) if last.op == op => *last = version,
            _ => self.versions.push(version),
        }
    }

    /// What was known when the operation with this number was the last one done.
    pub(crate) fn at(&self, op: u64) -> &Version<M> {
        let after = self.versions.partition_point(|v| v.op <= op);
        &self.versions[after.saturating_sub(1)]
    }
}
