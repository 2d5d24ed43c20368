//! Makes backups of one store at one place.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::error::{BackupError, Result};
use super::log::{Session, read_record};
use super::options::BackupOptions;
use super::record::{BackupOwner, Contents, Keep, Nonce, Object, ObjectId, Opening, Record};
use super::remote::Remote;
use super::stop::Stop;
use super::sweep::{Listing, sweep};
use super::target::BackupTarget;
use super::upload::{Known, Sent, Source};
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
    work: Work,
    /// The opening that it works for, where that is known.
    opening: Option<Opening>,
}

/// What a writer knows, and does.
#[derive(Debug)]
struct Work {
    session: Session,
    /// The backups that count; none where a record could not be read, and then nothing is swept.
    retained: Vec<Option<Record>>,
    known: Known,
    /// Whether something may be there that nothing needs.
    unswept: bool,
}

/// What became of a backup.
struct Made {
    contents: Contents,
    sent: Sent,
    is_new: bool,
    removed: usize,
}

impl BackupWriter {
    /// Takes over the backups at `target` for this opening of the store. Whoever had them makes none any more.
    ///
    /// Whether the store is older than its newest backup, as one that was put back from an image of its disk, is not known here:
    /// [`crate::Store::back_up`] and [`crate::StoreBuilder::backup_to`] look at that too.
    ///
    /// # Errors
    /// `Fenced` when a later opening of the store has them; `Foreign` when another store has them and
    /// [`BackupOptions::take_over`] is not set; `Refused` by a store without conditional puts; `Unreachable`;
    /// `InvalidInput` for options.
    pub fn open(target: &BackupTarget, options: &BackupOptions, owner: BackupOwner) -> Result<Self> {
        Self::begin(target, options, owner, None, Stop::default())
    }

    /// As [`Self::open`], for an opening of a store that knows how far its state goes: one that is behind its newest backup is refused
    /// as `Fenced`, unless it is to take over.
    pub(crate) fn open_for(
        target: &BackupTarget,
        options: &BackupOptions,
        opening: &Opening,
    ) -> Result<Self> {
        Self::open_stoppable(target, options, opening, Stop::default())
    }

    pub(super) fn open_stoppable(
        target: &BackupTarget,
        options: &BackupOptions,
        opening: &Opening,
        stop: Stop,
    ) -> Result<Self> {
        Self::begin(target, options, opening.owner, Some(opening.clone()), stop)
    }

