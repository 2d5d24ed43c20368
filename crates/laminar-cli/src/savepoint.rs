//! `savepoint` and `fork`: a copy of a state that stands alone, and a new state that begins with one.
//!
//! A savepoint of a job's state carries its `job.json`, durable and complete whenever the savepoint is, so
//! that a fork can go on with the job. A fork is put together beside its place and gets its name when
//! all of it is durable.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{HumanBytes, HumanCount};
use laminar_storage::incremental::{IncrementalCheckpointError, read_manifest};
use laminar_storage::vfs::OsVfs;
use laminar_storage::{Opened, RecoveryReport, SavepointReceipt, Store};
use serde_json::json;

use crate::args::{ForkArgs, SavepointArgs};
use crate::belonging::job_of;
use crate::distributed::refuse_job;
use crate::error::{CliError, Result};
use crate::inspect::{Parts, of_library};
use crate::job::Job;
use crate::summary::table;

/// Added to the name of a fork until it is complete.
const UNFINISHED: &str = ".unfinished";

/// `laminar savepoint`.
pub fn savepoint(args: &SavepointArgs, out: &mut dyn Write) -> Result<()> {
    let parts = Parts::of(&args.state)?;
    // With as many cores as it has: another number would distribute the keys anew.
    let Opened { store, cores, report } = Store::builder(&args.state).cores(parts.cores()?).open()?;
    // The state is locked, so nobody changes the job either.
    let job = job_of(&args.state, &report.source_offsets, report.keys)?;
    let text = job.as_ref().map(Job::encode).transpose()?;
    let own_files: Vec<(&str, &[u8])> = text.iter().map(|text| (Job::FILE_NAME, text.as_slice())).collect();
    let receipt = store.savepoint_with(&args.dir, &own_files)?;
    drop(cores);
    store.close()?;
    let told =
        if args.json { saved_json(&receipt, job.is_some()) } else { saved_text(&receipt, job.is_some()) };
    out.write_all(told.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

fn saved_json(receipt: &SavepointReceipt, job: bool) -> String {
    let told = json!({
        "savepoint": receipt.path.display().to_string(),
        "checkpoint": receipt.id.get(),
        "epoch": receipt.epoch.get(),
        "keys": receipt.keys,
        "bytes": receipt.bytes,
        "files": receipt.files,
        "copied": receipt.copied,
        "job": job,
    });
    format!("{told}\n")
}

fn saved_text(receipt: &SavepointReceipt, job: bool) -> String {
    let how = match receipt.copied {
        0 => "linked, so that it takes no room until the state has changed".to_owned(),
        copied if copied == receipt.files => "copied".to_owned(),
        copied => format!("{copied} copied, the others linked"),
    };
    let rows = [
        ("savepoint", receipt.path.display().to_string()),
        ("holds", format!("checkpoint {}, epoch {}", receipt.id, receipt.epoch)),
        ("keys", HumanCount(receipt.keys).to_string()),
        ("size", format!("{} in {} files, {how}", HumanBytes(receipt.bytes), receipt.files)),
        ("job", if job { "comes along (job.json)" } else { "none: a program made this state" }.to_owned()),
    ];
    format!("{}\n", table(&rows))
}

/// `laminar fork`.
pub fn fork(args: &ForkArgs, out: &mut dyn Write) -> Result<()> {
    refuse_job(
        &args.savepoint,
        "Such a job has no savepoints: `laminar restore` makes a state of its backup.",
    )?;
    let (report, job) = make_state(&args.state, &args.savepoint, None, args.job.as_deref())?;
    let told = if args.json {
        let told = json!({
            "state": args.state.display().to_string(),
            "savepoint": args.savepoint.display().to_string(),
            "epoch": report.recovery_point.get(),
            "keys": report.keys,
            "job": job,
        });
        format!("{told}\n")
    } else {
        let rows = [
            ("state", args.state.display().to_string()),
            ("from", args.savepoint.display().to_string()),
            ("begins at", format!("epoch {}", report.recovery_point)),
            ("keys", HumanCount(report.keys).to_string()),
            ("next", next_step(job).to_owned()),
        ];
        format!("{}\n", table(&rows))
    };
    out.write_all(told.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

/// What to do with a new state that has a job, or has none.
pub fn next_step(job: bool) -> &'static str {
    if job { "`laminar run` with the job's own command line goes on from there" } else { "-" }
}

/// Refuses a directory that is there already.
pub fn check_is_new(state: &Path) -> Result<()> {
    if fs::symlink_metadata(state).is_ok() {
        return Err(CliError::failure(format!("{} exists already", state.display()))
            .remedy("The state is a new one: name a directory that does not exist. If a restore was to make this one, it is complete."));
    }
    Ok(())
}

/// Makes a new state of a savepoint, on as many cores as that has unless told; says whether it has a job.
pub fn make_state(
    state: &Path,
    savepoint: &Path,
    cores: Option<usize>,
    job: Option<&Path>,
) -> Result<(RecoveryReport, bool)> {
    check_is_new(state)?;
    let pending = pending_of(state)?;
    let manifest = read_manifest(&OsVfs::new(), savepoint).map_err(|error| {
        let error = match error {
            IncrementalCheckpointError::NotFound(_) => {
                CliError::failure(format!("there is no savepoint in {}", savepoint.display()))
                    .remedy("Check the path; `laminar savepoint DIR --state ...` makes one.")
            }
            error => of_library(error),
        };
        if Parts::of(savepoint).is_ok() {
            return CliError::failure(format!("{} is a state, not a savepoint", savepoint.display()))
                .remedy("Make a savepoint of it first: `laminar savepoint DIR --state ...`.");
        }
        error
    })?;
    let cores = cores.unwrap_or(usize::from(manifest.core_count));
    let opened = Store::builder(&pending).cores(cores).from_savepoint(savepoint).open()?;
    let report = &opened.report;
    let mut job = match job {
        Some(file) => Some(Job::load_file(file)?),
        None => job_of(savepoint, &report.source_offsets, report.keys).map_err(|error| {
            if Job::path(savepoint).exists() {
                return error;
            }
            CliError::failure(error.what().to_owned())
                .remedy("Name the job.json of the state that it was made of with --job.")
        })?,
    };
    if let Some(job) = &mut job {
        job.forget_dead_letters();
        job.save(&pending)?;
        // What `laminar run` will ask, before it is too late to say no.
        job_of(&pending, &report.source_offsets, report.keys)?;
    }
    let had_job = job.is_some();
    drop(opened.cores);
    opened.store.close()?;
    publish(&pending, state)?;
    Ok((opened.report, had_job))
}

/// Where a fork is put together. What a crash left there is gone on with.
fn pending_of(state: &Path) -> Result<PathBuf> {
    let Some(name) = state.file_name() else {
        return Err(CliError::usage(format!("{} is no name for a new directory", state.display())));
    };
    let mut pending = OsString::from(name);
    pending.push(UNFINISHED);
    Ok(state.with_file_name(pending))
}

/// Gives a complete state its name, durably.
fn publish(pending: &Path, state: &Path) -> Result<()> {
    fs::rename(pending, state).map_err(|e| CliError::io("give its name to", state, &e))?;
    let parent = state.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|d| d.sync_all()).map_err(|e| CliError::io("sync", parent, &e))
}
