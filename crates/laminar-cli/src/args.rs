//! The command line. The help texts are the first documentation that anybody reads.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{CliError, Result};
use crate::input::Format;
use crate::pipeline::OnError;

const EXAMPLES: &str = "\
Examples:
  laminar demo                          see a job survive being killed; needs nothing
  laminar generate events.ndjson        input to try the following on
  laminar run events.ndjson --key user.id --agg count,sum:amount
  laminar top 10 --by sum:amount
  laminar export --format csv --output totals.csv

All but demo, generate, bench and diff work on a state directory: --state DIR, otherwise ./laminar-state;
fork makes a new one and must be told where. diff takes two directories. Each job needs its own.

Exit codes: 0 done (or stopped cleanly by Ctrl-C), 1 failure or damage, 2 wrong usage, 130 a job
ended at once by a second Ctrl-C (safe). Of diff: 0 no difference, 1 a difference, 2 trouble.";

const RUN_HELP: &str = "\
Examples:
  # how often and how much per user, from newline-delimited JSON
  laminar run events.ndjson --key user.id --agg count --agg sum:amount --state ./totals

  # several CSV files, two cores, bad records kept for later
  laminar run 'logs/*.csv' --key page --agg count,max:amount --state ./pages --cores 2 \\
    --on-error dead-letter bad.ndjson

  # word count; every word is its own key
  laminar run book.txt --format words --state ./words

  # a growing file, until Ctrl-C
  laminar run events.ndjson --follow --key type --state ./types

Killed, crashed, or stopped with Ctrl-C: run the same command again. It continues at the record
where the last durable epoch ended, and the results are the same bytes as without interruption.
New data at the end of a file, and new files that match a pattern, are read at the next run.

A file must stay as it was as far as it was read. Checked at each start: that it is not shorter,
and its first 64 KiB. A change behind those is not noticed. A file under --follow that is renamed,
removed, replaced or cut off (log rotation) ends the job with exit code 1, everything read so far
durable. The new file is for another job, with another --state.

