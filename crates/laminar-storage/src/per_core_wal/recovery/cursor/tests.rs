use std::path::Path;

use super::*;
use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
use crate::progress::tests::replayed_by;
use crate::vfs::sim::SimDisk;

/// A log of one core with a frame for each epoch: three records of epoch 1, two of epoch 2, one of epoch 3.
/// Their sequences are 1 to 6. It is as after a crash: whoever closes a log appends to it.
fn log() -> (Arc<dyn Vfs>, Survey) {
    let vfs: Arc<dyn Vfs> = Arc::new(SimDisk::new(1));
    let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
    let mut manager = PerCoreWalManager::new(config).unwrap();
    for (epoch, keys) in [(1, b"abc".as_slice()), (2, b"de"), (3, b"f")] {
        manager.set_epoch_all(epoch).unwrap();
        for key in keys {
            manager.writer(0).append_put(&[*key], b"value").unwrap();
        }
        manager.sync_all().unwrap();
    }
    let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[]).unwrap();
    drop(manager);
    (vfs, survey)
}

/// The last sequence of each frame.
const LAST: [u64; 3] = [3, 5, 6];

fn span(after: u64, epochs: std::ops::RangeInclusive<u64>) -> Span {
    Span { after: Sequence(after), from_epoch: Epoch(*epochs.start()), up_to: Epoch(*epochs.end()) }
}

/// What is replayed, after checking that single records are the same.
fn replayed(cursor: impl Fn() -> CoreCursor) -> (Vec<u64>, Reached) {
    let (mut sequences, mut records) = (Vec::new(), Vec::new());
    let done = cursor()
        .replay(|record, at| {
            sequences.push(at.sequence);
            records.push((at.order(), format!("{record:?}")));
            Ok(())
        })
        .unwrap();
    assert_eq!(done.changes, sequences.len() as u64);
    let (mut one_by_one, mut singles) = (cursor(), Vec::new());
    assert!(one_by_one.current().is_none());
    while one_by_one.advance().unwrap() {
        let (record, at) = one_by_one.current().unwrap();
        singles.push((at.order(), format!("{record:?}")));
    }
    assert_eq!(singles, records);
    assert!(!one_by_one.advance().unwrap() && one_by_one.current().is_none());
    assert_eq!(one_by_one.bytes(), done.reached.bytes);
    (sequences, done.reached)
}

/// Offsets in the segment where the frames end.
fn ends(vfs: &Arc<dyn Vfs>, survey: &Survey) -> [u64; 3] {
    [1, 2, 3].map(|epoch| {
        let (_, reached) = replayed(|| CoreCursor::new(vfs, survey, CoreId(0), span(0, 0..=epoch)));
        reached.place.unwrap().offset
    })
}

#[test]
fn exactly_the_records_behind_the_checkpoint_are_replayed() {
    let (vfs, survey) = log();
    let ends = ends(&vfs, &survey);
    for after in 0..=7 {
        let (sequences, reached) = replayed(|| CoreCursor::new(&vfs, &survey, CoreId(0), span(after, 0..=9)));
        assert_eq!(sequences, (after + 1..=6).collect::<Vec<_>>());
        // A frame counts when one of its records is replayed.
        let begin = survey.cores[0].segments[0].start;
        let before = LAST.iter().rposition(|last| *last <= after).map_or(begin, |frame| ends[frame]);
        assert_eq!(reached.bytes, ends[2] - before, "after {after}");
        assert_eq!(reached.place.map(|place| place.sequence), (after < 6).then_some(Sequence(6)));
        assert!(!reached.beyond);
    }
}

#[test]
fn exactly_the_epochs_that_are_wanted_are_replayed() {
    let (vfs, survey) = log();
    let ends = ends(&vfs, &survey);
    for (epochs, expected, end, beyond) in [
        (1..=1, 1..=3, 0, true),
        (0..=2, 1..=5, 1, true),
        (2..=2, 4..=5, 1, true),
        (2..=3, 4..=6, 2, false),
        (3..=9, 6..=6, 2, false),
    ] {
        let (sequences, reached) =
            replayed(|| CoreCursor::new(&vfs, &survey, CoreId(0), span(0, epochs.clone())));
        assert_eq!(sequences, expected.collect::<Vec<_>>(), "{epochs:?}");
        let place = reached.place.unwrap();
        assert_eq!((place.offset, place.sequence), (ends[end], Sequence(LAST[end])), "{epochs:?}");
        assert_eq!(reached.beyond, beyond, "{epochs:?}");
    }
    let (sequences, reached) = replayed(|| CoreCursor::new(&vfs, &survey, CoreId(0), span(5, 0..=2)));
    assert_eq!((sequences.as_slice(), reached.place, reached.bytes), (&[][..], None, 0));
}

