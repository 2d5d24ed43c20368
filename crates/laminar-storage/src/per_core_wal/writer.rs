//! Appending to one core's log.
//!
//! Records are gathered into frames in a buffer; [`CoreWalWriter::sync`] closes the frame, writes the
//! buffer and makes it durable. A writer belongs to one thread and shares nothing with its siblings
//! but the directory.
//!
//! Rules (numbers as in `docs/INVARIANTS.md`)
//! - I4: sequences and timestamps strictly increase, over rolls and over restarts.
//! - I8: a segment is synced to its end before the next one is created, so that the length its
//!   successor records is durable.
//! - I11: the first failed write or sync poisons the writer; a sync is never repeated.

mod roll;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::entry::{PerCoreWalEntry, WalOperation};
use super::error::PerCoreWalError;
use super::evidence::testify;
use super::limits;
use super::segment::{SegmentPolicy, stale_cut};
use crate::error::Detail;
use crate::format::MAX_KEY_LEN;
use crate::format::checksum::Salt;
use crate::format::digest::StateDigest;
use crate::format::frame::{FRAME_ALIGN, FRAME_HEADER_LEN, FRAME_TARGET, FrameHeader};
use crate::format::record::{CommitBody, Record, encode_commit_body};
use crate::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{CheckpointId, Epoch, Sequence, TimestampNs};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{Vfs, VfsFile, write_all_at};

/// Buffered bytes that are handed to the operating system without waiting for a sync.
const FLUSH_AT: usize = 1 << 20;

/// Bytes that are gathered while a sync is on its way, by a core and by all of them, but for the least that each may. A device
/// that answers in time does so before.
const BESIDE_A_SYNC: usize = 4 << 20;
const BESIDE_A_SYNC_OF_ALL: usize = 16 << 20;
const BESIDE_A_SYNC_AT_LEAST: usize = 256 << 10;

/// What a sync makes durable that is on its way.
#[derive(Clone, Copy, Debug)]
struct Syncing {
    /// Up to this offset.
    end: u64,
    /// So many of the records appended since the sync before.
    entries: u64,
}

/// A frame whose records are still being added; its header's place in the buffer is kept free.
#[derive(Debug)]
struct OpenFrame {
    at: usize,
    epoch: Epoch,
    first_sequence: Sequence,
    first_timestamp: TimestampNs,
    records: u32,
}

/// Appends to one core's log. `Send`, to be moved to the core's thread.
///
/// Nothing is durable before [`Self::sync`] returns `Ok`. After a failed write or sync every further
/// call fails with [`PerCoreWalError::Poisoned`]; reopen the log to recover what was durable.
#[derive(Debug)]
pub struct CoreWalWriter {
    policy: SegmentPolicy,
    header: SegmentHeader,
    salt: Salt,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    /// Frames not yet written, to go to offset `written`.
    buffer: Vec<u8>,
    frame: Option<OpenFrame>,
    written: u64,
    /// Up to this offset the file has bytes from when it was another segment, as far as nothing was written over them.
    stale: u64,
    /// Bytes of the segment known to be durable, `<= written`.
    synced: u64,
    epoch: Epoch,
    last_sequence: Sequence,
    last_timestamp: TimestampNs,
    sealed_epoch: Epoch,
    entries_since_sync: u64,
    /// A sync of this log, or of others beside it, is on its way. Until it has ended nothing is written (I20).
    syncing: Option<Syncing>,
    /// Something was synced that no later bytes testify to yet.
    unconfirmed: bool,
    durable: Epoch,
    poison: Option<PerCoreWalError>,
    /// The directory's lock, held by the writers once their manager is gone.
    lock: Option<Arc<dyn std::fmt::Debug + Send + Sync>>,
}

impl CoreWalWriter {
    /// Starts appending to a segment that has just been created and holds only its header.
    pub(crate) fn start(
        policy: SegmentPolicy,
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn VfsFile>,
        epoch: Epoch,
    ) -> Self {
        Self {
            salt: header.salt(),
            written: SEGMENT_HEADER_LEN as u64,
            stale: 0,
            synced: SEGMENT_HEADER_LEN as u64,
            epoch,
            last_sequence: header.last_sequence,
            last_timestamp: header.last_timestamp,
            sealed_epoch: header.sealed_epoch,
            policy,
            header,
            path,
            file,
            buffer: Vec::new(),
            frame: None,
            entries_since_sync: 0,
            syncing: None,
            unconfirmed: false,
            durable: Epoch::ZERO,
            poison: None,
            lock: None,
        }
    }

