//! Threads that make several files durable at the same time.
//!
//! The calling thread syncs the last file itself and then takes whatever is still waiting, so a
//! batch always ends, even when no thread could be started. How many help it is found out by
//! trying (`strategy`). Threads start when first needed, at most one less than the files of the largest batch seen, and
//! end when the pool is dropped.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::VfsFile;
use super::strategy::{Strategy, THREADS_MAX};
use crate::sabotage::{Sabotage, sabotaged};

/// The pool. Dropping it joins its threads.
#[derive(Debug, Default)]
pub(super) struct SyncPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    strategy: Strategy,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// One file of one batch.
#[derive(Debug)]
struct Job {
    file: Arc<dyn VfsFile>,
    index: usize,
    batch: Arc<Batch>,
}

/// Results of one call, filled in by whoever did the work.
#[derive(Debug)]
struct Batch {
    results: Mutex<Results>,
    finished: Condvar,
}

#[derive(Debug)]
struct Results {
    per_file: Vec<Option<io::Result<()>>>,
    missing: usize,
}

/// A panic elsewhere leaves these plain values usable.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn run(self) {
        // A panic must reach the caller as a failed sync, or the caller would wait for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.file.sync_data()))
            .unwrap_or_else(|_| Err(io::Error::other("the sync panicked")));
        drop(self.file);
        let result = if sabotaged(Sabotage::ParallelFailureLost) { Ok(()) } else { result };
        let mut results = locked(&self.batch.results);
        if let Some(slot) = results.per_file.get_mut(self.index) {
            *slot = Some(result);
        }
        results.missing = results.missing.saturating_sub(1);
        if results.missing == 0 {
            self.batch.finished.notify_all();
        }
    }
}

impl SyncPool {
    /// Syncs every file; one result per file, in order.
    pub(super) fn sync(&self, files: &[Arc<dyn VfsFile>]) -> Vec<io::Result<()>> {
        let Some((last, others)) = files.split_last() else {
            return Vec::new();
        };
        if others.is_empty() {
            return vec![last.sync_data()];
        }
        let bytes = files.iter().map(|file| file.unsynced_bytes()).fold(0, u64::saturating_add);
        let attempt = self.strategy.begin(files.len(), bytes);
        let helpers = attempt.helpers();
        self.start_threads(helpers);
        let batch = Arc::new(Batch {
            results: Mutex::new(Results {
                per_file: files.iter().map(|_| None).collect(),
                missing: files.len(),
            }),
            finished: Condvar::new(),
        });
        let job = |(index, file): (usize, &Arc<dyn VfsFile>)| Job {
            file: Arc::clone(file),
            index,
            batch: Arc::clone(&batch),
        };
        locked(&self.shared.queue).jobs.extend(others.iter().enumerate().map(job));
        (0..helpers).for_each(|_| self.shared.work.notify_one());
        job((others.len(), last)).run();
        loop {
            let waiting = locked(&self.shared.queue).jobs.pop_front();
            match waiting {
                Some(waiting) => waiting.run(),
                None => break,
            }
        }
        let mut results = locked(&batch.results);
        while results.missing > 0 {
            results = batch.finished.wait(results).unwrap_or_else(PoisonError::into_inner);
        }
        results
            .per_file
            .iter_mut()
            .map(|slot| slot.take().unwrap_or_else(|| Err(io::Error::other("the sync has no result"))))
            .collect()
    }

    /// How many batches of such a kind were tries.
    #[cfg(test)]
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn tries(&self, files: usize, bytes: u64) -> usize {
        self.strategy.tries(files, bytes)
    }

    fn start_threads(&self, wanted: usize) {
        let mut threads = locked(&self.threads);
        while threads.len() < wanted.min(THREADS_MAX) {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new()
                .name("laminar-sync".into())
                .spawn(move || shared.work_until_closed());
            match started {
                Ok(thread) => threads.push(thread),
                // The caller does the work of the threads that could not be had.
                Err(_) => break,
            }
        }
    }
}

impl Shared {
    fn work_until_closed(&self) {
        let mut queue = locked(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = locked(&self.queue);
            } else if queue.closed {
                return;
            } else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for SyncPool {
    fn drop(&mut self) {
        locked(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for thread in locked(&self.threads).drain(..) {
            // A job catches its own panic, so there is nothing to hear from a thread that ended.
            let _ = thread.join();
        }
    }
}
