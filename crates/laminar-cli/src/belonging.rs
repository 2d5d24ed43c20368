//! Whether `job.json` is the one that a state was made by.
//!
//! Every epoch of a job carries its marker among the source offsets, so that the two are durable
//! together. Without it, values of one job could be read as those of another: both would decode.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{CliError, Result};
use crate::job::{Job, REMEDY};
use crate::pipeline::committed::Committed;

/// The job of a state with these source offsets and so many keys. None: a program made the state.
///
/// # Errors
///
/// `job.json` is damaged, missing although a job made the state, or that of another job.
pub fn job_of(state: &Path, offsets: &BTreeMap<String, u64>, keys: u64) -> Result<Option<Job>> {
    let committed = Committed::from_offsets(offsets);
    match Job::load(state)? {
        Some(job) => {
            check(&job, state, &committed, keys)?;
            Ok(Some(job))
        }
        None if committed.mark.is_some() || !committed.is_empty() => Err(CliError::failure(format!(
            "{} is missing, although `laminar run` made this state",
            Job::path(state).display()
        ))
        .remedy(REMEDY)),
        None => Ok(None),
    }
}

/// Refuses a job that is not the one that committed this. A state without any record may still carry
/// the marker of the job that had it before.
pub fn check(job: &Job, state: &Path, committed: &Committed, keys: u64) -> Result<()> {
    let is_own = committed.mark.is_some_and(|mark| mark.job == job.marker());
    if is_own || (keys == 0 && committed.is_empty()) {
        return Ok(());
    }
    Err(CliError::failure(format!(
        "{} does not belong to this state: its values were stored by another job",
        Job::path(state).display()
    ))
    .remedy(REMEDY))
}
