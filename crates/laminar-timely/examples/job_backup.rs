//! A job is backed up while it runs, loses its state, and goes on from the backup on another number of workers.
//!
//! ```text
//! cargo run -p laminar-timely --features object-store --example job_backup
//! ```
//! A directory stands for the bucket: `s3://BUCKET/PREFIX` in place of its path is all the difference.
#![allow(clippy::print_stdout, reason = "an example that shows what it does")]

use std::path::Path;
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_timely::{Cluster, Config, Error, OtherSize, list_job_backups, restore_job, run};

/// Adds up numbers by their remainder, up to `end`.
fn job(state: &Path, place: &BackupTarget, workers: usize, end: u64) -> Result<(), Error> {
    // The restored job is another one than that whose backups are there: it takes them over.
    let options = BackupOptions::new().keep(3).take_over(true);
    let config = Config::new(state, "sums").other_size(OtherSize::Rescale);
    let config = config.backup_to(place, &options, Duration::from_secs(30));
    run(&Cluster::single(workers), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, numbers) = flow.input::<(u64, u64)>("numbers")?;
            flow.fold(numbers, "sums", |sum: &mut u64, n| *sum += n)?;
            Ok(input)
        })?;
        let begin = job.source_offset("numbers").unwrap_or(0);
        if job.index() == 0 {
            println!("{} workers go on with number {begin}", job.peers());
            for n in begin..end {
                input.send((n % 10, n));
            }
            input.set_source_offset("numbers", end);
            input.seal()?;
        }
        input.finish()
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("laminar-job-backup-{}", std::process::id()));
    let (state, bucket) = (dir.join("state"), dir.join("bucket"));
    let place = BackupTarget::create(bucket.to_str().ok_or("not text")?)?;
    job(&state, &place, 2, 1_000)?;
    std::fs::remove_dir_all(&state)?;

    let options = BackupOptions::new();
    for backup in list_job_backups(&place, &options)?.backups {
        println!("backup {} of epoch {}, {} keys", backup.id, backup.id.epoch(), backup.keys());
    }
    restore_job(&place, None, None, &state, &options, |_| {})?;
    job(&state, &place, 3, 2_000)?;
    Ok(std::fs::remove_dir_all(dir)?)
}
