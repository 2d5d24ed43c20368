//! Counts as they are written down, and what is to be said when they are not the same any more.

use std::fmt;

use crate::Error;

/// How much a count may be off, in either direction.
const TOLERANCE: f64 = 0.03;

/// The instructions that one operation takes in the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    pub name: String,
    pub instructions: f64,
}

/// Counts, and what they depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub compiler: String,
    pub features: String,
    pub counts: Vec<Count>,
}

const COMPILER: &str = "compiler";
const PROCESSOR: &str = "processor";

const HEAD: &str = "\
# Instructions that operations of a core take in the mean, as callgrind counts them in a release build: 100,000 keys of 16
# bytes, values of 100, Ring 1 at rest. Written by `cargo run --release -p laminar-counts -- renew`, and compared by
# `cargo run --release -p laminar-counts`, which .ci/run does.
";

impl Table {
    pub fn of_this_compiler() -> Self {
        Self { compiler: env!("LAMINAR_COMPILER").to_owned(), ..Self::default() }
    }

    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut table = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, what) =
                line.split_once(": ").ok_or_else(|| format!("no ': ' in the line '{line}'"))?;
            match name {
                COMPILER => table.compiler = what.to_owned(),
                PROCESSOR => table.features = what.to_owned(),
                _ => {
                    let instructions = what.parse().map_err(|e| format!("'{line}': {e}"))?;
                    table.counts.push(Count { name: name.to_owned(), instructions });
                }
            }
        }
        Ok(table)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD}{COMPILER}: {}\n{PROCESSOR}: {}\n", self.compiler, self.features)?;
        self.counts.iter().try_for_each(|count| writeln!(f, "{}: {:.1}", count.name, count.instructions))
    }
}

/// One operation, as it is written down and as it was counted.
#[derive(Debug)]
struct Row {
    name: String,
    written: Option<f64>,
    counted: Option<f64>,
}

impl Row {
    /// By how much of what is written down it is off.
    fn off(&self) -> Option<f64> {
        Some(self.counted? / self.written? - 1.0)
    }

    fn is_good(&self) -> bool {
        self.off().is_some_and(|off| off.abs() <= TOLERANCE)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |count: Option<f64>| count.map_or_else(|| "-".to_owned(), |count| format!("{count:.1}"));
        write!(f, "{:<28} {:>10} {:>10}", self.name, shown(self.written), shown(self.counted))?;
        match self.off() {
            Some(off) if off > TOLERANCE => writeln!(f, "  {:+.1} %  MORE", off * 100.0),
            Some(off) if off < -TOLERANCE => writeln!(f, "  {:+.1} %  fewer", off * 100.0),
            Some(off) => writeln!(f, "  {:+.1} %", off * 100.0),
            None => writeln!(f, "  not in both"),
        }
    }
}

/// What is to be thought of counts.
#[derive(Debug)]
pub struct Judgement {
    rows: Vec<Row>,
    /// What the counts depend on and is not the same: what it is, as written down, and here.
    different: Vec<(&'static str, String, String)>,
}

impl Judgement {
    pub fn of(written: &Table, counted: &Table) -> Self {
        let find = |table: &Table, name: &str| {
            table.counts.iter().find(|count| count.name == name).map(|count| count.instructions)
        };
        let only_counted = counted.counts.iter().filter(|count| find(written, &count.name).is_none());
        let rows = written.counts.iter().chain(only_counted).map(|count| Row {
            name: count.name.clone(),
            written: find(written, &count.name),
            counted: find(counted, &count.name),
        });
        let both = [
            (COMPILER, &written.compiler, &counted.compiler),
            (PROCESSOR, &written.features, &counted.features),
        ];
        let different = both.into_iter().filter(|(_, written, here)| written != here);
        Self {
            rows: rows.collect(),
            different: different.map(|(what, a, b)| (what, a.clone(), b.clone())).collect(),
        }
    }

    /// Nothing is off, and nothing is missing.
    pub fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::is_good)
    }

    /// Nothing can be said: counts are off, and they are not those of this compiler and processor.
    pub fn is_open(&self) -> bool {
        !self.is_good() && !self.different.is_empty()
    }

    fn advice(&self) -> &'static str {
        if !self.different.is_empty() {
            "Counts are off, and they were not written down for this compiler and processor: that alone may be why. To know, \
             count with those (`cargo +VERSION run --release -p laminar-counts`), or here at the last commit that was good. \
             If it is the compiler or the processor, renew the table in a commit of its own: \
             `cargo run --release -p laminar-counts -- renew`."
        } else if self.rows.iter().any(|row| row.off().is_some_and(|off| off > TOLERANCE)) {
            "An operation takes more instructions than before. Find out why (`callgrind_annotate`, `perf`); if it is worth it, \
             renew the table and say in the commit what it buys: `cargo run --release -p laminar-counts -- renew`."
        } else {
            "Fewer instructions, or other operations than before: renew the table, so that it stays as tight as it was: \
             `cargo run --release -p laminar-counts -- renew`."
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>10} {:>10}", "instructions", "written", "counted")?;
        self.rows.iter().try_for_each(|row| row.fmt(f))?;
        for (what, written, here) in &self.different {
            writeln!(f, "{what}: {here} here, {written} where the table was written")?;
        }
        if self.is_good() { Ok(()) } else { writeln!(f, "{}", self.advice()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(counts: &[(&str, f64)]) -> Table {
        let counts = counts.iter().map(|(name, count)| Count { name: (*name).into(), instructions: *count });
        Table { compiler: "rustc 1".into(), features: "x86_64 avx2".into(), counts: counts.collect() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = table(&[("put", 101.5), ("get, no such key", 20.0)]);
        assert_eq!(Table::parse(&written.to_string()).unwrap(), written);
        assert!(Table::parse("put 7").is_err());
        assert!(Table::parse("put: many").is_err());
    }

    #[test]
    fn more_fewer_missing_and_new_are_not_good() {
        let written = table(&[("put", 100.0), ("get", 50.0)]);
        let good = |counts: &[(&str, f64)]| Judgement::of(&written, &table(counts)).is_good();
        assert!(good(&[("put", 102.9), ("get", 48.6)]));
        assert!(!good(&[("put", 103.1), ("get", 50.0)]));
        assert!(!good(&[("put", 96.0), ("get", 50.0)]));
        assert!(!good(&[("put", 100.0)]));
        assert!(!good(&[("put", 100.0), ("get", 50.0), ("delete", 1.0)]));
        assert!(!Judgement::of(&table(&[]), &table(&[])).is_good());
    }

    #[test]
    fn counts_of_another_compiler_say_nothing_unless_they_are_good() {
        let written = Table { compiler: "rustc 0".into(), ..table(&[("put", 100.0)]) };
        assert!(Judgement::of(&written, &table(&[("put", 120.0)])).is_open());
        assert!(!Judgement::of(&written, &table(&[("put", 101.0)])).is_open());
        assert!(!Judgement::of(&table(&[("put", 100.0)]), &table(&[("put", 120.0)])).is_open());
    }

    #[test]
    fn another_compiler_is_said_and_is_no_excuse() {
        let written = table(&[("put", 100.0)]);
        let other = Table { compiler: "rustc 2".into(), ..table(&[("put", 120.0)]) };
        let judgement = Judgement::of(&written, &other);
        assert!(!judgement.is_good());
        let told = judgement.to_string();
        for wanted in ["rustc 1", "rustc 2", "MORE", "renew"] {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
        let same = Table { compiler: "rustc 2".into(), ..written.clone() };
        assert!(Judgement::of(&written, &same).is_good());
    }
}
