//! Steady state allocates nothing on the core's thread; and what an allocation was asked for.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::{key, settle, small};

struct Counting;

thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// The largest one, in bytes.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The largest allocation of this thread while `work` runs, in bytes.
pub(crate) fn largest_of(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

fn count(bytes: usize) {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(address, layout) }
    }
}

#[test]
fn steady_state_allocates_nothing() {
    let keys = if cfg!(miri) { 64 } else { 10_000 };
    let (mut state, mut drain) = small(1 << 16);
    let pairs: Vec<_> = (0..keys).map(|n| (key(n), [1_u8; 100])).collect();
    let mut counted = 0;
    for round in 0..4 {
        let before = COUNT.get();
        for (key, value) in &pairs {
            state.try_put(key, value).unwrap();
            assert!(state.get(key).is_some());
        }
        state.try_put_batch(&pairs).unwrap();
        for (key, value) in &pairs {
            state.try_update(key, |old| old.map(|_| value)).unwrap();
            assert!(state.try_delete(key).unwrap());
        }
        state.seal(Some(b"commit")).unwrap();
        counted = COUNT.get() - before;
        settle(&mut state, &mut drain);
        assert!(round > 0 || state.is_empty());
    }
    assert_eq!(counted, 0);
    let before = COUNT.get();
    drop(Box::new(1));
    assert_eq!(COUNT.get() - before, 1, "the counter counts");
}
