//! The second pass over a log: the records of one core that recovery replays, in order.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::plan::Span;
use super::survey::{Segment, Survey};
use super::tail::Place;
use crate::error::Detail;
use crate::format::fields::Fields;
use crate::format::frame::FrameHeader;
use crate::format::record::Record;
use crate::format::segment_header::SegmentHeader;
use crate::ids::{CoreId, Epoch, Incarnation, Sequence};
use crate::per_core_wal::entry::Stamp;
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::frames::{FrameReader, Step};
use crate::per_core_wal::reader::{for_each_record, open_segment};
use crate::progress::{COUNT_EVERY, Watch};
use crate::vfs::Vfs;

/// The part of a segment that is read.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Where its first frame begins, and where its last one ends.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Records of larger epochs were discarded by a later incarnation.
    pub(crate) void_above: Epoch,
    /// Sequence of its first record, where no survey has seen the frames before.
    pub(crate) first: Option<Sequence>,
}

impl Stretch {
    fn of(segment: &Segment, survey: &Survey) -> Self {
        Self {
            path: segment.path.clone(),
            header: segment.header,
            // A successor may claim that less of the segment counts.
            start: segment.start.min(segment.len),
            end: segment.len,
            void_above: survey.void_above(segment.header.incarnation),
            first: None,
        }
    }
}

/// Streams one core's records, one frame in memory at a time.
#[derive(Debug)]
pub(crate) struct CoreCursor {
    vfs: Arc<dyn Vfs>,
    stretches: VecDeque<Stretch>,
    open: Option<(Stretch, FrameReader)>,
    span: Span,
    on: OnRecord,
    reached: Reached,
    watch: Watch,
    /// Bytes read that `watch` has not heard of.
    unwatched: u64,
}

/// The record that a cursor stands on, in the frame it is in.
#[derive(Debug, Default)]
struct OnRecord {
    frame: Option<FrameHeader>,
    payload: Vec<u8>,
    /// Where the record begins and where the next one does.
    start: usize,
    end: usize,
    /// Records of the frame up to this one.
    taken: u32,
    timestamp_ns: u64,
}

impl OnRecord {
    /// Goes to the next record of the frame; `None` after the last, or when there is none.
    fn advance(&mut self, senseless: impl Fn() -> PerCoreWalError) -> Result<Option<Stamp>, PerCoreWalError> {
        let Some(frame) = self.frame.filter(|frame| self.taken < frame.records) else {
            let rest = self.payload.len() - self.end;
            (self.frame, self.taken) = (None, 0);
            return if rest == 0 { Ok(None) } else { Err(senseless()) };
        };
        let mut fields = Fields::new(self.payload.get(self.end..).unwrap_or_default());
        let Some((record, after_ns)) = Record::decode(&mut fields) else { return Err(senseless()) };
        if matches!(record, Record::Commit(body) if body.decode().is_none()) {
            return Err(senseless());
        }
        self.timestamp_ns = match self.taken {
            0 => frame.first_timestamp.0,
            _ => self.timestamp_ns.saturating_add(u64::from(after_ns)),
        };
        (self.start, self.end) = (self.end, self.payload.len() - fields.remaining());
        self.taken += 1;
        Ok(self.stamp())
    }

    fn stamp(&self) -> Option<Stamp> {
        let (frame, index) = (self.frame?, self.taken.checked_sub(1)?);
        Some(Stamp {
            core_id: frame.core.index(),
            epoch: frame.epoch.0,
            sequence: frame.first_sequence.0.saturating_add(u64::from(index)),
            timestamp_ns: self.timestamp_ns,
        })
    }

    fn record(&self) -> Option<(Record<'_>, Stamp)> {
        let stamp = self.stamp()?;
        let mut fields = Fields::new(self.payload.get(self.start..self.end)?);
        Record::decode(&mut fields).map(|(record, _)| (record, stamp))
    }
}

/// How far a cursor came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached {
    /// Behind the last frame that counts.
    pub(crate) place: Option<Place>,
    /// Bytes of the frames that count.
    pub(crate) bytes: u64,
    /// There are frames of epochs that are not wanted yet.
    pub(crate) beyond: bool,
}

/// What was replayed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replayed {
    /// Puts and deletes.
    pub(crate) changes: u64,
    pub(crate) reached: Reached,
}

impl CoreCursor {
    /// A cursor over what `span` says of a core's surveyed log.
    pub(crate) fn new(vfs: &Arc<dyn Vfs>, survey: &Survey, core: CoreId, span: Span) -> Self {
        let segments = survey.core(core).into_iter().flat_map(|log| &log.segments);
        Self::over(vfs, segments.map(|segment| Stretch::of(segment, survey)), span)
    }

    /// A cursor over parts of one core's segments.
    pub(crate) fn over(vfs: &Arc<dyn Vfs>, stretches: impl IntoIterator<Item = Stretch>, span: Span) -> Self {
        Self {
            vfs: Arc::clone(vfs),
            stretches: stretches.into_iter().collect(),
            open: None,
            span,
            on: OnRecord::default(),
            reached: Reached::default(),
            watch: Watch::default(),
            unwatched: 0,
        }
    }

    /// A cursor over everything in a core's surveyed log.
    pub(crate) fn whole(vfs: &Arc<dyn Vfs>, survey: &Survey, core: CoreId) -> Self {
        let everything = Span { after: Sequence::ZERO, from_epoch: Epoch::ZERO, up_to: Epoch::MAX };
        Self::new(vfs, survey, core, everything)
    }

