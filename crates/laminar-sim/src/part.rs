//! A share of all crash images, for runs that divide the work among machines or days.

use std::str::FromStr;

/// One of so many parts of all images; the hash of an image decides which it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 0.
    index: u64,
    count: u64,
}

impl Part {
    /// All images.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// Whether an image with this hash is in it.
    #[must_use]
    pub fn contains(self, image: u64) -> bool {
        // The lowest bits choose which images of a crash are made at all.
        (image >> 32) % self.count == self.index
    }
}

impl FromStr for Part {
    type Err = String;

    /// `1/3` is the first of three parts.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (number, count) = text.split_once('/')?;
            let (number, count): (u64, u64) = (number.parse().ok()?, count.parse().ok()?);
            (1..=count).contains(&number).then(|| Self { index: number - 1, count })
        };
        parse().ok_or_else(|| format!("{text} is no part; the first of three is 1/3"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_in_exactly_one_part() {
        let parts: Vec<Part> = (1..=3).map(|i| format!("{i}/3").parse().unwrap()).collect();
        for image in (0..1000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            assert_eq!(parts.iter().filter(|part| part.contains(image)).count(), 1, "{image}");
            assert!(Part::ALL.contains(image));
        }
        for bad in ["0/3", "4/3", "1", "1/0", "1/x", "-1/2", ""] {
            assert!(bad.parse::<Part>().is_err(), "{bad}");
        }
    }
}
