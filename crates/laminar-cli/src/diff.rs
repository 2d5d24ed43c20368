//! `diff`: what is different between two savepoints, checkpoints or states.
//!
//! Savepoints and checkpoints are read block by block, so that they may be larger than the memory; a state
//! directory is recovered into memory, as all tools do that look into one.

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use laminar_storage::StateReader;
use laminar_storage::incremental::{
    CheckpointReader, Contents, Difference, IncrementalCheckpointError, diff,
};
use laminar_storage::vfs::OsVfs;
use serde_json::json;

use crate::args::DiffArgs;
use crate::belonging::job_of;
use crate::distributed::refuse_job;
use crate::engine::Report;
use crate::error::{CliError, Result};
use crate::export::Meaning;
use crate::inspect::of_library;
use crate::job::Job;
use crate::savepoint_dir::is_savepoint;
use crate::visible;

/// Text is written when so much of it has come together.
const FLUSH_AT: usize = 64 << 10;

impl From<IncrementalCheckpointError> for CliError {
    fn from(error: IncrementalCheckpointError) -> Self {
        of_library(error)
    }
}

/// One of the two.
enum Side {
    Checkpoint(Box<CheckpointReader>),
    State(Box<StateReader>),
}

impl Side {
    fn open(dir: &Path) -> Result<Self> {
        if is_savepoint(dir) {
            return Ok(Self::Checkpoint(Box::new(CheckpointReader::open(&OsVfs::new(), dir)?)));
        }
        if !dir.join("wal").exists() && !dir.join("checkpoints").exists() {
            refuse_job(dir, "`laminar export` writes it: compare what it writes of both.")?;
            return Err(CliError::failure(format!("{} is neither a savepoint nor a state", dir.display()))
                .remedy("Check the path."));
        }
        Ok(Self::State(Box::new(StateReader::open(dir)?)))
    }

    fn contents(&self) -> Contents<'_> {
        match self {
            Self::Checkpoint(reader) => reader.as_ref().into(),
            Self::State(reader) => reader.state().into(),
        }
    }

    /// What its values mean. A checkpoint in a state directory is of that state's job.
    fn meaning(&self, dir: &Path, raw: bool) -> Result<Meaning> {
        match self {
            _ if raw => Ok(Meaning::Hex),
            Self::State(reader) => Meaning::of(dir, raw, &Report::from(reader.report())),
            Self::Checkpoint(reader) => {
                let metadata = reader.metadata();
                let above = dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).join("../..");
                let home = if Job::path(dir).exists() || !Job::path(&above).exists() {
                    PathBuf::from(dir)
                } else {
                    above
                };
                match job_of(&home, &metadata.source_offsets, metadata.key_count)? {
                    Some(job) => Ok(Meaning::Job { plan: job.plan()?, format: job.format }),
                    None => Ok(Meaning::Bytes),
                }
            }
        }
    }
}

#[derive(Default)]
struct Counts {
    added: u64,
    changed: u64,
    removed: u64,
}

