//! How far event time has come: what every input of every worker said of it.
//!
//! It is the same on all workers at the end of an epoch, and part of the state, so that a crash changes nothing: an input that has
//! said nothing since the restart holds windows open as what it said before does. That event time is as far as its slowest input, which
//! holds until it says more or is finished, is how Flink and the Dataflow model have it as well (Akidau et al., VLDB 2015).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::layout::Generation;
use crate::ledger::OperatorId;

/// Which input of which worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) worker: u64,
    pub(super) input: OperatorId,
}

/// What an input says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Said {
    /// It is there; all of them say so in the first epoch of a run.
    Begins,
    /// Nothing with an earlier event time will come.
    Watermark(i64),
    /// Nothing more will come.
    Finished,
}

/// Goes to all workers with the epoch it was said in.
pub(super) type Says = (Place, Said);

/// How far an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Silent,
    At(i64),
    Finished,
}

/// How far all inputs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watermarks {
    /// In which size of the job this was said: in another, other workers read other sources.
    generation: Generation,
    /// How far event time is; it never goes back.
    least: i64,
    /// Inputs for which some worker has said something.
    speak: BTreeSet<OperatorId>,
    inputs: BTreeMap<Place, Stands>,
}

impl Watermarks {
    /// Before anything was said.
    pub(super) fn new(generation: Generation) -> Self {
        Self { generation, least: i64::MIN, speak: BTreeSet::new(), inputs: BTreeMap::new() }
    }

    /// In a run of the job in this size: of another size only what does not depend on who reads what is kept.
    pub(super) fn in_generation(mut self, generation: Generation) -> Self {
        if self.generation != generation {
            self.inputs.clear();
            self.generation = generation;
        }
        self
    }

    /// How far event time is.
    pub(super) fn least(&self) -> i64 {
        self.least
    }

    /// Takes note of what was said in an epoch, by all workers, and says whether that changed anything. What one of them said is in
    /// its order.
    pub(super) fn hear(&mut self, says: &[Says]) -> bool {
        let mut changed = self.begin(says);
        for (place, said) in says {
            let stands = match said {
                Said::Begins => continue,
                Said::Watermark(watermark) => {
                    changed |= self.speak.insert(place.input);
                    Stands::At(*watermark)
                }
                Said::Finished => Stands::Finished,
            };
            changed |= self.inputs.insert(*place, stands) != Some(stands);
        }
        if let Some(least) = self.slowest() {
            self.least = self.least.max(least);
        }
        changed
    }

    /// In the first epoch of a run: which inputs there are.
    fn begin(&mut self, says: &[Says]) -> bool {
        let begin = says.iter().filter(|(_, said)| *said == Said::Begins);
        let begin: BTreeSet<_> = begin.map(|(place, _)| *place).collect();
        if begin.is_empty() {
            return false;
        }
        let before = self.inputs.len();
        // An input that a later version of the program does not have says nothing more.
        self.inputs.retain(|place, _| begin.contains(place));
        let mut changed = self.inputs.len() != before;
        for place in begin {
            let stands = self.inputs.entry(place).or_insert_with(|| {
                changed = true;
                Stands::Silent
            });
            // What was finished in an earlier run has a source again that may have more; if not, it is finished again.
            if *stands == Stands::Finished {
                (*stands, changed) = (Stands::Silent, true);
            }
        }
        changed
    }

    /// How far the slowest of the inputs is that speak; none while one has not said it.
    fn slowest(&self) -> Option<i64> {
        let mut least = None::<i64>;
        for (_, stands) in self.inputs.iter().filter(|(place, _)| self.speak.contains(&place.input)) {
            match stands {
                Stands::Silent => return None,
                Stands::At(watermark) => {
                    least = Some(least.map_or(*watermark, |least| least.min(*watermark)))
                }
                Stands::Finished => {}
            }
        }
        least
    }
}

