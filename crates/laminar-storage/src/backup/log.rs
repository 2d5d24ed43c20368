//! The log of the backups at one place: who may write, and which backups count.
//!
//! # Protocol
//! The log is a row of records with numbers 1, 2, 3, …, each put only where there is none, which every object store
//! decides in one step. Its newest record, the *head*, says everything: whose the place is, and which backups count.
//!
//! 1. A writer begins with a *claim*: it reads the head and puts a claim behind it. When another record got there first,
//!    it reads again. The number of its claim is its *term*.
//! 2. A backup counts from the moment its record is put, right behind the last record that its writer knows.
//! 3. So a writer can put a record only if nothing came after what it knows. What comes there from somebody else is a
//!    claim, and it means that the writer is *fenced*: it writes no record any more.
//! 4. When a reply is lost, the record is read: it is the writer's own, somebody else's, or not there.
//! 5. Records that do not count are removed from the lowest up, and only when [`SLOTS_KEPT`] newer ones are there. A writer
//!    that was paused for longer could find its next number free again. What it puts there, below the head, counts for
//!    nobody. It finds that out in two ways, of which one is enough: its own claim, which has a lower number, is gone, which
//!    it looks for after every record it put; and a listing shows higher records, which it looks at after its claim, and
//!    again before it removes anything.
//!
//! What a zombie, a writer that was fenced and does not know it yet, does to files is the part of [`super::sweep`].

use std::collections::HashSet;

use bytes::Bytes;

use super::error::{BackupError, Result};
use super::names::{LOG, is_of_job, parse_record_name, record_name};
use super::record::{BackupOwner, Contents, Keep, Nonce, ObjectId, Record, WriterId};
use super::remote::{Put, Remote};
use crate::error::Detail;
use crate::format::manifest::MAX_MANIFEST_LEN;
use crate::ids::{BackupId, Epoch};
use crate::sabotage::{Sabotage, sabotaged};

/// Records that stay behind the head although they do not count: a listing that is behind by fewer still leads to it.
pub(super) const SLOTS_KEPT: u64 = 32;

/// Bytes of a record at most: a manifest, whose quotes are escaped, and the objects.
const MOST_BYTES: u64 = 4 * MAX_MANIFEST_LEN;

/// An object that says what this is.
pub(super) const FORMAT_NAME: &str = "laminar-backups";
const FORMAT: &[u8] = b"Backups of laminar-storage, version 1. See docs/BACKUP.md there.\n";
/// Bytes of it at most, in whatever version.
const MOST_FORMAT: u64 = 4096;

/// What became of appending a record.
enum Appended {
    /// The record of this number is the writer's own: the one to append, or one whose reply was lost before.
    Own(Box<Record>),
    /// Somebody else was there first.
    Taken(Box<Record>),
}

/// A writer's place in the log.
#[derive(Debug)]
pub(super) struct Session {
    me: WriterId,
    /// The number of its claim.
    pub(super) term: BackupId,
    /// The last record that it knows.
    pub(super) head: Record,
    /// A record behind the head was given up, and may come to stand there yet.
    given_up: bool,
    /// The objects of such records. They count as needed, because such a record counts when it comes: until another stands at
    /// that number, which only one ever has.
    late: HashSet<ObjectId>,
    /// In a directory: the record of the head may not be on the disk, as its put failed and it is there.
    unproved: bool,
}

/// The record of this number; none when there is none.
pub(super) async fn read_record(remote: &Remote, id: BackupId) -> Result<Option<Record>> {
    let name = record_name(id);
    match remote.get(LOG, &name, MOST_BYTES).await? {
        None => Ok(None),
        Some(bytes) => Record::decode(&bytes, id, &remote.name_of(LOG, &name)).map(Some),
    }
}

/// The newest record; none where there never was one.
pub(super) async fn read_head(remote: &Remote) -> Result<Option<Record>> {
    for attempt in 0..remote.options.attempts {
        let listed = remote.list(LOG).await?;
        let newest = listed.iter().filter_map(|name| parse_record_name(name)).max();
        let mut head = match newest {
            None => None,
            Some(id) => match read_record(remote, id).await.map_err(about_head)? {
                // Listed, and removed since, or still to be seen.
                None => {
                    remote.pause(attempt).await;
                    continue;
                }
                found => found,
            },
        };
        // The listing may be behind.
        loop {
            let next = head.as_ref().map_or(BackupId(1), |head| head.id.next());
            match read_record(remote, next).await.map_err(about_head)? {
                None => return Ok(head),
                found => head = found,
            }
        }
    }
    let what = "the newest record of the log is listed and cannot be read";
    Err(BackupError::Unreachable(Box::new(
        Detail::new(what).at_path(remote.name_of(LOG, "")).remedy("Try again a little later."),
    )))
}

