//! A power cut after any operation of a restore: under its name is nothing or all of it, and the same call goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;

use laminar_backup_tests::stores::{Checkpoints, State, quick, target, writer};
use laminar_storage::backup::object_store::ObjectStore;
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::restore_with;
use laminar_storage::incremental::{CheckpointReader, IncrementalCheckpointError};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};

const DIR: &str = "/restored";

fn load(disk: &SimDisk) -> State {
    let reader = CheckpointReader::open(disk, Path::new(DIR)).unwrap();
    reader.verify().unwrap();
    let mut state = State::new();
    for core in reader.cores() {
        reader
            .for_each_live(core, |key, value| {
                state.insert(key.to_vec(), value.to_vec());
                Ok::<_, IncrementalCheckpointError>(())
            })
            .unwrap();
    }
    state
}

#[test]
fn a_power_cut_after_any_operation_of_a_restore_leaves_it_or_nothing_and_it_goes_on() {
    let checkpoints = Checkpoints::of_size(2, 40, 40);
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    writer(&place, 1).back_up(&checkpoints.open(1), &[("job.json", b"what to do")]).unwrap();
    let target = target(&place);
    let disk = SimDisk::new(5);
    disk.record(true);
    restore_with(&disk, &target, None, Path::new(DIR), &quick(), |_| {}).unwrap();
    let done = disk.ops();
    assert_eq!(load(&disk), *checkpoints.state(1));
    let few = ImagePolicy { exhaustive_bits: 5, random: 5, torn_cuts: 1, ..ImagePolicy::default() };
    let (mut absent, mut complete, mut kept) = (0, 0, 0);
    for snapshot in disk.history() {
        for image in snapshot.images(&few) {
            let disk = image.mount();
            let label = format!("op {} image {:?}", snapshot.op(), image.id());
            if disk.kind(Path::new(DIR)).unwrap().is_some() {
                complete += 1;
            } else {
                assert!(snapshot.op() < done, "{label}: it was there");
                absent += 1;
                let receipt = restore_with(&disk, &target, None, Path::new(DIR), &quick(), |_| {})
                    .unwrap_or_else(|e| panic!("{label}: {e}"));
                kept += u64::from(receipt.bytes_kept > 0);
            }
            assert_eq!(load(&disk), *checkpoints.state(1), "{label}");
            assert_eq!(disk.read_file("/restored/job.json").unwrap(), b"what to do", "{label}");
        }
    }
    assert!(absent > 20 && complete > 0 && kept > 5, "{absent} {complete} {kept}");
}
