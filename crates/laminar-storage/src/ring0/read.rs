//! Reading the state of a core.
#![expect(unsafe_code, reason = "reads records through the index")]

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
        // SAFETY: `current` gives live or waiting records (R0-4), which are not free.
        Some(unsafe { self.arena.record(at) }.value)
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
