//! Backups of a job while it runs: every process copies its part, on a thread of its own; only with the feature
//! `object-store`.
//!
//! ```text
//! PLACE/generation-00000001/part-0000-of-0003/…      what process 0 keeps; see laminar_storage::backup
//! ```
//! Worker 0 marks an epoch (`flow::marks`); each process reserves its end for a checkpoint before it settles anything later,
//! so that what all of them copy is one state of the job.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use laminar_storage::backup::{
    BackupError, BackupOptions, BackupReceipt, BackupTarget, PartCheckpoint, PartWriter, WholeId,
    list_whole_backups, read_mark,
};
use laminar_storage::error::Detail;
use laminar_storage::{Epoch, Store};

use crate::error::Error;
use crate::layout::{Generation, Life, Part};

/// The pause after a try that failed; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often the last backup of a job fails before the job ends without it.
const LAST_TRIES: u32 = 3;

/// How long the start of a job waits for a backup place that does not answer, for each of two questions: then it goes on, with a warning.
const PATIENCE: Duration = Duration::from_secs(5);

/// Small files of the program's own, name and content of each.
pub(crate) type OwnFiles = dyn Fn() -> io::Result<Vec<(String, Vec<u8>)>> + Send + Sync;

/// Where the backups of a job go, and how often.
#[derive(Clone)]
pub(crate) struct BackupPlan {
    place: BackupTarget,
    pub(crate) options: BackupOptions,
    pub(crate) every: Duration,
    pub(crate) own_files: Arc<OwnFiles>,
}

impl BackupPlan {
    pub(crate) fn new(place: &BackupTarget, options: &BackupOptions, every: Duration) -> Self {
        let own_files = Arc::new(|| Ok(Vec::new()));
        Self { place: place.clone(), options: options.clone(), every, own_files }
    }

    /// For questions that the start of a job waits for.
    fn quick(&self) -> BackupOptions {
        self.options.clone().patience(self.options.patience.unwrap_or(PATIENCE))
    }

    /// The latest generation that there are backups of; 0 also when that cannot be seen now. A job that then begins in another size may
    /// take a number that is taken already: where the backups of another life's part are, those of its own are refused.
    pub(crate) fn latest(&self) -> u32 {
        let folders = self.place.folders(&self.quick()).unwrap_or_else(|error| {
            tracing::warn!(%error, "the backups cannot be seen now");
            Vec::new()
        });
        folders.iter().filter_map(|folder| generation_of(folder)).map(|found| found.0).max().unwrap_or(0)
    }

    /// Whether there is a backup that is whole, as far as that can be seen now. Where it cannot, a job that has lost everything begins
    /// anew: nobody can tell it from a new one. It does no harm to what is there: where there are backups of another life's part, those
    /// of its own are refused.
    pub(crate) fn is_restorable(&self) -> bool {
        match crate::restore::list_job_backups(&self.place, &self.quick()) {
            Ok(found) => !found.backups.is_empty(),
            Err(error) => {
                tracing::warn!(%error, "the backups cannot be seen now");
                false
            }
        }
    }
}

impl fmt::Display for BackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl fmt::Debug for BackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, options, every, .. } = self;
        f.debug_struct("BackupPlan")
            .field("place", place)
            .field("options", options)
            .field("every", every)
            .finish_non_exhaustive()
    }
}

/// The folder of a generation's backups.
pub(crate) fn folder_of(generation: Generation) -> String {
    format!("generation-{:08}", generation.0)
}

/// The generation whose folder this is.
pub(crate) fn generation_of(folder: &str) -> Option<Generation> {
    let generation = Generation(folder.strip_prefix("generation-")?.parse().ok()?);
    (folder_of(generation) == folder).then_some(generation)
}

/// Whether a file of this name in the job's directory would be taken for the job's own.
fn is_of_job(name: &str) -> bool {
    ["generation-", "process-", "whole-"].iter().any(|begin| name.starts_with(begin))
}

/// Copies checkpoints of one part.
struct Copier {
    store: Arc<Store>,
    /// Where the backups of all sizes are, as long as nobody has seen that they can be there.
    unseen: Option<BackupTarget>,
    options: BackupOptions,
    life: Option<Life>,
    writer: PartWriter,
    /// What the part says about itself.
    mark: Vec<u8>,
    own_files: Arc<OwnFiles>,
}

impl Copier {
    fn copy(
        &mut self,
        id: WholeId,
        checkpoint: &mut Option<PartCheckpoint>,
    ) -> Result<BackupReceipt, BackupError> {
        // Here, as the start may not have seen it; and before anything is put.
        if let Some(place) = &self.unseen {
            check_kind(place, &self.options)?;
            check_life(place, &self.options, self.life)?;
            self.unseen = None;
        }
        let local = |detail: &Detail| BackupError::Local(Box::new(detail.clone()));
        let checkpoint = match checkpoint {
            Some(checkpoint) => checkpoint,
            None => {
                let made = self.store.part_checkpoint(id.epoch()).map_err(|e| local(e.detail()))?;
                checkpoint.insert(made)
            }
        };
        // After the checkpoint was made: they are those of then or of later.
        let files = (self.own_files)().map_err(|error| {
            let what = format!("the files that are to go with the backup could not be had: {error}");
            local(&Detail::new(what).caused_by(error).remedy("Remove the cause: it is tried again."))
        })?;
        if let Some((name, _)) = files.iter().find(|(name, _)| is_of_job(name)) {
            let what = format!("{name:?} is a name of the job's own files");
            let detail = Detail::new(what).remedy("Give the program's file another name.");
            return Err(BackupError::InvalidInput(Box::new(detail)));
        }
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.writer.back_up(checkpoint, id, &self.mark, &files)
    }
}

