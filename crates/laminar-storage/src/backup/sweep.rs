//! Removing what nobody needs any more.
//!
//! # Why nothing that is needed goes
//! A writer removes an object only if its number says that it was made in the writer's own term or an earlier one, and no
//! backup needs it that counts in the head, which the writer has just put or seen, knowing all of them; nor any record that it
//! gave up and that may yet come to stand behind that head ([`Session::late`]). And a writer
//! refers only to objects that a counting backup needed when it claimed the place, or that it put itself, under its own
//! term, with a number that is never used again once the object may be removed.
//!
//! So let a zombie of term *t* remove what it found unneeded in its head *h*. Whoever came later claimed right behind *h*:
//! a later writer's backups, then, were built from what counted in *h*, which the zombie does not remove, and from objects
//! with terms above *t*, which it does not remove either. (That *h* was the head when the zombie put or saw it is what it looked
//! at last before: its claim was there, and no higher record was listed.) This holds whenever its requests are carried out, and does not need
//! what is listed to be up to date; an old listing removes less. A listing that fails, or breaks off, removes nothing.
//!
//! Terms begin anew where everything was removed by hand, and then names mean something else. So the writer's claim is looked at
//! once more after the listings: it is gone there. That leaves the removals themselves, which may be under way for long. Therefore
//! all writers of a place must have ended before it is emptied.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::Result;
use super::log::{FORMAT_NAME, SLOTS_KEPT, Session};
use super::names::{ChunkNumber, FILES, LOG, chunk_name, parse_chunk_name, parse_record_name, record_name};
use super::record::{Object, ObjectId};
use super::remote::Remote;

/// The chunks that are at a place, and how long each is. They may be out of date.
#[derive(Debug)]
pub(super) struct Listing(HashMap<(ObjectId, ChunkNumber), u64>);

impl Listing {
    pub(super) async fn of(remote: &Remote) -> Result<Self> {
        let listed = remote.list_sizes(FILES).await?;
        Ok(Self(listed.into_iter().filter_map(|(name, len)| Some((parse_chunk_name(&name)?, len))).collect()))
    }

    /// Whether a chunk is there, as long as it should be.
    pub(super) fn holds(&self, object: &Object, chunk: usize) -> bool {
        let number = ChunkNumber(u32::try_from(chunk).unwrap_or(u32::MAX));
        self.0.get(&(object.id, number)) == Some(&object.extent(chunk).1)
    }

    /// Whether all chunks are.
    pub(super) fn holds_all(&self, object: &Object) -> bool {
        (0..object.chunks.len()).all(|chunk| self.holds(object, chunk))
    }
}

/// Removes objects that are listed and not `needed`, and records that do not count; returns how many objects are gone. They
/// are not in the listing any more then. `needed` are those of all counting backups, and whatever else is to stay.
pub(super) async fn sweep(
    remote: &Remote,
    session: &Session,
    listing: &mut Listing,
    needed: &HashSet<ObjectId>,
) -> Result<usize> {
    // Both listings are whole before anything goes.
    let records = remote.list(LOG).await?;
    let records: Vec<_> = records.iter().filter_map(|name| parse_record_name(name)).collect();
    if records.iter().any(|id| *id > session.head.id) {
        // What this writer knows may be long out of date: see point 5 of the protocol in `log`.
        tracing::debug!(place = remote.url(), "another writer came meanwhile; nothing is removed");
        return Ok(0);
    }
    session.confirm(remote).await?;
    let is_unneeded = |object: ObjectId| object.term <= session.term && !needed.contains(&object);
    let unneeded: Vec<_> = listing.0.keys().copied().filter(|(object, _)| is_unneeded(*object)).collect();
    let removed = unneeded.len();
    stream::iter(&unneeded)
        .map(|(object, chunk)| async move { remote.delete(FILES, &chunk_name(*object, *chunk)).await })
        .buffer_unordered(remote.options.concurrency)
        .try_collect::<Vec<()>>()
        .await?;
    listing.0.retain(|(object, _), _| !is_unneeded(*object));
    let head = &session.head;
    let mut old: Vec<_> = records
        .into_iter()
        .filter(|id| id.get().saturating_add(SLOTS_KEPT) < head.id.get())
        .filter(|id| *id != session.term && !head.retained.contains(id))
        .collect();
    // One after the other, from the lowest up: the protocol relies on it.
    old.sort_unstable();
    for id in &old {
        remote.delete(LOG, &record_name(*id)).await?;
    }
    remove_unfinished(remote, session)?;
    Ok(removed + old.len())
}

/// In a directory, removes the files that a process was writing when it was killed. Where one is still being written, by a zombie
/// or a request that was given up, its put fails, and is made again if anybody still wants it; where it has its name already,
/// what goes is a second name.
fn remove_unfinished(remote: &Remote, session: &Session) -> Result<()> {
    let Some(directory) = remote.directory() else { return Ok(()) };
    directory.remove_unfinished(FILES, |name| {
        parse_chunk_name(name).is_some_and(|(object, _)| object.term <= session.term)
    })?;
    directory
        .remove_unfinished(LOG, |name| parse_record_name(name).is_some_and(|id| id <= session.head.id))?;
    directory.remove_unfinished("", |name| name == FORMAT_NAME)
}
