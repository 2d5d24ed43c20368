//! Runs operations in bursts and measures them.

use std::time::{Duration, Instant};

use laminar_storage::{CoreStore, Store};

use super::Operation;
use crate::Error;
use crate::machine::{Nanos, histogram};
use crate::plot::Distribution;
use crate::table::Cell;

/// Operations between two pauses: a quarter of the default ring.
pub const BURST: usize = 16_384;
/// Puts that a core holds back until others follow or the epoch is sealed.
const WAITING: u64 = 16;
/// Operations between two looks at the clock, where seals depend on time.
const LOOK: usize = 256;

/// When the epoch is closed.
#[derive(Clone, Copy, Debug)]
pub enum Seals {
    Never,
    Every(Duration),
    Puts(usize),
}

impl Seals {
    pub fn name(self) -> String {
        match self {
            Self::Never => "not sealed".into(),
            Self::Every(time) => format!("sealed every {} ms", time.as_millis()),
            Self::Puts(puts) => format!("sealed every {puts} puts"),
        }
    }

    /// Operations after which to ask whether a seal is due.
    fn step(self) -> usize {
        match self {
            Self::Never => BURST,
            Self::Every(_) => LOOK,
            Self::Puts(puts) => puts,
        }
    }
}

/// What a row shows.
#[derive(Debug)]
pub struct Outcome {
    name: String,
    mean: Option<f64>,
    timed: Option<(Nanos, Duration)>,
}

impl Outcome {
    pub fn untimed(name: &str, mean: f64) -> Self {
        Self { name: name.into(), mean: Some(mean), timed: None }
    }

    /// `time` is that of all operations together.
    pub fn timed(name: &str, histogram: Nanos, time: Duration) -> Self {
        Self { name: name.into(), mean: None, timed: Some((histogram, time)) }
    }

    pub fn both(name: &str, mean: f64, histogram: Nanos, time: Duration) -> Self {
        Self { mean: Some(mean), ..Self::timed(name, histogram, time) }
    }

    /// What can be drawn of it.
    pub fn distribution(&self) -> Option<Distribution> {
        let (latencies, _) = self.timed.as_ref()?;
        Some(Distribution { name: self.name.clone(), latencies: latencies.clone() })
    }

    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![Cell::text(&self.name), self.mean.map_or(Cell::None, Cell::Nanos)];
        let Some((histogram, time)) = &self.timed else {
            cells.extend(std::iter::repeat_n(Cell::None, 8));
            return cells;
        };
        let over = |nanos: u64| {
            let count = histogram.count_between(nanos, u64::MAX) as f64;
            Cell::Number(count / time.as_secs_f64(), 0)
        };
        cells.push(Cell::Nanos(histogram.mean()));
        cells.extend([0.5, 0.99, 0.999, 0.9999].map(|q| Cell::Nanos(histogram.value_at_quantile(q) as f64)));
        cells.extend([Cell::Nanos(histogram.max() as f64), over(10_000), over(100_000)]);
        cells
    }
}

fn each(time: Duration, operations: usize) -> f64 {
    time.as_nanos() as f64 / operations as f64
}

/// Drives one core.
pub struct Driver<'a> {
    store: &'a Store,
    /// Changes that Ring 1 must have drained before it has caught up.
    pushed: u64,
    operations: u64,
    /// The operations are changes, of which Ring 1 hears.
    pub changes: bool,
    last_seal: Instant,
}

impl<'a> Driver<'a> {
    /// For a store that has not been changed since it was opened.
    pub fn new(store: &'a Store) -> Self {
        Self { store, pushed: 0, operations: 0, changes: true, last_seal: Instant::now() }
    }

    /// First untimed, then timed, with the same numbers.
    pub fn both(
        &mut self,
        name: &str,
        core: &mut CoreStore,
        numbers: &[u32],
        seals: Seals,
        mut operation: impl Operation,
    ) -> Result<Outcome, Error> {
        let mean = self.untimed(core, numbers, seals, &mut operation)?;
        let (histogram, time) = self.timed(core, numbers, seals, &mut operation)?;
        Ok(Outcome::both(name, mean, histogram, time))
    }

