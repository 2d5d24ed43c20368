//! Adding up the frames of one segment, and refusing those that contradict each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::survey::{CoreLog, Segment};
use crate::error::Detail;
use crate::format::frame::FrameHeader;
use crate::format::record::Record;
use crate::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{CoreId, Epoch, Sequence, TimestampNs};
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::frames::Rest;
use crate::per_core_wal::reader::for_each_record;

/// What the frames of one segment add up to.
pub(super) struct Tally {
    pub(super) core: CoreId,
    pub(super) records: u64,
    pub(super) min_epoch: Epoch,
    pub(super) max_epoch: Epoch,
    pub(super) last_sequence: Sequence,
    pub(super) last_timestamp: TimestampNs,
    pub(super) sealed_epoch: Epoch,
    pub(super) acknowledged: Epoch,
    pub(super) announces: bool,
    proven: u64,
}

impl Tally {
    pub(super) fn new(header: &SegmentHeader) -> Self {
        Self {
            core: header.core,
            records: 0,
            min_epoch: Epoch::MAX,
            max_epoch: Epoch::ZERO,
            last_sequence: header.last_sequence,
            last_timestamp: header.last_timestamp,
            sealed_epoch: header.sealed_epoch,
            acknowledged: Epoch::ZERO,
            announces: false,
            proven: 0,
        }
    }

    pub(super) fn frame(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        path: &Path,
    ) -> Result<(), PerCoreWalError> {
        let contradiction = |what: &'static str| {
            PerCoreWalError::corrupted(
                Detail::new(what)
                    .at_path(path)
                    .on_core(frame.core)
                    .in_epoch(frame.epoch)
                    .remedy("The file was not written by this program; restore it from a copy."),
            )
        };
        if frame.first_sequence <= self.last_sequence || frame.first_timestamp <= self.last_timestamp {
            return Err(contradiction("a frame's sequence or time goes backwards"));
        }
        // Of the first frame nothing is known, and no epoch is smaller than zero.
        if frame.epoch < self.max_epoch {
            return Err(contradiction("a frame's epoch goes backwards"));
        }
        self.records += u64::from(frame.records);
        self.min_epoch = self.min_epoch.min(frame.epoch);
        self.max_epoch = self.max_epoch.max(frame.epoch);
        self.announces = false;
        self.proven = self.proven.max(frame.synced_len);
        let senseless = || contradiction("a record in a valid frame makes no sense");
        for_each_record(
            frame,
            payload,
            |record, at| {
                self.last_sequence = Sequence(at.sequence);
                self.last_timestamp = TimestampNs(at.timestamp_ns);
                match record {
                    Record::Barrier { durable, .. } => {
                        self.sealed_epoch = self.sealed_epoch.max(frame.epoch);
                        self.acknowledged = self.acknowledged.max(durable);
                    }
                    Record::Confirm { durable } => self.acknowledged = self.acknowledged.max(durable),
                    Record::SegmentEnd { .. } => self.announces = true,
                    _ => {}
                }
                Ok(())
            },
            senseless,
        )
    }

    /// The end of a core's log, from its newest segment.
    pub(super) fn end_of_log(&self, header: &SegmentHeader, rest: &Rest) -> CoreLog {
        CoreLog {
            core: header.core,
            segments: Vec::new(),
            last_sequence: self.last_sequence.max(rest.max_sequence),
            last_timestamp: self.last_timestamp,
            last_epoch: self.max_epoch.max(header.last_epoch).max(rest.max_epoch),
            sealed_epoch: self.sealed_epoch,
            acknowledged: self.acknowledged,
            searching: Duration::ZERO,
        }
    }

    pub(super) fn segment(
        &self,
        path: PathBuf,
        header: SegmentHeader,
        len: u64,
        file_len: u64,
        case: char,
        dropped: u64,
    ) -> Segment {
        Segment {
            path,
            header,
            start: SEGMENT_HEADER_LEN as u64,
            len,
            file_len,
            proven: self.proven.min(len),
            records: self.records,
            min_epoch: if self.records == 0 { Epoch::ZERO } else { self.min_epoch },
            max_epoch: self.max_epoch,
            last_sequence: self.last_sequence,
            case,
            dropped,
            ends_in_frame: false,
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::format::checksum::Salt;
    use crate::per_core_wal::recovery::plan::tests::segment;

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(0, &mut bytes);
        bytes
    }

    fn add(tally: &mut Tally, epoch: u64, sequence: u64, time: u64, record: &Record<'_>) -> bool {
        let payload = encoded(record);
        let frame = FrameHeader {
            payload_crc: Salt::new(&[1]).crc(&[&payload]),
            payload_len: u32::try_from(payload.len()).unwrap(),
            core: CoreId(0),
            records: 1,
            synced_len: 64,
            epoch: Epoch(epoch),
            first_sequence: Sequence(sequence),
            first_timestamp: TimestampNs(time),
        };
        tally.frame(&frame, &payload, Path::new("/wal/segment")).is_ok()
    }

    const PUT: Record<'_> = Record::Delete { key: b"key" };

    #[test]
    fn sequence_time_and_epoch_only_grow() {
        for (epoch, sequence, time, fits) in
            [(5, 11, 11, true), (6, 11, 11, true), (5, 10, 11, false), (5, 11, 10, false), (4, 11, 11, false)]
        {
            let mut tally = Tally::new(&segment(0, 1).header);
            assert!(add(&mut tally, 5, 10, 10, &PUT));
            assert_eq!(add(&mut tally, epoch, sequence, time, &PUT), fits, "{epoch} {sequence} {time}");
        }
        // The first frame of a segment may have any epoch.
        let mut tally = Tally::new(&segment(0, 1).header);
        assert!(add(&mut tally, 0, 1, 1, &PUT));
        assert_eq!(tally.records, 1);
    }

    #[test]
    fn a_barrier_closes_its_epoch_and_testifies_to_an_earlier_one() {
        let mut tally = Tally::new(&segment(0, 1).header);
        assert!(add(&mut tally, 5, 1, 1, &PUT));
        assert_eq!((tally.sealed_epoch, tally.acknowledged), (Epoch::ZERO, Epoch::ZERO));
        assert!(add(&mut tally, 5, 2, 2, &Record::Barrier { durable: Epoch(4), digest: None }));
        assert_eq!((tally.sealed_epoch, tally.acknowledged), (Epoch(5), Epoch(4)));
    }

    #[test]
    fn a_confirmation_testifies_like_a_barrier() {
        let mut tally = Tally::new(&segment(0, 1).header);
        assert!(add(&mut tally, 5, 1, 1, &Record::Confirm { durable: Epoch(4) }));
        assert_eq!((tally.acknowledged, tally.sealed_epoch), (Epoch(4), Epoch::ZERO));
        assert!(add(&mut tally, 5, 2, 2, &Record::Confirm { durable: Epoch(3) }));
        assert_eq!(tally.acknowledged, Epoch(4));
    }
}
