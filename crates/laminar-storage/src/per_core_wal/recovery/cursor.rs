//! The second pass over a log: the records of one core that recovery replays, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::plan::Span;
use super::survey::{Segment, Survey};
use crate::error::Detail;
use crate::format::frame::FrameHeader;
use crate::format::record::Record;
use crate::format::segment_header::SEGMENT_HEADER_LEN;
use crate::ids::{CoreId, Epoch, Incarnation, Sequence};
use crate::per_core_wal::entry::{PerCoreWalEntry, Stamp, View};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::frames::{FrameReader, Step};
use crate::per_core_wal::reader::{for_each_record, open_segment};
use crate::vfs::Vfs;

/// Streams one core's records, one frame in memory at a time.
#[derive(Debug)]
pub(crate) struct CoreCursor {
    vfs: Arc<dyn Vfs>,
    segments: VecDeque<(Segment, Epoch)>,
    open: Option<(Segment, Epoch, FrameReader)>,
    span: Span,
    ready: VecDeque<PerCoreWalEntry>,
}

impl CoreCursor {
    /// A cursor over what `span` says of a core's surveyed log.
    pub(crate) fn new(vfs: &Arc<dyn Vfs>, survey: &Survey, core: CoreId, span: Span) -> Self {
        let segments = survey.core(core).map_or_else(VecDeque::new, |log| {
            log.segments.iter().map(|s| (s.clone(), survey.void_above(s.header.incarnation))).collect()
        });
        Self { vfs: Arc::clone(vfs), segments, open: None, span, ready: VecDeque::new() }
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
        cursor.segments.retain(|(segment, _)| segment.header.incarnation == incarnation);
        cursor
    }

    /// Calls `each` for every record, borrowed; returns how many puts and deletes there were.
    pub(crate) fn replay(
        mut self,
        mut each: impl FnMut(&Record<'_>, Stamp) -> Result<(), PerCoreWalError>,
    ) -> Result<u64, PerCoreWalError> {
        let mut changes = 0;
        let after = self.span.after.0;
        while self.next_frame(|frame, payload, segment| {
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
                || changed(segment),
            )
        })? {}
        Ok(changes)
    }

    /// The next record as an entry of its own.
    pub(crate) fn next_entry(&mut self) -> Result<Option<PerCoreWalEntry>, PerCoreWalError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            let mut ready = std::mem::take(&mut self.ready);
            let after = self.span.after.0;
            let more = self.next_frame(|frame, payload, segment| {
                for_each_record(
                    frame,
                    payload,
                    |record, at| match View::of(&record, at) {
                        View::Entry(entry) if at.sequence > after => {
                            ready.push_back(entry);
                            Ok(())
                        }
                        View::Senseless => Err(changed(segment)),
                        View::Entry(_) | View::Hidden => Ok(()),
                    },
                    || changed(segment),
                )
            })?;
            self.ready = ready;
            if !more {
                return Ok(None);
            }
        }
    }

    /// Hands the next frame that counts to `each`; false at the end.
    fn next_frame(
        &mut self,
        mut each: impl FnMut(&FrameHeader, &[u8], &Segment) -> Result<(), PerCoreWalError>,
    ) -> Result<bool, PerCoreWalError> {
        loop {
            let Some((segment, void_above, frames)) = &mut self.open else {
                if !self.open_next()? {
                    return Ok(false);
                }
                continue;
            };
            let read = |e| PerCoreWalError::io("could not read the segment", &segment.path, e);
            match frames.step().map_err(read)? {
                Step::Frame(frame, payload) => {
                    let last = frame.first_sequence.0.saturating_add(u64::from(frame.records) - 1);
                    let counts = last > self.span.after.0
                        && frame.epoch >= self.span.from_epoch
                        && frame.epoch <= self.span.up_to.min(*void_above);
                    if counts {
                        each(&frame, payload, segment)?;
                        return Ok(true);
                    }
                }
                Step::End => self.open = None,
                Step::Fault(_) => return Err(changed(segment)),
            }
        }
    }

    fn open_next(&mut self) -> Result<bool, PerCoreWalError> {
        let Some((segment, void_above)) = self.segments.pop_front() else { return Ok(false) };
        let file = open_segment(self.vfs.as_ref(), &segment.path)?;
        let header = &segment.header;
        let frames =
            FrameReader::new(file, header.salt(), header.core, SEGMENT_HEADER_LEN as u64, segment.len);
        self.open = Some((segment, void_above, frames));
        Ok(true)
    }
}

/// The first pass found this segment in order, and now it is not.
fn changed(segment: &Segment) -> PerCoreWalError {
    PerCoreWalError::corrupted(
        Detail::new("the segment does not read twice alike")
            .at_path(&segment.path)
            .on_core(segment.header.core)
            .remedy("Something else changes the file, or the device fails; check both, then open again."),
    )
}
