//! `laminar bench`: the measurements of the store, without other stores beside it.

use std::io;

use laminar_bench::{Bench, Program};

use crate::error::{CliError, Result};

const PROGRAM: Program =
    Program { name: "laminar bench", before: &["bench"], dir: ".", predecessors: Vec::new() };

pub fn run(bench: &Bench) -> Result<()> {
    match laminar_bench::run(bench, &PROGRAM) {
        Ok(0) => Ok(()),
        Ok(differences) => Err(CliError::failure(format!("the measurement found {differences} differences"))
            .remedy("A store did not have what it must have. This is a bug; keep what was printed.")),
        Err(error) => match error.downcast_ref::<io::Error>() {
            Some(closed) if closed.kind() == io::ErrorKind::BrokenPipe => Err(CliError::stdout(closed)),
            _ => Err(CliError::failure(format!("the measurement was given up: {error}"))),
        },
    }
}
