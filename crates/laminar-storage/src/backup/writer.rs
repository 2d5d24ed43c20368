//! Makes backups of one store at one place.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::error::{BackupError, Result};
use super::log::{Session, read_record};
use super::options::BackupOptions;
use super::record::{BackupOwner, Contents, Keep, Nonce, Object, ObjectId, Record};
use super::remote::Remote;
use super::stop::Stop;
use super::sweep::sweep;
use super::target::BackupTarget;
use super::upload::{Known, Source};
use crate::ids::{BackupId, CheckpointId, Epoch};
use crate::incremental::CheckpointReader;
use crate::incremental::layout::can_be_own_file;
use crate::vfs::{OsVfs, Vfs};

/// What [`BackupWriter::back_up`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReceipt {
    /// The backup.
    pub id: BackupId,
    /// The checkpoint it holds.
    pub checkpoint: CheckpointId,
    /// The epoch whose end it holds.
    pub epoch: Epoch,
    /// False when the newest backup held all of this already, and none was made.
    pub is_new: bool,
    /// Its files, those that were there already included.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that were not there yet.
    pub files_sent: usize,
    /// Objects that they were put in.
    pub objects_sent: usize,
    /// Bytes of those.
    pub bytes_sent: u64,
    /// Objects that were removed because nothing needs them any more.
    pub removed: usize,
    /// How long transfers were held back for the limit of the bandwidth.
    pub held_back: Duration,
    /// How long it took.
    pub time: Duration,
}

/// Makes backups at one place, as its owner, until another writer takes it over. All of its work is done on the thread
/// that calls it.
#[derive(Debug)]
pub struct BackupWriter {
    remote: Remote,
    session: Session,
    /// The backups that count; none where a record could not be read, and then nothing is swept.
    retained: Vec<Option<Record>>,
    known: Known,
    /// Whether something may be there that nothing needs.
    unswept: bool,
}

impl BackupWriter {
    /// Takes over the backups at `target` for this opening of the store. Whoever had them makes none any more.
    ///
    /// # Errors
    /// `Fenced` when a later opening of the store has them; `Foreign` when another store has them and
    /// [`BackupOptions::take_over`] is not set; `Refused` by a store without conditional puts; `Unreachable`;
    /// `InvalidInput` for options.
    pub fn open(target: &BackupTarget, options: &BackupOptions, owner: BackupOwner) -> Result<Self> {
        Self::open_stoppable(target, options, owner, Stop::default())
    }

    pub(super) fn open_stoppable(
        target: &BackupTarget,
        options: &BackupOptions,
        owner: BackupOwner,
        stop: Stop,
    ) -> Result<Self> {
        let mut remote = Remote::new(target, options)?;
        remote.stop = stop;
        let nonce = Nonce(OsVfs::new().random_u64());
        let (session, retained) = remote.run(async {
            let session = Session::claim(&remote, owner, nonce).await?;
            let mut retained = Vec::new();
            for id in &session.head.retained {
                retained.push(match read_record(&remote, *id).await {
                    Ok(Some(record)) => Some(record),
                    // It stays among those that count, for somebody to look at, until newer ones take its place.
                    Ok(None) => {
                        tracing::warn!(backup = %id, place = remote.url(), "the record of a backup is missing");
                        None
                    }
                    Err(error @ BackupError::Corruption(_)) => {
                        tracing::warn!(backup = %id, %error, "the record of a backup is damaged");
                        None
                    }
                    Err(error) => return Err(error),
                });
            }
            Ok((session, retained))
        })?;
        Ok(Self { remote, session, retained, known: Known::default(), unswept: true })
    }

    /// The newest backup that counts, if there is one.
    #[must_use]
    pub fn newest(&self) -> Option<BackupId> {
        self.session.head.retained.last().copied()
    }

    /// Backs a checkpoint up, with small files of the program's own. Files that are there already, from this or an
    /// earlier writer, are not sent again.
    ///
    /// # Errors
    /// `Fenced` for good; `Unreachable` and `Refused`; `Local` when the checkpoint cannot be read, or is damaged;
    /// `InvalidInput` for the name of a file. No backup is lost by any of them, and nothing that is there was changed.
    pub fn back_up(
        &mut self,
        checkpoint: &CheckpointReader,
        own_files: &[(&str, &[u8])],
    ) -> Result<BackupReceipt> {
        self.back_up_keeping(checkpoint, own_files, Keep::Newest(self.remote.options.keep))
    }

