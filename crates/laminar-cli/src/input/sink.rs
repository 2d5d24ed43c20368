//! Where parsers put records: one part per core, and the records that could not be read.

use std::borrow::Cow;
use std::sync::Arc;

use super::{FIELD_LEN_MAX, KEY_LEN_MAX};
use crate::agg::Plan;
use crate::agg::bytes::write_text;
use crate::agg::decimal::{Decimal, Number};
use crate::agg::value::FieldValue;
use crate::engine::Router;
use crate::pipeline::live::Reused;

/// Why a record cannot be used, in words. Only bad records allocate.
pub type Reason = Cow<'static, str>;

/// Routed records of one batch for one core, in input order.
#[derive(Debug, Default)]
pub struct Part {
    /// Their keys, apart from what they contribute, so that many can be looked up ahead.
    pub keys: Vec<u8>,
    /// What they contribute, see `agg::value`.
    pub values: Vec<u8>,
    /// How many.
    pub records: u64,
}

impl Part {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.keys.len() + self.values.len()
    }
}

impl Reused for Part {
    fn capacity(&self) -> usize {
        self.keys.capacity() + self.values.capacity()
    }
}

/// A record that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// File offset of its first byte.
    pub offset: u64,
    /// Number of its first line.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
    /// The record itself, kept only for the dead-letter file.
    pub text: Vec<u8>,
}

/// What a batch was parsed to.
#[derive(Debug, Default)]
pub struct Parsed {
    /// One part per core.
    pub parts: Vec<Part>,
    /// Records in all parts.
    pub records: u64,
    /// Records that could not be used; with `stop`, parsing ended at the first.
    pub bad: Vec<BadRecord>,
}

/// What a parser does with bad records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Parse no further than the first.
    Stop,
    /// Only count.
    Skip,
    /// Keep the text.
    Keep,
}

/// A key at which parsers panic, for the test of what happens then.
#[cfg(test)]
pub const PANICS: &str = "a parser panics at this key";

/// Collects what a parser finds in one batch.
pub struct Sink {
    plan: Arc<Plan>,
    router: Router,
    on_bad: OnBad,
    key_len_max: usize,
    numeric: Vec<bool>,
    parsed: Parsed,
}

impl Sink {
    /// A sink for one parser thread.
    pub fn new(plan: Arc<Plan>, router: Router, on_bad: OnBad) -> Self {
        let numeric = (0..plan.fields.len())
            .map(|slot| plan.aggregates.iter().any(|a| a.slot == slot && a.kind.is_numeric()))
            .collect();
        Self { plan, router, on_bad, key_len_max: KEY_LEN_MAX, numeric, parsed: Parsed::default() }
    }

    /// Takes keys of so many bytes at most, for a state that keeps no longer ones.
    pub fn keys_up_to(self, key_len_max: usize) -> Self {
        Self { key_len_max, ..self }
    }

    /// Starts a batch; `parts` are emptied and used again.
    pub fn start(&mut self, mut parts: Vec<Part>) {
        parts.resize_with(self.router.cores(), Part::default);
        for part in &mut parts {
            part.keys.clear();
            part.values.clear();
            part.records = 0;
        }
        self.parsed = Parsed { parts, records: 0, bad: Vec::new() };
    }

    /// Hands over what the batch was parsed to.
    pub fn finish(&mut self) -> Parsed {
        std::mem::take(&mut self.parsed)
    }

    /// Names of the plan's fields, for reasons.
    pub fn field_name(&self, slot: usize) -> &str {
        self.plan.fields.get(slot).map_or("", String::as_str)
    }

    /// Checks one field and gives it the number that aggregates need.
    pub fn field<'a>(&self, slot: usize, text: &'a [u8], raw: &'a [u8]) -> Result<FieldValue<'a>, Reason> {
        if raw.len() > FIELD_LEN_MAX {
            return Err(format!(
                "field `{}` has {} bytes; the limit is {FIELD_LEN_MAX}",
                self.field_name(slot),
                raw.len()
            )
            .into());
        }
        let number = if self.numeric.get(slot).copied().unwrap_or(false) {
            Number::parse(text).ok_or_else(|| self.not_a_number(slot, text))?
        } else {
            Number::Exact(Decimal::default())
        };
        Ok(FieldValue { text: text.trim_ascii(), raw, number })
    }

    fn not_a_number(&self, slot: usize, text: &[u8]) -> Reason {
        let field = self.field_name(slot);
        if text.trim_ascii().is_empty() {
            return format!("field `{field}` is empty, but an aggregate needs a number").into();
        }
        format!("field `{field}` is {}, which is not a number", shown(text)).into()
    }

    /// Takes one good record.
    pub fn record(&mut self, key: &[u8], values: &[FieldValue<'_>]) -> Result<(), Reason> {
        #[cfg(test)]
        assert_ne!(key, PANICS.as_bytes());
        let limit = self.key_len_max;
        if key.len() > limit {
            return Err(format!("the key has {} bytes; the limit is {limit}", key.len()).into());
        }
        let core = self.router.core_of(key);
        let Some(part) = self.parsed.parts.get_mut(core) else {
            return Err("the router names a core that does not exist".into());
        };
        write_text(&mut part.keys, key);
        self.plan.write_record(values, &mut part.values);
        part.records += 1;
        self.parsed.records += 1;
        Ok(())
    }

    /// Takes one bad record; false if parsing must end here.
    #[must_use]
    pub fn bad(&mut self, offset: u64, line: u64, reason: Reason, text: &[u8]) -> bool {
        let text = if self.on_bad == OnBad::Keep { text.to_vec() } else { Vec::new() };
        self.parsed.bad.push(BadRecord { offset, line, reason: reason.into_owned(), text });
        self.on_bad != OnBad::Stop
    }
}

/// The start of a value for a message: never long, never binary.
pub fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}
