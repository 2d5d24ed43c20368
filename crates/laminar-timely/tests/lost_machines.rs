//! All machines of a job are lost, in the middle of anything, and it goes on from its newest backup: its output, which was not
//! lost, must have every row once. Restores are killed too. Longer runs: `timely-torture drive --lose N`.
#![cfg(feature = "object-store")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod torture;

use torture::{exact, noticed};

/// Of two machines one is lost sometimes: the job does not begin without it.
#[test]
fn a_job_that_loses_all_machines_after_every_kill_writes_every_row_once() {
    exact(
        "--processes 2 --workers 1 --directories each --lose 1 --kills 5 --epochs 150 --pause-us 3000 --seed 61",
    );
}

/// From two machines to three and to one, which restores the parts of all.
#[test]
fn a_job_that_loses_all_machines_and_gets_another_size_writes_every_row_once() {
    exact(
        "--processes 2 --workers 1 --sizes 3x1,1x2 --directories each --lose 2 --kills 6 --epochs 150 --pause-us 3000 --seed 62",
    );
}

/// Not the newest backup: what came after it is given up.
#[test]
fn a_job_that_goes_back_to_older_backups_writes_every_row_once() {
    exact(
        "--processes 1 --workers 2 --lose 2 --restore oldest --kills 6 --epochs 150 --pause-us 3000 --seed 63",
    );
}

#[test]
fn a_sink_that_is_not_cut_back_is_noticed() {
    noticed(
        "--processes 2 --workers 1 --lose 1 --kills 4 --epochs 150 --pause-us 3000 --seed 64 --mistake no-cut-back",
        &[": 0 lines missing, ", "but the state goes only to"],
    );
}

#[test]
fn a_run_that_loses_nothing_shows_nothing() {
    noticed(
        "--processes 1 --workers 1 --lose 1 --kills 0 --epochs 40 --seed 65",
        &["no machine was lost, or nothing was restored"],
    );
}
