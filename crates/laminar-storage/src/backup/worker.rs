//! Backs up every checkpoint of a running store, on a thread of its own.
//!
//! It takes no part in the store's work: whatever happens here, the store goes on. Checkpoints that come while one is
//! backed up are passed over, but for the newest.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::error::{BackupError, Result};
use super::options::BackupOptions;
use super::record::Opening;
use super::stop::Stop;
use super::target::BackupTarget;
use super::writer::{BackupReceipt, BackupWriter};
use crate::error::Detail;
use crate::ids::{BackupId, CheckpointId};
use crate::incremental::layout::EntryName;
use crate::incremental::{CheckpointReader, IncrementalCheckpointError};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, lock};
use crate::vfs::Vfs;

/// The pause after a backup that failed; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Small files of the program's own, name and content of each, as they are to be in a backup that is made now.
type OwnFiles = dyn Fn() -> io::Result<Vec<(String, Vec<u8>)>> + Send + Sync;

/// What a store is to do about backups.
#[derive(Clone)]
pub(crate) struct BackupPlan {
    pub(crate) target: BackupTarget,
    pub(crate) options: BackupOptions,
    pub(crate) own_files: Arc<OwnFiles>,
}

impl fmt::Debug for BackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, options, .. } = self;
        f.debug_struct("BackupPlan").field("target", target).field("options", options).finish_non_exhaustive()
    }
}

/// How far the backups of a store have come; from [`crate::Store::backup_status`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackupStatus {
    /// The newest backup that this opening made, or found to hold the newest checkpoint.
    pub last_backup: Option<BackupId>,
    /// The checkpoint it holds.
    pub last_checkpoint: Option<CheckpointId>,
    /// Backups since the store was opened.
    pub backups: u64,
    /// Bytes sent for them.
    pub bytes_sent: u64,
    /// Checkpoints since the one that was backed up last.
    pub checkpoints_behind: u64,
    /// Bytes that those wrote.
    pub bytes_behind: u64,
    /// Tries that failed since the last that did not.
    pub failures: u64,
    /// Why the last one failed; none once one has succeeded.
    pub last_error: Option<BackupError>,
    /// No further one will be tried in this opening: the last error says why.
    pub has_ended: bool,
}

/// What the store and its backup thread share.
#[derive(Debug)]
pub(crate) struct Backups {
    plan: BackupPlan,
    vfs: Arc<dyn Vfs>,
    checkpoints: PathBuf,
    opening: Opening,
    stop: Stop,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    status: BackupStatus,
    /// Checkpoints that no backup holds yet, oldest first, with the bytes they wrote.
    behind: VecDeque<(CheckpointId, u64)>,
}

impl State {
    fn newest(&self) -> Option<CheckpointId> {
        self.behind.back().map(|(id, _)| *id)
    }

    fn shown(&self) -> BackupStatus {
        BackupStatus {
            checkpoints_behind: self.behind.len() as u64,
            bytes_behind: self.behind.iter().map(|(_, bytes)| bytes).sum(),
            ..self.status.clone()
        }
    }
}

impl Backups {
    pub(crate) fn new(plan: BackupPlan, vfs: &Arc<dyn Vfs>, checkpoints: &Path, opening: Opening) -> Self {
        Self {
            plan,
            vfs: Arc::clone(vfs),
            checkpoints: checkpoints.to_path_buf(),
            opening,
            stop: Stop::default(),
            state: Mutex::default(),
            bell: Condvar::default(),
        }
    }