/// Epochs that a later incarnation discarded do not come back.
#[test]
fn what_was_discarded_is_not_replayed() {
    let (vfs, survey) = log();
    for void_above in 0..=3 {
        let (sequences, reached) = replayed(|| {
            let segments = survey.cores[0].segments.iter();
            let stretches = segments
                .map(|segment| Stretch { void_above: Epoch(void_above), ..Stretch::of(segment, &survey) });
            CoreCursor::over(&vfs, stretches, span(0, 0..=9))
        });
        let last = usize::try_from(void_above).unwrap().checked_sub(1).map_or(0, |frame| LAST[frame]);
        assert_eq!(sequences, (1..=last).collect::<Vec<_>>(), "{void_above}");
        assert!(!reached.beyond);
    }
}

/// Where nothing has looked at the frames before, a gap or a repetition is damage.
#[test]
fn reading_on_begins_with_the_record_that_is_next() {
    let (vfs, survey) = log();
    let from = |first: u64| {
        let segments = survey.cores[0].segments.iter();
        let stretches =
            segments.map(|segment| Stretch { first: Some(Sequence(first)), ..Stretch::of(segment, &survey) });
        CoreCursor::over(&vfs, stretches, span(0, 0..=9)).replay(|_, _| Ok(()))
    };
    assert_eq!(from(1).unwrap().changes, 6);
    for first in [0, 2] {
        assert!(from(first).unwrap_err().is_corruption());
    }
}

/// A log of one core that was opened twice: each time it got one record.
#[test]
fn the_records_of_an_incarnation_are_those_of_its_segments() {
    let vfs: Arc<dyn Vfs> = Arc::new(SimDisk::new(1));
    for key in [b"first", b"other"] {
        let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
        let mut manager = PerCoreWalManager::new(config).unwrap();
        manager.writer(0).append_put(key, b"value").unwrap();
        manager.sync_all().unwrap();
    }
    let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[]).unwrap();
    let incarnations: Vec<_> = survey.incarnations(|_| Sequence::ZERO).into_iter().collect();
    let keys = |incarnation| {
        let mut keys = Vec::new();
        let cursor = CoreCursor::of_incarnation(&vfs, &survey, CoreId(0), span(0, 0..=9), incarnation);
        cursor
            .replay(|record, _| {
                if let Record::Put { key, .. } = record {
                    keys.push(key.to_vec());
                }
                Ok(())
            })
            .unwrap();
        keys
    };
    let [first, other] = incarnations[..] else { panic!("{incarnations:?}") };
    assert_eq!((keys(first), keys(other)), (vec![b"first".to_vec()], vec![b"other".to_vec()]));
    assert!(keys(Incarnation(other.0 + 1)).is_empty());
}

/// Whoever waits for a recovery sees it go on to the end, whatever the frames are like.
#[test]
fn every_byte_that_is_read_is_counted() {
    for len in [5, usize::try_from(COUNT_EVERY).unwrap() / 3, usize::try_from(COUNT_EVERY).unwrap() * 3] {
        let vfs: Arc<dyn Vfs> = Arc::new(SimDisk::new(1));
        let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::clone(&vfs));
        let mut manager = PerCoreWalManager::new(config).unwrap();
        for _ in 0..7 {
            manager.writer(0).append_put(b"key", &vec![1; len]).unwrap();
            manager.sync_all().unwrap();
        }
        let survey = Survey::up_to(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[]).unwrap();
        let bytes = survey.cores[0].segments[0].len - survey.cores[0].segments[0].start;
        let read = replayed_by(|watch| {
            let cursor = CoreCursor::new(&vfs, &survey, CoreId(0), span(0, 0..=9)).watched(watch);
            assert_eq!(cursor.replay(|_, _| Ok(())).unwrap().reached.bytes, bytes);
        });
        let surveyed = replayed_by(|watch| {
            Survey::watched(&vfs, Path::new("/wal"), &|_| Sequence::ZERO, &[], watch).unwrap();
        });
        assert_eq!((read, surveyed), (bytes, bytes), "values of {len} bytes");
    }
}
