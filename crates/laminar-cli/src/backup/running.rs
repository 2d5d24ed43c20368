//! Backups of a job while it runs.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_storage::{Epoch, Store, StoreBuilder};
use laminar_timely::Config;
use serde_json::{Value, json};

use super::args::RunBackupArgs;
use super::jobs::check_kind;
use super::place;
use crate::engine::advice::for_user;
use crate::error::{CliError, Result};
use crate::job::Job;

/// How often the last backup of a run is tried before the run ends without it.
const TRIES: u64 = 3;
/// How long it is waited for between two looks at what came of it.
const LOOK: Duration = Duration::from_millis(50);

/// Where every checkpoint of a job goes.
#[derive(Clone, Debug)]
pub struct Running {
    target: BackupTarget,
    options: BackupOptions,
}

impl Running {
    /// What the command line asks for.
    pub fn new(args: &RunBackupArgs, state: &Path, on_workers: bool) -> Result<Option<Self>> {
        let Some(url) = &args.backup else { return Ok(None) };
        let options = BackupOptions::new()
            .keep(args.backup_keep)
            .bytes_per_second(args.backup_bandwidth.unwrap_or(0))
            .take_over(args.take_over);
        options.validate()?;
        let target = place(url, state)?;
        check_kind(&target, &options, on_workers)?;
        Ok(Some(Self { target, options }))
    }

    /// Has a store backed up, with what `job.json` says at the time of each backup: it is written before the first record is
    /// applied that needs it, and stays whole.
    pub fn on(&self, builder: StoreBuilder, state: &Path) -> StoreBuilder {
        let path = Job::path(state);
        builder.backup_to_with(&self.target, &self.options, move || own_files(&path))
    }

    /// Has a job on workers backed up as often as checkpoints are made, its `job.json` with the part of the process that has it.
    pub fn on_workers(&self, config: Config, state: &Path, every: Duration, has_job: bool) -> Config {
        let config = config.backup_to(&self.target, &self.options, every);
        if !has_job {
            return config;
        }
        let path = Job::path(state);
        config.backup_files(move || own_files(&path))
    }

    /// What is known of the backups of a job on workers when its input has come to an end: all processes have backed up `epoch`,
    /// if any of this run. `before` is the one before its first, `last` its last.
    pub fn of_job(&self, epoch: Option<Epoch>, before: u64, last: u64) -> JobBackedUp {
        let epoch = epoch.map(Epoch::get);
        let behind = match epoch {
            Some(epoch) => last.saturating_sub(epoch),
            // Nobody knows of what it went on from either.
            None => last.saturating_sub(before).max(1),
        };
        JobBackedUp { url: self.target.to_string(), epoch, behind, error: None }
    }

    /// Waits until the newest checkpoint is backed up, or until that has failed too often.
    pub fn finish(&self, store: &Store) -> BackedUp {
        loop {
            let done = store.wait_backed_up(LOOK);
            let status = store.backup_status().unwrap_or_default();
            if matches!(done, Ok(false)) && status.failures < TRIES {
                continue;
            }
            return BackedUp {
                url: self.target.to_string(),
                backup: status.last_backup.map(|id| id.get()),
                made: status.backups,
                bytes_sent: status.bytes_sent,
                behind: status.checkpoints_behind,
                error: status.last_error.map(|error| for_user(&error.to_string())),
            };
        }
    }
}

fn own_files(job: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    match fs::read(job) {
        Ok(bytes) => Ok(vec![(Job::FILE_NAME.to_owned(), bytes)]),
        // Before the first record there may be none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What came of the backups of a run.
#[derive(Clone, Debug)]
pub struct BackedUp {
    url: String,
    /// The newest backup.
    backup: Option<u64>,
    /// Backups of this run, and what was sent for them.
    made: u64,
    bytes_sent: u64,
    /// Checkpoints that no backup holds.
    behind: u64,
    error: Option<String>,
}

impl BackedUp {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "url": self.url,
            "backup": self.backup,
            "made": self.made,
            "bytes_sent": self.bytes_sent,
            "checkpoints_behind": self.behind,
            "error": self.error,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let newest = self.backup.map_or_else(|| "none".to_owned(), |id| format!("{id} at {}", self.url));
        if self.behind == 0 {
            format!("{newest}, {} in this run", self.made)
        } else {
            format!("{newest}; the last {} are NOT backed up", self.behind)
        }
    }

    /// Says that the newest checkpoint is not backed up, if so.
    pub fn check(&self) -> Result<()> {
        if self.behind == 0 {
            return Ok(());
        }
        let why = self.error.as_deref().unwrap_or("it was not done in time");
        Err(CliError::failure(format!(
            "the job is done and durable here, but not backed up at {}: {why}",
            self.url
        ))
        .remedy("Run the same command again, or `laminar backup`, once that is repaired."))
    }
}

/// What came of the backups of a run on workers.
#[derive(Clone, Debug)]
pub struct JobBackedUp {
    url: String,
    /// The newest that all processes have backed up, as far as this one knows.
    epoch: Option<u64>,
    /// Epochs of this run after it.
    behind: u64,
    /// Why the last backup is not made.
    error: Option<String>,
}

impl JobBackedUp {
    /// The last backup is made, of this epoch.
    pub fn done(&mut self, epoch: u64) {
        (self.epoch, self.behind) = (Some(epoch), 0);
    }

    /// The last backup is not made.
    pub fn failed(&mut self, why: &str) {
        self.error = Some(why.to_owned());
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "url": self.url,
            "epoch": self.epoch,
            "epochs_behind": self.behind,
            "error": self.error,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let newest =
            self.epoch.map_or_else(|| "none".to_owned(), |epoch| format!("epoch {epoch} at {}", self.url));
        match self.behind {
            0 => newest,
            1 => format!("{newest}; the last epoch is NOT backed up"),
            behind => format!("{newest}; the last {behind} epochs are NOT backed up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_behind_by_the_epochs_after_its_newest_backup() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place").display().to_string();
        let args = RunBackupArgs { backup: Some(place), backup_keep: 3, ..RunBackupArgs::default() };
        let running = Running::new(&args, Path::new("state"), true).unwrap().unwrap();
        // Epochs 11 to 20 are of this run.
        let of = |epoch: Option<u64>, last| running.of_job(epoch.map(Epoch), 10, last);
        let behind = [of(Some(14), 20), of(Some(20), 20), of(None, 20), of(None, 10)].map(|of| of.behind);
        assert_eq!(behind, [6, 0, 10, 1]);
        let mut behind = of(Some(14), 20);
        assert!(behind.text().ends_with("; the last 6 epochs are NOT backed up"), "{}", behind.text());
        behind.failed("no network");
        let told = behind.json();
        assert_eq!((&told["epoch"], &told["epochs_behind"]), (&14.into(), &6.into()), "{told}");
        assert_eq!(told["error"], "no network");
        let mut done = of(Some(14), 20);
        done.done(20);
        let told = done.json();
        assert_eq!((&told["epoch"], &told["epochs_behind"]), (&20.into(), &0.into()), "{told}");
        assert!(told["error"].is_null() && done.text().starts_with("epoch 20 at "), "{}", done.text());
    }
}
