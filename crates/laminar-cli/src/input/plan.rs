//! Which files are read, and which bytes of them: makes and extends the steps of a [`Job`].

use std::path::Path;

use super::Format;
use super::identity::{FileIdentity, bytes_at, count_lines};
use crate::error::{CliError, Result};
use crate::job::{Job, Step};

/// Expands patterns; plain names stay as they are. Sorted within a pattern, without duplicates.
pub fn expand(inputs: &[String]) -> Result<Vec<String>> {
    let mut paths: Vec<String> = Vec::new();
    for input in inputs {
        let mut found = if is_literal(input) { vec![input.clone()] } else { expand_pattern(input)? };
        found.retain(|path| !paths.contains(path));
        paths.append(&mut found);
    }
    Ok(paths)
}

/// Whether the input names one file. A file whose name looks like a pattern is that file.
pub fn is_literal(input: &str) -> bool {
    !input.contains(['*', '?', '[']) || Path::new(input).exists()
}

fn expand_pattern(pattern: &str) -> Result<Vec<String>> {
    let paths = glob::glob(pattern).map_err(|e| {
        CliError::usage(format!("{pattern:?} is not a pattern: {e}")).remedy("Patterns use *, ? and [abc].")
    })?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|e| CliError::io("look into", e.path(), e.error()))?;
        if path.is_dir() {
            continue;
        }
        let Some(path) = path.to_str() else {
            return Err(CliError::usage(format!("{} has a name that is not UTF-8", path.display())));
        };
        found.push(path.to_owned());
    }
    if found.is_empty() {
        return Err(CliError::usage(format!("no file matches {pattern:?}")).remedy("Check the pattern."));
    }
    found.sort();
    Ok(found)
}

/// Finds the format of the input from its names, then from its first line.
pub fn detect(paths: &[String], key: Option<&str>) -> Result<Format> {
    let mut found: Option<(Format, &str)> = None;
    for path in paths {
        let Some(format) = detect_one(path, key)? else { continue };
        match found {
            Some((other, first)) if other != format => {
                return Err(CliError::usage(format!("{first} looks like {other}, but {path} like {format}"))
                    .remedy("Run one job per format, or give --format."));
            }
            _ => found = Some((format, path)),
        }
    }
    found.map(|(format, _)| format).ok_or_else(|| {
        let names = paths.first().map_or("the input", String::as_str);
        CliError::usage(format!("cannot tell the format of {names} from its name or first line")).remedy(
            "Give --format ndjson, csv, tsv or words; for csv and tsv, --key must be a column of the header.",
        )
    })
}

fn detect_one(path: &str, key: Option<&str>) -> Result<Option<Format>> {
    if let Some(format) = Format::from_extension(Path::new(path)) {
        return Ok(Some(format));
    }
    let start = bytes_at(Path::new(path), 0, 64 << 10)?;
    let line = start.split(|b| *b == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    Ok(Format::from_first_line(line, key))
}

/// Position in the steps: everything before it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadUpTo {
    /// Place in [`Job::steps`].
    pub step: usize,
    /// File offset in that step.
    pub offset: u64,
}

/// Checks every file of the job, and plans what has not been read: new files, and what was added
/// to known ones. `read` is none for a job that has not read anything. Returns whether the job has
/// changed and must be saved before anything more is read.
pub fn extend(job: &mut Job, read: Option<ReadUpTo>, follow: bool) -> Result<bool> {
    let before = job.clone();
    let paths = expand(&job.inputs)?;
    if follow && paths.len() != 1 {
        return Err(CliError::usage(format!(
            "--follow reads one file, but the input is {} files",
            paths.len()
        ))
        .remedy("Name one file."));
    }
    for index in 0..job.files.len() {
        plan_known(job, index, read, follow)?;
    }
    for path in &paths {
        if job.files.iter().any(|f| f.path == *path) {
            continue;
        }
        let (identity, len) = FileIdentity::take(path)?;
        job.files.push(identity);
        if len > 0 || follow {
            let to = (!follow).then_some(len);
            job.steps.push(Step { file: job.files.len() - 1, from: 0, from_line: 1, to });
        }
    }
    Ok(*job != before)
}

/// At the end of a run: what has not been read of a file is no part of its identity. Returns
/// whether the job has changed and must be saved.
pub fn forget_unread(job: &mut Job, read: Option<ReadUpTo>) -> bool {
    let before = job.clone();
    for index in 0..job.files.len() {
        let (consumed, _) = progress(job, index, read);
        job.files[index].forget_after(consumed);
    }
    *job != before
}

/// How far a file has been read, and its step that is not finished.
fn progress(job: &Job, file: usize, read: Option<ReadUpTo>) -> (u64, Option<usize>) {
    let read = read.unwrap_or_default();
    let mut end = 0;
    for (index, step) in job.steps.iter().enumerate().filter(|(_, s)| s.file == file) {
        let at = match index.cmp(&read.step) {
            std::cmp::Ordering::Less => step.to.unwrap_or(step.from),
            std::cmp::Ordering::Equal => read.offset.max(step.from),
            std::cmp::Ordering::Greater => step.from,
        };
        if index >= read.step && step.to != Some(at) {
            return (at, Some(index));
        }
        end = end.max(at);
    }
    (end, None)
}

fn plan_known(job: &mut Job, file: usize, read: Option<ReadUpTo>, follow: bool) -> Result<()> {
    let (end, unfinished) = progress(job, file, read);
    let path = job.files[file].path.clone();
    // A file found by a pattern may be removed once it is read; its results are in the state.
    if unfinished.is_none() && !job.inputs.contains(&path) && !Path::new(&path).exists() {
        return Ok(());
    }
    let len = job.files[file].check(end)?;
    if let Some(step) = unfinished {
        job.steps[step].to = (!follow).then_some(len);
        return Ok(());
    }
    if len > end || follow {
        let from = if end == 0 { 0 } else { after_last_line(Path::new(&path), end, len)? };
        if len > from || follow {
            let from_line = 1 + count_lines(Path::new(&path), from)?;
            job.steps.push(Step { file, from, from_line, to: (!follow).then_some(len) });
        }
    }
    Ok(())
}

/// Where to go on in a file that was read to its end and has grown since. If its last line had no
/// newline, what follows must be that newline: otherwise half a line has been counted as a whole.
fn after_last_line(path: &Path, end: u64, len: u64) -> Result<u64> {
    let around = bytes_at(path, end - 1, 3)?;
    Ok(match &around[..] {
        [b'\n', ..] => end,
        _ if len == end => {
            return Err(CliError::failure(format!(
                "{} cannot be followed: its last line has no newline and is already counted as it is",
                path.display()
            ))
            .remedy(
                "Run without --follow once the file has grown, or start over with a new --state directory.",
            ));
        }
        [_, b'\n', ..] => end + 1,
        [_, b'\r', b'\n'] => end + 2,
        _ => {
            return Err(CliError::failure(format!(
                "{} ended in an incomplete line when it was read to byte {end}, and that line has been extended since",
                path.display()
            ))
            .remedy("Its first part is already counted. Start over with a new --state directory."));
        }
    })
}
