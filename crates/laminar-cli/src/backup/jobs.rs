//! Backups of jobs that run with `--workers`: one for all parts, of one epoch.

use std::io::Write;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use laminar_storage::backup::{BackupInfo, BackupOptions, BackupTarget, WholeId, verify_backup};
use laminar_timely::{JobBackup, JobBackups, list_job_backups, restore_job};
use serde_json::{Value, json};

use super::args::{BackupsArgs, RestoreArgs};
use super::{State, bar, nothing_to_restore, of_library, print};
use crate::error::{CliError, Result};
use crate::job::Job;
use crate::savepoint::next_step;
use crate::summary::table;

/// How long a start waits for a place that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the backups at a place are those of such a job. Where there are those of one store nobody looks any further: other
/// things that are beside them, whatever their names, concern nobody.
pub fn are_of_job(target: &BackupTarget, options: &BackupOptions) -> Result<bool> {
    Ok(!target.has_log(options)? && has_generation(target, options)?)
}

/// Whether there are backups of some size of such a job.
fn has_generation(target: &BackupTarget, options: &BackupOptions) -> Result<bool> {
    Ok(target.folders(options)?.iter().any(|folder| is_generation(folder)))
}

/// Whether a folder has the name that the backups of a size of a job are below: `generation-00000001`.
fn is_generation(folder: &str) -> bool {
    let number = folder.strip_prefix("generation-").and_then(|digits| digits.parse::<u32>().ok());
    number.is_some_and(|number| folder == format!("generation-{number:08}"))
}

/// Refuses to put the backups of one kind of job beside those of the other: one of them would not be seen. Where it cannot be
/// seen now what is there, it is said, and found out before the first backup is made: nobody waits for a network here.
pub fn check_kind(target: &BackupTarget, options: &BackupOptions, on_workers: bool) -> Result<()> {
    let quick = options.clone().patience(PATIENCE);
    let looked =
        if on_workers { target.has_log(&quick).map_err(Into::into) } else { has_generation(target, &quick) };
    match looked {
        Ok(false) => return Ok(()),
        Ok(true) => {}
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "laminar: the backups cannot be seen now: {error}");
            return Ok(());
        }
    }
    let kind = if on_workers { "without" } else { "with" };
    let what = format!("{target} has the backups of a job that runs {kind} --workers");
    Err(CliError::failure(what).remedy("Name another place for the backups of this one."))
}

/// Refuses a place inside of the backups of such a job: a part alone is nobody's state, and a size of the job not all that there is.
pub fn check_is_all(target: &BackupTarget, options: &BackupOptions, backups: &[BackupInfo]) -> Result<()> {
    let part = backups.iter().any(|backup| backup.part_of.is_some());
    let is = if part {
        "has the backups of one part"
    } else if backups.is_empty() && target.has_parts(options)? {
        "has the backups of one size"
    } else {
        return Ok(());
    };
    let what = format!("{target} {is} of a job that runs with --workers, and not those of the job");
    Err(CliError::failure(what)
        .remedy("Name the place that `generation-…` is in, as the job names it with --backup."))
}

fn told(error: &laminar_timely::Error) -> CliError {
    CliError::failure(error.to_string())
}

/// `laminar restore`.
pub fn restore(
    args: &RestoreArgs,
    target: &BackupTarget,
    options: &BackupOptions,
    out: &mut dyn Write,
) -> Result<()> {
    if args.savepoint || args.cores.is_some() {
        return Err(CliError::usage("--savepoint and --cores do not go with a job that ran with --workers")
            .remedy("Restore it, then run it with --rescale and as many --workers as you like."));
    }
    let id = args.backup.as_deref().map(str::parse).transpose()?;
    let parts = (!args.process.is_empty()).then_some(args.process.as_slice());
    let made = restore_job(target, id, parts, &args.dir, options, bar(&args.transfer))
        .map_err(|error| told(&error))?;
    let (backup, job) = (&made.backup, Job::path(&args.dir).exists());
    let next = if made.parts.len() < backup.parts.len() {
        "restore the other parts too; then `laminar run` with the job's own command line, process 0 where part 0 is"
    } else {
        next_step(job)
    };
    let numbers: Vec<_> = made.parts.iter().map(ToString::to_string).collect();
    let shown = json!({
        "state": args.dir.display().to_string(),
        "url": target.to_string(),
        "backup": backup.id.to_string(),
        "epoch": backup.id.epoch().get(),
        "keys": made.keys(),
        "parts": made.parts,
        "processes": made.processes,
        "workers": made.workers,
        "job": job,
    });
    let rows = [
        ("state", args.dir.display().to_string()),
        ("from", format!("backup {} at {target}", backup.id)),
        ("begins at", format!("epoch {}", backup.id.epoch())),
        ("parts", numbers.join(", ")),
        ("keys", HumanCount(made.keys()).to_string()),
        ("ran on", format!("{} processes with {} workers each", made.processes, made.workers)),
        ("next", next.to_owned()),
    ];
    print(out, args.transfer.json, &shown, &rows)
}

