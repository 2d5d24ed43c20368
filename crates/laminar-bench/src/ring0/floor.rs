//! The floor of a put with its changelog: a minimal program that does what cannot be left out and nothing else. An index of
//! 24 bytes for each key, an arena of places that are never written in place, a ring that is told of every change; keys of one
//! length, nothing grows, nobody reads the ring, nothing is checked and nothing survives. Index and arena are in huge pages where
//! the system has them, as ours are.

use memmap2::{Advice, MmapMut};
use zerocopy::FromBytes;

use crate::Error;
use crate::keys::{KEY, PAYLOAD, Stamp, VALUE, key, mix};

/// Entries of the ring, as ours has by default.
const RING: usize = 1 << 16;
/// Bytes of a place: a header of 12 bytes, key and value.
const PLACE: usize = 128;
const HEADER: usize = PLACE - PAYLOAD;
/// Puts of a batch.
pub const BATCH: usize = 16;

/// An entry of the index: the key, and its place, counted from 1.
type Entry = [u64; 3];

pub struct Floor {
    index: MmapMut,
    mask: usize,
    records: Records,
}

/// Arena and ring.
struct Records {
    arena: MmapMut,
    ring: Vec<[u64; 4]>,
    /// Places that were replaced so long ago that the ring has forgotten them.
    free: Vec<u64>,
    puts: usize,
    stamp: Stamp,
}

impl Floor {
    pub fn new(keys: u64) -> Result<Self, Error> {
        let slots = (keys as usize * 3 / 2).next_power_of_two();
        let records = Records {
            arena: huge((keys as usize + RING) * PLACE)?,
            ring: vec![[0; 4]; RING],
            free: (keys..keys + RING as u64).collect(),
            puts: 0,
            stamp: Stamp::new(),
        };
        let index = huge(slots * size_of::<Entry>())?;
        let mut floor = Self { index, mask: slots - 1, records };
        for number in 0..keys {
            let words = words(&key(number));
            let entries = entries(&mut floor.index)?;
            let slot = find(entries, home(words) & floor.mask, words);
            entries[slot] = [words[0], words[1], number + 1];
        }
        // Every place is written once, so that none is touched for the first time later.
        (0..keys).try_for_each(|number| floor.put(number, 0))?;
        Ok(floor)
    }

    pub fn put(&mut self, number: u64, at: u64) -> Result<(), Error> {
        let (entries, key) = (entries(&mut self.index)?, key(number));
        let words = words(&key);
        let slot = find(entries, home(words) & self.mask, words);
        self.records.put::<true>(&mut entries[slot], slot, &key, at);
        Ok(())
    }

    /// Puts of which none waits for another: their buckets, and the places that they go to, are read first, and no key is
    /// looked for again. The ring is told of them or not.
    pub fn put_batch<const TOLD: bool>(&mut self, numbers: &[u32; BATCH], at: u64) -> Result<(), Error> {
        let entries = entries(&mut self.index)?;
        let keys = numbers.map(|number| key(u64::from(number)));
        let words = keys.map(|key| words(&key));
        let homes = words.map(|words| home(words) & self.mask);
        let asked = homes.iter().zip(0..).fold(0, |all, (home, put)| {
            let [first, _, last] = entries[*home];
            all ^ first ^ last ^ self.records.touch(put)
        });
        std::hint::black_box(asked);
        for ((key, words), home) in keys.iter().zip(words).zip(homes) {
            let slot = find(entries, home, words);
            self.records.put::<TOLD>(&mut entries[slot], slot, key, at);
        }
        Ok(())
    }

    /// The first byte of a value.
    pub fn get(&mut self, number: u64) -> Result<u8, Error> {
        let (entries, words) = (entries(&mut self.index)?, words(&key(number)));
        let place = entries[find(entries, home(words) & self.mask, words)][2] - 1;
        Ok(self.records.arena[place as usize * PLACE + PLACE - VALUE])
    }
}

impl Records {
    /// Writes a new place, gives it to the entry, and tells the ring.
    fn put<const TOLD: bool>(&mut self, entry: &mut Entry, slot: usize, key: &[u8; KEY], at: u64) {
        let here = self.puts & (RING - 1);
        self.puts += 1;
        let place = self.free[here];
        let old = std::mem::replace(&mut entry[2], place + 1) - 1;
        self.free[here] = old;
        let bytes = &mut self.arena[place as usize * PLACE..][..PLACE];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[HEADER..HEADER + KEY].copy_from_slice(key);
        bytes[HEADER + KEY..].copy_from_slice(self.stamp.at(at));
        if TOLD {
            self.ring[here] = [place, old, slot as u64, at];
        }
    }

    /// Reads from both lines of the place that so many puts later is written.
    fn touch(&self, later: usize) -> u64 {
        let place = self.free[(self.puts + later) & (RING - 1)];
        let bytes = &self.arena[place as usize * PLACE..][..PLACE];
        u64::from(bytes[0] ^ bytes[PLACE / 2])
    }
}

fn entries(index: &mut MmapMut) -> Result<&mut [Entry], Error> {
    <[Entry]>::mut_from_bytes(index).map_err(|e| e.to_string().into())
}

/// Where a key is looked for first, before the mask.
fn home(words: [u64; 2]) -> usize {
    mix(words[0] ^ words[1]) as usize
}

/// The slot of a key, or the empty one where it belongs.
fn find(entries: &[Entry], home: usize, words: [u64; 2]) -> usize {
    let mut slot = home;
    while entries[slot][2] != 0 && entries[slot][..2] != words {
        slot = if slot + 1 == entries.len() { 0 } else { slot + 1 };
    }
    slot
}

fn words(key: &[u8; KEY]) -> [u64; 2] {
    let word = |at: usize| key[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    [word(0), word(8)]
}

/// Memory in huge pages where there are any, all of it touched.
fn huge(len: usize) -> Result<MmapMut, Error> {
    let mut memory = MmapMut::map_anon(len)?;
    // Where the system knows none, it is slower, and a yardstick all the same.
    let _ = memory.advise(Advice::HugePage);
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
    Ok(memory)
}
