//! Making the logs of several cores durable, and going on meanwhile.
//!
//! A sync takes the device some hundred microseconds at least, in which the processors have nothing to do with it. So
//! whoever has more to append may do that beside it ([`sync_writers_beside`]): another thread syncs, and what is
//! appended meanwhile stays in memory. Nothing is written to any of these logs before the sync has ended
//! (invariant I20): what a sync makes durable is what was written when it began, on every device and whatever it answers.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::PerCoreWalError;
use super::evidence::testify;
use super::writer::CoreWalWriter;
use crate::vfs::{Vfs, VfsFile};

/// How long whoever has nothing to do beside a sync waits before it looks again; twice as long each time, up to a bound.
const LOOK_AGAIN: Duration = Duration::from_micros(100);
const LOOK_AGAIN_AT_LAST: Duration = Duration::from_millis(5);

/// What there is to do beside a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// Something was done, and there may be more.
    Worked,
    /// There is nothing to do now; there may be later.
    Idle,
    /// There will be nothing to do before the sync has ended.
    Full,
}

/// Writes and syncs several writers, the syncs in parallel.
pub(crate) fn sync_writers(writers: &mut [CoreWalWriter]) -> Result<(), PerCoreWalError> {
    let begun = Begun::on(writers);
    let results = begun.vfs.as_ref().map_or_else(Vec::new, |vfs| vfs.sync_many(&begun.files));
    begun.finish(writers, results)
}

/// As [`sync_writers`], on another thread; on this one `work` is called again and again as long as that takes. What it
/// appends is not part of this sync.
///
/// # Errors
/// The first failure, of a sync before that of `work`. No sync is on its way any more.
pub(crate) fn sync_writers_beside(
    writers: &mut [CoreWalWriter],
    syncer: &mut Syncer,
    mut work: impl FnMut(&mut [CoreWalWriter]) -> Result<Meanwhile, PerCoreWalError>,
) -> Result<(), PerCoreWalError> {
    let begun = Begun::on(writers);
    let vfs = begun.vfs.as_ref().filter(|_| begun.failure.is_none());
    let Some(answer) = vfs.and_then(|vfs| syncer.start(vfs, &begun.files)) else {
        let results = begun.vfs.as_ref().map_or_else(Vec::new, |vfs| vfs.sync_many(&begun.files));
        return begun.finish(writers, results);
    };
    let (mut worked, mut look_again) = (Ok(Meanwhile::Worked), LOOK_AGAIN);
    let results = loop {
        let answered = match worked {
            Ok(Meanwhile::Worked) => {
                look_again = LOOK_AGAIN;
                answer.recv_timeout(Duration::ZERO)
            }
            Ok(Meanwhile::Idle) => {
                let answered = answer.recv_timeout(look_again);
                look_again = (2 * look_again).min(LOOK_AGAIN_AT_LAST);
                answered
            }
            Ok(Meanwhile::Full) | Err(_) => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match answered {
            Ok(results) => break results,
            Err(RecvTimeoutError::Timeout) => worked = work(writers),
            // Nobody knows how they ended.
            Err(RecvTimeoutError::Disconnected) => break Vec::new(),
        }
    };
    begun.finish(writers, results)?;
    worked.map(drop)
}

/// Syncs that are to be made, or on their way.
struct Begun {
    /// Whose files they are.
    indexes: Vec<usize>,
    files: Vec<Arc<dyn VfsFile>>,
    vfs: Option<Arc<dyn Vfs>>,
    failure: Option<PerCoreWalError>,
}

impl Begun {
    /// Everything appended is written.
    fn on(writers: &mut [CoreWalWriter]) -> Self {
        let mut begun = Self {
            indexes: Vec::with_capacity(writers.len()),
            files: Vec::with_capacity(writers.len()),
            vfs: writers.first().map(CoreWalWriter::vfs),
            failure: None,
        };
        for (index, writer) in writers.iter_mut().enumerate() {
            match writer.prepare_sync() {
                Ok(Some(file)) => {
                    begun.indexes.push(index);
                    begun.files.push(file);
                }
                Ok(None) => {}
                Err(error) => {
                    begun.failure.get_or_insert(error);
                }
            }
        }
        if !begun.files.is_empty() {
            writers.iter_mut().for_each(CoreWalWriter::wait_for_others);
        }
        begun
    }

    /// Takes note of how they ended; one without a result has failed.
    fn finish(
        self,
        writers: &mut [CoreWalWriter],
        results: Vec<io::Result<()>>,
    ) -> Result<(), PerCoreWalError> {
        let mut failure = self.failure;
        let mut results = results.into_iter();
        for (index, writer) in writers.iter_mut().enumerate() {
            if !self.indexes.contains(&index) {
                writer.others_synced();
                continue;
            }
            let result = results.next().unwrap_or_else(|| Err(io::Error::other("the sync has no result")));
            if let Err(error) = writer.finish_sync(result) {
                failure.get_or_insert(error);
            }
        }
        if !self.indexes.is_empty() {
            testify(writers);
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Files to sync, and where to say how that ended.
#[derive(Debug)]
struct Job {
    vfs: Arc<dyn Vfs>,
    files: Vec<Arc<dyn VfsFile>>,
    answer: Sender<Vec<io::Result<()>>>,
}

/// The thread that syncs while another one works. It starts when it is first needed; dropping this joins it.
#[derive(Debug, Default)]
pub(crate) struct Syncer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Begins to sync these files elsewhere. `None` where there is no thread for that.
    fn start(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        files: &[Arc<dyn VfsFile>],
    ) -> Option<Receiver<Vec<io::Result<()>>>> {
        if files.is_empty() {
            return None;
        }
        if self.jobs.is_none() {
            let (jobs, work) = channel();
            let thread = std::thread::Builder::new().name("laminar-syncer".into());
            self.thread = Some(thread.spawn(move || sync_until_closed(&work)).ok()?);
            self.jobs = Some(jobs);
        }
        let (answer, receiver) = channel();
        let job = Job { vfs: Arc::clone(vfs), files: files.to_vec(), answer };
        self.jobs.as_ref()?.send(job).ok()?;
        Some(receiver)
    }
}

fn sync_until_closed(jobs: &Receiver<Job>) {
    while let Ok(Job { vfs, files, answer }) = jobs.recv() {
        // A panic must reach whoever waits as failed syncs, which is what no answer means.
        let Ok(results) = catch_unwind(AssertUnwindSafe(|| vfs.sync_many(&files))) else { continue };
        drop(files);
        // Nobody waits any more after a panic there.
        let _ = answer.send(results);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It catches what panics, so that there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}