/// What is to be done about a damaged record is another thing when it is the one that says which backups count.
fn about_head(error: BackupError) -> BackupError {
    let BackupError::Corruption(detail) = error else { return error };
    let remedy = "It is the newest record of the log: without it nobody knows which backups count. End whoever makes backups here, move this \
                  one object away, and look at the others with `laminar backups URL --verify`; what only this record held is lost. The next \
                  backup goes on behind them.";
    BackupError::Corruption(Box::new(detail.remedy(remedy)))
}

/// Appends a record at its number.
async fn append(remote: &Remote, record: &Record) -> Result<Appended> {
    let (name, bytes) = (record_name(record.id), Bytes::from(record.encode()?));
    check_len(bytes.len() as u64, &remote.name_of(LOG, &name))?;
    // All that it refers to, before it can be found.
    if let Some(directory) = remote.directory() {
        directory.sync_all()?;
    }
    for attempt in 0..remote.options.attempts {
        if remote.put_new(LOG, &name, &bytes).await? == Put::Done {
            return Ok(Appended::Own(Box::new(record.clone())));
        }
        match read_record(remote, record.id).await? {
            Some(found) if found.writer == record.writer => return Ok(Appended::Own(Box::new(found))),
            Some(found) => return Ok(Appended::Taken(Box::new(found))),
            None => remote.pause(attempt).await,
        }
    }
    Err(remote.contradicts(LOG, &name))
}

/// A record that nobody could read would end the log: nothing could be put behind it.
fn check_len(len: u64, object: &str) -> Result<()> {
    if len <= MOST_BYTES {
        return Ok(());
    }
    let what = format!("the record would have {len} bytes, {MOST_BYTES} can be read");
    Err(BackupError::invalid(what, object, "Set a larger chunk_bytes; nothing that is there was changed."))
}

impl Session {
    /// Takes the place over, from earlier openings of the same store, or from another store if that is asked for.
    /// `reached`: up to which epoch this opening knows the state of the store, if that is known.
    pub(super) async fn claim(
        remote: &Remote,
        owner: BackupOwner,
        nonce: Nonce,
        reached: Option<Epoch>,
    ) -> Result<Self> {
        let me = WriterId { owner, nonce };
        // Before anything is put.
        check_kind(remote).await?;
        check_conditions(remote).await?;
        loop {
            let head = read_head(remote).await?;
            if let Some(head) = &head {
                check_owner(remote, owner, head)?;
                check_reached(remote, owner, head, reached).await?;
            }
            let (id, retained) =
                head.map_or((BackupId(1), Vec::new()), |head| (head.id.next(), head.retained));
            let claim = Record::claim(id, me, retained);
            // Others can be first only as often as they claim or publish.
            let Appended::Own(head) = append(remote, &claim).await? else { continue };
            // With a lost reply and a long pause before the next attempt it can be one of the past.
            if read_head(remote).await?.is_some_and(|newest| newest == *head) {
                let (given_up, late, unproved) = (false, HashSet::new(), false);
                return Ok(Self { me, term: id, head: *head, given_up, late, unproved });
            }
        }
    }

    /// Makes a backup count. When this fails with anything but `Fenced`, it may count or not; the next call finds out.
    pub(super) async fn publish(&mut self, remote: &Remote, contents: Contents, keep: Keep) -> Result<()> {
        loop {
            // Were everything removed and begun anew by somebody else, this record would stand above theirs.
            self.confirm(remote).await?;
            let record = Record::backup(&self.head, self.term, contents.clone(), keep);
            let appended = match append(remote, &record).await {
                Ok(appended) => appended,
                Err(error) => {
                    self.give_up(remote, &contents);
                    return Err(error);
                }
            };
            match appended {
                Appended::Own(own) => {
                    self.confirm(remote).await?;
                    let done = *own == record;
                    self.advance(*own);
                    if done {
                        self.unproved = false;
                        return Ok(());
                    }
                    // An earlier one arrived after all; this one goes behind it.
                }
                Appended::Taken(other) if sabotaged(Sabotage::FencedGoesOn) => self.advance(*other),
                Appended::Taken(other) => return Err(fenced(remote, self.me, Some(&other))),
            }
        }
    }

