//! Tells the program which commit it is built from. The checkout that it is run in later may be another.

use std::path::Path;
use std::process::Command;

/// What the program is made of.
const SOURCES: [&str; 7] = [
    "build.rs",
    "src",
    "Cargo.toml",
    "../laminar-storage/src",
    "../laminar-storage/Cargo.toml",
    "../../Cargo.toml",
    "../../Cargo.lock",
];

fn main() {
    let commit = commit().unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=LAMINAR_COMMIT={commit}");
    // Any change of the sources may be one that is not committed, or the end of one.
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    for path in where_head_moves() {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The newest commit, and whether what the program is made of is that.
fn commit() -> Option<String> {
    let head = git(&["rev-parse", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    let changes = git(&[&status[..], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { head } else { format!("{head} with changes") })
}

/// The files of git that change with every commit and every checkout. A branch has no file of its own while
/// it is packed; the log of `HEAD` tells that it got one. What does not exist is left out, because cargo would
/// take it for changed every time.
fn where_head_moves() -> Vec<String> {
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let names = ["HEAD".to_owned(), "logs/HEAD".to_owned()].into_iter().chain(branch);
    // In a second worktree some of them are in the first one's directory: git knows where.
    let paths = names.filter_map(|name| git(&["rev-parse", "--git-path", &name]));
    paths.filter(|path| Path::new(path).exists()).collect()
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
