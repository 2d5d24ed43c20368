//! The kernel sees exactly the operations that the simulated disk sees: closes the gap between the two.
//! Needs `strace` and the right to trace; says so and does nothing without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::process::Command;

use laminar_sim::conformance::traced;
use laminar_sim::registry::{find, real};

/// Whether calls can be traced here; why not, otherwise.
fn can_trace() -> Result<(), String> {
    let output = Command::new("strace").args(["-e", "trace=none", "--", "true"]).output();
    let output = output.map_err(|e| format!("strace cannot be run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("strace may not trace: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Two lists, from the first line on in which they differ.
fn difference(simulated: &[String], kernel: &[String]) -> Option<String> {
    let same = simulated.iter().zip(kernel).take_while(|(a, b)| a == b).count();
    if same == simulated.len() && same == kernel.len() {
        return None;
    }
    let rest = |lines: &[String]| lines.iter().skip(same).take(5).cloned().collect::<Vec<_>>().join("\n    ");
    Some(format!("after {same} calls\n  simulated\n    {}\n  kernel\n    {}", rest(simulated), rest(kernel)))
}

#[test]
fn the_kernel_sees_what_the_simulated_disk_sees() {
    if let Err(why) = can_trace() {
        println!("skipped: {why}");
        return;
    }
    let mut calls = 0;
    for scenario in real() {
        let name = scenario.name();
        // A real disk does not fail on request.
        if name.contains("poisoned") || name.contains("full-disk") || name.contains("disk-full") {
            continue;
        }
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("root");
        std::fs::create_dir(&below).unwrap();
        let (seed, below_text) = ("1", below.to_str().unwrap());
        let command = [env!("CARGO_BIN_EXE_laminar-sim"), "real", &name, seed, below_text];
        let kernel = traced(&command, &below).unwrap_or_else(|error| panic!("{name}: {error}"));
        let simulated = find(&name).unwrap().simulated(1).unwrap();
        if let Some(difference) = difference(&simulated, &kernel) {
            panic!("{name}: {difference}");
        }
        println!("{name}: {} calls", kernel.len());
        calls += kernel.len();
    }
    assert!(calls > 5_000, "{calls} calls");
}
