//! Takes parsed batches in turn, and decides where epochs end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use super::committed::Committed;
use super::cores::ToCore;
use super::dead_letter::DeadLetter;
use super::live::Live;
use super::reading::{Pools, Read, Turn};
use super::stages::{Sequenced, Setup};
use crate::error::{CliError, Result};
use crate::input::sink::OnBad;
use crate::input::source::{Position, step_path};
use crate::input::{BadRecord, Parsed};
use crate::job::Job;

/// Takes results in turn, and marks the ends of epochs.
pub struct Sequencer<'a> {
    pub setup: &'a Setup,
    pub live: &'a Live,
    pub cores: Vec<SyncSender<ToCore>>,
    pub committed: Committed,
    pub dead_letter: Option<(usize, DeadLetter)>,
    pub marks: u64,
    /// Something was applied since the last mark.
    pub dirty: bool,
    pub last_mark: Instant,
    pub first_bad: Option<String>,
}

/// The sequencer has nothing more to do.
enum Stop {
    /// The input ended, completely or not.
    End { finished: bool },
    /// The input has a fault; what precedes it is good.
    Fault(CliError),
    /// A core has gone; it has noted why.
    CoreGone,
}

impl Sequencer<'_> {
    /// Runs until there is nothing more to do, and seals what there is.
    pub fn run(mut self, turns: &[Receiver<Turn>], pools: &Pools) -> Sequenced {
        let mut stop = self.take_turns(turns, pools);
        if !matches!(stop, Stop::CoreGone)
            && let Err(later) = self.mark()
        {
            stop = later;
        }
        let mut sequenced =
            Sequenced { first_bad: self.first_bad, committed: self.committed, ..Sequenced::default() };
        match stop {
            Stop::End { finished } => sequenced.finished = finished,
            Stop::Fault(error) => sequenced.error = Some(error),
            Stop::CoreGone => {}
        }
        sequenced
    }

    fn take_turns(&mut self, turns: &[Receiver<Turn>], pools: &Pools) -> Stop {
        for receiver in turns.iter().cycle() {
            let turn = match receiver.recv() {
                Ok(turn) => turn,
                Err(_) => return Stop::Fault(CliError::internal("a parser's thread ended early")),
            };
            let done = match turn {
                Turn::Batch { parsed, read } => self.batch(parsed, read, pools),
                Turn::Idle => Ok(()),
                Turn::End { finished } => Err(Stop::End { finished }),
                Turn::Failed(error) => Err(Stop::Fault(error)),
            };
            let done = done.and_then(|()| {
                if self.last_mark.elapsed() >= self.setup.epoch { self.mark() } else { Ok(()) }
            });
            if let Err(stop) = done {
                return stop;
            }
        }
        Stop::Fault(CliError::internal("a job without cores"))
    }

    fn batch(&mut self, parsed: Parsed, read: Read, pools: &Pools) -> Result<(), Stop> {
        let Read { batch, end, lines, ticket } = read;
        let ticket = Arc::new(ticket);
        for (core, part) in self.cores.iter().zip(parsed.parts) {
            if part.records == 0 {
                pools.parts.give(part);
            } else if core.send(ToCore::Apply { part, ticket: Arc::clone(&ticket) }).is_err() {
                return Err(Stop::CoreGone);
            }
        }
        self.dirty = true;
        self.committed.records += parsed.records;
        self.live.records.fetch_add(parsed.records, Ordering::Relaxed);
        if self.setup.on_bad == OnBad::Stop
            && let Some(bad) = parsed.bad.first()
        {
            // The next run starts at the bad record, where it can be skipped or has been repaired.
            self.committed.lines += bad.line - batch.line;
            self.committed.position = Some(Position { step: batch.step, offset: bad.offset, line: bad.line });
            self.live.bytes.fetch_add(bad.offset - batch.offset, Ordering::Relaxed);
            return Err(Stop::Fault(bad_record(
                &self.setup.job,
                batch.step,
                bad,
                self.committed.is_empty(),
                true,
            )));
        }
        self.take_bad(&parsed.bad, batch.step).map_err(|e| self.fail(e))?;
        self.committed.lines += lines;
        self.committed.position = Some(end);
        self.live.bytes.fetch_add(end.offset - batch.offset, Ordering::Relaxed);
        pools.buffers.give(batch.bytes);
        Ok(())
    }

    fn take_bad(&mut self, bad: &[BadRecord], step: u32) -> Result<()> {
        let count = bad.len() as u64;
        self.committed.skipped += count;
        self.live.skipped.fetch_add(count, Ordering::Relaxed);
        let path = step_path(&self.setup.job, step);
        if let (None, Some(first)) = (&self.first_bad, bad.first()) {
            self.first_bad = Some(place(path, first));
        }
        if let Some((_, file)) = &mut self.dead_letter {
            for record in bad {
                file.add(path, record)?;
            }
        }
        Ok(())
    }

    /// Ends the epoch here, on every core.
    fn mark(&mut self) -> Result<(), Stop> {
        self.last_mark = Instant::now();
        if !self.dirty {
            return Ok(());
        }
        let dead_letter = self.dead_letter.as_mut().map(|(index, file)| (*index, file.sync()));
        if let Some((index, len)) = dead_letter {
            self.committed.dead_letters.insert(index, len.map_err(|e| self.fail(e))?);
        }
        let offsets = self.committed.to_offsets().map_err(|e| self.fail(e))?;
        let offsets = Arc::new(offsets);
        for core in &self.cores {
            if core.send(ToCore::Seal { mark: self.marks, offsets: Arc::clone(&offsets) }).is_err() {
                return Err(Stop::CoreGone);
            }
        }
        self.marks += 1;
        self.dirty = false;
        Ok(())
    }

    /// A failure that leaves applied records unsealed: the run must not go on to seal them.
    fn fail(&self, error: CliError) -> Stop {
        self.live.fail(error);
        Stop::CoreGone
    }
}

pub fn place(path: &str, bad: &BadRecord) -> String {
    format!("{path}: line {} (byte {}): {}", bad.line, bad.offset, bad.reason)
}

/// With what to do about it, which for some jobs is also to keep such records in a file (`dead_letters`).
pub fn bad_record(job: &Job, step: u32, bad: &BadRecord, first: bool, dead_letters: bool) -> CliError {
    let error = CliError::failure(place(step_path(job, step), bad));
    let leave = if dead_letters {
        "--on-error skip, or with --on-error dead-letter FILE to keep such records"
    } else {
        "--on-error skip"
    };
    if first {
        return error.remedy(format!(
            "It is the first record, and nothing was applied. Is --key, --agg or --format mistyped? Run the corrected command, \
             or repair the input; or leave such records out with {leave}.",
        ));
    }
    error.remedy(format!(
        "Everything before it is done and durable. Repair the input from this record on (what precedes it must stay as it is) \
         and run the same command again, or run it with {leave}; it continues from there.",
    ))
}