    /// A deliberate mistake: behind whatever stands in the segment up to `end`.
    pub(crate) fn moved_to(mut self, end: u64) -> Self {
        (self.written, self.synced) = (end, end);
        self
    }

    /// Appends a put; returns the position of its record in this core's log.
    ///
    /// # Errors
    /// [`PerCoreWalError::InvalidInput`] for a key over 65,535 bytes or a value over 16 MiB, and
    /// then nothing was appended; `Io` or `Poisoned` when the disk fails.
    pub fn append_put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, PerCoreWalError> {
        self.append_now(&Record::Put { key, value })
    }

    /// Appends a delete; returns its position.
    ///
    /// # Errors
    /// As [`Self::append_put`].
    pub fn append_delete(&mut self, key: &[u8]) -> Result<u64, PerCoreWalError> {
        self.append_now(&Record::Delete { key })
    }

    /// Appends the core's source offsets and watermark; returns the record's position.
    ///
    /// # Errors
    /// As [`Self::append_put`]; a source name may have 65,535 bytes.
    pub fn append_commit(
        &mut self,
        offsets: HashMap<String, u64>,
        watermark: Option<i64>,
    ) -> Result<u64, PerCoreWalError> {
        if let Some(name) = offsets.keys().find(|name| name.len() > MAX_KEY_LEN) {
            return Err(limits::too_long("source name", name.len(), MAX_KEY_LEN, self.header.core));
        }
        let mut sorted: Vec<_> = offsets.iter().map(|(name, offset)| (name.as_str(), *offset)).collect();
        sorted.sort_unstable();
        let mut body = Vec::new();
        encode_commit_body(&mut body, watermark, sorted.into_iter());
        self.append_now(&Record::Commit(CommitBody::new(&body)))
    }

    /// Appends the record that closes the current epoch on this core; returns its position. The
    /// epoch becomes durable once the barriers of all cores are synced.
    ///
    /// # Errors
    /// As [`Self::append_put`].
    pub fn append_epoch_barrier(&mut self) -> Result<u64, PerCoreWalError> {
        let position = self.append_now(&Record::Barrier { durable: self.durable, digest: None })?;
        self.sealed_epoch = self.sealed_epoch.max(self.epoch);
        Ok(position)
    }

    /// Appends a note that checkpoint `id` was published; returns its position.
    ///
    /// # Errors
    /// As [`Self::append_put`].
    pub fn append_checkpoint(&mut self, id: u64) -> Result<u64, PerCoreWalError> {
        self.append_now(&Record::Checkpoint { id: CheckpointId(id) })
    }

    /// Appends the operation of an entry, in the entry's epoch, which is also the one that a barrier closes;
    /// returns its position. Sequence and timestamp are given by this writer, which continues its own: the
    /// timestamp of a put or a delete is the entry's where that is larger than the last one, all others
    /// take the clock.
    ///
    /// # Errors
    /// `InvalidCore` for another core's entry, `EpochMismatch` for an epoch before the current one,
    /// otherwise as [`Self::append_put`].
    pub fn append(&mut self, entry: &PerCoreWalEntry) -> Result<u64, PerCoreWalError> {
        if entry.core_id != self.core_id() {
            return Err(PerCoreWalError::InvalidCore(Box::new(
                Detail::new(format!("an entry of core {} was given to this core's writer", entry.core_id))
                    .on_core(self.header.core)
                    .remedy("Give it to its own core's writer."),
            )));
        }
        self.set_epoch(entry.epoch)?;
        match &entry.operation {
            WalOperation::Put { key, value } => {
                self.append_at(&Record::Put { key, value }, entry.timestamp_ns)
            }
            WalOperation::Delete { key } => self.append_at(&Record::Delete { key }, entry.timestamp_ns),
            WalOperation::Commit { offsets, watermark } => self.append_commit(offsets.clone(), *watermark),
            WalOperation::Checkpoint { id } => self.append_checkpoint(*id),
            WalOperation::EpochBarrier { .. } => self.append_epoch_barrier(),
        }
    }

    /// Writes everything appended and makes it durable.
    ///
    /// # Errors
    /// `Io` when the disk fails; the writer is then poisoned and nothing since the last successful
    /// sync is acknowledged.
    pub fn sync(&mut self) -> Result<(), PerCoreWalError> {
        if let Some(file) = self.prepare_sync()? {
            let result = file.sync_data();
            self.finish_sync(result)?;
            testify(std::slice::from_ref(self));
        }
        Ok(())
    }

