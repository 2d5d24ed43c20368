//! `backup`, `restore` and `backups`: a state elsewhere, and back; with the feature `object-store`.

pub mod args;
mod jobs;
pub mod lag;
pub mod running;

use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use laminar_storage::backup::{
    BackupCatalog, BackupError, BackupInfo, BackupOptions, BackupTarget, TransferProgress, read_catalog,
    restore as fetch, verify_backup,
};
use laminar_storage::ids::BackupId;
use laminar_storage::incremental::read_manifest;
use laminar_storage::vfs::OsVfs;
use laminar_storage::{Opened, Store};
use serde_json::{Value, json};

use self::args::{BackupArgs, BackupsArgs, RestoreArgs, TransferArgs};
use crate::belonging::job_of;
use crate::distributed::refuse_job;
use crate::error::{CliError, Result};
use crate::inspect::{Parts, of_library};
use crate::job::Job;
use crate::output::is_inside;
use crate::savepoint::{check_is_new, make_state, next_step};
use crate::savepoint_dir::is_savepoint;
use crate::summary::table;

/// Added to the name of a state for the savepoint that it is made of.
const FETCHED: &str = ".fetched";

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        of_library(error)
    }
}

fn options(args: &TransferArgs) -> BackupOptions {
    BackupOptions::new().concurrency(args.concurrency).bytes_per_second(args.bandwidth.unwrap_or(0))
}

/// The place of the backups of a state, which must not be lost with it.
fn place(url: &str, state: &Path) -> Result<BackupTarget> {
    if BackupTarget::directory_of(url)?.is_some_and(|dir| is_inside(&dir, state)) {
        let what = format!("{url} is inside of the state directory {}", state.display());
        return Err(CliError::usage(what)
            .remedy("Name another place, best on another disk: they would be lost together."));
    }
    Ok(BackupTarget::create(url)?)
}

/// `laminar backup`.
pub fn backup(args: &BackupArgs, out: &mut dyn Write) -> Result<()> {
    refuse_job(
        &args.state,
        "Run the job with `--backup URL` in each of its processes, also when it is done: it is backed up at its end.",
    )?;
    let parts = Parts::of(&args.state)?;
    let options = options(&args.transfer).keep(args.keep).take_over(args.take_over).send_all(args.full);
    options.validate()?;
    let target = place(&args.url, &args.state)?;
    jobs::check_kind(&target, &options, false)?;
    // With as many cores as it has: another number would distribute the keys anew.
    let Opened { store, cores, report } = Store::builder(&args.state).cores(parts.cores()?).open()?;
    let job = job_of(&args.state, &report.source_offsets, report.keys)?;
    let text = job.as_ref().map(Job::encode).transpose()?;
    let own_files: Vec<(&str, &[u8])> = text.iter().map(|text| (Job::FILE_NAME, text.as_slice())).collect();
    let receipt = store.back_up(&target, &options, &own_files)?;
    drop(cores);
    store.close()?;
    let told = json!({
        "backup": receipt.id.get(),
        "url": target.to_string(),
        "new": receipt.is_new,
        "checkpoint": receipt.checkpoint.get(),
        "epoch": receipt.epoch.get(),
        "files": receipt.files,
        "bytes": receipt.bytes,
        "files_sent": receipt.files_sent,
        "bytes_sent": receipt.bytes_sent,
        "removed": receipt.removed,
        "job": job.is_some(),
    });
    let made = if receipt.is_new { "" } else { ", which was there already" };
    let rows = [
        ("backup", format!("{} at {target}{made}", receipt.id)),
        ("holds", format!("checkpoint {}, epoch {}", receipt.checkpoint, receipt.epoch)),
        ("size", format!("{} in {} files", HumanBytes(receipt.bytes), receipt.files)),
        ("sent", format!("{} in {} files", HumanBytes(receipt.bytes_sent), receipt.files_sent)),
        (
            "job",
            if job.is_some() { "comes along (job.json)" } else { "none: a program made this state" }
                .to_owned(),
        ),
    ];
    print(out, args.transfer.json, &told, &rows)
}

