//! A machine is lost with its disk, and the job goes on from its newest backup.

use std::error::Error;
use std::fs;

use laminar_timely::{EXIT_FAILED, list_job_backups, restore_job};

use super::job::{Plan, backup_options, bucket, more, state};
use super::output::rows;
use super::processes::Stage;

/// Loses machine 1.
pub fn machine(stage: Stage<'_>) -> Result<(), Box<dyn Error>> {
    let (dir, place) = (stage.dir, bucket(stage.dir)?);
    let plan = Plan { machines: true, backups: true, ..Plan::default() };
    println!("- Two processes start, each with a directory of its own, as on machines of their own.");
    let mut processes = stage.start(&plan)?;
    processes.wait_until(|_| Ok(!list_job_backups(&place, &backup_options())?.backups.is_empty()))?;
    processes.wait_for_the_middle()?;
    println!("- Process 1 is killed, and its directory is deleted.");
    processes.kill(1)?;
    let ended = processes.ended()?;
    ended.report();
    ended.expect([Some(EXIT_FAILED), None])?;
    fs::remove_dir_all(state(dir, &plan, 1))?;

    println!("- Both are started again as if nothing had happened, which is refused.");
    let ended = stage.start(&plan)?.ended()?;
    ended.report();
    ended.expect([Some(EXIT_FAILED); 2])?;

    restore(stage, &plan)?;
    println!("- Both are started again, with three workers each in place of two.");
    println!(
        "- The output has {} rows: those behind the backup are cut off, and come again.",
        rows(dir)?.len()
    );
    more(dir)?;
    stage.finish(&Plan { workers: 3, restored: true, ..plan })
}

/// Makes the newest backup the state of both machines, each with its part.
fn restore(stage: Stage<'_>, plan: &Plan) -> Result<(), Box<dyn Error>> {
    let (place, options) = (bucket(stage.dir)?, backup_options());
    let newest = list_job_backups(&place, &options)?.backups.pop().ok_or("there is no backup")?;
    println!(
        "- The directory of process 0 is deleted too, and both are restored from the backup of epoch {}.",
        newest.id.epoch()
    );
    for (process, part) in [(0, 0), (1, 1)] {
        let state = state(stage.dir, plan, process);
        // A process that was refused may have made it anew.
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        restore_job(&place, Some(newest.id), Some(&[part]), state, &options, |_| {})?;
    }
    Ok(())
}
