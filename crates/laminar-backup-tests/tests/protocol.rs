//! Two writers of one place, in every order of their requests: the one that was fenced makes no backup count, and
//! takes nothing away from the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::sync::Arc;
use std::thread;

use futures_util::{FutureExt, StreamExt};
use laminar_backup_tests::faults::{Faulty, Turns};
use laminar_backup_tests::stores::{Checkpoints, owner, quick, restored, target, writer};
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::{ObjectStore, ObjectStoreExt};
use laminar_storage::backup::{BackupError, BackupOptions, BackupWriter, list_backups, verify_backup};

fn options() -> BackupOptions {
    quick().keep(1).concurrency(1).chunk_bytes(1 << 20)
}

/// What one writer did: the checkpoints whose backups it was told to count, and how it ended.
#[derive(Debug)]
struct Told {
    counted: Vec<usize>,
    error: Option<BackupError>,
}

fn life(store: Arc<dyn ObjectStore>, incarnation: u64, checkpoints: &Checkpoints, which: &[usize]) -> Told {
    let mut told = Told { counted: Vec::new(), error: None };
    let mut work = || -> Result<(), BackupError> {
        let mut writer = BackupWriter::open(&target(&store), &options(), owner(1, incarnation))?;
        for &at in which {
            writer.back_up(&checkpoints.open(at), &[])?;
            told.counted.push(at);
        }
        Ok(())
    };
    told.error = work().err();
    told
}

/// Runs two lives: `first` begins, and at each of the `switches` (numbers of requests at which both could go on) the other
/// one goes on instead. Returns how often both could go on.
fn run(first: usize, switches: &[usize], checkpoints: &Checkpoints, plans: [&[usize]; 2]) -> usize {
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    // Something that both may refer to, and that both may want to remove.
    BackupWriter::open(&target(&plain), &options(), owner(1, 1))
        .unwrap()
        .back_up(&checkpoints.open(0), &[])
        .unwrap();
    let turns = Arc::new(Turns::default());
    let (choices, told) = thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|name| {
                let store = Faulty::taking_turns(&inner, &turns, name);
                let turns = Arc::clone(&turns);
                scope.spawn(move || {
                    let told = life(store, 2 + name as u64, checkpoints, plans[name]);
                    turns.end(name);
                    told
                })
            })
            .collect();
        let choices =
            turns.conduct(|at| (first + switches.iter().filter(|switch| **switch <= at).count()) % 2);
        (choices.len(), threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>())
    });
    let label = format!("{first} {switches:?} {told:?}");
    // The later life is never refused, and what it made last is what counts.
    assert!(told[1].error.is_none() && told[1].counted == plans[1], "{label}");
    assert!(told[0].error.as_ref().is_none_or(|error| matches!(error, BackupError::Fenced(_))), "{label}");
    assert_eq!(restored(&plain), *checkpoints.state(*plans[1].last().unwrap()), "{label}");
    for backup in list_backups(&target(&plain), &options()).unwrap() {
        verify_backup(&target(&plain), Some(backup.id), &options(), |_| {})
            .unwrap_or_else(|e| panic!("{label}: {e}"));
        assert_eq!(backup.owner, owner(1, 3), "{label}");
    }
    choices
}

/// Every order with at most `left` more switches; returns how many there are.
fn every_order(
    first: usize,
    switches: &mut Vec<usize>,
    left: usize,
    checkpoints: &Checkpoints,
    plans: [&[usize]; 2],
) -> usize {
    let choices = run(first, switches, checkpoints, plans);
    let mut runs = 1;
    if left > 0 {
        for next in switches.last().map_or(1, |last| last + 1)..choices {
            switches.push(next);
            runs += every_order(first, switches, left - 1, checkpoints, plans);
            switches.pop();
        }
    }
    runs
}

/// Two switches by default; LAMINAR_SWITCHES sets another number.
#[test]
fn two_writers_in_every_order_of_their_requests_and_the_earlier_is_fenced() {
    let checkpoints = Checkpoints::full(3);
    let most = std::env::var("LAMINAR_SWITCHES").map_or(2, |text| text.parse().unwrap());
    let runs: usize =
        (0..2).map(|first| every_order(first, &mut Vec::new(), most, &checkpoints, [&[1], &[2]])).sum();
    println!("{runs} orders");
    assert!(runs > 100, "{runs} orders");
}

