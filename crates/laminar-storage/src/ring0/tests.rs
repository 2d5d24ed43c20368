//! Ring 0 as a whole, against a model.

pub(crate) mod allocations;
mod model;
mod threads;

use super::drain::Seal;
use super::*;
use crate::format::digest::{StateDigest, record_digest};

/// A state with a small ring and few addresses.
pub(super) fn small(ring_capacity: usize) -> (CoreState, CoreDrain) {
    let config = StateConfig { core: CoreId(3), ring_capacity, limit_bytes: 1 << 30, first_epoch: Epoch(1) };
    new_state(config).unwrap()
}

/// Drains and releases everything.
pub(super) fn settle(state: &mut CoreState, drain: &mut CoreDrain) -> u64 {
    let mut changes = 0;
    state.flush().unwrap();
    while !drain.is_empty() {
        changes += drain.drain(1000, usize::MAX).entries.len() as u64;
        drain.release();
    }
    changes
}

fn key(n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&n.to_le_bytes());
    key[8..].copy_from_slice(&n.wrapping_mul(31).to_le_bytes());
    key
}

#[test]
fn halves_are_send_and_not_sync() {
    fn send<T: Send>() {}
    send::<CoreState>();
    send::<CoreDrain>();
    // Ambiguous, so that it does not compile, if one of them were `Sync`.
    trait NotSync<A> {
        fn check() {}
    }
    struct IsSync;
    impl<T: ?Sized> NotSync<()> for T {}
    impl<T: ?Sized + Sync> NotSync<IsSync> for T {}
    <CoreState as NotSync<_>>::check();
    <CoreDrain as NotSync<_>>::check();
}

