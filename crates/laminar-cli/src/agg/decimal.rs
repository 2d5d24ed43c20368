//! Numbers as they stand in the input, without rounding them on the way.
//!
//! A number with at most 18 decimal places that fits in 128 bits is a [`Decimal`]: an integer and
//! a scale. Sums and comparisons of those are exact, so `0.1 + 0.2` is `0.3` and a result cannot
//! depend on how the input was cut into batches. Anything else (`1e-40`, 25 decimal places) is an
//! `f64`. Sums keep the two apart: the exact part stays exact, the rest is added from left to
//! right in input order, which is the same in every run because a key belongs to one core.

use std::cmp::Ordering;
use std::fmt;

/// Most decimal places that are kept exactly.
pub const MAX_SCALE: u8 = 18;

/// `mantissa / 10^scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decimal {
    /// All digits, as one integer.
    pub mantissa: i128,
    /// Decimal places, at most [`MAX_SCALE`].
    pub scale: u8,
}

/// A number as read from the input. Floats are finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Exact(Decimal),
    Float(f64),
}

impl Decimal {
    /// The same value with more decimal places, if that fits.
    fn rescaled(self, scale: u8) -> Option<i128> {
        self.mantissa.checked_mul(10i128.checked_pow(u32::from(scale.checked_sub(self.scale)?))?)
    }

    /// The sum, with the larger number of decimal places of the two; `None` past 128 bits.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if self.scale == other.scale {
            return Some(Self { mantissa: self.mantissa.checked_add(other.mantissa)?, ..self });
        }
        let scale = self.scale.max(other.scale);
        let mantissa = self.rescaled(scale)?.checked_add(other.rescaled(scale)?)?;
        Some(Self { mantissa, scale })
    }

    /// Exact comparison of the values: `1.50` equals `1.5`.
    pub fn compare(self, other: Self) -> Ordering {
        let scale = self.scale.max(other.scale);
        match (self.rescaled(scale), other.rescaled(scale)) {
            (Some(a), Some(b)) => a.cmp(&b),
            // What does not fit once its decimal places are added is the one of larger magnitude.
            (None, _) => self.mantissa.cmp(&0),
            (_, None) => 0.cmp(&other.mantissa),
        }
    }

    /// The nearest `f64`.
    pub fn to_f64(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scale == 0 {
            return write!(f, "{}", self.mantissa);
        }
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let unit = 10u128.pow(u32::from(self.scale));
        let digits = self.mantissa.unsigned_abs();
        write!(f, "{sign}{}.{:0width$}", digits / unit, digits % unit, width = usize::from(self.scale))
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Exact(Decimal { mantissa: i128::from(value), scale: 0 })
    }
}

impl Number {
    /// Reads a number: digits with an optional sign, point and exponent, blanks around it ignored.
    /// `None` for everything else, and for what is too large even for an `f64`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let (negative, digits) = match text.first()? {
            b'-' => (true, text.get(1..)?),
            b'+' => (false, text.get(1..)?),
            _ => (false, text),
        };
        let scanned = Scanned::read(digits)?;
        if let Some(decimal) = scanned.exact(negative) {
            return Some(Self::Exact(decimal));
        }
        let float: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        float.is_finite().then_some(Self::Float(float))
    }

    /// The nearest `f64`.
    pub fn to_f64(self) -> f64 {
        match self {
            Self::Exact(decimal) => decimal.to_f64(),
            Self::Float(float) => float,
        }
    }

    /// Compares two numbers; exactly unless one of them is a float.
    pub fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a.compare(b),
            _ => self.to_f64().total_cmp(&other.to_f64()),
        }
    }
}

/// The digits of an unsigned number, before it is known whether it can be kept exactly.
struct Scanned {
    /// `None` once the digits no longer fit.
    mantissa: Option<i128>,
    decimals: i64,
    exponent: i64,
}

impl Scanned {
    fn read(text: &[u8]) -> Option<Self> {
        let mut at = 0;
        // The first 18 digits cannot overflow a u64; almost every number ends there.
        let mut small: u64 = 0;
        let mut big: Option<i128> = None;
        let mut seen = 0usize;
        let mut decimals = 0i64;
        let mut point = false;
        while let Some(&byte) = text.get(at) {
            match byte {
                b'0'..=b'9' => {
                    let digit = byte - b'0';
                    if seen < 18 {
                        small = small * 10 + u64::from(digit);
                    } else {
                        let so_far = if seen == 18 { Some(i128::from(small)) } else { big };
                        big = so_far.and_then(|m| m.checked_mul(10)?.checked_add(i128::from(digit)));
                    }
                    seen += 1;
                    decimals += i64::from(point);
                }
                b'.' if !point => point = true,
                _ => break,
            }
            at += 1;
        }
        if seen == 0 {
            return None;
        }
        let exponent = Self::exponent(text.get(at..)?)?;
        let mantissa = if seen <= 18 { Some(i128::from(small)) } else { big };
        Some(Self { mantissa, decimals, exponent })
    }

