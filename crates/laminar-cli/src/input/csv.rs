//! CSV and TSV with a header.
//!
//! A field that begins with a quote runs to the closing quote: it may hold delimiters, newlines
//! and doubled quotes. A quote elsewhere is an ordinary character. Records end with LF or CRLF;
//! empty lines are ignored. One function, [`scan`], finds the end of a record, both for cutting
//! batches and for parsing them, so the two cannot disagree.

use std::borrow::Cow;
use std::sync::Arc;

use super::sink::{Reason, shown};
use super::{BOM, Batch, Sink, recycle};
use crate::agg::value::FieldValue;
use crate::error::{CliError, Result};

const QUOTE: u8 = b'"';

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

/// Finds the end of the record that starts at the front of `bytes`, and its fields. The flag says
/// whether a closing quote was followed by something that is neither delimiter nor newline.
pub fn scan(bytes: &[u8], delimiter: u8, fields: &mut Vec<FieldRange>) -> (End, bool) {
    fields.clear();
    let mut at = 0;
    let mut stray = false;
    loop {
        let (field, mut next) = if bytes.get(at) == Some(&QUOTE) {
            let Some((end, escaped)) = closing_quote(bytes, at + 1) else { return (End::InQuotes, stray) };
            (FieldRange { start: at + 1, end, escaped }, end + 1)
        } else {
            (FieldRange { start: at, end: at, escaped: false }, at)
        };
        let rest = bytes.get(next..).unwrap_or_default();
        let found = memchr::memchr2(delimiter, b'\n', rest);
        let tail = rest.get(..found.unwrap_or(rest.len())).unwrap_or_default();
        let at_delimiter = found.is_some_and(|f| rest[f] == delimiter);
        let tail = if at_delimiter { tail } else { tail.strip_suffix(b"\r").unwrap_or(tail) };
        if field.start == at {
            fields.push(FieldRange { end: at + tail.len(), ..field });
        } else {
            stray |= !tail.is_empty();
            fields.push(field);
        }
        let Some(found) = found else { return (End::Bytes, stray) };
        next += found + 1;
        if !at_delimiter {
            return (End::Newline(next), stray);
        }
        at = next;
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
    // Without a quote anywhere every newline ends a record.
    if memchr::memchr(QUOTE, bytes).is_none() {
        return memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
    }
    let mut fields = Vec::new();
    let mut at = 0;
    while let (End::Newline(len), _) = scan(&bytes[at..], delimiter, &mut fields) {
        at += len;
    }
    at
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
        let len = match scan(header, delimiter, &mut ranges).0 {
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
            let (end, stray) = scan(rest, columns.delimiter, &mut self.ranges);
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
            line += memchr::memchr_iter(b'\n', record).count() as u64;
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