Exit codes: 0 all input read (or stopped cleanly by a first Ctrl-C or SIGTERM; --json says
\"finished\": false then), 1 failure, 2 wrong usage, 130 ended at once by a second Ctrl-C (safe).
With --workers also 86: this process ended because the job cannot go on, or another one has ended.";

const BENCH_HELP: &str = "\
Examples:
  laminar bench --quick                   everything, in some minutes
  laminar bench durable                   puts until they are on the disk, beside raw writes
  laminar bench ring0 --json ring0.json   latency of single operations; figures and plots in files

Files of a run go to a directory of its own in the current one, or in --dir DIR, which should be
on the disk that is to be measured, with room for some 20 GB (4 GB with --quick). It is gone at
the end, and after Ctrl-C. Figures of a busy machine are those of a busy machine. Other stores
beside this one: laminar-bench in the repository.

Exit codes: 0 measured, 1 a failure, or a comparison found a difference, 2 wrong usage,
130 ended by Ctrl-C.";

/// A crash-safe keyed aggregation over files, and tools to look at its state.
#[derive(Debug, Parser)]
#[command(name = "laminar", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Aggregate records of files by key; survives being killed at any moment
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Show the values of one key
    Get(GetArgs),
    /// Show the keys with the largest values
    Top(TopArgs),
    /// List keys and values, sorted by key
    Scan(ScanArgs),
    /// Write all keys and values, sorted by key: equal states give equal bytes
    Export(ExportArgs),
    /// Show what a state directory holds, and what recovery would do
    Info(InspectArgs),
    /// Read and check everything in a state directory
    #[command(after_help = "Exit code 0 if everything is readable, 1 if anything is damaged.")]
    Verify(InspectArgs),
    /// Copy a state, by links: a savepoint, which nothing removes and which stands on its own
    Savepoint(SavepointArgs),
    /// Begin a new state with a savepoint
    Fork(ForkArgs),
    /// Copy a state to an object store or a directory: what is not there yet
    #[cfg(feature = "object-store")]
    Backup(crate::backup::args::BackupArgs),
    /// Make a state of a backup
    #[cfg(feature = "object-store")]
    Restore(crate::backup::args::RestoreArgs),
    /// List backups, or verify them
    #[cfg(feature = "object-store")]
    Backups(crate::backup::args::BackupsArgs),
    /// Show what is different between two savepoints, checkpoints or states
    Diff(DiffArgs),
    /// Write an event file to try the command on, and the result that must come out
    Generate(GenerateArgs),
    /// Kill a job again and again, and compare its result with the truth; under 30 seconds
    Demo(DemoArgs),
    /// Measure the store on this machine, beside the least that must be done: latency, throughput, checkpoints, opening
    #[command(after_help = BENCH_HELP)]
    Bench(laminar_bench::Bench),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Files, or patterns such as 'logs/*.csv' (in quotes, so that new files are found later)
    #[arg(required = true, value_name = "FILE")]
    pub inputs: Vec<String>,

    /// Field to aggregate by: a dotted path (user.id; \. for a point in a name) for JSON, a column
    /// for CSV and TSV; not used for words
    #[arg(long, short, value_name = "FIELD")]
    pub key: Option<String>,

    /// What to compute per key: count, sum:FIELD, min:FIELD, max:FIELD, last:FIELD; repeat the
    /// option or separate by commas [default: count]
    #[arg(long, short, value_name = "AGG", value_delimiter = ',')]
    pub agg: Vec<String>,

    /// Format of the input; auto goes by the file's name, then by its first line
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    pub format: FormatArg,

    /// Directory of the state; made if it does not exist. It belongs to the command line that first
    /// applied a record in it
    #[arg(long, short, value_name = "DIR", default_value = "./laminar-state")]
    pub state: PathBuf,

    /// Threads that own keys; may be changed from run to run [default: number of CPUs, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: Option<u16>,

    /// Time between two epochs; what is not in a durable epoch is computed again after a crash
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = humantime::parse_duration)]
    pub epoch: Duration,

    /// Longest time between two checkpoints, at most 30 days; 0s: only by the size of the log
    /// [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub checkpoint_interval: Option<Duration>,

    /// Longest time that recovering should take after a crash; checkpoints are made early enough for
    /// that. At most 1h. The summary says how long it would take now, and --json-stream says so
    /// while the job runs (estimated_recovery_seconds) [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_objective)]
    pub recovery_objective: Option<Duration>,

    /// What to do with a record that cannot be used: stop, skip, or dead-letter FILE
    #[arg(long, value_name = "stop|skip|dead-letter FILE", default_value = "stop", value_parser = parse_on_error)]
    pub on_error: OnError,

    /// Wait for more at the end of the file, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,

    /// Export all results to this file at the end; .csv gives CSV, anything else NDJSON
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Run on so many worker threads in each process of a job, instead of --cores; see docs/DISTRIBUTED.md. Process 0 reads
    /// the input, keys are owned by the workers of all processes
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with_all = ["cores", "follow", "json_stream", "recovery_objective"])]
    pub workers: Option<u16>,

    /// How many processes run the job; each is started with the same command and its own --process
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=1024), requires = "workers")]
    pub processes: Option<u16>,

    /// Which of the processes this is, from 0
    #[arg(long, value_name = "I", requires = "processes")]
    pub process: Option<u16>,

    /// File with a line HOST:PORT for each process, where it listens; the same for all
    #[arg(long, value_name = "FILE", requires = "processes")]
    pub hosts: Option<PathBuf>,

    /// Distribute the state anew if it is that of another number of processes or workers
    #[arg(long, requires = "workers")]
    pub rescale: bool,

    /// End this process when not all others are there after so long; 0s waits for ever [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_interval, requires = "processes")]
    pub connect_timeout: Option<Duration>,

    /// End this process when the others are waited for so long before the job begins, while states and the output are
    /// opened, distributed and backed up; 0s waits for ever [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_interval, requires = "workers")]
    pub start_timeout: Option<Duration>,

    /// End this process when nothing became durable for so long while workers wait for it; 0s waits for ever
    /// [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_interval, requires = "workers")]
    pub stall_timeout: Option<Duration>,

    #[cfg(feature = "object-store")]
    #[command(flatten)]
    pub backup: crate::backup::args::RunBackupArgs,

    /// Print the summary as one JSON object
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,

    /// Print one JSON object per line: the recovery, the progress every 50 ms, the summary last
    #[arg(long, conflicts_with_all = ["quiet", "json"])]
    pub json_stream: bool,

    /// Print nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    Auto,
    Ndjson,
    Csv,
    Tsv,
    Words,
}

