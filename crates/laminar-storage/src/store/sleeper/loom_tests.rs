//! Every order in which falling asleep and waking can meet. In loom a nap has no end of its own, so that a wake-up
//! that is lost is a deadlock.

use std::sync::Arc;

use loom::thread;

use super::*;
use crate::sync::atomic::AtomicU64;

const NAP: Duration = Duration::from_millis(1);

/// Stands for the ring: the position up to which it is filled, published as the ring does it.
#[derive(Default)]
struct Ring(AtomicU64);

impl Ring {
    fn push(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn holds(&self, entries: u64) -> bool {
        self.0.load(Ordering::Acquire) >= entries
    }
}

/// Runs a thread that naps until the ring holds `entries`.
fn ring1(sleeper: &Arc<Sleeper>, ring: &Arc<Ring>, entries: u64) -> thread::JoinHandle<()> {
    let (theirs, filled) = (Arc::clone(sleeper), Arc::clone(ring));
    let ring1 = thread::spawn(move || {
        while !filled.holds(entries) {
            theirs.nap(NAP, || filled.holds(entries));
        }
    });
    sleeper.is(ring1.thread().clone());
    ring1
}

#[test]
fn loom_no_seal_is_slept_over() {
    loom::model(|| {
        let (sleeper, ring) = (Arc::new(Sleeper::default()), Arc::new(Ring::default()));
        let ring1 = ring1(&sleeper, &ring, 1);
        ring.push();
        sleeper.wake();
        ring1.join().unwrap();
    });
}

#[test]
fn loom_two_cores_wake_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (sleeper, ring) = (Arc::new(Sleeper::default()), Arc::new(Ring::default()));
        let ring1 = ring1(&sleeper, &ring, 2);
        let (theirs, filled) = (Arc::clone(&sleeper), Arc::clone(&ring));
        let other = thread::spawn(move || {
            filled.push();
            theirs.wake();
        });
        ring.push();
        sleeper.wake();
        other.join().unwrap();
        ring1.join().unwrap();
    });
}

/// `close` raised the flag and woke as a core does; between the two the thread could take the flag down, and slept
/// on until the nap was over.
#[test]
fn loom_closing_is_not_slept_over() {
    loom::model(|| {
        let sleeper = Arc::new(Sleeper::default());
        let closing = Arc::new(AtomicBool::new(false));
        let (theirs, ending) = (Arc::clone(&sleeper), Arc::clone(&closing));
        let ring1 = thread::spawn(move || {
            while !ending.load(Ordering::Acquire) {
                theirs.nap(NAP, || false);
            }
        });
        sleeper.is(ring1.thread().clone());
        closing.store(true, Ordering::Release);
        sleeper.rouse();
        ring1.join().unwrap();
    });
}