    /// Starts the thread.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let backups = Arc::clone(self);
        thread::Builder::new().name("laminar-backup".into()).spawn(move || {
            let bomb = EndOnPanic(&backups);
            backups.run();
            std::mem::forget(bomb);
        })
    }

    /// There is a new checkpoint, which wrote so many bytes.
    pub(crate) fn checkpointed(&self, id: CheckpointId, bytes: u64) {
        lock(&self.state).behind.push_back((id, bytes));
        self.bell.notify_all();
    }

    /// Ends the thread: a backup that is under way is given up.
    pub(crate) fn end(&self) {
        self.stop.ask();
        drop(lock(&self.state));
        self.bell.notify_all();
    }

    pub(crate) fn status(&self) -> BackupStatus {
        lock(&self.state).shown()
    }

    /// Waits until a backup holds the newest checkpoint, or none will be tried any more.
    pub(crate) fn wait(&self, at_most: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(at_most);
        let mut state = lock(&self.state);
        loop {
            if state.behind.is_empty() {
                return Ok(true);
            }
            if let (true, Some(error)) = (state.status.has_ended, &state.status.last_error) {
                return Err(error.clone());
            }
            let left = deadline.map_or(LONGEST_PAUSE, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.bell.wait_timeout(state, left.min(LONGEST_PAUSE));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run(&self) {
        let mut writer = None;
        let mut pause = Duration::ZERO;
        while let Some(wanted) = self.next(pause) {
            match self.back_up(&mut writer, wanted) {
                Ok(receipt) => {
                    tracing::debug!(?receipt, "backup");
                    pause = Duration::ZERO;
                    self.succeeded(&receipt);
                }
                Err(BackupError::Stopped(_)) => break,
                Err(error) => {
                    pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                    let ends = error.is_final();
                    tracing::warn!(%error, place = %self.plan.target, ends, "a backup failed; the store goes on");
                    self.failed(error, ends);
                    if ends {
                        break;
                    }
                }
            }
        }
    }

    /// Waits until there is a checkpoint to back up, and the pause is over; none when it is to end.
    fn next(&self, pause: Duration) -> Option<CheckpointId> {
        let from = Instant::now();
        let mut state = lock(&self.state);
        loop {
            if self.stop.is_asked() {
                return None;
            }
            let left = pause.saturating_sub(from.elapsed());
            let wait = match state.newest() {
                Some(newest) if left.is_zero() => return Some(newest),
                Some(_) => left,
                None => LONGEST_PAUSE,
            };
            let waited = self.bell.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn back_up(&self, writer: &mut Option<BackupWriter>, wanted: CheckpointId) -> Result<BackupReceipt> {
        let writer = match writer {
            Some(writer) => writer,
            None => {
                let (target, options) = (&self.plan.target, &self.plan.options);
                let stop = self.stop.clone();
                let opened = BackupWriter::open_stoppable(target, options, &self.opening, stop)?;
                writer.insert(opened)
            }
        };
        let reader = self.open(wanted)?;
        // After the checkpoint was chosen: they are those of then or of later.
        let files = (self.plan.own_files)().map_err(|error| {
            let remedy = "Remove the cause: the backup is tried again.";
            let what = format!("the files that are to go with the backup could not be had: {error}");
            BackupError::Local(Box::new(Detail::new(what).caused_by(error).remedy(remedy)))
        })?;
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        writer.back_up(&reader, &files)
    }

    /// Opens the checkpoint, or a newer one when that is gone: its files stay readable from then on, even when it is
    /// removed.
    fn open(&self, wanted: CheckpointId) -> Result<CheckpointReader> {
        let mut wanted = wanted;
        loop {
            let dir = EntryName::Checkpoint(wanted).path(&self.checkpoints);
            let error = match CheckpointReader::open(self.vfs.as_ref(), &dir) {
                Ok(reader) => return Ok(reader),
                Err(error) => error,
            };
            let newest = lock(&self.state).newest().filter(|newest| *newest > wanted);
            let gone = matches!(error, IncrementalCheckpointError::NotFound(_)) || error.is_corruption();
            match newest {
                Some(newest) if gone => wanted = newest,
                _ => return Err(error.into()),
            }
        }
    }

    fn succeeded(&self, receipt: &BackupReceipt) {
        let mut state = lock(&self.state);
        while state.behind.front().is_some_and(|(id, _)| *id <= receipt.checkpoint) {
            state.behind.pop_front();
        }
        let status = &mut state.status;
        status.last_backup = Some(receipt.id);
        status.last_checkpoint = Some(receipt.checkpoint);
        status.backups += u64::from(receipt.is_new);
        status.bytes_sent += receipt.bytes_sent;
        (status.failures, status.last_error) = (0, None);
        drop(state);
        self.bell.notify_all();
    }

    fn failed(&self, error: BackupError, ends: bool) {
        let status = &mut lock(&self.state).status;
        status.failures += 1;
        status.last_error = Some(error);
        status.has_ended |= ends;
        self.bell.notify_all();
    }
}

/// Says so when the thread panics.
struct EndOnPanic<'a>(&'a Backups);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        let detail =
            Detail::new("the backup thread panicked").remedy("Report this; open the store again to go on.");
        self.0.failed(BackupError::Stopped(Box::new(detail)), true);
    }
}