/// Refuses to put the backups of a job below those of one store: nobody would see them.
fn check_kind(place: &BackupTarget, options: &BackupOptions) -> Result<(), BackupError> {
    if !place.has_log(options)? {
        return Ok(());
    }
    let what = "this place has the backups of one store, or of a job that runs without parts";
    let remedy = "Name another place for the backups of this job; nothing was put here.";
    Err(BackupError::Foreign(Box::new(Detail::new(what).at_path(place.to_string()).remedy(remedy))))
}

/// Refuses to put the backups of a job beside those of another one, or of a life of this one that it was not restored from in order to
/// take their place: whoever restores the newest would get either. Jobs of one size and place find each other out by their logs.
fn check_life(place: &BackupTarget, options: &BackupOptions, own: Option<Life>) -> Result<(), BackupError> {
    let (Some(own), false) = (own, options.take_over) else { return Ok(()) };
    let mut others = 0;
    for folder in place.folders(options)?.iter().filter(|folder| generation_of(folder).is_some()) {
        for backup in list_whole_backups(&place.within(folder), options)?.backups {
            let Some((part, info)) = backup.parts.first() else { continue };
            let mark = match read_mark(part, info.id, options) {
                // Whoever reads the backups is told.
                Err(BackupError::Corruption(_)) => None,
                mark => mark?,
            };
            let life = mark.and_then(|mark| Part::decode(&mark).ok()).and_then(|part| part.life);
            if life.is_none_or(|life| life == own) {
                return Ok(());
            }
            others += 1;
        }
    }
    if others == 0 {
        return Ok(());
    }
    let what = "the backups here are those of another job, or of another life of this one";
    let remedy = "Name another place. If this job was restored from here and is to go on in their place, take over: `--take-over`, \
                  BackupOptions::take_over; make sure that the other one is dead.";
    Err(BackupError::Foreign(Box::new(Detail::new(what).at_path(place.to_string()).remedy(remedy))))
}

/// What came of it.
#[derive(Debug, Default)]
struct State {
    /// The last one that was made.
    done: Option<WholeId>,
    /// Tries that failed, since the last that did not or since the last one of the job was asked for.
    failures: u32,
    error: Option<BackupError>,
    /// No further one is tried.
    ended: bool,
    /// One is waited for.
    hurry: bool,
    /// Nobody wants any more.
    stop: bool,
}

/// What the workers of a process and its backup thread share.
#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    bell: Condvar,
    /// As in `state`, for operators.
    done: AtomicU64,
}

/// The backups of this process' part.
#[derive(Debug)]
pub(crate) struct Backups {
    /// None once nobody orders any more.
    orders: Mutex<Option<Sender<WholeId>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The last epoch that was ordered.
    ordered: Mutex<Epoch>,
    progress: Arc<Progress>,
    store: Arc<Store>,
}

