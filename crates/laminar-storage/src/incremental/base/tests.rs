use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ids::CoreId;
use crate::incremental::merge::{Merge, MergePolicy};
use crate::incremental::{
    CheckpointConfig, CheckpointReader, IncrementalCheckpointManager, IncrementalCheckpointMetadata,
    ManagerOptions,
};
use crate::vfs::sim::SimDisk;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A range for every few records.
fn options(overlay_budget: usize) -> ManagerOptions {
    let merge = MergePolicy { small_files: 0, small_bytes: 0, run: 3, range_bytes: 1500 };
    ManagerOptions { overlay_budget, merge }
}

fn open(disk: &SimDisk, overlay_budget: usize) -> IncrementalCheckpointManager {
    let config = CheckpointConfig::new(Path::new("/c")).with_max_retained(2);
    IncrementalCheckpointManager::with_options(config, Arc::new(disk.clone()), options(overlay_budget))
        .unwrap()
}

fn key(n: u16) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

/// Applies changes to the manager and to the model, and makes a checkpoint.
fn step(
    manager: &mut IncrementalCheckpointManager,
    model: &mut Model,
    changes: &[(u16, Option<u8>)],
) -> IncrementalCheckpointMetadata {
    for (n, value) in changes {
        let value = value.map(|byte| vec![byte; 100]);
        manager.apply(CoreId(0), &key(*n), value.as_deref()).unwrap();
        match value {
            Some(value) => drop(model.insert(key(*n), value)),
            None => drop(model.remove(&key(*n))),
        }
    }
    manager.create_checkpoint(0).unwrap()
}

/// The checkpoint has this state, read in every way; its ranges have no key in common.
fn check(disk: &SimDisk, manager: &IncrementalCheckpointManager, model: &Model) {
    let metadata = manager.find_latest_checkpoint().unwrap().unwrap();
    let dir = metadata.checkpoint_path(Path::new("/c"));
    let reader = CheckpointReader::open(disk, &dir).unwrap();
    reader.verify().unwrap();
    assert_eq!(metadata.key_count, model.len() as u64);
    assert_eq!(&reader.load().unwrap().into_iter().collect::<Model>(), model, "as a merge");
    let mut by_file = Model::new();
    let mut ranges = Vec::new();
    for file in reader.files(CoreId(0)) {
        let mut cursor = file.cursor();
        let mut keys = Vec::new();
        while cursor.advance().unwrap() {
            let record = cursor.current().unwrap();
            keys.push(record.key.to_vec());
            match record.value {
                Some(value) => drop(by_file.insert(record.key.to_vec(), value.to_vec())),
                None => drop(by_file.remove(record.key)),
            }
        }
        if is_range(file.meta()) {
            assert_eq!(file.meta().tombstones, 0);
            ranges.push((keys[0].clone(), keys[keys.len() - 1].clone()));
        }
    }
    assert_eq!(&by_file, model, "file by file");
    ranges.sort();
    assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
    for n in 0..400 {
        assert_eq!(manager.get(&key(n)).unwrap().as_ref(), model.get(&key(n)), "key {n}");
    }
}

/// How many ranges and deltas there are, and how many ranges this checkpoint wrote.
fn counts(metadata: &IncrementalCheckpointMetadata) -> (usize, usize, usize) {
    let ranges = metadata.files.iter().filter(|file| is_range(file)).count();
    let written = metadata.files_written().filter(|file| is_range(file)).count();
    (ranges, metadata.files.len() - ranges, written)
}

/// So many keys, in a first checkpoint.
fn filled(disk: &SimDisk, keys: u16) -> (IncrementalCheckpointManager, Model, IncrementalCheckpointMetadata) {
    let (mut manager, mut model) = (open(disk, 1 << 20), Model::new());
    let all: Vec<_> = (0..keys).map(|n| (n, Some(1))).collect();
    let first = step(&mut manager, &mut model, &all);
    (manager, model, first)
}

#[test]
fn a_large_state_is_written_in_ranges_and_they_are_renewed_a_few_at_a_time() {
    let disk = SimDisk::new(1);
    let (mut manager, mut model, first) = filled(&disk, 400);
    let (ranges, deltas, written) = counts(&first);
    assert!(ranges > 20 && deltas == 0 && written == ranges, "{ranges} {deltas}");
    check(&disk, &manager, &model);
    let live = first.size_bytes;
    let (mut quiet, mut some, mut largest) = (0, 0, 0);
    for round in 0..200_u16 {
        let changes: Vec<_> =
            (0..8).map(|n| ((round * 8 + n) * 7 % 400, Some(round.to_le_bytes()[0]))).collect();
        let metadata = step(&mut manager, &mut model, &changes);
        check(&disk, &manager, &model);
        let (ranges, deltas, written) = counts(&metadata);
        assert!(written < ranges, "never all at once");
        quiet += usize::from(written == 0);
        some += usize::from(written > 0);
        largest = largest.max(metadata.size_bytes);
        assert!(deltas < 30, "{deltas} deltas");
        assert!(metadata.written_bytes() < live / 3, "{} of {live}", metadata.written_bytes());
    }
    assert!(quiet > 5 && some > 100, "{quiet} quiet, {some} not");
    assert!(largest < live * 9 / 5, "{largest} of {live}");
}

#[test]
fn a_state_that_is_deleted_range_by_range_leaves_nothing() {
    let disk = SimDisk::new(1);
    let (mut manager, mut model, _) = filled(&disk, 300);
    for from in (0..300).step_by(6).rev() {
        let gone: Vec<_> = (from..from + 6).map(|n| (n, None)).collect();
        step(&mut manager, &mut model, &gone);
        check(&disk, &manager, &model);
    }
    assert!(model.is_empty());
    let metadata = manager.find_latest_checkpoint().unwrap().unwrap();
    assert_eq!((metadata.key_count, metadata.files.len()), (0, 0));
}

#[test]
fn ranges_with_a_key_in_common_are_damage() {
    let disk = SimDisk::new(1);
    let mut manager = open(&disk, 1 << 20);
    let all: Vec<_> = (0..100).map(|n| (n, Some(1))).collect();
    let mut files = Vec::new();
    // The second is written anew, so that neither knows of the other.
    for _ in 0..2 {
        step(&mut manager, &mut Model::new(), &all);
        files.push(Arc::clone(&manager.chains[0][0].reader));
    }
    let mut merge = Merge::new(sources(files.iter(), StateFileReader::cursor)).unwrap();
    let error = loop {
        match merge.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("nothing was said"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("keys in common"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever is changed, spilled, and opened again.
    #[test]
    fn ranges_and_deltas_are_the_state(
        steps in prop::collection::vec(
            (prop::collection::vec((0_u16..400, prop::option::of(any::<u8>())), 0..60), any::<bool>()), 1..40),
        filled in any::<bool>(),
        overlay_budget in prop_oneof![Just(2000_usize), Just(1 << 20)],
    ) {
        let disk = SimDisk::new(1);
        let mut manager = open(&disk, overlay_budget);
        let mut model = Model::new();
        if filled {
            let all: Vec<_> = (0..400).map(|n| (n, Some(9))).collect();
            step(&mut manager, &mut model, &all);
        }
        for (changes, reopen) in &steps {
            step(&mut manager, &mut model, changes);
            check(&disk, &manager, &model);
            if *reopen {
                drop(manager);
                manager = open(&disk, overlay_budget);
            }
        }
    }
}
