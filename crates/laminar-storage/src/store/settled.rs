//! What a store that is one part of a whole knows of the other parts: up to which epoch all of them are durable.
//!
//! A later epoch may be durable here and missing elsewhere, and then the next opening discards it. So nothing of it may
//! get where it cannot be taken out again: no checkpoint holds it, and no record testifies that it was acknowledged.

use std::collections::VecDeque;

use super::drain::DurableCut;
use crate::ids::Epoch;
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
}

impl Cuts {
    pub(crate) fn starting_at(cut: DurableCut) -> Self {
        Self { usable: cut, waiting: VecDeque::new() }
    }

    /// Adds a new durable epoch; `settled` is `None` where everything durable is for good.
    pub(crate) fn add(&mut self, cut: DurableCut, settled: Option<Epoch>) {
        self.waiting.push_back(cut);
        self.usable(settled);
    }

    /// The newest that a checkpoint may be made of.
    pub(crate) fn usable(&mut self, settled: Option<Epoch>) -> &DurableCut {
        while self.waiting.front().is_some_and(|cut| settled.is_none_or(|settled| cut.epoch <= settled)) {
            self.usable = self.waiting.pop_front().unwrap_or_default();
        }
        &self.usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(epoch: u64) -> DurableCut {
        DurableCut { epoch: Epoch(epoch), ends: Vec::new() }
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
}
