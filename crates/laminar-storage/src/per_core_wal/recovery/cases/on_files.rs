//! The truth table on files: every combination of facts that files can have is a log on a disk, in several ways,
//! and the real survey and the real openings go over it. Some are left by crashes, some by damage, and some by
//! nothing that is known, as a successor that counts the announcement of itself.
//!
//! What is expected is written down here a second time, and not asked of the table.

mod bytes;
mod logs;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tests::all_facts;
use super::{End, Facts, Verdict};
use crate::error::Detail;
use crate::format::segment_header::WalMode;
use crate::ids::Sequence;
use crate::incremental::RecoveryConfig;
use crate::per_core_wal::recovery::identity::SYNCED;
use crate::per_core_wal::recovery::survey::Survey;
use crate::per_core_wal::{
    PerCoreRecoveryManager, PerCoreWalEntry, PerCoreWalError, PerCoreWalManager, RecoveryMode, WalOperation,
};
use crate::vfs::Vfs;
use crate::vfs::sim::{ImageId, SimDisk};
use crate::{Opened, Settings, StateReader, Store, StoreError};
use bytes::{Subject, position, predecessor, subjects};
use logs::{DIR, Kind, Log, Shown, core_id};

thread_local! {
    /// What the table was asked for in this thread, in order.
    static ASKED: RefCell<Vec<Facts>> = const { RefCell::new(Vec::new()) };
}

/// Takes note of facts that the table is asked for.
pub(super) fn note(facts: Facts) {
    ASKED.with_borrow_mut(|asked| asked.push(facts));
}

/// A reason for which no file can have some combinations, and how many these are. No two are about the same one.
struct Impossible {
    because: &'static str,
    count: usize,
    holds: fn(&Facts) -> bool,
}

const IMPOSSIBLE: [Impossible; 3] = [
    Impossible {
        because: "without a header nothing says where the frames have to end, so that their end counts as clean",
        count: 32,
        holds: |facts| !facts.header_sound && facts.end != End::Clean,
    },
    Impossible {
        because: "without a header no frame is read, whatever the last one announces",
        count: 8,
        holds: |facts| !facts.header_sound && facts.end == End::Clean && facts.announced,
    },
    Impossible {
        because: "what announces a successor is itself a frame",
        count: 12,
        holds: |facts| facts.header_sound && facts.announced && !facts.frames,
    },
];

/// The table once more.
fn row(facts: &Facts) -> (char, Verdict) {
    use Verdict::{Cut, Ignore, Refuse, Use};
    let Facts { required, frames, successor, end, announced, .. } = *facts;
    match facts.header_sound {
        true if successor && end == End::Clean => ('A', Use),
        true if successor => ('D', Refuse),
        true if end == End::Damaged => ('E', Refuse),
        true if announced => ('F', Refuse),
        true if end == End::Torn => ('C', Cut),
        true => ('B', Use),
        false if required => ('J', Refuse),
        false if frames => ('I', Refuse),
        false if successor => ('H', Refuse),
        false => ('G', Ignore),
    }
}

#[test]
fn every_combination_is_opened_on_files_of_one_core() {
    every_combination(Kind { cores: 1, mode: WalMode::Plain }, 1255);
}

#[test]
fn every_combination_is_opened_on_files_of_two_cores() {
    every_combination(Kind { cores: 2, mode: WalMode::Plain }, 1255);
}

#[test]
fn every_combination_is_opened_on_files_of_one_core_of_a_store() {
    every_combination(Kind { cores: 1, mode: WalMode::Epochs }, 1255);
}

#[test]
fn every_combination_is_opened_on_files_of_two_cores_of_a_store() {
    every_combination(Kind { cores: 2, mode: WalMode::Epochs }, 1255);
}

/// Opens so many logs.
fn every_combination(kind: Kind, logs: usize) {
    let mut built = Vec::new();
    subjects(kind, |subject| {
        check(&subject);
        built.push(subject.facts);
    });
    assert_eq!(built.len(), logs, "{kind:?}: there are others than before");
    let mut possible = 0;
    for facts in all_facts() {
        let why: Vec<_> = IMPOSSIBLE.iter().filter(|reason| (reason.holds)(&facts)).collect();
        let logs = built.iter().filter(|built| **built == facts).count();
        match why[..] {
            [] => assert!(logs > 0, "{kind:?}: no log has {facts:?}"),
            [reason] => assert_eq!(logs, 0, "{facts:?} is there, although {}", reason.because),
            _ => panic!("{facts:?} is counted more than once"),
        }
        possible += usize::from(logs > 0);
    }
    for reason in &IMPOSSIBLE {
        let facts = all_facts().into_iter().filter(reason.holds);
        assert_eq!(facts.count(), reason.count, "{}", reason.because);
    }
    let impossible: usize = IMPOSSIBLE.iter().map(|reason| reason.count).sum();
    assert_eq!((possible, impossible, possible + impossible), (44, 52, 96), "{kind:?}");
}

