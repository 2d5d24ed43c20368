//! Where epochs of a job on workers end: by `--epoch`, and before that where the other workers would wait too long, or an epoch
//! would have more bytes than may be on their way.

use std::time::{Duration, Instant};

use crate::agg::Plan;
use crate::input::RECORD_LEN_MAX;

/// Bytes that may be on their way to the workers and not durable yet, for all but the longest lists of aggregates.
const AHEAD_BYTES: u64 = 256 << 20;

/// Bytes that the input may be ahead of what is durable; whatever one batch is parsed to fits in it.
///
/// A batch has at most as many bytes as the longest record. All numbers in it are parsed to at most 15 times as many, when all are
/// like `1e38` and each is summed and compared; in JSON, where fields can be in one another and so be kept several times, to 8 times
/// as many, and every `last` adds those of the batch once more.
pub(super) fn ahead_bytes(plan: &Plan) -> u64 {
    AHEAD_BYTES.max(2 * (RECORD_LEN_MAX * plan.aggregates.len()) as u64)
}

/// Decides where epochs end. Times are given, not taken.
#[derive(Debug)]
pub(super) struct Epochs {
    /// What is asked for.
    epoch: Duration,
    /// The others may wait so long, a quarter of what ends them. None: they wait for ever.
    patience: Option<Duration>,
    /// An epoch that has as many bytes ends: another one of that kind may be on its way beside it.
    bytes_max: u64,
    ended: Instant,
    /// Of this epoch.
    bytes: u64,
    /// There is something in this epoch, be it only lines that were read.
    dirty: bool,
}

impl Epochs {
    /// The first begins at `now`.
    pub(super) fn new(epoch: Duration, stall: Option<Duration>, ahead_bytes: u64, now: Instant) -> Self {
        let patience = stall.map(|stall| stall / 4);
        Self { epoch, patience, bytes_max: ahead_bytes / 2, ended: now, bytes: 0, dirty: false }
    }

    /// Whether the epoch must end before so many bytes come: with them it would have too many.
    pub(super) fn ends_before(&self, bytes: u64) -> bool {
        self.bytes > 0 && self.bytes + bytes > self.bytes_max
    }

    /// Something came into the epoch.
    pub(super) fn takes(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.dirty = true;
    }

    /// Whether the epoch ends here. One without anything ends as well, when the others have waited long enough.
    pub(super) fn ends(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.ended);
        let waited = self.patience.is_some_and(|patience| since >= patience);
        waited || self.bytes >= self.bytes_max || (self.dirty && since >= self.epoch)
    }

    /// There is something that is not sealed.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The epoch has ended, and the next begins.
    pub(super) fn ended(&mut self, now: Instant) {
        *self = Self { ended: now, bytes: 0, dirty: false, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// All processes ended when an epoch was as long as they wait for something to become durable.
    #[test]
    fn a_long_epoch_ends_when_the_others_have_waited_for_a_quarter_of_what_they_do() {
        let now = Instant::now();
        let mut epochs = Epochs::new(60 * MINUTE, Some(MINUTE), 1000, now);
        epochs.takes(1);
        assert!(!epochs.ends(now + MINUTE / 5));
        assert!(epochs.ends(now + MINUTE / 4));
        epochs.ended(now + MINUTE / 4);
        assert!(!epochs.ends(now + MINUTE / 3) && epochs.ends(now + MINUTE / 2));
        // Who waits for ever has time.
        let mut epochs = Epochs::new(60 * MINUTE, None, 1000, now);
        epochs.takes(1);
        assert!(!epochs.ends(now + 59 * MINUTE) && epochs.ends(now + 60 * MINUTE));
    }

    /// Nothing was sealed where nothing came, and so nothing became durable.
    #[test]
    fn an_epoch_without_anything_ends_for_those_who_wait_and_for_nothing_else() {
        let now = Instant::now();
        let epochs = Epochs::new(Duration::ZERO, Some(MINUTE), 1000, now);
        assert!(!epochs.ends(now + MINUTE / 5) && epochs.ends(now + MINUTE / 4));
        assert!(!Epochs::new(Duration::ZERO, None, 1000, now).ends(now + 60 * MINUTE));
    }

    /// It was an error when an epoch had more bytes than may be on their way.
    #[test]
    fn an_epoch_has_no_more_than_half_of_the_bytes_unless_one_batch_has_them() {
        let now = Instant::now();
        let mut epochs = Epochs::new(MINUTE, None, 1000, now);
        // A batch may have as many as it likes.
        assert!(!epochs.ends_before(900));
        epochs.takes(499);
        assert!(!epochs.ends(now) && !epochs.ends_before(1) && epochs.ends_before(2));
        epochs.takes(1);
        assert!(epochs.ends(now));
        epochs.ended(now);
        assert!(!epochs.ends(now) && !epochs.is_dirty());
    }

    #[test]
    fn one_batch_fits_whatever_is_computed() {
        let limit = |specs: &[String]| ahead_bytes(&Plan::parse(specs).unwrap());
        assert_eq!(limit(&[]), AHEAD_BYTES);
        let many: Vec<_> = (0..100).map(|n| format!("last:a{n}")).collect();
        assert!(limit(&many) > 100 * RECORD_LEN_MAX as u64);
    }
}