    /// Whether the place is still this writer's, as far as that can be told; costs two reads.
    pub(super) async fn check_current(&mut self, remote: &Remote) -> Result<()> {
        while let Some(next) = read_record(remote, self.head.id.next()).await? {
            if next.writer != self.me && !sabotaged(Sabotage::FencedGoesOn) {
                return Err(fenced(remote, self.me, Some(&next)));
            }
            // Its reply was lost.
            self.advance(next);
        }
        self.confirm(remote).await
    }

    /// Whether a record has to be put although the head says all there is to say: what counts is not settled otherwise.
    pub(super) fn must_publish(&self) -> bool {
        self.given_up || self.unproved
    }

    /// The objects of records that were given up, and that may count later.
    pub(super) fn late(&self) -> &HashSet<ObjectId> {
        &self.late
    }

    /// The put of a record failed: it stands behind the head, or may come to stand there.
    fn give_up(&mut self, remote: &Remote, contents: &Contents) {
        self.given_up = true;
        self.late.extend(contents.objects.iter().map(|object| object.id));
        self.unproved |= remote.directory().is_some();
    }

    /// A record stands behind the head, so that no other ever will.
    fn advance(&mut self, to: Record) {
        self.head = to;
        self.given_up = false;
        self.late.clear();
    }

    /// Looks whether the writer's claim is still there: see point 5 of the protocol.
    pub(super) async fn confirm(&self, remote: &Remote) -> Result<()> {
        match read_record(remote, self.term).await? {
            Some(claim) if claim.writer == self.me => Ok(()),
            other => Err(fenced(remote, self.me, other.as_ref())),
        }
    }
}

fn check_owner(remote: &Remote, owner: BackupOwner, head: &Record) -> Result<()> {
    let theirs = head.writer.owner;
    if remote.options.take_over {
        return Ok(());
    }
    if theirs.store_id == owner.store_id {
        return if theirs.incarnation > owner.incarnation {
            Err(outlived(remote, owner, theirs))
        } else {
            Ok(())
        };
    }
    let what = format!(
        "the backups here are those of store {:016x}, and this is store {:016x}",
        theirs.store_id.get(),
        owner.store_id.get()
    );
    let remedy = "Use another URL. If this store was restored from here and is to go on in its place, take over: \
                  `--take-over`, BackupOptions::take_over; the old store can then make no backups here.";
    Err(BackupError::Foreign(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy))))
}

/// Refuses a store that knows less of its own state than its newest backup here holds, as one does that was put back from an image of
/// its disk: its incarnation says nothing then, as it counts on from that of the image.
async fn check_reached(
    remote: &Remote,
    owner: BackupOwner,
    head: &Record,
    reached: Option<Epoch>,
) -> Result<()> {
    let (Some(reached), Some(newest)) = (reached, head.retained.last()) else { return Ok(()) };
    if remote.options.take_over {
        return Ok(());
    }
    let newest = match read_record(remote, *newest).await {
        Ok(newest) => newest,
        // Whoever reads the backups is told; nobody knows what it held.
        Err(BackupError::Corruption(_)) => None,
        Err(error) => return Err(error),
    };
    let Some(newest) = newest.filter(|record| record.writer.owner.store_id == owner.store_id) else {
        return Ok(());
    };
    match newest.metadata() {
        Some(Ok(held)) if held.epoch > reached.get() => {
            Err(behind(remote, newest.id, Epoch(held.epoch), reached))
        }
        _ => Ok(()),
    }
}

fn behind(remote: &Remote, backup: BackupId, held: Epoch, reached: Epoch) -> BackupError {
    let what = format!(
        "backup {backup} of this store holds epoch {held}, and the store was opened at epoch {reached}: it is older than its backup"
    );
    let remedy = "Restore the newest backup, if what it holds is wanted. If this store was put back on purpose and is to go on, take over: \
                  `--take-over`, BackupOptions::take_over; newer backups of it then go as new ones are made. If another program has a \
                  copy of the store's directory open, end one of them.";
    BackupError::Fenced(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy)))
}

