//! Reading on where reading ended: what was appended to a growing log behind a known place, in one pass.
//!
//! Only whoever has read or written everything up to the place may begin there. Everything behind it is
//! checked as a survey would: the segment must still have the header it had, each next one must continue the
//! one before at the length that counts, every frame must pass its checksum, and sequences may have no gap.

use std::path::Path;
use std::sync::Arc;

use super::cursor::Stretch;
use super::survey::LogEnd;
use crate::error::Detail;
use crate::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{Epoch, Sequence};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::reader::{header_error, read_header};
use crate::per_core_wal::segment::SegmentName;
use crate::vfs::Vfs;

/// How far a core's log was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Header of the segment it is in.
    pub(crate) segment: SegmentHeader,
    /// Where the next frame begins.
    pub(crate) offset: u64,
    /// Of the last record before it.
    pub(crate) sequence: Sequence,
}

impl Place {
    /// Before the first frame of a segment.
    pub(crate) fn beginning(segment: SegmentHeader) -> Self {
        Self { segment, offset: SEGMENT_HEADER_LEN as u64, sequence: segment.last_sequence }
    }

    /// Bytes of the core's log before it.
    pub(crate) fn position(&self) -> u64 {
        self.segment.position_at(self.offset)
    }

    /// What stands between here and `end`, which is in this incarnation.
    pub(crate) fn up_to(
        &self,
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        end: LogEnd,
    ) -> Result<Vec<Stretch>, PerCoreWalError> {
        let (last, len) = end;
        let mut stretches = Vec::new();
        let mut at = *self;
        if header(vfs, dir, SegmentName::of(&self.segment))? != self.segment {
            return Err(replaced(dir, &self.segment));
        }
        while at.segment.number < last {
            let name = SegmentName { number: at.segment.number.next(), ..SegmentName::of(&at.segment) };
            let next = header(vfs, dir, name)?;
            let continued = next.store_id == at.segment.store_id
                && next.previous.incarnation == at.segment.incarnation
                && next.previous.number == at.segment.number
                && next.previous.len >= at.offset
                && next.last_sequence >= at.sequence;
            if !continued {
                return Err(replaced(dir, &next));
            }
            stretches.push(at.stretch(dir, next.previous.len));
            at = Self::beginning(next);
        }
        if at.segment.number != last || len < at.offset {
            return Err(replaced(dir, &at.segment));
        }
        stretches.push(at.stretch(dir, len));
        Ok(stretches)
    }

    fn stretch(&self, dir: &Path, end: u64) -> Stretch {
        Stretch {
            path: dir.join(SegmentName::of(&self.segment).file_name()),
            header: self.segment,
            start: self.offset,
            end,
            // Only a later incarnation declares anything void.
            void_above: Epoch::MAX,
            first: Some(self.sequence.next()),
        }
    }
}

fn header(vfs: &Arc<dyn Vfs>, dir: &Path, name: SegmentName) -> Result<SegmentHeader, PerCoreWalError> {
    let path = dir.join(name.file_name());
    read_header(vfs.as_ref(), &path)?.map_err(|fault| header_error(&path, fault))
}

fn replaced(dir: &Path, header: &SegmentHeader) -> PerCoreWalError {
    PerCoreWalError::corrupted(
        Detail::new("the segment is not the one that was written here")
            .at_path(dir.join(SegmentName::of(header).file_name()))
            .on_core(header.core)
            .remedy("Something else changed the file; stop it, then open again."),
    )
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
