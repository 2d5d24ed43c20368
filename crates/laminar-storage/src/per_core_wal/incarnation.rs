//! Beginning a new incarnation of a log: fresh segments for all cores, nothing appended to old ones.
//!
//! Order (invariants I2, I5, I6): what the survey exposed is synced; the new `CURRENT` is written under another
//! name and synced; every core's first segment is created and synced; the directory is synced; `CURRENT` is
//! replaced. Only then may a record be written. A crash at any point leaves the same recovery point as before,
//! because until `CURRENT` is replaced the new segments hold no record, and their headers say the same cut.
//!
//! What needs space comes before the directory is synced, so that a full disk takes nothing back that was durable,
//! and what is synced first needs none where files are written in place: on a full disk the state that was found is as
//! durable as on any other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::PerCoreWalError;
use super::evidence::Evidence;
use super::names::take_back;
use super::recovery::identity::{CLOSED, CURRENT, SYNCED};
use super::recovery::survey::{CoreLog, Segment, Survey};
use super::segment::{SegmentName, SegmentPolicy, create_segment, list_segments};
use super::writer::CoreWalWriter;
use crate::error::Detail;
use crate::format::closed::Closed;
use crate::format::current::Current;
use crate::format::frame::FRAME_ALIGN;
use crate::format::segment_header::{Predecessor, SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch, Incarnation, SegmentNumber, Sequence, StoreId, WalPosition};
use crate::parallel::in_parallel;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{Access, Vfs, VfsFile, read_exact_at, replace_file_durably, stage_file, write_all_at};

/// Bytes that are written again at a time.
const REWRITE_CHUNK: usize = 256 << 10;

/// What a new incarnation starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    pub(crate) core_count: u16,
    pub(crate) mode: WalMode,
    /// Epoch of the first record.
    pub(crate) epoch: Epoch,
    /// Every record gets a larger sequence than this: a checkpoint has the log up to here.
    pub(crate) after: Sequence,
    /// Everything of earlier incarnations above this epoch is void from now on.
    pub(crate) void_above: Epoch,
    /// Forget every earlier segment: the log starts anew.
    pub(crate) reset: bool,
}

/// Makes durable what a survey found, before anything is built on it.
///
/// Whoever wrote it may have died of a failed sync, and after one of those the operating system may
/// show bytes that are not on the disk, count them as clean, and let the next sync succeed without
/// writing them. So whatever no later frame testifies to is written again before it is synced (I11).
pub(crate) fn make_durable(vfs: &Arc<dyn Vfs>, dir: &Path, survey: &Survey) -> Result<(), PerCoreWalError> {
    if sabotaged(Sabotage::RecoveryNotDurable) {
        return Ok(());
    }
    let mut files = Vec::new();
    let established = survey.current.map_or(Incarnation::ZERO, |current| current.incarnation);
    for log in &survey.cores {
        // Older segments were synced before their successor was created, and the logs of departed cores by
        // the opening that established the first incarnation without them.
        if let Some(segment) = log.segments.last().filter(|last| last.header.incarnation >= established) {
            let io = |e| PerCoreWalError::io("could not open the segment to sync it", &segment.path, e);
            files.push((segment, vfs.open(&segment.path, Access::ReadWrite).map_err(io)?));
        }
    }
    for (segment, file) in &files {
        write_again(segment, file.as_ref()).map_err(|e| {
            PerCoreWalError::io("could not write the end of the segment again", &segment.path, e)
        })?;
    }
    let handles: Vec<_> = files.iter().map(|(_, file)| Arc::clone(file)).collect();
    for ((segment, _), result) in files.iter().zip(vfs.sync_many(&handles)) {
        result.map_err(|e| PerCoreWalError::io("could not sync the segment", &segment.path, e))?;
    }
    vfs.sync_dir(dir).map_err(|e| PerCoreWalError::io("could not sync the directory", dir, e))
}

/// Writes the unproven end of a segment over itself. It is the same bytes, so that a crash in the middle
/// changes nothing; a hole behind everything there is, which reads as zeros do that are written ahead, makes the system
/// write the file's length too, which a failed sync may have forgotten like the bytes, and not only when it was ours.
/// Neither takes any space where files are written in place.
///
/// Where the file ends within a frame, it is cut to its whole ones instead. The zeros could be just the bytes that are
/// missing, and what this recovery gave up would be there for the next one.
fn write_again(segment: &Segment, file: &dyn VfsFile) -> std::io::Result<()> {
    if sabotaged(Sabotage::EndNotWrittenAgain) {
        return Ok(());
    }
    let mut at = segment.proven;
    let mut chunk = Vec::new();
    while at < segment.len {
        let left = usize::try_from(segment.len - at).unwrap_or(usize::MAX);
        chunk.resize(left.min(REWRITE_CHUNK), 0);
        let part = chunk.as_mut_slice();
        read_exact_at(file, part, at)?;
        write_all_at(file, part, at)?;
        at += part.len() as u64;
    }
    if segment.ends_in_frame && !sabotaged(Sabotage::TornFrameCompleted) {
        return file.set_len(segment.len);
    }
    if segment.proven < segment.len {
        file.set_len(segment.file_len + FRAME_ALIGN as u64)?;
    }
    Ok(())
}

