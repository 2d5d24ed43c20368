//! From the command line to the parts that do the work.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use crate::agg::Plan;
use crate::args::{Command, ExportArgs, ExportFormat, RunArgs, check_inputs};
use crate::engine::{Engine, StateView};
use crate::error::{CliError, Result};
use crate::export::{self, Meaning, Reader};
use crate::input::source::BATCH_LEN;
use crate::job::Job;
use crate::opening::Watched;
use crate::pipeline::OnError;
use crate::pipeline::{self, Observer, Settings};
use crate::progress::{Bar, JsonStream, Silent};
use crate::{
    bench, demo, diff, distributed, generate, inspect, output, query, savepoint, signals, summary, verify,
};

/// More than this many cores by default would starve a laptop of everything else.
const CORES_DEFAULT_MAX: usize = 4;

/// Runs one command over the given store.
pub fn run<E: Engine, V: StateView>(command: &Command) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    match command {
        Command::Run(args) => {
            drop(out);
            run_job::<E, V>(args)
        }
        Command::Get(args) => query::get::<V>(args, &mut out),
        Command::Top(args) => query::top::<V>(args, &mut out),
        Command::Scan(args) => query::scan::<V>(args, &mut out),
        Command::Export(args) => export_state::<V>(args, &mut out),
        Command::Info(args) => inspect::info(args, &mut out),
        Command::Verify(args) => verify::verify(args, &mut out),
        Command::Savepoint(args) => savepoint::savepoint(args, &mut out),
        Command::Fork(args) => savepoint::fork(args, &mut out),
        #[cfg(feature = "object-store")]
        Command::Backup(args) => crate::backup::backup(args, &mut out),
        #[cfg(feature = "object-store")]
        Command::Restore(args) => crate::backup::restore(args, &mut out),
        #[cfg(feature = "object-store")]
        Command::Backups(args) => crate::backup::backups(args, &mut out),
        Command::Diff(args) => diff::diff_states(args, &mut out).map_err(CliError::into_trouble),
        Command::Generate(args) => generate::run(args, &mut out),
        Command::Demo(args) => {
            drop(out);
            demo::run(args)
        }
        Command::Bench(args) => {
            drop(out);
            bench::run(args)
        }
    }
}

fn settings(args: &RunArgs) -> Result<Settings> {
    check_inputs(&args.inputs)?;
    let cores = args.cores.map_or_else(
        || thread::available_parallelism().map_or(1, usize::from).min(CORES_DEFAULT_MAX),
        usize::from,
    );
    Ok(Settings {
        inputs: args.inputs.clone(),
        format: args.format.format(),
        key: args.key.clone(),
        plan: Plan::parse(&args.agg)?,
        state: args.state.clone(),
        cores,
        epoch: args.epoch,
        checkpoint_interval: args.checkpoint_interval,
        recovery_objective: args.recovery_objective,
        #[cfg(feature = "object-store")]
        backups: crate::backup::running::Running::new(&args.backup, &args.state, args.workers.is_some())?,
        opening: Watched::unless(args.json || args.json_stream || args.quiet),
        on_error: args.on_error.clone(),
        follow: args.follow,
        batch_len: BATCH_LEN,
        parsers: None,
    })
}

