//! The changelog: what Ring 0 tells Ring 1 about every change, 32 bytes at a time.
//!
//! It is for handing changes from the thread that owns a core to the background without a lock, a
//! system call or an allocation. It is not a log: nothing here outlives the process, and an entry
//! does not hold the value, only where the value is.
//!
//! ```text
//!   ChangelogProducer ──push──▶ [ SPSC ring of StateChangelogEntry ] ──pop / drain──▶ ChangelogConsumer
//!     total_pushed                                                                     total_drained
//! ```
//!
//! A full ring is backpressure: the entry is handed back and nothing is lost. At any time, seen from
//! one thread, `total_pushed == total_drained + len`.
//!
//! [`StateChangelogBuffer`] holds both ends for single-threaded use; [`StateChangelogBuffer::split`]
//! gives them out as two types for two threads.

use std::cell::RefCell;
use std::sync::Arc;

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::ring0::KeyHasher;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Capacity of [`StateChangelogBuffer::new`], in entries: 2 MiB.
pub const DEFAULT_CAPACITY: usize = 1 << 16;

/// The largest capacity, in entries: 512 MiB.
pub const MOST_CAPACITY: usize = 1 << 24;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StateOp {
    /// The key has a new value.
    Put = 1,
    /// The key is gone.
    Delete = 2,
}

/// A byte that names no [`StateOp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:#04x} is no state operation. 0x01 is a put and 0x02 a delete; the bytes were written by something else."
)]
pub struct UnknownStateOp(
    /// The byte.
    pub u8,
);

impl StateOp {
    /// The byte for this operation, the same one that the files use.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// The operation a byte stands for.
    ///
    /// # Errors
    /// [`UnknownStateOp`] for any byte that [`Self::to_u8`] never gives.
    pub const fn from_u8(byte: u8) -> Result<Self, UnknownStateOp> {
        match byte {
            1 => Ok(Self::Put),
            2 => Ok(Self::Delete),
            other => Err(UnknownStateOp(other)),
        }
    }
}

/// What an entry is: a change, or the end of an epoch (which only Ring 0 writes and only Ring 1
/// sees, in order with the changes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Put = 1,
    Delete = 2,
    Seal = 3,
}

/// One change: epoch, key hash, where the record is, how long the value is, and what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StateChangelogEntry {
    /// The epoch the change belongs to.
    pub epoch: u64,
    /// [`Self::hash_key`] of the key.
    pub key_hash: u64,
    /// Byte offset of the record in the core's arena. The record holds the key, so that a delete
    /// has one as well.
    pub mmap_offset: u64,
    /// Length of the value in bytes; 0 for a delete.
    pub value_len: u32,
    kind: Kind,
    _reserved: [u8; 3],
}

const _: () = assert!(size_of::<StateChangelogEntry>() == 32 && align_of::<StateChangelogEntry>() == 8);

impl StateChangelogEntry {
    const fn new(kind: Kind, epoch: u64, key_hash: u64, mmap_offset: u64, value_len: u32) -> Self {
        Self { epoch, key_hash, mmap_offset, value_len, kind, _reserved: [0; 3] }
    }

    /// A key got a value.
    #[must_use]
    pub const fn put(epoch: u64, key_hash: u64, mmap_offset: u64, value_len: u32) -> Self {
        Self::new(Kind::Put, epoch, key_hash, mmap_offset, value_len)
    }

    /// A key was removed; `mmap_offset` is where its tombstone is.
    #[must_use]
    pub const fn delete(epoch: u64, key_hash: u64, mmap_offset: u64) -> Self {
        Self::new(Kind::Delete, epoch, key_hash, mmap_offset, 0)
    }

    /// The end of `epoch`; `mmap_offset` is where the commit record is, or 0 for none.
    pub(crate) const fn seal(epoch: u64, mmap_offset: u64) -> Self {
        Self::new(Kind::Seal, epoch, 0, mmap_offset, 0)
    }

