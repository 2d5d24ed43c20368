//! The helper that gives regions memory before Ring 0 needs it.
//!
//! One thread per process while any core exists. Ring 0 wakes it when less is left than should be there ahead;
//! when the helper is late, Ring 0 commits the chunk itself, which is correct and slow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use super::region::Region;

static OF_PROCESS: Mutex<Weak<Prefaulter>> = Mutex::new(Weak::new());

/// A handle on the helper; the last one to go ends the thread.
#[derive(Debug)]
pub(super) struct Prefaulter {
    shared: Arc<Shared>,
    /// `None` when the system refused a thread: every chunk is then committed by Ring 0.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    regions: Mutex<Vec<Weak<Region>>>,
    stop: AtomicBool,
}

impl Prefaulter {
    /// The helper of this process, started if need be.
    pub(super) fn of_process() -> Arc<Self> {
        let mut current = OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = current.upgrade() {
            return running;
        }
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("laminar-prefault".into()).spawn(move || theirs.run()).ok();
        let started = Arc::new(Self { shared, thread });
        *current = Arc::downgrade(&started);
        started
    }

    /// One that does nothing.
    #[cfg(test)]
    pub(super) fn without_thread() -> Arc<Self> {
        Arc::new(Self { shared: Arc::default(), thread: None })
    }

    /// Adds a region to those that are looked after, until it is dropped.
    pub(super) fn look_after(&self, region: &Arc<Region>) {
        let mut regions = self.shared.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|region| region.strong_count() > 0);
        regions.push(Arc::downgrade(region));
    }

    /// Has the wanted chunks committed soon.
    pub(super) fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Prefaulter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It holds nothing that could panic; an error here has nobody to be told to.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            // One chunk for each in turn, so that none waits for all that another one wants.
            if !self.commit_a_chunk_each() {
                thread::park();
            }
        }
    }

    /// Whether anybody may want more.
    fn commit_a_chunk_each(&self) -> bool {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        regions.iter().filter_map(Weak::upgrade).fold(false, |more, region| region.commit_wanted() | more)
    }
}