#[test]
fn puts_are_seen_at_once_and_drained_in_order_with_their_seal() {
    let (mut state, mut drain) = small(16);
    state.try_put(b"a", b"1").unwrap();
    state.try_put(b"a", b"2").unwrap();
    assert!(state.try_delete(b"a").unwrap());
    assert!(!state.try_delete(b"a").unwrap());
    state.try_put(b"b", b"").unwrap();
    assert_eq!(state.seal(Some(b"offsets")).unwrap(), Epoch(1));
    state.try_put(b"c", b"3").unwrap();
    assert_eq!(state.epoch(), Epoch(2));
    assert_eq!((state.get(b"a"), state.get(b"b"), state.get(b"c")), (None, Some(&b""[..]), Some(&b"3"[..])));
    assert_eq!((state.len(), state.contains(b"b"), state.core()), (2, true, CoreId(3)));

    let batch = drain.drain(100, usize::MAX);
    assert_eq!(batch.seal, Some(Seal { epoch: Epoch(1), commit: Some((*b"offsets").into()) }));
    let records: Vec<_> = batch.entries.clone().map(|i| drain.record(i).unwrap()).collect();
    let seen: Vec<_> = records.iter().map(|r| (r.op as u8, r.key, r.value)).collect();
    assert_eq!(seen, [(1, &b"a"[..], &b"1"[..]), (1, b"a", b"2"), (2, b"a", b""), (1, b"b", b"")]);
    assert!(batch.entries.clone().all(|i| drain.entry(i).unwrap().epoch == 1));
    let superseded = batch.entries.clone().map(|i| drain.is_superseded(i));
    assert_eq!(superseded.collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(drain.digest(), StateDigest { digest: record_digest(b"b", b""), live_keys: 1 });

    assert!(drain.is_empty());
    state.flush().unwrap();
    let next = drain.drain(100, usize::MAX);
    assert_eq!((next.entries.len(), next.seal), (1, None));
    drain.release();
    assert!(drain.is_empty() && drain.record(0).is_none() && !drain.is_superseded(0));
    assert_eq!(drain.digest(), state.digest());
}

#[test]
fn waiting_puts_are_counted_iterated_and_deleted_like_others() {
    let (mut state, mut drain) = small(64);
    for k in [b"a", b"b"] {
        state.try_put(k, b"old").unwrap();
    }
    settle(&mut state, &mut drain);
    for (k, v) in [(b"a", b"1"), (b"c", b"2"), (b"c", b"3"), (b"a", b"4")] {
        state.try_put(k, v).unwrap();
    }
    assert!(drain.is_empty());
    let mut all: Vec<_> = state.iter().collect();
    all.sort_unstable();
    assert_eq!(all, [(&b"a"[..], &b"4"[..]), (b"b", b"old"), (b"c", b"3")]);
    assert_eq!((state.len(), state.get(b"c"), state.contains(b"d")), (3, Some(&b"3"[..]), false));
    let digest = state.digest();
    assert_eq!(settle(&mut state, &mut drain), 4);
    assert_eq!((drain.digest(), state.digest()), (digest, digest));
    state.try_put(b"e", b"5").unwrap();
    assert!(state.try_delete(b"e").unwrap());
    assert_eq!((state.len(), state.get(b"e")), (3, None));
}

#[test]
fn a_seal_can_jump_forward_only_and_may_be_empty() {
    let (mut state, mut drain) = small(16);
    state.seal_to(Epoch(7), None).unwrap();
    assert!(matches!(state.seal_to(Epoch(7), None), Err(Ring0Error::EpochPassed { current: Epoch(8) })));
    assert_eq!(state.seal(None).unwrap(), Epoch(8));
    for epoch in [7, 8] {
        let batch = drain.drain(1, usize::MAX);
        assert_eq!((batch.entries.len(), batch.seal), (0, Some(Seal { epoch: Epoch(epoch), commit: None })));
    }
    drain.release();
    assert!(drain.is_empty());
}

#[test]
fn update_sees_the_old_value_and_does_not_run_on_a_full_ring() {
    let (mut state, mut drain) = small(4);
    state.try_update(b"n", |old| old.is_none().then_some([1])).unwrap();
    state.try_update(b"n", |old| old.map(|v| [v[0] + 1])).unwrap();
    assert_eq!(state.get(b"n"), Some(&[2][..]));
    state.try_update(b"n", |_| None::<[u8; 0]>).unwrap();
    state.try_update(b"n", |_| None::<[u8; 0]>).unwrap();
    assert_eq!((state.len(), state.changelog().total_pushed()), (0, 3));
    state.try_put(b"x", b"y").unwrap();
    let full = state.try_update(b"n", |_| -> Option<[u8; 0]> { panic!("ran") });
    assert!(matches!(full, Err(Ring0Error::RingFull)));
    assert!(matches!(state.try_put(b"x", b"z"), Err(Ring0Error::RingFull)));
    assert!(matches!(state.try_delete(b"x"), Err(Ring0Error::RingFull)));
    assert!(matches!(state.seal(None), Err(Ring0Error::RingFull)));
    assert!(matches!(state.try_put_batch(&[(b"x", b"z")]), Err((0, Ring0Error::RingFull))));
    assert_eq!((state.get(b"x"), state.changelog().overflow_count()), (Some(&b"y"[..]), 5));
    assert_eq!(settle(&mut state, &mut drain), 4);
    state.try_put(b"x", b"z").unwrap();
}

#[test]
fn a_panic_in_update_leaves_everything_as_it_was() {
    let (mut state, mut drain) = small(16);
    state.try_put(b"x", b"y").unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = state.try_update(b"x", |_| -> Option<[u8; 0]> { panic!("on purpose") });
    }));
    assert!(caught.is_err());
    assert_eq!((state.get(b"x"), state.len()), (Some(&b"y"[..]), 1));
    assert_eq!(settle(&mut state, &mut drain), 1);
}

#[test]
fn drained_records_stay_until_they_are_released() {
    let (mut state, mut drain) = small(8);
    for round in 0..4_u8 {
        state.try_put(b"k", &[round; 100]).unwrap();
    }
    state.flush().unwrap();
    let batch = drain.drain(100, usize::MAX);
    let mut refused = 0;
    for round in 4..40_u8 {
        refused += u32::from(state.try_put(b"k", &[round; 100]).is_err());
        drain.drain(0, usize::MAX);
    }
    assert!(refused > 0, "more entries than the retire queue has places for must be refused");
    for (i, round) in batch.entries.zip(0..) {
        assert_eq!(drain.record(i).unwrap().value, [round; 100]);
    }
    drain.release();
    settle(&mut state, &mut drain);
    assert_eq!(drain.digest(), state.digest());
}