impl FormatArg {
    /// The format, unless it is to be recognised.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Auto => None,
            Self::Ndjson => Some(Format::Ndjson),
            Self::Csv => Some(Format::Csv),
            Self::Tsv => Some(Format::Tsv),
            Self::Words => Some(Format::Words),
        }
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(30 * 24 * 3600);
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval > MOST {
        return Err("at most 30 days".to_owned());
    }
    // The store counts milliseconds, and 0 of them would mean never.
    Ok(if interval.is_zero() { interval } else { interval.max(Duration::from_millis(1)) })
}

fn parse_objective(text: &str) -> Result<Duration, String> {
    let objective = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    match objective {
        Duration::ZERO => Err("more than nothing".to_owned()),
        objective if objective > Duration::from_secs(3600) => Err("at most 1h".to_owned()),
        objective => Ok(objective.max(Duration::from_millis(1))),
    }
}

fn parse_on_error(text: &str) -> Result<OnError, String> {
    match text.split_once([':', '=']).unwrap_or((text, "")) {
        ("stop", "") => Ok(OnError::Stop),
        ("skip", "") => Ok(OnError::Skip),
        ("dead-letter", "") => Err("dead-letter needs a file: --on-error dead-letter FILE".to_owned()),
        ("dead-letter", file) => Ok(OnError::DeadLetter(PathBuf::from(file))),
        _ => Err("use stop, skip, or dead-letter FILE".to_owned()),
    }
}

/// `--on-error dead-letter FILE` has a value of two words; clap could not tell the second from an
/// input file, so the two become one before it sees them.
pub fn join_dead_letter(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let after_option = joined.last().is_some_and(|last| last == "--on-error");
        let takes_file = (after_option && arg == "dead-letter") || arg == "--on-error=dead-letter";
        let file =
            if takes_file { args.next_if(|next| !next.to_string_lossy().starts_with('-')) } else { None };
        match file {
            Some(file) => {
                let mut both = arg;
                both.push(":");
                both.push(file);
                joined.push(both);
            }
            None => joined.push(arg),
        }
    }
    joined
}

/// Where the state is; the same for all tools.
#[derive(Debug, Args)]
pub struct StateArg {
    /// Directory of the state
    #[arg(long, short, value_name = "DIR", default_value = "./laminar-state")]
    pub state: PathBuf,