/// `laminar restore`.
pub fn restore(args: &RestoreArgs, out: &mut dyn Write) -> Result<()> {
    check_is_new(&args.dir)?;
    let target = BackupTarget::parse(&args.url)?;
    let options = options(&args.transfer);
    if jobs::are_of_job(&target, &options)? {
        return jobs::restore(args, &target, &options, out);
    }
    let number = args.backup.as_deref().map(|number| {
        number.parse::<u64>().map_err(|_| {
            CliError::usage(format!("{number:?} is no number of a backup"))
                .remedy("`laminar backups URL` lists those that are there.")
        })
    });
    let number = number.transpose()?;
    let id = number.map(Into::into);
    if !args.process.is_empty() {
        return Err(CliError::usage("--process is for the backups of a job that ran with --workers"));
    }
    if args.savepoint {
        let receipt = fetch(&target, id, &args.dir, &options, bar(&args.transfer))?;
        let told = json!({
            "savepoint": receipt.path.display().to_string(),
            "backup": receipt.id.get(),
            "epoch": receipt.epoch.get(),
            "keys": receipt.keys,
            "bytes": receipt.bytes,
            "bytes_fetched": receipt.bytes_fetched,
        });
        let rows = [
            ("savepoint", receipt.path.display().to_string()),
            ("from", format!("backup {} at {target}", receipt.id)),
            ("holds", format!("checkpoint {}, epoch {}", receipt.checkpoint, receipt.epoch)),
            ("keys", HumanCount(receipt.keys).to_string()),
        ];
        return print(out, args.transfer.json, &told, &rows);
    }
    jobs::check_is_all(&target, &options, &read_catalog(&target, &options)?.backups)?;
    let fetched = beside(&args.dir)?;
    if is_savepoint(&fetched) {
        check_same(&fetched, &target, number, &options)?;
    } else {
        fetch(&target, id, &fetched, &options, bar(&args.transfer))?;
    }
    let (report, job) = make_state(&args.dir, &fetched, args.cores.map(usize::from), None)?;
    fs::remove_dir_all(&fetched).map_err(|e| CliError::io("remove", &fetched, &e))?;
    let told = json!({
        "state": args.dir.display().to_string(),
        "url": target.to_string(),
        "epoch": report.recovery_point.get(),
        "keys": report.keys,
        "job": job,
    });
    let rows = [
        ("state", args.dir.display().to_string()),
        ("from", target.to_string()),
        ("begins at", format!("epoch {}", report.recovery_point)),
        ("keys", HumanCount(report.keys).to_string()),
        ("next", next_step(job).to_owned()),
    ];
    print(out, args.transfer.json, &told, &rows)
}

/// Where the savepoint is put that the state is made of.
fn beside(state: &Path) -> Result<PathBuf> {
    let Some(name) = state.file_name() else {
        return Err(CliError::usage(format!("{} is no name for a new directory", state.display())));
    };
    let mut fetched = OsString::from(name);
    fetched.push(FETCHED);
    Ok(state.with_file_name(fetched))
}

/// What an earlier try fetched must be what is asked for now.
fn check_same(fetched: &Path, target: &BackupTarget, id: Option<u64>, options: &BackupOptions) -> Result<()> {
    let there = read_manifest(&OsVfs::new(), fetched).map_err(of_library)?;
    let BackupCatalog { backups, damaged, .. } = read_catalog(target, options)?;
    // Nor is an older one what is asked for when the newest is damaged.
    let newest = backups.last().map(|backup| backup.id);
    let asked = |damaged: BackupId| id.map_or(Some(damaged) > newest, |id| damaged.get() == id);
    if let Some((_, damage)) = damaged.into_iter().find(|(damaged, _)| asked(*damaged)) {
        return Err(damage.into());
    }
    let wanted = backups.iter().rev().find(|backup| id.is_none_or(|id| backup.id.get() == id));
    let same = |backup: &BackupInfo| {
        (backup.checkpoint.get(), backup.epoch.get(), backup.made_ms, backup.keys)
            == (there.id, there.epoch, there.timestamp, there.key_count)
    };
    if wanted.is_some_and(same) {
        return Ok(());
    }
    Err(CliError::failure(format!("{} is of another backup, from an earlier restore", fetched.display()))
        .remedy("Remove it, or make a state of it with `laminar fork`; then run the same command again."))
}

/// `laminar backups`.
pub fn backups(args: &BackupsArgs, out: &mut dyn Write) -> Result<()> {
    let target = BackupTarget::parse(&args.url)?;
    let options = options(&args.transfer);
    if jobs::are_of_job(&target, &options)? {
        return jobs::backups(args, &target, &options, out);
    }
    let BackupCatalog { backups: listed, damaged: unreadable, .. } = read_catalog(&target, &options)?;
    jobs::check_is_all(&target, &options, &listed)?;
    let mut damaged = unreadable.len();
    let mut told = Vec::new();
    for backup in &listed {
        let state = if args.verify {
            Some(State::of(verify_backup(&target, Some(backup.id), &options, bar(&args.transfer)))?)
        } else {
            None
        };
        damaged += usize::from(matches!(state, Some(State::Damaged(_))));
        told.push((backup, state.map(State::text)));
    }
    let of = listed.len() + unreadable.len();
    let unreadable: Vec<_> =
        unreadable.into_iter().map(|(id, error)| (id, of_library(error).to_string())).collect();
    let text = if args.transfer.json {
        listed_json(&told, &unreadable)
    } else {
        listed_text(&told, &unreadable, &target)
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))?;
    if args.verify && of == 0 {
        return Err(nothing_to_restore(&target));
    }
    if damaged == 0 {
        return Ok(());
    }
    Err(CliError::failure(format!("{damaged} of {of} backups are damaged"))
        .remedy("Restore one that is whole, or make a new one."))
}

