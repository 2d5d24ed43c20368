//! Ring 0: the state of one core in memory. The only folder with `unsafe`.
//!
//! It is for keeping the live records of one core where its thread reads and writes them at memory
//! speed, and for handing every change to Ring 1 without a lock, a system call or an allocation. It
//! is not the truth: what it holds is rebuilt from checkpoint and log when the store is opened.
//!
//! ```text
//!   CoreState (the core's thread)                              CoreDrain (Ring 1's thread)
//!     index ──offset──▶ arena: [header key value]...  ◀──offset── record()
//!       │                        ▲ reuse                          ▲
//!       │                  retire queue ◀──── released ────────── release()
//!       └─ put, delete ──▶ changelog ring, 32 bytes per change ──▶ drain()
//! ```
//!
//! A write puts a new record into a new slot, pushes the changelog entry, and only then swings the
//! index to it; the record it replaces goes to the retire queue under the number of that entry. A put
//! does the last two steps a few puts later (`pending.rs`), so that the reads from memory of several
//! puts overlap; readers look among the waiting puts first, and everything else finishes them first.
//!
//! # Invariants
//!
//! Every `unsafe` block cites the ones it rests on.
//!
//! - **R0-1** (commit) Memory of a region is used only below `committed`, which is published after
//!   the memory is accessible and filled, and never shrinks.
//! - **R0-2** (life) A region is unmapped when its last `Arc` is dropped. `CoreState` and `CoreDrain`
//!   each hold one, and every reference into the region borrows from one of the two.
//! - **R0-3** (slots) A slot, once used, begins with a valid [`record::Header`] for as long as the region
//!   lives, and never moves. While its kind is not `Free`, key and value follow the header with the
//!   lengths it gives, inside the slot. Offsets are multiples of 16 and never 0.
//! - **R0-4** (exclusive) A slot is in exactly one of these states: *fresh* or *free* (Ring 0 alone
//!   knows it), *held* as an [`arena::Slot`], *waiting* (a record of a put that is not pushed yet), *live*
//!   (the index points to it), *retired* (in the retire queue; a tombstone or commit record is retired
//!   as it is pushed). While a state is loaded, a record that waits for the index, or that the index does
//!   not point to any more, is *held* by the loader. Only fresh, free, held and waiting slots are written, but for the digest.
//! - **R0-5** (reuse) A retired slot becomes free only after Ring 1 has released the changelog entry that
//!   retired it. Entry `n` retires the record that entry `n` replaced; a delete or a seal retires its own
//!   record as well. Ring 1 reads, for an entry it has popped and not released, the entry's record and
//!   that record's `prev`, nothing else. An entry's own record is retired by the same or by a later
//!   entry, and `prev` by the entry itself, so that neither is reused while Ring 1 may read it. Entries are
//!   released in order, and the retire queue has a place for every unreleased entry and every waiting put.
//!   It has as many places as the ring, so that the ring has room whenever the queue has.
//! - **R0-6** (index) A `Block` is a block of the index region that was handed out and holds initialised
//!   bytes; only Ring 0 reads or writes the index region.
//! - **R0-7** (publication) A record is written before its entry is pushed (the ring's Release) and
//!   read by Ring 1 after it is popped (Acquire). Ring 1's last read comes before it publishes
//!   `released` (Release), and Ring 0 frees a slot after it has read that (Acquire). The digest field is
//!   atomic; after publication only Ring 1 writes it, and only Ring 1 reads it.
//! - **R0-8** (all or nothing) An operation that fails has changed nothing that can be seen: ring and queue
//!   space is checked first, memory is had next, and nothing after the push can fail. A put that waits
//!   has its places reserved, and the index the memory for the splits that evenly spread hashes can cause; if
//!   colliding ones need more than there is, the put goes on waiting, readable, and the later
//!   operation that would have finished it fails.
//!
//! # When something fails
//!
//! As many unreleased entries as the ring has places is [`Ring0Error::RingFull`]: try again once
//! Ring 1 has made progress. Address space that is used up is [`Ring0Error::StateFull`]. Nothing here
//! touches a disk.
//!
//! # To change this, also touch
//!
//! The header's layout: the table in `record.rs`. What retires when: R0-5, and the model test in `tests/`.

