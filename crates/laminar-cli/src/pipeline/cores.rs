//! The threads that own keys: each applies its records and seals its epochs.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::budget::Ticket;
use super::live::{Live, Pool};
use crate::agg::Plan;
use crate::agg::bytes::Cursor;
use crate::agg::value::MergeError;
use crate::engine::CoreEngine;
use crate::error::{CliError, Result};
use crate::input::{Part, recycle};

/// Records whose keys are looked up together before they are applied; the time of one is taken.
const GROUP: usize = 64;

/// With fewer keys than this everything is near anyway.
const WARM_FROM: u64 = 10_000;

/// What a core is sent.
pub enum ToCore {
    /// Records, and what they count in flight.
    Apply { part: Part, ticket: Arc<Ticket> },
    /// The end of an epoch.
    Seal { mark: u64, offsets: Arc<Vec<(String, u64)>> },
}

/// Epochs of all cores start at the same number; the first core to seal says which.
#[derive(Default)]
pub struct EpochBase(OnceLock<u64>);

/// Owns one core's keys.
pub struct CoreWorker<'a, C> {
    pub index: usize,
    pub core: C,
    pub plan: &'a Plan,
    pub base: &'a EpochBase,
    pub last_epoch: &'a AtomicU64,
    pub live: &'a Live,
}

impl<C: CoreEngine> CoreWorker<'_, C> {
    /// Runs until nothing more comes or something fails; gives the number of keys, and times.
    pub fn run(
        mut self,
        receiver: &Receiver<ToCore>,
        pool: &Pool<Part>,
        mut put_ns: Histogram<u64>,
    ) -> (u64, Histogram<u64>) {
        let mut value = Vec::new();
        let mut keys: Vec<&'static [u8]> = Vec::new();
        for message in receiver {
            let result = match message {
                ToCore::Apply { part, ticket } => {
                    let mut group = recycle(keys);
                    let result = self.apply(&part, &mut group, &mut value, &mut put_ns);
                    keys = recycle(group);
                    pool.give(part);
                    drop(ticket);
                    result
                }
                ToCore::Seal { mark, offsets } => self.seal(mark, &offsets),
            };
            if let Err(error) = result {
                self.live.fail(error);
                break;
            }
        }
        (self.core.len(), put_ns)
    }

    fn apply<'p>(
        &mut self,
        part: &'p Part,
        group: &mut Vec<&'p [u8]>,
        value: &mut Vec<u8>,
        put_ns: &mut Histogram<u64>,
    ) -> Result<()> {
        let cut_short = || CliError::internal("a routed record is cut short");
        let (mut keys, mut values) = (Cursor(&part.keys), Cursor(&part.values));
        while !keys.0.is_empty() {
            group.clear();
            while group.len() < GROUP && !keys.0.is_empty() {
                group.push(keys.text().ok_or_else(cut_short)?);
            }
            let start = Instant::now();
            self.warm(group);
            let mut looked_up = start.elapsed() / u32::try_from(group.len()).unwrap_or(1);
            for (nth, key) in group.iter().enumerate() {
                let start = (nth == 0).then(Instant::now);
                self.merge(key, &mut values, value)?;
                if let Some(start) = start {
                    looked_up += start.elapsed();
                }
            }
            let _ = put_ns.record(nanoseconds(looked_up));
        }
        Ok(())
    }

    /// Brings the records of these keys near, all at once: one by one each would wait for memory twice,
    /// for the index and for the record.
    fn warm(&self, keys: &[&[u8]]) {
        if self.core.len() >= WARM_FROM {
            self.core.visit(keys, &mut |value| {
                black_box(value.and_then(<[u8]>::first));
            });
        }
    }

    fn merge(&mut self, key: &[u8], records: &mut Cursor<'_>, value: &mut Vec<u8>) -> Result<()> {
        let plan = self.plan;
        let mut failed = None;
        let failure = &mut failed;
        self.core.update(key, move |old| {
            if let Err(error) = plan.merge(old, records, value) {
                *failure = Some(error);
                // The key stays as it is; the epoch will not be sealed.
                value.clear();
                value.extend_from_slice(old?);
            }
            Some(value)
        })?;
        failed.map_or(Ok(()), |error| Err(merge_failed(plan, key, error)))
    }

    fn seal(&mut self, mark: u64, offsets: &[(String, u64)]) -> Result<()> {
        if self.index == 0 {
            for (name, offset) in offsets {
                self.core.set_source_offset(name, *offset);
            }
        }
        let epoch = self.core.seal_epoch()?;
        let base = *self.base.0.get_or_init(|| epoch.wrapping_sub(mark));
        if base.wrapping_add(mark) != epoch {
            return Err(CliError::internal(format!(
                "core {} sealed epoch {epoch} where epoch {} was expected",
                self.index,
                base.wrapping_add(mark)
            )));
        }
        self.last_epoch.fetch_max(epoch, Ordering::AcqRel);
        if self.index == 0 {
            self.live.sealed(epoch);
        }
        Ok(())
    }
}

/// Why the values of a key could not be brought together.
pub fn merge_failed(plan: &Plan, key: &[u8], error: MergeError) -> CliError {
    let key = crate::input::sink::shown(key);
    match error {
        MergeError::Overflow(index) => {
            let name = plan.aggregates.get(index).map(ToString::to_string).unwrap_or_default();
            CliError::failure(format!("the sum of key {key} ({name}) does not fit in 128 bits")).remedy(
                "Nothing of it was written. Start over with a new --state directory and without this aggregate.",
            )
        }
        MergeError::StoredValue => {
            CliError::failure(format!("the stored value of key {key} is not one that this job writes"))
                .remedy("Run `laminar verify` on the state directory.")
        }
        MergeError::Record => CliError::internal(format!("the routed record of key {key} is not readable")),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
