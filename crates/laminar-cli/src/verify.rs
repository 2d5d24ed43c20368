//! `verify`: whether everything in a store's directory can be read and fits together.
//!
//! Only reads, takes no lock, and may run beside a job: what the job removes meanwhile is not held
//! against it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use indicatif::{HumanBytes, HumanCount};
use laminar_storage::StateReader;
use laminar_storage::format::closed::Closed;
use laminar_storage::format::current::{Current, CurrentFault};
use laminar_storage::format::synced::{SLOT_LEN, Synced};
use laminar_storage::incremental::validate_checkpoint;
use laminar_storage::per_core_wal::SegmentStats;
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::belonging::job_of;
use crate::engine::Report;
use crate::error::{CliError, Result};
use crate::export::Meaning;
use crate::inspect::{Parts, of_library};
use crate::job::Job;
use crate::pipeline::committed::Committed;
use crate::savepoint_dir::is_savepoint;

/// Name of what was checked, and what was found.
type Check = (String, Result<String>);

/// `laminar verify`: every check is one line; any that fails makes the whole fail.
pub fn verify(args: &InspectArgs, out: &mut dyn Write) -> Result<()> {
    if is_savepoint(&args.state) {
        return tell(args, &check_savepoint(&args.state), out);
    }
    let parts = Parts::of(&args.state)?;
    let reader = StateReader::open(&args.state).map_err(CliError::from);
    let mut checks: Vec<Check> = Vec::new();
    let report = reader.as_ref().ok().map(|reader| Report::from(reader.report()));
    checks.extend(check_job(&args.state, report.as_ref()).map(|told| ("job.json".to_owned(), told)));
    for (id, dir) in parts.checkpoint_dirs()? {
        let checked = validate_checkpoint(&dir).map_err(of_library);
        // A running job removes checkpoints that it no longer needs.
        if checked.is_err() && !dir.exists() {
            continue;
        }
        let told = checked.map(|m| {
            format!("epoch {}, {} in {} files", m.epoch, HumanBytes(m.size_bytes), m.sst_files.len())
        });
        checks.push((format!("checkpoint {id}"), told));
    }
    let segments = parts.segments();
    let found = segments.as_deref().unwrap_or_default();
    checks.extend(check_current(&parts.wal, found).map(|told| ("CURRENT".to_owned(), told)));
    let closed = check_evidence(&parts.wal, "CLOSED", read_closed);
    checks.extend(closed.map(|told| ("CLOSED".to_owned(), told)));
    let synced = check_evidence(&parts.wal, "SYNCED", read_synced);
    checks.extend(synced.map(|told| ("SYNCED".to_owned(), told)));
    let log = segments.map(|segments| {
        let bytes: u64 = segments.iter().map(|s| s.file_size).sum();
        format!("{} segments, {}", segments.len(), HumanBytes(bytes))
    });
    checks.push(("log".to_owned(), log));
    checks.push(("recovery".to_owned(), reader.and_then(|reader| check_values(&args.state, &reader))));
    tell(args, &checks, out)
}

/// Every byte of a savepoint, and the job beside it.
fn check_savepoint(dir: &Path) -> Vec<Check> {
    let checked = validate_checkpoint(dir).map_err(of_library);
    let report = checked.as_ref().ok().map(|m| Report {
        source_offsets: m.source_offsets.clone(),
        keys: m.key_count,
        ..Report::default()
    });
    let mut checks: Vec<Check> = Vec::new();
    checks.extend(check_job(dir, report.as_ref()).map(|told| ("job.json".to_owned(), told)));
    let told = checked.map(|m| {
        format!("epoch {}, {} keys, {}", m.epoch, HumanCount(m.key_count), HumanBytes(m.size_bytes))
    });
    checks.push(("savepoint".to_owned(), told));
    checks
}

fn tell(args: &InspectArgs, checks: &[Check], out: &mut dyn Write) -> Result<()> {
    let damaged = checks.iter().filter(|(_, result)| result.is_err()).count();
    let text = if args.json { checks_json(checks) } else { checks_text(checks) };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))?;
    if damaged == 0 {
        return Ok(());
    }
    let total = checks.len();
    Err(CliError::failure(format!("{} is damaged: {damaged} of {total} checks failed", args.state.display()))
        .remedy("Keep a copy of the directory before anything else is done with it; the lines above say what is wrong."))
}

/// The job must be readable, and be the one that the state was made by. None: there is no job, and the
/// state needs none.
fn check_job(state: &Path, report: Option<&Report>) -> Option<Result<String>> {
    let loaded = match report {
        Some(report) => job_of(state, &report.source_offsets, report.keys),
        None => Job::load(state),
    };
    let job = match loaded {
        Ok(job) => job?,
        Err(error) => return Some(Err(error)),
    };
    let committed = report.map(|report| Committed::from_offsets(&report.source_offsets));
    let applied = committed.filter(|committed| !committed.is_empty());
    let fits = applied.is_none_or(|committed| fits(&job, &committed));
    Some(if fits {
        Ok(format!("input files {}, steps {}", job.files.len(), job.steps.len()))
    } else {
        Err(CliError::failure(format!(
            "{} does not belong to this state: the position in the input that the state has is not one of it",
            Job::path(state).display()
        ))
        .remedy(crate::job::REMEDY))
    })
}

