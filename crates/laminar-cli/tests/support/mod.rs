//! Runs the binary as a user would.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub mod jobs;

/// A directory to work in, and the command run in it.
pub struct Desk {
    dir: tempfile::TempDir,
}

/// What a command left.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Desk {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_laminar"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Ran { code: status.code(), out: text(stdout), err: text(stderr) };
        assert!(
            !ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"),
            "{args:?}: {}",
            ran.err
        );
        ran
    }

    /// Runs a command that must succeed, and gives its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs a command that must succeed, and gives its output as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(args);
        serde_json::from_str(out.trim()).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
    }

    /// Runs a command that must fail with this code, and gives what it says.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}{}", ran.out, ran.err);
        assert!(!ran.err.is_empty());
        ran.err
    }
}

/// Events with nested fields, negative and decimal amounts.
pub fn events(count: usize, users: usize) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut state = 0x1234_5678_9abc_def0_u64;
    for i in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = state >> 33;
        let user = n as usize % users;
        let sign = if n.is_multiple_of(11) { "-" } else { "" };
        writeln!(
            text,
            "{{\"user\":{{\"id\":\"u{user}\"}},\"amount\":{sign}{}.{:02},\"page\":\"/p/{i}\"}}",
            n % 500,
            n % 100
        )
        .unwrap();
    }
    text
}

/// Every file below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
