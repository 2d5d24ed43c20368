//! The `laminar` command: a crash-safe keyed aggregation over files, and tools for its state.

mod agg;
mod args;
#[cfg(feature = "object-store")]
mod backup;
mod belonging;
mod bench;
mod commands;
mod demo;
mod diff;
mod distributed;
mod engine;
mod error;
mod export;
mod generate;
mod input;
mod inspect;
mod job;
mod opening;
mod output;
mod pipeline;
mod progress;
mod query;
mod savepoint;
mod savepoint_dir;
mod signals;
mod summary;
mod verify;
mod visible;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::engine::store::{StoreEngine, StoreView};
use crate::error::Kind;

fn main() -> ExitCode {
    let cli = args::Cli::parse_from(args::join_dead_letter(std::env::args_os()));
    match commands::run::<StoreEngine, StoreView>(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error.kind(), Kind::BrokenPipe | Kind::Different) {
                // If even standard error is gone, the exit code still tells.
                let _ = writeln!(std::io::stderr(), "laminar: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
