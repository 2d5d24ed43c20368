//! The job that the processes run: it counts words, and every count that changes is a row of output.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_timely::timely::dataflow::operators::Inspect;
use laminar_timely::{Cluster, Config, FileSink, OtherSize, run};
use serde::{Deserialize, Serialize};

/// Stands for a source that can go back to an offset: every line of it is this one.
const TEXT: &str = "to be or not to be that is the question";
/// How many lines there are.
const LINES: u64 = 240;
/// So many are there at first. The rest comes when the file `more` is there: until then the job is in the middle, however fast it is.
const FIRST_LINES: u64 = 180;

/// What worker 0 says first, with the line.
pub const GOES_ON: &str = "goes on behind line ";

/// How the job is run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Workers of each process.
    pub workers: usize,
    /// A worker panics in the middle.
    pub panics: bool,
    /// Each process has a directory of its own for its state, as on machines of their own.
    pub machines: bool,
    /// It is backed up.
    pub backups: bool,
    /// Its state was restored: the job is another one than that whose backups are there, and takes them over.
    pub restored: bool,
    /// How long nothing may become durable.
    pub stall_timeout: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        let stall_timeout = Duration::from_secs(60);
        Self { workers: 2, panics: false, machines: false, backups: false, restored: false, stall_timeout }
    }
}

/// What a process is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub dir: PathBuf,
    pub process: usize,
    pub addresses: Vec<String>,
    pub plan: Plan,
}

/// Where a process has its state.
pub fn state(dir: &Path, plan: &Plan, process: usize) -> PathBuf {
    if plan.machines { dir.join(format!("machine-{process}/state")) } else { dir.join("state") }
}

/// A directory stands for a bucket.
pub fn bucket(dir: &Path) -> Result<BackupTarget, Box<dyn Error>> {
    let path = dir.join("bucket");
    Ok(BackupTarget::create(&format!("file://{}", path.to_str().ok_or("the directory's path is not text")?))?)
}

/// Gives a bucket that is away up sooner than usual.
pub fn backup_options() -> BackupOptions {
    BackupOptions::new().attempts(2, Duration::from_millis(250))
}

/// Says that there is more to read.
pub fn more(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("more"), "")
}

/// Half of the rows that the job writes before it has to wait for more.
pub fn half_of_first_rows() -> usize {
    truth(FIRST_LINES / 2).values().sum()
}

/// Which rows there are to be in the end, and how often each.
pub fn all_rows() -> BTreeMap<String, usize> {
    truth(LINES)
}

/// The same in a plain loop. A line is an epoch: each word of it gives a row, also one that is there twice.
fn truth(lines: u64) -> BTreeMap<String, usize> {
    let (mut counts, mut rows) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..lines {
        let mut changed = BTreeMap::new();
        for word in TEXT.split(' ') {
            let count = counts.entry(word).or_insert(0_u64);
            *count += 1;
            changed.insert(word, *count);
        }
        for (word, count) in changed {
            *rows.entry(format!("{word} {count}")).or_insert(0) += 1;
        }
    }
    rows
}

/// Runs one process of the job to its end.
pub fn process(task: Task) -> Result<(), Box<dyn Error>> {
    ends_with_its_parent()?;
    let Task { dir, process, addresses, plan } = task;
    let cluster = Cluster { process, workers: plan.workers, addresses };
    let mut config = Config::new(state(&dir, &plan, process), "words")
        .other_size(OtherSize::Rescale)
        .connect_timeout(Duration::from_secs(10))
        .stall_timeout(Some(plan.stall_timeout));
    if plan.backups {
        config = config.backup_to(
            &bucket(&dir)?,
            &backup_options().take_over(plan.restored),
            Duration::from_millis(20),
        );
    }
    run(&cluster, &config, move |job| {
        let (out, panics) = (dir.join("out"), plan.panics);
        let mut input = job.dataflow(|flow| {
            let (input, words) = flow.input::<(String, u64)>("words")?;
            let counts = flow.fold(words, "counts", |count: &mut u64, one| *count += one)?;
            let counts = counts.inspect(move |(word, count)| {
                let bad = panics && word == "question" && *count == FIRST_LINES / 2;
                assert!(!bad, "one question too many");
            });
            flow.sink(counts, "rows", |part| {
                FileSink::open(&out, "words", part, |(word, count), row| {
                    row.extend_from_slice(format!("{word} {count}\n").as_bytes());
                })
            })?;
            Ok(input)
        })?;
        // One worker of all reads; the others finish at once, and take part in the work until the job is done.
        let mut line = job.source_offset("text").unwrap_or(0);
        if job.index() == 0 {
            println!("{GOES_ON}{line}");
        }
        while job.index() == 0 && line < LINES {
            if line != FIRST_LINES || dir.join("more").exists() {
                TEXT.split(' ').for_each(|word| input.send((word.to_owned(), 1)));
                line += 1;
                // The position and everything that came of it are durable together, or neither is.
                input.set_source_offset("text", line);
            }
            input.seal()?;
            job.idle(Duration::from_millis(3));
        }
        input.finish()
    })?;
    Ok(())
}

/// Whatever ends the parent, a kill included: its end of standard input is closed then.
fn ends_with_its_parent() -> io::Result<()> {
    let waits = || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1)
    };
    thread::Builder::new().spawn(waits).map(drop)
}