fn run_job<E: Engine, V: StateView>(args: &RunArgs) -> Result<()> {
    let settings = settings(args)?;
    check_output(args)?;
    let stop = signals::install()?;
    distributed::check_kind(&settings.state, args.workers.is_some())?;
    if let Some(workers) = args.workers {
        return run_distributed::<V>(args, &settings, workers, stop);
    }
    let mut observer: Box<dyn Observer> = if args.json_stream {
        Box::new(JsonStream)
    } else if args.json || args.quiet || !std::io::stderr().is_terminal() {
        Box::new(Silent)
    } else {
        Box::new(Bar::new())
    };
    let outcome = pipeline::run::<E>(&settings, &stop, observer.as_mut())?;
    // The bar must be gone before anything else is printed.
    drop(observer);
    let finished = outcome.finished;
    let mut exported = None;
    if let (true, Some(path)) = (finished, &args.output) {
        let view = V::open_watched(&settings.state, settings.opening)?;
        let meaning = Meaning::of(&settings.state, false, view.report())?;
        exported = Some(export::to_file(&view, &meaning, export::format_of(path), path)?);
    }
    if args.json || args.json_stream {
        let mut json = summary::json(&outcome, &settings.state);
        // Where the results were written; null if they were not.
        json["output"] = exported.and(args.output.as_ref()).map(|path| path.display().to_string()).into();
        print(&json.to_string())?;
    } else if !args.quiet {
        print(&summary::text(&outcome, &settings.state))?;
        if let (Some(keys), Some(path)) = (exported, &args.output) {
            print(&format!("{keys} keys written to {}", path.display()))?;
        }
    }
    tell_unwritten(args, finished);
    #[cfg(feature = "object-store")]
    if let (None, Some(backed_up)) = (&outcome.stopped_by, &outcome.backed_up) {
        backed_up.check()?;
    }
    outcome.stopped_by.map_or(Ok(()), Err)
}

/// Says that there are no results yet; also with --quiet: the exit code alone would let one take an old file for them.
fn tell_unwritten(args: &RunArgs, finished: bool) {
    if let (false, Some(path)) = (finished, &args.output) {
        let _ = writeln!(
            std::io::stderr(),
            "laminar: stopped before the end of the input; {} was not written.",
            path.display()
        );
    }
}

/// Runs this process' part of a job of several; what the whole job did, process 0 says.
fn run_distributed<V: StateView>(
    args: &RunArgs,
    settings: &Settings,
    workers: u16,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let cluster = distributed::cluster(args, workers)?;
    let Some(outcome) = distributed::run(settings, &cluster, args, stop)? else {
        return Ok(());
    };
    if let (true, Some(path)) = (outcome.finished, &args.output) {
        let view = V::open_watched(&settings.state, settings.opening)?;
        let meaning = Meaning::of(&settings.state, false, view.report())?;
        export::to_file(&view, &meaning, export::format_of(path), path)?;
    }
    if args.json {
        print(&distributed::json(&outcome, &cluster).to_string())?;
    } else if !args.quiet {
        print(&distributed::text(&outcome, &cluster))?;
    }
    tell_unwritten(args, outcome.finished);
    outcome.stopped_by.or(outcome.not_backed_up).map_or(Ok(()), Err)
}

/// Refuses to write over the job's own files, before anything is done.
fn check_output(args: &RunArgs) -> Result<()> {
    let Some(path) = &args.output else { return Ok(()) };
    let dead_letter = match &args.on_error {
        OnError::DeadLetter(file) => Some(file.as_path()),
        OnError::Stop | OnError::Skip => None,
    };
    output::check(path, &args.inputs, dead_letter, &args.state)?;
    output::check_with_job(path, Job::load(&args.state)?.as_ref(), &args.state)
}

fn export_state<V: StateView>(args: &ExportArgs, out: &mut dyn Write) -> Result<()> {
    let state: &Path = &args.state.state;
    if let Some(path) = &args.output {
        // With --raw a damaged job.json must not be in the way; its own place is still refused.
        let job = if args.state.raw { Job::load(state).ok().flatten() } else { Job::load(state)? };
        output::check_with_job(path, job.as_ref(), state)?;
    }
    let view = V::open_watched(state, Watched::unless(false))?;
    let meaning = Meaning::of(state, args.state.raw, view.report())?;
    let format = args.format.or(args.output.as_deref().map(export::format_of));
    let format = format.unwrap_or(ExportFormat::Ndjson);
    match &args.output {
        Some(path) => export::to_file(&view, &meaning, format, path).map(|_| ()),
        None => {
            let reader = if std::io::stdout().is_terminal() { Reader::Person } else { Reader::Program };
            export::write_all(&view, &meaning, format, out, reader, &CliError::stdout).map(|_| ())
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}
