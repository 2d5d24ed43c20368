//! Runs this program under callgrind, and reads what it counted.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::operations::{ARGUMENT, FEATURES, UNDER_COUNT};
use crate::table::{Count, Table};

const NO_VALGRIND: &str = "there is no valgrind, without which nothing can be counted. \
    Install it (Debian: apt-get install valgrind), then run this again.";

/// What callgrind is told besides: nothing, where instructions are counted.
const INSTRUCTIONS: &[&str] = &[];
/// A cache of one megabyte before a state of about twenty, so that nearly everything in it is read from memory, as with a
/// large state and a real cache. It knows nothing of what is asked for ahead: what is read is counted, whoever waited for it.
const CACHES: &[&str] = &["--cache-sim=yes", "--LL=1048576,16,64"];

/// Counts the instructions of all operations.
pub fn count() -> Result<Table, Error> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    table(&run(INSTRUCTIONS, &out)?, &out)
}

/// Lines of memory that an operation reads, and that it writes without having read them, in the mean.
#[derive(Debug, PartialEq)]
pub struct Misses {
    pub name: String,
    pub reads: f64,
    pub writes: f64,
}

/// Counts what all operations read from memory.
pub fn misses() -> Result<Vec<Misses>, Error> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let told = run(CACHES, &out)?;
    let misses = figures(&told, &out)?.into_iter().map(|figure| {
        let of = |event| figure.of(event);
        Ok(Misses { reads: of("DLmr")?, writes: of("DLmw")?, name: figure.name.clone() })
    });
    misses.collect()
}

/// Runs the operations under callgrind, which writes its figures beside `out`; what they told.
fn run(options: &[&str], out: &Path) -> Result<String, Error> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).args(options);
    // To switch counting on and off would be quicker, but then callgrind does not notice that the function is left.
    command.arg(format!("--zero-before={UNDER_COUNT}")).arg(format!("--dump-after={UNDER_COUNT}"));
    let mut to = OsString::from("--callgrind-out-file=");
    to.push(out);
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
    Ok(String::from_utf8(output.stdout)?)
}

/// What the operations told, with the instructions that callgrind counted.
fn table(told: &str, out: &Path) -> Result<Table, Error> {
    let mut table = Table::of_this_compiler();
    if let Some(features) = told.lines().find_map(|line| line.strip_prefix(&format!("{FEATURES}, "))) {
        table.features = features.to_owned();
    }
    for figure in figures(told, out)? {
        let instructions = figure.of("Ir")?;
        table.counts.push(Count { name: figure.name, instructions });
    }
    Ok(table)
}

/// What callgrind wrote about some operations.
struct Figure {
    name: String,
    operations: f64,
    /// Names of what was counted.
    events: Vec<String>,
    totals: Vec<u64>,
}

impl Figure {
    /// One of its counts, for each operation. Instructions that are none mean that nothing was counted.
    fn of(&self, event: &str) -> Result<f64, Error> {
        let at = self.events.iter().position(|name| name == event);
        // Zeros at the end of the line are left out.
        let total = at.map(|at| self.totals.get(at).copied().unwrap_or(0));
        let total = total.filter(|total| *total > 0 || event != "Ir");
        Ok(total.ok_or_else(|| format!("no figure {event} for '{}'", self.name))? as f64 / self.operations)
    }
}

/// What the operations told, with the figures that callgrind wrote about them.
fn figures(told: &str, out: &Path) -> Result<Vec<Figure>, Error> {
    let lines = told.lines().filter_map(|line| line.rsplit_once(", ")).filter(|(name, _)| *name != FEATURES);
    let mut figures = Vec::new();
    // Callgrind numbers them from 1.
    for ((name, number), at) in lines.zip(1_u32..) {
        let path = out.with_extension(format!("out.{at}"));
        let dump = std::fs::read_to_string(&path).map_err(|e| {
            format!("callgrind did not notice '{name}' by the function's name: {}: {e}", path.display())
        })?;
        let line = |what| {
            dump.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default().split_whitespace()
        };
        figures.push(Figure {
            name: name.to_owned(),
            operations: number.parse()?,
            events: line("events: ").map(str::to_owned).collect(),
            totals: line("totals: ").map(str::parse).collect::<Result<_, _>>()?,
        });
    }
    if figures.is_empty() {
        return Err("the operations told of nothing".into());
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_dumps_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("callgrind.out");
        std::fs::write(dir.path().join("callgrind.out.1"), "desc: x\nevents: Ir\ntotals: 1200\n").unwrap();
        std::fs::write(dir.path().join("callgrind.out.2"), "events: Ir\ntotals: 90\n").unwrap();
        let counted = table("features, x86_64 avx2\nput, 10\nget, no such key, 3\n", &out).unwrap();
        assert_eq!(counted.features, "x86_64 avx2");
        let counts: Vec<_> = counted.counts.iter().map(|c| (c.name.as_str(), c.instructions)).collect();
        assert_eq!(counts, [("put", 120.0), ("get, no such key", 30.0)]);
    }

    #[test]
    fn what_was_counted_besides_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("callgrind.out");
        let dump = "events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\ntotals: 900 300 200 0 40 10 0 30\n";
        std::fs::write(dir.path().join("callgrind.out.1"), dump).unwrap();
        let figures = figures("features, x86_64\nget, 10\n", &out).unwrap();
        let of = |event| figures[0].of(event).unwrap();
        assert_eq!((of("Ir"), of("DLmr"), of("DLmw")), (90.0, 3.0, 0.0));
        assert!(figures[0].of("Bc").is_err());
    }

    #[test]
    fn a_figure_that_is_missing_or_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("callgrind.out");
        assert!(table("features, x86_64\nput, 10\n", &out).is_err());
        std::fs::write(dir.path().join("callgrind.out.1"), "events: Ir\ntotals: 0\n").unwrap();
        assert!(table("features, x86_64\nput, 10\n", &out).is_err());
        assert!(table("features, x86_64\n", &out).is_err());
    }
}