    /// Which core's log.
    #[must_use]
    pub fn core_id(&self) -> usize {
        self.header.core.index()
    }

    /// Position after the last record appended: bytes of this core's log over all its segments.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position_of(self.written + self.buffer.len() as u64)
    }

    /// Position up to which everything is durable.
    #[must_use]
    pub fn synced_position(&self) -> u64 {
        self.position_of(self.synced)
    }

    /// Sequence of the last record; 0 before the first.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.last_sequence.0
    }

    /// Epoch of the next record.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.0
    }

    /// Moves to an epoch, which must not be before the current one.
    ///
    /// # Errors
    /// `EpochMismatch` when it is, `InvalidInput` for one above [`Epoch::LAST`].
    pub fn set_epoch(&mut self, epoch: u64) -> Result<(), PerCoreWalError> {
        if epoch > Epoch::LAST.0 {
            return Err(PerCoreWalError::invalid(
                Detail::new(format!("epoch {epoch} is too large, the last one is {}", Epoch::LAST))
                    .on_core(self.header.core)
                    .remedy("Count epochs from 0 or 1."),
            ));
        }
        if epoch < self.epoch.0 {
            return Err(PerCoreWalError::EpochMismatch(Box::new(
                Detail::new(format!("epoch {epoch} was given after a later one"))
                    .on_core(self.header.core)
                    .in_epoch(self.epoch)
                    .remedy("Epochs only grow; use the current one or a later one."),
            )));
        }
        self.epoch = Epoch(epoch);
        Ok(())
    }

    /// Records appended since the last successful sync.
    #[must_use]
    pub fn entries_since_sync(&self) -> u64 {
        self.entries_since_sync
    }

    /// File of the segment in use.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory locked while this writer lives.
    pub(crate) fn hold(&mut self, lock: Arc<dyn std::fmt::Debug + Send + Sync>) {
        self.lock = Some(lock);
    }

    pub(crate) fn vfs(&self) -> Arc<dyn Vfs> {
        Arc::clone(&self.policy.vfs)
    }

    pub(crate) fn policy(&self) -> &SegmentPolicy {
        &self.policy
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Bytes that may be appended while a sync is on its way: they stay in memory, and in this segment.
    pub(crate) fn room_beside_a_sync(&self) -> usize {
        let cores = usize::from(self.header.core_count.max(1));
        let most = (BESIDE_A_SYNC_OF_ALL / cores).clamp(BESIDE_A_SYNC_AT_LEAST, BESIDE_A_SYNC);
        let left = self.policy.segment_size.saturating_sub(self.written);
        usize::try_from(left).map_or(most, |left| left.min(most)).saturating_sub(self.buffer.len())
    }

    /// Offset in the segment in use up to which everything is durable.
    pub(crate) fn synced_len(&self) -> u64 {
        self.synced
    }

    /// Appends a put drained from Ring 0, one nanosecond after the record before it.
    pub(crate) fn append_drained(&mut self, record: &Record<'_>) -> Result<(), PerCoreWalError> {
        self.append_at(record, 0).map(drop)
    }

    /// Closes every epoch up to `epoch` on this core, with the commit that belongs to it. What was
    /// appended since the last seal belongs to the current epoch, and so does the commit: epochs
    /// that are jumped over are empty.
    pub(crate) fn seal(
        &mut self,
        epoch: Epoch,
        commit: Option<&[u8]>,
        digest: StateDigest,
    ) -> Result<(), PerCoreWalError> {
        let barrier = Record::Barrier { durable: self.durable, digest: Some(digest) };
        if sabotaged(Sabotage::OffsetsInNextEpoch) {
            self.append_at(&barrier, 0)?;
            self.set_epoch(epoch.next().0)?;
        }
        if let Some(body) = commit {
            self.append_at(&Record::Commit(CommitBody::new(body)), 0)?;
        }
        self.append_at(&barrier, 0)?;
        if epoch > self.epoch {
            self.set_epoch(epoch.0)?;
            self.append_at(&barrier, 0)?;
        }
        self.sealed_epoch = epoch;
        // Behind the last epoch nothing can be sealed any more.
        self.epoch = epoch.next();
        Ok(())
    }

    /// Remembers an acknowledged epoch, to testify to it in later records.
    pub(crate) fn acknowledge(&mut self, durable: Epoch) {
        self.durable = self.durable.max(durable);
    }

    /// Writes evidence that everything synced so far was synced, without syncing it: the bytes help
    /// to tell damage from a torn tail, and nothing is lost without them.
    pub(crate) fn confirm(&mut self) -> Result<(), PerCoreWalError> {
        let all_synced = self.synced == self.written && self.buffer.is_empty();
        if !self.unconfirmed || !all_synced {
            return Ok(());
        }
        self.append_at(&Record::Confirm { durable: self.durable }, 0)?;
        self.flush()?;
        self.unconfirmed = false;
        self.entries_since_sync = 0;
        Ok(())
    }

    /// Hands everything appended to the operating system. Returns the file to sync, `None` when
    /// there is nothing new. What is appended before [`Self::finish_sync`] stays in memory, however much it is.
    pub(crate) fn prepare_sync(&mut self) -> Result<Option<Arc<dyn VfsFile>>, PerCoreWalError> {
        self.flush()?;
        if sabotaged(Sabotage::LogSyncDropped) {
            self.synced = self.written;
        }
        let new = self.synced < self.written;
        self.syncing = new.then_some(Syncing { end: self.written, entries: self.entries_since_sync });
        Ok(new.then(|| Arc::clone(&self.file)))
    }

    /// Nothing of this log has to be synced with others. Until [`Self::others_synced`] it writes nothing, as they do not: a roll
    /// would take long, and hold up whoever waits for them.
    pub(crate) fn wait_for_others(&mut self) {
        self.syncing.get_or_insert(Syncing { end: self.synced, entries: 0 });
    }

    /// The syncs of others have ended.
    pub(crate) fn others_synced(&mut self) {
        self.syncing = None;
    }

    /// Takes note of how the sync of the file from [`Self::prepare_sync`] ended. Whoever calls it calls [`testify`] next.
    pub(crate) fn finish_sync(&mut self, result: std::io::Result<()>) -> Result<(), PerCoreWalError> {
        let syncing = self.syncing.take();
        let retry = sabotaged(Sabotage::SyncRetried) && result.is_err();
        let result = if retry { self.file.sync_data() } else { result };
        if let Err(error) = result {
            return Err(self.poisoned_by(PerCoreWalError::io(
                "could not sync the segment",
                &self.path,
                error,
            )));
        }
        if let Some(Syncing { end, entries }) = syncing {
            self.synced = end;
            self.entries_since_sync = self.entries_since_sync.saturating_sub(entries);
        }
        self.unconfirmed = true;
        Ok(())
    }

    fn position_of(&self, offset: u64) -> u64 {
        let position = self.header.position_at(offset);
        if sabotaged(Sabotage::PositionOf32Bits) { position & 0xffff_ffff } else { position }
    }

    fn append_now(&mut self, record: &Record<'_>) -> Result<u64, PerCoreWalError> {
        let now = self.policy.vfs.now_ns();
        self.append_at(record, now)
    }

    /// Appends a record at `timestamp`, or one nanosecond after the last one where that is later.
    fn append_at(&mut self, record: &Record<'_>, timestamp: u64) -> Result<u64, PerCoreWalError> {
        if let Some(cause) = &self.poison {
            return Err(cause.clone());
        }
        limits::check(record, self.header.core)?;
        let timestamp = timestamp.min(TimestampNs::LAST_OF_CLOCK.0);
        let mut wanted = TimestampNs(timestamp.max(self.last_timestamp.0.saturating_add(1)));
        if sabotaged(Sabotage::RawClock) {
            wanted = TimestampNs(timestamp);
        }
        let (after_ns, timestamp) = self.room_for(record, wanted)?;
        let position = self.position();
        record.encode(after_ns, &mut self.buffer);
        if let Some(frame) = &mut self.frame {
            frame.records += 1;
        }
        self.last_sequence = self.last_sequence.next();
        self.last_timestamp = timestamp;
        self.entries_since_sync += 1;
        Ok(position)
    }

    /// Makes sure that an open frame can take the record; returns the time difference to encode and
    /// the record's time, which is the present one where a new frame begins.
    fn room_for(
        &mut self,
        record: &Record<'_>,
        timestamp: TimestampNs,
    ) -> Result<(u32, TimestampNs), PerCoreWalError> {
        let after = timestamp.0.checked_sub(self.last_timestamp.0).and_then(|ns| u32::try_from(ns).ok());
        let epoch = self.epoch;
        let fits = |frame: &OpenFrame, end: usize| {
            let payload = end - frame.at - FRAME_HEADER_LEN;
            frame.epoch == epoch
                && payload + record.encoded_len_max() <= FRAME_TARGET.max(record.encoded_len_max())
        };
        match (&self.frame, after) {
            (Some(frame), Some(after)) if fits(frame, self.buffer.len()) => Ok((after, timestamp)),
            _ => {
                self.close_frame();
                if self.syncing.is_none() || sabotaged(Sabotage::WrittenBesideSync) {
                    if self.buffer.len() >= FLUSH_AT {
                        self.flush()?;
                    }
                    self.roll_if_full(record.encoded_len_max())?;
                }
                // A roll takes a timestamp of its own.
                let earliest = self.last_timestamp.next();
                let now = TimestampNs(self.policy.vfs.now_ns()).min(TimestampNs::LAST_OF_CLOCK);
                let raw = sabotaged(Sabotage::RawClock);
                let timestamp = if raw { now } else { timestamp.max(earliest).max(now) };
                self.open_frame(timestamp);
                // The first record's time stands in the frame's header.
                Ok((1, timestamp))
            }
        }
    }

    fn open_frame(&mut self, first_timestamp: TimestampNs) {
        self.frame = Some(OpenFrame {
            at: self.buffer.len(),
            epoch: self.epoch,
            first_sequence: self.last_sequence.next(),
            first_timestamp,
            records: 0,
        });
        self.buffer.resize(self.buffer.len() + FRAME_HEADER_LEN, 0);
    }

    fn close_frame(&mut self) {
        let Some(frame) = self.frame.take() else { return };
        let payload_at = frame.at + FRAME_HEADER_LEN;
        let payload_len = self.buffer.len() - payload_at;
        self.buffer.resize(payload_at + payload_len.next_multiple_of(FRAME_ALIGN), 0);
        let header = FrameHeader {
            payload_crc: self.salt.crc(&[self.buffer.get(payload_at..).unwrap_or_default()]),
            payload_len: u32::try_from(payload_len).unwrap_or(u32::MAX),
            core: self.header.core,
            records: frame.records,
            synced_len: self.synced,
            epoch: frame.epoch,
            first_sequence: frame.first_sequence,
            first_timestamp: frame.first_timestamp,
        };
        let bytes = header.encode(&self.salt, self.written + frame.at as u64);
        if let Some(room) = self.buffer.get_mut(frame.at..payload_at) {
            room.copy_from_slice(&bytes);
        }
    }

    fn flush(&mut self) -> Result<(), PerCoreWalError> {
        if let Some(cause) = &self.poison {
            return Err(cause.clone());
        }
        self.close_frame();
        if self.buffer.is_empty() {
            return Ok(());
        }
        let frames = self.buffer.len();
        self.cut_stale_off();
        let written = write_all_at(self.file.as_ref(), &self.buffer, self.written);
        self.buffer.truncate(frames);
        if let Err(error) = written {
            if sabotaged(Sabotage::FailedWriteKept) {
                return Err(PerCoreWalError::io("could not write the segment", &self.path, error));
            }
            return Err(self.poisoned_by(PerCoreWalError::io(
                "could not write the segment",
                &self.path,
                error,
            )));
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Puts zeros behind the frames in the buffer, where the file has bytes of another segment: recovery shall find the end
    /// in order. They take no room, the next frame is written over them.
    fn cut_stale_off(&mut self) {
        let end = self.written + self.buffer.len() as u64;
        let zeros = stale_cut(end, self.stale).saturating_sub(usize::try_from(end).unwrap_or(usize::MAX));
        if !sabotaged(Sabotage::StaleNotCutOff) {
            self.buffer.resize(self.buffer.len() + zeros, 0);
        }
    }

    /// Leaves no bytes of another segment to those who open the log next and would have to search them.
    fn drop_stale(&mut self) {
        if self.poison.is_none() && self.syncing.is_none() && self.stale > self.written {
            let _ = self.file.set_len(self.written);
        }
    }

    /// Takes nothing any more, as after a failed write.
    pub(super) fn give_up(&mut self, cause: &PerCoreWalError) {
        self.poison = Some(cause.poison());
    }

    fn poisoned_by(&mut self, cause: PerCoreWalError) -> PerCoreWalError {
        if !sabotaged(Sabotage::PoisonForgotten) {
            self.poison = Some(cause.poison());
        }
        cause
    }
}

impl Drop for CoreWalWriter {
    /// Leaves evidence of what was synced. Nothing depends on its success.
    fn drop(&mut self) {
        let _ = self.confirm();
        self.drop_stale();
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
