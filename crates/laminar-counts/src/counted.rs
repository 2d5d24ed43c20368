//! Runs this program under callgrind, and reads what it counted.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::operations::{ARGUMENT, FEATURES, UNDER_COUNT};
use crate::table::{Count, Table};

const NO_VALGRIND: &str = "there is no valgrind, without which nothing can be counted. \
    Install it (Debian: apt-get install valgrind), then run this again.";

/// Counts all operations.
pub fn count() -> Result<Table, Error> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]);
    // To switch counting on and off would be quicker, but then callgrind does not notice that the function is left.
    command.arg(format!("--zero-before={UNDER_COUNT}")).arg(format!("--dump-after={UNDER_COUNT}"));
    let mut to = OsString::from("--callgrind-out-file=");
    to.push(&out);
    command.arg(to);
    command.arg(std::env::current_exe()?).arg(ARGUMENT);
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => NO_VALGRIND.into(),
        _ => format!("valgrind: {error}"),
    })?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind ended with {}: {}", output.status, told.trim()).into());
    }
    table(&String::from_utf8(output.stdout)?, &out)
}

/// What the operations told, with the figures that callgrind wrote about them.
fn table(told: &str, out: &Path) -> Result<Table, Error> {
    let mut table = Table::of_this_compiler();
    let lines = told.lines().filter_map(|line| line.rsplit_once(", "));
    for ((name, number), at) in lines.zip(0_u32..) {
        if name == FEATURES {
            table.features = number.to_owned();
            continue;
        }
        // The features come first and are no figure, so that the figures are numbered from 1, as callgrind does it.
        let path = out.with_extension(format!("out.{at}"));
        let dump = std::fs::read_to_string(&path).map_err(|e| {
            format!("callgrind did not notice '{name}' by the function's name: {}: {e}", path.display())
        })?;
        let instructions = instructions(&dump).ok_or_else(|| format!("no figure for '{name}'"))?;
        let number: f64 = number.parse()?;
        table.counts.push(Count { name: name.to_owned(), instructions: instructions as f64 / number });
    }
    if table.counts.is_empty() {
        return Err("the operations told of nothing".into());
    }
    Ok(table)
}

/// The instructions of a dump; none, if there are none.
fn instructions(dump: &str) -> Option<u64> {
    let totals = dump.lines().find_map(|line| line.strip_prefix("totals: "))?;
    totals.trim().parse().ok().filter(|instructions| *instructions > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_dumps_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("callgrind.out");
        std::fs::write(dir.path().join("callgrind.out.1"), "desc: x\ntotals: 1200\n").unwrap();
        std::fs::write(dir.path().join("callgrind.out.2"), "totals: 90\n").unwrap();
        let counted = table("features, x86_64 avx2\nput, 10\nget, no such key, 3\n", &out).unwrap();
        assert_eq!(counted.features, "x86_64 avx2");
        let counts: Vec<_> = counted.counts.iter().map(|c| (c.name.as_str(), c.instructions)).collect();
        assert_eq!(counts, [("put", 120.0), ("get, no such key", 30.0)]);
    }

    #[test]
    fn a_figure_that_is_missing_or_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("callgrind.out");
        assert!(table("features, x86_64\nput, 10\n", &out).is_err());
        std::fs::write(dir.path().join("callgrind.out.1"), "totals: 0\n").unwrap();
        assert!(table("features, x86_64\nput, 10\n", &out).is_err());
        assert!(table("features, x86_64\n", &out).is_err());
    }
}
