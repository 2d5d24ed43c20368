//! Eight bytes at a time: where in a word are the bytes that matter?
//!
//! The pieces that are looked for here are short (a field, a name, a small number): a call of a routine
//! that is made for long stretches costs more than the search.

const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const HIGH: u64 = !LOW;
const ONES: u64 = 0x0101_0101_0101_0101;

/// The next eight bytes as a word, the first of them lowest.
pub fn word(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// A word of eight times this byte.
pub const fn eight(byte: u8) -> u64 {
    // A product of 0x01 repeated and a byte has no carries.
    ONES * byte as u64
}

/// The high bit of every byte that equals the one in `wanted`, which is from [`eight`]; of no other.
pub fn equal(word: u64, wanted: u64) -> u64 {
    let difference = word ^ wanted;
    !(((difference & LOW) + LOW) | difference) & HIGH
}

/// The high bit of every byte below 0x20; of no other.
pub fn control(word: u64) -> u64 {
    !(((word & LOW) + eight(0x60)) | word) & HIGH
}

/// Place of the first byte that has its high bit.
pub fn first(found: u64) -> usize {
    (found.trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_bytes_that_are_wanted(bytes in any::<[u8; 8]>(), wanted in any::<u8>(), place in 0usize..8) {
            let mut bytes = bytes;
            bytes[place] = wanted;
            let word = word(&bytes).unwrap();
            let of = |is: &dyn Fn(u8) -> bool| -> u64 {
                (0..8).filter(|&at| is(bytes[at])).map(|at| 0x80u64 << (8 * at)).sum()
            };
            prop_assert_eq!(equal(word, eight(wanted)), of(&|byte| byte == wanted));
            prop_assert_eq!(control(word), of(&|byte| byte < 0x20));
            prop_assert_eq!(bytes[first(equal(word, eight(wanted)))], wanted);
        }
    }
}
