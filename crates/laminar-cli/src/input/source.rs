//! Reads the steps of a job one after the other and cuts them into batches of whole records.
//!
//! A batch is as large as the reads happen to be; its limits are never part of a result. At the
//! end of a step a last record without newline is taken as complete, unless the file has grown in
//! the meantime: then the step is lengthened first, in `job.json`, so that a restart agrees. While
//! a file is followed, a last record without newline waits; a file that is rotated away or becomes
//! shorter ends the job with an error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::csv::Columns;
use super::{Batch, Format, RECORD_LEN_MAX, identity};
use crate::error::{CliError, Result};
use crate::job::Job;

/// Bytes read at a time: large enough that cutting and handing over cost nothing, small enough
/// that an epoch of 10 ms has several.
pub const BATCH_LEN: usize = 256 << 10;

/// A place in the input, between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Place in [`Job::steps`].
    pub step: u32,
    /// File offset.
    pub offset: u64,
    /// Number of the next line, counted from 1.
    pub line: u64,
}

/// What [`Source::next`] found.
#[derive(Debug)]
pub enum Next {
    /// Whole records, where they end, and how many lines they are.
    Batch { batch: Batch, end: Position, lines: u64 },
    /// The followed file has nothing new.
    Idle,
    /// Everything planned has been read.
    End,
}

/// Reader of a job's input.
#[derive(Debug)]
pub struct Source {
    job: Job,
    state: PathBuf,
    batch_len: usize,
    position: Position,
    open: Option<OpenFile>,
    /// Bytes from `position` on that are not handed out yet.
    pending: Vec<u8>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    columns: Option<Arc<Columns>>,
}

impl Source {
    /// A reader that starts at `position`, or at the start of the first step.
    pub fn new(job: Job, state: PathBuf, position: Option<Position>, batch_len: usize) -> Self {
        let first = job.steps.first().map_or((0, 1), |s| (s.from, s.from_line));
        let position = position.unwrap_or(Position { step: 0, offset: first.0, line: first.1 });
        Self { job, state, batch_len, position, open: None, pending: Vec::new() }
    }

    /// Name of the file that a step reads.
    pub fn path_of(&self, step: u32) -> &str {
        step_path(&self.job, step)
    }

    /// The next batch; `spare` is used for its bytes.
    pub fn next(&mut self, mut spare: Vec<u8>) -> Result<Next> {
        let mut target = self.batch_len;
        loop {
            let Some(to) = self.job.steps.get(self.position.step as usize).map(|s| s.to) else {
                return Ok(Next::End);
            };
            // A finished step is passed without opening its file, which may be gone by now.
            if self.pending.is_empty() && to == Some(self.position.offset) {
                self.next_step();
                continue;
            }
            if !self.open_step(to)? {
                return Ok(Next::Idle);
            }
            let at_end = self.fill(target, to)?;
            if to.is_none() {
                self.check_followed(at_end)?;
            }
            let boundary = self.job.format.last_boundary(&self.pending);
            if boundary > 0 {
                spare.clear();
                spare.extend_from_slice(&self.pending[boundary..]);
                self.pending.truncate(boundary);
                return Ok(self.hand_out(spare));
            }
            // Whatever is still to come: a followed file may end here only for now.
            if self.pending.len() >= RECORD_LEN_MAX {
                return Err(self.too_long());
            }
            if !at_end {
                // Not further than the limit, so that it is the same wherever batches are cut.
                target = (self.pending.len() * 2).min(RECORD_LEN_MAX);
                continue;
            }
            let Some(to) = to else { return Ok(Next::Idle) };
            if self.pending.is_empty() {
                self.next_step();
                continue;
            }
            if !self.lengthen(to)? {
                spare.clear();
                return Ok(self.hand_out(spare));
            }
        }
    }

    fn next_step(&mut self) {
        self.open = None;
        let step = self.position.step + 1;
        if let Some(next) = self.job.steps.get(step as usize) {
            self.position = Position { step, offset: next.from, line: next.from_line };
        } else {
            // The position stays at the end of the last step, where later steps continue.
            self.position.step = step;
        }
    }

    /// Opens the file of the current step; false if it is followed and has no complete header yet.
    fn open_step(&mut self, to: Option<u64>) -> Result<bool> {
        if self.open.is_some() {
            return Ok(true);
        }
        let path = PathBuf::from(self.path_of(self.position.step));
        let file = identity::open(&path)?;
        let mut columns = None;
        if let Some(delimiter) = self.job.format.delimiter() {
            let Some(read) = self.read_header(&path, delimiter, to)? else { return Ok(false) };
            if self.position.offset < read.header_len {
                self.position.offset = read.header_len;
                self.position.line = 1 + read.header_lines;
            }
            columns = Some(Arc::new(read));
        }
        self.pending.clear();
        self.open = Some(OpenFile { file, path, columns });
        Ok(true)
    }

