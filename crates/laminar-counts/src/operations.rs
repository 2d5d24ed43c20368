//! The operations that are counted. Callgrind counts what happens in [`under_count`], and writes down a figure each time
//! that it is left; which figure belongs to which operations follows from their order.

use std::hint::black_box;
use std::sync::Arc;

use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{CoreStore, Opened, Settings, Store, StoreError};

use crate::Error;

/// Asks this program for the operations, instead of for their counts.
pub const ARGUMENT: &str = "operations";

/// Names the function in which is counted, to callgrind.
pub const UNDER_COUNT: &str = "laminar_counts::operations::under_count";

/// What the processor can do, in what [`run`] tells.
pub const FEATURES: &str = "features";

/// Keys of the state.
const KEYS: u64 = 100_000;
/// Operations of a kind. They fit into the changelog ring, so that none has to wait.
const OPERATIONS: u64 = 20_000;
const PUTS_IN_BATCH: usize = 16;
const KEYS_IN_BATCH: usize = 128;
const PUTS_IN_EPOCH: usize = 16;
const SEALS: u64 = 2_000;

type Key = [u8; 16];
type Value = [u8; 100];

/// Mixes a number: a bijection, so different numbers stay different.
const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

fn key<const K: usize>(number: u64) -> [u8; K] {
    let mut key = [0; K];
    for (part, at) in key.chunks_mut(8).zip(0_u64..) {
        part.copy_from_slice(&mix(number ^ at << 56).to_le_bytes());
    }
    key
}

fn value(number: u64) -> Value {
    [number.to_le_bytes()[0]; 100]
}

/// As many numbers below `KEYS`, in no order.
fn drawn(seed: u64) -> impl Iterator<Item = u64> {
    (0..OPERATIONS).map(move |at| mix(seed << 32 | at) % KEYS)
}

fn pairs<const K: usize>(numbers: impl Iterator<Item = u64>) -> Vec<([u8; K], Value)> {
    numbers.map(|number| (key(number), value(number))).collect()
}

/// A store with one core, and nothing beside it.
struct Counted {
    store: Store,
    core: CoreStore,
}

impl Counted {
    fn open() -> Result<Self, Error> {
        let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
        let disk = Arc::new(SimDisk::new(1));
        let opened = Store::builder("/state").vfs(disk).settings(settings).open()?;
        let Opened { store, mut cores, .. } = opened;
        Ok(Self { store, core: cores.pop().ok_or("no core")? })
    }

    /// Ring 1 takes over what was changed, so that slots can be used again and the ring is empty.
    fn settle(&mut self) -> Result<(), Error> {
        let epoch = self.core.seal_epoch()?;
        Ok(self.store.wait_durable(epoch)?)
    }

    fn fill<const K: usize>(&mut self) -> Result<(), Error> {
        for from in (0..KEYS).step_by(usize::try_from(OPERATIONS)?) {
            put_all(&mut self.core, &pairs::<K>(from..from + OPERATIONS))?;
            self.settle()?;
        }
        // Overwritten slots are what later puts use.
        for seed in 1..4 {
            put_all(&mut self.core, &pairs::<K>(drawn(seed)))?;
            self.settle()?;
        }
        Ok(())
    }
}

/// All that is counted. There is one such function, and not one for each kind of operation, so that it has this name.
#[inline(never)]
fn under_count(operations: &mut dyn FnMut() -> Result<(), StoreError>) -> Result<(), StoreError> {
    operations()
}

/// Has operations counted, and tells which they are and how many.
fn count(
    name: &str,
    number: u64,
    mut operations: impl FnMut() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    println!("{name}, {number}");
    under_count(&mut operations)
}

fn put_all<const K: usize>(core: &mut CoreStore, pairs: &[([u8; K], Value)]) -> Result<(), StoreError> {
    pairs.iter().try_for_each(|(key, value)| core.put(key, value))
}

