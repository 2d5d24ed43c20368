//! A slot that Ring 1 still reads is not handed back, in any order of the two threads (R0-5, R0-7).
#![expect(unsafe_code, reason = "stands in for the arena, whose accesses loom then checks")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;

/// Two slots of an arena. loom fails the test when one is written while, or unordered with, it is read.
struct Slots([UnsafeCell<()>; 2]);

// SAFETY: loom stops the test at the first access that is not ordered with the others.
unsafe impl Sync for Slots {}
// SAFETY: as above.
unsafe impl Send for Slots {}

#[test]
fn loom_a_retired_slot_is_reused_after_its_last_read_only() {
    loom::model(|| {
        let slots = Arc::new(Slots([UnsafeCell::new(()), UnsafeCell::new(())]));
        let released = Arc::new(Released::default());
        let mut queue = RetireQueue::new(2, Arc::clone(&released));
        queue.push(Retired::record(16));
        queue.push(Retired::record(32));
        let (theirs, publisher) = (Arc::clone(&slots), Arc::clone(&released));
        let ring1 = thread::spawn(move || {
            for (slot, entries) in theirs.0.iter().zip(1..) {
                slot.with(|_| ());
                publisher.publish(entries);
            }
        });
        assert!(!queue.has_room_for(1));
        let mut reused = 0;
        while reused < 2 {
            match queue.take() {
                Some(retired) => {
                    slots.0[usize::try_from(retired.at()).unwrap() / 16 - 1].with_mut(|_| ());
                    reused += 1;
                }
                None => thread::yield_now(),
            }
        }
        ring1.join().unwrap();
        assert!(queue.is_quiet() && queue.has_room_for(2));
    });
}
