//! What threads do at once, in every order or in many: loom, the ring and shuttle. They take the place of the locks
//! and atomics of the standard library, and so need builds of their own. `tools/concurrency` makes these, below
//! `target/threads`, and runs them; here it is run at its short size.
//!
//! Nothing is skipped: if a build fails, so does the test. What the builds need beside the workspace's own crates
//! `cargo fetch` brings in, or else the first of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// With six scenarios, more than 10^5 schedules.
const SCHEDULES: &str = "17000";

/// What cargo tells a test about its package.
const OF_THIS_PACKAGE: &[&str] = &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// What would take the place of the flags and profiles that `tools/concurrency` asks for, or run something else.
const OTHER_BUILDS: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
    "RUSTFLAGS",
    "LAMINAR_REPLAY",
];

/// One build after the other: each keeps all processors busy, and they share a directory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `tools/concurrency`, without what the surrounding `cargo test` and its user meant for other builds. `CARGO`
/// stays, and `RUSTUP_TOOLCHAIN`: it is the same cargo that builds.
fn concurrency(check: &str) -> Command {
    let mut command = Command::new(root().join("tools/concurrency"));
    let meant_for_others =
        |name: &str| OF_THIS_PACKAGE.iter().chain(OTHER_BUILDS).any(|p| name.starts_with(p));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(meant_for_others) {
            command.env_remove(name);
        }
    }
    command.arg(check).env("LAMINAR_SCHEDULES", SCHEDULES).stdin(Stdio::null());
    command
}

/// Runs a check, which must pass and say `expected` so often.
fn passes(check: &str, expected: &str, times: usize) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = concurrency(check).output().unwrap_or_else(|error| panic!("tools/concurrency: {error}"));
    let (said, noted) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{noted}{said}");
    let again = format!("again: LAMINAR_SCHEDULES={SCHEDULES} tools/concurrency {check}");
    assert!(output.status.success(), "{check}: {}; {again}", output.status);
    // A filter that no test matches is a success too.
    let passed = said.lines().filter(|line| line.contains(expected)).count();
    assert!(passed >= times, "{check}: {passed} of at least {times} lines with {expected:?}; {again}");
}

#[test]
fn handshakes_between_threads_hold_in_every_order() {
    passes("loom", "_tests::loom_", 8);
}

#[test]
fn the_ring_holds_in_every_order() {
    passes("ring", " orders, all", 5);
}

#[test]
fn whole_stores_hold_in_random_schedules() {
    passes("shuttle", "_tests::shuttle_", 6);
}

/// Names, versions and checksums of the crates from a registry.
fn crates(lock: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(lock)).unwrap();
    let packages = text.split("[[package]]").filter(|package| package.contains("\nsource = "));
    packages.map(|package| package.split("\ndependencies").next().unwrap().trim().to_owned()).collect()
}

/// So whoever has fetched the crates of the workspace needs no network for the ring.
#[test]
fn the_ring_is_made_of_crates_of_the_workspace() {
    let (ring, workspace) = (crates("tools/ring/Cargo.lock"), crates("Cargo.lock"));
    assert!(ring.len() > 20, "{ring:?}");
    let others: Vec<_> = ring.difference(&workspace).collect();
    assert!(others.is_empty(), "in tools/ring/Cargo.lock, but not in Cargo.lock: {others:#?}");
}