    fn read_header(&self, path: &std::path::Path, delimiter: u8, to: Option<u64>) -> Result<Option<Columns>> {
        let plan = self.job.plan()?;
        let mut len = 64 << 10;
        loop {
            let bytes = identity::bytes_at(path, 0, len)?;
            let at_end = bytes.len() < len;
            let complete = at_end && to.is_some();
            let name = path.display().to_string();
            let columns = Columns::read(&bytes, complete, delimiter, &self.job.key, &plan.fields, &name)?;
            if columns.is_some() || at_end {
                return Ok(columns);
            }
            if len >= RECORD_LEN_MAX {
                return Err(self.too_long());
            }
            len *= 2;
        }
    }

    /// Reads until `target` bytes are pending; true if the end of the step (or, for a followed
    /// file, of the file) came first.
    fn fill(&mut self, target: usize, to: Option<u64>) -> Result<bool> {
        let Some(open) = &self.open else { return Ok(true) };
        while self.pending.len() < target {
            let have = self.pending.len();
            let at = self.position.offset + have as u64;
            let left = to.map_or(u64::MAX, |to| to.saturating_sub(at));
            let want = (target - have).min(usize::try_from(left).unwrap_or(usize::MAX));
            if want == 0 {
                return Ok(true);
            }
            self.pending.resize(have + want, 0);
            let result = open.file.read_at(&mut self.pending[have..], at);
            self.pending.truncate(have + result.as_ref().copied().unwrap_or(0));
            match result {
                Ok(0) => return self.end_of_file(at, to),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(CliError::io("read", &open.path, &e)),
            }
        }
        Ok(false)
    }

    fn end_of_file(&self, at: u64, to: Option<u64>) -> Result<bool> {
        let Some(open) = &self.open else { return Ok(true) };
        let len = identity::len(&open.file, &open.path)?;
        if to.is_none() && len >= at {
            return Ok(true);
        }
        Err(CliError::failure(format!(
            "{} was truncated while it was read: expected at least {} bytes, found {len}",
            open.path.display(),
            to.unwrap_or(at)
        ))
        .remedy(
            "Restore the file and run the same command again, or start over with a new --state directory.",
        ))
    }

    /// A followed file that was rotated away gets nothing more: waiting for it would be silent. One
    /// that was emptied and written anew has other bytes here than those that were to be read.
    fn check_followed(&mut self, at_end: bool) -> Result<()> {
        let step = self.job.steps.get(self.position.step as usize);
        let Some((open, identity)) =
            self.open.as_ref().zip(step.and_then(|step| self.job.files.get_mut(step.file)))
        else {
            return Ok(());
        };
        let what = if at_end && !identity::is_at(&open.file, &open.path)? {
            "rotated while it was followed: it was renamed, removed or replaced"
        } else if !identity.is_same(&open.file)? {
            "changed while it was followed: its first bytes are others than before"
        } else {
            // A file that was short at first; a restart must know it again.
            if identity.remember(&open.file, self.position.offset)? {
                self.job.save(&self.state)?;
            }
            return Ok(());
        };
        Err(CliError::failure(format!("{} was {what}", open.path.display())).remedy(format!(
            "Its records up to byte {} are applied and durable. Start a new job with another --state for the file that has \
             this name now, or put the old file back to go on with it.",
            self.position.offset
        )))
    }

    /// Lengthens the current step if its file has grown past it; the step's last record may go on.
    fn lengthen(&mut self, to: u64) -> Result<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        let len = identity::len(&open.file, &open.path)?;
        if len <= to {
            return Ok(false);
        }
        if let Some(step) = self.job.steps.get_mut(self.position.step as usize) {
            step.to = Some(len);
        }
        self.job.save(&self.state)?;
        Ok(true)
    }

    /// Makes everything pending a batch; `rest` has the bytes that follow it.
    fn hand_out(&mut self, rest: Vec<u8>) -> Next {
        let bytes = std::mem::replace(&mut self.pending, rest);
        let start = self.position;
        let newlines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
        self.position.offset += bytes.len() as u64;
        self.position.line += newlines;
        let unterminated = self.job.format != Format::Words && bytes.last() != Some(&b'\n');
        let columns = self.open.as_ref().and_then(|o| o.columns.clone());
        let batch = Batch { step: start.step, offset: start.offset, line: start.line, bytes, columns };
        Next::Batch { batch, end: self.position, lines: newlines + u64::from(unterminated) }
    }

    fn too_long(&self) -> CliError {
        let Position { step, offset, line } = self.position;
        CliError::failure(format!(
            "{}: line {line} (byte {offset}): no end of the record within {} MiB",
            self.path_of(step),
            RECORD_LEN_MAX >> 20
        ))
        .remedy(match self.job.format {
            Format::Csv | Format::Tsv => {
                "A quote may not be closed there; or --format is not what the file has."
            }
            _ => "Check that the file is text in this --format.",
        })
    }
}

/// Name of the file that a step reads.
pub fn step_path(job: &Job, step: u32) -> &str {
    let file = job.steps.get(step as usize).and_then(|s| job.files.get(s.file));
    file.map_or("", |f| f.path.as_str())
}
