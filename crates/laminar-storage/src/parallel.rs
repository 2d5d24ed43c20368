//! Work on several threads at once, where the outside world allows it.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sync::{Mutex, lock};
use crate::vfs::Vfs;

/// Runs `work` for every item, on as many threads as the machine has processors and gives us; the calling
/// thread is one of them. Where the outside world does not allow that, the calling thread does it
/// all, in order. Results are in order.
///
/// # Errors
/// That of the first item that fails, in the order of the items: they are begun in order, and none is
/// begun once one has failed.
pub(crate) fn in_parallel<T: Send, R: Send, E: Send>(
    vfs: &dyn Vfs,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let items: Vec<T> = items.into_iter().collect();
    // shuttle knows nothing of these threads, and what they do is not what it looks at.
    if items.len() < 2 || !vfs.parallel() || cfg!(all(test, shuttle)) {
        return items.into_iter().map(work).collect();
    }
    let results: Vec<_> = items.iter().map(|_| Mutex::new(None)).collect();
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(item), Some(result)) = (items.get(index), results.get(index)) else { return };
            let Some(item) = lock(item).take() else { return };
            let done = work(item);
            failed.fetch_or(done.is_err(), Ordering::Relaxed);
            *lock(result) = Some(done);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        // Without other threads this one does the work alone.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, run).ok();
        let helpers: Vec<_> = (1..threads).map_while(spawn).collect();
        run();
        for helper in helpers {
            if let Err(panic) = helper.join() {
                resume_unwind(panic);
            }
        }
    });
    // What was not begun stands behind the error that this returns.
    results.iter().filter_map(|result| lock(result).take()).collect()
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::vfs::OsVfs;
    use crate::vfs::sim::SimDisk;

    #[test]
    fn results_are_in_order_and_the_first_item_that_fails_says_why() {
        let squares = in_parallel(&OsVfs::new(), 0..100_u32, |n| Ok::<_, ()>(n * n)).unwrap();
        assert!(squares.iter().copied().eq((0..100).map(|n| n * n)));
        let failed = in_parallel(&OsVfs::new(), 0..100_u32, |n| if n % 7 == 3 { Err(n) } else { Ok(n) });
        assert_eq!(failed, Err(3));
    }

    #[test]
    fn a_simulated_world_sees_one_thread_and_one_order_and_nothing_after_a_failure() {
        let seen = Mutex::new(Vec::new());
        let here = std::thread::current().id();
        let failed = in_parallel(&SimDisk::new(1), 0..10_u32, |n| {
            assert_eq!(std::thread::current().id(), here);
            lock(&seen).push(n);
            if n == 4 { Err(n) } else { Ok(()) }
        });
        assert_eq!((failed, seen.into_inner().unwrap()), (Err(4), vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_panic_of_another_thread_is_one_here() {
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            return;
        }
        let (both, here) = (Barrier::new(2), std::thread::current().id());
        let panicked = std::panic::catch_unwind(|| {
            in_parallel(&OsVfs::new(), 0..2_u32, |n| {
                both.wait();
                assert_eq!(std::thread::current().id(), here, "the helper fails");
                Ok::<_, ()>(n)
            })
        });
        assert!(panicked.is_err());
    }
}
