//! Kills processes of a job again and again, and compares its output with what must come out.
//!
//! ```text
//! timely-torture drive --processes 2 --workers 1 --kills 20 --seed 7
//! ```
//! starts the job, kills one process at a random moment (start-up and recovery included), waits until the others have ended,
//! and starts all of them again, until the job is done. Then every row must be there once: those of a model, computed by other
//! code. `timely-torture worker` is one process of that job.
//!
//! With `--fault cut` the link of one process to the others is cut instead, each in a network namespace of its own (as root):
//! for a moment, after which the job is to go on, or for good, until all processes have ended by themselves. With `--fault stop`
//! a process is stopped (SIGSTOP), for a moment or until the others have ended. With `--fault disk` one write or sync of a log
//! fails in one process, in the middle of the job or while its state is opened: it must end and say so, the others too.
//!
//! With `--lose N`, and the feature `object-store`, the job has backups, and of the kills about one in N loses all machines: what
//! they have goes, but for the output, and the job goes on from its newest backup (`timely-torture restore`, which is killed too), or
//! with `--restore oldest` from an older one.
//!
//! What a process that has ended had written and not synced is lost. Names that it had not synced are still there after about one
//! kill in two, and then the power is cut: any of them may be lost.
//!
//! With `--directories each` every process has a directory of its own, as on several machines; otherwise they share one.
#![allow(clippy::print_stdout, reason = "a command that reports")]

#[cfg(feature = "object-store")]
mod backups;
mod cache;
mod drive;
mod failing;
#[cfg(feature = "object-store")]
mod lose;
mod model;
mod names;
mod network;
mod output;
mod phases;
mod processes;
mod target;
mod work;

use std::process::ExitCode;

use failing::Failing;

/// Exit code of a worker whose job could not begin.
const ENDED: u8 = 85;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(what) => {
            eprintln!(
                "{what}\nUsage: timely-torture drive|worker [--OPTION VALUE]...; see the beginning of its source"
            );
            return ExitCode::from(2);
        }
    };
    let result = match command.as_str() {
        "drive" => drive::drive(&options),
        "worker" => work::work(&options),
        #[cfg(feature = "object-store")]
        "restore" => backups::restore(&options),
        other => Err(format!("unknown command {other:?}, must be drive or worker")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("timely-torture: {what}");
            if command == "worker" { ExitCode::from(ENDED) } else { ExitCode::FAILURE }
        }
    }
}