    /// An entry for `key`, hashing it. A delete has no value: its `value_len` becomes 0.
    ///
    /// ```
    /// use laminar_storage::incremental::{StateChangelogEntry, StateOp};
    ///
    /// let entry = StateChangelogEntry::from_key(b"user:1", 7, 4096, 100, StateOp::Put);
    /// assert_eq!(entry.key_hash, StateChangelogEntry::hash_key(b"user:1"));
    /// assert!(entry.is_put());
    /// ```
    #[must_use]
    pub fn from_key(key: &[u8], epoch: u64, mmap_offset: u64, value_len: u32, op: StateOp) -> Self {
        let hash = Self::hash_key(key);
        match op {
            StateOp::Put => Self::put(epoch, hash, mmap_offset, value_len),
            StateOp::Delete => Self::delete(epoch, hash, mmap_offset),
        }
    }

    /// What happened.
    #[must_use]
    pub const fn op(&self) -> StateOp {
        match self.kind {
            Kind::Put => StateOp::Put,
            Kind::Delete | Kind::Seal => StateOp::Delete,
        }
    }

    /// Whether the key got a value.
    #[must_use]
    pub const fn is_put(&self) -> bool {
        matches!(self.kind, Kind::Put)
    }

    /// Whether the key was removed.
    #[must_use]
    pub const fn is_delete(&self) -> bool {
        matches!(self.kind, Kind::Delete)
    }

    /// Whether this ends an epoch.
    pub(crate) const fn is_seal(&self) -> bool {
        matches!(self.kind, Kind::Seal)
    }

    /// The hash of a key. Seeded once per process, so that nobody can choose keys that collide:
    /// the same within a process, different in the next one, never to be stored.
    #[must_use]
    pub fn hash_key(key: &[u8]) -> u64 {
        KeyHasher::of_process().hash(key)
    }
}

/// Entries taken out so far; on its own cache line pair, so that reading it does not slow the ring.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Drained(AtomicU64);

/// The end that Ring 0 holds: only pushes. `Send`, not `Sync`.
///
/// ```compile_fail
/// fn sync<T: Sync>() {}
/// sync::<laminar_storage::incremental::ChangelogProducer>();
/// ```
#[derive(Debug)]
pub struct ChangelogProducer {
    ring: Producer<StateChangelogEntry>,
    drained: Arc<Drained>,
    /// Entries accepted; only grows.
    pushed: u64,
    /// Entries refused; only grows.
    overflows: u64,
    epoch: u64,
}

impl ChangelogProducer {
    /// Appends an entry.
    ///
    /// # Errors
    /// Gives the entry back when the ring is full; nothing changed but [`Self::overflow_count`].
    #[inline]
    pub fn push(&mut self, entry: StateChangelogEntry) -> Result<(), StateChangelogEntry> {
        match self.ring.push(entry) {
            Ok(()) => {
                self.pushed += 1;
                Ok(())
            }
            Err(PushError::Full(entry)) => {
                self.overflows += 1;
                Err(entry)
            }
        }
    }

    /// Whether one more push succeeds; reads the consumer's side only when it seems not to.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        !self.ring.is_full()
    }

    /// Counts a push that was not even tried because [`Self::has_room`] said no.
    pub(crate) fn count_overflow(&mut self) {
        self.overflows += 1;
    }

    /// How many entries fit right now; may grow at any time.
    #[must_use]
    pub fn available(&self) -> usize {
        self.ring.slots()
    }

    /// How many entries the ring holds when full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.buffer().capacity()
    }

    /// Entries accepted since the ring was made.
    #[must_use]
    pub fn total_pushed(&self) -> u64 {
        self.pushed
    }

    /// Entries the consumer has taken since the ring was made; may lag what it just took.
    #[must_use]
    pub fn total_drained(&self) -> u64 {
        self.drained.0.load(Ordering::Acquire)
    }

    /// Pushes refused since the ring was made.
    #[must_use]
    pub fn overflow_count(&self) -> u64 {
        self.overflows
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Sets the current epoch.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Starts the next epoch and returns its number.
    pub fn advance_epoch(&mut self) -> u64 {
        self.epoch = self.epoch.saturating_add(1);
        self.epoch
    }

    /// Whether the consumer is gone, so that nothing will ever be taken again.
    #[must_use]
    pub fn consumer_gone(&self) -> bool {
        self.ring.is_abandoned()
    }
}

