//! The `laminar` command: a crash-safe keyed aggregation over files, and tools for its state.

mod agg;
mod args;
mod engine;
mod error;
mod export;
mod input;
mod job;
mod pipeline;
mod signals;

fn main() {}