/// Whether a job's run can have committed this.
fn fits(job: &Job, committed: &Committed) -> bool {
    let Some(position) = committed.position else { return false };
    let step = position.step as usize;
    let in_step = job
        .steps
        .get(step)
        .is_some_and(|step| position.offset >= step.from && step.to.is_none_or(|to| position.offset <= to));
    in_step && committed.dead_letters.keys().all(|index| *index < job.dead_letters.len())
}

fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CliError::io("read", path, &e)),
    }
}

/// The incarnation in a segment's name.
fn incarnation(segment: &SegmentStats) -> Option<u64> {
    let name = segment.path.file_name()?.to_str()?;
    u64::from_str_radix(name.split('.').nth(1)?, 16).ok()
}

/// `CURRENT` must be there once the log has records, and name the newest opening that wrote some.
fn check_current(wal: &Path, segments: &[SegmentStats]) -> Option<Result<String>> {
    let path = wal.join("CURRENT");
    let written = segments.iter().filter(|s| s.entry_count > 0).filter_map(incarnation).max();
    let damaged = |path: PathBuf, what: &str| {
        CliError::failure(format!("{} {what}", path.display())).remedy(
            "This alone loses nothing: the next `laminar run` on this state writes it anew. But find out what \
             damaged it.",
        )
    };
    let bytes = match read_small(&path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return written.map(|_| Err(damaged(path, "is missing"))),
        Err(error) => return Some(Err(error)),
    };
    Some(match Current::decode(&bytes) {
        Ok(current) if written.is_some_and(|newest| newest > current.incarnation.0) => Err(damaged(
            path,
            &format!(
                "is an older copy: it names opening {}, and a later one wrote to the log",
                current.incarnation
            ),
        )),
        Ok(current) => Ok(format!("opening {}, {} cores", current.incarnation, current.core_count)),
        Err(CurrentFault::Damaged) => Err(damaged(path, "is damaged: its checksum does not match")),
        Err(CurrentFault::Newer { version }) => Err(CliError::failure(format!(
            "{} was written by a newer laminar, in format version {version}",
            path.display()
        ))
        .remedy("Use the newer program.")),
    })
}

/// What only testifies to the log may be missing; what is there must be readable.
fn check_evidence(
    wal: &Path,
    name: &str,
    read: impl FnOnce(&[u8]) -> Option<String>,
) -> Option<Result<String>> {
    let path = wal.join(name);
    match read_small(&path) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(read(&bytes).ok_or_else(|| {
            CliError::failure(format!("{} is damaged, or of a newer format", path.display())).remedy(
                "This alone loses nothing: the next `laminar run` on this state writes it anew. But find out \
                 what damaged it.",
            )
        })),
        Err(error) => Some(Err(error)),
    }
}

fn read_closed(bytes: &[u8]) -> Option<String> {
    Closed::decode(bytes).map(|closed| format!("closed in order at epoch {}", closed.epoch))
}

/// A file of whole slots. They are written in place: a power cut may have torn one, and beside a running job one may be
/// seen half written; it proves nothing then, and is no damage.
fn read_synced(bytes: &[u8]) -> Option<String> {
    let (good, slots) = (Synced::decode_all(bytes).count(), bytes.len() / SLOT_LEN);
    let whole = slots > 0 && bytes.len().is_multiple_of(SLOT_LEN);
    whole.then(|| match slots - good {
        0 => format!("of {slots} cores"),
        _ => format!("of {good} of {slots} cores; the others prove nothing"),
    })
}

/// Decodes every value of the recovered state.
fn check_values(state: &Path, reader: &StateReader) -> Result<String> {
    let meaning = Meaning::of(state, false, &Report::from(reader.report()))?;
    for (key, value) in reader.iter() {
        meaning.cells(key, value)?;
    }
    let report = reader.report();
    Ok(format!(
        "epoch {}, {} keys, digest {:?}",
        report.recovery_point,
        HumanCount(report.keys),
        report.digest
    ))
}

fn checks_json(checks: &[(String, Result<String>)]) -> String {
    let checks: Vec<Value> = checks
        .iter()
        .map(|(name, result)| match result {
            Ok(told) => json!({ "check": name, "ok": true, "detail": told }),
            Err(error) => json!({ "check": name, "ok": false, "detail": error.to_string() }),
        })
        .collect();
    format!("{}\n", json!({ "ok": checks.iter().all(|c| c["ok"] == true), "checks": checks }))
}

fn checks_text(checks: &[(String, Result<String>)]) -> String {
    let line = |(name, result): &(String, Result<String>)| match result {
        Ok(told) => format!("ok       {name}: {told}\n"),
        Err(error) => format!("DAMAGED  {name}: {error}\n"),
    };
    checks.iter().map(line).collect()
}
