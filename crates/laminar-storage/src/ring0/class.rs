//! Sizes of slots: every 16 bytes up to 1 KiB, then eight per doubling, so that at most one part in
//! eight is lost to rounding, and a slot serves any record of its class.

/// The sizes step by this up to [`FINE_LIMIT`]; all slots are aligned to it.
pub(super) const UNIT: usize = 16;
const FINE_LIMIT: usize = 1024;
const FINE: usize = FINE_LIMIT / UNIT;
/// Classes per doubling, as a power of two.
const STEPS_LOG2: u32 = 3;
/// Number of classes; the last one holds the largest key with the largest value.
pub(super) const CLASSES: usize = FINE + 15 * (1 << STEPS_LOG2);

/// A size class, `0..CLASSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(super) struct Class(u8);

impl Class {
    /// The smallest class with slots of at least `bytes` bytes; `None` above the largest record.
    #[inline]
    pub(super) fn for_size(bytes: usize) -> Option<Self> {
        let number = if bytes <= FINE_LIMIT {
            bytes.div_ceil(UNIT).saturating_sub(1)
        } else {
            // With `last` in [2^e, 2^(e+1)), the three bits after the leading one pick the step.
            let last = bytes - 1;
            let exponent = last.ilog2();
            let step = (last >> (exponent - STEPS_LOG2)) & ((1 << STEPS_LOG2) - 1);
            FINE + (((exponent - FINE_LIMIT.ilog2()) as usize) << STEPS_LOG2) + step
        };
        if number >= CLASSES {
            return None;
        }
        u8::try_from(number).ok().map(Self)
    }

    /// Bytes per slot.
    #[inline]
    pub(super) fn size(self) -> usize {
        let number = usize::from(self.0);
        if number < FINE {
            (number + 1) * UNIT
        } else {
            let coarse = number - FINE;
            let doubling = coarse >> STEPS_LOG2;
            let step = coarse & ((1 << STEPS_LOG2) - 1);
            ((1 << STEPS_LOG2) + step + 1) << (doubling + (FINE_LIMIT.ilog2() - STEPS_LOG2) as usize)
        }
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The next smaller class; the smallest stays itself.
    pub(super) fn smaller(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The classes above this one, smallest first.
    pub(super) fn larger(self) -> impl Iterator<Item = Self> {
        (self.0 + 1..).take_while(|n| usize::from(*n) < CLASSES).map(Self)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
    use crate::ring0::record::HEADER_LEN;

    #[test]
    fn a_slot_fits_and_wastes_at_most_an_eighth() {
        let largest = HEADER_LEN + MAX_KEY_LEN + MAX_VALUE_LEN;
        let sizes = (1..70_000).chain((70_000..largest).step_by(997)).chain([largest]);
        for bytes in sizes {
            let size = Class::for_size(bytes).unwrap().size();
            assert!(size >= bytes && size.is_multiple_of(UNIT), "{bytes} in {size}");
            assert!(size - bytes < UNIT || (size - bytes) * 8 <= size, "{bytes} in {size}");
        }
        assert_eq!(Class::for_size(usize::MAX / 2), None);
    }

    #[test]
    fn a_size_is_its_own_class() {
        let first = Class::for_size(1).unwrap();
        for class in std::iter::once(first).chain(first.larger()) {
            assert_eq!(Class::for_size(class.size()), Some(class));
        }
        assert_eq!(first.larger().count(), CLASSES - 1);
    }
}
