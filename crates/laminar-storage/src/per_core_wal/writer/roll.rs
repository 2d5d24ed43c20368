//! Going on in another segment.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::CoreWalWriter;
use crate::error::{Detail, io_detail};
use crate::format::frame::FRAME_HEADER_LEN;
use crate::format::record::Record;
use crate::format::segment_header::{Predecessor, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{SegmentNumber, WalPosition};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::names;
use crate::per_core_wal::recovery::identity::read_current;
use crate::per_core_wal::segment::{Reused, SegmentPolicy, create_segment, reuse_segment};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::VfsFile;

/// A segment to go on in, which has only its header.
struct Next {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    /// As far as it has bytes of an earlier use.
    stale: u64,
}

impl CoreWalWriter {
    /// Goes on in a new segment when the one in use cannot take `more` bytes.
    pub(super) fn roll_if_full(&mut self, more: usize) -> Result<(), PerCoreWalError> {
        let end = self.written + (self.buffer.len() + FRAME_HEADER_LEN + more) as u64;
        let holds_frames = self.written > SEGMENT_HEADER_LEN as u64 || !self.buffer.is_empty();
        // One frame of the longest record always fits, whatever the segment size.
        if end <= self.policy.segment_size || !holds_frames {
            return Ok(());
        }
        // I8: first everything that the successor will call ours, then the successor, and only then
        // the record that makes a missing successor damage.
        self.sync()?;
        let Next { header, path, file, stale } = match self.create_next() {
            Ok(created) => created,
            Err(error) => return Err(self.poisoned_by(PerCoreWalError::Io(error))),
        };
        self.end_segment(header.number)?;
        self.salt = header.salt();
        self.header = header;
        self.path = path;
        self.file = file;
        self.stale = stale;
        self.written = SEGMENT_HEADER_LEN as u64;
        self.synced = self.written;
        self.unconfirmed = false;
        Ok(())
    }

    /// Writes and syncs the last record of the segment in use.
    fn end_segment(&mut self, next: SegmentNumber) -> Result<(), PerCoreWalError> {
        let timestamp = self.last_timestamp.next();
        self.open_frame(timestamp);
        Record::SegmentEnd { next }.encode(1, &mut self.buffer);
        if let Some(frame) = &mut self.frame {
            frame.records = 1;
        }
        self.last_sequence = self.last_sequence.next();
        self.last_timestamp = timestamp;
        self.sync()
    }

    pub(super) fn next_header(&self) -> SegmentHeader {
        SegmentHeader {
            number: SegmentNumber(self.header.number.0.saturating_add(1)),
            base_position: WalPosition(self.position_of(self.written)),
            // The record that ends this segment takes one more sequence and nanosecond.
            last_sequence: self.last_sequence.next(),
            last_timestamp: self.last_timestamp.next(),
            last_epoch: self.epoch.max(self.header.last_epoch),
            sealed_epoch: self.sealed_epoch,
            previous: Predecessor {
                incarnation: self.header.incarnation,
                number: self.header.number,
                len: self.written,
            },
            reused: false,
            ..self.header
        }
    }

    /// Makes the next segment, with a name that is durable.
    fn create_next(&self) -> Result<Next, Box<Detail>> {
        let SegmentPolicy { vfs, dir, names, .. } = &self.policy;
        let fail = |error| Box::new(io_detail("could not create the next segment", dir, error));
        // Somebody may have renamed the directory, and another log may have its name by now.
        let established = read_current(vfs.as_ref(), dir).ok().flatten();
        if established.is_some_and(|current| !current.is_of(&self.header)) {
            let error = io::Error::other("another log, or a later opening of this one, is there by now");
            return Err(Box::new(
                fail(error).remedy("Put the directory back in its place, then open again."),
            ));
        }
        let next = self.make_next().map_err(fail)?;
        let skip = sabotaged(Sabotage::RollNotSynced);
        if let Err(error) = if skip { Ok(()) } else { names.sync(vfs.as_ref(), dir) } {
            names::take_back(vfs.as_ref(), &next.path);
            return Err(fail(error));
        }
        Ok(next)
    }

    /// Makes a segment of a file that is free, or of a new one.
    fn make_next(&self) -> io::Result<Next> {
        let SegmentPolicy { vfs, dir, preallocation, spares, .. } = &self.policy;
        let header = self.next_header();
        if let Some(spare) = spares.take() {
            let header = SegmentHeader { reused: true, ..header };
            if let Some(Reused { path, file, stale }) = reuse_segment(vfs.as_ref(), dir, &header, &spare)? {
                return Ok(Next { header, path, file, stale });
            }
        }
        let (path, file) = create_segment(vfs.as_ref(), dir, &header, *preallocation)?;
        Ok(Next { header, path, file, stale: 0 })
    }
}
