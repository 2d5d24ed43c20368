//! Every decision of the plan at its border: what is just enough, and what is one too little. The logs
//! are made up, so that each test differs in one number from a sound one.

use std::path::PathBuf;

use super::super::survey::{CoreLog, Segment};
use super::*;
use crate::format::current::Current;
use crate::format::segment_header::{Predecessor, SegmentHeader};
use crate::ids::{Incarnation, SegmentNumber, TimestampNs, WalPosition};
use crate::progress::Watch;

pub(in crate::per_core_wal) const STORE: StoreId = StoreId(77);

/// A segment of a log of two cores that continues an earlier one.
pub(in crate::per_core_wal) fn segment(core: u16, incarnation: u64) -> Segment {
    let previous = Predecessor { incarnation: Incarnation(incarnation), number: SegmentNumber(1), len: 256 };
    let header = SegmentHeader {
        store_id: STORE,
        incarnation: Incarnation(incarnation),
        number: SegmentNumber(2),
        core: CoreId(core),
        core_count: 2,
        mode: WalMode::Epochs,
        base_position: WalPosition(0),
        last_sequence: Sequence::ZERO,
        last_epoch: Epoch::ZERO,
        sealed_epoch: Epoch::ZERO,
        last_timestamp: TimestampNs(0),
        void_above: Epoch::ZERO,
        previous,
        reused: false,
    };
    Segment {
        path: PathBuf::from("/wal/segment"),
        header,
        len: 512,
        start: 256,
        file_len: 512,
        proven: 512,
        records: 1,
        min_epoch: Epoch(1),
        max_epoch: Epoch(1),
        last_sequence: Sequence(10),
        case: 'B',
        dropped: 0,
        ends_in_frame: false,
    }
}

pub(in crate::per_core_wal) fn log_of(segment: Segment) -> CoreLog {
    CoreLog {
        core: segment.header.core,
        segments: vec![segment],
        last_sequence: Sequence(10),
        last_timestamp: TimestampNs(10),
        last_epoch: Epoch(1),
        sealed_epoch: Epoch(1),
        acknowledged: Epoch::ZERO,
        searching: std::time::Duration::ZERO,
    }
}

pub(in crate::per_core_wal) fn current(core_count: u16) -> Option<Current> {
    Some(Current { store_id: STORE, incarnation: Incarnation(2), core_count })
}

fn bound(epoch: u64, cuts: &[u64]) -> Base {
    let cuts = cuts.iter().copied().map(Sequence).collect();
    Base { epoch: Epoch(epoch), log: Some(STORE), cuts }
}

fn unbound(epoch: u64) -> Base {
    Base { log: None, ..bound(epoch, &[9, 9]) }
}

/// A plan over a sound log of two cores.
fn sound() -> Plan {
    let cores = vec![log_of(segment(0, 2)), log_of(segment(1, 2))];
    let survey = Survey { store_id: Some(STORE), current: current(2), cores, ..Survey::default() };
    Plan { survey, base: None, mode: RecoveryMode::CompleteEpochs, point: Epoch::ZERO }
}

fn dir() -> &'static Path {
    Path::new("/wal")
}

#[test]
fn the_cut_of_a_core_is_its_own_and_beyond_the_list_the_largest() {
    let base = bound(1, &[3, 8, 5]);
    assert_eq!([0, 1, 2, 3, 9].map(|core| base.cut(CoreId(core)).0), [3, 8, 5, 8, 8]);
    assert_eq!(base.last_covered(), Sequence(8));
    // A checkpoint made without a log covers nothing of one.
    assert_eq!([0, 1, 5].map(|core| unbound(1).cut(CoreId(core)).0), [0, 0, 0]);
    assert_eq!(unbound(1).last_covered(), Sequence::ZERO);
}

