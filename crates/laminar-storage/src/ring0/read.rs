//! Reading the state of a core.
#![expect(unsafe_code, reason = "reads records through the index")]

use std::fmt;

use super::arena::Arena;
use super::index::Offsets;
use super::pending::{WAITING_MOST, Waiting};
use super::record;
use super::segment::Needle;
use super::state::CoreState;
#[cfg(test)]
use crate::format::digest::{StateDigest, record_digest};

/// How much memory a core's state uses, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Given by the system, for records and index together.
    pub committed_bytes: u64,
    /// In slots of live records, and of replaced ones that Ring 1 has not released yet.
    pub live_bytes: u64,
    /// In slots that wait to be used again.
    pub free_bytes: u64,
    /// In the index.
    pub index_bytes: u64,
}

impl CoreState {
    /// The value of `key`.
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let at = self.current(key)?;
        self.arena.prefetch_value(at, key.len());
        // SAFETY: `current` gives live or waiting records (R0-4), which are not free.
        Some(unsafe { self.arena.record(at) }.value)
    }

    /// The values of `keys`, in their order.
    pub(crate) fn get_batch<'a, K: AsRef<[u8]>>(&'a self, keys: &'a [K]) -> Values<'a, K> {
        let nothing = [0; 2 * STEPS];
        Values { state: self, keys, hashes: nothing, hashed: 0, records: nothing, found: 0, next: 0 }
    }

    /// Whether `key` has a value.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.current(key).is_some()
    }

    /// The record that has the value of `key`.
    #[inline]
    fn current(&self, key: &[u8]) -> Option<u64> {
        let hash = self.hasher.hash(key);
        self.index.prefetch_to_read(hash);
        self.current_of(hash, key)
    }

    /// The same with the key's hash.
    #[inline]
    fn current_of(&self, hash: u64, key: &[u8]) -> Option<u64> {
        // SAFETY: a waiting put is a record that this thread wrote (R0-3), and not free.
        let waiting = self.pending.find(hash, |at| unsafe { self.arena.record(at) }.key == key);
        if waiting.is_some() {
            return waiting;
        }
        self.find(&Needle::new(hash, key), key).map(|(_, at)| at)
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> u64 {
        let is_new = |(nth, put): (usize, &Waiting)| {
            let key = self.waiting_key(put);
            let again = self.pending.iter().take(nth).any(|earlier| self.waiting_key(earlier) == key);
            !again && self.find(&put.needle, key).is_none()
        };
        let new = self.pending.iter().enumerate().filter(|each| is_new(*each)).count();
        self.index.len() + new as u64
    }

    fn waiting_key(&self, put: &Waiting) -> &[u8] {
        // SAFETY: a waiting put is a record that this thread wrote (R0-3), and not free.
        unsafe { self.arena.record(put.at) }.key
    }

    /// Whether there is no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys with their values, in no particular order.
    pub(crate) fn iter(&self) -> Iter<'_> {
        let mut hidden = [0; WAITING_MOST];
        let mut newest = [0; WAITING_MOST];
        for ((put, hidden), newest) in self.pending.iter().zip(&mut hidden).zip(&mut newest) {
            let key = self.waiting_key(put);
            *hidden = self.find(&put.needle, key).map_or(0, |(_, at)| at);
            *newest = self.current(key).filter(|at| *at == put.at).unwrap_or(0);
        }
        let (offsets, newest) = (self.index.offsets(), newest.into_iter());
        Iter { arena: &self.arena, offsets, hidden, newest, ahead: [0; AHEAD], next: 0, known: 0 }
    }

    /// The digest of the state, computed from every record.
    #[cfg(test)]
    pub(crate) fn digest(&self) -> StateDigest {
        let digest = self.iter().fold(0_u64, |sum, (key, value)| sum.wrapping_add(record_digest(key, value)));
        StateDigest { digest, live_keys: self.len() }
    }

    /// How much memory it uses.
    pub(crate) fn memory(&self) -> MemoryStats {
        let committed = self.arena.region().committed() + self.index.region().committed();
        MemoryStats {
            committed_bytes: committed as u64,
            live_bytes: self.arena.live_bytes() as u64,
            free_bytes: self.arena.free_bytes() as u64,
            index_bytes: self.index.used() as u64,
        }
    }
}

