//! Running `timely-torture drive`, and looking at what it says.

use std::process::{Command, Output};

fn drive(options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_timely-torture"));
    command.arg("drive").args(options.split_whitespace()).output().unwrap()
}

/// What it printed, whether or not it ended well.
fn said(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    out + &err
}

/// The directory that a failed run left behind goes.
fn remove_leftovers(said: &str) {
    let dir = said.lines().find_map(|line| line.strip_prefix("Directory: "));
    if let Some(dir) = dir {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// A run in which every row is there once.
pub fn exact(options: &str) -> String {
    let output = drive(options);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 missing, 0 twice, 0 besides"), "{said}");
    said
}

/// A run that fails, for one of these reasons.
pub fn noticed(options: &str, signs: &[&str]) {
    let output = drive(options);
    let said = said(&output);
    remove_leftovers(&said);
    assert!(!output.status.success(), "the mistake went unnoticed:\n{said}");
    assert!(!said.contains("a process went on for"), "not all processes ended:\n{said}");
    assert!(signs.iter().any(|sign| said.contains(sign)), "{said}");
}
