use std::thread;

use proptest::prelude::*;

use super::*;

fn entry(n: u64) -> StateChangelogEntry {
    StateChangelogEntry::put(1, n, n * 16, 8)
}

#[test]
fn an_unknown_operation_byte_is_an_error() {
    for byte in 0..=u8::MAX {
        match StateOp::from_u8(byte) {
            Ok(op) => assert_eq!(op.to_u8(), byte),
            Err(UnknownStateOp(b)) => assert!(b == byte && byte != 1 && byte != 2),
        }
    }
}

#[test]
fn entries_say_what_they_are() {
    let put = StateChangelogEntry::from_key(b"k", 3, 64, 10, StateOp::Put);
    assert_eq!((put.epoch, put.mmap_offset, put.value_len, put.op()), (3, 64, 10, StateOp::Put));
    assert!(put.is_put() && !put.is_delete() && !put.is_seal());
    let delete = StateChangelogEntry::from_key(b"k", 3, 64, 10, StateOp::Delete);
    assert_eq!(delete, StateChangelogEntry::delete(3, StateChangelogEntry::hash_key(b"k"), 64));
    assert!(delete.is_delete() && !delete.is_put() && delete.value_len == 0);
    let seal = StateChangelogEntry::seal(3, 0);
    assert!(seal.is_seal() && !seal.is_put() && !seal.is_delete());
}

/// An index by this hash alone would otherwise be a list.
#[test]
fn keys_have_hashes_of_their_own() {
    let hashes: std::collections::HashSet<_> =
        (0..100_u8).map(|n| StateChangelogEntry::hash_key(&[n])).collect();
    assert_eq!(hashes.len(), 100);
    assert_eq!(StateChangelogEntry::hash_key(b"k"), StateChangelogEntry::hash_key(b"k"));
}

#[test]
fn what_waits_and_what_fits_is_known_at_both_ends() {
    let buffer = StateChangelogBuffer::with_capacity(8);
    assert!(buffer.is_empty() && !buffer.is_full());
    for n in 0..3 {
        assert!(buffer.push(entry(n)));
    }
    assert!(!buffer.is_empty() && !buffer.is_full());
    assert_eq!((buffer.len(), buffer.available()), (3, 5));
    let (producer, mut consumer) = buffer.split();
    assert_eq!((producer.capacity(), consumer.capacity()), (8, 8));
    assert_eq!((producer.available(), producer.total_drained()), (5, 0));
    assert!(!consumer.is_empty());
    assert_eq!(consumer.drain(2).len(), 2);
    assert_eq!((consumer.len(), consumer.total_drained()), (1, 2));
    assert_eq!((producer.available(), producer.total_drained(), producer.total_pushed()), (7, 2, 3));
    assert_eq!(consumer.drain(2).len(), 1);
    assert!(consumer.is_empty());
}

#[test]
fn capacity_is_rounded_up_to_a_power_of_two() {
    for (asked, given) in [(0, 1), (1, 1), (3, 4), (8, 8), (1000, 1024)] {
        assert_eq!(StateChangelogBuffer::with_capacity(asked).capacity(), given);
    }
    assert_eq!(StateChangelogBuffer::default().capacity(), DEFAULT_CAPACITY);
}

#[test]
fn a_full_ring_refuses_and_loses_nothing() {
    let buffer = StateChangelogBuffer::with_capacity(4);
    for n in 0..4 {
        assert!(buffer.push(entry(n)));
    }
    assert!(buffer.is_full() && buffer.available() == 0);
    assert!(!buffer.push(entry(9)) && !buffer.push_put(b"x", 0, 0) && !buffer.push_delete(b"x", 0));
    assert_eq!((buffer.overflow_count(), buffer.total_pushed(), buffer.len()), (3, 4, 4));
    assert_eq!(buffer.drain(3), [entry(0), entry(1), entry(2)]);
    assert_eq!(buffer.pop(), Some(entry(3)));
    assert!(buffer.is_empty() && buffer.pop().is_none());
}

