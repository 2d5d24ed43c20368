//! Power cuts on a real file system, a few of them. Needs root, FUSE and loop devices; says so and does nothing without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::process::{Command, Output};

use laminar_sim::power::machine::check;

/// The output of a small run, or nothing where it cannot run.
fn power_cut(keep: &Path, arguments: &[&str]) -> Option<(Output, String)> {
    if let Err(why) = check("ext4") {
        println!("skipped: {why}");
        return None;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_laminar-sim"))
        .args(["power-cut", "--jobs", "1", "--per-recording", "40", "--mounts", "40", "--keep"])
        .arg(keep)
        .args(arguments)
        .output()
        .unwrap();
    let text =
        [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
    println!("{text}");
    Some((output, text))
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut() {
    let keep = tempfile::tempdir().unwrap();
    let Some((output, text)) = power_cut(keep.path(), &[]) else { return };
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" 0 findings"), "{text}");
    assert_eq!(std::fs::read_dir(keep.path()).unwrap().count(), 0, "only findings are kept");
}

/// Without barriers ext4 never flushes the disk, and no sync means anything.
#[test]
fn a_file_system_that_does_not_flush_is_noticed() {
    let keep = tempfile::tempdir().unwrap();
    let Some((output, text)) = power_cut(keep.path(), &["--mount-options", "nobarrier"]) else { return };
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("not seen as its bytes and then a flush"), "{text}");
}
