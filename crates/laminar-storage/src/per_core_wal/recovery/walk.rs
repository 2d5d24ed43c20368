//! Walking one core's segments, newest first, and judging each.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cases::{Case, End, Facts, Verdict};
use super::refusal::{foreign, refused};
use super::survey::{CoreLog, Coverage, LogEnd, Segment};
use super::tally::Tally;
use crate::error::Detail;
use crate::format::checksum::Salt;
use crate::format::current::Current;
use crate::format::frame::{FRAME_HEADER_LEN, FrameFault};
use crate::format::segment_header::{HeaderFault, SEGMENT_HEADER_LEN, SegmentHeader, WalMode, frame_salt};
use crate::format::synced::Synced;
use crate::ids::{Epoch, Sequence, StoreId};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::frames::{FrameReader, Rest, Step};
use crate::per_core_wal::reader::{header_error, open_segment, read_header};
use crate::per_core_wal::segment::SegmentName;
use crate::progress::{COUNT_EVERY, Watch};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::Vfs;

/// What the walk over a core needs to know.
pub(super) struct Walk<'a> {
    pub(super) vfs: &'a dyn Vfs,
    pub(super) dir: &'a Path,
    pub(super) current: Option<Current>,
    pub(super) covered: Coverage<'a>,
    pub(super) ends: &'a [LogEnd],
    pub(super) store_id: Option<StoreId>,
    pub(super) synced: Vec<Synced>,
    pub(super) watch: &'a Watch,
}

/// Bytes of a torn end behind which bytes of an earlier segment follow: as far as its frames are known, at least a header.
fn torn_within_old_bytes(rest: &Rest, len: u64, file_len: u64) -> u64 {
    rest.end.max(len + FRAME_HEADER_LEN as u64).min(file_len) - len
}