/// Found by building these logs: without `CURRENT` and with no header that can be read, nothing says whose log it is, so
/// that no frame in it could be checked. It was taken for one that was never begun, and removed with its records.
#[test]
fn a_log_without_current_and_header_is_not_taken_for_an_empty_one() {
    for mode in [WalMode::Plain, WalMode::Epochs] {
        for cores in [1, 2] {
            let kind = Kind { cores, mode };
            let mut log = Log::new(kind);
            log.begin_with_frames(2);
            let before = dump(&log.disk);
            let files = before.keys().filter(|path| path.extension().is_some_and(|end| end == "log"));
            for path in files {
                log.disk.flip_bit(Path::new("/").join(path), 100).unwrap();
            }
            log.disk.remove(Path::new(DIR).join("CURRENT")).unwrap();
            let damaged = dump(&log.disk);
            let config = kind.config(&vfs(&log.disk));
            let error = PerCoreWalManager::new(config).unwrap_err();
            assert!(error.to_string().contains("case I"), "{kind:?}: {error}");
            let error = StateReader::open_with("/store", vfs(&log.disk)).unwrap_err();
            assert!(error.to_string().contains("case I"), "{kind:?}: {error}");
            assert!(dump(&log.disk) == damaged, "{kind:?}: something was changed");
        }
    }
}

fn check(subject: &Subject) {
    let (letter, verdict) = row(&subject.facts);
    let survey = derived(subject);
    // A segment that never came to be is ignored, unless the one before it says that it was there.
    let missed = verdict == Verdict::Ignore && subject.announced;
    if missed {
        return is_refused(subject, 'F', &predecessor(subject));
    }
    if verdict == Verdict::Refuse {
        return is_refused(subject, letter, &subject.path);
    }
    let survey = survey.unwrap_or_else(|error| panic!("{}: {error}", subject.what));
    judged_as(subject, letter, verdict, &survey);
    let records = expected(subject, verdict);
    is_read(subject, &records);
    goes_on_as_log(subject, verdict, &records);
    goes_on_as_store(subject, &records);
}

fn vfs(disk: &SimDisk) -> Arc<dyn Vfs> {
    Arc::new(disk.clone())
}

/// Surveys the log in both ways; the facts must be those that it was made for.
fn derived(subject: &Subject) -> Result<Survey, PerCoreWalError> {
    let (vfs, dir) = (vfs(&subject.log.disk), Path::new(DIR));
    // The cores in order, each from its newest segment back. All others are as long as this one.
    let segments = subject.log.segments().len();
    let before = segments * subject.kind.core() + (segments - 1 - position(subject));
    let check = |survey: Result<Survey, PerCoreWalError>| {
        let facts = ASKED.take().get(before).copied();
        assert_eq!(facts, Some(subject.facts), "{}: {:?}", subject.what, survey.as_ref().err());
        survey
    };
    ASKED.take();
    let without_checkpoints = check(Survey::up_to(&vfs, dir, &|_| Sequence::ZERO, &[]));
    let whole = check(Survey::whole(&vfs, dir, &[]));
    assert_eq!(whole.is_ok(), without_checkpoints.is_ok(), "{}", subject.what);
    whole
}

fn judged_as(subject: &Subject, letter: char, verdict: Verdict, survey: &Survey) {
    let segments = || survey.cores.iter().flat_map(|log| &log.segments);
    let found = segments().find(|segment| segment.path == subject.path);
    let file_len = subject.log.disk.read_file(&subject.path).unwrap().len() as u64;
    let Some(segment) = found else {
        assert_eq!((letter, verdict), ('G', Verdict::Ignore), "{}", subject.what);
        return assert_eq!(survey.leftovers, std::slice::from_ref(&subject.path), "{}", subject.what);
    };
    let dropped = if verdict == Verdict::Cut { file_len - segment.len } else { 0 };
    assert_eq!((segment.case, segment.dropped), (letter, dropped), "{}", subject.what);
    assert_eq!(verdict == Verdict::Cut, dropped > 0, "{}", subject.what);
}