/// The end that Ring 1 holds: only takes. `Send`, not `Sync`.
///
/// ```compile_fail
/// fn sync<T: Sync>() {}
/// sync::<laminar_storage::incremental::ChangelogConsumer>();
/// ```
#[derive(Debug)]
pub struct ChangelogConsumer {
    ring: Consumer<StateChangelogEntry>,
    drained: Arc<Drained>,
    /// What `drained` holds; this end is the only one that writes it.
    taken: u64,
}

impl ChangelogConsumer {
    fn count(&mut self, entries: usize) {
        self.taken += entries as u64;
        self.drained.0.store(self.taken, Ordering::Release);
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<StateChangelogEntry> {
        let entry = self.ring.pop().ok()?;
        self.count(1);
        Some(entry)
    }

    /// Takes up to `max` entries, oldest first.
    #[must_use = "the entries are no longer in the ring"]
    pub fn drain(&mut self, max: usize) -> Vec<StateChangelogEntry> {
        let mut entries = Vec::new();
        self.drain_into(&mut entries, max);
        entries
    }

    /// Takes up to `max` entries, oldest first, appends them to `entries` and says how many.
    pub fn drain_into(&mut self, entries: &mut Vec<StateChangelogEntry>, max: usize) -> usize {
        let wanted = self.ring.slots().min(max);
        let Ok(chunk) = self.ring.read_chunk(wanted) else {
            return 0;
        };
        let (first, second) = chunk.as_slices();
        entries.reserve(wanted);
        entries.extend_from_slice(first);
        entries.extend_from_slice(second);
        chunk.commit_all();
        self.count(wanted);
        wanted
    }

    /// The oldest entry, which stays.
    #[must_use]
    pub fn peek(&self) -> Option<StateChangelogEntry> {
        self.ring.peek().ok().copied()
    }

    /// How many entries wait; may grow at any time.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.slots()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// How many entries the ring holds when full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.buffer().capacity()
    }

    /// Entries taken since the ring was made.
    #[must_use]
    pub fn total_drained(&self) -> u64 {
        self.taken
    }

    /// Whether the producer is gone, so that nothing more comes once the ring is empty.
    #[must_use]
    pub fn producer_gone(&self) -> bool {
        self.ring.is_abandoned()
    }
}

/// Both ends of a changelog in one hand. `Send`, not `Sync`; see [`Self::split`] for two threads.
///
/// ```
/// use laminar_storage::incremental::StateChangelogBuffer;
///
/// let changelog = StateChangelogBuffer::with_capacity(8);
/// changelog.set_epoch(1);
/// assert!(changelog.push_put(b"key", 64, 5));
/// assert_eq!(changelog.checkpoint_barrier(), 1);
/// assert_eq!(changelog.drain_all().len(), 1);
/// assert_eq!(changelog.total_pushed(), changelog.total_drained());
/// ```
///
/// ```compile_fail
/// fn sync<T: Sync>() {}
/// sync::<laminar_storage::incremental::StateChangelogBuffer>();
/// ```
#[derive(Debug)]
pub struct StateChangelogBuffer {
    ends: RefCell<(ChangelogProducer, ChangelogConsumer)>,
}

