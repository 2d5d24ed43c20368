use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::store::{Opened, Settings, Store};
use crate::sync::lock;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// An opening that loaded 200 MiB in 1 s and replayed 100 MiB in 1 s.
fn recovered() -> Recovered {
    Recovered { checkpoint_bytes: 200 * MIB, loading: SECOND, log_bytes: 100 * MIB, replaying: SECOND }
}

#[test]
fn opening_again_at_once_takes_as_long_as_this_opening_did() {
    let mut estimator = Estimator::new(None, &recovered(), 1000 * MIB);
    assert_eq!(estimator.behind(1000 * MIB), 100 * MIB);
    assert_eq!(estimator.recovery(1000 * MIB), 2 * SECOND);
    estimator.began_in(SECOND / 10);
    assert_eq!(estimator.recovery(1050 * MIB), 2 * SECOND + SECOND / 2 + SECOND / 10);
    assert!(!estimator.is_due(SECOND, u64::MAX), "without an objective nothing is due");
}

#[test]
fn a_checkpoint_is_loaded_in_place_of_the_log_that_it_has() {
    let mut estimator = Estimator::new(None, &recovered(), 1000 * MIB);
    let made = Made { position: 1200 * MIB, checkpoint_bytes: 400 * MIB, ..Made::default() };
    estimator.made(SECOND, made);
    assert_eq!(estimator.recovery(1200 * MIB), 2 * SECOND);
    assert_eq!(estimator.recovery(1210 * MIB), 2 * SECOND + SECOND / 10);
}

/// Until a recovery was measured, half the speed of checkpoints' reading stands in; before that, a guess.
///
/// Regression: all of its speed did. The first checkpoint of a new store was small, and all in the processor's cache;
/// what followed was replayed a third slower than that, and the objective was missed by as much.
#[test]
fn what_was_not_measured_is_guessed_cautiously() {
    let little = Recovered { checkpoint_bytes: MIB, loading: SECOND, log_bytes: MIB, replaying: SECOND };
    let mut estimator = Estimator::new(None, &little, MIB);
    assert_eq!(estimator.recovery(MIB), seconds(2.0 / 40.0), "two times 1 MiB at 40 MiB/s");
    let made = Made { log_bytes: 80 * MIB, applying: SECOND, position: 81 * MIB, ..Made::default() };
    estimator.made(SECOND, made);
    assert_eq!(estimator.recovery(161 * MIB), 2 * SECOND);
    estimator.made(SECOND, Made { log_bytes: 40 * MIB, position: 121 * MIB, ..made });
    assert_eq!(estimator.recovery(181 * MIB), 2 * SECOND, "half of 60 MiB/s on average");
}

#[test]
fn a_checkpoint_begins_early_enough_to_be_done_in_time() {
    // Of 4 s, 3 are planned with, of which loading takes 1: there may be 200 MiB of log.
    let mut estimator = Estimator::new(Some(4 * SECOND), &recovered(), 100 * MIB);
    let made = Made {
        position: 100 * MIB,
        checkpoint_bytes: 200 * MIB,
        log_bytes: 100 * MIB,
        took: SECOND,
        ..Made::default()
    };
    estimator.made(SECOND, made);
    assert!(!estimator.is_due(9 * SECOND, 299 * MIB));
    assert!(estimator.is_due(9 * SECOND, 300 * MIB));
    // With 50 MiB more every second, and checkpoints that take a second, there is less room.
    let mut growing = Estimator { growth: Growth::default(), ..estimator };
    growing.grew(SECOND, 50 * MIB);
    assert!(!growing.is_due(9 * SECOND, 200 * MIB + 32 * MIB));
    // 133 MiB take 1.33 s, in which 67 MiB come: 200 MiB.
    assert!(growing.is_due(9 * SECOND, 200 * MIB + 34 * MIB));
}

#[test]
fn checkpoints_take_at_most_half_of_the_time() {
    let mut estimator = Estimator::new(Some(SECOND), &recovered(), 100 * MIB);
    let made = Made { position: 100 * MIB, took: 2 * SECOND, ..Made::default() };
    estimator.made(10 * SECOND, made);
    assert!(estimator.is_needed(900 * MIB));
    assert!(!estimator.is_due(11 * SECOND, 900 * MIB));
    assert_eq!(estimator.pause(11 * SECOND, 900 * MIB), Some(SECOND));
    assert!(estimator.is_due(12 * SECOND, 900 * MIB));
    assert_eq!(estimator.pause(11 * SECOND, 100 * MIB), None);
    estimator.nothing_new(15 * SECOND);
    assert!(!estimator.is_due(15 * SECOND, 900 * MIB) && estimator.is_due(15 * SECOND + WINDOW, 900 * MIB));
    estimator.failed(20 * SECOND);
    assert!(!estimator.is_due(20 * SECOND, 900 * MIB) && estimator.is_due(21 * SECOND, 900 * MIB));
}

/// Regression: a program that wrote faster than checkpoints were made had several times the objective to wait, and
/// nothing had said so; least of all in lives too short for a single checkpoint.
#[test]
fn a_log_that_outgrows_its_checkpoints_is_told_once() {
    let missed = |estimate| Some(Missed::Growth { objective: 2 * SECOND, estimate });
    let mut estimator = Estimator::new(Some(2 * SECOND), &recovered(), 100 * MIB);
    assert_eq!(estimator.complaint(100 * MIB), None, "two seconds, as allowed");
    let mut growing = estimator.clone();
    assert_eq!(growing.complaint(200 * MIB), missed(3 * SECOND), "opened so");
    estimator.made(SECOND, Made { position: 100 * MIB, checkpoint_bytes: 200 * MIB, ..Made::default() });
    assert_eq!(estimator.complaint(200 * MIB), None);
    assert_eq!(estimator.complaint(300 * MIB), missed(3 * SECOND));
    assert_eq!(estimator.complaint(300 * MIB), None);
    // What was not measured says nothing.
    let new = Estimator::new(Some(SECOND), &Recovered::default(), 0);
    assert_eq!(new.clone().complaint(9000 * MIB), None);
}