impl Backups {
    /// Starts the thread; it calls `wake` when a backup of this part is made.
    pub(crate) fn start(
        plan: &BackupPlan,
        store: &Arc<Store>,
        part: &Part,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, Error> {
        let place = plan.place.within(&folder_of(part.generation));
        let mut copier = Copier {
            store: Arc::clone(store),
            unseen: Some(plan.place.clone()),
            options: plan.options.clone(),
            life: part.life,
            writer: PartWriter::new(&place, part.part, part.size.processes, &plan.options)?,
            mark: part.encode(),
            own_files: Arc::clone(&plan.own_files),
        };
        let (orders, receiver) = channel();
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        let thread = thread::Builder::new().name("laminar-job-backup".into());
        let started = thread.spawn(move || {
            let bomb = EndOnPanic(&told);
            told.run(&mut copier, &receiver, &wake);
            std::mem::forget(bomb);
        });
        let thread = started.map_err(|e| {
            let what = format!("the thread of the backups could not be started: {e}");
            let remedy = "Raise the limit of threads (`ulimit -u`), then start again.";
            Error::worker(Detail::new(what).remedy(remedy))
        })?;
        let (orders, thread) = (Mutex::new(Some(orders)), Mutex::new(Some(thread)));
        Ok(Self { orders, thread, ordered: Mutex::default(), progress, store: Arc::clone(store) })
    }

    /// Takes note that everything up to the epoch of `id` is durable everywhere, and has exactly that backed up. Every worker calls
    /// it before it settles anything later; the first counts.
    pub(crate) fn settle(&self, id: WholeId) -> Result<(), Error> {
        // Held until the epoch is reserved: another worker goes on from here only then.
        let mut ordered = lock(&self.ordered);
        if *ordered >= id.epoch() {
            return Ok(());
        }
        self.store.reserve_checkpoint(id.epoch())?;
        self.store.settle(id.epoch())?;
        self.order(&mut ordered, id);
        Ok(())
    }

    fn order(&self, ordered: &mut Epoch, id: WholeId) {
        *ordered = id.epoch();
        if let Some(orders) = &*lock(&self.orders) {
            // A thread that is gone has said why.
            let _ = orders.send(id);
        }
    }

    /// The last epoch that this part was backed up with.
    pub(crate) fn done(&self) -> Epoch {
        Epoch(self.progress.done.load(Ordering::Acquire))
    }

    /// Has an epoch backed up that all workers of all processes stand at, and waits for it.
    pub(crate) fn back_up_now(&self, id: WholeId) -> Result<(), BackupError> {
        let local = |e: laminar_storage::StoreError| BackupError::Local(Box::new(e.detail().clone()));
        self.store.settle(id.epoch()).map_err(local)?;
        self.order(&mut lock(&self.ordered), id);
        let mut state = lock(&self.progress.state);
        (state.hurry, state.failures) = (true, 0);
        self.progress.bell.notify_all();
        while state.done != Some(id) {
            if let Some(error) = state.error.clone().filter(|_| state.ended || state.failures >= LAST_TRIES) {
                return Err(error);
            }
            state = self.progress.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.hurry = false;
        Ok(())
    }

    /// Has the end of the job backed up, after which no epoch comes, waits for it, and ends the thread.
    pub(crate) fn finish(&self, id: WholeId) -> Result<(), Error> {
        let made = self.back_up_now(id).map_err(|error| {
            // It ends its sentence itself.
            let why = error.to_string();
            let why = why.trim_end_matches('.');
            let what = format!("the job is done and durable, but its last backup is not made: {why}");
            let remedy = "Run the job again once that is repaired: it is done, and is backed up then.";
            Error::Backup(BackupError::Local(Box::new(Detail::new(what).remedy(remedy))))
        });
        self.end();
        made
    }

    fn end(&self) {
        lock(&self.progress.state).stop = true;
        self.progress.bell.notify_all();
        drop(lock(&self.orders).take());
        let thread = lock(&self.thread).take();
        // One that panicked has said so.
        let _ = thread.map(JoinHandle::join);
    }

    /// Why no backup is made, if the last try failed.
    pub(crate) fn error(&self) -> Option<BackupError> {
        lock(&self.progress.state).error.clone()
    }
}

/// Says so when the thread panics, to whoever waits for it.
struct EndOnPanic<'a>(&'a Progress);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        let detail =
            Detail::new("the thread of the backups panicked").remedy("Report this; start the job again.");
        self.0.failed(BackupError::Local(Box::new(detail)), true, Duration::ZERO);
    }
}

impl Progress {
    fn run(&self, copier: &mut Copier, orders: &Receiver<WholeId>, wake: &dyn Fn()) {
        while let Ok(id) = orders.recv()
            && !lock(&self.state).stop
        {
            let (mut checkpoint, mut pause) = (None, Duration::ZERO);
            loop {
                match copier.copy(id, &mut checkpoint) {
                    Ok(receipt) => {
                        tracing::info!(epoch = %id.epoch(), bytes = receipt.bytes_sent, "backed up");
                        self.succeeded(id);
                        wake();
                        break;
                    }
                    Err(error) => {
                        let ends = error.is_final();
                        tracing::warn!(%error, ends, "a backup of the job failed; the job goes on");
                        pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                        if self.failed(error, ends, pause) {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn succeeded(&self, id: WholeId) {
        let mut state = lock(&self.state);
        (state.done, state.failures, state.error) = (Some(id), 0, None);
        self.done.store(id.epoch().0, Ordering::Release);
        self.bell.notify_all();
    }

    /// Takes note of a failure, and waits; not for long when somebody waits for it. True when it is to end.
    fn failed(&self, error: BackupError, ends: bool, pause: Duration) -> bool {
        let mut state = lock(&self.state);
        state.failures += 1;
        state.error = Some(error);
        state.ended |= ends;
        self.bell.notify_all();
        let pause = if ends { Duration::ZERO } else { pause };
        let waited = self.bell.wait_timeout_while(state, pause, |state| !state.hurry && !state.stop);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let pause = if state.hurry && !ends { FIRST_PAUSE } else { Duration::ZERO };
        let waited = self.bell.wait_timeout_while(state, pause, |state| !state.stop);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        ends || state.stop
    }
}

/// Takes a lock whoever panicked with it: a panic has ended the process then.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_generations_come_back_and_nothing_else_does() {
        assert_eq!(generation_of(&folder_of(Generation(7))), Some(Generation(7)));
        for bad in ["generation-7", "generation-00000007x", "part-0000-of-0001", "generation-+0000007"] {
            assert_eq!(generation_of(bad), None, "{bad}");
        }
    }
}