/// The zombie goes on at every moment between its requests, after the other one has made many backups, so that even
/// the records it knew are gone.
#[test]
fn a_writer_that_sleeps_for_long_wakes_up_fenced() {
    let checkpoints = Checkpoints::full(4);
    for pause in 0..70 {
        let inner = Arc::new(InMemory::new());
        let plain: Arc<dyn ObjectStore> = inner.clone();
        let turns = Arc::new(Turns::default());
        thread::scope(|scope| {
            let store = Faulty::taking_turns(&inner, &turns, 0);
            let (turns, checkpoints) = (&turns, &checkpoints);
            let zombie = scope.spawn(move || {
                let told = life(store, 1, checkpoints, &[0, 1, 2]);
                turns.end(0);
                told
            });
            let successor = Faulty::taking_turns(&inner, turns, 1);
            let successor = scope.spawn(move || {
                let which: Vec<usize> = (0..40).map(|turn| 1 + turn % 3).collect();
                let told = life(successor, 2, checkpoints, &which);
                turns.end(1);
                told
            });
            // So many requests of the zombie, then all of the other one, then the rest.
            let choices = turns.conduct(|at| usize::from(at >= pause));
            // After the last pause the zombie has nothing left to do.
            assert!(pause < 69 || choices.iter().all(|whose| *whose == 0), "{choices:?}");
            let (zombie, successor) = (zombie.join().unwrap(), successor.join().unwrap());
            assert!(successor.error.is_none(), "{pause}: {successor:?}");
            let all = zombie.counted.len() == 3;
            assert!(all || matches!(zombie.error, Some(BackupError::Fenced(_))), "{pause}: {zombie:?}");
        });
        // 40 backups: the last was of checkpoint 1.
        assert_eq!(restored(&plain), *checkpoints.state(1), "{pause}");
        verify_backup(&target(&plain), None, &options(), |_| {}).unwrap();
    }
}

#[test]
fn an_earlier_life_and_another_store_are_refused() {
    let checkpoints = Checkpoints::new(2);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    writer(&store, 5).back_up(&checkpoints.open(0), &[]).unwrap();
    let error = BackupWriter::open(&target(&store), &quick(), owner(1, 4)).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)) && error.is_final(), "{error}");
    let error = BackupWriter::open(&target(&store), &quick(), owner(2, 9)).unwrap_err();
    assert!(matches!(error, BackupError::Foreign(_)), "{error}");
    assert!(
        error.to_string().contains("take over") && error.to_string().contains("test://bucket/a/prefix"),
        "{error}"
    );
    // Asked for, it goes on with what is there, and the store that had it is out.
    let mut old = writer(&store, 6);
    let mut new = BackupWriter::open(&target(&store), &quick().take_over(true), owner(2, 1)).unwrap();
    let receipt = new.back_up(&checkpoints.open(0), &[]).unwrap();
    assert_eq!((receipt.files_sent, receipt.bytes_sent, receipt.is_new), (0, 0, false));
    let error = old.back_up(&checkpoints.open(1), &[]).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)), "{error}");
    assert_eq!(restored(&store), *checkpoints.state(0));
}

#[test]
fn a_place_that_was_emptied_is_begun_anew_by_the_next_opening() {
    let checkpoints = Checkpoints::new(2);
    let inner = Arc::new(InMemory::new());
    let store: Arc<dyn ObjectStore> = inner.clone();
    let mut old = writer(&store, 1);
    old.back_up(&checkpoints.open(0), &[]).unwrap();
    let all: Vec<_> =
        inner.list(None).map(|meta| meta.unwrap().location).collect::<Vec<_>>().now_or_never().unwrap();
    for path in all {
        inner.delete(&path).now_or_never().unwrap().unwrap();
    }
    let error = old.back_up(&checkpoints.open(1), &[]).unwrap_err();
    assert!(
        matches!(error, BackupError::Fenced(_)) && error.to_string().contains("claim is gone"),
        "{error}"
    );
    writer(&store, 2).back_up(&checkpoints.open(1), &[]).unwrap();
    assert_eq!(restored(&store), *checkpoints.state(1));
}

/// The calls block; on a thread of a runtime that would be a panic of that runtime's.
#[test]
fn on_a_thread_of_a_runtime_it_is_an_error() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(async { list_backups(&target(&store), &options()) }).unwrap_err();
    assert!(
        matches!(error, BackupError::InvalidInput(_)) && error.to_string().contains("spawn_blocking"),
        "{error}"
    );
}