/// `laminar backups`.
pub fn backups(
    args: &BackupsArgs,
    target: &BackupTarget,
    options: &BackupOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let JobBackups { backups: listed, damaged: broken, incomplete, .. } =
        list_job_backups(target, options).map_err(|error| told(&error))?;
    // Older ones are on their way out.
    let newest = listed.iter().map(|backup| backup.id.epoch()).max();
    let incomplete: Vec<_> = incomplete.into_iter().filter(|id| Some(id.epoch()) >= newest).collect();
    let broken: Vec<_> = broken.into_iter().map(of_library).collect();
    let (mut shown, mut damaged) = (Vec::new(), 0);
    for backup in &listed {
        let state = if args.verify { Some(verified(backup, args, options)?) } else { None };
        damaged += usize::from(matches!(state, Some(State::Damaged(_))));
        shown.push((backup, state.map(State::text)));
    }
    let text = if args.transfer.json {
        as_json(&shown, &broken, &incomplete)
    } else {
        as_text(&shown, &incomplete, target)
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))?;
    if let Some(error) = broken.into_iter().next() {
        return Err(error);
    }
    if args.verify && listed.is_empty() {
        return Err(nothing_to_restore(target));
    }
    if damaged == 0 {
        return Ok(());
    }
    Err(CliError::failure(format!("{damaged} of {} backups are damaged", listed.len()))
        .remedy("Restore one that is whole, or make a new one."))
}

/// Reads every byte of every part.
fn verified(backup: &JobBackup, args: &BackupsArgs, options: &BackupOptions) -> Result<State> {
    for (place, info) in &backup.parts {
        match State::of(verify_backup(place, Some(info.id), options, bar(&args.transfer)))? {
            State::Whole => {}
            other => return Ok(other),
        }
    }
    Ok(State::Whole)
}

fn as_json(
    shown: &[(&JobBackup, Option<String>)],
    unreadable: &[CliError],
    incomplete: &[WholeId],
) -> String {
    let backups: Vec<Value> = shown
        .iter()
        .map(|(backup, state)| {
            json!({
                "backup": backup.id.to_string(),
                "generation": backup.generation,
                "parts": backup.parts.len(),
                "epoch": backup.id.epoch().get(),
                "made_ms": backup.made_ms(),
                "keys": backup.keys(),
                "bytes": backup.bytes(),
                "verified": state,
            })
        })
        .collect();
    let unreadable: Vec<_> = unreadable.iter().map(ToString::to_string).collect();
    let incomplete: Vec<_> = incomplete.iter().map(ToString::to_string).collect();
    format!("{}\n", json!({ "backups": backups, "unreadable": unreadable, "incomplete": incomplete }))
}

fn as_text(shown: &[(&JobBackup, Option<String>)], incomplete: &[WholeId], target: &BackupTarget) -> String {
    let part = incomplete.iter().map(|id| {
        let text = format!(
            "epoch {}, not all parts of the job have it: it is under way, or what a part had is lost",
            id.epoch()
        );
        (format!("backup {id}"), text)
    });
    if shown.is_empty() && incomplete.is_empty() {
        return format!("no backups at {target} that all parts of the job have\n");
    }
    let rows: Vec<(String, String)> = shown
        .iter()
        .map(|(backup, state)| {
            let made = std::time::UNIX_EPOCH + std::time::Duration::from_millis(backup.made_ms());
            let made = humantime::format_rfc3339_seconds(made);
            let state = state.as_ref().map(|state| format!(", {state}")).unwrap_or_default();
            let (keys, bytes) = (HumanCount(backup.keys()), HumanBytes(backup.bytes()));
            let (epoch, parts) = (backup.id.epoch(), backup.parts.len());
            let text = format!("epoch {epoch}, {keys} keys, {bytes} in {parts} parts, of {made}{state}");
            (format!("backup {}", backup.id), text)
        })
        .chain(part)
        .collect();
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    format!("{}\n", table(&rows))
}
