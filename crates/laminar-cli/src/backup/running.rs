//! Backups of a job while it runs.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_storage::{Store, StoreBuilder};
use laminar_timely::Config;
use serde_json::{Value, json};

use super::args::RunBackupArgs;
use super::jobs::check_kind;
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
    pub fn new(args: &RunBackupArgs, on_workers: bool) -> Result<Option<Self>> {
        let Some(url) = &args.backup else { return Ok(None) };
        let options = BackupOptions::new()
            .keep(args.backup_keep)
            .bytes_per_second(args.backup_bandwidth.unwrap_or(0))
            .take_over(args.take_over);
        options.validate()?;
        let target = BackupTarget::create(url)?;
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