    /// A cursor over the segments of one incarnation only.
    pub(crate) fn of_incarnation(
        vfs: &Arc<dyn Vfs>,
        survey: &Survey,
        core: CoreId,
        span: Span,
        incarnation: Incarnation,
    ) -> Self {
        let mut cursor = Self::new(vfs, survey, core, span);
        cursor.stretches.retain(|stretch| stretch.header.incarnation == incarnation);
        cursor
    }

    /// Counts what is read.
    #[must_use]
    pub(crate) fn watched(mut self, watch: &Watch) -> Self {
        self.watch = watch.clone();
        self
    }

    /// Bytes of the frames that counted so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.reached.bytes
    }

    /// Calls `each` for every record, borrowed.
    pub(crate) fn replay(
        mut self,
        mut each: impl FnMut(&Record<'_>, Stamp) -> Result<(), PerCoreWalError>,
    ) -> Result<Replayed, PerCoreWalError> {
        let mut changes = 0;
        let after = self.span.after.0;
        while self.next_frame(|frame, payload, stretch| {
            for_each_record(
                frame,
                payload,
                |record, at| {
                    if at.sequence > after {
                        changes += u64::from(matches!(record, Record::Put { .. } | Record::Delete { .. }));
                        each(&record, at)?;
                    }
                    Ok(())
                },
                || changed(stretch),
            )
        })? {}
        Ok(Replayed { changes, reached: self.reached })
    }

    /// Goes to the next record; false after the last. It stays valid until the next call.
    pub(crate) fn advance(&mut self) -> Result<bool, PerCoreWalError> {
        let after = self.span.after.0;
        loop {
            let here = self.open.as_ref().map(|(stretch, _)| stretch);
            let senseless = || here.map_or_else(|| PerCoreWalError::corrupted(twice()), changed);
            match self.on.advance(senseless)? {
                Some(at) if at.sequence > after => return Ok(true),
                Some(_) => continue,
                None => {}
            }
            let mut on = std::mem::take(&mut self.on);
            let more = self.next_frame(|frame, payload, _| {
                on.payload.clear();
                on.payload.extend_from_slice(payload);
                (on.frame, on.start, on.end, on.taken) = (Some(*frame), 0, 0, 0);
                Ok(())
            })?;
            if !more {
                return Ok(false);
            }
            self.on = on;
        }
    }

    /// The record it stands on; `None` before the first and after the last.
    pub(crate) fn current(&self) -> Option<(Record<'_>, Stamp)> {
        self.on.record()
    }

    /// Header of the segment that has this record.
    pub(crate) fn header(&self) -> Option<&SegmentHeader> {
        self.open.as_ref().map(|(stretch, _)| &stretch.header)
    }

    /// Hands the next frame that counts to `each`; false at the end.
    fn next_frame(
        &mut self,
        mut each: impl FnMut(&FrameHeader, &[u8], &Stretch) -> Result<(), PerCoreWalError>,
    ) -> Result<bool, PerCoreWalError> {
        loop {
            let Some((stretch, frames)) = &mut self.open else {
                if !self.open_next()? {
                    return Ok(false);
                }
                continue;
            };
            let read = |e| PerCoreWalError::io("could not read the segment", &stretch.path, e);
            match frames.step().map_err(read)? {
                Step::Frame(frame, payload) => {
                    let last = frame.first_sequence.0.saturating_add(u64::from(frame.records) - 1);
                    if stretch.first.is_some_and(|first| first != frame.first_sequence) {
                        return Err(changed(stretch));
                    }
                    stretch.first = stretch.first.and(Some(Sequence(last).next()));
                    self.unwatched += frame.frame_len() as u64;
                    if self.unwatched >= COUNT_EVERY {
                        self.watch.replayed(std::mem::take(&mut self.unwatched));
                    }
                    self.reached.beyond |= frame.epoch > self.span.up_to;
                    let counts = last > self.span.after.0
                        && frame.epoch >= self.span.from_epoch
                        && frame.epoch <= self.span.up_to.min(stretch.void_above);
                    if counts {
                        each(&frame, payload, stretch)?;
                        self.reached.bytes += frame.frame_len() as u64;
                        self.reached.place = Some(Place {
                            segment: stretch.header,
                            offset: frames.offset(),
                            sequence: Sequence(last),
                        });
                        return Ok(true);
                    }
                }
                Step::End => {
                    self.watch.replayed(std::mem::take(&mut self.unwatched));
                    self.open = None;
                }
                Step::Fault(_) => return Err(changed(stretch)),
            }
        }
    }

    fn open_next(&mut self) -> Result<bool, PerCoreWalError> {
        let Some(stretch) = self.stretches.pop_front() else { return Ok(false) };
        let file = open_segment(self.vfs.as_ref(), &stretch.path)?;
        let header = &stretch.header;
        let frames = FrameReader::new(file, header.salt(), header.core, stretch.start, stretch.end);
        self.open = Some((stretch, frames));
        Ok(true)
    }
}

/// What is read now is not what was found or written before.
fn changed(stretch: &Stretch) -> PerCoreWalError {
    PerCoreWalError::corrupted(twice().at_path(&stretch.path).on_core(stretch.header.core))
}

fn twice() -> Detail {
    Detail::new("the segment does not read twice alike")
        .remedy("Something else changes the file, or the device fails; check both, then open again.")
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