    /// Untimed with some numbers and timed with others.
    pub fn halves(
        &mut self,
        name: &str,
        core: &mut CoreStore,
        first: &[u32],
        second: &[u32],
        mut operation: impl Operation,
    ) -> Result<Outcome, Error> {
        let mean = self.untimed(core, first, Seals::Never, &mut operation)?;
        let (histogram, time) = self.timed(core, second, Seals::Never, &mut operation)?;
        Ok(Outcome::both(name, mean, histogram, time))
    }

    /// The mean, without a clock in between.
    pub fn untimed(
        &mut self,
        core: &mut CoreStore,
        numbers: &[u32],
        seals: Seals,
        mut operation: impl Operation,
    ) -> Result<f64, Error> {
        let mut time = Duration::ZERO;
        for burst in numbers.chunks(BURST) {
            for part in burst.chunks(seals.step()) {
                let started = Instant::now();
                for number in part {
                    operation(core, u64::from(*number), self.operations)?;
                    self.operations += 1;
                }
                time += started.elapsed();
                self.seal(core, seals)?;
            }
            self.catch_up(if self.changes { burst.len() } else { 0 });
        }
        self.end(core)?;
        Ok(each(time, numbers.len()))
    }

    /// Every operation by itself; also the time of all together.
    pub fn timed(
        &mut self,
        core: &mut CoreStore,
        numbers: &[u32],
        seals: Seals,
        mut operation: impl Operation,
    ) -> Result<(Nanos, Duration), Error> {
        let (mut histogram, mut time) = (histogram()?, Duration::ZERO);
        for burst in numbers.chunks(BURST) {
            for part in burst.chunks(seals.step()) {
                let all = Instant::now();
                for number in part {
                    let started = Instant::now();
                    operation(core, u64::from(*number), self.operations)?;
                    histogram.saturating_record(started.elapsed().as_nanos() as u64);
                    self.operations += 1;
                }
                time += all.elapsed();
                self.seal(core, seals)?;
            }
            self.catch_up(if self.changes { burst.len() } else { 0 });
        }
        self.end(core)?;
        Ok((histogram, time))
    }

    /// The means without pauses, until the last was put and until it is durable: waiting for room in the ring is part
    /// of both.
    pub fn unpaced(
        &mut self,
        core: &mut CoreStore,
        numbers: &[u32],
        seals: Seals,
        mut operation: impl Operation,
    ) -> Result<(f64, f64), Error> {
        let started = Instant::now();
        for part in numbers.chunks(seals.step()) {
            for number in part {
                operation(core, u64::from(*number), self.operations)?;
                self.operations += 1;
            }
            self.seal(core, seals)?;
        }
        let put = started.elapsed();
        self.end(core)?;
        let durable = started.elapsed();
        self.catch_up(numbers.len());
        Ok((each(put, numbers.len()), each(durable, numbers.len())))
    }

    fn seal(&mut self, core: &mut CoreStore, seals: Seals) -> Result<(), Error> {
        let due = match seals {
            Seals::Never => false,
            Seals::Every(time) => self.last_seal.elapsed() >= time,
            Seals::Puts(_) => true,
        };
        if due {
            core.seal_epoch()?;
            self.last_seal = Instant::now();
        }
        Ok(())
    }

    /// Waits until Ring 1 has drained everything that was pushed, `changes` more than before.
    pub fn catch_up(&mut self, changes: usize) {
        self.pushed += changes as u64;
        while self.store.stats().changes_drained + WAITING < self.pushed {
            std::thread::yield_now();
        }
    }

    /// Leaves nothing of a row to the next one.
    fn end(&mut self, core: &mut CoreStore) -> Result<(), Error> {
        let epoch = core.seal_epoch()?;
        self.last_seal = Instant::now();
        self.store.wait_durable(epoch)?;
        Ok(())
    }
}