/// However small the objective, a little log is no reason for a checkpoint.
#[test]
fn a_little_log_is_never_worth_one() {
    let estimator = Estimator::new(Some(Duration::from_millis(1)), &Recovered::default(), 0);
    assert!(!estimator.is_due(SECOND, WORTH_IT - 1));
    assert!(estimator.is_due(SECOND, WORTH_IT));
}

/// More checkpoints do not make loading one faster: a quarter of the objective is left to the log, and it is
/// said once.
#[test]
fn an_objective_below_the_time_of_loading_is_told_once_and_makes_no_loop() {
    let mut estimator = Estimator::new(Some(SECOND), &recovered(), 100 * MIB);
    assert!(estimator.is_out_of_reach());
    let missed = Missed::Loading { objective: SECOND, loading: SECOND };
    assert_eq!((estimator.complaint(100 * MIB), estimator.complaint(100 * MIB)), (Some(missed), None));
    assert!(!estimator.is_due(SECOND, 24 * MIB), "a quarter of a second is 25 MiB");
    assert!(estimator.is_due(SECOND, 25 * MIB));
    // A guess says nothing.
    let guessed = Recovered { loading: Duration::ZERO, ..recovered() };
    assert!(!Estimator::new(Some(SECOND), &guessed, 0).is_out_of_reach());
    assert!(!Estimator::new(Some(2 * SECOND), &recovered(), 0).is_out_of_reach());
}

#[test]
fn growth_rises_at_once_and_falls_slowly() {
    let mut growth = Growth::default();
    growth.observe(SECOND, 100);
    growth.observe(SECOND + WINDOW / 2, 1_000_000);
    assert!((growth.rate - 100.0).abs() < 1e-9, "too early to tell: {growth:?}");
    growth.observe(2 * SECOND, 400);
    assert!((growth.rate - 300.0).abs() < 1e-9, "{growth:?}");
    growth.observe(3 * SECOND, 400);
    assert!((growth.rate - 150.0).abs() < 1e-9, "{growth:?}");
}

/// For the store below: 40 ms at 100 MiB/s are 4 MiB, and loading takes next to nothing.
const OBJECTIVE: Duration = Duration::from_millis(40);
const REPLAY: f64 = (100 << 20) as f64;
const PROMISED: u64 = 4 << 20;
const EPOCH: u64 = 512 << 10;
const ROUNDS: u64 = 30;
const ROLE: &str = "LAMINAR_OBJECTIVE_TEST_DIR";

/// Not a test of its own: a process that writes, gives the store the time to make the checkpoints that it
/// needs, and dies without a destructor having run.
#[test]
fn child() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let settings = Settings {
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        segment_bytes: MIB,
        preallocate_bytes: 0,
        ..Settings::default()
    };
    let builder = Store::builder(&dir).settings(settings).with_recovery_objective(OBJECTIVE);
    let Opened { store, mut cores, .. } = builder.open().unwrap();
    lock(&store.shared.estimator).pin(REPLAY, 1e15);
    // Only so that nobody waits for ever should it fail.
    let deadline = Instant::now() + 900 * SECOND;
    for round in 0..ROUNDS {
        let value = vec![round.to_le_bytes()[0]; 4096];
        for key in 0..EPOCH / 4096 {
            cores[0].put(&key.to_le_bytes(), &value).unwrap();
        }
        let epoch = cores[0].seal_epoch().unwrap();
        store.wait_durable(epoch).unwrap();
        // Nobody can promise anything to a program that writes faster than checkpoints can be made.
        while lock(&store.shared.estimator).is_needed(store.shared.counters.wal_bytes.get()) {
            assert!(Instant::now() < deadline, "no checkpoint is made: {:?}", store.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // Something is left to replay also when a checkpoint was made just now.
    cores[0].put(&0_u64.to_le_bytes(), &[0; 4096]).unwrap();
    let epoch = cores[0].seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    std::process::abort();
}

/// A process writes 15 MiB of log and dies; with an objective of 4 MiB, the next one has at most as much to
/// replay. It would be all of it without checkpoints made for the objective, since nothing else asks for
/// any.
#[test]
fn what_a_dying_process_leaves_to_replay_is_bounded_by_the_objective() {
    let dir = tempfile::tempdir().unwrap();
    for life in 1..=2 {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["store::objective::tests::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(std::os::unix::process::ExitStatusExt::signal(&status).is_some(), "not killed: {status}");
        let (replayed, epochs) = reopen(dir.path());
        assert!(epochs >= ROUNDS * life, "{epochs} epochs");
        assert!(replayed > 0 && replayed <= PROMISED + EPOCH, "{replayed} bytes replayed");
    }
}

/// Bytes replayed, and the recovery point.
fn reopen(dir: &Path) -> (u64, u64) {
    let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
    let Opened { store, cores, report } = Store::builder(dir).settings(settings).open().unwrap();
    let replayed = report.cores.iter().map(|core| core.replayed_bytes).sum();
    // The statistics know what the next opening would replay: as much again.
    assert_eq!(store.stats().wal_bytes_behind, replayed);
    assert_eq!(cores[0].len() as u64, EPOCH / 4096);
    drop(cores);
    store.close().unwrap();
    (replayed, report.recovery_point.get())
}
