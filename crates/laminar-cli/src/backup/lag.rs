//! How long ago the backups of a job on workers last went on, said while it runs.

use std::time::{Duration, Instant};

use laminar_storage::Epoch;

/// Backups that stand still for so long, and for twice as long as there should be one, are worth a line, and another one
/// each time as long again has passed.
const WORTH_SAYING: Duration = Duration::from_secs(10);

/// What is known of the backups.
#[derive(Debug)]
pub struct Lag {
    /// Up to where everything is backed up on all processes, in this run.
    epoch: Option<Epoch>,
    since: Instant,
    said: Instant,
    patience: Duration,
}

impl Lag {
    /// Nothing is backed up yet; there should be a backup `every` so often.
    pub fn new(now: Instant, every: Duration) -> Self {
        Self { epoch: None, since: now, said: now, patience: every.saturating_mul(2).max(WORTH_SAYING) }
    }

    /// What to say now, if anything: the backups are at this epoch, and `error` is why the last try failed, if it did.
    pub fn told(
        &mut self,
        now: Instant,
        epoch: Option<Epoch>,
        error: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        if epoch != self.epoch {
            *self = Self { epoch, since: now, said: now, ..*self };
            return None;
        }
        if now.saturating_duration_since(self.said) < self.patience {
            return None;
        }
        self.said = now;
        let standing = now.saturating_duration_since(self.since).as_secs();
        let behind = match self.epoch {
            Some(epoch) => format!("the backups stand at epoch {epoch} for {standing} s"),
            None => format!("no epoch of this run is backed up on all processes for {standing} s"),
        };
        Some(match error() {
            Some(error) => format!("{behind}: {error}"),
            None => format!("{behind}, without an error in this process"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_that_stand_still_are_told_every_ten_seconds_until_they_go_on() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lag = Lag::new(start, Duration::from_secs(1));
        assert_eq!(lag.told(at(9), None, || None), None);
        let told = lag.told(at(10), None, || Some("no network".to_owned())).unwrap();
        assert_eq!(told, "no epoch of this run is backed up on all processes for 10 s: no network");
        assert_eq!(lag.told(at(19), None, || None), None);
        assert_eq!(lag.told(at(21), Some(Epoch(7)), || None), None, "it went on");
        let rare = Lag::new(start, Duration::from_secs(60)).told(at(119), None, || None);
        assert_eq!(rare, None, "there is one a minute");
        assert_eq!(lag.told(at(30), Some(Epoch(7)), || None), None);
        let told = lag.told(at(41), Some(Epoch(7)), || None).unwrap();
        assert_eq!(told, "the backups stand at epoch 7 for 20 s, without an error in this process");
    }
}
