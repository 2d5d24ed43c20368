//! One core of a store, for the thread that owns it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use super::error::StoreError;
use super::shared::Shared;
use crate::error::Detail;
use crate::format::record::encode_commit_body;
use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CoreId, Epoch};
use crate::incremental::CoreOffsets;
use crate::ring0::{CoreState, Iter, MemoryStats, Ring0Error, StateValues};
use crate::sabotage::{Sabotage, sabotaged};

/// One core of a store: the keys it owns, and the only handle that changes them.
///
/// Given out once per core by [`crate::StoreBuilder::open`], to be moved to the core's thread: it is
/// `Send` and not `Sync`. Reads and writes work on memory and usually take less than a microsecond; a
/// write is durable once its epoch is, see [`crate::Store::wait_durable`].
///
/// After a failed write or sync in the background every change returns
/// [`StoreError::Poisoned`] with the first cause, while reads go on working.
///
/// ```compile_fail
/// fn shared_between_threads<T: Sync>() {}
/// shared_between_threads::<laminar_storage::CoreStore>();
/// ```
///
/// A value is borrowed from the core, so it cannot be held across a change:
/// ```compile_fail
/// # fn f(core: &mut laminar_storage::CoreStore) {
/// let value = core.get(b"key");
/// core.put(b"key", b"other").unwrap();
/// println!("{value:?}");
/// # }
/// ```
pub struct CoreStore {
    state: CoreState,
    shared: Arc<Shared>,
    offsets: BTreeMap<String, u64>,
    watermark: Option<i64>,
    /// Offsets or watermark changed since the last seal.
    uncommitted: bool,
    commit: Vec<u8>,
    sealed: Epoch,
    not_sync: PhantomData<Cell<()>>,
}

/// What it is, not what it holds.
impl fmt::Debug for CoreStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreStore")
            .field("core", &self.core_id())
            .field("epoch", &self.epoch())
            .field("keys", &self.len())
            .finish_non_exhaustive()
    }
}

impl CoreStore {
    pub(crate) fn new(state: CoreState, offsets: CoreOffsets, sealed: Epoch, shared: Arc<Shared>) -> Self {
        Self {
            state,
            shared,
            offsets: offsets.offsets,
            watermark: offsets.watermark,
            uncommitted: false,
            commit: Vec::new(),
            sealed,
            not_sync: PhantomData,
        }
    }

    /// Which core this is.
    #[must_use]
    pub fn core_id(&self) -> CoreId {
        self.state.core()
    }

