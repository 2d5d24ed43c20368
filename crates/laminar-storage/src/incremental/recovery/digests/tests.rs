#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

use super::*;
use crate::incremental::CoreDigest;

/// The digest of the state that has these keys, each with itself as its value.
fn of(keys: &[&str]) -> StateDigest {
    let each = keys.iter().map(|key| StateDigest::of(key.as_bytes(), Some(key.as_bytes())));
    each.fold(StateDigest::default(), StateDigest::plus)
}

/// A checkpoint of epoch 3 of two cores: `a` on the first, `b` on the second.
fn two_cores(stored: [&[&str]; 2]) -> Comparison {
    let mut metadata = IncrementalCheckpointMetadata::new(1, 3);
    metadata.digests = stored.iter().map(|keys| CoreDigest::from(&of(keys))).collect();
    Comparison::of_checkpoint(&metadata, &[of(&["a"]), of(&["b"])])
}

fn wrong(core: Option<u16>, after: u64, at: u64) -> Result<DigestCheck, Mismatch> {
    Err(Mismatch { core: core.map(CoreId), after: Epoch(after), at: Epoch(at) })
}

#[test]
fn a_checkpoint_alone_is_compared_with_its_own() {
    assert_eq!(two_cores([&["a"], &["b"]]).finish(None), Ok(DigestCheck::Verified));
    assert_eq!(two_cores([&["a"], &["c"]]).finish(None), wrong(Some(1), 3, 3));
    let without = IncrementalCheckpointMetadata::new(1, 3);
    let comparison = Comparison::of_checkpoint(&without, &[of(&["a"]), of(&["b"])]);
    assert_eq!(comparison.finish(None), Ok(DigestCheck::NotStored));
    assert_eq!(Comparison::of_nothing().finish(None), Ok(DigestCheck::NotStored));
}

/// What counts is every core's last barrier, as in opening a store; the epochs named are those between the last one that
/// was right and the one that is not.
#[test]
fn a_wrong_core_is_named_with_the_epochs_between() {
    let mut comparison = two_cores([&["a"], &["b"]]);
    comparison.enter(2, WalMode::Epochs).unwrap();
    comparison.change(1, of(&["c"]));
    comparison.barrier(0, Epoch(4), Some(of(&["a"])));
    comparison.barrier(1, Epoch(4), Some(of(&["b", "c"])));
    assert_eq!(comparison.finish(None), Ok(DigestCheck::Verified));
    comparison.barrier(0, Epoch(5), Some(of(&["a"])));
    comparison.barrier(1, Epoch(5), Some(of(&["b"])));
    assert_eq!(comparison.finish(None), wrong(Some(1), 4, 5));
    comparison.barrier(1, Epoch(6), Some(of(&["b", "c"])));
    assert_eq!(comparison.finish(None), Ok(DigestCheck::Verified));
    comparison.barrier(1, Epoch(7), None);
    assert_eq!(comparison.finish(None), Ok(DigestCheck::NotStored));
}

/// The plain view has records that no barrier closes yet. They are not compared, and what lies before them is.
#[test]
fn records_behind_the_last_barrier_do_not_hide_what_is_before_it() {
    for (stored, expected) in [(of(&["b"]), Ok(DigestCheck::NotStored)), (of(&["c"]), wrong(Some(1), 3, 4))] {
        let mut comparison = two_cores([&["a"], &["b"]]);
        comparison.enter(2, WalMode::Epochs).unwrap();
        comparison.barrier(1, Epoch(4), Some(stored));
        comparison.change(0, of(&["d"]));
        comparison.change(1, of(&["e"]));
        assert_eq!(comparison.finish(None), expected);
    }
}

/// Keys have other cores with another number of them: only the sum says something, and no core is to be named.
#[test]
fn behind_a_resharding_the_sum_is_compared_once_every_core_has_a_barrier() {
    for (stored, expected) in
        [(of(&["a", "b"]), Ok(DigestCheck::Verified)), (of(&["a", "c"]), wrong(None, 3, 4))]
    {
        let mut comparison = two_cores([&["a"], &["b"]]);
        comparison.enter(3, WalMode::Epochs).unwrap();
        comparison.barrier(0, Epoch(4), Some(StateDigest::default()));
        comparison.barrier(2, Epoch(4), Some(stored));
        assert_eq!(comparison.finish(None), Ok(DigestCheck::NotStored));
        comparison.barrier(1, Epoch(4), Some(StateDigest::default()));
        assert_eq!(comparison.finish(None), expected);
    }
    let mut comparison = two_cores([&["a"], &["b"]]);
    comparison.enter(1, WalMode::Epochs).unwrap();
    comparison.barrier(0, Epoch(4), Some(of(&["a"])));
    assert_eq!(comparison.finish(None), wrong(Some(0), 3, 4), "of one core there is no doubt");
}

/// Low-level functions store none and may write any key on any core. What a store left before is compared first.
#[test]
fn a_plain_log_is_not_compared_and_what_is_below_it_is() {
    let mut comparison = two_cores([&["a"], &["b"]]);
    comparison.enter(2, WalMode::Plain).unwrap();
    comparison.change(0, StateDigest::default().minus(of(&["b"])));
    comparison.barrier(0, Epoch(4), None);
    assert_eq!(comparison.finish(None), Ok(DigestCheck::NotStored));
    comparison.enter(2, WalMode::Epochs).unwrap();
    comparison.barrier(0, Epoch(5), Some(StateDigest::default()));
    comparison.barrier(1, Epoch(5), Some(of(&["a"])));
    assert_eq!(comparison.finish(None), Ok(DigestCheck::Verified));
    let mut comparison = two_cores([&["a"], &["c"]]);
    assert_eq!(comparison.enter(2, WalMode::Plain).map(|()| DigestCheck::NotStored), wrong(Some(1), 3, 3));
}

/// A log from its beginning needs no checkpoint to know whose keys are whose.
#[test]
fn of_an_empty_state_every_core_is_known() {
    let mut comparison = Comparison::of_nothing();
    comparison.enter(2, WalMode::Epochs).unwrap();
    comparison.change(1, of(&["a"]));
    comparison.barrier(1, Epoch(1), Some(of(&["b"])));
    assert_eq!(comparison.finish(None), wrong(Some(1), 0, 1));
    comparison.barrier(1, Epoch(2), Some(of(&["a"])));
    assert_eq!(comparison.finish(None), Ok(DigestCheck::Verified));
}

/// What is added up while a state is put together says nothing about keys that the state lost by itself, but for
/// their number.
#[test]
fn a_state_has_as_many_keys_as_were_added_up() {
    let comparison = two_cores([&["a"], &["b"]]);
    assert_eq!(comparison.finish(Some(2)), Ok(DigestCheck::Verified));
    assert_eq!(comparison.finish(Some(1)), wrong(None, 3, 3));
}
