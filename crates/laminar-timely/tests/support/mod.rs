//! Jobs in processes of their own: one that cannot go on, or is stopped, ends its process.
#![allow(dead_code, reason = "no test needs all of it")]

#[cfg(feature = "object-store")]
pub mod backups;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use laminar_timely::timely::dataflow::StreamVec;
use laminar_timely::{Error, FileSink, Flow, Windowed};

/// Set in the processes that run a job: the directory, and a number that says how.
const DIR: &str = "LAMINAR_TEST_DIR";
const NUMBER: &str = "LAMINAR_TEST_NUMBER";

/// In a process that runs a job: the directory and the number.
pub fn asked() -> Option<(PathBuf, u64)> {
    Some((env::var(DIR).ok()?.into(), env::var(NUMBER).ok()?.parse().unwrap()))
}

/// The job of a test, for a process of its own.
pub fn command(test: &str, dir: &Path, number: u64) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(DIR, dir).env(NUMBER, number.to_string());
    command
}

/// The job of a test, from its beginning to its end.
pub fn process(test: &str, dir: &Path, number: u64) -> Output {
    command(test, dir, number).output().unwrap()
}

/// Ends within this time, or is killed: `None`.
pub fn process_within(test: &str, dir: &Path, number: u64, limit: Duration) -> Option<i32> {
    let mut child =
        command(test, dir, number).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

pub fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// Writes lines to files below `dir`.
pub fn write<'scope>(
    flow: &mut Flow<'scope>,
    lines: StreamVec<'scope, u64, String>,
    dir: &Path,
) -> Result<(), Error> {
    let out = dir.join("out");
    let format = |line: &String, file: &mut Vec<u8>| file.extend_from_slice(format!("{line}\n").as_bytes());
    flow.sink(lines, "out", |part| FileSink::open(&out, "job", part, format)).map(drop)
}

/// All lines that were written, in order.
pub fn written(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir.join("out")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let rows = files.filter(|path| path.extension().is_some_and(|extension| extension == "rows"));
    let text: String = rows.map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// All numbers that were written, each on a line, in order.
pub fn rows(dir: &Path) -> Vec<u64> {
    let mut rows: Vec<_> = written(dir).iter().map(|line| line.parse().unwrap()).collect();
    rows.sort_unstable();
    rows
}

/// What came of a window, as a line.
pub fn line(windowed: Windowed<String, u64>) -> String {
    match windowed {
        Windowed::Closed { end, key, value } => format!("to {end}: {key} {value}"),
        Windowed::Late { end, key } => format!("late {end}: {key}"),
    }
}
