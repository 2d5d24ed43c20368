//! Reading and writing of the small fields that states and routed records are made of.
//!
//! Integers are LEB128 varints, signed ones zigzag first, always in their shortest form: equal
//! states are equal bytes.

use super::decimal::{Decimal, MAX_SCALE, Number};

/// Appends an unsigned varint.
pub fn write_varint(out: &mut Vec<u8>, value: u128) {
    // Almost every number is small, and 128 bits are shifted in many steps.
    let Ok(mut value) = u64::try_from(value) else { return write_wide_varint(out, value) };
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn write_wide_varint(out: &mut Vec<u8>, mut value: u128) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Appends a signed varint.
pub fn write_signed(out: &mut Vec<u8>, value: i128) {
    write_varint(out, (value.cast_unsigned() << 1) ^ (value >> 127).cast_unsigned());
}

/// Appends a length and the bytes.
pub fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    write_varint(out, text.len() as u128);
    out.extend_from_slice(text);
}

/// Marks a number as `f64`; an exact one has its scale here.
const FLOAT: u8 = 0xff;

/// Appends a number: its scale and digits, or a mark and an `f64`.
pub fn write_number(out: &mut Vec<u8>, number: Number) {
    match number {
        Number::Exact(decimal) => {
            out.push(decimal.scale);
            write_signed(out, decimal.mantissa);
        }
        Number::Float(float) => {
            out.push(FLOAT);
            out.extend_from_slice(&float.to_bits().to_le_bytes());
        }
    }
}

/// Reads fields from the front of a slice. `None` means that the bytes are not what was written.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// An unsigned varint in its shortest form.
    pub fn varint(&mut self) -> Option<u128> {
        // Nine bytes hold 63 bits.
        let mut value = 0u64;
        for (nth, &byte) in self.0.iter().take(9).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * nth);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(nth + 1..)?;
                return (byte != 0 || nth == 0).then_some(u128::from(value));
            }
        }
        self.wide_varint()
    }

    fn wide_varint(&mut self) -> Option<u128> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let low = u128::from(byte & 0x7f);
            if shift == 126 && low > 3 {
                return None;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }

    /// A signed varint.
    pub fn signed(&mut self) -> Option<i128> {
        let raw = self.varint()?;
        Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// Bytes with their length before them.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        self.take(len)
    }

    /// Eight bytes of a finite float.
    pub fn float(&mut self) -> Option<f64> {
        let float = f64::from_bits(u64::from_le_bytes(self.take(8)?.try_into().ok()?));
        float.is_finite().then_some(float)
    }

    /// A number.
    pub fn number(&mut self) -> Option<Number> {
        match self.byte()? {
            FLOAT => Some(Number::Float(self.float()?)),
            scale if scale <= MAX_SCALE => Some(Number::Exact(Decimal { mantissa: self.signed()?, scale })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn everything_written_is_read(n in any::<u128>(), s in any::<i128>(), text in proptest::collection::vec(any::<u8>(), 0..300), scale in 0u8..=18, f in -1e300f64..1e300) {
            let mut out = Vec::new();
            write_varint(&mut out, n);
            write_signed(&mut out, s);
            write_text(&mut out, &text);
            let numbers = [Number::Exact(Decimal { mantissa: s, scale }), Number::Float(f)];
            for number in numbers { write_number(&mut out, number); }
            let mut cursor = Cursor(&out);
            prop_assert_eq!(cursor.varint(), Some(n));
            prop_assert_eq!(cursor.signed(), Some(s));
            prop_assert_eq!(cursor.text(), Some(&text[..]));
            for number in numbers { prop_assert_eq!(cursor.number(), Some(number)); }
            prop_assert!(cursor.0.is_empty());
        }

        #[test]
        fn a_varint_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut cursor = Cursor(&bytes);
            if let Some(n) = cursor.varint() {
                let mut again = Vec::new();
                write_varint(&mut again, n);
                prop_assert_eq!(&bytes[..bytes.len() - cursor.0.len()], &again[..]);
            }
        }
    }
}
