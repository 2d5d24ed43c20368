//! Keys and values as text: NDJSON and CSV, sorted by key, so that equal states give equal bytes.
//!
//! Numbers are written as they were computed, digit by digit, never through a float on the way.
//! In NDJSON, `last` of a JSON input is the very token of the input; in CSV it is its contents.
//!
//! What was not stored by a job may be any bytes. NDJSON has it as text, or as hexadecimal under a name
//! that says so; CSV and tables have it escaped, so that different bytes never look the same.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use serde::de::IgnoredAny;

use crate::agg::value::Outcome;
use crate::agg::{Kind, Plan};
use crate::args::ExportFormat;
use crate::belonging::job_of;
use crate::engine::{Report, StateView};
use crate::error::{CliError, Result};
use crate::input::Format;
use crate::output::whole_file;
use crate::visible;

/// What the values of a state mean.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// Aggregates of a job, which read input of this format.
    Job { plan: Plan, format: Format },
    /// Unknown: shown as text, or as hexadecimal where it is not text.
    Bytes,
    /// Shown as hexadecimal, always.
    Hex,
}

impl Meaning {
    /// The meaning of a state directory's values.
    pub fn of(state: &Path, raw: bool, report: &Report) -> Result<Self> {
        if raw {
            return Ok(Self::Hex);
        }
        match job_of(state, &report.source_offsets, report.keys)? {
            Some(job) => Ok(Self::Job { plan: job.plan()?, format: job.format }),
            None => Ok(Self::Bytes),
        }
    }

    /// Names of the columns after the key.
    pub fn columns(&self) -> Vec<String> {
        match self {
            Self::Job { plan, .. } => plan.specs(),
            Self::Bytes | Self::Hex => vec!["value".to_owned()],
        }
    }

    /// The values of one key, one per column.
    pub fn cells(&self, key: &[u8], value: &[u8]) -> Result<Vec<Cell>> {
        match self {
            Self::Job { plan, format } => {
                let outcomes = plan.decode(value).ok_or_else(|| {
                    let key = crate::input::sink::shown(key);
                    CliError::failure(format!(
                        "the stored value of key {key} is not one that this job writes"
                    ))
                    .remedy("Run `laminar verify`; --raw shows the stored bytes.")
                })?;
                Ok(plan
                    .aggregates
                    .iter()
                    .zip(outcomes)
                    .map(|(a, o)| Cell::from_outcome(a.kind, &o, *format))
                    .collect())
            }
            Self::Bytes => Ok(vec![Cell::from_bytes(value)]),
            Self::Hex => Ok(vec![Cell { is_hex: true, ..Cell::text(hex(value)) }]),
        }
    }

    /// The key for a person.
    pub fn key_shown(&self, key: &[u8]) -> String {
        if matches!(self, Self::Hex) { hex(key) } else { visible::text(key) }
    }

