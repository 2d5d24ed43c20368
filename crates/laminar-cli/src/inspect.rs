//! `info`: what a store's directory holds. Only reads, takes no lock, and may run beside a job.

use std::io::Write;
use std::path::{Path, PathBuf};

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use laminar_storage::format::current::Current;
use laminar_storage::incremental::{IncrementalCheckpointMetadata, Listing, RecoveryConfig, read_manifest};
use laminar_storage::per_core_wal::{PerCoreRecoveryManager, PerCoreWalConfig, SegmentStats};
use laminar_storage::vfs::OsVfs;
use laminar_storage::{CheckpointId, RecoveryReport};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::belonging::job_of;
use crate::engine::advice::for_user;
use crate::engine::store::read;
use crate::error::{CliError, Result};
use crate::job::Job;
use crate::opening::Watched;
use crate::progress::millis;
use crate::summary::table;

/// The parts of a store's directory.
pub struct Parts {
    pub wal: PathBuf,
    checkpoints: PathBuf,
}

impl Parts {
    /// Of a directory that has a store.
    pub fn of(state: &Path) -> Result<Self> {
        let parts = Self { wal: state.join("wal"), checkpoints: state.join("checkpoints") };
        if !parts.wal.exists() && !parts.checkpoints.exists() {
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

    /// All segments of the log, read through.
    pub fn segments(&self) -> Result<Vec<SegmentStats>> {
        // The number of cores is not used for statistics; the directory says how many there are.
        let manager = PerCoreRecoveryManager::new(
            PerCoreWalConfig::new(&self.wal, 1),
            RecoveryConfig::new(&self.checkpoints, &self.wal),
        );
        manager.segment_stats().map_err(of_library)
    }
}

/// An error of the library as one of the command.
pub fn of_library(error: impl std::fmt::Display) -> CliError {
    CliError::failure(for_user(&error.to_string()))
}

/// `laminar info`.
pub fn info(args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
    let parts = Parts::of(&args.state)?;
    let reader = read(&args.state, Watched::unless(args.json))?;
    let report = reader.report();
    let job = job_of(&args.state, &report.source_offsets, report.keys)?;
    let segments = parts.segments()?;
    let mut checkpoints = Vec::new();
    for (id, dir) in parts.checkpoint_dirs()? {
        let manifest = read_manifest(&OsVfs::new(), &dir).map_err(|e| for_user(&e.to_string()));
        checkpoints.push((id, manifest));
    }
    let text = if args.json {
        format!("{}\n", info_json(args, job.as_ref(), report, &checkpoints, &segments)?)
    } else {
        info_text(args, job.as_ref(), report, &checkpoints, &segments)
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

type Checkpoints = [(CheckpointId, Result<IncrementalCheckpointMetadata, String>)];

fn info_json(
    args: &InspectArgs,
    job: Option<&Job>,
    report: &RecoveryReport,
    checkpoints: &Checkpoints,
    segments: &[SegmentStats],
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
    let segments: Vec<Value> = segments
        .iter()
        .map(|s| {
            json!({
                "core": s.core_id, "file": s.path.display().to_string(), "bytes": s.file_size,
                "records": s.entry_count, "epoch_min": s.min_epoch, "epoch_max": s.max_epoch,
            })
        })
        .collect();
    Ok(json!({
        "state": args.state.display().to_string(),
        "job": serde_json::to_value(job).map_err(CliError::internal)?,
        "recovery": serde_json::to_value(report).map_err(CliError::internal)?,
        "checkpoints": checkpoints,
        "segments": segments,
    }))
}

fn info_text(
    args: &InspectArgs,
    job: Option<&Job>,
    report: &RecoveryReport,
    checkpoints: &Checkpoints,
    segments: &[SegmentStats],
) -> String {
    let mut rows = vec![("state", args.state.display().to_string())];
    if let Some(job) = job {
        rows.push((
            "job",
            format!("{} by {} from {}", job.aggs.join(", "), key_name(job), job.inputs.join(" ")),
        ));
    }
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
    format!("{}\n{}\n{}\n", table(&rows), checkpoint_table(checkpoints), segment_table(segments))
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