#[test]
fn either_half_can_go_first() {
    let (mut state, mut drain) = small(8);
    state.try_put(b"k", b"v").unwrap();
    drop(state);
    assert!(drain.producer_gone() && !drain.is_empty());
    let batch = drain.drain(9, usize::MAX);
    assert_eq!(drain.record(batch.entries.start).unwrap().value, b"v");
    let (mut state, drain) = small(4);
    drop(drain);
    for _ in 0..4 {
        state.try_put(b"k", b"v").unwrap();
    }
    assert!(state.try_put(b"k", b"v").is_err() && state.changelog().consumer_gone());
    assert_eq!(state.get(b"k"), Some(&b"v"[..]));
}

#[test]
fn lengths_up_to_the_limits_and_no_further() {
    use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
    let (mut state, mut drain) = small(8);
    let (long_key, long_value) = (vec![7; MAX_KEY_LEN + 1], vec![9; MAX_VALUE_LEN + 1]);
    assert!(matches!(state.try_put(&long_key, b""), Err(Ring0Error::KeyTooLong(n)) if n == MAX_KEY_LEN + 1));
    assert!(matches!(state.try_put(b"", &long_value), Err(Ring0Error::ValueTooLong(_))));
    assert!(matches!(state.seal(Some(&long_value)), Err(Ring0Error::ValueTooLong(_))));
    assert!(state.get(&long_key).is_none());
    let (key, value) = (&long_key[1..], &long_value[1..]);
    state.try_put(key, value).unwrap();
    state.try_put(b"", b"empty key").unwrap();
    assert!(state.get(key) == Some(value) && state.get(b"") == Some(b"empty key"));
    state.flush().unwrap();
    let batch = drain.drain(9, usize::MAX);
    let record = drain.record(batch.entries.start).unwrap();
    assert!(record.key == key && record.value == value);
    assert_eq!(drain.digest(), state.digest());
}

#[test]
fn a_full_arena_is_an_error_that_changes_nothing() {
    let config =
        StateConfig { core: CoreId(0), ring_capacity: 64, limit_bytes: 2 << 20, first_epoch: Epoch(1) };
    let (mut state, mut drain) = new_state(config).unwrap();
    let value = vec![1; 200_000];
    let mut stored = 0;
    let error = loop {
        match state.try_put(&key(stored), &value) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        settle(&mut state, &mut drain);
    };
    assert!(matches!(error, Ring0Error::StateFull { limit_bytes } if limit_bytes == 2 << 20), "{error}");
    assert_eq!(state.len(), stored);
    assert!(state.get(&key(stored)).is_none() && state.get(&key(stored - 1)).is_some());
    // A free slot of a larger class is cut up, rather than refusing a small record.
    assert!(state.try_delete(&key(0)).unwrap() && state.try_delete(&key(1)).unwrap());
    settle(&mut state, &mut drain);
    for n in 0..50 {
        state.try_put(&key(1000 + n), &[2; 3000]).unwrap();
        settle(&mut state, &mut drain);
    }
    assert_eq!(drain.digest(), state.digest());
}

/// A file of a checkpoint is loaded in key order, so that it may add before it deletes. A state that had fitted its
/// limit all the time did not fit while it was loaded. Found by reading.
#[test]
fn what_a_later_file_deletes_does_not_count_while_loading() {
    let config =
        StateConfig { core: CoreId(0), ring_capacity: 64, limit_bytes: 60 << 20, first_epoch: Epoch(1) };
    let (mut state, _drain) = new_state(config).unwrap();
    let mut loader = state.loader().unwrap();
    let value = vec![1; 1 << 20];
    for n in 0..48 {
        loader.put(&key(100 + n), &value).unwrap();
    }
    for n in 0..48 {
        loader.put(&key(n), &value).unwrap();
    }
    for n in 0..48 {
        loader.delete(&key(100 + n)).unwrap();
    }
    loader.finish().unwrap();
    state.check_limit().unwrap();
    assert_eq!(state.len(), 48);
}

