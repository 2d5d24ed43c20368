//! What is committed with every epoch, and how it maps to source offsets.
//!
//! | offset | meaning |
//! |---|---|
//! | `input.position` | step (20 bits) and file offset (44 bits) of the next record |
//! | `input.line` | step and number of the line there |
//! | `run.records` | records aggregated since the job began |
//! | `run.skipped` | records skipped since the job began |
//! | `run.lines` | lines read since the job began |
//! | `dead-letter.N` | length of the N-th dead-letter file of `job.json` |
//! | `laminar-job/X` | the job with the marker X made the state; of several, the largest offset counts |
//!
//! Every one of them only grows, so a union of offsets over cores (which takes the largest) is
//! always the newest, whatever the number of cores was. The one exception: while no record was
//! applied or skipped, a run starts at the beginning, and positions count for nothing.

use std::collections::BTreeMap;

use crate::error::{CliError, Result};
use crate::input::source::Position;

const OFFSET_BITS: u32 = 44;
const MARK: &str = "laminar-job/";

/// Which job the epoch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// [`Job::marker`](crate::job::Job::marker).
    pub job: u64,
    /// How many jobs had the state up to this one, which is counted too.
    pub turn: u64,
}

/// Counters and positions at the end of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Next record to read; none if nothing has been read.
    pub position: Option<Position>,
    /// Records aggregated.
    pub records: u64,
    /// Records skipped or written to a dead-letter file.
    pub skipped: u64,
    /// Lines read.
    pub lines: u64,
    /// The job; none before its first epoch.
    pub mark: Option<Mark>,
    /// Length of each dead-letter file in use, by its number.
    pub dead_letters: BTreeMap<usize, u64>,
}

impl Committed {
    /// No record was applied, and none was passed over.
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.skipped == 0
    }

    /// Reads what the recovered epoch has.
    pub fn from_offsets(offsets: &BTreeMap<String, u64>) -> Self {
        let get = |name: &str| offsets.get(name).copied();
        let position = get("input.position").zip(get("input.line")).map(|(position, line)| {
            let mask = (1 << OFFSET_BITS) - 1;
            let step = u32::try_from(position >> OFFSET_BITS).unwrap_or(u32::MAX);
            Position { step, offset: position & mask, line: line & mask }
        });
        let dead_letters = offsets
            .iter()
            .filter_map(|(name, len)| Some((name.strip_prefix("dead-letter.")?.parse().ok()?, *len)))
            .collect();
        let marks = offsets.iter().filter_map(|(name, turn)| {
            Some(Mark { job: u64::from_str_radix(name.strip_prefix(MARK)?, 16).ok()?, turn: *turn })
        });
        Self {
            mark: marks.max_by_key(|mark| mark.turn),
            position,
            records: get("run.records").unwrap_or(0),
            skipped: get("run.skipped").unwrap_or(0),
            lines: get("run.lines").unwrap_or(0),
            dead_letters,
        }
    }

    /// The offsets to commit.
    pub fn to_offsets(&self) -> Result<Vec<(String, u64)>> {
        let mut offsets = Vec::with_capacity(5 + self.dead_letters.len());
        if let Some(Position { step, offset, line }) = self.position {
            if offset >> OFFSET_BITS != 0 || step >> (64 - OFFSET_BITS) != 0 {
                return Err(CliError::failure(format!(
                    "step {step} at byte {offset} is past what a job can count"
                ))
                .remedy("A job reads at most 16 TiB per file and a million files; split it into several."));
            }
            let step = u64::from(step) << OFFSET_BITS;
            offsets.push(("input.position".to_owned(), step | offset));
            offsets.push(("input.line".to_owned(), step | line));
        }
        for (name, value) in
            [("run.records", self.records), ("run.skipped", self.skipped), ("run.lines", self.lines)]
        {
            offsets.push((name.to_owned(), value));
        }
        offsets.extend(self.mark.map(|mark| (format!("{MARK}{:016x}", mark.job), mark.turn)));
        offsets.extend(self.dead_letters.iter().map(|(index, len)| (format!("dead-letter.{index}"), *len)));
        Ok(offsets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let committed = Committed {
            position: Some(Position { step: 1_000_000, offset: (1 << 44) - 1, line: 77 }),
            records: 1,
            skipped: 2,
            lines: 3,
            mark: Some(Mark { job: 0xabc, turn: 2 }),
            dead_letters: BTreeMap::from([(0, 5), (3, 9)]),
        };
        let mut offsets: BTreeMap<_, _> = committed.to_offsets().unwrap().into_iter().collect();
        // The job that had the state before.
        offsets.insert("laminar-job/ffffffffffffffff".to_owned(), 1);
        assert_eq!(Committed::from_offsets(&offsets), committed);
        assert_eq!(Committed::from_offsets(&BTreeMap::new()), Committed::default());
        let too_far =
            Committed { position: Some(Position { step: 0, offset: 1 << 44, line: 1 }), ..committed };
        assert!(too_far.to_offsets().is_err());
    }
}