/// In the order of the index, each record is somewhere else in memory: those of so many keys to come are asked for
/// ahead.
const AHEAD: usize = 16;

/// All keys of a core with their values.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    arena: &'a Arena,
    offsets: Offsets<'a>,
    /// The next records, as a ring: `known` of them from `next` on.
    ahead: [u64; AHEAD],
    next: usize,
    known: usize,
    /// Records in the index that a waiting put replaces; 0 for none.
    hidden: [u64; WAITING_MOST],
    /// Waiting puts that no later one replaces; 0 for none.
    newest: std::array::IntoIter<u64, WAITING_MOST>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.known < AHEAD
            && let Some(at) = self.offsets.find(|at| !self.hidden.contains(at))
        {
            self.arena.prefetch_to_read(at);
            self.ahead[(self.next + self.known) % AHEAD] = at;
            self.known += 1;
        }
        let at = if self.known > 0 {
            let at = self.ahead[self.next];
            self.next = (self.next + 1) % AHEAD;
            self.known -= 1;
            at
        } else {
            self.newest.find(|at| *at != 0)?
        };
        // SAFETY: it is live or waiting (R0-4), so not free; the borrow of the state keeps it so.
        let record: record::RecordRef<'a> = unsafe { self.arena.record(at) };
        Some((record.key, record.value))
    }
}

/// A value is behind two reads from memory, of which the second is known after the first: each is asked for so many keys
/// before it is needed.
const STEPS: usize = 8;

/// In place of a record: the key is too long for the index, so that only the record tells whether it has it.
const TO_BE_COMPARED: u64 = u64::MAX;

/// The values of many keys.
pub(crate) struct Values<'a, K> {
    state: &'a CoreState,
    keys: &'a [K],
    /// Of the keys up to `hashed`, whose places in the index are on their way; as a ring, as `records` is.
    hashes: [u64; 2 * STEPS],
    hashed: usize,
    /// Of the keys up to `found`, whose records are on their way; 0 for none, or [`TO_BE_COMPARED`].
    records: [u64; 2 * STEPS],
    found: usize,
    /// The key whose value comes next.
    next: usize,
}

impl<K: AsRef<[u8]>> Values<'_, K> {
    #[inline]
    fn hash_up_to(&mut self, end: usize) {
        while self.hashed < end
            && let Some(key) = self.keys.get(self.hashed)
        {
            let hash = self.state.hasher.hash(key.as_ref());
            self.state.index.prefetch(hash);
            self.hashes[self.hashed % (2 * STEPS)] = hash;
            self.hashed += 1;
        }
    }

    #[inline]
    fn find_up_to(&mut self, end: usize) {
        while self.found < end
            && let Some(key) = self.keys.get(self.found)
        {
            let (place, key) = (self.found % (2 * STEPS), key.as_ref());
            let needle = Needle::new(self.hashes[place], key);
            let (fetched, record) = if needle.is_long() {
                (self.state.index.candidate(&needle).unwrap_or(0), TO_BE_COMPARED)
            } else {
                let record = self.state.current_of(needle.hash, key).unwrap_or(0);
                (record, record)
            };
            self.state.arena.prefetch_to_read(fetched);
            self.records[place] = record;
            self.found += 1;
        }
    }
}

impl<'a, K: AsRef<[u8]>> Iterator for Values<'a, K> {
    type Item = Option<&'a [u8]>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.keys.len() {
            return None;
        }
        self.hash_up_to(self.next + 2 * STEPS);
        self.find_up_to(self.next + STEPS);
        let place = self.next % (2 * STEPS);
        let record = match self.records[place] {
            0 => None,
            TO_BE_COMPARED => self.state.current_of(self.hashes[place], self.keys[self.next].as_ref()),
            record => Some(record),
        };
        self.next += 1;
        // SAFETY: `current_of` gave a live or waiting record (R0-4), so not free; the borrow of the state keeps it so.
        Some(record.map(|record| unsafe { self.state.arena.record(record) }.value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.keys.len() - self.next;
        (left, Some(left))
    }
}

impl<K: AsRef<[u8]>> ExactSizeIterator for Values<'_, K> {}

/// How far it is, not what the state holds.
impl<K> fmt::Debug for Values<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("left", &(self.keys.len() - self.next)).finish_non_exhaustive()
    }
}