    /// The part from `e` on; 0 when there is none, `None` when it is something else.
    fn exponent(text: &[u8]) -> Option<i64> {
        let Some((&mark, rest)) = text.split_first() else { return Some(0) };
        if mark != b'e' && mark != b'E' {
            return None;
        }
        let (negative, digits) = match rest.first()? {
            b'-' => (true, rest.get(1..)?),
            b'+' => (false, rest.get(1..)?),
            _ => (false, rest),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let value = digits.iter().fold(0i64, |n, d| (n * 10 + i64::from(d - b'0')).min(1_000_000));
        Some(if negative { -value } else { value })
    }

    fn exact(&self, negative: bool) -> Option<Decimal> {
        let mut mantissa = self.mantissa?;
        let scale = self.decimals - self.exponent;
        if mantissa != 0 && scale < 0 {
            mantissa = mantissa.checked_mul(10i128.checked_pow(u32::try_from(-scale).ok()?)?)?;
        }
        let scale = u8::try_from(scale.max(0)).ok().filter(|s| *s <= MAX_SCALE)?;
        Some(Decimal { mantissa: if negative { -mantissa } else { mantissa }, scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(text: &str) -> String {
        match Number::parse(text.as_bytes()) {
            Some(Number::Exact(d)) => d.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("+5", "5"),
            (" 12.50 ", "12.50"),
            (".5", "0.5"),
            ("5.", "5"),
            ("-0.05", "-0.05"),
            ("1e3", "1000"),
            ("1.5e1", "15"),
            ("15e-1", "1.5"),
            ("0e99", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("0.000000000000000001", "0.000000000000000001"),
            ("1234567890123456789", "1234567890123456789"),
        ] {
            assert_eq!(exact(text), expected, "{text}");
        }
        for text in
            ["", " ", "-", ".", "abc", "1x", "1e", "1e+", "0x10", "NaN", "inf", "1 2", "1..2", "1e999", "--1"]
        {
            assert_eq!(Number::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Number::parse(b"1e-30"), Some(Number::Float(1e-30)));
        assert_eq!(Number::parse(b"1e300"), Some(Number::Float(1e300)));
    }

    #[test]
    fn compares_values_not_digits() {
        let n = |t: &str| Number::parse(t.as_bytes()).unwrap();
        assert_eq!(n("1.50").compare(n("1.5")), Ordering::Equal);
        assert_eq!(n("-2").compare(n("1")), Ordering::Less);
        let huge = "99999999999999999999999999999999999999";
        assert_eq!(n(huge).compare(n("0.000000000000000001")), Ordering::Greater);
        assert_eq!(n("0.000000000000000001").compare(n(huge)), Ordering::Less);
        assert_eq!(n(&format!("-{huge}")).compare(n("0.000000000000000001")), Ordering::Less);
        assert_eq!(n("1e300").compare(n("5")), Ordering::Greater);
    }

    #[test]
    fn a_sum_past_128_bits_is_noticed() {
        let max = Decimal { mantissa: i128::MAX, scale: 0 };
        assert_eq!(max.checked_add(Decimal { mantissa: 1, scale: 0 }), None);
        assert_eq!(max.checked_add(Decimal { mantissa: 1, scale: 1 }), None);
    }

    proptest! {
        #[test]
        fn text_and_back(mantissa in any::<i64>(), scale in 0u8..=18) {
            let d = Decimal { mantissa: i128::from(mantissa), scale };
            prop_assert_eq!(Number::parse(d.to_string().as_bytes()), Some(Number::Exact(d)));
        }

        #[test]
        fn order_of_adding_does_not_matter(mut v in proptest::collection::vec((any::<i32>().prop_map(i64::from), 0u8..=18), 0..50)) {
            let sum = |v: &[(i64, u8)]| v.iter().fold(Decimal::default(), |s, &(m, scale)| {
                s.checked_add(Decimal { mantissa: i128::from(m), scale }).unwrap()
            });
            let a = sum(&v);
            v.reverse();
            prop_assert_eq!(a, sum(&v));
        }

        #[test]
        fn agrees_with_f64_on_order(a in -1e15f64..1e15, b in -1e15f64..1e15) {
            let (ta, tb) = (format!("{a:.6}"), format!("{b:.6}"));
            let (na, nb) = (Number::parse(ta.as_bytes()).unwrap(), Number::parse(tb.as_bytes()).unwrap());
            let (fa, fb): (f64, f64) = (ta.parse().unwrap(), tb.parse().unwrap());
            if fa != fb { prop_assert_eq!(na.compare(nb), fa.partial_cmp(&fb).unwrap()); }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) { let _ = Number::parse(&bytes); }
    }
}
