//! `scorecard`: makes every mistake of the catalogue, one at a time, and shows which test notices.
//!
//! ```text
//! cargo run -p laminar-sim --features sabotage --bin scorecard              the whole table
//! cargo run -p laminar-sim --features sabotage --bin scorecard -- NAME…     some of it
//! cargo run -p laminar-sim --features sabotage --bin scorecard -- --search NAME…
//! ```
//!
//! The tests are built once, with the feature `sabotage`. Each mistake is then made by the environment
//! variable `LAMINAR_SABOTAGE` of a test process, and the test named beside it in `sabotage.rs` must fail.
//! The same tests must pass when no mistake is made, or their failing would mean nothing. The last line has the
//! total; unless every mistake was noticed, the command fails. `--search` runs every test with the mistake and
//! prints all that fail: for choosing the test to name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use laminar_storage::sabotage::{ALL, Entry};

/// A mistake may well make a test wait for what never comes. That is not a test that says what is wrong, so it
/// does not count as noticed. Long, because a machine that does other things as well must not make the difference.
const AT_MOST: Duration = Duration::from_secs(1800);
const PACKAGES: [&str; 3] = ["laminar-storage", "laminar-sim", "laminar-backup-tests"];

fn main() -> ExitCode {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let search = names.first().is_some_and(|name| name == "--search");
    if search {
        names.remove(0);
    }
    let run = if search { search_for(&names) } else { scorecard(&names) };
    match run {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("scorecard: {error}");
            ExitCode::from(2)
        }
    }
}

/// What came of running tests.
struct Run {
    ended: Ended,
    /// The tests that failed.
    failed: Vec<String>,
    /// What the first of them said, to see that it failed for this mistake and nothing else.
    said: String,
}

/// How a test process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Passed,
    Failed,
    /// It did not end in time.
    Hung,
    /// No test ran.
    Nothing,
}

/// The test programs: where they are, by `package/target`.
struct Programs(BTreeMap<String, (PathBuf, PathBuf)>);