#[test]
fn epochs_advance_and_a_barrier_closes_one() {
    let buffer = StateChangelogBuffer::with_capacity(4);
    buffer.set_epoch(5);
    assert_eq!(buffer.advance_epoch(), 6);
    assert!(buffer.push_put(b"a", 16, 1));
    assert_eq!(buffer.checkpoint_barrier(), 6);
    assert_eq!(buffer.epoch(), 7);
    assert!(buffer.push_delete(b"a", 16));
    let epochs: Vec<u64> = buffer.drain_all().iter().map(|e| e.epoch).collect();
    assert_eq!(epochs, [6, 7]);
}

#[test]
fn cleared_entries_count_as_drained() {
    let buffer = StateChangelogBuffer::with_capacity(4);
    assert!(buffer.push(entry(1)) && buffer.push(entry(2)));
    buffer.clear();
    assert_eq!((buffer.total_pushed(), buffer.total_drained(), buffer.len()), (2, 2, 0));
}

#[test]
fn ends_are_send_and_see_each_other_leave() {
    fn send<T: Send>() {}
    send::<StateChangelogBuffer>();
    send::<ChangelogProducer>();
    send::<ChangelogConsumer>();
    let (mut producer, mut consumer) = StateChangelogBuffer::with_capacity(2).split();
    assert!(!producer.consumer_gone() && !consumer.producer_gone());
    producer.push(entry(1)).unwrap();
    producer.push(entry(2)).unwrap();
    assert_eq!(producer.push(entry(3)), Err(entry(3)));
    drop(producer);
    assert!(consumer.producer_gone());
    assert_eq!(consumer.peek(), Some(entry(1)));
    assert_eq!(consumer.drain(9), [entry(1), entry(2)]);
}

#[test]
fn two_threads_see_every_entry_once_and_in_order() {
    let count: u64 = if cfg!(miri) { 300 } else { 200_000 };
    let (mut producer, mut consumer) = StateChangelogBuffer::with_capacity(64).split();
    let pusher = thread::spawn(move || {
        for n in 0..count {
            while producer.push(entry(n)).is_err() {
                thread::yield_now();
            }
            assert!(producer.total_drained() <= producer.total_pushed());
        }
    });
    let mut seen = Vec::new();
    while (seen.len() as u64) < count {
        if consumer.drain_into(&mut seen, 50) == 0 {
            thread::yield_now();
        }
    }
    pusher.join().unwrap();
    assert!(seen.iter().zip(0..).all(|(e, n)| *e == entry(n)));
    assert_eq!(consumer.total_drained(), count);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 256 }))]

    #[test]
    fn what_went_in_is_out_or_still_there(ops in prop::collection::vec(0_usize..6, 0..200)) {
        let buffer = StateChangelogBuffer::with_capacity(8);
        let mut model = std::collections::VecDeque::new();
        let mut refused = 0;
        for (op, n) in ops.into_iter().zip(0..) {
            match op {
                0..=2 => if buffer.push(entry(n)) { model.push_back(entry(n)) } else { refused += 1 },
                3 => prop_assert_eq!(buffer.pop(), model.pop_front()),
                4 => {
                    let expected: Vec<_> = model.drain(..model.len().min(3)).collect();
                    prop_assert_eq!(buffer.drain(3), expected);
                }
                _ => { buffer.clear(); model.clear(); }
            }
            prop_assert_eq!(buffer.len(), model.len());
            prop_assert_eq!(buffer.total_pushed(), buffer.total_drained() + buffer.len() as u64);
            prop_assert_eq!(buffer.overflow_count(), refused);
            prop_assert_eq!(buffer.is_full(), model.len() == 8);
        }
    }
}

/// The next power of two of the largest number there is was none at all.
#[cfg(not(miri))]
#[test]
fn a_capacity_beyond_the_largest_is_the_largest() {
    let changelog = StateChangelogBuffer::with_capacity(usize::MAX);
    assert_eq!(changelog.capacity(), MOST_CAPACITY);
}