/// The records that count: all that were written, but those of a segment that is ignored.
fn expected(subject: &Subject, verdict: Verdict) -> Vec<Shown> {
    let counts = |path: &PathBuf| verdict != Verdict::Ignore || *path != subject.path;
    let written = subject.log.written.iter().filter(|(path, _)| counts(path));
    written.map(|(_, shown)| shown.clone()).collect()
}

/// Core by core. The order between cores is not what is looked at here.
fn by_core(mut records: Vec<Shown>) -> Vec<Shown> {
    records.sort_by_key(|(core, ..)| *core);
    records
}

fn shown(entries: Vec<PerCoreWalEntry>) -> Vec<Shown> {
    by_core(entries.into_iter().map(|entry| (entry.core_id, entry.epoch, entry.operation)).collect())
}

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn state_of(records: &[Shown]) -> State {
    let put = |(_, _, operation): &Shown| match operation {
        WalOperation::Put { key, value } => Some((key.clone(), value.clone())),
        _ => None,
    };
    records.iter().filter_map(put).collect()
}

fn owned<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> State {
    pairs.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// All files of the log, and what is in them.
fn dump(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let in_log = disk.files().into_iter().filter(|(path, _)| path.starts_with(DIR.trim_start_matches('/')));
    let files: BTreeMap<_, _> = in_log
        .map(|(path, _)| {
            let bytes = disk.read_file(Path::new("/").join(&path)).unwrap();
            (path, bytes)
        })
        .collect();
    assert!(!files.is_empty());
    files
}

fn recovery(subject: &Subject, disk: &SimDisk, mode: RecoveryMode) -> PerCoreRecoveryManager {
    let config = RecoveryConfig::new(Path::new("/store/checkpoints"), Path::new(DIR)).with_mode(mode);
    PerCoreRecoveryManager::new(subject.kind.config(&vfs(disk)), config)
}

fn store(subject: &Subject, disk: &SimDisk) -> Result<Opened, StoreError> {
    let settings = Settings {
        segment_bytes: 4096,
        preallocate_bytes: 0,
        state_limit_bytes: 1 << 24,
        ring_capacity: 64,
        ..Settings::default()
    };
    Store::builder("/store").cores(subject.kind.cores).settings(settings).vfs(vfs(disk)).open()
}

/// An opening of any kind, which is to fail.
type Opening = fn(&Subject, &SimDisk) -> Result<(), Detail>;

fn log<T>(result: Result<T, PerCoreWalError>) -> Result<(), Detail> {
    result.map(drop).map_err(|error| {
        assert!(error.is_corruption(), "{error}");
        error.detail().clone()
    })
}

fn of_store<T>(result: Result<T, StoreError>) -> Result<(), Detail> {
    result.map(drop).map_err(|error| {
        assert!(error.is_corruption(), "{error}");
        error.detail().clone()
    })
}

const OPENINGS: [Opening; 8] = [
    |_, disk| log(Survey::whole(&vfs(disk), Path::new(DIR), &[])),
    |subject, disk| log(recovery(subject, disk, RecoveryMode::AllSynced).recover_wal_only()),
    |subject, disk| log(recovery(subject, disk, RecoveryMode::AllSynced).recover()),
    |subject, disk| log(recovery(subject, disk, RecoveryMode::CompleteEpochs).recover()),
    |subject, disk| log(recovery(subject, disk, RecoveryMode::AllSynced).repair_all_segments()),
    |subject, disk| log(PerCoreWalManager::new(subject.kind.config(&vfs(disk)))),
    |_, disk| of_store(StateReader::open_with("/store", vfs(disk))),
    |subject, disk| of_store(store(subject, disk)),
];

/// Every opening says which case of which segment it is, and changes nothing of the log.
fn is_refused(subject: &Subject, letter: char, path: &Path) {
    let disk = &subject.log.disk;
    let before = dump(disk);
    for (number, opening) in OPENINGS.iter().enumerate() {
        let what = format!("{}, opening {number}", subject.what);
        let error = opening(subject, disk).expect_err(&what);
        let said = error.what().starts_with(&format!("case {letter}: "));
        assert!(said, "{what}: {}, and not case {letter}", error.what());
        assert_eq!(error.path(), Some(path), "{what}");
        assert_eq!(error.core(), Some(core_id(subject.kind)), "{what}");
        assert!(dump(disk) == before, "{what}: something was changed");
    }
    // Nor is anything under way that a power cut would decide about, but what was never synced.
    let [before, after] = [before, dump(&power_cut(disk))].map(|mut files| {
        files.retain(|path, _| !path.ends_with(SYNCED));
        files
    });
    assert!(after == before, "{}: something was changed", subject.what);
}

fn power_cut(disk: &SimDisk) -> SimDisk {
    disk.snapshot().image(&ImageId::default()).mount()
}

/// Everybody who only reads finds exactly these records, and changes nothing.
fn is_read(subject: &Subject, records: &[Shown]) {
    let (disk, what) = (&subject.log.disk, &subject.what);
    let before = dump(disk);
    let (records, state) = (by_core(records.to_vec()), state_of(records));
    let reader = |mode| recovery(subject, disk, mode);
    assert!(shown(reader(RecoveryMode::AllSynced).recover_wal_only().unwrap()) == records, "{what}");
    for mode in [RecoveryMode::AllSynced, RecoveryMode::CompleteEpochs] {
        let recovered = reader(mode).recover().unwrap_or_else(|error| panic!("{what}: {mode:?}: {error}"));
        assert!(owned(recovered.state().iter()) == state, "{what}: {mode:?}");
    }
    let reader = StateReader::open_with("/store", vfs(disk)).unwrap();
    assert!(owned(reader.iter()) == state, "{what}: as a store");
    assert!(dump(disk) == before, "{what}: something was changed");
}

/// Opened for writing the log has these records; with a new one on each core, a power cut takes neither.
fn goes_on_as_log(subject: &Subject, verdict: Verdict, records: &[Shown]) {
    let (disk, what) = (subject.log.disk.snapshot().restart(), &subject.what);
    let mut manager = PerCoreWalManager::new(subject.kind.config(&vfs(&disk))).unwrap();
    assert!(shown(manager.merge_segments().unwrap()) == by_core(records.to_vec()), "{what}");
    let swept = disk.read_file(&subject.path).is_err();
    assert_eq!(swept, verdict == Verdict::Ignore, "{what}");
    let mut records = records.to_vec();
    let epoch = manager.epoch();
    for core in 0..subject.kind.cores {
        let (key, value) = (format!("new-{core}").into_bytes(), b"value".to_vec());
        manager.writer(core).append_put(&key, &value).unwrap();
        manager.writer(core).append_epoch_barrier().unwrap();
        records.push((core, epoch, WalOperation::Put { key, value }));
        records.push((core, epoch, WalOperation::EpochBarrier { epoch }));
    }
    manager.sync_all().unwrap();
    let after = power_cut(&disk);
    let reader = |mode| recovery(subject, &after, mode);
    let entries = reader(RecoveryMode::AllSynced).recover_wal_only().unwrap();
    assert!(shown(entries) == by_core(records.clone()), "{what}: afterwards");
    for mode in [RecoveryMode::AllSynced, RecoveryMode::CompleteEpochs] {
        let recovered = reader(mode).recover().unwrap_or_else(|error| panic!("{what}: {mode:?}: {error}"));
        assert!(owned(recovered.state().iter()) == state_of(&records), "{what}: {mode:?}, afterwards");
    }
}

/// The same as a store.
fn goes_on_as_store(subject: &Subject, records: &[Shown]) {
    let (disk, what) = (subject.log.disk.snapshot().restart(), &subject.what);
    let opened = store(subject, &disk).unwrap_or_else(|error| panic!("{what}: as a store: {error}"));
    let Opened { store, mut cores, .. } = opened;
    let mut state = state_of(records);
    assert!(owned(cores.iter().flat_map(|core| core.iter())) == state, "{what}: as a store");
    for core in &mut cores {
        let (key, value) = (format!("new-{}", core.core_id()).into_bytes(), b"value".to_vec());
        core.put(&key, &value).unwrap();
        state.insert(key, value);
    }
    let epochs: Vec<_> = cores.iter_mut().map(|core| core.seal_epoch().unwrap()).collect();
    store.wait_durable(epochs[0]).unwrap();
    let reader = StateReader::open_with("/store", vfs(&power_cut(&disk))).unwrap();
    assert!(owned(reader.iter()) == state, "{what}: as a store, afterwards");
}
