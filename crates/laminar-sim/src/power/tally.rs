//! What was done and seen, counted.

use std::fmt;

/// Counts of one or several rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; NAMES.len()]);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Recordings made.
    Rounds,
    /// Of those, the ones that began with what a power cut had left.
    AfterCut,
    /// Processes that worked on the recorded file system.
    Lives,
    /// Of those, the ones that were killed.
    Killed,
    /// Writes recorded.
    Writes,
    /// Their bytes.
    Bytes,
    /// Flushes recorded.
    Flushes,
    /// Acknowledgements recorded.
    Acks,
    /// Stretches between two flushes at whose end the power was cut.
    Cuts,
    /// Images that were mounted, all different within a round.
    Mounts,
    /// Images that were the same as one before.
    Same,
    /// Mounted images on which an acknowledged epoch had to come back.
    Checked,
    /// Images on which the epoch that came back was newer than the newest acknowledged one.
    Newer,
    /// Images that the file system refused to mount.
    Refused,
    /// Images on which something was wrong.
    Findings,
}

const NAMES: [&str; 15] = [
    "recordings",
    "of them on disks that a power cut had left",
    "processes",
    "of them killed",
    "writes",
    "bytes",
    "flushes",
    "acknowledgements",
    "cuts",
    "mounts",
    "repeated images not mounted",
    "mounts on which an acknowledged epoch had to be",
    "with a newer epoch than the acknowledged one",
    "refused by the file system",
    "findings",
];

impl Tally {
    /// Adds to one count.
    pub fn add(&mut self, count: Count, more: u64) {
        if let Some(place) = self.0.get_mut(count as usize) {
            *place += more;
        }
    }

    /// One count.
    #[must_use]
    pub fn get(&self, count: Count) -> u64 {
        self.0.get(count as usize).copied().unwrap_or_default()
    }

    /// Adds all of another.
    pub fn add_all(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    /// As a line for [`Self::from_line`].
    #[must_use]
    pub fn to_line(&self) -> String {
        self.0.map(|count| count.to_string()).join(" ")
    }

    /// From such a line.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let mut tally = Self::default();
        let mut words = line.split(' ');
        for place in &mut tally.0 {
            *place = words.next()?.parse().ok()?;
        }
        words.next().is_none().then_some(tally)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> =
            self.0.iter().zip(NAMES).map(|(count, name)| format!("{count} {name}")).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;

    #[test]
    fn counts_add_up_and_survive_a_line() {
        let mut tally = Tally::default();
        tally.add(Count::Mounts, 5);
        tally.add(Count::Findings, 1);
        let mut sum = Tally::from_line(&tally.to_line()).unwrap();
        assert_eq!(sum, tally);
        sum.add_all(&tally);
        assert_eq!((sum.get(Count::Mounts), sum.get(Count::Findings), sum.get(Count::Rounds)), (10, 2, 0));
        assert!(sum.to_string().contains("10 mounts, "), "{sum}");
        assert!(sum.to_string().ends_with("2 findings"), "the last name belongs to the last count");
        assert!(
            Tally::from_line("1 2 3").is_none()
                && Tally::from_line(&format!("{} 1", sum.to_line())).is_none()
        );
    }
}
