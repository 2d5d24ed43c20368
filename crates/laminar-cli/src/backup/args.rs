//! The command lines of backups.

use std::path::PathBuf;

use clap::Args;

const BACKUP_HELP: &str = "\
Examples:
  laminar backup s3://bucket/totals --state ./totals
  laminar backup /mnt/elsewhere/totals --state ./totals --keep 10
  laminar backup s3://bucket/totals --state ./totals --full

A URL is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///DIR, or a path. Credentials come from the
environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT for other stores than Amazon's, and so on.

Killed or cut off, nothing is lost and nothing counts that is not complete: run the same command again.";

const RESTORE_HELP: &str = "\
Examples:
  laminar restore s3://bucket/totals ./totals
  laminar run events.ndjson --key user.id --agg count,sum:amount --state ./totals
  laminar restore s3://bucket/job ./job --process 0,2 --backup 000000000000002a-53d0a1f0b1c2d3e4

The job goes on where it was when the backup was made; one that ran with --workers, with --rescale also on another number of
processes and workers. Interrupted, the same command goes on with what is there already.";

const BACKUPS_HELP: &str = "\
Examples:
  laminar backups s3://bucket/totals
  laminar backups s3://bucket/totals --verify

Exit code 0 if all is well, 1 if a backup is damaged or the place cannot be read.";

/// What all of them have in common.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub concurrency: usize,
    /// Bytes per second at most, on average [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub bandwidth: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Backups of a job while it runs.
#[derive(Clone, Debug, Default, Args)]
pub struct RunBackupArgs {
    /// Copy checkpoints there, what is not there yet, and the last one before the end, as `laminar backup` does: every one, or
    /// with --workers one in every checkpoint interval, of the same epoch in all processes
    #[arg(long, value_name = "URL")]
    pub backup: Option<String>,
    /// Backups kept there; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 3, requires = "backup")]
    pub backup_keep: usize,
    /// Bytes per second at most for backups, on average [default: no limit]
    #[arg(long, value_name = "BYTES", requires = "backup")]
    pub backup_bandwidth: Option<u64>,
    /// Take over the backups of another state, which this one goes on in place of
    #[arg(long, requires = "backup")]
    pub take_over: bool,
}

#[derive(Debug, Args)]
#[command(after_help = BACKUP_HELP)]
pub struct BackupArgs {
    /// Where to
    pub url: String,
    /// Directory of the state; no job may be running in it
    #[arg(long, short, value_name = "DIR", default_value = "./laminar-state")]
    pub state: PathBuf,
    /// Backups kept there; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub keep: usize,
    /// Take over the backups of another state, which this one goes on in place of
    #[arg(long)]
    pub take_over: bool,
    /// Send everything, also what is there already: after damage this makes a backup that is whole
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub transfer: TransferArgs,
}

#[derive(Debug, Args)]
#[command(after_help = RESTORE_HELP)]
pub struct RestoreArgs {
    /// Where from
    pub url: String,
    /// Directory of the new state; must not exist
    pub dir: PathBuf,
    /// Which backup, by its number or id in `laminar backups` [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    pub backup: Option<String>,
    /// Cores to distribute the keys to [default: as many as it had]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "savepoint")]
    pub cores: Option<u16>,
    /// Make a savepoint instead of a state
    #[arg(long)]
    pub savepoint: bool,
    /// Of a job that ran with --workers: only what these processes had, for each machine its own
    #[arg(long, value_name = "I,...", value_delimiter = ',')]
    pub process: Vec<u32>,
    #[command(flatten)]
    pub transfer: TransferArgs,
}

#[derive(Debug, Args)]
#[command(after_help = BACKUPS_HELP)]
pub struct BackupsArgs {
    /// Where
    pub url: String,
    /// Read every byte of every backup, and compare it with its checksums
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub transfer: TransferArgs,
}