/// Refuses a log in which a file name has an id so large that none could follow it. This log never wrote
/// such a name; taking part in the count, it would make the next opening create files that exist.
pub(crate) fn refuse_last_ids(vfs: &dyn Vfs, dir: &Path, survey: &Survey) -> Result<(), PerCoreWalError> {
    if survey.max_incarnation < Incarnation::LAST && survey.max_number < SegmentNumber::LAST {
        return Ok(());
    }
    let names = list_segments(vfs, dir)
        .map_err(|e| PerCoreWalError::io("could not list the log directory", dir, e))?;
    let too_large =
        |name: &SegmentName| name.incarnation >= Incarnation::LAST || name.number >= SegmentNumber::LAST;
    let stray = names.into_iter().find(too_large);
    let path = stray.map_or_else(|| dir.to_path_buf(), |name| dir.join(name.file_name()));
    Err(PerCoreWalError::corrupted(
        Detail::new("the ids in this file's name are so large that no new segment could follow it")
            .at_path(path)
            .remedy(
                "No log writes that many segments: move the file out of the directory and open again; \
                 nothing was changed.",
            ),
    ))
}

/// Creates the first segments of a new incarnation and hands out one writer per core.
pub(crate) fn begin(
    policy: &SegmentPolicy,
    survey: &Survey,
    beginning: Beginning,
) -> Result<Vec<CoreWalWriter>, PerCoreWalError> {
    if sabotaged(Sabotage::OldSegmentContinued) && !survey.cores.is_empty() {
        return continue_old_segments(policy, survey, beginning);
    }
    let vfs = policy.vfs.as_ref();
    let io = |e| PerCoreWalError::io("could not establish the new incarnation", &policy.dir, e);
    let store_id = survey.store_id.unwrap_or_else(|| StoreId(vfs.random_u64()));
    let header = |core| first_header(survey, beginning, store_id, CoreId(core));
    let headers: Vec<_> = (0..beginning.core_count).map(header).collect();
    let incarnation = survey.max_incarnation.next();
    let current = Current { store_id, incarnation, core_count: beginning.core_count };
    let (staged, _) = stage_file(vfs, &policy.dir, CURRENT, &current.encode()).map_err(io)?;
    let (noting, evidence) = match Evidence::stage(policy, beginning.mode, &headers) {
        Ok(staged) => staged.unzip(),
        Err(error) => {
            take_back(vfs, &staged);
            return Err(io(error));
        }
    };
    let created = Mutex::new(noting.iter().chain([&staged]).cloned().collect::<Vec<_>>());
    let create = |header| {
        let (path, file) = create_segment(vfs, &policy.dir, &header, policy.preallocation)?;
        created.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        Ok((header, path, file))
    };
    // Several at a time: each of them waits for the device.
    let segments = in_parallel(vfs, headers, create);
    // Whoever opens a store on a full disk again and again must not fill it further.
    let created = created.into_inner().unwrap_or_else(PoisonError::into_inner);
    let segments = segments.map_err(|error| {
        created.iter().for_each(|path| take_back(vfs, path));
        PerCoreWalError::io("could not create a segment", &policy.dir, error)
    })?;
    let noted = SegmentPolicy { evidence: evidence.map(Arc::new), ..policy.clone() };
    let writer =
        |(header, path, file)| CoreWalWriter::start(noted.clone(), header, path, file, beginning.epoch);
    let writers: Vec<_> = segments.into_iter().map(writer).collect();
    let skip = sabotaged(Sabotage::SegmentNameNotSynced);
    if let Err(error) = if skip { Ok(()) } else { policy.names.sync(vfs, &policy.dir) } {
        created.iter().for_each(|path| take_back(vfs, path));
        return Err(io(error));
    }
    if beginning.reset {
        // What was closed before is given up now, and must not be missed later.
        remove_evidence(policy).map_err(io)?;
    }
    // In this order: until the incarnation is established, what is known of the one before still counts.
    vfs.rename(&staged, &policy.dir.join(CURRENT)).map_err(io)?;
    if let Some(noting) = noting {
        vfs.rename(&noting, &policy.dir.join(SYNCED)).map_err(io)?;
    }
    vfs.sync_dir(&policy.dir).map_err(io)?;
    sweep(policy, survey, beginning.reset)?;
    Ok(writers)
}