/// Does every kind of operation.
pub fn run() -> Result<(), Error> {
    println!("{FEATURES}, {}", features());
    let mut counted = Counted::open()?;
    counted.fill::<16>()?;
    changes(&mut counted)?;
    reads(&counted.core)?;
    epochs(&mut counted)?;
    coming_and_going(&mut counted)?;

    let mut long = Counted::open()?;
    long.fill::<64>()?;
    let overwritten = pairs::<64>(drawn(9));
    count("put, key of 64 bytes", OPERATIONS, || put_all(&mut long.core, &overwritten))?;
    long.settle()
}

fn changes(counted: &mut Counted) -> Result<(), Error> {
    let [first, second, third] = [4, 5, 6].map(|seed| pairs::<16>(drawn(seed)));
    count("put", OPERATIONS, || put_all(&mut counted.core, &first))?;
    counted.settle()?;
    let core = &mut counted.core;
    count("put_batch of 16, a put", OPERATIONS, || {
        second.chunks(PUTS_IN_BATCH).try_for_each(|pairs| core.put_batch(pairs))
    })?;
    counted.settle()?;
    let core = &mut counted.core;
    count("update", OPERATIONS, || third.iter().try_for_each(|(key, _)| core.update(key, add_one)))?;
    counted.settle()
}

fn add_one(old: Option<&[u8]>) -> Option<Value> {
    let mut new: Value = old?.try_into().ok()?;
    new[0] = new[0].wrapping_add(1);
    Some(new)
}

fn reads(core: &CoreStore) -> Result<(), StoreError> {
    let there: Vec<Key> = drawn(7).map(key).collect();
    let absent: Vec<Key> = drawn(8).map(|number| key(number + KEYS)).collect();
    let read = |keys: &[Key]| {
        for key in keys {
            black_box(core.get(key));
        }
        Ok(())
    };
    count("get", OPERATIONS, || read(&there))?;
    count("get, no such key", OPERATIONS, || read(&absent))?;
    count("get_batch of 128, a key", OPERATIONS, || {
        for keys in there.chunks(KEYS_IN_BATCH) {
            for value in core.get_batch(keys) {
                black_box(value);
            }
        }
        Ok(())
    })
}

fn epochs(counted: &mut Counted) -> Result<(), Error> {
    let core = &mut counted.core;
    count("seal_epoch, nothing changed", SEALS, || (0..SEALS).try_for_each(|_| core.seal_epoch().map(drop)))?;
    counted.settle()?;
    let pairs = pairs::<16>(drawn(10));
    let core = &mut counted.core;
    count("16 puts and seal_epoch", OPERATIONS / PUTS_IN_EPOCH as u64, || {
        pairs.chunks(PUTS_IN_EPOCH).try_for_each(|pairs| {
            put_all(core, pairs)?;
            core.seal_epoch().map(drop)
        })
    })?;
    counted.settle()
}

/// Keys that are there are deleted, and as many that were never there take their slots.
fn coming_and_going(counted: &mut Counted) -> Result<(), Error> {
    let (going, coming) = (pairs::<16>(0..OPERATIONS), pairs::<16>(KEYS..KEYS + OPERATIONS));
    // Others go and come back first, uncounted, and leave slots of every size behind: whether memory must be asked for within
    // what is counted would otherwise hang on the seed of the hash, and is 44 instructions for each delete.
    let others = pairs::<16>(OPERATIONS..2 * OPERATIONS);
    others.iter().try_for_each(|(key, _)| counted.core.delete(key).map(drop))?;
    counted.settle()?;
    put_all(&mut counted.core, &others)?;
    counted.settle()?;
    let core = &mut counted.core;
    count("delete", OPERATIONS, || going.iter().try_for_each(|(key, _)| core.delete(key).map(drop)))?;
    counted.settle()?;
    count("put, new key", OPERATIONS, || put_all(&mut counted.core, &coming))?;
    counted.settle()
}

/// What of the processor code chooses by while it runs, as callgrind presents it.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    let there = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let there: [(&str, bool); 0] = [];
    let names = there.iter().filter(|(_, there)| *there).map(|(name, _)| *name);
    std::iter::once(std::env::consts::ARCH).chain(names).collect::<Vec<_>>().join(" ")
}
