//! CSV and TSV with a header.
//!
//! A field that begins with a quote runs to the closing quote: it may hold delimiters, newlines
//! and doubled quotes. A quote elsewhere is an ordinary character. Records end with LF or CRLF;
//! empty lines are ignored. [`scan`] finds the fields of a record and its end; [`last_boundary`], which
//! cuts batches, only the ends, in a fraction of the time. They agree on what opens and closes a quoted
//! field, which a property test checks.

use std::borrow::Cow;
use std::sync::Arc;

use super::sink::{Reason, shown};
use super::swar::{eight, equal, first, word};
use super::{BOM, Batch, Sink, recycle};
use crate::agg::value::FieldValue;
use crate::error::{CliError, Result};

const QUOTE: u8 = b'"';
const NEWLINES: u64 = eight(b'\n');

/// One field of a scanned record, as byte range in what was scanned, quotes excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldRange {
    start: usize,
    end: usize,
    /// Has doubled quotes to be made single.
    escaped: bool,
}

impl FieldRange {
    fn text<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = bytes.get(self.start..self.end).unwrap_or_default();
        if !self.escaped {
            return Cow::Borrowed(raw);
        }
        let mut text = Vec::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(at) = memchr::memchr(QUOTE, rest) {
            text.extend_from_slice(&rest[..=at]);
            rest = rest.get(at + 2..).unwrap_or_default();
        }
        text.extend_from_slice(rest);
        Cow::Owned(text)
    }
}

/// How a record ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its newline, which is included in the length.
    Newline(usize),
    /// With the bytes at hand.
    Bytes,
    /// Inside quotes, with the bytes at hand.
    InQuotes,
}

/// What [`scan`] finds besides the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Where the record ends.
    pub end: End,
    /// A closing quote was followed by something that is neither delimiter nor newline.
    pub stray: bool,
    /// There is a quoted field, which may have newlines.
    pub quoted: bool,
}

/// Finds the end of the record that starts at the front of `bytes`, and its fields.
pub fn scan(bytes: &[u8], delimiter: u8, fields: &mut Vec<FieldRange>) -> Scanned {
    fields.clear();
    let mut separators = Separators::new(delimiter);
    let mut at = 0;
    let (mut stray, mut quoted) = (false, false);
    loop {
        let mut field = None;
        let mut next = at;
        if bytes.get(at) == Some(&QUOTE) {
            quoted = true;
            let Some((end, escaped)) = closing_quote(bytes, at + 1) else {
                return Scanned { end: End::InQuotes, stray, quoted };
            };
            field = Some(FieldRange { start: at + 1, end, escaped });
            next = end + 1;
        }
        let found = separators.next(bytes, next);
        let tail_end = found.unwrap_or(bytes.len());
        let at_delimiter = found.is_some_and(|f| bytes.get(f) == Some(&delimiter));
        let is_crlf = !at_delimiter && tail_end > next && bytes.get(tail_end - 1) == Some(&b'\r');
        let tail_end = tail_end - usize::from(is_crlf);
        stray |= field.is_some() && tail_end > next;
        fields.push(field.unwrap_or(FieldRange { start: at, end: tail_end, escaped: false }));
        let Some(found) = found else { return Scanned { end: End::Bytes, stray, quoted } };
        if !at_delimiter {
            return Scanned { end: End::Newline(found + 1), stray, quoted };
        }
        at = found + 1;
    }
}

/// Places of delimiters and newlines, eight bytes at a time.
struct Separators {
    delimiter: u8,
    delimiters: u64,
    /// Place of the word that was looked at last, and what of it has not been given yet.
    base: usize,
    found: u64,
    /// Place of the next word.
    next: usize,
}

impl Separators {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, delimiters: eight(delimiter), base: 0, found: 0, next: 0 }
    }

    /// The first at `from` or after it; `from` never goes back.
    fn next(&mut self, bytes: &[u8], from: usize) -> Option<usize> {
        loop {
            while self.found != 0 {
                let place = self.base + first(self.found);
                self.found &= self.found - 1;
                // What is before it stands within quotes.
                if place >= from {
                    return Some(place);
                }
            }
            self.next = self.next.max(from);
            let Some(word) = bytes.get(self.next..).and_then(word) else { break };
            self.base = self.next;
            self.found = equal(word, self.delimiters) | equal(word, NEWLINES);
            self.next += 8;
        }
        let rest = bytes.get(self.next..)?;
        let place = rest.iter().position(|byte| *byte == self.delimiter || *byte == b'\n')?;
        Some(self.next + place)
    }
}

/// Position of the quote that closes the field whose contents start at `from`.
fn closing_quote(bytes: &[u8], from: usize) -> Option<(usize, bool)> {
    let mut at = from;
    let mut escaped = false;
    loop {
        let quote = at + memchr::memchr(QUOTE, bytes.get(at..)?)?;
        if bytes.get(quote + 1) != Some(&QUOTE) {
            return Some((quote, escaped));
        }
        escaped = true;
        at = quote + 2;
    }
}