#[test]
fn loading_reuses_slots_at_once_and_hands_its_digest_over() {
    let (mut state, mut drain) = small(64);
    let mut loader = state.loader().unwrap();
    for round in 0..50_u8 {
        for n in 0..20 {
            loader.put(&key(n), &[round; 50]).unwrap();
        }
    }
    for n in (0..10).chain(0..10) {
        // The second time there is nothing to delete any more.
        loader.delete(&key(n)).unwrap();
    }
    let sum = loader.finish().unwrap();
    // What loading adds up, overwritten and deleted records included, is the digest of what is there.
    assert_eq!(StateDigest { digest: sum, live_keys: 10 }, state.digest());
    assert_eq!((state.len(), state.changelog().total_pushed()), (10, 0));
    let memory = state.memory();
    // The keys, what may wait to be placed and to be freed, and one more.
    let most = 64 + (20 + 16 + 16 + 1) * 96 + 17 * 48;
    assert!(memory.live_bytes + memory.free_bytes <= most, "{memory:?}");
    drain.set_digest(state.digest());
    state.try_put(&key(15), b"new").unwrap();
    assert!(drain.is_empty());
    assert!(matches!(state.loader(), Err(Ring0Error::NotQuiet)));
    state.try_delete(&key(16)).unwrap();
    settle(&mut state, &mut drain);
    assert_eq!(drain.digest(), state.digest());
    let digest = state.digest().digest;
    let mut loader = state.loader().unwrap();
    loader.put(b"k", b"v").unwrap();
    let grown = digest.wrapping_add(loader.finish().unwrap());
    assert_eq!(grown, state.digest().digest);
}

#[test]
fn loading_large_records_needs_room_for_one_beside_what_is_there() {
    let config =
        StateConfig { core: CoreId(0), ring_capacity: 64, limit_bytes: 2 << 20, first_epoch: Epoch(1) };
    let (mut state, _drain) = new_state(config).unwrap();
    // Two of them fit into all there is, three do not.
    let room = (2 << 20) + super::arena::BEYOND_LIMIT;
    let value = vec![7; room * 3 / 7];
    let mut loader = state.loader().unwrap();
    for _ in 0..5 {
        // A small one in place of the large one, which then has to be free for the next.
        loader.put(b"k", &value).unwrap();
        loader.put(b"k", b"small").unwrap();
        loader.put(b"k", &value).unwrap();
        loader.put(b"k", &value).unwrap();
        loader.delete(b"k").unwrap();
    }
    loader.put(b"k", b"v").unwrap();
    loader.finish().unwrap();
    assert_eq!((state.len(), state.get(b"k")), (1, Some(b"v".as_slice())));
    state.check_limit().unwrap();
}

#[test]
fn keys_with_the_same_hash_are_kept_apart() {
    let config =
        StateConfig { core: CoreId(0), ring_capacity: 1 << 14, limit_bytes: 1 << 30, first_epoch: Epoch(1) };
    let count: u64 = 4000;
    // All the same; only the directory's bits; only the bits that choose a slot.
    for keep in [0, 0xff << 56, 0xffff] {
        let mut hasher = KeyHasher::of_process();
        hasher.keep = keep;
        let (mut state, mut drain) = new_state_with(config, hasher).unwrap();
        let long = |n: u64| [&key(n)[..], b"-and more than fits"].concat();
        for n in 0..count {
            state.try_put(&key(n), &n.to_le_bytes()).unwrap();
            if n % 10 == 0 {
                state.try_put(&long(n), &n.to_be_bytes()).unwrap();
            }
        }
        settle(&mut state, &mut drain);
        for n in (0..count).step_by(3) {
            assert!(state.try_delete(&key(n)).unwrap());
        }
        for n in 0..count {
            let expected = (n % 3 != 0).then(|| n.to_le_bytes());
            assert_eq!(state.get(&key(n)), expected.as_ref().map(|v| &v[..]), "{n} with {keep:#x}");
            if n % 10 == 0 {
                assert_eq!(state.get(&long(n)), Some(&n.to_be_bytes()[..]));
            }
        }
        for n in (0..count).step_by(3) {
            state.try_put(&key(n), b"again").unwrap();
        }
        // Some puts wait still. Keys that are there, and some that are not; every length of a batch.
        let keys: Vec<Vec<u8>> = (0..count + 40).flat_map(|n| [key(n).to_vec(), long(n).to_vec()]).collect();
        let one_by_one: Vec<_> = keys.iter().map(|key| state.get(key)).collect();
        for (from, len) in (0..70).map(|len| (len * 3, len)).chain([(0, keys.len())]) {
            let batch = state.get_batch(&keys[from..from + len]);
            assert_eq!(batch.len(), len);
            assert_eq!(format!("{batch:?}"), format!("Values {{ left: {len}, .. }}"));
            assert!(batch.eq(one_by_one[from..from + len].iter().copied()), "{len} from {from}");
        }
        settle(&mut state, &mut drain);
        assert_eq!(state.iter().count() as u64, count + count / 10);
        assert_eq!(drain.digest(), state.digest());
    }
}

