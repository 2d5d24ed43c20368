//! The changelog of the library over the ring that it uses, with two threads in every order that the memory model
//! allows: capacity 2, up to 4 entries, twice round the buffer, and either end gone first.
//!
//! loom cannot look into the ring's own buffer, which is plain memory. So every slot has a cell beside it that is
//! written and read exactly when the slot is: written once the ring says that there is room and before the push,
//! read once the ring shows the entry and before it is taken. An order in which a slot would be written while, or
//! not ordered with, it is read fails at the cell.

// Whole, though only the two ends are used here.
#[allow(dead_code, reason = "the file of the library as it is")]
#[path = "../../../crates/laminar-storage/src/incremental/changelog.rs"]
mod changelog;

/// What the changelog takes from the rest of the library.
mod sync {
    pub(crate) use loom::sync::atomic;
}

/// As `sync`. No key is hashed here.
mod ring0 {
    pub(crate) struct KeyHasher;

    impl KeyHasher {
        pub(crate) fn of_process() -> Self {
            Self
        }

        pub(crate) fn hash(&self, key: &[u8]) -> u64 {
            key.len() as u64
        }
    }
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use changelog::{ChangelogConsumer, ChangelogProducer, StateChangelogBuffer, StateChangelogEntry};
use loom::cell::UnsafeCell;
use loom::thread;

const CAPACITY: usize = 2;

/// Beside each slot of the ring, a cell of which loom checks every access, and the number of the entry in it.
struct Slots([(UnsafeCell<()>, AtomicU64); CAPACITY]);

impl Slots {
    fn of(&self, entry: u64) -> &(UnsafeCell<()>, AtomicU64) {
        &self.0[entry as usize % CAPACITY]
    }

    fn write(&self, entry: u64) {
        let (cell, number) = self.of(entry);
        cell.with_mut(|_| number.store(entry, Ordering::Relaxed));
    }

