//! How keys, state and rows become bytes: fixed-width little-endian, lengths before what has one.

/// Something that is kept in a worker's state: a key, what belongs to it, or a row that waits for its sink.
///
/// Bytes are never reinterpreted: a change of what a type encodes to needs a new operator name, or a job that begins anew.
///
/// ```
/// use laminar_timely::Codec;
/// let mut bytes = Vec::new();
/// (7_u64, String::from("seven")).encode(&mut bytes);
/// assert_eq!(<(u64, String)>::decode(&mut bytes.as_slice()), Some((7, "seven".to_owned())));
/// assert_eq!(<(u64, String)>::decode(&mut &bytes[..9]), None);
/// ```
pub trait Codec: Sized {
    /// Appends the value.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes a value off the beginning; `None` when there is none.
    fn decode(bytes: &mut &[u8]) -> Option<Self>;

    /// The value that these bytes are, and nothing besides.
    fn decode_all(mut bytes: &[u8]) -> Option<Self> {
        let value = Self::decode(&mut bytes)?;
        bytes.is_empty().then_some(value)
    }
}

/// Takes so many bytes off the beginning.
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

macro_rules! codec_of_numbers {
    ($($number:ty),*) => {$(
        impl Codec for $number {
            #[inline]
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            #[inline]
            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(take(bytes, size_of::<Self>())?.try_into().ok()?))
            }
        }
    )*};
}

codec_of_numbers!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128, f32, f64);

impl Codec for () {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

impl Codec for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        match u8::decode(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Codec for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend_from_slice(self);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let len = usize::try_from(u64::decode(bytes)?).ok()?;
        Some(take(bytes, len)?.to_vec())
    }
}

impl Codec for String {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(Vec::decode(bytes)?).ok()
    }
}

impl<T: Codec> Codec for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        Some(if bool::decode(bytes)? { Some(T::decode(bytes)?) } else { None })
    }
}

macro_rules! codec_of_tuples {
    ($(($($name:ident $index:tt),*))*) => {$(
        impl<$($name: Codec),*> Codec for ($($name,)*) {
            #[inline]
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)*
            }

            #[inline]
            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                Some(($($name::decode(bytes)?,)*))
            }
        }
    )*};
}

codec_of_tuples!((A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) (A 0, B 1, C 2, D 3, E 4));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;

    fn comes_back<T: Codec + PartialEq + std::fmt::Debug>(value: T) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert_eq!(T::decode_all(&bytes).as_ref(), Some(&value));
        for len in 0..bytes.len() {
            assert_eq!(T::decode_all(&bytes[..len]), None, "{value:?} cut to {len}");
        }
        bytes.push(0);
        assert_eq!(T::decode_all(&bytes), None, "something behind {value:?}");
    }

    #[test]
    fn what_is_encoded_comes_back_and_nothing_shorter_or_longer_does() {
        comes_back((u64::MAX, -1_i32, true));
        comes_back((String::from("äö"), vec![1_u8, 2], 0.5_f64, Some(7_u16), None::<u8>));
        comes_back(i128::MIN);
    }

    #[test]
    fn senseless_bytes_are_no_value() {
        assert_eq!(bool::decode_all(&[2]), None);
        assert_eq!(String::decode_all(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), None);
        assert_eq!(Vec::<u8>::decode_all(&[0xff; 9]), None);
    }
}
