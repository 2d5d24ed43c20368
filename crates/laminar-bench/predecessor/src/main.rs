//! Measures the published predecessor, LaminarDB's laminar-storage 0.18.5, with the keys, the values and the steps
//! that `laminar-bench peers` has for other stores, and tells the figures in one line of JSON.

#[path = "../../src/bytes.rs"]
mod bytes;
#[path = "../../src/keys.rs"]
#[allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "laminar-bench needs all of it, and allows that"
)]
mod keys;
mod measure;
mod program;
mod rates;
mod store;

use std::process::ExitCode;

/// What is measured.
const VERSION: &str = "0.18.5";

fn main() -> ExitCode {
    program::main(VERSION)
}

/// Whatever stops a run.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
