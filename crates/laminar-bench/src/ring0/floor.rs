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
/// Puts whose buckets are asked for together.
pub const BATCH: usize = 16;

/// An entry of the index: the key, and its place, counted from 1.
type Entry = [u64; 3];

pub struct Floor {
    index: MmapMut,
    arena: MmapMut,
    mask: usize,
    ring: Vec<[u64; 4]>,
    /// Places that were replaced so long ago that the ring has forgotten them.
    free: Vec<u64>,
    puts: usize,
    stamp: Stamp,
}

impl Floor {
    pub fn new(keys: u64) -> Result<Self, Error> {
        let entries = (keys as usize * 3 / 2).next_power_of_two();
        let mut floor = Self {
            index: huge(entries * size_of::<Entry>())?,
            arena: huge((keys as usize + RING) * PLACE)?,
            mask: entries - 1,
            ring: vec![[0; 4]; RING],
            free: (keys..keys + RING as u64).collect(),
            puts: 0,
            stamp: Stamp::new(),
        };
        for number in 0..keys {
            let (slot, words) = floor.find(number)?;
            floor.entries()?[slot] = [words[0], words[1], number + 1];
        }
        // Every place is written once, so that none is touched for the first time later.
        (0..keys).try_for_each(|number| floor.put(number, 0))?;
        Ok(floor)
    }

    fn entries(&mut self) -> Result<&mut [Entry], Error> {
        <[Entry]>::mut_from_bytes(&mut self.index).map_err(|e| e.to_string().into())
    }

    /// The entry of a key, or the empty one where it belongs.
    fn find(&mut self, number: u64) -> Result<(usize, [u64; 2]), Error> {
        let words = words(&key(number));
        let mask = self.mask;
        let mut slot = mix(words[0] ^ words[1]) as usize & mask;
        let entries = self.entries()?;
        while entries[slot][2] != 0 && entries[slot][..2] != words {
            slot = (slot + 1) & mask;
        }
        Ok((slot, words))
    }

    pub fn put(&mut self, number: u64, at: u64) -> Result<(), Error> {
        let (slot, _) = self.find(number)?;
        let here = self.puts & (RING - 1);
        self.puts += 1;
        let place = self.free[here];
        let old = std::mem::replace(&mut self.entries()?[slot][2], place + 1) - 1;
        self.free[here] = old;
        let bytes = &mut self.arena[place as usize * PLACE..][..PLACE];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[HEADER..HEADER + KEY].copy_from_slice(&key(number));
        bytes[HEADER + KEY..].copy_from_slice(self.stamp.at(at));
        self.ring[here] = [place, old, slot as u64, at];
        Ok(())
    }

    /// Puts whose buckets are read first, all of them, so that the reads overlap.
    pub fn put_batch(&mut self, numbers: &[u32], at: u64) -> Result<(), Error> {
        let mask = self.mask;
        let entries = self.entries()?;
        let slots = numbers.iter().map(|number| words(&key(u64::from(*number))));
        let asked = slots.fold(0, |all: u64, words| {
            all.wrapping_add(entries[mix(words[0] ^ words[1]) as usize & mask][2])
        });
        std::hint::black_box(asked);
        numbers.iter().try_for_each(|number| self.put(u64::from(*number), at))
    }

    /// The first byte of a value.
    pub fn get(&mut self, number: u64) -> Result<u8, Error> {
        let (slot, _) = self.find(number)?;
        let place = self.entries()?[slot][2] - 1;
        Ok(self.arena[place as usize * PLACE + PLACE - VALUE])
    }
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
