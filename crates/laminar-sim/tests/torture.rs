//! Processes that are killed, on the real file system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;

use laminar_sim::torture::{Amount, Torture, torture, truth};
use laminar_storage::ids::Epoch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_laminar-sim");

fn plan(dir: &Path, kills: u64) -> Torture {
    Torture {
        program: PROGRAM.into(),
        dir: dir.to_owned(),
        amount: Amount::Kills(kills),
        cores: 1..=4,
        workers: 4,
        seed: 5,
        progress_every: None,
    }
}

#[test]
fn sigkill_at_any_moment_keeps_every_acknowledged_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let report = torture(&plan(dir.path(), 200));
    println!("{report}");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(report.killed() >= 200);
    assert!(report.directories >= 4 && report.checked.iter().all(|count| *count > 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "every directory was removed");
}

/// The judge itself: a state of another epoch, or one that lacks what was acknowledged, is refused.
#[test]
fn the_state_of_another_epoch_is_refused() {
    let (epoch, other) = (Epoch(40), Epoch(41));
    let state = truth::state(7, epoch);
    assert!(state.len() > 10 && state != truth::state(7, other) && state != truth::state(8, epoch));
    let check = |at, acked, offsets: Epoch, watermark: Epoch| {
        truth::check(7, (at, acked), &state, &truth::offsets(offsets), truth::watermark(watermark))
    };
    check(epoch, epoch, epoch, epoch).unwrap();
    assert!(check(epoch, other, epoch, epoch).unwrap_err().starts_with("LOST"));
    assert!(check(other, epoch, other, other).unwrap_err().starts_with("WRONG"));
    assert!(check(epoch, epoch, other, epoch).unwrap_err().starts_with("WRONG"));
    assert!(check(epoch, epoch, epoch, other).unwrap_err().starts_with("WRONG"));
    assert!(truth::state(7, Epoch::ZERO).is_empty());
}
