//! Names of the images that a power cut may leave: which pending items arrived, and how torn.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A set of pending items by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Picks(Vec<u64>);

impl Picks {
    pub(super) fn none(items: usize) -> Self {
        Self(vec![0; items.div_ceil(64)])
    }

    pub(super) fn has(&self, item: usize) -> bool {
        self.0.get(item / 64).is_some_and(|word| word >> (item % 64) & 1 == 1)
    }

    pub(super) fn set(&mut self, item: usize, on: bool) {
        if let Some(word) = self.0.get_mut(item / 64) {
            let bit = 1 << (item % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}

/// One data atom of which only one side of a byte position arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Torn {
    pub(super) item: usize,
    pub(super) cut: usize,
    /// The bytes before the cut are the new ones; otherwise those after it.
    pub(super) head: bool,
}

/// Names one image of a snapshot. `Display` and `FromStr` are inverse, so that a failure can be run
/// again: `pick:<hex>[,torn:<item>:<cut>:head|tail][,garbage]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ImageId {
    pub(super) picks: Picks,
    pub(super) torn: Option<Torn>,
    pub(super) garbage: bool,
}

impl ImageId {
    /// A number that the seed and this name decide.
    pub(super) fn draw(&self, seed: u64) -> u64 {
        let torn = self.torn.map_or(0, |torn| ((torn.cut as u64) << 1 | u64::from(torn.head)) + 2);
        let rest = [torn, u64::from(self.garbage)];
        let mix = |seed, word: &u64| xxh3_64_with_seed(&word.to_le_bytes(), seed);
        self.picks.0.iter().chain(&rest).fold(seed, mix)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pick:")?;
        for word in self.picks.0.iter().rev() {
            write!(f, "{word:016x}")?;
        }
        if let Some(Torn { item, cut, head }) = self.torn {
            let side = if head { "head" } else { "tail" };
            write!(f, ",torn:{item}:{cut}:{side}")?;
        }
        if self.garbage {
            f.write_str(",garbage")?;
        }
        Ok(())
    }
}

impl FromStr for ImageId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut id = Self::default();
        for part in text.split(',') {
            let bad = || format!("cannot read `{part}` in image `{text}`");
            if let Some(hex) = part.strip_prefix("pick:") {
                for word in hex.as_bytes().rchunks(16) {
                    let word = std::str::from_utf8(word).map_err(|_| bad())?;
                    let word = u64::from_str_radix(word, 16).map_err(|_| bad())?;
                    id.picks.0.push(word);
                }
            } else if let Some(torn) = part.strip_prefix("torn:") {
                let fields: Vec<&str> = torn.split(':').collect();
                let [item, cut, side @ ("head" | "tail")] = fields[..] else {
                    return Err(bad());
                };
                id.torn = Some(Torn {
                    item: item.parse().map_err(|_| bad())?,
                    cut: cut.parse().map_err(|_| bad())?,
                    head: side == "head",
                });
            } else if part == "garbage" {
                id.garbage = true;
            } else {
                return Err(bad());
            }
        }
        Ok(id)
    }
}
