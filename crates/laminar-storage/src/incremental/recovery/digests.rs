//! The digest of a state while it is recovered, compared with those that its checkpoint and its log carry.
//!
//! The state's digest is the sum of its cores' *shares*: what a core had in the checkpoint, and what its records made of
//! that. Each barrier says what the share of its core must be at that place. Every core's last barrier is what counts, as
//! in opening a store: all of them together must be what was computed at the same places.
//!
//! Another number of cores, or a log that the low-level functions wrote, gives keys to other cores. What was stored before
//! is compared then, and after that only the sum of all shares says something, once every core has a barrier again.

use crate::error::Detail;
use crate::format::digest::StateDigest;
use crate::format::segment_header::WalMode;
use crate::ids::{CoreId, Epoch};
use crate::incremental::IncrementalCheckpointMetadata;
use crate::report::DigestCheck;

/// A state that does not have the digest that is stored with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// The core whose share it is, where that can be told.
    pub(crate) core: Option<CoreId>,
    /// It went wrong behind the end of this epoch, and not behind that of `at`.
    pub(crate) after: Epoch,
    pub(crate) at: Epoch,
}

impl Mismatch {
    /// What to say about a state that was `made` so; whoever knows the place and the remedy adds them.
    pub(crate) fn detail(self, made: &str) -> Detail {
        let detail = Detail::new(format!(
            "the {made} state does not have the digest that was stored with it; it went wrong after epoch {}",
            self.after
        ))
        .in_epoch(self.at);
        match self.core {
            Some(core) => detail.on_core(core),
            None => detail,
        }
    }
}

/// A digest that is stored somewhere, and what was computed at the same place.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    epoch: Epoch,
    stored: StateDigest,
    computed: StateDigest,
}

/// What one core adds to the digest of the state.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    computed: StateDigest,
    /// The last place with a stored digest; `None` where there is none that belongs to this layout.
    last: Option<Stored>,
    /// The last epoch at whose end both were the same.
    agreed: Epoch,
}

/// Follows a recovery, and compares.
#[derive(Debug)]
pub(super) struct Comparison {
    /// By core of the layout: as many cores, and a log that a `Store` wrote or not.
    shares: Vec<Share>,
    mode: WalMode,
    /// What everything before this layout adds up to.
    before: StateDigest,
    /// Whether each share is that of the keys which its core has.
    own_keys: bool,
    /// Whether any digest was stored in this layout.
    any_stored: bool,
    /// Up to here everything is known to be right.
    since: Epoch,
}

impl Comparison {
    /// Begins without a checkpoint.
    pub(super) fn of_nothing() -> Self {
        Self {
            shares: Vec::new(),
            mode: WalMode::Epochs,
            before: StateDigest::default(),
            own_keys: true,
            any_stored: false,
            since: Epoch::ZERO,
        }
    }

    /// Begins with what was loaded of each core of a checkpoint.
    pub(super) fn of_checkpoint(metadata: &IncrementalCheckpointMetadata, loaded: &[StateDigest]) -> Self {
        let epoch = Epoch(metadata.epoch);
        let share = |(core, computed): (usize, &StateDigest)| Share {
            computed: *computed,
            last: metadata.digests.get(core).map(|stored| Stored {
                epoch,
                stored: stored.into(),
                computed: *computed,
            }),
            agreed: epoch,
        };
        Self {
            shares: loaded.iter().enumerate().map(share).collect(),
            any_stored: !metadata.digests.is_empty(),
            since: epoch,
            ..Self::of_nothing()
        }
    }

    /// A record of a log of so many cores comes next.
    pub(super) fn enter(&mut self, cores: u16, mode: WalMode) -> Result<(), Mismatch> {
        if mode == self.mode && usize::from(cores) == self.shares.len() {
            return Ok(());
        }
        if self.agrees()? {
            self.since = self.newest();
        }
        self.before = self.total();
        // Of an empty state every core has its share, which is nothing.
        self.own_keys = self.before == StateDigest::default();
        let nothing = Stored { epoch: self.since, ..Stored::default() };
        let share = Share { last: self.own_keys.then_some(nothing), agreed: self.since, ..Share::default() };
        self.shares = vec![share; usize::from(cores)];
        (self.mode, self.any_stored) = (mode, false);
        Ok(())
    }

    /// A record of `core` changed the state's digest by so much.
    pub(super) fn change(&mut self, core: usize, difference: StateDigest) {
        let share = self.shares.get_mut(core).map_or(&mut self.before, |share| &mut share.computed);
        *share = share.plus(difference);
    }

    /// A barrier of `core` carries this digest.
    pub(super) fn barrier(&mut self, core: usize, epoch: Epoch, stored: Option<StateDigest>) {
        let Some(share) = self.shares.get_mut(core) else { return };
        let computed = share.computed;
        share.last = stored.map(|stored| Stored { epoch, stored, computed });
        if stored == Some(computed) {
            share.agreed = epoch;
        }
        self.any_stored |= stored.is_some();
    }

    /// Compares at the end. Verified is only what no record came behind. The state has so many `keys`, where it was put
    /// together: what was added up must have come to as many.
    pub(super) fn finish(&self, keys: Option<u64>) -> Result<DigestCheck, Mismatch> {
        if keys.is_some_and(|keys| keys != self.total().live_keys) {
            return Err(Mismatch { core: None, after: self.since, at: self.newest() });
        }
        let at_end = |share: &Share| share.last.is_some_and(|last| last.computed == share.computed);
        let verified = self.agrees()? && self.shares.iter().all(at_end);
        Ok(if verified { DigestCheck::Verified } else { DigestCheck::NotStored })
    }

    /// Whether what is stored is what was computed; no where something is not known.
    fn agrees(&self) -> Result<bool, Mismatch> {
        let last: Option<Vec<Stored>> = self.shares.iter().map(|share| share.last).collect();
        let Some(last) = last.filter(|_| self.any_stored) else { return Ok(false) };
        let computed = last.iter().map(|last| last.computed).fold(self.before, StateDigest::plus);
        let stored = last.iter().map(|last| last.stored).fold(StateDigest::default(), StateDigest::plus);
        if stored == computed { Ok(true) } else { Err(self.mismatch(&last)) }
    }

    fn mismatch(&self, last: &[Stored]) -> Mismatch {
        let mut pairs = (0..).map(CoreId).zip(self.shares.iter().zip(last));
        let wrong = match last {
            [_] => pairs.next(),
            _ => pairs.find(|(_, (_, last))| self.own_keys && last.stored != last.computed),
        };
        match wrong {
            Some((core, (share, last))) => Mismatch { core: Some(core), after: share.agreed, at: last.epoch },
            None => Mismatch { core: None, after: self.since, at: self.newest() },
        }
    }

    /// The last epoch with a stored digest.
    fn newest(&self) -> Epoch {
        let epochs = self.shares.iter().filter_map(|share| share.last).map(|last| last.epoch);
        epochs.max().unwrap_or(self.since)
    }

    fn total(&self) -> StateDigest {
        self.shares.iter().map(|share| share.computed).fold(self.before, StateDigest::plus)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
