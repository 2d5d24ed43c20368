//! What a store that is one part of a whole knows of the other parts: up to which epoch all of them are durable.
//!
//! A later epoch may be durable here and missing elsewhere, and then the next opening discards it. So nothing of it may
//! get where it cannot be taken out again: no checkpoint holds it, and no record testifies that it was acknowledged.

use std::collections::VecDeque;

use super::drain::DurableCut;
use crate::ids::Epoch;
use crate::sabotage::{Sabotage, sabotaged};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The newest settled epoch, for all threads.
#[derive(Debug)]
pub(crate) struct Settled(AtomicU64);

impl Settled {
    pub(crate) fn starting_at(epoch: Epoch) -> Self {
        Self(AtomicU64::new(epoch.0))
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn raise(&self, epoch: Epoch) {
        self.0.fetch_max(epoch.0, Ordering::AcqRel);
    }
}

/// Where the logs ended when epochs became durable: the newest that a checkpoint may be made of, and later ones, oldest
/// first. There are as many as epochs wait to be settled.
#[derive(Debug)]
pub(crate) struct Cuts {
    usable: DurableCut,
    waiting: VecDeque<DurableCut>,
    /// A checkpoint is to hold exactly the end of this epoch; until it is made, none may hold more.
    reserved: Option<Epoch>,
}

impl Cuts {
    pub(crate) fn starting_at(cut: DurableCut) -> Self {
        Self { usable: cut, waiting: VecDeque::new(), reserved: None }
    }

    /// Adds a new durable epoch; `settled` is `None` where everything durable is for good.
    pub(crate) fn add(&mut self, cut: DurableCut, settled: Option<Epoch>) {
        self.waiting.push_back(cut);
        self.usable(settled);
    }

    /// The newest that a checkpoint may be made of.
    pub(crate) fn usable(&mut self, settled: Option<Epoch>) -> &DurableCut {
        let settled = settled.filter(|_| !sabotaged(Sabotage::UnsettledInCheckpoint));
        let reserved = self.reserved.filter(|_| !sabotaged(Sabotage::ReservedPassed));
        let bound = [settled, reserved].into_iter().flatten().min();
        while self.waiting.front().is_some_and(|cut| bound.is_none_or(|bound| cut.epoch <= bound)) {
            self.usable = self.waiting.pop_front().unwrap_or_default();
        }
        &self.usable
    }

    /// Keeps the end of `epoch` for a checkpoint, unless checkpoints may have gone beyond it already, or another one is
    /// kept; says what stands in the way.
    pub(crate) fn reserve(&mut self, epoch: Epoch, settled: Option<Epoch>) -> Result<(), Epoch> {
        let usable = self.usable(settled).epoch;
        match self.reserved {
            Some(other) if other != epoch => Err(other),
            _ if usable > epoch => Err(usable),
            _ => {
                self.reserved = Some(epoch);
                Ok(())
            }
        }
    }

    /// Where to read what a checkpoint of exactly `epoch` needs: the logs as they were when that or a later epoch became
    /// durable. None while it is not.
    pub(crate) fn at(&self, epoch: Epoch) -> Option<DurableCut> {
        let mut cuts = std::iter::once(&self.usable).chain(&self.waiting);
        cuts.find(|cut| cut.epoch >= epoch).map(|cut| DurableCut { epoch, ..cut.clone() })
    }

    /// Whoever reserved `epoch` has its checkpoint.
    pub(crate) fn made(&mut self, epoch: Epoch) {
        self.reserved = self.reserved.filter(|reserved| *reserved > epoch);
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;
    use crate::ids::SegmentNumber;

    fn cut(epoch: u64) -> DurableCut {
        DurableCut { epoch: Epoch(epoch), ..DurableCut::default() }
    }

    #[test]
    fn the_newest_settled_cut_is_used_and_no_later_one() {
        let mut cuts = Cuts::starting_at(cut(3));
        let settled = Settled::starting_at(Epoch(3));
        for epoch in [5, 7, 8] {
            cuts.add(cut(epoch), Some(settled.epoch()));
        }
        let usable = |cuts: &mut Cuts, settled: &Settled| cuts.usable(Some(settled.epoch())).epoch.0;
        assert_eq!(usable(&mut cuts, &settled), 3);
        settled.raise(Epoch(6));
        assert_eq!(usable(&mut cuts, &settled), 5);
        settled.raise(Epoch(4));
        assert_eq!(usable(&mut cuts, &settled), 5, "it never goes back");
        settled.raise(Epoch(9));
        assert_eq!(usable(&mut cuts, &settled), 8);
        cuts.add(cut(12), None);
        assert_eq!(cuts.usable(None).epoch.0, 12);
    }

    #[test]
    fn no_cut_goes_beyond_a_reserved_epoch_until_it_is_made() {
        let mut cuts = Cuts::starting_at(cut(3));
        cuts.add(cut(5), None);
        assert_eq!(cuts.reserve(Epoch(4), None), Err(Epoch(5)), "a checkpoint may hold 5 already");
        assert_eq!(cuts.reserve(Epoch(7), None), Ok(()));
        assert_eq!(cuts.reserve(Epoch(8), None), Err(Epoch(7)), "one at a time");
        assert!(cuts.at(Epoch(7)).is_none(), "it is not durable yet");
        cuts.add(cut(6), None);
        cuts.add(DurableCut { ends: vec![(SegmentNumber(1), 900)], ..cut(9) }, None);
        assert_eq!(cuts.usable(None).epoch.0, 6);
        // It became durable together with later ones.
        let at = cuts.at(Epoch(7)).unwrap();
        assert_eq!((at.epoch.0, at.ends.as_slice()), (7, [(SegmentNumber(1), 900)].as_slice()));
        cuts.made(Epoch(6));
        assert_eq!(cuts.usable(None).epoch.0, 6, "that was an earlier one");
        cuts.made(Epoch(7));
        assert_eq!(cuts.usable(None).epoch.0, 9);
    }
}
