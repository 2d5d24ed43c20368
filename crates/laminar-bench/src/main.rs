//! `laminar-bench`: the measurements as a program of their own, which can be built with other stores beside ours.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use laminar_bench::{Bench, Program};

#[derive(Parser)]
#[command(version, about = "Measures laminar-storage")]
struct Cli {
    #[command(flatten)]
    bench: Bench,
    /// Program that measures a version of the published predecessor for `peers` and `durable`, built from
    /// crates/laminar-bench/predecessor; repeat it for the other version
    #[arg(long, global = true, value_name = "BINARY")]
    predecessor: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let Cli { bench, predecessor } = Cli::parse();
    let program =
        Program { name: "laminar-bench", before: &[], dir: "target/bench-data", predecessors: predecessor };
    match laminar_bench::run(&bench, &program) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(differences) => {
            eprintln!("laminar-bench: {differences} differences");
            ExitCode::from(1)
        }
        Err(error) => {
            let closed = error.downcast_ref::<std::io::Error>();
            if closed.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("laminar-bench: {error}");
            ExitCode::from(2)
        }
    }
}