impl Walk<'_> {
    /// Walks one core's segments, newest first.
    pub(super) fn core(
        &self,
        names: &[SegmentName],
    ) -> Result<(Option<CoreLog>, Vec<PathBuf>), PerCoreWalError> {
        let mut leftovers = Vec::new();
        let mut log: Option<CoreLog> = None;
        for (index, name) in names.iter().enumerate().rev() {
            let successor = log.as_ref().and_then(|log| log.segments.last()).map(|segment| segment.header);
            if let Some(next) = &successor {
                let wanted = (next.previous.incarnation, next.previous.number);
                if !next.previous.exists() {
                    // A reset: whatever is older was given up then.
                    leftovers.push(self.dir.join(name.file_name()));
                    continue;
                }
                if next.last_sequence <= self.covered.of(name.core) {
                    break;
                }
                if wanted != (name.incarnation, name.number) {
                    if wanted.1 < name.number && name.number < next.number {
                        // The chain leads past it: when its successor was created, this one was seen
                        // never to have been completely created. A crash came before it was swept.
                        leftovers.push(self.dir.join(name.file_name()));
                        continue;
                    }
                    if self.may_be_obsolete(log.as_ref(), names.len() - 1 - index)
                        || sabotaged(Sabotage::GapIgnored)
                    {
                        break;
                    }
                    return Err(self.gap(next));
                }
            }
            let first = index
                .checked_sub(1)
                .and_then(|i| names.get(i))
                .is_none_or(|p| p.incarnation != name.incarnation);
            // Of earlier incarnations only the chain knows whether they were established.
            let required = first
                && self.current.is_some_and(|current| {
                    name.incarnation == current.incarnation && name.core.0 < current.core_count
                });
            match self.segment(*name, required, successor.as_ref(), &mut log)? {
                Some(segment) if index > 0 && successor.is_none() && self.is_interrupted_reset(&segment) => {
                    leftovers.push(segment.path);
                    log = None;
                }
                Some(segment) => {
                    if let Some(log) = &mut log {
                        log.segments.push(segment);
                    }
                }
                None => leftovers.push(self.dir.join(name.file_name())),
            }
        }
        if let Some(log) = &mut log {
            log.segments.reverse();
        }
        Ok((log, leftovers))
    }

    /// Whether what is older than this much of a log, with so many newer files, may be left over from a truncation: that
    /// keeps two of each core, and one of a core that is there no more.
    fn may_be_obsolete(&self, log: Option<&CoreLog>, newer: usize) -> bool {
        let departed = |log: &CoreLog| self.current.is_some_and(|current| log.core.0 >= current.core_count);
        if newer < if log.is_some_and(departed) { 1 } else { 2 } {
            return false;
        }
        let is_a_stores = |segment: &Segment| segment.header.mode == WalMode::Epochs;
        matches!(self.covered, Coverage::Unknown)
            && log.is_some_and(|log| log.segments.iter().any(is_a_stores))
    }

    /// A reset takes effect on all cores at once, when `CURRENT` names its incarnation; until then its
    /// segments hold no records, and everything older counts.
    pub(super) fn is_interrupted_reset(&self, segment: &Segment) -> bool {
        let header = &segment.header;
        let established = self.current.is_some_and(|current| header.incarnation <= current.incarnation);
        !header.previous.exists() && segment.records == 0 && !established
    }

    /// Checks one segment. `None` when it was never completely created.
    fn segment(
        &self,
        name: SegmentName,
        required: bool,
        successor: Option<&SegmentHeader>,
        log: &mut Option<CoreLog>,
    ) -> Result<Option<Segment>, PerCoreWalError> {
        let path = self.dir.join(name.file_name());
        let file = open_segment(self.vfs, &path)?;
        let read = |e| PerCoreWalError::io("could not read the segment", &path, e);
        let file_len = file.size().map_err(read)?;
        let header = match read_header(self.vfs, &path)? {
            Ok(header) => header,
            Err(fault @ HeaderFault::Newer { .. }) => return Err(header_error(&path, fault)),
            Err(_) => return self.unreadable(name, required, successor.is_some(), file_len, &path),
        };
        if self.store_id.is_some_and(|expected| expected != header.store_id) {
            return Err(foreign(&path, &header));
        }
        let growing = self.ends.get(name.core.index()).filter(|(number, _)| *number == name.number);
        let limit = match (successor, growing) {
            (Some(_), _) if sabotaged(Sabotage::BoundaryUnchecked) => file_len,
            (Some(next), _) => next.previous.len,
            (None, Some((_, len))) => *len,
            (None, None) => file_len,
        };
        let salt = header.salt();
        let mut frames =
            FrameReader::new(file, salt, header.core, SEGMENT_HEADER_LEN as u64, limit.min(file_len));
        let mut tally = Tally::new(&header);
        let mut start = SEGMENT_HEADER_LEN as u64;
        let mut fault = self.add_up(&mut frames, &mut tally, &mut start, &path)?;
        let searched = Instant::now();
        let mut rest = frames.examine_rest(header.last_sequence).map_err(read)?;
        // Beside a store that goes on, the frame may be there by now, and a later one too.
        while fault.is_some() && rest.witness.is_some() {
            let end = frames.offset();
            frames.forget();
            fault = self.add_up(&mut frames, &mut tally, &mut start, &path)?;
            if frames.offset() == end {
                break;
            }
            rest = frames.examine_rest(header.last_sequence).map_err(read)?;
        }
        let searching = searched.elapsed();
        let len = frames.offset();
        // Whoever reads up to a given end, that of a successor or one that was noted, knows better.
        let is_given = successor.is_some() || growing.is_some();
        let synced = if is_given { 0 } else { self.synced(&header) };
        let end = match (&fault, rest.witness) {
            _ if len < synced => End::Damaged,
            _ if limit > file_len => End::Torn,
            (None, _) => End::Clean,
            (Some(_), Some(_)) if sabotaged(Sabotage::DamageIsEnd) => End::Torn,
            // A crash tears bytes apart; it does not put a right checksum over fields without sense.
            (Some(_), Some(_)) | (Some(FrameFault::Field), None) => End::Damaged,
            // Zeros written ahead, but only where the segment may still be growing.
            (Some(fault), None) if rest.is_unused(*fault, header.reused) && successor.is_none() => End::Clean,
            (Some(_), None) => End::Torn,
        };
        let announced = tally.announces;
        let facts = Facts {
            header_sound: true,
            required,
            frames: tally.records > 0,
            successor: successor.is_some(),
            end,
            announced,
        };
        let case = Case::of(&facts);
        if case.verdict == Verdict::Refuse {
            let mut what = fault.map_or_else(String::new, |fault| format!(" ({fault})"));
            if len < synced {
                what.push_str(&format!(" (SYNCED says that {synced} bytes were)"));
            }
            return Err(refused(case, &path, len, name.core, tally.max_epoch, &what));
        }
        if log.is_none() {
            *log = Some(CoreLog { searching, ..tally.end_of_log(&header, &rest) });
        } else if let Some(log) = log {
            log.acknowledged = log.acknowledged.max(tally.acknowledged);
        }
        let dropped = match case.verdict {
            Verdict::Cut if header.reused => torn_within_old_bytes(&rest, len, file_len),
            Verdict::Cut => file_len - len,
            _ => 0,
        };
        let ends_in_frame = dropped > 0 && fault == Some(FrameFault::Short);
        let segment = tally.segment(path, header, len, file_len, case.label, dropped);
        Ok(Some(Segment { start, ends_in_frame, ..segment }))
    }

    /// Adds up the frames from where the reader is; says why they end, and moves `start` behind those that a checkpoint has.
    fn add_up(
        &self,
        frames: &mut FrameReader,
        tally: &mut Tally,
        start: &mut u64,
        path: &Path,
    ) -> Result<Option<FrameFault>, PerCoreWalError> {
        let covered = self.covered.of(tally.core);
        let mut watched = frames.offset();
        let fault = loop {
            match frames.step().map_err(|e| PerCoreWalError::io("could not read the segment", path, e))? {
                Step::Frame(frame, payload) => tally.frame(&frame, payload, path)?,
                Step::End => break None,
                Step::Fault(fault) => break Some(fault),
            }
            if tally.last_sequence <= covered {
                *start = frames.offset();
            }
            if frames.offset() - watched >= COUNT_EVERY {
                self.watch.replayed(frames.offset() - watched);
                watched = frames.offset();
            }
        };
        self.watch.replayed(frames.offset() - watched);
        Ok(fault)
    }

    /// Bytes of a segment that `SYNCED` testifies to have been synced.
    fn synced(&self, header: &SegmentHeader) -> u64 {
        self.synced.iter().find(|synced| synced.is_of(header)).map_or(0, |synced| synced.len)
    }

    /// Judges a segment without a readable header.
    pub(super) fn unreadable(
        &self,
        name: SegmentName,
        required: bool,
        successor: bool,
        file_len: u64,
        path: &Path,
    ) -> Result<Option<Segment>, PerCoreWalError> {
        let start = SEGMENT_HEADER_LEN as u64;
        let read = |e| PerCoreWalError::io("could not read the segment", path, e);
        let file = open_segment(self.vfs, path)?;
        let salt = self.store_id.map(|id| frame_salt(id, name.incarnation, name.core, name.number));
        let mut frames = FrameReader::new(file, salt.unwrap_or(Salt::new(&[])), name.core, start, file_len);
        let found = match salt {
            Some(_) if matches!(frames.step().map_err(read)?, Step::Frame(..)) => true,
            Some(_) => frames.examine_rest(Sequence::ZERO).map_err(read)?.frames > 0,
            // Nothing says whose log it is, so that no frame can be checked. What looks like one may be one.
            None => frames.resembles().map_err(read)?,
        };
        let facts = Facts {
            header_sound: false,
            required,
            frames: found,
            successor,
            end: End::Clean,
            announced: false,
        };
        let case = Case::of(&facts);
        if case.verdict == Verdict::Ignore {
            return Ok(None);
        }
        let what = match self.store_id {
            Some(_) => "",
            None => "; nothing says whose log it is: if this store was never opened, move the file away",
        };
        Err(refused(case, path, 0, name.core, Epoch::ZERO, what))
    }

    fn gap(&self, next: &SegmentHeader) -> PerCoreWalError {
        let missing = SegmentName {
            core: next.core,
            number: next.previous.number,
            incarnation: next.previous.incarnation,
        };
        PerCoreWalError::SegmentNotFound(Box::new(
            Detail::new("the segment is missing, although older ones and its successor are there")
                .at_path(self.dir.join(missing.file_name()))
                .on_core(next.core)
                .in_epoch(next.last_epoch)
                .remedy("Restore the missing file; without it acknowledged changes would be lost."),
        ))
    }
}
