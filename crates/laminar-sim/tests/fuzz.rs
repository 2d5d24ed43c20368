//! Fuzz targets over the kept corpora, and a little further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;

use laminar_sim::dice::{Dice, mixed};
use laminar_sim::fuzz::{TARGETS, mutate, run, seeds};

/// Says how to do it again when what follows panics.
struct Again(String);

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("laminar-sim fuzz {}", self.0);
        }
    }
}

/// Inputs that were kept because they reach something that others do not, or found something once.
#[test]
fn kept_inputs_are_still_handled() {
    for (name, _) in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 3, "{}", dir.display());
        for path in files {
            let _again = Again(format!("{name} --input {}", path.display()));
            run(name, &std::fs::read(path).unwrap());
        }
    }
}

#[test]
fn mutated_inputs_are_handled() {
    for (name, _) in TARGETS {
        let begin = seeds(name);
        assert!(begin.len() > 3, "{name}");
        let slow = ["directory", "ops"].contains(&name);
        for n in 0..if slow { 1_500 } else { 8_000 } {
            let _again = Again(format!("{name} --seed 99 --threads 1 --execs {}", n + 1));
            let mut dice = Dice::new(mixed(99, n));
            let mut bytes = begin[dice.index(begin.len())].clone();
            mutate(&mut bytes, &mut dice);
            run(name, &bytes);
        }
    }
}

/// Regression, found by the target `directory`: a successor whose forged header says that less of its
/// predecessor counts than the predecessor's header made the reader subtract below zero.
#[test]
fn a_successor_may_claim_less_than_a_header() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/directory");
    for name in ["less-than-a-header-1", "less-than-a-header-2"] {
        run("directory", &std::fs::read(dir.join(name)).unwrap());
    }
}
