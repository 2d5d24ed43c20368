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

use bytes::Bytes;

use super::error::{BackupError, Result};
use super::names::{LOG, parse_record_name, record_name};
use super::record::{BackupOwner, Contents, Keep, Nonce, Record, WriterId};
use super::remote::{Put, Remote};
use crate::error::Detail;
use crate::format::manifest::MAX_MANIFEST_LEN;
use crate::ids::BackupId;
use crate::sabotage::{Sabotage, sabotaged};

/// Records that stay behind the head although they do not count: a listing that is behind by fewer still leads to it.
pub(super) const SLOTS_KEPT: u64 = 32;

/// Bytes of a record at most: a manifest, whose quotes are escaped, and the objects.
const MOST_BYTES: u64 = 4 * MAX_MANIFEST_LEN;

/// An object that says what this is.
const FORMAT_NAME: &str = "laminar-backups";
const FORMAT: &[u8] = b"Backups of laminar-storage, version 1. See docs/BACKUP.md there.\n";

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
            Some(id) => match read_record(remote, id).await? {
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
            match read_record(remote, next).await? {
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

/// Appends a record at its number.
async fn append(remote: &Remote, record: &Record) -> Result<Appended> {
    let (name, bytes) = (record_name(record.id), record.encode()?.into());
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

impl Session {
    /// Takes the place over, from earlier openings of the same store, or from another store if that is asked for.
    pub(super) async fn claim(remote: &Remote, owner: BackupOwner, nonce: Nonce) -> Result<Self> {
        let me = WriterId { owner, nonce };
        check_conditions(remote).await?;
        loop {
            let head = read_head(remote).await?;
            if let Some(head) = &head {
                check_owner(remote, owner, head)?;
            }
            let (id, retained) =
                head.map_or((BackupId(1), Vec::new()), |head| (head.id.next(), head.retained));
            let claim = Record::claim(id, me, retained);
            // Others can be first only as often as they claim or publish.
            let Appended::Own(head) = append(remote, &claim).await? else { continue };
            // With a lost reply and a long pause before the next attempt it can be one of the past.
            if read_head(remote).await?.is_some_and(|newest| newest == *head) {
                return Ok(Self { me, term: id, head: *head });
            }
        }
    }

    /// Makes a backup count. When this fails with anything but `Fenced`, it may count or not; the next call finds out.
    pub(super) async fn publish(&mut self, remote: &Remote, contents: Contents, keep: Keep) -> Result<()> {
        loop {
            // Were everything removed and begun anew by somebody else, this record would stand above theirs.
            self.confirm(remote).await?;
            let record = Record::backup(&self.head, self.term, contents.clone(), keep);
            match append(remote, &record).await? {
                Appended::Own(own) => {
                    self.confirm(remote).await?;
                    let done = *own == record;
                    self.head = *own;
                    if done {
                        return Ok(());
                    }
                    // An earlier one arrived after all; this one goes behind it.
                }
                Appended::Taken(other) if sabotaged(Sabotage::FencedGoesOn) => self.head = *other,
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
            self.head = next;
        }
        self.confirm(remote).await
    }

    /// Looks whether the writer's claim is still there: see point 5 of the protocol.
    async fn confirm(&self, remote: &Remote) -> Result<()> {
        match read_record(remote, self.term).await? {
            Some(claim) if claim.writer == self.me => Ok(()),
            other => Err(fenced(remote, self.me, other.as_ref())),
        }
    }
}

fn check_owner(remote: &Remote, owner: BackupOwner, head: &Record) -> Result<()> {
    let theirs = head.writer.owner;
    if theirs.store_id == owner.store_id {
        let outlived = theirs.incarnation > owner.incarnation;
        return if outlived {
            Err(fenced(remote, WriterId { owner, nonce: head.writer.nonce }, Some(head)))
        } else {
            Ok(())
        };
    }
    if remote.options.take_over {
        return Ok(());
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

/// All of this rests on the store's refusing to put what is there. One that does not is found out with an object that
/// always has the same bytes.
async fn check_conditions(remote: &Remote) -> Result<()> {
    let bytes = Bytes::from_static(FORMAT);
    for _ in 0..2 {
        if remote.put_new("", FORMAT_NAME, &bytes).await? == Put::Exists {
            return Ok(());
        }
    }
    let what = "the object store puts an object over one that is there, although it was told not to";
    let remedy = "Use one that honours `If-None-Match: *` (conditional puts): without that, two writers could mix their backups.";
    Err(BackupError::Refused(Box::new(
        Detail::new(what).at_path(remote.name_of("", FORMAT_NAME)).remedy(remedy),
    )))
}

fn fenced(remote: &Remote, me: WriterId, by: Option<&Record>) -> BackupError {
    let by = by.map(|record| record.writer.owner);
    let what = match by {
        None => "this writer's claim is gone: somebody came after it, or emptied the place".to_owned(),
        Some(owner) if owner.store_id != me.owner.store_id => {
            format!("store {:016x} has taken over the backups here", owner.store_id.get())
        }
        Some(owner) if owner.incarnation != me.owner.incarnation => format!(
            "a later opening of this store (incarnation {}, this one is {}) makes the backups now",
            owner.incarnation, me.owner.incarnation
        ),
        _ => "another writer of this store makes the backups now".to_owned(),
    };
    let remedy = "If that is meant, end this one. Otherwise find out which program has a copy of the store's directory \
                  open and end it, then open this store again.";
    BackupError::Fenced(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy)))
}