/// Refuses to begin a log right above the backups of a job: nobody would see those any more.
async fn check_kind(remote: &Remote) -> Result<()> {
    let folders = match remote.directory() {
        Some(directory) => directory.folders()?,
        None => remote.folders().await?,
    };
    // Where there is one already nobody looks any further: what is beside it concerns nobody.
    if folders.iter().any(|folder| folder == LOG) {
        return Ok(());
    }
    let Some(size) = folders.iter().find(|folder| is_of_job(folder)) else { return Ok(()) };
    let what = format!("this place has the backups of a job that runs in parts ({size})");
    let remedy = "Name another place for the backups of this store; nothing was put here.";
    Err(BackupError::Foreign(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy))))
}

/// All of this rests on the store's refusing to put what is there. One that does not is found out with an object that
/// always has the same bytes; other bytes are those of another version.
async fn check_conditions(remote: &Remote) -> Result<()> {
    let bytes = Bytes::from_static(FORMAT);
    let refused = |what: &'static str, remedy: &'static str| {
        BackupError::Refused(Box::new(
            Detail::new(what).at_path(remote.name_of("", FORMAT_NAME)).remedy(remedy),
        ))
    };
    let mut puts = 0;
    // The first puts it, where it is not there, and the second finds it.
    for attempt in 0..remote.options.attempts.saturating_add(1) {
        if remote.put_new("", FORMAT_NAME, &bytes).await? == Put::Done {
            puts += 1;
            if puts > 1 {
                return Err(refused(
                    "the object store puts an object over one that is there, although it was told not to",
                    "Use one that honours `If-None-Match: *` (conditional puts): without that, two writers could mix their backups.",
                ));
            }
            continue;
        }
        match remote.get("", FORMAT_NAME, MOST_FORMAT).await? {
            Some(found) if found == bytes => return Ok(()),
            Some(found) if is_damaged(remote, &found).await => {
                return Err(refused(
                    "this object is damaged; it only says what is here, and the backups do not need it",
                    "Remove this one object, and nothing else: the next backup puts it there again.",
                ));
            }
            Some(_) => {
                return Err(refused(
                    "this says that the backups here are of another version, or that these are none",
                    "Use the version of laminar-storage that began this place, or another URL.",
                ));
            }
            None => remote.pause(attempt).await,
        }
    }
    Err(remote.contradicts("", FORMAT_NAME))
}

/// Whether what should say what the backups are says nothing, while there are records of this version.
async fn is_damaged(remote: &Remote, found: &[u8]) -> bool {
    // In the words of another version.
    let digits = |byte: &u8| !byte.is_ascii_digit();
    let says_another = found.iter().filter(|byte| digits(byte)).eq(FORMAT.iter().filter(|byte| digits(byte)));
    !says_another && matches!(read_head(remote).await, Ok(Some(_)))
}

/// This opening is an earlier one than that which has the place.
fn outlived(remote: &Remote, me: BackupOwner, by: BackupOwner) -> BackupError {
    let remedy = "If that is meant, end this one. If this store was put back from an image of its disk and is to go on, take over: \
                  `--take-over`, BackupOptions::take_over. Otherwise find out which program has a copy of the store's directory \
                  open and end it, then open this store again.";
    BackupError::Fenced(Box::new(Detail::new(later_opening(me, by)).at_path(remote.url()).remedy(remedy)))
}

fn later_opening(me: BackupOwner, by: BackupOwner) -> String {
    format!(
        "a later opening of this store (incarnation {}, this one is {}) makes the backups now",
        by.incarnation, me.incarnation
    )
}

fn fenced(remote: &Remote, me: WriterId, by: Option<&Record>) -> BackupError {
    let by = by.map(|record| record.writer.owner);
    let what = match by {
        None => "this writer's claim is gone: somebody came after it, or emptied the place".to_owned(),
        Some(owner) if owner.store_id != me.owner.store_id => {
            format!("store {:016x} has taken over the backups here", owner.store_id.get())
        }
        Some(owner) if owner.incarnation > me.owner.incarnation => later_opening(me.owner, owner),
        _ => "another writer of this store makes the backups now".to_owned(),
    };
    let remedy = "If that is meant, end this one. Otherwise find out which program has a copy of the store's directory \
                  open and end it, then open this store again.";
    BackupError::Fenced(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy)))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;

    /// One was put, and from then on no backup could be listed, restored or made.
    #[test]
    fn no_record_is_put_that_is_too_long_to_be_read() {
        check_len(MOST_BYTES, "log/1").unwrap();
        let error = check_len(MOST_BYTES + 1, "log/1").unwrap_err();
        assert!(matches!(error, BackupError::InvalidInput(_)) && error.is_final(), "{error}");
        assert!(error.to_string().contains("chunk_bytes"), "{error}");
    }
}