#[test]
fn a_million_keys_grow_and_are_all_there() {
    let count = if cfg!(miri) { 3000 } else { 1_000_000 };
    let (mut state, mut drain) = small(1 << 12);
    for n in 0..count {
        if state.try_put(&key(n), &n.to_le_bytes()).is_err() {
            settle(&mut state, &mut drain);
            state.try_put(&key(n), &n.to_le_bytes()).unwrap();
        }
    }
    settle(&mut state, &mut drain);
    assert_eq!((state.len(), state.iter().count() as u64), (count, count));
    for n in 0..count {
        assert_eq!(state.get(&key(n)), Some(&n.to_le_bytes()[..]));
    }
    assert!(state.get(&key(count)).is_none());
    assert_eq!(drain.digest(), state.digest());
}

#[test]
fn overwriting_stays_within_the_slots_that_are_needed() {
    let keys = if cfg!(miri) { 50 } else { 20_000 };
    let (mut state, mut drain) = small(256);
    let mut peak = 0;
    for round in 0..20_u8 {
        for n in 0..keys {
            state.try_put(&key(n), &[round; 100]).unwrap();
            if n % 100 == 99 {
                settle(&mut state, &mut drain);
            }
        }
        settle(&mut state, &mut drain);
        let memory = state.memory();
        peak = peak.max(memory.live_bytes + memory.free_bytes);
    }
    // 144 bytes per key, and what was not released at any one time.
    assert!(peak < keys * 144 + 600 * 144, "{peak}");
}

#[test]
fn deleting_and_inserting_everything_again_needs_no_more_memory() {
    let keys = if cfg!(miri) { 50 } else { 20_000 };
    let (mut state, mut drain) = small(1024);
    let mut used = Vec::new();
    for round in 0..10_u8 {
        for n in 0..keys {
            state.try_put(&key(n + u64::from(round) * keys), &[round; 100]).unwrap();
            if n % 100 == 99 {
                settle(&mut state, &mut drain);
            }
        }
        for n in 0..keys {
            assert!(state.try_delete(&key(n + u64::from(round) * keys)).unwrap());
            if n % 100 == 99 {
                settle(&mut state, &mut drain);
            }
        }
        settle(&mut state, &mut drain);
        assert!(state.is_empty() && state.iter().next().is_none());
        assert_eq!(drain.digest(), StateDigest::default());
        let memory = state.memory();
        used.push((memory.live_bytes + memory.free_bytes, memory.index_bytes));
    }
    assert!(used[9].0 < used[0].0 * 5 / 4, "{used:?}");
    assert!(used[9].1 <= used[1].1 * 2, "{used:?}");
}

#[test]
fn the_helper_ends_with_the_last_core() {
    let before = prefault::Prefaulter::of_process();
    let states: Vec<_> = (0..3).map(|_| small(4)).collect();
    assert!(Arc::strong_count(&before) > 3);
    drop(states);
    drop(before);
}

impl CoreState {
    /// Closes the current epoch and says which one it was.
    fn seal(&mut self, commit: Option<&[u8]>) -> Result<Epoch, Ring0Error> {
        let epoch = self.epoch();
        self.seal_to(epoch, commit)?;
        Ok(epoch)
    }
}
