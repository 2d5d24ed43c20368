//! Damage to a savepoint and to a store that began with it, which have no files of their own for the most part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_sim::store::small_settings;
use laminar_storage::incremental::CheckpointReader;
use laminar_storage::vfs::sim::{SimDisk, Snapshot};
use laminar_storage::{CoreStore, Opened, StateReader, Store, StoreBuilder, StoreError};

const SAVED: &str = "/saved";
const FORK: &str = "/fork";
/// Of so many bits one is flipped, and of so many lengths one is tried.
const STRIDE: usize = 101;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn builder(dir: &str, disk: &SimDisk) -> StoreBuilder {
    Store::builder(dir).cores(2).settings(small_settings()).vfs(Arc::new(disk.clone()))
}

fn contents(cores: &[CoreStore]) -> State {
    cores.iter().flat_map(CoreStore::iter).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

/// Puts keys on both cores, and waits until they are durable.
fn work(store: &Store, cores: &mut [CoreStore], round: u16) {
    let mut last = None;
    for core in cores {
        for n in 0..40_u16 {
            let key = [core.core_id().0.to_be_bytes(), ((n + round) % 50).to_be_bytes()].concat();
            core.put(&key, &[u8::try_from(round).unwrap(); 60]).unwrap();
        }
        last = Some(core.seal_epoch().unwrap());
    }
    store.wait_durable(last.unwrap()).unwrap();
}

/// A savepoint, and a store that began with it, went on, and was killed after an acknowledgement.
struct Subject {
    disk: Snapshot,
    saved: State,
    forked: State,
}

impl Subject {
    fn new() -> Self {
        let disk = SimDisk::new(5);
        disk.set_tracing(false);
        let Opened { store, mut cores, .. } = builder("/store", &disk).open().unwrap();
        (0..3).for_each(|round| work(&store, &mut cores, round));
        store.checkpoint().unwrap();
        work(&store, &mut cores, 3);
        store.savepoint(SAVED).unwrap();
        let saved = contents(&cores);
        drop(cores);
        store.close().unwrap();

        let Opened { store, mut cores, .. } = builder(FORK, &disk).from_savepoint(SAVED).open().unwrap();
        assert_eq!(contents(&cores), saved);
        work(&store, &mut cores, 20);
        store.checkpoint().unwrap();
        work(&store, &mut cores, 30);
        let forked = contents(&cores);
        assert_ne!(forked, saved);
        let killed = disk.snapshot().restart().snapshot();
        Self { disk: killed, saved, forked }
    }

    /// The files of one of the two directories.
    fn files(&self, dir: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let disk = self.disk.restart();
        let files = disk.files().into_iter().filter(|(path, _)| Path::new("/").join(path).starts_with(dir));
        files.map(|(path, _)| (path.clone(), disk.read_file(&path).unwrap())).collect()
    }

    /// Looks at everything there is, and counts errors. Whatever is not one is the state that must be there.
    fn judge(&self, disk: &SimDisk, what: &str) -> usize {
        let begun = builder("/second", disk).from_savepoint(SAVED).open().map(|it| contents(&it.cores));
        let read = StateReader::open_with(FORK, Arc::new(disk.clone()))
            .map(|it| it.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect());
        let opened = builder(FORK, disk).open().map(|it| contents(&it.cores));
        assert_eq!(read.is_ok(), opened.is_ok(), "{what}: {read:?} {opened:?}");
        let told = [(begun, &self.saved), (read, &self.forked), (opened, &self.forked)]
            .into_iter()
            .map(|(found, expected)| same_or_told(found, expected, what));
        told.filter(|told| *told).count()
    }
}

/// Whether an error said so, which names a path.
fn same_or_told(found: Result<State, StoreError>, expected: &State, what: &str) -> bool {
    match found {
        Ok(found) => {
            assert!(found == *expected, "{what}: a wrong state of {} keys", found.len());
            false
        }
        Err(error) => {
            assert!(error.detail().path().is_some(), "{what}: {error}");
            true
        }
    }
}

/// Whatever was done to a file of a savepoint or a fork, both are what they were, or there is an error; and the
/// check that is meant for savepoints finds what a fork would stumble over.
#[test]
fn damage_to_a_savepoint_or_a_fork_is_an_error_or_harmless() {
    let subject = Subject::new();
    assert_eq!(subject.judge(&subject.disk.restart(), "nothing"), 0);
    let (mut cases, mut told) = (0, 0);
    for dir in [SAVED, FORK] {
        for (path, bytes) in subject.files(dir) {
            for (what, damaged) in damages(&bytes) {
                let disk = subject.disk.restart();
                match damaged {
                    Some(bytes) => disk.overwrite(&path, &bytes).unwrap(),
                    None => disk.remove(&path).unwrap(),
                }
                let what = format!("{}, {what}", path.display());
                let passed = dir == SAVED && verified(&disk);
                let errors = subject.judge(&disk, &what);
                assert!(!passed || errors == 0, "{what} was not found by the check");
                cases += 1;
                told += usize::from(errors > 0);
            }
        }
    }
    println!("{cases} cases, {told} told");
    assert!(cases > 2000 && told > cases / 2, "{cases} cases, {told} told");
}

fn verified(disk: &SimDisk) -> bool {
    CheckpointReader::open(disk, Path::new(SAVED)).and_then(|reader| reader.verify()).is_ok()
}

fn damages(bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let flip = |bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        (format!("bit {bit}"), Some(bytes))
    };
    let cut = |len: usize| (format!("cut to {len}"), Some(bytes[..len].to_vec()));
    let bits = (0..bytes.len() * 8).step_by(STRIDE).map(flip);
    let cuts = (0..bytes.len()).step_by(STRIDE).map(cut);
    bits.chain(cuts).chain([("removed".into(), None)]).collect()
}