impl Programs {
    /// Builds them.
    fn build() -> Result<Self, String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--no-run", "--message-format=json", "--features", "laminar-storage/sabotage"]);
        cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
        let output =
            cargo.stderr(Stdio::inherit()).output().map_err(|e| format!("could not run cargo: {e}"))?;
        if !output.status.success() {
            return Err("the tests do not build".into());
        }
        let mut programs = BTreeMap::new();
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let message: serde_json::Value =
                serde_json::from_slice(line).map_err(|e| format!("cargo said something else: {e}"))?;
            let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
            let is_test = message.pointer("/profile/test") == Some(&serde_json::Value::Bool(true));
            if let (true, Some(program), Some(manifest), Some(target)) =
                (is_test, text("/executable"), text("/manifest_path"), text("/target/name"))
            {
                let dir = PathBuf::from(manifest).with_file_name("");
                let package = dir.file_name().map(|name| name.to_string_lossy().into_owned());
                let lib = text("/target/kind/0") == Some("lib");
                let target = if lib { "lib" } else { target };
                let name = format!("{}/{target}", package.unwrap_or_default());
                programs.insert(name, (PathBuf::from(program), dir));
            }
        }
        Ok(Self(programs))
    }

    /// Runs tests of a program with a mistake; all of them where none is named.
    fn run(&self, target: &str, tests: &[&str], mistake: &str) -> Result<Run, String> {
        let (program, dir) =
            self.0.get(target).ok_or_else(|| format!("there is no test program {target}"))?;
        let log = std::env::temp_dir().join(format!("laminar-scorecard-{}", std::process::id()));
        let io = |e: std::io::Error| format!("{}: {e}", program.display());
        let mut command = Command::new(program);
        command.args(tests).args(if tests.is_empty() { &[][..] } else { &["--exact"] });
        command
            .current_dir(dir)
            .env("LAMINAR_SABOTAGE", mistake)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        command.stderr(Stdio::null()).stdout(std::fs::File::create(&log).map_err(io)?);
        let mut child = command.spawn().map_err(io)?;
        let started = Instant::now();
        let status = loop {
            match child.try_wait().map_err(io)? {
                Some(status) => break Some(status),
                None if started.elapsed() > AT_MOST => {
                    child.kill().map_err(io)?;
                    child.wait().map_err(io)?;
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let output = std::fs::read_to_string(&log).map_err(io)?;
        std::fs::remove_file(&log).map_err(io)?;
        let failed =
            output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        let ended = match status {
            None => Ended::Hung,
            Some(status) if status.code() == Some(70) => {
                return Err(format!("no mistake is called {mistake}"));
            }
            Some(status) if !status.success() => Ended::Failed,
            Some(_) if output.contains("running 0 tests") => Ended::Nothing,
            Some(_) => Ended::Passed,
        };
        let panicked = output.lines().skip_while(|line| !line.contains("panicked at"));
        let said = panicked.skip(1).find(|line| !line.is_empty()).unwrap_or_default().to_owned();
        Ok(Run { ended, failed: failed.map(str::to_owned).collect(), said })
    }
}

/// Makes the mistakes, and whether all are noticed.
fn scorecard(names: &[String]) -> Result<bool, String> {
    let chosen = choose(names)?;
    let started = Instant::now();
    let programs = Programs::build()?;
    let built = started.elapsed();
    let mut tests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in &chosen {
        tests.entry(entry.target).or_default().push(entry.test);
    }
    for (target, tests) in &mut tests {
        tests.sort_unstable();
        tests.dedup();
        let Run { ended, failed, .. } = programs.run(target, tests, "")?;
        if ended != Ended::Passed {
            return Err(format!("without any mistake {target} does not pass: {ended:?} {failed:?}"));
        }
    }
    println!("{} tests pass without any mistake", tests.values().map(Vec::len).sum::<usize>());
    println!("row  mistake                    noticed by");
    let mut survivors = Vec::new();
    for entry in &chosen {
        let began = Instant::now();
        let run = programs.run(entry.target, &[entry.test], entry.name)?;
        let took = began.elapsed().as_secs_f32();
        let said: String = run.said.chars().take(150).collect();
        let verdict = match run.ended {
            // A process that dies without a word says nothing, either.
            Ended::Failed if !said.is_empty() => said,
            other => {
                survivors.push(entry.name);
                format!("NOT NOTICED: {other:?}")
            }
        };
        println!("{:>3}  {:<25}  {} {}", entry.row, entry.name, entry.target, entry.test);
        println!("     {took:.1} s: {verdict}");
    }
    if !survivors.is_empty() {
        println!("not noticed: {}", survivors.join(" "));
    }
    let (all, noticed) = (chosen.len(), chosen.len() - survivors.len());
    let ran = (started.elapsed() - built).as_secs();
    println!("{noticed} of {all} mistakes noticed, in {ran} s after {} s of building", built.as_secs());
    Ok(survivors.is_empty())
}

/// Runs everything with each mistake.
fn search_for(names: &[String]) -> Result<bool, String> {
    let chosen = choose(names)?;
    let programs = Programs::build()?;
    for entry in chosen {
        println!("{} ({})", entry.name, entry.what);
        for target in programs.0.keys() {
            let started = Instant::now();
            let Run { ended, failed, .. } = programs.run(target, &[], entry.name)?;
            if ended != Ended::Passed && ended != Ended::Nothing {
                println!("  {target}: {ended:?} after {:.1} s {failed:?}", started.elapsed().as_secs_f32());
            }
        }
    }
    Ok(true)
}

fn choose(names: &[String]) -> Result<Vec<Entry>, String> {
    let known = |name: &String| ALL.iter().any(|entry| entry.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        return Err(format!("there is no mistake {unknown:?}"));
    }
    let wanted = |entry: &&Entry| names.is_empty() || names.iter().any(|name| name == entry.name);
    Ok(ALL.iter().filter(wanted).copied().collect())
}