/// `laminar diff`: as `diff`, it ends with 0 when there is no difference, 1 when there is one.
pub fn diff_states(args: &DiffArgs, out: &mut dyn Write) -> Result<()> {
    let (before, after) = (Side::open(&args.before)?, Side::open(&args.after)?);
    let meanings = args
        .list
        .then(|| {
            Ok::<_, CliError>((
                before.meaning(&args.before, args.raw)?,
                after.meaning(&args.after, args.raw)?,
            ))
        })
        .transpose()?;
    let terminal = std::io::stdout().is_terminal();
    let prefix = args.prefix.as_ref().map(|prefix| prefix.as_bytes()).unwrap_or_default();
    let (mut counts, mut listed, mut text) = (Counts::default(), 0, Vec::new());
    diff(before.contents(), after.contents(), |difference| {
        if !difference.key().starts_with(prefix) {
            return Ok(());
        }
        match difference {
            Difference::Added { .. } => counts.added += 1,
            Difference::Changed { .. } => counts.changed += 1,
            Difference::Removed { .. } => counts.removed += 1,
        }
        let Some(meanings) = meanings.as_ref().filter(|_| args.limit.is_none_or(|limit| listed < limit))
        else {
            return Ok(());
        };
        listed += 1;
        let start = text.len();
        if args.json {
            write_json(&mut text, meanings, &difference)?;
            if terminal {
                visible::make_json(&mut text, start);
            }
        } else {
            text.extend_from_slice(line(meanings, &difference)?.as_bytes());
        }
        if text.len() >= FLUSH_AT {
            out.write_all(&text).map_err(|e| CliError::stdout(&e))?;
            text.clear();
        }
        Ok::<_, CliError>(())
    })?;
    let Counts { added, changed, removed } = counts;
    if args.json {
        let summary = json!({ "added": added, "changed": changed, "removed": removed });
        text.extend_from_slice(format!("{summary}\n").as_bytes());
    } else {
        text.extend_from_slice(format!("{added} added, {changed} changed, {removed} removed\n").as_bytes());
    }
    out.write_all(&text).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))?;
    if added + changed + removed == 0 { Ok(()) } else { Err(CliError::different()) }
}

/// Key and values on either side, as `laminar export` writes them; null where there is none.
fn write_json(text: &mut Vec<u8>, meanings: &(Meaning, Meaning), difference: &Difference<'_>) -> Result<()> {
    let (change, before, after) = parts(difference);
    text.extend_from_slice(format!("{{\"change\":\"{change}\"").as_bytes());
    for (name, meaning, value) in [("before", &meanings.0, before), ("after", &meanings.1, after)] {
        text.extend_from_slice(format!(",\"{name}\":").as_bytes());
        match value {
            Some(value) => {
                meaning.write_ndjson(text, difference.key(), value)?;
                // Without the end of its line.
                text.pop();
            }
            None => text.extend_from_slice(b"null"),
        }
    }
    text.extend_from_slice(b"}\n");
    Ok(())
}

fn parts<'a>(difference: &Difference<'a>) -> (&'static str, Option<&'a [u8]>, Option<&'a [u8]>) {
    match difference {
        Difference::Added { value, .. } => ("added", None, Some(value)),
        Difference::Changed { before, after, .. } => ("changed", Some(before), Some(after)),
        Difference::Removed { value, .. } => ("removed", Some(value), None),
    }
}

/// One line for a person: `+ key  count=1`, `- key  count=1`, `~ key  count=1 -> 2`.
fn line(meanings: &(Meaning, Meaning), difference: &Difference<'_>) -> Result<String> {
    let key = difference.key();
    let told = |meaning: &Meaning, value: &[u8]| -> Result<Vec<(String, String)>> {
        let names = meaning.columns().into_iter().map(|name| visible::text(name.as_bytes()));
        Ok(names.zip(meaning.cells(key, value)?.iter().map(|cell| cell.shown().into_owned())).collect())
    };
    let all = |pairs: Vec<(String, String)>| {
        let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join(" ")
    };
    let (sign, meaning, values) = match difference {
        Difference::Added { value, .. } => ('+', &meanings.1, all(told(&meanings.1, value)?)),
        Difference::Removed { value, .. } => ('-', &meanings.0, all(told(&meanings.0, value)?)),
        Difference::Changed { before, after, .. } => {
            let (before, after) = (told(&meanings.0, before)?, told(&meanings.1, after)?);
            let same_columns = before.iter().map(|(name, _)| name).eq(after.iter().map(|(name, _)| name));
            let values = if same_columns {
                let changed = before.into_iter().zip(after).filter(|(before, after)| before != after);
                let changed =
                    changed.map(|((name, before), (_, after))| format!("{name}={before} -> {after}"));
                changed.collect::<Vec<_>>().join(" ")
            } else {
                format!("{} -> {}", all(before), all(after))
            };
            ('~', &meanings.1, values)
        }
    };
    Ok(format!("{sign} {}  {values}\n", meaning.key_shown(key)))
}
