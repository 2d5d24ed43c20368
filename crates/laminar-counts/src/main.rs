//! How many instructions the operations of a core take, compared with what is written down in `counts.txt`.
//!
//! Time is too noisy to notice that a `put` has become a twentieth slower; the number of instructions of the same
//! operations is the same in every run, but for a few in a thousand (keys are hashed with another seed in every
//! process). It does not see what memory costs: that is what `laminar-bench` measures.
//!
//! The program runs itself under `valgrind --tool=callgrind`, on a simulated disk, where a store has no threads, so that
//! what Ring 1 does is never counted with what Ring 0 does.

mod counted;
mod operations;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::table::{Judgement, Table};

/// Whatever keeps it from counting.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
usage: laminar-counts [check | renew | misses]
  check  compares with counts.txt; this is what happens without an argument
  renew  writes counts.txt anew
  misses shows how much each operation reads from memory, where no cache holds the state
Exit codes: 0 as written down, 1 a count has changed, 2 it could not be counted, 3 counts are off, but were written down
  for another compiler or processor.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["check"] => check(),
        ["renew"] => renew().map(|()| 0),
        ["misses"] => misses().map(|()| 0),
        // The process that is counted.
        [operations::ARGUMENT] => operations::run().map(|()| 0),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("laminar-counts: {error}");
            ExitCode::from(2)
        }
    }
}

/// What is written down, in the sources that this was built from.
fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.txt")
}

fn read() -> Result<Table, Error> {
    let path = path();
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Table::parse(&text).map_err(|e| format!("{}: {e}", path.display()).into())
}

/// The exit code.
fn check() -> Result<u8, Error> {
    let written = read()?;
    let counted = counted::count()?;
    let judgement = Judgement::of(&written, &counted);
    print!("{judgement}");
    Ok(match (judgement.is_good(), judgement.is_open()) {
        (true, _) => 0,
        (false, true) => 3,
        (false, false) => 1,
    })
}

fn misses() -> Result<(), Error> {
    println!("{:<28} {:>10} {:>10}", "lines of 64 bytes", "read", "written");
    for misses in counted::misses()? {
        println!("{:<28} {:>10.2} {:>10.2}", misses.name, misses.reads, misses.writes);
    }
    Ok(())
}

fn renew() -> Result<(), Error> {
    let counted = counted::count()?;
    std::fs::write(path(), counted.to_string()).map_err(|e| format!("{}: {e}", path().display()))?;
    print!("{counted}");
    Ok(())
}