    fn begin(
        target: &BackupTarget,
        options: &BackupOptions,
        owner: BackupOwner,
        opening: Option<Opening>,
        stop: Stop,
    ) -> Result<Self> {
        let mut remote = Remote::new(target, options)?;
        remote.stop = stop;
        let nonce = Nonce(OsVfs::new().random_u64());
        let (session, retained) = remote.run(async {
            let reached = opening.as_ref().map(Opening::reached);
            let session = Session::claim(&remote, owner, nonce, reached).await?;
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
        let work = Work { session, retained, known: Known::default(), unswept: true };
        Ok(Self { remote, work, opening })
    }

    /// The newest backup that counts, if there is one.
    #[must_use]
    pub fn newest(&self) -> Option<BackupId> {
        self.work.session.head.retained.last().copied()
    }

    /// Backs a checkpoint up, with small files of the program's own. Files that are there already, from this or an
    /// earlier writer, are not sent again, unless [`BackupOptions::send_all`] is set. What attempts that failed have left is
    /// used or removed first.
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
        let held_back = self.remote.waited();
        let Self { remote, work, opening } = self;
        if let Some(opening) = opening {
            opening.reaches(Epoch(metadata.epoch));
        }
        let made = remote.run(work.back_up(remote, manifest, &sources, keep))?;
        let Made { contents, sent, is_new, removed } = made;
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
}

impl Work {
    async fn back_up(
        &mut self,
        remote: &Remote,
        manifest: String,
        sources: &[Source<'_>],
        keep: Keep,
    ) -> Result<Made> {
        let made = self.attempt(remote, manifest, sources, keep).await;
        let is_doubtful = |error: &BackupError| {
            // Names that may not be on the disk, or bytes that may not be those of the file. On a network nobody says that
            // something was put which was not.
            remote.directory().is_some() || matches!(error, BackupError::Local(_))
        };
        if made.as_ref().is_err_and(is_doubtful) {
            let counting: HashSet<ObjectId> = self.objects().map(|object| object.id).collect();
            self.known.keep_only(|object| counting.contains(&object));
        }
        made
    }

    async fn attempt(
        &mut self,
        remote: &Remote,
        manifest: String,
        sources: &[Source<'_>],
        keep: Keep,
    ) -> Result<Made> {
        // Not to send what can never count.
        self.session.check_current(remote).await?;
        self.refresh(remote).await;
        let mut listing = look(remote).await;
        if let Some(listing) = &listing {
            self.known.keep_listed(listing);
        }
        // First what attempts that failed have left: the room may be needed.
        let mut removed = self.sweep(remote, listing.as_mut(), sources).await;
        let there = self.usable(remote, listing.as_ref());
        let was_unswept = std::mem::replace(&mut self.unswept, true);
        let (objects, sent) = self.known.send(remote, self.session.term, sources, &there).await?;
        let contents = Contents { manifest, objects };
        let newest = self.retained.last().and_then(Option::as_ref);
        let is_there = newest.and_then(|newest| newest.backup.as_ref()) == Some(&contents);
        let is_new = !is_there || self.session.must_publish();
        if is_new {
            self.session.publish(remote, contents.clone(), keep).await?;
            self.refresh(remote).await;
        } else {
            self.unswept = was_unswept || sent.files > 0;
        }
        removed += self.sweep(remote, listing.as_mut(), sources).await;
        Ok(Made { contents, sent, is_new, removed })
    }

    /// The objects of all backups that count, as far as they can be read.
    fn objects(&self) -> impl Iterator<Item = &Object> {
        self.retained.iter().flatten().filter_map(|record| record.backup.as_ref()).flat_map(|b| &b.objects)
    }

    /// Those of them that a new backup may refer to: they are listed as they should be. Damage that leaves the length as it was
    /// is not seen here, but by verifying; a new backup is kept from it by sending all.
    fn usable(&self, remote: &Remote, listing: Option<&Listing>) -> Vec<Object> {
        let is_usable = |object: &&Object| {
            if remote.options.send_all && object.id.term != self.session.term {
                return false;
            }
            let holds = listing.is_none_or(|listing| listing.holds_all(object));
            if !holds {
                let (name, place) = (&object.name, remote.url());
                tracing::warn!(
                    name,
                    place,
                    "a file of a backup is not whole there; it is sent again if it is needed"
                );
            }
            holds
        };
        self.objects().filter(is_usable).cloned().collect()
    }

    /// Brings the backups that count up to date with the head.
    async fn refresh(&mut self, remote: &Remote) {
        let Self { session, retained, .. } = self;
        let mut before: Vec<_> = retained.drain(..).flatten().collect();
        before.push(session.head.clone());
        for id in &session.head.retained {
            let found = before.iter().position(|record| record.id == *id).map(|at| before.swap_remove(at));
            let found = match found {
                // One whose reply was lost, and which another followed.
                None => read_record(remote, *id).await.ok().flatten(),
                found => found,
            };
            retained.push(found);
        }
    }

    /// Removes what nothing needs, as far as it is listed, and neither a backup of these files will; what does not work is tried
    /// with the next backup.
    async fn sweep(
        &mut self,
        remote: &Remote,
        listing: Option<&mut Listing>,
        sources: &[Source<'_>],
    ) -> usize {
        let Some(listing) = listing else { return 0 };
        if !self.unswept || self.retained.iter().any(Option::is_none) {
            return 0;
        }
        let mut needed: HashSet<ObjectId> = self.objects().map(|object| object.id).collect();
        needed.extend(self.session.late());
        needed.extend(self.known.of(sources));
        // From here on these may be gone, whatever the outcome.
        self.known.keep_only(|object| needed.contains(&object));
        match sweep(remote, &self.session, listing, &needed).await {
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

/// Which chunks are there; none when that cannot be had. A backup is made all the same: it is as good as the records are, and
/// the next one looks again.
async fn look(remote: &Remote) -> Option<Listing> {
    let listing = Listing::of(remote).await;
    listing.map_err(|error| tracing::warn!(%error, "what is there of the backups was not looked at")).ok()
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
