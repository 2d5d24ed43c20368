use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::ids::{CheckpointId, CoreId};
use crate::incremental::layout::EntryName;
use crate::incremental::{CheckpointConfig, IncrementalCheckpointManager};
use crate::vfs::sim::SimDisk;

type Told = Vec<(char, Vec<u8>, Vec<u8>, Vec<u8>)>;

fn told<'a>(
    before: impl Into<Contents<'a>>,
    after: impl Into<Contents<'a>>,
) -> Result<(Told, DiffSummary), IncrementalCheckpointError> {
    let mut told = Vec::new();
    let summary = diff(before, after, |difference| {
        told.push(match difference {
            Difference::Added { key, value } => ('+', key.to_vec(), Vec::new(), value.to_vec()),
            Difference::Changed { key, before, after } => {
                ('~', key.to_vec(), before.to_vec(), after.to_vec())
            }
            Difference::Removed { key, value } => ('-', key.to_vec(), value.to_vec(), Vec::new()),
        });
        Ok::<_, IncrementalCheckpointError>(())
    })?;
    Ok((told, summary))
}

/// The same by looking every key up.
fn expected(before: &StateMap, after: &StateMap) -> (Told, DiffSummary) {
    let keys: BTreeMap<&[u8], ()> = before.iter().chain(after.iter()).map(|(key, _)| (key, ())).collect();
    let (mut told, mut summary) = (Vec::new(), DiffSummary::default());
    for key in keys.into_keys() {
        match (before.get(key), after.get(key)) {
            (None, Some(value)) => {
                summary.added += 1;
                told.push(('+', key.to_vec(), Vec::new(), value.to_vec()));
            }
            (Some(value), None) => {
                summary.removed += 1;
                told.push(('-', key.to_vec(), value.to_vec(), Vec::new()));
            }
            (Some(before), Some(after)) if before != after => {
                summary.changed += 1;
                told.push(('~', key.to_vec(), before.to_vec(), after.to_vec()));
            }
            _ => {}
        }
    }
    (told, summary)
}

/// Several checkpoints of random changes on so many cores.
fn checkpoints(disk: &SimDisk, dir: &str, cores: u16, seed: u64) -> Vec<CheckpointReader> {
    let config = CheckpointConfig::new(Path::new(dir)).with_max_retained(9);
    let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
    manager.set_core_count(usize::from(cores)).unwrap();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    for _ in 0..4 {
        for _ in 0..next(40) {
            let key = next(60).to_string().into_bytes();
            let core = CoreId(u16::from(key[0]) % cores);
            let value = (next(3) > 0).then(|| next(4).to_string().into_bytes());
            manager.apply(core, &key, value.as_deref()).unwrap();
        }
        manager.create_checkpoint(0).unwrap();
    }
    let open = |id| {
        let dir = EntryName::Checkpoint(CheckpointId(id)).path(Path::new(dir));
        CheckpointReader::open(disk, &dir).unwrap()
    };
    (1..=4).map(open).collect()
}

#[test]
fn the_difference_of_any_two_states_is_that_of_their_maps() {
    let mut different = 0;
    for seed in 0..8 {
        let disk = SimDisk::new(seed);
        let mut readers = checkpoints(&disk, "/a", 1, seed);
        readers.extend(checkpoints(&disk, "/b", 3, seed + 100));
        let states: Vec<_> = readers.iter().map(|reader| reader.load().unwrap()).collect();
        for (before, before_state) in readers.iter().zip(&states) {
            for (after, after_state) in readers.iter().zip(&states) {
                let expected = expected(before_state, after_state);
                different += expected.0.len();
                assert_eq!(told(before, after).unwrap(), expected);
                assert_eq!(told(before_state, after).unwrap(), expected);
                assert_eq!(told(before, after_state).unwrap(), expected);
                assert_eq!(told(before_state, after_state).unwrap(), expected);
                assert_eq!(expected.1.is_equal(), before_state == after_state);
            }
        }
    }
    assert!(different > 1000, "{different}");
}

#[test]
fn damage_is_an_error_and_the_first_error_of_the_caller_ends_it() {
    let disk = SimDisk::new(5);
    let readers = checkpoints(&disk, "/a", 1, 5);
    let other = checkpoints(&disk, "/b", 1, 6);
    let stopped = diff(&readers[3], &other[3], |_| {
        Err(IncrementalCheckpointError::invalid(crate::error::Detail::new("enough")))
    });
    assert!(stopped.unwrap_err().to_string().contains("enough"));
    let file = readers[3].files(CoreId::ZERO)[0].path().to_path_buf();
    // In the first block, behind the header.
    disk.flip_bit(&file, crate::format::state_file::HEADER_LEN as u64 * 8 + 3).unwrap();
    assert!(told(&readers[3], &other[3]).unwrap_err().is_corruption());
    // Of the same checkpoint nothing needs to be read.
    assert!(told(&readers[3], &readers[3]).unwrap().1.is_equal());
}
