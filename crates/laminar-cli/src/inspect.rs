//! `info`: what a store's directory holds. Only reads, takes no lock, and may run beside a job.

use std::io::Write;
use std::path::{Path, PathBuf};

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use laminar_storage::format::current::Current;
use laminar_storage::incremental::{IncrementalCheckpointMetadata, Listing, read_manifest};
use laminar_storage::per_core_wal::SegmentStats;
use laminar_storage::vfs::OsVfs;
use laminar_storage::{CheckpointId, RecoveryReport, StateReader};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::belonging::job_of;
use crate::distributed::refuse_job;
use crate::engine::advice::for_user;
use crate::engine::store::read;
use crate::error::{CliError, Result};
use crate::job::Job;
use crate::opening::Watched;
use crate::progress::millis;
use crate::savepoint_dir::is_savepoint;
use crate::summary::table;

/// The parts of a store's directory.
pub struct Parts {
    state: PathBuf,
    pub wal: PathBuf,
    checkpoints: PathBuf,
}

impl Parts {
    /// Of a directory that has a store.
    pub fn of(state: &Path) -> Result<Self> {
        let parts = Self {
            state: state.to_path_buf(),
            wal: state.join("wal"),
            checkpoints: state.join("checkpoints"),
        };
        if is_savepoint(state) {
            return Err(CliError::failure(format!("{} is a savepoint, not a state", state.display()))
                .remedy("`laminar verify`, `export`, `scan`, `get`, `top` and `diff` read it; `laminar fork` makes a state of it."));
        }
        if !parts.wal.exists() && !parts.checkpoints.exists() {
            refuse_job(
                state,
                "This command does not know such states; `laminar export`, `scan`, `get` and `top` read them.",
            )?;
            return Err(CliError::failure(format!("there is no store in {}", state.display()))
                .remedy("Name its directory with --state."));
        }
        Ok(parts)
    }

    /// All published checkpoints.
    pub fn checkpoint_dirs(&self) -> Result<Vec<(CheckpointId, PathBuf)>> {
        let listing = Listing::read(&OsVfs::new(), &self.checkpoints).map_err(of_library)?;
        let dir = |id: CheckpointId| self.checkpoints.join(format!("checkpoint_{:016x}", id.get()));
        Ok(listing.checkpoints.into_iter().map(|id| (id, dir(id))).collect())
    }

    /// The number of cores that the state was last used with.
    pub fn cores(&self) -> Result<usize> {
        let current = std::fs::read(self.wal.join("CURRENT")).ok().and_then(|b| Current::decode(&b).ok());
        if let Some(current) = current {
            return Ok(usize::from(current.core_count));
        }
        let newest =
            self.checkpoint_dirs()?.pop().and_then(|(_, dir)| read_manifest(&OsVfs::new(), &dir).ok());
        Ok(newest.map_or(1, |metadata| usize::from(metadata.core_count)))
    }

    /// All segments of the log, read through. A job may be using them.
    pub fn segments(&self) -> Result<Vec<SegmentStats>> {
        StateReader::log_segments(&self.state).map_err(CliError::from)
    }
}

/// An error of the library as one of the command.
pub fn of_library(error: impl std::fmt::Display) -> CliError {
    CliError::failure(for_user(&error.to_string()))
}

/// What recovery would do, or why it would refuse; and whose state it is.
struct Found {
    report: Result<RecoveryReport>,
    job: Result<Option<Job>>,
}

impl Found {
    fn of(args: &InspectArgs) -> Self {
        let report = read(&args.state, Watched::unless(args.json)).map(|reader| reader.report().clone());
        let job = match &report {
            Ok(report) => job_of(&args.state, &report.source_offsets, report.keys),
            Err(_) => Job::load(&args.state),
        };
        Self { report, job }
    }
}

/// `laminar info`. Of a state that cannot be opened it shows the parts all the same, and fails then.
pub fn info(args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
    let parts = Parts::of(&args.state)?;
    let found = Found::of(args);
    let segments = parts.segments();
    let mut checkpoints = Vec::new();
    for (id, dir) in parts.checkpoint_dirs()? {
        let manifest = read_manifest(&OsVfs::new(), &dir).map_err(|e| for_user(&e.to_string()));
        checkpoints.push((id, manifest));
    }
    let text = if args.json {
        format!("{}\n", info_json(args, &found, &checkpoints, &segments)?)
    } else {
        info_text(args, &found, &checkpoints, &segments)
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))?;
    found.report.and(found.job).and(segments.map(drop)).map(drop)
}

type Checkpoints = [(CheckpointId, Result<IncrementalCheckpointMetadata, String>)];

