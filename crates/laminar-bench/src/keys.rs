//! Keys, values and the order they come in. Everything derives from numbers, so that any process can
//! compute what must be stored without having been told. `predecessor/` has this file, too.

/// Bytes of a key and of a value in every workload.
pub const KEY: usize = 16;
pub const VALUE: usize = 100;
/// Key plus value.
pub const PAYLOAD: usize = KEY + VALUE;

/// Mixes a number (the finaliser of splitmix64): a bijection, so different numbers stay different.
#[inline]
pub const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// The key with this number.
#[inline]
pub fn key(number: u64) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&mix(number).to_le_bytes());
    key[8..].copy_from_slice(&mix(number ^ 0x6C61_6D69_6E61_7221).to_le_bytes());
    key
}

/// Of so many keys one changes between two checkpoints.
pub const CHANGED_ONE_IN: u64 = 100;

/// The numbers of the keys that change.
pub fn changed(keys: u64) -> impl Iterator<Item = u64> {
    (0..keys).filter(|number| mix(number ^ 0x31).is_multiple_of(CHANGED_ONE_IN))
}

/// A value that depends on the key's number and the version in every byte.
pub fn value(number: u64, version: u32) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    let seed = mix(number.wrapping_add(u64::from(version) << 40));
    for (at, part) in value.chunks_mut(8).enumerate() {
        let bytes = mix(seed.wrapping_add(at as u64)).to_le_bytes();
        part.copy_from_slice(&bytes[..part.len()]);
    }
    value
}

/// A value whose first bytes tell the version; for loops in which making the value must cost nothing.
#[derive(Clone, Copy)]
pub struct Stamp([u8; VALUE]);

impl Stamp {
    pub fn new() -> Self {
        Self(value(0, 0))
    }

    #[inline]
    pub fn at(&mut self, version: u64) -> &[u8; VALUE] {
        self.0[..8].copy_from_slice(&version.to_le_bytes());
        &self.0
    }
}

/// Random numbers (xorshift64*).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform below `n` (with a bias nobody can see for the `n` used here).
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// How keys are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    Uniform,
    /// Zipf with exponent 0.99.
    Zipf,
}

impl Spread {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf 0.99",
        }
    }

    /// Draws `count` numbers below `n` ahead of time, so that drawing costs nothing in the loop.
    pub fn draw(self, n: u64, count: usize, seed: u64) -> Vec<u32> {
        let mut random = Random::new(seed);
        match self {
            Self::Uniform => (0..count).map(|_| random.below(n) as u32).collect(),
            Self::Zipf => {
                let zipf = Zipf::new(n, 0.99);
                // Mixing spreads the hot keys over the state.
                (0..count).map(|_| (mix(zipf.draw(&mut random)) % n) as u32).collect()
            }
        }
    }
}

/// Zipf's law by the method of Gray et al. (as YCSB does it).
struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(n: u64, theta: f64) -> Self {
        let zeta: f64 = (1..=n).map(|i| 1.0 / (i as f64).powf(theta)).sum();
        let two = 1.0 + 0.5_f64.powf(theta);
        let n = n as f64;
        let eta = (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - two / zeta);
        Self { n, theta, alpha: 1.0 / (1.0 - theta), zeta, eta }
    }

    fn draw(&self, random: &mut Random) -> u64 {
        let u = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let uz = u * self.zeta;
        if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5_f64.powf(self.theta) {
            1
        } else {
            (self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_by_key_and_version() {
        assert_ne!(value(1, 0), value(1, 1));
        assert_ne!(value(1, 0), value(2, 0));
        assert_ne!(key(1), key(2));
        assert_eq!(value(7, 3), value(7, 3));
    }

    #[test]
    fn zipf_favours_few_keys_and_stays_in_range() {
        let drawn = Spread::Zipf.draw(1000, 100_000, 1);
        let mut counts = vec![0_u32; 1000];
        for n in drawn {
            counts[n as usize] += 1;
        }
        let hottest = counts.iter().max().copied().unwrap_or(0);
        assert!((8_000..20_000).contains(&hottest), "{hottest}");
    }
}
