//! Removing what nobody needs any more.
//!
//! # Why nothing that is needed goes
//! A writer removes an object only if its number says that it was made in the writer's own term or an earlier one, and no
//! backup needs it that counts in the head, which the writer has just put or seen, knowing all of them. And a writer
//! refers only to objects that a counting backup needed when it claimed the place, or that it put itself, under its own
//! term, with a number that is never used again once the object may be removed.
//!
//! So let a zombie of term *t* remove what it found unneeded in its head *h*. Whoever came later claimed right behind *h*:
//! a later writer's backups, then, were built from what counted in *h*, which the zombie does not remove, and from objects
//! with terms above *t*, which it does not remove either. (That *h* was the head when the zombie put or saw it is what it looked
//! at last before: its claim was there, and no higher record was listed.) This holds whenever its requests are carried out, and does not need
//! what is listed to be up to date; an old listing removes less. A listing that fails, or breaks off, removes nothing.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::Result;
use super::log::{SLOTS_KEPT, Session};
use super::names::{FILES, LOG, parse_chunk_name, parse_record_name, record_name};
use super::record::ObjectId;
use super::remote::Remote;

/// Removes objects that no counting backup needs, and records that do not count; returns how many objects are gone.
/// `needed` are those of all counting backups.
pub(super) async fn sweep(remote: &Remote, session: &Session, needed: &HashSet<ObjectId>) -> Result<usize> {
    // Both listings are whole before anything goes.
    let (chunks, records) = (remote.list(FILES).await?, remote.list(LOG).await?);
    let records: Vec<_> = records.iter().filter_map(|name| parse_record_name(name)).collect();
    if records.iter().any(|id| *id > session.head.id) {
        // What this writer knows may be long out of date: see point 5 of the protocol in `log`.
        tracing::debug!(place = remote.url(), "another writer came meanwhile; nothing is removed");
        return Ok(0);
    }
    let unneeded: Vec<_> = chunks
        .into_iter()
        .filter(|name| {
            parse_chunk_name(name)
                .is_some_and(|(object, _)| object.term <= session.term && !needed.contains(&object))
        })
        .collect();
    let removed = unneeded.len();
    stream::iter(unneeded)
        .map(|name| async move { remote.delete(FILES, &name).await })
        .buffer_unordered(remote.options.concurrency)
        .try_collect::<Vec<()>>()
        .await?;
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
    Ok(removed + old.len())
}
