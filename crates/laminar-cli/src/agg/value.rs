//! The bytes kept per key, and the step from one record to the next state.
//!
//! A value is the aggregates of the job's plan one after the other, nothing else; the plan stands
//! in `job.json`, with [`VALUE_FORMAT`].
//!
//! | aggregate | bytes |
//! |---|---|
//! | `count` | varint |
//! | `sum` | flags and scale (1 byte: bit 7 = a float part follows, low bits = decimal places), digits of the exact part (zigzag varint), float part (8 bytes, IEEE 754 LE) if there is one |
//! | `min`, `max`, `last` | length (varint), text as in the input |
//!
//! A routed record is what one input record contributes, parsed and checked by the parser thread:
//! the key (length, bytes), and apart from it per aggregate: nothing for `count`, the number for `sum`,
//! number and text for `min` and `max`, text for `last`.

use std::cmp::Ordering;

use super::bytes::{Cursor, write_number, write_signed, write_text, write_varint};
use super::decimal::{Decimal, MAX_SCALE, Number};
use super::{Kind, Plan};

/// Version of the bytes above; in `job.json`.
pub const VALUE_FORMAT: u32 = 1;

const FLOAT_PART: u8 = 0x80;

/// Why a record could not be added to a key's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// The stored value is not what this plan writes.
    StoredValue,
    /// The routed record is not what the parser writes.
    Record,
    /// The sum of this aggregate (by its place in the plan) left the range of numbers.
    Overflow(usize),
}

/// One aggregate's result for one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<'a> {
    Count(u64),
    Sum(Sum),
    /// Text as in the input.
    Text(&'a [u8]),
}

/// A sum: an exact part, and the left-to-right sum of what could not be kept exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    exact: Decimal,
    float: Option<f64>,
}

impl Sum {
    fn add(&mut self, number: Number) -> Option<()> {
        match number {
            Number::Exact(decimal) => self.exact = self.exact.checked_add(decimal)?,
            Number::Float(float) => {
                let sum = self.float.unwrap_or(0.0) + float;
                self.float = Some(sum).filter(|s| s.is_finite());
                self.float?;
            }
        }
        Some(())
    }

    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let flags = cursor.byte()?;
        let scale = flags & !FLOAT_PART;
        if scale > MAX_SCALE {
            return None;
        }
        let exact = Decimal { mantissa: cursor.signed()?, scale };
        let float = if flags & FLOAT_PART == 0 { None } else { Some(cursor.float()?) };
        Some(Self { exact, float })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let flag = if self.float.is_some() { FLOAT_PART } else { 0 };
        out.push(self.exact.scale | flag);
        write_signed(out, self.exact.mantissa);
        if let Some(float) = self.float {
            out.extend_from_slice(&float.to_bits().to_le_bytes());
        }
    }

    /// The number to order by; exact unless there is a float part.
    pub fn number(&self) -> Number {
        match self.float {
            None => Number::Exact(self.exact),
            Some(float) => Number::Float(self.exact.to_f64() + float),
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number() {
            Number::Exact(decimal) => decimal.fmt(f),
            Number::Float(float) => write!(f, "{float:?}"),
        }
    }
}

impl Plan {
    /// Writes what a record contributes. `values` has the text
    /// and, where a numeric aggregate reads the field, the number of each of the plan's fields.
    pub fn write_record(&self, values: &[FieldValue<'_>], out: &mut Vec<u8>) {
        for aggregate in &self.aggregates {
            let Some(value) = values.get(aggregate.slot) else { continue };
            match aggregate.kind {
                Kind::Count => {}
                Kind::Sum => write_number(out, value.number),
                Kind::Min | Kind::Max => {
                    write_number(out, value.number);
                    write_text(out, value.text);
                }
                Kind::Last => write_text(out, value.raw),
            }
        }
    }

    /// Adds what one record contributes to the stored value, if there is one,
    /// and leaves the new value in `out`.
    pub fn merge(
        &self,
        old: Option<&[u8]>,
        record: &mut Cursor<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), MergeError> {
        out.clear();
        let mut old = old.map(Cursor);
        for (index, aggregate) in self.aggregates.iter().enumerate() {
            let stored = old.as_mut();
            match aggregate.kind {
                Kind::Count => merge_count(stored, out)?,
                Kind::Sum => {
                    let number = record.number().ok_or(MergeError::Record)?;
                    merge_sum(stored, number, out)?.ok_or(MergeError::Overflow(index))?;
                }
                Kind::Min => merge_extreme(stored, record, Ordering::Less, out)?,
                Kind::Max => merge_extreme(stored, record, Ordering::Greater, out)?,
                Kind::Last => {
                    if let Some(cursor) = stored {
                        cursor.text().ok_or(MergeError::StoredValue)?;
                    }
                    write_text(out, record.text().ok_or(MergeError::Record)?);
                }
            }
        }
        if old.is_some_and(|cursor| !cursor.0.is_empty()) { Err(MergeError::StoredValue) } else { Ok(()) }
    }

    /// Decodes a stored value; `None` if it is not one of this plan.
    pub fn decode<'a>(&self, value: &'a [u8]) -> Option<Vec<Outcome<'a>>> {
        let mut cursor = Cursor(value);
        let mut outcomes = Vec::with_capacity(self.aggregates.len());
        for aggregate in &self.aggregates {
            outcomes.push(match aggregate.kind {
                Kind::Count => Outcome::Count(u64::try_from(cursor.varint()?).ok()?),
                Kind::Sum => Outcome::Sum(Sum::read(&mut cursor)?),
                Kind::Min | Kind::Max | Kind::Last => Outcome::Text(cursor.text()?),
            });
        }
        cursor.0.is_empty().then_some(outcomes)
    }
}

