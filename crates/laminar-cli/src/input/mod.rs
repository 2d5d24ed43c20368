//! From files to records: formats, and what the parsers share.
//!
//! [`source`] reads files into batches cut at record ends; [`ndjson`], [`csv`] and [`words`] turn a
//! batch into routed records through a [`Sink`]; [`identity`] tells whether a file is still the
//! one that was read before. What a batch parses to must not depend on where batches were cut:
//! that is what makes a resumed job end with the same bytes, and what the property tests check.

pub mod csv;
pub mod identity;
mod json;
pub mod ndjson;
pub mod plan;
pub mod sink;
pub mod source;
mod swar;
pub mod words;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use sink::{BadRecord, Parsed, Part, Sink};

/// Longest record (line, or CSV record with its embedded newlines) that is accepted, in bytes.
pub const RECORD_LEN_MAX: usize = 16 << 20;
/// Longest field that an aggregate keeps, in bytes.
pub const FIELD_LEN_MAX: usize = 1 << 20;
/// Longest key, in bytes; the store's own limit.
pub const KEY_LEN_MAX: usize = 65_535;

/// How the bytes of the input are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    Ndjson,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Plain text; every word between white space is a record, and its own key.
    Words,
}

impl Format {
    /// The delimiter, for the two formats with a header.
    pub fn delimiter(self) -> Option<u8> {
        match self {
            Self::Csv => Some(b','),
            Self::Tsv => Some(b'\t'),
            Self::Ndjson | Self::Words => None,
        }
    }

    /// The format that the file name promises.
    pub fn from_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "ndjson" | "jsonl" | "json" | "ldjson" => Some(Self::Ndjson),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            _ => None,
        }
    }

    /// The format that the first line suggests. Without a key the only thing to count is words.
    pub fn from_first_line(line: &[u8], key: Option<&str>) -> Option<Self> {
        let line = line.strip_prefix(BOM).unwrap_or(line).trim_ascii();
        if line.is_empty() {
            return None;
        }
        if line.starts_with(b"{") {
            return Some(Self::Ndjson);
        }
        let Some(key) = key else { return Some(Self::Words) };
        let has_column = |delimiter: u8| {
            line.split(|b| *b == delimiter).any(|c| c.trim_ascii().trim_quotes() == key.as_bytes())
        };
        [Self::Tsv, Self::Csv].into_iter().find(|f| f.delimiter().is_some_and(has_column))
    }

    /// End of the last complete record in `bytes`, 0 if there is none. Whatever follows waits for
    /// more bytes. `bytes` starts at the start of a record.
    pub fn last_boundary(self, bytes: &[u8]) -> usize {
        match self {
            Self::Ndjson => memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1),
            Self::Words => bytes.iter().rposition(u8::is_ascii_whitespace).map_or(0, |at| at + 1),
            Self::Csv => csv::last_boundary(bytes, b','),
            Self::Tsv => csv::last_boundary(bytes, b'\t'),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Words => "words",
        })
    }
}

/// The UTF-8 byte order mark that some programs put before the first byte.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

trait TrimQuotes {
    fn trim_quotes(&self) -> &[u8];
}

impl TrimQuotes for [u8] {
    fn trim_quotes(&self) -> &[u8] {
        self.strip_prefix(b"\"").and_then(|s| s.strip_suffix(b"\"")).unwrap_or(self)
    }
}

/// A piece of one file, whole records only.
#[derive(Debug)]
pub struct Batch {
    /// Place of the file in the job's step list.
    pub step: u32,
    /// File offset of the first byte.
    pub offset: u64,
    /// Number of the first line, counted from 1.
    pub line: u64,
    /// Whole records; only the last one of a file may lack its newline.
    pub bytes: Vec<u8>,
    /// Columns of the file this comes from, for formats with a header.
    pub columns: Option<std::sync::Arc<csv::Columns>>,
}

/// Empties a vector of borrows so that its allocation can hold borrows of another lifetime.
pub fn recycle<'b, T, U: 'b>(mut used: Vec<T>) -> Vec<U> {
    used.clear();
    // Collecting from the vector's own iterator keeps the allocation; the closure is never called.
    used.into_iter().filter_map(|_| None).collect()
}

/// A parser of any format, for one thread.
#[derive(Debug)]
pub enum Parser {
    Ndjson(ndjson::NdjsonParser),
    Csv(csv::CsvParser),
    Words,
}

impl Parser {
    /// A parser for the format; `key` is the key field, which `words` does not have.
    pub fn new(format: Format, key: &str, fields: &[String]) -> Self {
        match format {
            Format::Ndjson => Self::Ndjson(ndjson::NdjsonParser::new(key, fields)),
            Format::Csv | Format::Tsv => Self::Csv(csv::CsvParser::default()),
            Format::Words => Self::Words,
        }
    }

    /// Parses a batch into the sink.
    pub fn parse(&mut self, batch: &Batch, sink: &mut Sink) {
        match self {
            Self::Ndjson(parser) => parser.parse(batch, sink),
            Self::Csv(parser) => parser.parse(batch, sink),
            Self::Words => words::parse(batch, sink),
        }
    }
}

#[cfg(test)]
mod tests;
