//! A limit of the bytes that are moved in a second.

use std::num::NonZeroU64;
use std::time::Duration;

/// Gives every transfer its time: the next one begins when the ones before have had theirs. So in any time `t` from
/// the first transfer on, at most `t` times the limit and one transfer are begun.
#[derive(Debug)]
pub(super) struct Throttle {
    limit: Option<NonZeroU64>,
    /// When the transfers begun so far have had their time.
    free_at: Duration,
}

impl Throttle {
    /// None: no limit.
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { limit: bytes_per_second, free_at: Duration::ZERO }
    }

    /// Takes the time for a transfer of `bytes`, asked for at `now`; returns how long it must wait.
    pub(super) fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(limit) = self.limit else { return Duration::ZERO };
        let start = self.free_at.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = start.saturating_add(takes);
        start.saturating_sub(now)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_and_one_transfer_begin_in_any_time() {
        let limit = 1_000;
        let mut throttle = Throttle::new(NonZeroU64::new(limit));
        let (mut now, mut begun) = (Duration::ZERO, Vec::new());
        for turn in 0..500_u64 {
            let bytes = turn * 7_919 % 400;
            // Some come as soon as they may, some after a pause that saves nothing up.
            now += throttle.take(now, bytes);
            begun.push((now, bytes));
            if turn % 50 == 0 {
                now += Duration::from_secs(3);
            }
        }
        for (first, (from, _)) in begun.iter().enumerate() {
            let mut sum = 0;
            for (at, bytes) in &begun[first..] {
                // In front of the transfer itself.
                let allowed = (*at - *from).as_secs_f64() * 1_000.0 + 400.0;
                assert!(f64::from(u32::try_from(sum).unwrap()) <= allowed + 1.0, "{sum} until {at:?}");
                sum += bytes;
            }
        }
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        assert_eq!(Throttle::new(None).take(Duration::ZERO, u64::MAX), Duration::ZERO);
    }
}
