//! Small reproducible randomness: the same seed gives the same events and the same kills.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A rank below `count`, with the frequency of rank `k` about `1 / k`: Zipf's law.
    pub fn zipf(&mut self, count: u64) -> u64 {
        let rank = (self.unit() * ((count + 1) as f64).ln()).exp();
        // Between 1 and count + 1 by construction, so nothing is lost but the fraction.
        #[expect(clippy::cast_possible_truncation)]
        let rank = rank as u64;
        rank.clamp(1, count) - 1
    }
}