/// What both commands take; a driver hands on what its workers need.
#[derive(Clone, Debug)]
struct Options {
    dir: std::path::PathBuf,
    processes: usize,
    workers: usize,
    /// Sizes of later runs: the job is stopped in order in between.
    sizes: Vec<(usize, usize)>,
    kills: u32,
    /// What happens to a process so often: `kill`, `stop`, `disk`, or `cut` for its link to the others.
    fault: String,
    /// Whether processes share a directory, or `each` has its own.
    directories: String,
    /// Of so many kills about one loses all machines; 0: none does.
    lose: u64,
    /// Which backup is restored: the `newest`, or the `oldest` that is there of the job's history in this size.
    restore: String,
    /// Milliseconds from the beginning of one backup to that of the next, at the least.
    backup_ms: u64,
    /// A worker takes the backups of another life of the job over.
    #[cfg(feature = "object-store")]
    takes_over: bool,
    /// What is restored, and of which backup.
    #[cfg(feature = "object-store")]
    parts: Vec<u32>,
    #[cfg(feature = "object-store")]
    backup: String,
    seed: u64,
    epochs: u64,
    events: u64,
    keys: u64,
    ahead: u64,
    /// A deliberate mistake.
    mistake: String,
    process: usize,
    addresses: Vec<String>,
    /// Where this run ends, in epochs of the whole job.
    until: u64,
    stall_ms: u64,
    /// How much longer than it takes the last process opens its state, and then the target of a sink.
    opening_ms: u64,
    /// How the disk of this process fails.
    failing: Option<Failing>,
    /// Microseconds between epochs of a worker, so that there is something to kill.
    pause_us: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: std::path::PathBuf::new(),
            processes: 2,
            workers: 1,
            sizes: Vec::new(),
            kills: 10,
            fault: "kill".to_owned(),
            directories: "shared".to_owned(),
            lose: 0,
            restore: "newest".to_owned(),
            backup_ms: 10,
            #[cfg(feature = "object-store")]
            takes_over: false,
            #[cfg(feature = "object-store")]
            parts: Vec::new(),
            #[cfg(feature = "object-store")]
            backup: String::new(),
            seed: 1,
            epochs: 200,
            events: 500,
            keys: 300,
            ahead: 16,
            mistake: String::new(),
            process: 0,
            addresses: Vec::new(),
            until: 0,
            stall_ms: 20_000,
            opening_ms: 0,
            failing: None,
            pause_us: 0,
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
            let count = || value.parse::<usize>().map_err(|e| format!("{name} {value}: {e}"));
            match name.as_str() {
                "--dir" => options.dir = value.clone().into(),
                "--processes" => options.processes = count()?,
                "--workers" => options.workers = count()?,
                "--sizes" => options.sizes = value.split(',').map(size).collect::<Result<_, _>>()?,
                "--kills" => options.kills = value.parse().map_err(|e| format!("{name} {value}: {e}"))?,
                "--fault" if ["kill", "stop", "cut", "disk"].contains(&value.as_str()) => {
                    options.fault.clone_from(&value);
                }
                "--directories" if ["shared", "each"].contains(&value.as_str()) => {
                    options.directories.clone_from(&value);
                }
                "--lose" => options.lose = number()?,
                "--restore" if ["newest", "oldest"].contains(&value.as_str()) => {
                    options.restore.clone_from(&value);
                }
                "--backup-ms" => options.backup_ms = number()?,
                #[cfg(feature = "object-store")]
                "--parts" => {
                    let parts = value.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.parts = parts.map_err(|e| format!("{name} {value}: {e}"))?;
                }
                #[cfg(feature = "object-store")]
                "--takes-over" => options.takes_over = number()? != 0,
                #[cfg(feature = "object-store")]
                "--backup" => options.backup.clone_from(&value),
                "--seed" => options.seed = number()?,
                "--epochs" => options.epochs = number()?,
                "--events" => options.events = number()?,
                "--keys" => options.keys = number()?,
                "--ahead" => options.ahead = number()?,
                "--mistake" => options.mistake.clone_from(&value),
                "--process" => options.process = count()?,
                "--addresses" => options.addresses = value.split(',').map(str::to_owned).collect(),
                "--until" => options.until = number()?,
                "--stall-ms" => options.stall_ms = number()?,
                "--opening-ms" => options.opening_ms = number()?,
                "--failing" => options.failing = Some(value.parse()?),
                "--pause-us" => options.pause_us = number()?,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if options.lose > 0 && !cfg!(feature = "object-store") {
            return Err("--lose needs the feature object-store".to_owned());
        }
        if options.lose > 0 && options.fault != "kill" {
            return Err("--lose goes with kills only".to_owned());
        }
        Ok(options)
    }

    /// Whether an older backup is restored than the newest.
    #[cfg(feature = "object-store")]
    fn goes_back(&self) -> bool {
        self.restore == "oldest"
    }

    /// Where this process' rows go. What a machine has may be lost, and the output is what the world has seen.
    fn out_dir(&self) -> std::path::PathBuf {
        if self.lose > 0 { self.dir.join("out") } else { self.own_dir().join("out") }
    }

    /// Where note is taken of names that are not durable, of the state and of the rows. They go when what they are in is lost.
    fn names(&self) -> [std::path::PathBuf; 2] {
        [self.own_dir().join("state-names"), self.out_dir().join("names")]
    }

    /// Those of all processes, whatever size the job had.
    fn all_names(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let machine = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("machine-");
        let machines = entries.filter(machine).map(|entry| entry.path());
        let places = machines.chain([self.dir.clone()]);
        places
            .flat_map(|dir| [dir.join("state-names"), dir.join("out/names")])
            .filter(|dir| dir.is_dir())
            .collect()
    }

    /// The directory of this process.
    fn own_dir(&self) -> std::path::PathBuf {
        if self.directories == "each" {
            self.dir.join(format!("machine-{}", self.process))
        } else {
            self.dir.clone()
        }
    }
}

/// `2x1`: processes and workers.
fn size(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('x').and_then(|(p, w)| Some((p.parse().ok()?, w.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is no size such as 2x1"))
}