mod arena;
mod blocks;
mod bump;
mod class;
mod drain;
mod hash;
mod index;
mod load;
mod pending;
mod prefault;
pub(crate) mod prefetch;
mod read;
mod record;
mod region;
mod retire;
mod segment;
mod state;

use std::io;
use std::sync::Arc;

pub(crate) use drain::CoreDrain;
pub(crate) use hash::KeyHasher;
pub use read::MemoryStats;
pub(crate) use read::{Iter, Values as StateValues};
pub(crate) use state::CoreState;

use crate::ids::{CoreId, Epoch};
use crate::incremental::changelog::StateChangelogBuffer;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the state of a core is addressed with 64 bits; 32-bit targets are not supported");

/// Why the length assertions of a slot hold.
const KEY_AND_VALUE_FIT: &str = "lengths are checked, and the slot is chosen for them, before it is written";

/// What a core's state is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateConfig {
    /// The core.
    pub core: CoreId,
    /// Entries that can be on their way: pushed and not released by Ring 1. Rounded up to a power of two.
    pub ring_capacity: usize,
    /// Most bytes of all records together. Three times as much address space is reserved: twice for records, which
    /// loading may need, and once for the index. No memory is used for it. When the system refuses, less is taken.
    pub limit_bytes: u64,
    /// The epoch of the first change.
    pub first_epoch: Epoch,
}

/// Why a change was not made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ring0Error {
    /// Ring 1 is behind.
    #[error("the changelog ring is full")]
    RingFull,
    /// The reserved address space is used up.
    #[error("the state has reached its limit of {limit_bytes} bytes")]
    StateFull {
        /// What was reserved.
        limit_bytes: u64,
    },
    /// The key is longer than `MAX_KEY_LEN`.
    #[error("a key of {0} bytes is too long")]
    KeyTooLong(usize),
    /// The value, or the commit bytes, are longer than `MAX_VALUE_LEN`.
    #[error("a value of {0} bytes is too long")]
    ValueTooLong(usize),
    /// The system gave no memory.
    #[error("the system gave no memory for the state: {0}")]
    Memory(#[source] io::Error),
    /// Loading is only possible while no change is on its way to Ring 1.
    #[error("changes are on their way to the log, so that nothing can be loaded")]
    NotQuiet,
    /// An epoch before the current one cannot be sealed.
    #[error("the current epoch is {current} already")]
    EpochPassed {
        /// The current epoch.
        current: Epoch,
    },
}

/// Makes the empty state of a core: the half for the core's own thread and the half for Ring 1.
pub(crate) fn new_state(config: StateConfig) -> Result<(CoreState, CoreDrain), Ring0Error> {
    new_state_with(config, KeyHasher::of_process())
}

fn new_state_with(config: StateConfig, hasher: KeyHasher) -> Result<(CoreState, CoreDrain), Ring0Error> {
    // A state is loaded file by file: what a later file deletes is there until then, beside what it adds.
    let limit = config.limit_bytes;
    let while_loading = limit.saturating_mul(2).saturating_add(arena::BEYOND_LIMIT as u64);
    let records = Arc::new(region::Region::reserve(while_loading).map_err(Ring0Error::Memory)?);
    let entries = Arc::new(region::Region::reserve(limit).map_err(Ring0Error::Memory)?);
    let helper = prefault::Prefaulter::of_process();
    let arena = arena::Arena::new(Arc::clone(&records), limit, Arc::clone(&helper))?;
    let index = index::Index::new(entries, helper, hasher)?;

    let (mut producer, consumer) = StateChangelogBuffer::with_capacity(config.ring_capacity).split();
    producer.set_epoch(config.first_epoch.get());
    let released = Arc::new(retire::Released::default());
    // An entry has its place until Ring 1 has released it, so that the ring itself is never full.
    let retired = retire::RetireQueue::new(producer.capacity(), Arc::clone(&released));
    let drain = CoreDrain::new(records, consumer, released);
    Ok((CoreState::new(config.core, hasher, arena, index, producer, retired), drain))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod tests;