/// End of the last complete record, 0 if there is none.
pub fn last_boundary(bytes: &[u8], delimiter: u8) -> usize {
    // Only quoted fields have to be gone through: everywhere else a newline ends a record. A quote opens
    // a field if it is the field's first character, as in `scan`.
    let mut boundary = 0;
    let mut at = 0;
    let mut from = 0;
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        let quote = memchr::memchr(QUOTE, rest).map_or(bytes.len(), |found| from + found);
        if quote < bytes.len() && quote > 0 && bytes[quote - 1] != delimiter && bytes[quote - 1] != b'\n' {
            from = quote + 1;
            continue;
        }
        if let Some(newline) = memchr::memrchr(b'\n', &bytes[at..quote]) {
            boundary = at + newline + 1;
        }
        if quote == bytes.len() {
            return boundary;
        }
        let Some((end, _)) = closing_quote(bytes, quote + 1) else { return boundary };
        at = end + 1;
        from = at;
    }
}

/// Which columns of one file are wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Columns {
    delimiter: u8,
    names: usize,
    key: usize,
    fields: Vec<usize>,
    /// Bytes and lines before the first record.
    pub header_len: u64,
    pub header_lines: u64,
}

impl Columns {
    /// Reads the header at the front of `bytes`, the start of a file. `None` if it is not complete;
    /// `at_end` says that no more bytes follow. `file` is named in errors.
    pub fn read(
        bytes: &[u8],
        at_end: bool,
        delimiter: u8,
        key: &str,
        fields: &[String],
        file: &str,
    ) -> Result<Option<Self>> {
        let skipped = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
        let header = &bytes[skipped..];
        let mut ranges = Vec::new();
        let len = match scan(header, delimiter, &mut ranges).end {
            End::Newline(len) => len,
            End::Bytes if at_end => header.len(),
            _ if !at_end => return Ok(None),
            _ => {
                return Err(CliError::failure(format!(
                    "{file}: the header has a quoted name that is never closed"
                ))
                .remedy("Check the first line, or give --format."));
            }
        };
        let names: Vec<String> =
            ranges.iter().map(|r| String::from_utf8_lossy(&r.text(header)).trim().to_owned()).collect();
        let find = |wanted: &str| {
            names.iter().position(|n| n == wanted).ok_or_else(|| {
                CliError::failure(format!("{file}: the header has no column `{wanted}`")).remedy(format!(
                    "Its columns are: {}. Name one of them in --key and --agg.",
                    names.join(", ")
                ))
            })
        };
        let lines = memchr::memchr_iter(b'\n', &header[..len]).count();
        Ok(Some(Self {
            delimiter,
            names: names.len(),
            key: find(key)?,
            fields: fields.iter().map(|f| find(f)).collect::<Result<_>>()?,
            header_len: (skipped + len) as u64,
            header_lines: lines as u64,
        }))
    }
}

/// Parser of one thread; keeps allocations between batches.
#[derive(Debug, Default)]
pub struct CsvParser {
    ranges: Vec<FieldRange>,
    texts: Vec<Cow<'static, [u8]>>,
    values: Vec<FieldValue<'static>>,
}

impl CsvParser {
    /// Parses a batch, which never contains the header.
    pub fn parse(&mut self, batch: &Batch, sink: &mut Sink) {
        let Some(columns) = batch.columns.as_ref().map(Arc::clone) else { return };
        let checked = std::str::from_utf8(&batch.bytes).is_ok();
        let mut at = 0;
        let mut line = batch.line;
        while let Some(rest) = batch.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Scanned { end, stray, quoted } = scan(rest, columns.delimiter, &mut self.ranges);
            let len = if let End::Newline(len) = end { len } else { rest.len() };
            let record = &rest[..len];
            let result = if end == End::InQuotes {
                Err("a quoted field is not closed before the end of the file".into())
            } else if stray {
                Err("a closing quote is followed by more text; quotes inside a quoted field are doubled"
                    .into())
            } else if !checked && std::str::from_utf8(record).is_err() {
                Err("the record is not valid UTF-8".into())
            } else {
                self.record(record, &columns, sink)
            };
            if let Err(reason) = result
                && !sink.bad(batch.offset + at as u64, line, reason, record.trim_ascii_end())
            {
                return;
            }
            line += if quoted { memchr::memchr_iter(b'\n', record).count() as u64 } else { 1 };
            at += len;
        }
    }

    fn record(&mut self, record: &[u8], columns: &Columns, sink: &mut Sink) -> Result<(), Reason> {
        let is_blank = matches!(&self.ranges[..], [only] if only.start == only.end && only.start == 0);
        if is_blank {
            return Ok(());
        }
        if self.ranges.len() != columns.names {
            let (found, expected) = (self.ranges.len(), columns.names);
            let record = shown(record.trim_ascii_end());
            return Err(format!("the record has {found} fields, the header {expected}: {record}").into());
        }
        let range = |index: usize| self.ranges.get(index).map_or(Cow::Borrowed(&[][..]), |r| r.text(record));
        let mut texts: Vec<Cow<'_, [u8]>> = recycle(std::mem::take(&mut self.texts));
        texts.extend(columns.fields.iter().map(|&index| range(index)));
        let mut values: Vec<FieldValue<'_>> = recycle(std::mem::take(&mut self.values));
        for (slot, text) in texts.iter().enumerate() {
            values.push(sink.field(slot, text, text)?);
        }
        let result = sink.record(&range(columns.key), &values);
        self.values = recycle(values);
        self.texts = recycle(texts);
        result
    }
}