#[test]
fn what_is_replayed_begins_behind_the_cut_and_ends_with_the_point() {
    let span = |base: Option<Base>, mode| {
        let plan = Plan { base, mode, point: Epoch(6), ..sound() };
        let span = plan.span(CoreId(1));
        (span.after.0, span.from_epoch.0, span.up_to)
    };
    let complete = RecoveryMode::CompleteEpochs;
    assert_eq!(span(None, complete), (0, 0, Epoch(6)));
    assert_eq!(span(None, RecoveryMode::AllSynced), (0, 0, Epoch::MAX));
    assert_eq!(span(Some(bound(4, &[3, 8])), complete), (8, 0, Epoch(6)));
    // Without cuts the epoch says where the checkpoint ends, and is replayed once more.
    assert_eq!(span(Some(unbound(4)), complete), (0, 4, Epoch(6)));
}

#[test]
fn a_checkpoint_needs_the_very_log_it_was_made_from() {
    let check = |base, store_id| {
        let mut plan = Plan { base, ..sound() };
        plan.survey.store_id = store_id;
        plan.check_identity(dir())
    };
    check(Some(bound(1, &[1])), Some(STORE)).unwrap();
    check(Some(unbound(1)), Some(StoreId(78))).unwrap();
    check(None, None).unwrap();
    assert!(check(Some(bound(1, &[1])), Some(StoreId(78))).unwrap_err().is_corruption());
    let none = check(Some(bound(1, &[1])), None).unwrap_err();
    assert!(matches!(none, PerCoreWalError::SegmentNotFound(_)), "{none}");
}

/// The log of core 1 ended in incarnation 1; incarnation 2 has one core and was begun at epoch 5.
fn departed(sealed: u64, opened_with: u64, base: Option<Base>) -> Result<(), PerCoreWalError> {
    let mut plan = Plan { base, ..sound() };
    plan.survey.current = current(1);
    let [stays, left] = plan.survey.cores.as_mut_slice() else { unreachable!() };
    stays.segments[0].header.void_above = Epoch(5);
    left.segments[0].header.incarnation = Incarnation(1);
    left.segments[0].header.void_above = Epoch(opened_with);
    left.sealed_epoch = Epoch(sealed);
    plan.check_departed()
}

#[test]
fn the_log_of_a_core_that_left_must_reach_the_epoch_it_left_at() {
    departed(5, 0, None).unwrap();
    departed(6, 0, None).unwrap();
    departed(0, 5, None).unwrap();
    let error = departed(4, 4, None).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("ends with epoch 4"), "{error}");
    // A checkpoint from then, or from later, makes up for it; an earlier one does not.
    departed(4, 0, Some(bound(5, &[1]))).unwrap();
    departed(4, 0, Some(bound(6, &[1]))).unwrap();
    assert!(departed(4, 0, Some(bound(4, &[1]))).unwrap_err().is_corruption());
}

#[test]
fn a_core_that_left_in_the_newest_incarnation_has_no_epoch_to_reach() {
    let mut plan = sound();
    plan.survey.current = current(1);
    plan.check_departed().unwrap();
}

#[test]
fn a_core_that_stays_may_end_before_the_others() {
    // What it lost was never acknowledged, or `check_acknowledged` says so.
    let mut plan = sound();
    plan.survey.cores[0].segments[0].header.incarnation = Incarnation(3);
    plan.survey.cores[0].segments[0].header.void_above = Epoch(5);
    plan.check_departed().unwrap();
}

/// An opening of two cores of which only the first got a segment.
fn half_started(records: u64, established: bool, base: Option<Base>) -> Result<(), PerCoreWalError> {
    let mut plan = Plan { base, ..sound() };
    plan.survey.cores.truncate(1);
    plan.survey.cores[0].segments[0].records = records;
    plan.survey.cores[0].segments[0].header.previous = Predecessor::default();
    if !established {
        plan.survey.current = None;
    }
    plan.check_coverage(dir())
}