impl Default for StateChangelogBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl StateChangelogBuffer {
    /// A changelog of [`DEFAULT_CAPACITY`] entries, at epoch 0.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// A changelog of at least `entries` entries, rounded up to a power of two, at epoch 0. It has
    /// [`MOST_CAPACITY`] at most.
    #[must_use]
    pub fn with_capacity(entries: usize) -> Self {
        let (producer, consumer) = RingBuffer::new(entries.min(MOST_CAPACITY).next_power_of_two());
        let drained = Arc::new(Drained::default());
        let producer = ChangelogProducer {
            ring: producer,
            drained: Arc::clone(&drained),
            pushed: 0,
            overflows: 0,
            epoch: 0,
        };
        let consumer = ChangelogConsumer { ring: consumer, drained, taken: 0 };
        Self { ends: RefCell::new((producer, consumer)) }
    }

    /// The two ends, for two threads.
    #[must_use]
    pub fn split(self) -> (ChangelogProducer, ChangelogConsumer) {
        self.ends.into_inner()
    }

    /// Appends an entry; `false` when the ring is full, and then nothing changed but
    /// [`Self::overflow_count`].
    pub fn push(&self, entry: StateChangelogEntry) -> bool {
        self.ends.borrow_mut().0.push(entry).is_ok()
    }

    /// Appends a put of `key` in the current epoch; `false` when the ring is full.
    pub fn push_put(&self, key: &[u8], mmap_offset: u64, value_len: u32) -> bool {
        self.push(StateChangelogEntry::from_key(key, self.epoch(), mmap_offset, value_len, StateOp::Put))
    }

    /// Appends a delete of `key` in the current epoch; `false` when the ring is full.
    pub fn push_delete(&self, key: &[u8], mmap_offset: u64) -> bool {
        self.push(StateChangelogEntry::from_key(key, self.epoch(), mmap_offset, 0, StateOp::Delete))
    }

    /// Takes the oldest entry.
    pub fn pop(&self) -> Option<StateChangelogEntry> {
        self.ends.borrow_mut().1.pop()
    }

    /// Takes up to `max` entries, oldest first.
    #[must_use = "the entries are no longer in the ring"]
    pub fn drain(&self, max: usize) -> Vec<StateChangelogEntry> {
        self.ends.borrow_mut().1.drain(max)
    }

    /// Takes all entries, oldest first.
    #[must_use = "the entries are no longer in the ring"]
    pub fn drain_all(&self) -> Vec<StateChangelogEntry> {
        self.drain(usize::MAX)
    }

    /// How many entries wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.borrow().1.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.borrow().1.is_empty()
    }

    /// Whether the next push is refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.ends.borrow().0.has_room()
    }

    /// How many entries it holds when full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ends.borrow().0.capacity()
    }

    /// How many more entries fit.
    #[must_use]
    pub fn available(&self) -> usize {
        self.ends.borrow().0.available()
    }

    /// Entries accepted since it was made.
    #[must_use]
    pub fn total_pushed(&self) -> u64 {
        self.ends.borrow().0.total_pushed()
    }

    /// Entries taken since it was made, cleared ones included.
    #[must_use]
    pub fn total_drained(&self) -> u64 {
        self.ends.borrow().1.total_drained()
    }

    /// Pushes refused since it was made.
    #[must_use]
    pub fn overflow_count(&self) -> u64 {
        self.ends.borrow().0.overflow_count()
    }

    /// Throws away what waits; it counts as drained.
    pub fn clear(&self) {
        let mut ends = self.ends.borrow_mut();
        while ends.1.pop().is_some() {}
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.ends.borrow().0.epoch()
    }

    /// Sets the current epoch.
    pub fn set_epoch(&self, epoch: u64) {
        self.ends.borrow_mut().0.set_epoch(epoch);
    }

    /// Starts the next epoch and returns its number.
    pub fn advance_epoch(&self) -> u64 {
        self.ends.borrow_mut().0.advance_epoch()
    }

    /// Closes the current epoch: returns its number, and the next one starts.
    pub fn checkpoint_barrier(&self) -> u64 {
        let mut ends = self.ends.borrow_mut();
        let closed = ends.0.epoch();
        ends.0.advance_epoch();
        closed
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