/// With --verify, somebody relies on a backup that is there.
fn nothing_to_restore(target: &BackupTarget) -> CliError {
    CliError::failure(format!("there is no backup at {target} that could be restored"))
        .remedy("Check the URL; make one, or look what became of those that there were.")
}

/// What was found when a backup was read.
enum State {
    Whole,
    Damaged(String),
    /// Newer ones took its place meanwhile.
    Removed,
}

impl State {
    /// What reading it gave; an error that says nothing about the backup is one.
    fn of(verified: std::result::Result<BackupInfo, BackupError>) -> Result<Self> {
        match verified {
            Ok(_) => Ok(Self::Whole),
            Err(error @ BackupError::Corruption(_)) => Ok(Self::Damaged(of_library(error).to_string())),
            Err(BackupError::NotFound(_)) => Ok(Self::Removed),
            Err(error) => Err(error.into()),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::Damaged(error) => error,
            Self::Removed => "removed meanwhile".to_owned(),
        }
    }
}

fn listed_json(told: &[(&BackupInfo, Option<String>)], unreadable: &[(BackupId, String)]) -> String {
    let backups: Vec<Value> = told
        .iter()
        .map(|(backup, state)| {
            json!({
                "backup": backup.id.get(),
                "checkpoint": backup.checkpoint.get(),
                "epoch": backup.epoch.get(),
                "made_ms": backup.made_ms,
                "keys": backup.keys,
                "files": backup.files,
                "bytes": backup.bytes,
                "verified": state,
            })
        })
        .collect();
    let unreadable: Vec<Value> =
        unreadable.iter().map(|(id, error)| json!({ "backup": id.get(), "error": error })).collect();
    format!("{}\n", json!({ "backups": backups, "unreadable": unreadable }))
}

fn listed_text(
    told: &[(&BackupInfo, Option<String>)],
    unreadable: &[(BackupId, String)],
    target: &BackupTarget,
) -> String {
    if told.is_empty() && unreadable.is_empty() {
        return format!("no backups at {target}\n");
    }
    let mut rows: Vec<(BackupId, String)> = told
        .iter()
        .map(|(backup, state)| {
            let made = std::time::UNIX_EPOCH + std::time::Duration::from_millis(backup.made_ms);
            let made = humantime::format_rfc3339_seconds(made);
            let state = state.as_ref().map(|state| format!(", {state}")).unwrap_or_default();
            let (keys, bytes) = (HumanCount(backup.keys), HumanBytes(backup.bytes));
            let text = format!("epoch {}, {keys} keys, {bytes}, of {made}{state}", backup.epoch);
            (backup.id, text)
        })
        .chain(unreadable.iter().cloned())
        .collect();
    rows.sort_by_key(|(id, _)| *id);
    let rows: Vec<_> = rows.into_iter().map(|(id, text)| (format!("backup {id}"), text)).collect();
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    format!("{}\n", table(&rows))
}

fn print(out: &mut dyn Write, json: bool, told: &Value, rows: &[(&str, String)]) -> Result<()> {
    let text = if json { format!("{told}\n") } else { format!("{}\n", table(rows)) };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

/// Shows on a terminal how far it has come.
fn bar(args: &TransferArgs) -> impl FnMut(TransferProgress) + Send + use<> {
    let bar = if args.json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        // The template is a constant; a mistake in it would only cost its looks.
        let style =
            ProgressStyle::with_template("{bar:28.cyan/blue} {bytes} of {total_bytes}, {bytes_per_sec}");
        ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    };
    let bar = Cleared(bar);
    move |progress| {
        bar.0.set_length(progress.bytes_total);
        bar.0.set_position(progress.bytes_done);
    }
}

/// Gone when it is dropped.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laminar_storage::error::Detail;

    /// Beside a running job it was told as damage, or ended the command.
    #[test]
    fn a_backup_that_is_removed_while_it_is_read_is_not_damaged() {
        let state =
            |error: fn(Box<Detail>) -> BackupError| State::of(Err(error(Box::new(Detail::new("why")))));
        assert_eq!(state(BackupError::NotFound).unwrap().text(), "removed meanwhile");
        assert!(matches!(state(BackupError::Corruption), Ok(State::Damaged(why)) if why.contains("why")));
        assert!(state(BackupError::Unreachable).is_err());
    }
}