#[test]
fn a_core_without_a_segment_is_a_first_start_that_was_interrupted_or_a_loss() {
    half_started(0, false, None).unwrap();
    half_started(0, false, Some(unbound(3))).unwrap();
    // A fork that was re-sharded before its log was established: bound, with nothing of the log.
    half_started(0, false, Some(bound(3, &[0, 0]))).unwrap();
    for lost in [
        half_started(1, false, None),
        half_started(0, true, None),
        half_started(0, false, Some(bound(3, &[0, 2]))),
    ] {
        let error = lost.unwrap_err();
        assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    }
}

/// A log whose oldest segment on core 1 continues one that is gone.
fn reaching_back_to(sequence: u64, epoch: u64, base: Option<Base>) -> Result<(), PerCoreWalError> {
    let mut plan = Plan { base, ..sound() };
    plan.survey.cores[1].segments[0].header.last_sequence = Sequence(sequence);
    plan.survey.cores[1].segments[0].header.last_epoch = Epoch(epoch);
    plan.check_coverage(dir())
}

#[test]
fn every_log_reaches_back_to_the_checkpoint_or_to_its_beginning() {
    reaching_back_to(0, 4, None).unwrap();
    reaching_back_to(7, 9, Some(bound(1, &[0, 7]))).unwrap();
    reaching_back_to(6, 9, Some(bound(1, &[0, 7]))).unwrap();
    reaching_back_to(9, 4, Some(unbound(4))).unwrap();
    reaching_back_to(9, 3, Some(unbound(4))).unwrap();
    for gap in [
        reaching_back_to(1, 0, None),
        reaching_back_to(8, 0, Some(bound(1, &[9, 7]))),
        reaching_back_to(0, 5, Some(unbound(4))),
    ] {
        let error = gap.unwrap_err();
        assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    }
    // Where nothing comes before, nothing can be missing.
    let mut first = sound();
    for log in &mut first.survey.cores {
        log.segments[0].header.previous = Predecessor::default();
        log.segments[0].header.last_sequence = Sequence(5);
    }
    first.check_coverage(dir()).unwrap();
}

/// A log whose first incarnation was begun on a checkpoint of epoch 5 that was made without it.
fn forked(base: Option<Base>, change: impl Fn(&mut SegmentHeader)) -> Result<(), PerCoreWalError> {
    let mut plan = Plan { base, ..sound() };
    for log in &mut plan.survey.cores {
        log.segments[0].header.previous = Predecessor::default();
        log.segments[0].header.void_above = Epoch(5);
        change(&mut log.segments[0].header);
    }
    plan.check_beginning(dir())
}

#[test]
fn a_log_that_was_begun_on_a_checkpoint_is_nothing_without_it() {
    let as_it_is = |_: &mut SegmentHeader| {};
    forked(Some(unbound(5)), as_it_is).unwrap();
    forked(Some(bound(6, &[1, 1])), as_it_is).unwrap();
    for base in [None, Some(unbound(4))] {
        let error = forked(base, as_it_is).unwrap_err();
        assert!(matches!(error, PerCoreWalError::SegmentNotFound(_)), "{error}");
    }
    // Begun on nothing; not the first segment; or a log that has no epochs.
    forked(None, |header| header.void_above = Epoch::ZERO).unwrap();
    let second = |header: &mut SegmentHeader, last| {
        (header.previous, header.last_sequence) = (segment(0, 2).header.previous, Sequence(last));
    };
    forked(None, |header| second(header, 1)).unwrap();
    // The second opening of a fork that never took a record: there was a predecessor, and nothing in it.
    forked(None, |header| second(header, 0)).unwrap_err();
    forked(Some(unbound(5)), |header| second(header, 0)).unwrap();
    forked(None, |header| header.mode = WalMode::Plain).unwrap();
}

