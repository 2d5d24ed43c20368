//! A store whose state is large enough to be kept in ranges: recovered, laid out anew, saved and compared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::sync::Arc;

use laminar_storage::incremental::{CheckpointReader, IncrementalCheckpointError, diff};
use laminar_storage::vfs::sim::SimDisk;
use laminar_storage::{
    CoreStore, DigestCheck, Epoch, Opened, Router, Settings, StateReader, Store, StoreBuilder,
};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

const KEYS: u32 = 30_000;

fn builder(disk: &SimDisk, cores: usize) -> StoreBuilder {
    let settings = Settings {
        state_limit_bytes: 64 << 20,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        max_retained: 2,
        ..Settings::default()
    };
    Store::builder("/state").cores(cores).settings(settings).vfs(Arc::new(disk.clone()))
}

fn seal(store: &Store, cores: &mut [CoreStore]) -> Epoch {
    let epoch = cores.iter_mut().map(|core| core.seal_epoch().unwrap()).last().unwrap();
    store.wait_durable(epoch).unwrap();
    epoch
}

fn contents(cores: &[CoreStore]) -> State {
    cores.iter().flat_map(CoreStore::iter).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

/// Changes `keys`: two of three get another value, the third is deleted.
fn change(cores: &mut [CoreStore], model: &mut State, keys: impl Iterator<Item = u32>, round: u32) {
    for n in keys {
        // Neither in the order of their numbers nor of their hashes.
        let key = n.wrapping_mul(0x9e37_79b9).to_be_bytes().to_vec();
        let own = Router::default().route(&key, cores.len());
        if n % 3 == round % 3 {
            cores[own].delete(&key).unwrap();
            model.remove(&key);
        } else {
            let value = format!("{round:>90}{n}").into_bytes();
            cores[own].put(&key, &value).unwrap();
            model.insert(key, value);
        }
    }
}

fn check(opened: &Opened, model: &State) {
    assert!(opened.report.digest != DigestCheck::NotStored, "{:?}", opened.report.digest);
    assert_eq!(&contents(&opened.cores), model);
}

#[test]
fn a_state_in_ranges_is_recovered_laid_out_anew_saved_and_compared() {
    let disk = SimDisk::new(1);
    let mut model = State::new();
    let mut opened = builder(&disk, 2).open().unwrap();
    change(&mut opened.cores, &mut model, 0..KEYS, 9);
    seal(&opened.store, &mut opened.cores);
    let first = opened.store.checkpoint().unwrap();
    let (mut renewed, mut largest) = (0, 0);
    for round in 0..30_u32 {
        let from = round * 700 % KEYS;
        change(&mut opened.cores, &mut model, (from..from + 900).map(|n| n % KEYS), round);
        seal(&opened.store, &mut opened.cores);
        let made = opened.store.checkpoint().unwrap();
        let dir = format!("/state/checkpoints/checkpoint_{:016x}", made.id.get());
        let reader = CheckpointReader::open(&disk, dir.as_ref()).unwrap();
        let is_new_range =
            |name: &String| name.contains(&format!("{:016x}", made.id.get())) && name.contains("-8");
        renewed += usize::from(reader.metadata().sst_files.iter().any(is_new_range));
        largest = largest.max(made.bytes_written);
        if round % 10 == 9 {
            reader.verify().unwrap();
            assert_eq!(&reader.load().unwrap().into_iter().collect::<State>(), &model);
        }
    }
    assert!(renewed > 10, "{renewed} checkpoints renewed ranges");
    assert!(largest < first.bytes_written / 2, "{largest} of {}", first.bytes_written);

    // The power fails; the log has one more epoch.
    opened.store.savepoint("/saved").unwrap();
    change(&mut opened.cores, &mut model, 0..500, 31);
    let epoch = seal(&opened.store, &mut opened.cores);
    let cut = disk.snapshot().flushed().mount();
    drop(opened);
    let reader = StateReader::open_with("/state", Arc::new(cut.clone())).unwrap();
    assert_eq!(reader.report().recovery_point, epoch);
    for cores in [2, 3, 1] {
        let opened = builder(&cut, cores).open().unwrap();
        check(&opened, &model);
    }
    // What the last epoch changed, and nothing else.
    let saved = CheckpointReader::open(&cut, "/saved".as_ref()).unwrap();
    let before: State = saved.load().unwrap().into_iter().collect();
    let newest = StateReader::open_with("/state", Arc::new(cut)).unwrap();
    let summary = diff(&saved, newest.state(), |_| Ok::<_, IncrementalCheckpointError>(())).unwrap();
    let changed =
        before.iter().filter(|(key, value)| model.get(*key).is_some_and(|now| now != *value)).count();
    assert_eq!(summary.changed, changed as u64);
    assert_eq!(summary.removed, before.keys().filter(|key| !model.contains_key(*key)).count() as u64);
}