    /// As [`Self::back_up`], and says which backups stay.
    pub(super) fn back_up_keeping(
        &mut self,
        checkpoint: &CheckpointReader,
        own_files: &[(&str, &[u8])],
        keep: Keep,
    ) -> Result<BackupReceipt> {
        check_names(own_files)?;
        let started = Instant::now();
        let metadata = checkpoint.metadata();
        let manifest = metadata.to_json()?;
        let state = checkpoint.cores().flat_map(|core| checkpoint.files(core)).map(Source::State);
        let own = own_files.iter().map(|(name, bytes)| Source::Own(name, bytes));
        let sources: Vec<_> = state.chain(own).collect();
        let there: Vec<Object> = self.objects().cloned().collect();
        let held_back = self.remote.waited();
        let Self { remote, session, retained, known, unswept } = self;
        let (sent, contents, is_new) = remote.run(async {
            // Not to send what can never count.
            session.check_current(remote).await?;
            let (objects, sent) = known.send(remote, session.term, &sources, &there).await?;
            let contents = Contents { manifest, objects };
            let newest = retained.last().and_then(Option::as_ref).and_then(|newest| newest.backup.as_ref());
            let is_new = newest != Some(&contents);
            if is_new {
                session.publish(remote, contents.clone(), keep).await?;
                *unswept = true;
            }
            Ok::<_, BackupError>((sent, contents, is_new))
        })?;
        self.refresh();
        let removed = self.sweep();
        Ok(BackupReceipt {
            id: self.newest().unwrap_or_default(),
            checkpoint: CheckpointId(metadata.id),
            epoch: Epoch(metadata.epoch),
            is_new,
            files: contents.objects.len(),
            bytes: contents.objects.iter().map(|object| object.len).sum(),
            files_sent: sent.files,
            objects_sent: sent.chunks,
            bytes_sent: sent.bytes,
            removed,
            held_back: self.remote.waited().saturating_sub(held_back),
            time: started.elapsed(),
        })
    }

    /// The objects of all backups that count, as far as they can be read.
    fn objects(&self) -> impl Iterator<Item = &Object> {
        self.retained.iter().flatten().filter_map(|record| record.backup.as_ref()).flat_map(|b| &b.objects)
    }
}

/// After a backup.
impl BackupWriter {
    /// Brings the backups that count up to date with the head.
    fn refresh(&mut self) {
        let Self { remote, session, retained, .. } = self;
        let mut before: Vec<_> = retained.drain(..).flatten().collect();
        before.push(session.head.clone());
        for id in &session.head.retained {
            let found = before.iter().position(|record| record.id == *id).map(|at| before.swap_remove(at));
            // One whose reply was lost, and which another followed.
            let found = found.or_else(|| remote.run(read_record(remote, *id)).ok().flatten());
            retained.push(found);
        }
    }

    /// Removes what nothing needs; what does not work is tried with the next backup.
    fn sweep(&mut self) -> usize {
        if !self.unswept || self.retained.iter().any(Option::is_none) {
            return 0;
        }
        let needed: HashSet<ObjectId> = self.objects().map(|object| object.id).collect();
        // From here on these may be gone, whatever the outcome.
        self.known.keep_only(|object| needed.contains(&object));
        let Self { remote, session, .. } = self;
        match remote.run(sweep(remote, session, &needed)) {
            Ok(removed) => {
                self.unswept = false;
                removed
            }
            Err(error) => {
                tracing::warn!(%error, "old objects of the backups stay for now");
                0
            }
        }
    }
}

fn check_names(own_files: &[(&str, &[u8])]) -> Result<()> {
    for (name, _) in own_files {
        if !can_be_own_file(name) {
            let what = format!("{name:?} cannot be the name of a file beside those of a backup");
            let remedy = "Use a plain file name that is not one of the library's own.";
            return Err(BackupError::invalid(what, "own files", remedy));
        }
    }
    Ok(())
}