impl Codec for Watermarks {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.generation.0, self.least, self.speak.len() as u64, self.inputs.len() as u64).encode(out);
        self.speak.iter().for_each(|input| input.encode(out));
        for (place, stands) in &self.inputs {
            let stands = match stands {
                Stands::Silent => None,
                Stands::At(watermark) => Some(Some(*watermark)),
                Stands::Finished => Some(None),
            };
            (place.worker, place.input, stands).encode(out);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (generation, least, speak, inputs) = <(u32, i64, u64, u64)>::decode(bytes)?;
        let mut watermarks = Self { least, ..Self::new(Generation(generation)) };
        for _ in 0..speak {
            watermarks.speak.insert(OperatorId::decode(bytes)?);
        }
        for _ in 0..inputs {
            let (worker, input, stands) = <(u64, OperatorId, Option<Option<i64>>)>::decode(bytes)?;
            let stands = match stands {
                None => Stands::Silent,
                Some(Some(watermark)) => Stands::At(watermark),
                Some(None) => Stands::Finished,
            };
            watermarks.inputs.insert(Place { worker, input }, stands);
        }
        Some(watermarks)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::Said::{Begins, Finished, Watermark};
    use super::*;

    fn place(worker: u64, input: &str) -> Place {
        Place { worker, input: OperatorId::of(input) }
    }

    /// Two workers, each with two inputs.
    fn begun() -> Watermarks {
        let mut watermarks = Watermarks::new(Generation(1));
        watermarks.hear(&all_begin());
        watermarks
    }

    fn all_begin() -> Vec<Says> {
        [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
            .map(|(worker, input)| (place(worker, input), Begins))
            .to_vec()
    }

    #[test]
    fn an_input_that_speaks_anywhere_holds_everywhere() {
        let mut watermarks = begun();
        watermarks.hear(&[(place(0, "a"), Watermark(100)), (place(1, "a"), Watermark(50))]);
        // Nobody ever said something of the other one.
        assert_eq!(watermarks.least(), 50);
        watermarks.hear(&[(place(0, "b"), Watermark(200)), (place(1, "a"), Finished)]);
        assert_eq!(watermarks.least(), 50);
        watermarks.hear(&[(place(1, "b"), Watermark(70))]);
        assert_eq!(watermarks.least(), 70);
        watermarks.hear(&[(place(1, "b"), Finished)]);
        assert_eq!(watermarks.least(), 100);
        // What goes back changes nothing.
        watermarks.hear(&[(place(0, "a"), Watermark(-5)), (place(0, "b"), Finished)]);
        assert_eq!(watermarks.least(), 100);
    }

    #[test]
    fn what_was_said_before_a_restart_still_holds() {
        let mut watermarks = begun();
        let of_a = [(place(0, "a"), Watermark(10)), (place(1, "a"), Watermark(40))];
        let of_b = [(place(0, "b"), Watermark(20)), (place(1, "b"), Watermark(30))];
        watermarks.hear(&[of_a, of_b].concat());
        let mut bytes = Vec::new();
        watermarks.encode(&mut bytes);
        let read = Watermarks::decode_all(&bytes).unwrap();
        assert_eq!(read, watermarks);
        let mut same = read.clone().in_generation(Generation(1));
        assert!(!same.hear(&all_begin()));
        same.hear(&[(place(0, "a"), Watermark(100))]);
        assert_eq!(same.least(), 20);
        // With other workers everybody says it anew.
        let mut other = read.in_generation(Generation(2));
        other.hear(&all_begin());
        other.hear(&of_b);
        other.hear(&[(place(0, "a"), Watermark(100))]);
        assert_eq!(other.least(), 10);
        other.hear(&[(place(1, "a"), Watermark(25))]);
        assert_eq!(other.least(), 20);
        for len in 0..bytes.len() {
            assert_eq!(Watermarks::decode_all(&bytes[..len]), None);
        }
    }

    /// It could say nothing more, and rows that it had came late.
    #[test]
    fn an_input_that_was_finished_in_an_earlier_run_holds_until_it_is_again() {
        let mut watermarks = begun();
        watermarks.hear(&[(place(0, "a"), Watermark(10)), (place(1, "a"), Finished)]);
        assert_eq!(watermarks.least(), 10);
        watermarks.hear(&all_begin());
        watermarks.hear(&[(place(0, "a"), Watermark(100))]);
        assert_eq!(watermarks.least(), 10);
        watermarks.hear(&[(place(1, "a"), Watermark(50))]);
        assert_eq!(watermarks.least(), 50);
        // In the epoch in which it begins again.
        watermarks.hear(&[all_begin(), vec![(place(1, "a"), Finished)]].concat());
        watermarks.hear(&[(place(0, "a"), Watermark(120))]);
        assert_eq!(watermarks.least(), 120);
    }

    #[test]
    fn an_input_that_is_gone_from_the_program_holds_nothing() {
        let mut watermarks = begun();
        let before = [(0, "a"), (0, "b"), (1, "a"), (1, "b")].map(|(w, i)| (place(w, i), Watermark(10)));
        watermarks.hear(&before);
        watermarks.hear(&[(place(0, "a"), Begins), (place(1, "a"), Begins)]);
        watermarks.hear(&[(place(0, "a"), Watermark(70)), (place(1, "a"), Watermark(60))]);
        assert_eq!(watermarks.least(), 60);
    }
}
