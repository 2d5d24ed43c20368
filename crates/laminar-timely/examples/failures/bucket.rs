//! The bucket is away while the job runs.

use std::error::Error;
use std::fs;

use laminar_timely::list_job_backups;

use super::job::{Plan, backup_options, bucket as place_in, more};
use super::processes::Stage;

/// Takes the bucket away, and gives it back.
pub fn bucket(stage: Stage<'_>) -> Result<(), Box<dyn Error>> {
    let plan = Plan { backups: true, ..Plan::default() };
    println!("- Two processes start, with backups to a directory that stands for a bucket.");
    let (place, options) = (place_in(stage.dir)?, backup_options());
    let mut processes = stage.start(&plan)?;
    processes.wait_until(|_| Ok(!list_job_backups(&place, &options)?.backups.is_empty()))?;
    processes.wait_for_the_middle()?;
    println!(
        "- The bucket is taken away. The job goes on, and comes to its end; only its last backup fails."
    );
    let [there, away] = ["bucket", "bucket-that-is-away"].map(|name| stage.dir.join(name));
    fs::rename(&there, &away)?;
    // No one can make a directory here now, not even root.
    fs::write(&there, "")?;
    more(stage.dir)?;
    let ended = processes.ended()?;
    ended.report();
    ended.expect([Some(1); 2])?;

    println!(
        "- The bucket is given back, and both are started again: they have nothing to do but their backup."
    );
    fs::remove_file(&there)?;
    fs::rename(&away, &there)?;
    stage.finish(&plan)?;
    let newest = list_job_backups(&place, &options)?.backups.pop().ok_or("there is no backup")?;
    println!("- The newest backup is of epoch {}, in {} parts.", newest.id.epoch(), newest.parts.len());
    Ok(())
}