    /// Gives `key` a value, visible at once. Waits while the changelog ring is full.
    ///
    /// # Errors
    /// `InvalidInput` for a key over 65,535 bytes or a value over 16 MiB; `Backpressure` when the ring
    /// stayed full for `settings.put_timeout_ms`; `StateFull`, `Poisoned`, `Closed`. Nothing was
    /// changed then.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.shared.check_open()?;
        match self.state.try_put(key, value) {
            Ok(()) => Ok(()),
            Err(Ring0Error::RingFull) if sabotaged(Sabotage::FullRingDrops) => Ok(()),
            Err(error) => self.retry(error, |state| state.try_put(key, value)),
        }
    }

    /// As [`Self::put`], but never waits.
    ///
    /// # Errors
    /// `Backpressure` when the ring is full; otherwise as [`Self::put`].
    pub fn try_put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.shared.check_open()?;
        let core = self.core_id();
        self.state.try_put(key, value).map_err(|error| {
            self.shared.wake_ring1();
            StoreError::of_ring0(&error, core)
        })
    }

    /// Puts many pairs, in order; faster than one by one, because memory is fetched ahead.
    ///
    /// # Errors
    /// As [`Self::put`]; the pairs before the failing one are put.
    pub fn put_batch<K: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, pairs: &[(K, V)]) -> Result<(), StoreError> {
        self.shared.check_open()?;
        let mut rest = pairs;
        while let Err((applied, _)) = self.state.try_put_batch(rest) {
            let failing = rest.get(applied..).and_then(<[_]>::split_first);
            let Some(((key, value), after)) = failing else { break };
            // Waits for what this pair needs, once and no longer than one put.
            self.put(key.as_ref(), value.as_ref())?;
            rest = after;
        }
        Ok(())
    }

    /// The value of `key`, borrowed until the next change.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(key)
    }

    /// The values of many keys, in their order; faster than one by one, because memory is fetched ahead.
    ///
    /// ```
    /// # use laminar_storage::{Opened, Store};
    /// # let dir = tempfile::tempdir()?;
    /// let Opened { store, mut cores, .. } = Store::builder(dir.path()).open()?;
    /// let core = &mut cores[0];
    /// core.put(b"a", b"1")?;
    /// core.put(b"c", b"3")?;
    /// let values: Vec<_> = core.get_batch(&["a", "b", "c"]).collect();
    /// assert_eq!(values, [Some(&b"1"[..]), None, Some(&b"3"[..])]);
    /// # drop(cores);
    /// # store.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn get_batch<'a, K: AsRef<[u8]>>(&'a self, keys: &'a [K]) -> Values<'a, K> {
        Values(self.state.get_batch(keys))
    }

    /// Is there a value for `key`?
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.state.contains(key)
    }

    /// Number of keys on this core.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.state.len()).unwrap_or(usize::MAX)
    }

    /// Are there no keys on this core?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
    }

    /// Keys and values of this core, in no particular order.
    pub fn iter(&self) -> Pairs<'_> {
        Pairs(self.state.iter())
    }

    /// Reads the value of `key` and replaces it by what `change` makes of it; `None` deletes it. The
    /// key is looked up once. `change` runs once; on an error once or not at all.
    ///
    /// # Errors
    /// As [`Self::put`]. A value over the limit, or one for which the state has no room, is found after
    /// `change` has run: nothing is changed then either.
    pub fn update<V: AsRef<[u8]>>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(Option<&[u8]>) -> Option<V>,
    ) -> Result<(), StoreError> {
        self.shared.check_open()?;
        if let Err(error) = self.state.reserve_entry() {
            self.retry(error, CoreState::reserve_entry)?;
        }
        let core = self.core_id();
        self.state.try_update(key, change).map_err(|error| StoreError::of_ring0(&error, core))
    }

    /// Deletes `key`; false when there was none. Waits while the changelog ring is full.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        self.shared.check_open()?;
        match self.state.try_delete(key) {
            Ok(was_there) => Ok(was_there),
            Err(error) => self.retry(error, |state| state.try_delete(key)),
        }
    }

    /// Memory that this core's state takes.
    #[must_use]
    pub fn memory(&self) -> MemoryStats {
        self.state.memory()
    }

    /// Notes from where to go on reading `source`. Committed with the next seal, together with exactly
    /// the changes made before it.
    ///
    /// A name over 65,535 bytes, or more names than fit into one commit, are refused by the next seal. Nothing
    /// is lost then: forget the name with [`Self::remove_source_offset`], and seal again.
    pub fn set_source_offset(&mut self, source: &str, offset: u64) {
        self.uncommitted = true;
        match self.offsets.get_mut(source) {
            Some(known) => *known = offset,
            None => drop(self.offsets.insert(source.to_owned(), offset)),
        }
    }

    /// Forgets a source; from the next seal on.
    pub fn remove_source_offset(&mut self, source: &str) {
        self.uncommitted |= self.offsets.remove(source).is_some();
    }

    /// This core's source offsets.
    #[must_use]
    pub fn source_offsets(&self) -> &BTreeMap<String, u64> {
        &self.offsets
    }

    /// Sets this core's watermark. Committed with the next seal.
    pub fn set_watermark(&mut self, watermark: i64) {
        self.uncommitted = true;
        self.watermark = Some(watermark);
    }

    /// This core's watermark.
    #[must_use]
    pub fn watermark(&self) -> Option<i64> {
        self.watermark
    }

    /// The epoch that changes belong to now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.state.epoch()
    }

    /// Closes this core's epoch, with its offsets and watermark, and returns its number. It is durable
    /// once every core has closed it and all logs are synced. Empty epochs are closed too.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn seal_epoch(&mut self) -> Result<Epoch, StoreError> {
        let epoch = self.epoch();
        self.seal_epoch_to(epoch)?;
        Ok(epoch)
    }

    /// Closes every epoch up to and including `epoch`. Everything since the last seal belongs to the
    /// first of them, the others are empty: it brings an idle core up to the others.
    ///
    /// # Errors
    /// `InvalidInput` for an epoch that is closed already; otherwise as [`Self::put`].
    pub fn seal_epoch_to(&mut self, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.check_open()?;
        if epoch > Epoch::LAST {
            return Err(StoreError::invalid(
                Detail::new(format!("epoch {epoch} is too large, the last one is {}", Epoch::LAST))
                    .on_core(self.core_id())
                    .remedy("Seal the current epoch or one a little later."),
            ));
        }
        self.encode_commit()?;
        let commit = std::mem::take(&mut self.commit);
        let body = self.uncommitted.then_some(commit.as_slice());
        let sealed = match self.state.seal_to(epoch, body) {
            Ok(()) => Ok(()),
            Err(error) => self.retry(error, |state| state.seal_to(epoch, body)),
        };
        self.commit = commit;
        sealed?;
        self.uncommitted = false;
        self.sealed = epoch;
        self.shared.wake_ring1();
        Ok(())
    }

    fn encode_commit(&mut self) -> Result<(), StoreError> {
        self.commit.clear();
        if !self.uncommitted {
            return Ok(());
        }
        if let Some(name) = self.offsets.keys().find(|name| name.len() > MAX_KEY_LEN) {
            return Err(StoreError::invalid(
                Detail::new(format!("a source name of {} bytes, at most {MAX_KEY_LEN} fit", name.len()))
                    .on_core(self.core_id())
                    .remedy("Forget it with remove_source_offset, use a shorter name, and seal again."),
            ));
        }
        let offsets = self.offsets.iter().map(|(name, offset)| (name.as_str(), *offset));
        encode_commit_body(&mut self.commit, self.watermark, offsets);
        if self.commit.len() > MAX_VALUE_LEN {
            return Err(StoreError::invalid(
                Detail::new(format!(
                    "{} source offsets take {} bytes in a commit, at most {MAX_VALUE_LEN} fit",
                    self.offsets.len(),
                    self.commit.len()
                ))
                .on_core(self.core_id())
                .remedy("Forget some with remove_source_offset, or use shorter names, and seal again."),
            ));
        }
        Ok(())
    }

    /// Repeats what a full ring refused, until there is room or the time is over: backpressure, never loss (I15). A
    /// full state is like a full ring as long as replaced values wait for Ring 1.
    #[cold]
    fn retry<T>(
        &mut self,
        first: Ring0Error,
        mut attempt: impl FnMut(&mut CoreState) -> Result<T, Ring0Error>,
    ) -> Result<T, StoreError> {
        let core = self.core_id();
        let timeout = self.shared.settings.put_timeout();
        let started = Instant::now();
        let mut error = first;
        loop {
            let passes = match error {
                Ring0Error::RingFull => true,
                Ring0Error::StateFull { .. } => self.state.waits_for_release(),
                _ => false,
            };
            if !passes || started.elapsed() >= timeout {
                return Err(StoreError::of_ring0(&error, core));
            }
            self.shared.make_room()?;
            self.shared.check_open()?;
            match attempt(&mut self.state) {
                Ok(done) => return Ok(done),
                Err(again) => error = again,
            }
        }
    }
}

impl Drop for CoreStore {
    fn drop(&mut self) {
        self.shared.core_gone(self.core_id(), self.sealed);
    }
}

/// Keys and values of one core, from [`CoreStore::iter`].
#[derive(Debug)]
pub struct Pairs<'a>(Iter<'a>);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// Values of keys, `None` for those that are not there, from [`CoreStore::get_batch`].
pub struct Values<'a, K>(StateValues<'a, K>);

impl<'a, K: AsRef<[u8]>> Iterator for Values<'a, K> {
    type Item = Option<&'a [u8]>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<K: AsRef<[u8]>> ExactSizeIterator for Values<'_, K> {}

impl<K> fmt::Debug for Values<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'a> IntoIterator for &'a CoreStore {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = Pairs<'a>;

    fn into_iter(self) -> Pairs<'a> {
        self.iter()
    }
}