/// One field of one input record.
#[derive(Clone, Copy, Debug)]
pub struct FieldValue<'a> {
    /// Contents: without quotes and escapes.
    pub text: &'a [u8],
    /// As written: a JSON token, or the contents of a CSV field.
    pub raw: &'a [u8],
    /// Zero unless a numeric aggregate reads the field.
    pub number: Number,
}

fn merge_count(stored: Option<&mut Cursor<'_>>, out: &mut Vec<u8>) -> Result<(), MergeError> {
    let count = match stored {
        None => 0,
        Some(cursor) => cursor.varint().ok_or(MergeError::StoredValue)?,
    };
    write_varint(out, count.saturating_add(1));
    Ok(())
}

fn merge_sum(
    stored: Option<&mut Cursor<'_>>,
    number: Number,
    out: &mut Vec<u8>,
) -> Result<Option<()>, MergeError> {
    let mut sum = match stored {
        None => Sum::default(),
        Some(cursor) => Sum::read(cursor).ok_or(MergeError::StoredValue)?,
    };
    let added = sum.add(number);
    sum.write(out);
    Ok(added)
}

/// Keeps the text of the number that is `wanted` (less or greater) of the two; the earlier of equals.
fn merge_extreme(
    stored: Option<&mut Cursor<'_>>,
    record: &mut Cursor<'_>,
    wanted: Ordering,
    out: &mut Vec<u8>,
) -> Result<(), MergeError> {
    let number = record.number().ok_or(MergeError::Record)?;
    let text = record.text().ok_or(MergeError::Record)?;
    let Some(cursor) = stored else {
        write_text(out, text);
        return Ok(());
    };
    let old = cursor.text().ok_or(MergeError::StoredValue)?;
    let replace = old != text && number.compare(Number::parse(old).ok_or(MergeError::StoredValue)?) == wanted;
    write_text(out, if replace { text } else { old });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(specs: &[&str]) -> Plan {
        Plan::parse(&specs.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn fold(plan: &Plan, values: &[&str]) -> Result<Vec<u8>, MergeError> {
        let mut state: Option<Vec<u8>> = None;
        let mut out = Vec::new();
        for value in values {
            let number = Number::parse(value.as_bytes()).unwrap();
            let mut record = Vec::new();
            plan.write_record(
                &[FieldValue { text: value.as_bytes(), raw: value.as_bytes(), number }],
                &mut record,
            );
            let mut cursor = Cursor(&record);
            plan.merge(state.as_deref(), &mut cursor, &mut out)?;
            assert!(cursor.0.is_empty());
            state = Some(out.clone());
        }
        Ok(state.unwrap_or_default())
    }

    fn shown(plan: &Plan, value: &[u8]) -> Vec<String> {
        plan.decode(value)
            .unwrap()
            .iter()
            .map(|o| match o {
                Outcome::Count(n) => n.to_string(),
                Outcome::Sum(s) => s.to_string(),
                Outcome::Text(t) => String::from_utf8_lossy(t).into_owned(),
            })
            .collect()
    }

    #[test]
    fn all_aggregates_of_a_key() {
        let plan = plan(&["count", "sum:x", "min:x", "max:x", "last:x"]);
        let value = fold(&plan, &["0.1", "10", "0.2", "10.0", "-3.50", "7"]).unwrap();
        assert_eq!(shown(&plan, &value), ["6", "23.80", "-3.50", "10", "7"]);
    }

    #[test]
    fn a_float_part_is_kept_apart_from_the_exact_part() {
        let plan = plan(&["sum:x"]);
        assert_eq!(shown(&plan, &fold(&plan, &["1e-30", "0.1", "0.2"]).unwrap()), ["0.3"]);
        assert_eq!(shown(&plan, &fold(&plan, &["1e300"]).unwrap()), ["1e300"]);
    }

    #[test]
    fn overflow_names_the_aggregate_and_damage_is_seen() {
        let plan = plan(&["count", "sum:x"]);
        let max = i128::MAX.to_string();
        assert_eq!(fold(&plan, &[&max, "1"]), Err(MergeError::Overflow(1)));
        assert_eq!(fold(&plan, &["1e308", "1e308"]), Err(MergeError::Overflow(1)));
        let value = fold(&plan, &["5", "6"]).unwrap();
        for cut in 0..value.len() {
            assert_eq!(plan.decode(&value[..cut]), None);
            assert!(plan.merge(Some(&value[..cut]), &mut Cursor(&[0, 2]), &mut Vec::new()).is_err());
        }
        let longer = [&value[..], b"x"].concat();
        assert_eq!(plan.decode(&longer), None);
        assert_eq!(
            plan.merge(Some(&longer), &mut Cursor(&[0, 2]), &mut Vec::new()),
            Err(MergeError::StoredValue)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let plan = plan(&["count", "sum:x", "min:x", "last:y"]);
            let _ = plan.decode(&bytes);
            let _ = plan.merge(Some(&bytes), &mut Cursor(&bytes), &mut Vec::new());
        }
    }
}