/// A deliberate mistake: every core goes on at the end of its newest file, whatever stands there.
fn continue_old_segments(
    policy: &SegmentPolicy,
    survey: &Survey,
    beginning: Beginning,
) -> Result<Vec<CoreWalWriter>, PerCoreWalError> {
    let io = |e| PerCoreWalError::io("could not go on in the old segment", &policy.dir, e);
    let newest = survey.cores.iter().filter_map(|log| log.segments.last().map(|segment| (log.core, segment)));
    let writer = |(core, segment): (CoreId, &Segment)| {
        let fresh = first_header(survey, beginning, segment.header.store_id, core);
        let SegmentHeader { incarnation, number, .. } = segment.header;
        let header = SegmentHeader { incarnation, number, ..fresh };
        let file = policy.vfs.open(&segment.path, Access::ReadWrite).map_err(io)?;
        let end = file.size().map_err(io)?.next_multiple_of(FRAME_ALIGN as u64);
        let path = segment.path.clone();
        Ok(CoreWalWriter::start(policy.clone(), header, path, file, beginning.epoch).moved_to(end))
    };
    newest.map(writer).collect()
}

/// Leaves evidence of how far a log was acknowledged when it ended in order. Nothing is lost without it.
pub(crate) fn leave_evidence(writer: &CoreWalWriter, epoch: Epoch) {
    let (policy, store_id) = (writer.policy(), writer.header().store_id);
    let closed = Closed { store_id, epoch };
    if let Err(error) = replace_file_durably(policy.vfs.as_ref(), &policy.dir, CLOSED, &closed.encode()) {
        tracing::warn!(%error, dir = %policy.dir.display(), "could not note that the store was closed");
    }
}

/// Removes what [`leave_evidence`] left. Nothing is lost when a crash follows.
fn remove_evidence(policy: &SegmentPolicy) -> std::io::Result<()> {
    let path = policy.dir.join(CLOSED);
    if policy.vfs.kind(&path)?.is_some() {
        policy.vfs.remove_file(&path)?;
        policy.names.sync(policy.vfs.as_ref(), &policy.dir)?;
    }
    Ok(())
}

fn first_header(survey: &Survey, beginning: Beginning, store_id: StoreId, core: CoreId) -> SegmentHeader {
    // All cores start above everything that any core ever used, so that sequences can be compared
    // even when the number of cores changes.
    let (last_epoch, last_sequence, last_timestamp) = survey.high_water();
    let log = survey.core(core);
    let last = log.and_then(|log| log.segments.last()).filter(|_| !beginning.reset);
    SegmentHeader {
        store_id,
        incarnation: survey.max_incarnation.next(),
        number: survey.max_number.next(),
        core,
        core_count: beginning.core_count,
        mode: beginning.mode,
        base_position: WalPosition(last.and(log).map_or(0, CoreLog::position)),
        last_sequence: last_sequence.max(beginning.after),
        // What a fork was begun on is used up, too, also when its own segments are gone.
        last_epoch: last_epoch.max(survey.opened_at()),
        last_timestamp,
        sealed_epoch: match beginning.mode {
            WalMode::Epochs => beginning.void_above,
            WalMode::Plain => log.map_or(Epoch::ZERO, |log: &CoreLog| log.sealed_epoch),
        },
        void_above: beginning.void_above,
        reused: false,
        previous: last.map_or_else(Predecessor::default, |segment| Predecessor {
            incarnation: segment.header.incarnation,
            number: segment.header.number,
            len: if sabotaged(Sabotage::TornTailKept) { segment.file_len } else { segment.len },
        }),
    }
}

/// Removes files that were never completely created, and after a reset everything older.
fn sweep(policy: &SegmentPolicy, survey: &Survey, reset: bool) -> Result<(), PerCoreWalError> {
    if !reset {
        return remove_all(policy, &survey.leftovers);
    }
    let list = |e| PerCoreWalError::io("could not list the log directory", &policy.dir, e);
    let mut names = list_segments(policy.vfs.as_ref(), &policy.dir).map_err(list)?;
    // Everything there is, also what a survey passed over behind a gap.
    names.retain(|name| name.incarnation <= survey.max_incarnation);
    // The newest of each core goes last: alone, an older one of a core that the log does not have any more would be a log
    // whose end is missing.
    let is_newest =
        |name: &SegmentName| !names.iter().any(|other| other.core == name.core && other.number > name.number);
    let (newest, older): (Vec<SegmentName>, Vec<SegmentName>) = names.iter().copied().partition(is_newest);
    for part in [older, newest] {
        let paths: Vec<_> = part.into_iter().map(|name| policy.dir.join(name.file_name())).collect();
        remove_all(policy, &paths)?;
    }
    Ok(())
}

/// Removes these files, durably.
fn remove_all(policy: &SegmentPolicy, paths: &[PathBuf]) -> Result<(), PerCoreWalError> {
    if paths.is_empty() {
        return Ok(());
    }
    for path in paths {
        match policy.vfs.remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(PerCoreWalError::io("could not remove an obsolete segment", path, e));
            }
            _ => {}
        }
    }
    let io = |e| PerCoreWalError::io("could not sync the directory", &policy.dir, e);
    policy.names.sync(policy.vfs.as_ref(), &policy.dir).map_err(io)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
