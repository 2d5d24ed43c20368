//! Code and documentation name the same things: invariants, cases, tests, files. And no source file grows
//! beyond what one can read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file, tests not counted.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All Rust files of the workspace below `crates/*/<folder>`.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        for folder in folders {
            walk(&entry.as_ref().unwrap().path().join(folder), &mut found);
        }
    }
    assert!(found.len() > 50, "{} files found", found.len());
    found.sort();
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Words such as `I7`, `R0-5`: a prefix and a number, on their own.
fn numbered(text: &str, prefix: &str) -> BTreeSet<String> {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let before = text[..at].chars().next_back().is_some_and(part_of_a_word);
        let after = rest[digits..].chars().next().is_some_and(part_of_a_word);
        if (1..=2).contains(&digits) && !before && !after {
            found.insert(format!("{prefix}{}", &rest[..digits]));
        }
    }
    found
}

#[test]
fn every_invariant_that_is_cited_is_written_down() {
    let headings = |text: &str, mark: &str, prefix: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.trim_start_matches("//! ").starts_with(mark));
        lines.flat_map(|line| numbered(line, prefix).into_iter().next()).collect()
    };
    let written = headings(&read("docs/INVARIANTS.md"), "## I", "I");
    assert!(written.len() >= 15, "{written:?}");
    let ring0 = headings(&read("crates/laminar-storage/src/ring0/mod.rs"), "- **R0-", "R0-");
    assert!(ring0.len() >= 8, "{ring0:?}");
    let mut missing = Vec::new();
    let mut uncited = written.clone();
    for path in sources(&["src", "tests"]) {
        let text = fs::read_to_string(&path).unwrap();
        for number in numbered(&text, "I") {
            uncited.remove(&number);
        }
        let cited = numbered(&text, "I").into_iter().chain(numbered(&text, "R0-"));
        missing.extend(
            cited
                .filter(|n| !written.contains(n) && !ring0.contains(n))
                .map(|n| (n, path.display().to_string())),
        );
    }
    assert!(missing.is_empty(), "cited, but not in docs/INVARIANTS.md: {missing:#?}");
    assert!(uncited.is_empty(), "no code says that it upholds {uncited:?}");
}

#[test]
fn every_case_of_the_truth_table_is_explained_to_operators() {
    let table = read("crates/laminar-storage/src/per_core_wal/recovery/cases.rs");
    let letters: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("//! | ")?.split_once(" | "))
        .map(|(letter, _)| letter)
        .filter(|letter| letter.len() == 1)
        .collect();
    assert!(letters.len() >= 10, "{letters:?}");
    let explained = read("docs/RECOVERY.md");
    let missing: Vec<_> =
        letters.iter().filter(|letter| !explained.contains(&format!("\n### Case {letter}: "))).collect();
    assert!(missing.is_empty(), "no section in docs/RECOVERY.md for: {missing:?}");
}

#[test]
fn every_test_and_path_that_the_documents_name_exists() {
    let code: String = sources(&["src", "tests", "examples", "benches"])
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut missing = Vec::new();
    let mut documents = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    for document in documents {
        let text = read(&document);
        for quoted in text.split('`').skip(1).step_by(2) {
            // Tests are named by what they show: at least three words.
            let is_test = quoted.matches('_').count() >= 3
                && quoted.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if document == "docs/INVARIANTS.md" && is_test && !code.contains(&format!("fn {quoted}(")) {
                missing.push(format!("{document}: no test {quoted}"));
            }
            let is_path =
                ["crates/", "docs/", "src/", "tests/", "examples/"].iter().any(|p| quoted.starts_with(p))
                    && !quoted.contains([' ', '*', '{', '<']);
            let library = Path::new("crates/laminar-storage").join(quoted);
            if is_path && !root().join(quoted).exists() && !root().join(library).exists() {
                missing.push(format!("{document}: no file {quoted}"));
            }
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let folder = Path::new(&document).parent().unwrap().to_path_buf();
            if !file.is_empty() && !file.contains("://") && !root().join(folder).join(file).exists() {
                missing.push(format!("{document}: dead link {target}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The scorecard's mistakes are those of the catalogue, each in its row, and the tests that notice them exist.
#[test]
fn the_catalogue_has_every_deliberate_mistake() {
    let document = read("docs/TESTING.md");
    let catalogue = document.split_once("## The catalogue").unwrap().1;
    let mut written = BTreeSet::new();
    for line in catalogue.lines().filter_map(|line| line.strip_prefix("| ")) {
        let row = line.split(' ').next().unwrap();
        let mistakes = line.rsplit(" | ").next().unwrap();
        let names = mistakes.split('`').skip(1).step_by(2);
        written
            .extend(names.filter(|name| !name.contains('/')).map(|name| (row.to_owned(), name.to_owned())));
    }
    let code: String =
        sources(&["src", "tests"]).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut made = BTreeSet::new();
    let list = read("crates/laminar-storage/src/sabotage.rs");
    let mut lines = list.split_once("\nsabotages! {").unwrap().1.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let mut words = line.split(' ');
        let (Some(row), Some(name)) = (words.next(), words.next()) else { continue };
        made.insert((row.to_owned(), name.to_owned()));
        let test = lines.next().unwrap().split('"').nth(3).unwrap();
        let test = test.rsplit("::").next().unwrap();
        let exists = code.contains(&format!("fn {test}(")) || code.contains(&format!("    {test} \""));
        assert!(exists, "{name}: there is no test {test}");
    }
    assert!(made.len() > 50, "{made:?}");
    let only = |a: &BTreeSet<_>, b: &BTreeSet<_>| a.difference(b).cloned().collect::<Vec<(String, String)>>();
    assert_eq!((only(&made, &written), only(&written, &made)), (vec![], vec![]), "code, docs/TESTING.md");
}

#[test]
fn no_source_file_is_too_long_to_read() {
    let mut offenders = Vec::new();
    for path in sources(&["src"]) {
        let is_tests = path.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "tests.rs");
        let text = fs::read_to_string(&path).unwrap();
        // Tests stand at the end of a file.
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        if !is_tests && lines > MAX_LINES {
            offenders.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(offenders.is_empty(), "more than {MAX_LINES} lines without tests: {offenders:#?}");
}