    /// One line of NDJSON, newline included.
    pub fn write_ndjson(&self, out: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<()> {
        // A key that is not text must not be mistaken for one that reads like its digits.
        match std::str::from_utf8(key) {
            Ok(text) if !matches!(self, Self::Hex) => {
                out.extend_from_slice(b"{\"key\":");
                write_json_string(out, text)?;
            }
            _ => {
                out.extend_from_slice(b"{\"key_hex\":");
                write_json_string(out, &hex(key))?;
            }
        }
        for (column, cell) in self.columns().iter().zip(self.cells(key, value)?) {
            out.push(b',');
            write_json_string(out, if cell.is_hex { "value_hex" } else { column })?;
            out.push(b':');
            out.extend_from_slice(cell.json.as_bytes());
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn write_csv(&self, out: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<()> {
        // A job's keys are text; what else is stored may be anything.
        match std::str::from_utf8(key) {
            Ok(text) if matches!(self, Self::Job { .. }) => write_csv_field(out, text),
            _ => write_csv_field(out, &self.key_shown(key)),
        }
        for cell in self.cells(key, value)? {
            out.push(b',');
            write_csv_field(out, &cell.plain);
        }
        out.push(b'\n');
        Ok(())
    }
}

/// One value, in both notations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// For CSV.
    plain: String,
    /// A JSON token.
    json: String,
    is_hex: bool,
    /// `plain` is escaped already.
    is_escaped: bool,
}

impl Cell {
    fn text(plain: String) -> Self {
        let json = serde_json::Value::from(plain.as_str()).to_string();
        Self { plain, json, is_hex: false, is_escaped: false }
    }

    fn number(text: String) -> Self {
        Self { plain: text.clone(), json: text, is_hex: false, is_escaped: false }
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let cell = match std::str::from_utf8(bytes) {
            Ok(text) => Self::text(text.to_owned()),
            Err(_) => Self { is_hex: true, ..Self::text(hex(bytes)) },
        };
        Self { plain: visible::text(bytes), is_escaped: true, ..cell }
    }

    /// For people.
    pub fn shown(&self) -> Cow<'_, str> {
        if self.is_escaped {
            Cow::Borrowed(&self.plain)
        } else {
            Cow::Owned(visible::text(self.plain.as_bytes()))
        }
    }

    fn from_outcome(kind: Kind, outcome: &Outcome<'_>, format: Format) -> Self {
        let text = match outcome {
            Outcome::Count(count) => return Self::number(count.to_string()),
            Outcome::Sum(sum) => return Self::number(sum.to_string()),
            Outcome::Text(text) => String::from_utf8_lossy(text).into_owned(),
        };
        if kind == Kind::Last && format == Format::Ndjson {
            let plain = serde_json::from_str::<String>(&text).unwrap_or_else(|_| text.clone());
            return Self { plain, json: text, is_hex: false, is_escaped: false };
        }
        // "+5" and ".5" are numbers in a CSV file, but not in JSON.
        let is_json = kind.is_numeric() && serde_json::from_str::<IgnoredAny>(&text).is_ok();
        if is_json { Self::number(text) } else { Self::text(text) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn write_json_string(out: &mut Vec<u8>, text: &str) -> Result<()> {
    serde_json::to_writer(out, text).map_err(CliError::internal)
}

fn write_csv_field(out: &mut Vec<u8>, text: &str) {
    let quoted = if text.contains(['"', ',', '\n', '\r']) {
        Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(text)
    };
    out.extend_from_slice(quoted.as_bytes());
}

/// All keys and values, sorted by key.
pub fn sorted<V: StateView>(view: &V) -> Vec<(&[u8], &[u8])> {
    let mut entries = Vec::new();
    view.for_each(&mut |key, value| entries.push((key, value)));
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

/// Who reads the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Gets the very bytes.
    Program,
    /// Sits at a terminal, which must not act on what is stored.
    Person,
}

/// Writes the whole state. A full buffer goes to `out`; so do errors of `out`, as `describe` tells them.
pub fn write_all<V: StateView>(
    view: &V,
    meaning: &Meaning,
    format: ExportFormat,
    out: &mut dyn Write,
    reader: Reader,
    describe: &dyn Fn(&std::io::Error) -> CliError,
) -> Result<u64> {
    const FLUSH_AT: usize = 256 << 10;
    let mut buffer = Vec::with_capacity(FLUSH_AT * 2);
    if format == ExportFormat::Csv {
        let names: Vec<String> = std::iter::once("key".to_owned()).chain(meaning.columns()).collect();
        for (index, name) in names.iter().enumerate() {
            if index > 0 {
                buffer.push(b',');
            }
            write_csv_field(&mut buffer, name);
        }
        buffer.push(b'\n');
        if reader == Reader::Person {
            visible::make_csv(&mut buffer, 0);
        }
    }
    let mut count = 0;
    for (key, value) in sorted(view) {
        let start = buffer.len();
        match format {
            ExportFormat::Ndjson => meaning.write_ndjson(&mut buffer, key, value)?,
            ExportFormat::Csv => meaning.write_csv(&mut buffer, key, value)?,
        }
        match (reader, format) {
            (Reader::Program, _) => {}
            (Reader::Person, ExportFormat::Ndjson) => visible::make_json(&mut buffer, start),
            (Reader::Person, ExportFormat::Csv) => visible::make_csv(&mut buffer, start),
        }
        count += 1;
        if buffer.len() >= FLUSH_AT {
            out.write_all(&buffer).map_err(|e| describe(&e))?;
            buffer.clear();
        }
    }
    out.write_all(&buffer).and_then(|()| out.flush()).map_err(|e| describe(&e))?;
    Ok(count)
}

/// Exports to a file that appears complete or not at all.
pub fn to_file<V: StateView>(view: &V, meaning: &Meaning, format: ExportFormat, path: &Path) -> Result<u64> {
    whole_file(path, |out| {
        write_all(view, meaning, format, out, Reader::Program, &|e| CliError::io("write", path, e))
    })
}

/// The format that a file name asks for.
pub fn format_of(path: &Path) -> ExportFormat {
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("csv") => ExportFormat::Csv,
        _ => ExportFormat::Ndjson,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CoreEngine, Engine, OpenOptions, fake};

    fn exported(entries: &[(&[u8], &[u8])], format: ExportFormat, reader: Reader) -> String {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            dir: dir.path().to_owned(),
            cores: 1,
            checkpoint_interval: None,
            recovery_objective: None,
            opening: crate::opening::Watched::No,
            #[cfg(feature = "object-store")]
            backups: None,
        };
        let mut opened = fake::FakeEngine::open(&options).unwrap();
        for (key, value) in entries {
            opened.cores[0].update(key, |_| Some(value)).unwrap();
        }
        opened.cores[0].seal_epoch().unwrap();
        let view = fake::FakeView::open(dir.path()).unwrap();
        let mut out = Vec::new();
        write_all(&view, &Meaning::Bytes, format, &mut out, reader, &CliError::stdout).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_nothing_to_act_on_and_a_file_the_very_text() {
        let entries: [(&[u8], &[u8]); 1] = [("\u{1b}[2J\u{9b}k".as_bytes(), b"\x07v")];
        for format in [ExportFormat::Ndjson, ExportFormat::Csv] {
            let text = exported(&entries, format, Reader::Person);
            assert!(!text.chars().any(|c| c != '\n' && visible::acts(c)), "{text:?}");
        }
        let text = exported(&entries, ExportFormat::Ndjson, Reader::Program);
        assert!(text.contains('\u{9b}'), "{text:?}");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_from_their_digits_in_csv() {
        let entries: [(&[u8], &[u8]); 3] = [(b"\\xff", b"\\x80"), (b"ff", b"80"), (b"\xff", b"\x80")];
        assert_eq!(
            exported(&entries, ExportFormat::Csv, Reader::Program),
            "key,value\n\\\\xff,\\\\x80\nff,80\n\\xff,\\x80\n"
        );
    }
}