    fn read(&self, entry: u64) -> u64 {
        let (cell, number) = self.of(entry);
        cell.with(|_| number.load(Ordering::Relaxed))
    }
}

fn entry(number: u64) -> StateChangelogEntry {
    StateChangelogEntry::put(1, number, number * 16, 8)
}

fn ends() -> (ChangelogProducer, ChangelogConsumer, Arc<Slots>) {
    let (producer, consumer) = StateChangelogBuffer::with_capacity(CAPACITY).split();
    assert_eq!(producer.capacity(), CAPACITY);
    (producer, consumer, Arc::new(Slots([(); CAPACITY].map(|()| (UnsafeCell::new(()), AtomicU64::new(u64::MAX))))))
}

/// Pushes entries as Ring 0 does: looks for room first. Stops when nobody will take them.
fn push_all(producer: &mut ChangelogProducer, slots: &Slots, entries: u64) {
    for number in 0..entries {
        while !producer.has_room() {
            if producer.consumer_gone() {
                return;
            }
            thread::yield_now();
        }
        slots.write(number);
        assert_eq!(producer.push(entry(number)), Ok(()), "there was room");
    }
    assert_eq!((producer.total_pushed(), producer.overflow_count()), (entries, 0));
}

/// Takes one entry, and says whether there was one.
fn pop(consumer: &mut ChangelogConsumer, slots: &Slots, next: &mut u64) -> bool {
    let Some(seen) = consumer.peek() else { return false };
    assert_eq!((seen, slots.read(*next)), (entry(*next), *next), "in order, none twice, none missing");
    assert_eq!(consumer.pop(), Some(seen));
    *next += 1;
    true
}

/// Entries one by one, round the buffer until both positions of the ring are where they began.
fn one_by_one() {
    let (mut producer, mut consumer, slots) = ends();
    let theirs = Arc::clone(&slots);
    let ring0 = thread::spawn(move || push_all(&mut producer, &theirs, 4));
    let mut next = 0;
    while next < 4 {
        if !pop(&mut consumer, &slots, &mut next) {
            thread::yield_now();
        }
    }
    assert_eq!((consumer.total_drained(), consumer.is_empty()), (4, true));
    ring0.join().expect("the producer's thread");
}

/// The same in batches, as Ring 1 takes them.
fn in_batches() {
    let (mut producer, mut consumer, slots) = ends();
    let theirs = Arc::clone(&slots);
    let ring0 = thread::spawn(move || push_all(&mut producer, &theirs, 3));
    let mut taken = Vec::new();
    while taken.len() < 3 {
        let before = taken.len() as u64;
        let waiting = consumer.len() as u64;
        (before..before + waiting).for_each(|number| assert_eq!(slots.read(number), number));
        // No more than was looked at: more may have come since.
        let took = consumer.drain_into(&mut taken, waiting as usize);
        assert_eq!(took as u64, waiting, "what waits does not go away");
        if took == 0 {
            thread::yield_now();
        }
    }
    assert_eq!(taken, (0..3).map(entry).collect::<Vec<_>>());
    ring0.join().expect("the producer's thread");
}

/// The producer pushes and goes: what was pushed before is seen by whoever saw that it went.
fn the_producer_goes() {
    let (mut producer, mut consumer, slots) = ends();
    let theirs = Arc::clone(&slots);
    let ring0 = thread::spawn(move || push_all(&mut producer, &theirs, 2));
    let mut next = 0;
    loop {
        let last = consumer.producer_gone();
        if !pop(&mut consumer, &slots, &mut next) {
            if last {
                break;
            }
            thread::yield_now();
        }
    }
    assert_eq!(next, 2);
    ring0.join().expect("the producer's thread");
}

/// Entries that the producer sees counted as drained have left their slots.
fn drained_is_free() {
    let (mut producer, mut consumer, slots) = ends();
    let theirs = Arc::clone(&slots);
    let ring1 = thread::spawn(move || {
        let mut next = 0;
        while next < 3 {
            if !pop(&mut consumer, &theirs, &mut next) {
                thread::yield_now();
            }
        }
    });
    for number in 0..3 {
        while producer.total_pushed() - producer.total_drained() >= CAPACITY as u64 {
            thread::yield_now();
        }
        slots.write(number);
        assert_eq!(producer.push(entry(number)), Ok(()), "what is drained leaves room");
    }
    ring1.join().expect("the consumer's thread");
}

/// The consumer goes while entries come: the producer learns it instead of waiting for ever, and the last of the two
/// to go frees the buffer once.
fn the_consumer_goes() {
    let (mut producer, mut consumer, slots) = ends();
    let theirs = Arc::clone(&slots);
    let ring1 = thread::spawn(move || {
        let mut next = 0;
        pop(&mut consumer, &theirs, &mut next);
    });
    push_all(&mut producer, &slots, 3);
    drop(producer);
    ring1.join().expect("the consumer's thread");
}

fn main() {
    // With how many preemptions at most; to go on with the other thread where one waits is none. Without a bound the
    // first did not end in a minute of computing.
    let models: [(&str, Option<usize>, fn()); 5] = [
        ("one_by_one", Some(3), one_by_one),
        ("in_batches", Some(3), in_batches),
        ("the_producer_goes", None, the_producer_goes),
        ("drained_is_free", None, drained_is_free),
        ("the_consumer_goes", None, the_consumer_goes),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, bound, model) in models {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let (started, orders) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&orders);
        let mut builder = loom::model::Builder::new();
        // LOOM_MAX_PREEMPTIONS goes first.
        builder.preemption_bound = builder.preemption_bound.or(bound);
        let extent =
            builder.preemption_bound.map_or("all".to_owned(), |n| format!("all with up to {n} preemptions"));
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let orders = orders.load(Ordering::Relaxed);
        println!("{name}: {orders} orders, {extent}, {:.1} s", started.elapsed().as_secs_f64());
    }
}