#[test]
fn the_point_is_the_smallest_epoch_closed_over_all_cores() {
    let point = |sealed: [u64; 2], base| {
        let mut plan = Plan { base, ..sound() };
        for (log, sealed) in plan.survey.cores.iter_mut().zip(sealed) {
            log.sealed_epoch = Epoch(sealed);
        }
        plan.find_point(dir()).unwrap().0
    };
    assert_eq!(point([4, 6], None), 4);
    assert_eq!(point([6, 4], None), 4);
    assert_eq!(point([6, 4], Some(bound(5, &[1, 1]))), 5);
    let mut missing = sound();
    missing.survey.cores.truncate(1);
    assert_eq!(missing.find_point(dir()).unwrap(), Epoch::ZERO);
}

#[test]
fn the_plain_view_ends_with_the_newest_record_that_is_not_void() {
    let mut plan = Plan { mode: RecoveryMode::AllSynced, ..sound() };
    plan.survey.cores[0].segments[0].max_epoch = Epoch(9);
    assert_eq!(plan.find_point(dir()).unwrap(), Epoch(9));
    // A later opening gave up everything above epoch 3.
    plan.survey.cores[1].segments[0].header.incarnation = Incarnation(3);
    plan.survey.cores[1].segments[0].header.void_above = Epoch(3);
    assert_eq!(plan.find_point(dir()).unwrap(), Epoch(3));
    plan.base = Some(unbound(8));
    assert_eq!(plan.find_point(dir()).unwrap(), Epoch(8));
}

#[test]
fn a_log_that_ends_before_its_orderly_end_is_refused() {
    let closed = |closed, base| {
        let mut plan = Plan { base, ..sound() };
        plan.survey.closed = Epoch(closed);
        plan.check_closed(dir(), Epoch(4))
    };
    closed(3, None).unwrap();
    closed(4, None).unwrap();
    assert!(closed(5, None).unwrap_err().to_string().contains("closed at epoch 5"));
    // The log ends with sequence 10.
    closed(4, Some(bound(4, &[10, 2]))).unwrap();
    closed(4, Some(bound(4, &[9, 2]))).unwrap();
    assert!(closed(4, Some(bound(4, &[2, 11]))).unwrap_err().to_string().contains("up to 11"));
    closed(4, Some(Base { log: None, ..bound(4, &[11]) })).unwrap();
}

#[test]
fn an_epoch_that_a_core_testifies_to_must_be_there_on_all() {
    let check = |acknowledged: [u64; 2]| {
        let mut plan = sound();
        plan.survey.cores[0].sealed_epoch = Epoch(4);
        plan.survey.cores[1].sealed_epoch = Epoch(6);
        for (log, acknowledged) in plan.survey.cores.iter_mut().zip(acknowledged) {
            log.acknowledged = Epoch(acknowledged);
        }
        plan.check_acknowledged(dir(), Epoch(4))
    };
    check([4, 3]).unwrap();
    check([3, 4]).unwrap();
    let error = check([3, 5]).unwrap_err();
    assert!(error.to_string().contains("as core 1 testifies"), "{error}");
    assert!(error.to_string().contains("ends with epoch 4"), "{error}");
    assert!(check([5, 3]).unwrap_err().is_corruption());
}

#[test]
fn who_acknowledged_decides_what_counts() {
    let vfs: Arc<dyn Vfs> = Arc::new(crate::vfs::sim::SimDisk::new(1));
    let config = crate::per_core_wal::PerCoreWalConfig::new(dir(), 1).with_vfs(Arc::clone(&vfs));
    drop(crate::per_core_wal::PerCoreWalManager::new(config).unwrap());
    let mode = |wanted| Plan::make(&vfs, dir(), None, wanted, &Watch::default()).unwrap().mode;
    assert_eq!(mode(Wanted::Acknowledged), RecoveryMode::AllSynced);
    assert_eq!(mode(Wanted::Mode(RecoveryMode::CompleteEpochs)), RecoveryMode::CompleteEpochs);
}