fn info_json(
    args: &InspectArgs,
    found: &Found,
    checkpoints: &Checkpoints,
    segments: &Result<Vec<SegmentStats>>,
) -> Result<Value> {
    let checkpoints: Vec<Value> = checkpoints
        .iter()
        .map(|(id, manifest)| match manifest {
            Ok(m) => json!({
                "id": id.get(), "epoch": m.epoch, "timestamp_ms": m.timestamp, "keys": m.key_count,
                "bytes": m.size_bytes, "files": m.sst_files.len(), "incremental": m.is_incremental,
                "parent": m.parent_id,
            }),
            Err(error) => json!({ "id": id.get(), "error": error }),
        })
        .collect();
    let segment = |s: &SegmentStats| {
        json!({
            "core": s.core_id, "file": s.path.display().to_string(), "bytes": s.file_size,
            "records": s.entry_count, "epoch_min": s.min_epoch, "epoch_max": s.max_epoch,
        })
    };
    let segments = match segments {
        Ok(segments) => segments.iter().map(segment).collect(),
        Err(error) => json!({ "error": error.to_string() }),
    };
    Ok(json!({
        "state": args.state.display().to_string(),
        "job": or_error(&found.job)?,
        "recovery": or_error(&found.report)?,
        "checkpoints": checkpoints,
        "segments": segments,
    }))
}

/// A result as JSON; of a failure, what it says.
fn or_error<T: serde::Serialize>(result: &Result<T>) -> Result<Value> {
    match result {
        Ok(value) => serde_json::to_value(value).map_err(CliError::internal),
        Err(error) => Ok(json!({ "error": error.to_string() })),
    }
}

fn info_text(
    args: &InspectArgs,
    found: &Found,
    checkpoints: &Checkpoints,
    segments: &Result<Vec<SegmentStats>>,
) -> String {
    let mut rows = vec![("state", args.state.display().to_string())];
    match &found.job {
        Ok(Some(job)) => rows.push((
            "job",
            format!("{} by {} from {}", job.aggs.join(", "), key_name(job), job.inputs.join(" ")),
        )),
        Ok(None) => {}
        Err(error) => rows.push(("job", error.what().to_owned())),
    }
    match &found.report {
        Ok(report) => recovery_rows(report, &mut rows),
        Err(error) => rows.push(("recovery would", format!("refuse: {}", error.what()))),
    }
    let log = match segments {
        Ok(segments) => segment_table(segments).to_string(),
        Err(error) => format!("log: {}", error.what()),
    };
    format!("{}\n{}\n{log}\n", table(&rows), checkpoint_table(checkpoints))
}

fn recovery_rows(report: &RecoveryReport, rows: &mut Vec<(&'static str, String)>) {
    rows.push(("keys", HumanCount(report.keys).to_string()));
    rows.push(("recovery point", format!("epoch {}", report.recovery_point)));
    let replayed: u64 = report.cores.iter().map(|core| core.replayed).sum();
    let base = report.checkpoint.map_or_else(|| "no checkpoint".to_owned(), |id| format!("checkpoint {id}"));
    let would = format!(
        "load {base}, replay {} log records ({:.0} ms here)",
        HumanCount(replayed),
        millis(report.phases.recover)
    );
    rows.push(("recovery would", would));
    for id in &report.checkpoints_skipped {
        rows.push(("damaged", format!("checkpoint {id}; the log still covers what it held")));
    }
    for core in &report.cores {
        let case = core.case.map_or_else(String::new, |case| format!(", case {case}"));
        let cut = if core.dropped_bytes > 0 {
            format!(", cut {} torn bytes", core.dropped_bytes)
        } else {
            String::new()
        };
        let text = format!(
            "sealed epoch {}, {} records to replay{cut}{case}",
            core.sealed_epoch,
            HumanCount(core.replayed)
        );
        rows.push(("core", format!("{}: {text}", core.core)));
    }
    for (name, offset) in &report.source_offsets {
        rows.push(("source offset", format!("{name} = {offset}")));
    }
    if let Some(watermark) = report.watermark {
        rows.push(("watermark", watermark.to_string()));
    }
}

fn key_name(job: &Job) -> &str {
    if job.key.is_empty() { "word" } else { &job.key }
}

fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

fn checkpoint_table(checkpoints: &Checkpoints) -> Table {
    let mut table = plain_table(&["checkpoint", "epoch", "keys", "size", "files", "kind"]);
    for (id, manifest) in checkpoints {
        match manifest {
            Ok(m) => table.add_row([
                id.to_string(),
                m.epoch.to_string(),
                HumanCount(m.key_count).to_string(),
                HumanBytes(m.size_bytes).to_string(),
                m.sst_files.len().to_string(),
                if m.is_incremental { "incremental" } else { "full" }.to_owned(),
            ]),
            Err(error) => table.add_row([id.to_string(), format!("unreadable: {error}")]),
        };
    }
    table
}

fn segment_table(segments: &[SegmentStats]) -> Table {
    let mut table = plain_table(&["core", "segment", "size", "records", "epochs"]);
    for s in segments {
        let name = s.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        table.add_row([
            s.core_id.to_string(),
            name,
            HumanBytes(s.file_size).to_string(),
            HumanCount(s.entry_count).to_string(),
            format!("{}..={}", s.min_epoch, s.max_epoch),
        ]);
    }
    table
}