    /// Show stored bytes as hexadecimal instead of what the job's aggregates make of them
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  laminar get user-0000042 --state ./laminar-state\n\nExit code 1 if there is no such key."
)]
pub struct GetArgs {
    /// The key; need not be text
    pub key: OsString,
    #[command(flatten)]
    pub state: StateArg,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  laminar top\n  laminar top 20 --by sum:amount --json")]
pub struct TopArgs {
    /// How many
    #[arg(value_name = "N", default_value = "10")]
    pub count: NonZeroUsize,
    /// The aggregate to order by, as given to `run` [default: the first numeric one]
    #[arg(long, value_name = "AGG")]
    pub by: Option<String>,
    #[command(flatten)]
    pub state: StateArg,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  laminar scan --prefix user-000 --limit 20")]
pub struct ScanArgs {
    /// Only keys that begin with this; need not be text
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<OsString>,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub state: StateArg,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    Ndjson,
    Csv,
}

const EXPORT_HELP: &str = "\
Examples:
  laminar export > totals.ndjson
  laminar export --output totals.csv

On a terminal, characters that it would act on are escaped; a file or a pipe gets the very bytes.
What a program stored instead of `laminar run` and is no text stands under key_hex and value_hex in
NDJSON; CSV has all of such a state escaped: \\n, \\u{1b}, \\xff, \\\\.";

#[derive(Debug, Args)]
#[command(after_help = EXPORT_HELP)]
pub struct ExportArgs {
    /// Format of the output [default: csv if --output ends in .csv, otherwise ndjson]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// File to write, replaced as a whole when complete [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub state: StateArg,
}

const SAVEPOINT_HELP: &str = "\
Example:
  laminar savepoint ./before-upgrade --state ./laminar-state

The state must not be in use. It is opened as `run` opens it, and a checkpoint is made if the newest one does
not hold all of it. The files are linked, not copied, where the file system allows that: a savepoint then
takes hardly any time of its own, and no room until the state has changed. Remove one with rm -r; neither
side needs the other. `get`, `top`, `scan`, `export`, `verify` and `diff` read it as they read a state.";

#[derive(Debug, Args)]
#[command(after_help = SAVEPOINT_HELP)]
pub struct SavepointArgs {
    /// Directory to make; must not exist, and not be in the state directory's wal or checkpoints
    pub dir: PathBuf,
    /// Directory of the state
    #[arg(long, short, value_name = "DIR", default_value = "./laminar-state")]
    pub state: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

const FORK_HELP: &str = "\
Example:
  laminar savepoint ./before --state ./totals
  laminar fork ./before --state ./what-if
  laminar run events.ndjson --key user.id --agg count,sum:amount --state ./what-if

The new state goes on by itself: with the command line of the job that made the savepoint, `laminar run` reads
on where that one was. Dead-letter files stay with the old state; name another one.";

#[derive(Debug, Args)]
#[command(after_help = FORK_HELP)]
pub struct ForkArgs {
    /// Directory of the savepoint
    pub savepoint: PathBuf,
    /// Directory of the new state; must not exist
    #[arg(long, short, value_name = "DIR")]
    pub state: PathBuf,
    /// The job.json to go on with [default: that of the savepoint]
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

const DIFF_HELP: &str = "\
Examples:
  laminar diff ./before ./laminar-state
  laminar diff ./before ./after --list --limit 20
  laminar diff ./before ./after --list --json --prefix user-00

Each is the directory of a savepoint, of a checkpoint, or of a state (whose newest recoverable state counts;
it may be in use). Lines of --list begin with + for a key that only the second has, - for one that only the
first has, ~ for one whose value changed.

Exit codes, as of diff(1): 0 no difference, 1 a difference, 2 trouble.";

#[derive(Debug, Args)]
#[command(after_help = DIFF_HELP)]
pub struct DiffArgs {
    /// The first directory
    #[arg(value_name = "A")]
    pub before: PathBuf,
    /// The second directory
    #[arg(value_name = "B")]
    pub after: PathBuf,
    /// List the keys that differ, with their values, and not only how many
    #[arg(long)]
    pub list: bool,
    /// List at most so many; all are counted
    #[arg(long, value_name = "N", requires = "list")]
    pub limit: Option<usize>,
    /// Only keys that begin with this; need not be text
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<OsString>,
    /// Show stored bytes as hexadecimal instead of what the job's aggregates make of them
    #[arg(long, requires = "list")]
    pub raw: bool,
    /// Print JSON: one object per key that is listed, and one with the numbers at the end
    #[arg(long)]
    pub json: bool,
}

const GENERATE_HELP: &str = "\
The fields are ts, user.id, page, type and amount (two decimal places, negative for returns). The
same options give the same bytes. With uniform keys every key occurs once there are events enough.

Example:
  laminar generate events.ndjson --truth truth.ndjson
  laminar run events.ndjson --key user.id --agg count,sum:amount --state ./state
  laminar export --state ./state --output result.ndjson
  cmp result.ndjson truth.ndjson";

#[derive(Debug, Args)]
#[command(after_help = GENERATE_HELP)]
pub struct GenerateArgs {
    /// File to write
    pub file: PathBuf,
    /// Events to write
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub events: u64,
    /// Number of different users
    #[arg(long, value_name = "K", default_value = "100000")]
    pub keys: NonZeroU64,
    /// Seed of the events
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
    /// Most events by few users (Zipf's law), instead of equally many by each
    #[arg(long)]
    pub zipf: bool,
    /// Format of the events [default: csv if FILE ends in .csv, otherwise ndjson]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// Also write the result, computed by other code than a job's: the bytes that `laminar export`
    /// gives after --key user.id --agg count,sum:amount
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
}

const DEMO_HELP: &str = "\
Examples:
  laminar demo --kills 10 --keep ./laminar-demo
  # ten million events, a million keys, twenty kills; about 2 GB below --keep or the temporary
  # directory (TMPDIR)
  laminar demo --events 10000000 --keys 1000000 --kills 20 --cores 2";

#[derive(Debug, Args)]
#[command(after_help = DEMO_HELP)]
pub struct DemoArgs {
    /// Events to write and aggregate
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    pub events: u64,
    /// Number of different users [default: one for every eight events]
    #[arg(long, value_name = "K")]
    pub keys: Option<NonZeroU64>,
    /// Most events by few users (Zipf's law), instead of equally many by each
    #[arg(long)]
    pub zipf: bool,
    /// How often to kill the job
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub kills: u32,
    /// Cores of the job
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: u16,
    /// Seed of the events and of the moments of the kills
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,
    /// Keep events, state and results in this new directory, instead of removing them
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory of the state
    #[arg(long, short, value_name = "DIR", default_value = "./laminar-state")]
    pub state: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Refuses input that a job could not read again from any position.
pub fn check_inputs(inputs: &[String]) -> Result<()> {
    if inputs.iter().any(|i| i == "-") {
        return Err(CliError::usage("standard input cannot be read again after a crash")
            .remedy("Write it to a file and use --follow on that file."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn run_args(args: &[&str]) -> Result<RunArgs, String> {
        let args = ["laminar", "run"].iter().chain(args).map(OsString::from);
        match Cli::try_parse_from(join_dead_letter(args)).map_err(|e| e.to_string())?.command {
            Command::Run(run) => Ok(run),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn on_error_takes_one_or_two_words() {
        let on_error = |args: &[&str]| run_args(args).unwrap().on_error;
        assert_eq!(on_error(&["a"]), OnError::Stop);
        assert_eq!(on_error(&["--on-error", "skip", "a"]), OnError::Skip);
        let file = OnError::DeadLetter("bad file".into());
        for args in [
            &["--on-error", "dead-letter", "bad file", "a"][..],
            &["a", "--on-error", "dead-letter:bad file"],
            &["a", "--on-error=dead-letter", "bad file"],
            &["a", "--on-error=dead-letter=bad file"],
        ] {
            assert_eq!(on_error(args), file, "{args:?}");
            assert_eq!(run_args(args).unwrap().inputs, ["a"]);
        }
        assert!(run_args(&["a", "--on-error", "dead-letter"]).unwrap_err().contains("needs a file"));
        assert!(run_args(&["a", "--on-error", "ignore"]).is_err());
    }

    #[test]
    fn aggregates_may_be_repeated_or_separated() {
        let run = run_args(&["a", "b", "-k", "u", "-a", "count,sum:x", "--agg", "max:y", "--epoch", "5ms"])
            .unwrap();
        assert_eq!(run.agg, ["count", "sum:x", "max:y"]);
        assert_eq!(run.epoch, Duration::from_millis(5));
    }

    #[test]
    fn intervals_that_the_store_refuses_are_refused_here() {
        let interval =
            |text: &str| run_args(&["a", "--checkpoint-interval", text]).map(|r| r.checkpoint_interval);
        assert_eq!(interval("0s").unwrap(), Some(Duration::ZERO));
        assert_eq!(interval("1us").unwrap(), Some(Duration::from_millis(1)));
        assert_eq!(interval("30days").unwrap(), Some(Duration::from_secs(2_592_000)));
        assert!(interval("31days").unwrap_err().contains("at most 30 days"));
    }

    #[test]
    fn limits_of_a_job_are_times_and_want_workers() {
        let limits =
            |text: &str| run_args(&["a", "--workers", "1", "--start-timeout", text, "--stall-timeout", "3s"]);
        let several = ["a", "--workers", "1", "--processes", "2", "--connect-timeout", "5m"];
        assert_eq!(run_args(&several).unwrap().connect_timeout, Some(Duration::from_secs(300)));
        assert!(run_args(&["a", "--connect-timeout", "5m"]).unwrap_err().contains("--processes"));
        let run = limits("2h").unwrap();
        assert_eq!(
            (run.start_timeout, run.stall_timeout),
            (Some(Duration::from_secs(7200)), Some(Duration::from_secs(3)))
        );
        assert_eq!(limits("0s").unwrap().start_timeout, Some(Duration::ZERO));
        assert!(limits("soon").is_err());
        for option in ["--start-timeout", "--stall-timeout"] {
            assert!(run_args(&["a", option, "1s"]).unwrap_err().contains("--workers"));
        }
    }

    #[test]
    fn an_objective_is_a_time_that_the_store_accepts() {
        let objective =
            |text: &str| run_args(&["a", "--recovery-objective", text]).map(|r| r.recovery_objective);
        assert_eq!(objective("2s").unwrap(), Some(Duration::from_secs(2)));
        assert_eq!(objective("1us").unwrap(), Some(Duration::from_millis(1)));
        assert_eq!(objective("1h").unwrap(), Some(Duration::from_secs(3600)));
        assert!(objective("0s").unwrap_err().contains("more than nothing"));
        assert!(objective("61m").unwrap_err().contains("at most 1h"));
        assert_eq!(run_args(&["a"]).unwrap().recovery_objective, None);
    }
}
