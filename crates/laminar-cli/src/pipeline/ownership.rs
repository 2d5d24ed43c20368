//! Whose state is it: the job that a state directory belongs to, found, made or replaced.
//!
//! A state in which records were applied belongs to the command line that applied them. One in which
//! none were, most likely left behind by a mistyped command, belongs to whoever asks next: its input
//! is planned anew, from the start.
//!
//! It is decided twice: before the store is opened, so that a refused command makes and changes
//! nothing; and once the store is open and therefore locked, because only then nobody else can be at
//! work there.

use super::committed::{Committed, Mark};
use super::{Settings, read_up_to};
use crate::belonging;
use crate::engine::{Engine, Report};
use crate::error::{CliError, Result};
use crate::input::Format;
use crate::input::plan::{detect, expand, extend};
use crate::job::Job;

/// What is to be done with a state, before it is open.
pub struct Claim {
    /// `job.json` as it was read or written here.
    stored: Job,
    /// What is different in the command line of `stored`.
    difference: Option<String>,
}

/// A state that belongs to this command.
pub struct Owned {
    /// As it stands in `job.json`.
    pub job: Job,
    /// Where the input goes on.
    pub before: Committed,
    /// What the user should know.
    pub told: Option<String>,
}

impl Claim {
    /// Reads the job of the state directory, or makes both.
    pub fn make<E: Engine>(settings: &Settings) -> Result<Self> {
        let Some(stored) = Job::load(&settings.state)? else {
            let job = plan_new(settings)?;
            Job::prepare_dir(&settings.state)?;
            job.save(&settings.state)?;
            return Ok(Self { stored: job, difference: None });
        };
        let key = settings.key.as_deref().unwrap_or_default();
        let difference = stored.difference(settings.format, key, &settings.plan, &settings.inputs);
        if let Some(difference) = &difference {
            let empty = E::look(&settings.state).is_some_and(|report| {
                report.keys == 0 && Committed::from_offsets(&report.source_offsets).is_empty()
            });
            if !empty {
                return Err(another_job(settings, difference));
            }
            // Whatever is wrong with the new command line is told before the store is opened.
            plan_new(settings)?;
        }
        Ok(Self { stored, difference })
    }

    /// Decides, now that the store is open, and makes `job.json` say so.
    pub fn settle(self, settings: &Settings, report: &Report) -> Result<Owned> {
        let state = settings.state.display();
        if Job::load(&settings.state)?.as_ref() != Some(&self.stored) {
            return Err(CliError::failure(format!("another `laminar run` has used {state} just now"))
                .remedy("Run the same command again."));
        }
        let mut before = Committed::from_offsets(&report.source_offsets);
        if report.keys > 0 || !before.is_empty() {
            if let Some(difference) = &self.difference {
                return Err(another_job(settings, difference));
            }
            let mut job = self.stored;
            belonging::check(&job, &settings.state, &before, report.keys)?;
            if extend(&mut job, read_up_to(&before), settings.follow)? {
                job.save(&settings.state)?;
            }
            return Ok(Owned { job, before, told: None });
        }
        // A killed run may have left dead letters of no epoch; they are still this state's.
        let mut job = plan_new(settings)?;
        job.dead_letters.clone_from(&self.stored.dead_letters);
        if job != self.stored {
            job.save(&settings.state)?;
        }
        let told = self.difference.map(|difference| {
            format!("{difference}. No record was ever applied in {state}, so it belongs to this command now.")
        });
        let turn = match before.mark.take() {
            Some(mark) if mark.job == job.marker() => mark.turn,
            other => other.map_or(0, |mark| mark.turn) + 1,
        };
        let before = Committed { mark: Some(Mark { job: job.marker(), turn }), ..Committed::default() };
        Ok(Owned { job, before, told })
    }
}

fn another_job(settings: &Settings, difference: &str) -> CliError {
    CliError::failure(format!("{} belongs to another job: {difference}", settings.state.display()))
        .remedy("Use the same command as before to continue, or another --state directory for the new job.")
}

/// A job that starts at the beginning of its input.
fn plan_new(settings: &Settings) -> Result<Job> {
    let key = settings.key.as_deref();
    let format = match settings.format {
        Some(format) => format,
        None => detect(&expand(&settings.inputs)?, key)?,
    };
    check_options(format, settings)?;
    let mut job = Job::new(format, key.unwrap_or_default(), &settings.plan, &settings.inputs);
    extend(&mut job, None, settings.follow)?;
    Ok(job)
}

fn check_options(format: Format, settings: &Settings) -> Result<()> {
    match (format, &settings.key) {
        (Format::Words, Some(_)) => {
            Err(CliError::usage("--key has no meaning for words: each word is its own key")
                .remedy("Leave out --key, or give --format ndjson, csv or tsv."))
        }
        (Format::Words, None) if !settings.plan.fields.is_empty() => Err(CliError::usage(format!(
            "--agg {} needs fields, but words have none",
            settings.plan.specs().join(",")
        ))
        .remedy("Use --agg count, or give --format ndjson, csv or tsv.")),
        (Format::Ndjson | Format::Csv | Format::Tsv, None) => {
            Err(CliError::usage(format!("--key is missing: which field of the {format} input is the key?"))
                .remedy("For example --key user_id, or --key user.id for a nested field."))
        }
        _ => Ok(()),
    }
}
