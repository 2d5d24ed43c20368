//! How the figures of single operations grow, drawn and with the models that explain the slopes.

use super::Row;
use super::fit::{bytes, fit, model, time};
use crate::plot::{Axis, Line, lines};
use crate::table::{Cell, Table};
use crate::{Error, Run};

/// A figure by its name.
type Figure = (&'static str, fn(&Row) -> f64);

const MEANS: &[Figure] = &[
    ("put", |row| row.put),
    ("get", |row| row.get),
    ("get_batch", |row| row.get_batch),
    ("hashbrown, overwrite", |row| row.table_put),
    ("hashbrown, get", |row| row.table_get),
];

const UNTIL_DURABLE: Figure = ("put, until durable", |row| row.durable);
const RARE: Figure = ("put, p99.9", |row| row.p999);

/// Bytes of a key.
const MEMORY: &[Figure] = &[("memory used", |row| row.used), ("memory of hashbrown", |row| row.table_bytes)];

/// Rows that differ in one thing.
pub struct Growth<'a> {
    pub rows: Vec<&'a Row>,
    /// How the names of the plots begin.
    pub file: &'static str,
    /// What they differ in, as titles end.
    pub by: String,
    pub with: With,
}

/// What rows differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    Keys,
    KeyBytes,
    ValueBytes,
}

impl With {
    fn of(self, row: &Row) -> f64 {
        match self {
            Self::Keys => row.keys as f64,
            Self::KeyBytes => row.key as f64,
            Self::ValueBytes => row.value as f64,
        }
    }

    fn axis(self) -> Axis<'static> {
        match self {
            Self::Keys => Axis::Doublings("keys"),
            Self::KeyBytes => Axis::Linear("bytes of a key"),
            Self::ValueBytes => Axis::Linear("bytes of a value"),
        }
    }
}

impl Growth<'_> {
    /// Notes the models, and draws the figures.
    pub fn show(&self, run: &Run, table: &mut Table) -> Result<(), Error> {
        let means: Vec<_> = MEANS.iter().map(|figure| self.time(table, *figure)).collect();
        let durable = self.time(table, UNTIL_DURABLE);
        self.bandwidth(table, UNTIL_DURABLE);
        // Nothing explains what is rare by the size, so that it has no model.
        let (name, of) = RARE;
        let rare = Line::new(name, self.points(of));
        let memory: Vec<_> = MEMORY.iter().map(|figure| self.memory(table, *figure)).collect();
        self.draw(run, "", "Means", "ns an operation", &means)?;
        self.draw(run, "-durable", "A put until it is durable", "ns a put", &[durable])?;
        self.draw(run, "-rare", "The slowest of a thousand puts", "ns", &[rare])?;
        self.draw(run, "-memory", "Memory", "bytes / (key + value + 24 B)", &memory)
    }

    fn draw(&self, run: &Run, file: &str, what: &str, y: &str, drawn: &[Line]) -> Result<(), Error> {
        let Some(dir) = &run.beside_json else { return Ok(()) };
        let path = dir.join(format!("{}{file}.svg", self.file));
        lines(&path, &format!("{what} by {}", self.by), self.with.axis(), y, drawn)
    }

    fn points(&self, of: fn(&Row) -> f64) -> Vec<(f64, f64)> {
        self.rows.iter().map(|row| (self.with.of(row), of(row))).collect()
    }

    /// A line of times, with its model. A key more costs nothing by itself: caches and the translation of addresses are
    /// missed more with each doubling.
    fn time(&self, table: &mut Table, (name, of): Figure) -> Line {
        let points = self.points(of);
        let fewest = points.first().map_or(1.0, |(at, _)| *at);
        let (unit, sizes) = match self.with {
            With::Keys => {
                let unit = format!("doubling of {} keys", Cell::Count(fewest as u64).shown());
                (unit, points.iter().map(|(keys, figure)| ((keys / fewest).log2(), *figure)).collect())
            }
            With::KeyBytes => ("byte of the key".into(), points.clone()),
            With::ValueBytes => ("byte of the value".into(), points.clone()),
        };
        Line::new(model(table, name, &unit, time, &sizes), points)
    }

    /// The time that a byte of the value takes is also a bandwidth: of Ring 1 and the device, whichever is slower.
    fn bandwidth(&self, table: &mut Table, (name, of): Figure) {
        let fit = fit(&self.points(of)).filter(|fit| self.with == With::ValueBytes && fit.each > 0.0);
        if let Some(fit) = fit {
            table.note(format!(
                "{name}: {} a byte of the value are {:.0} MB/s",
                time(fit.each),
                1e3 / fit.each
            ));
        }
    }

    /// A line of memory, with its model: of all keys by their number, of one key by its bytes.
    fn memory(&self, table: &mut Table, (name, of): Figure) -> Line {
        let (unit, all) = match self.with {
            With::Keys => ("key", true),
            With::KeyBytes => ("byte of the key", false),
            With::ValueBytes => ("byte of the value", false),
        };
        let figure = |row: &&Row| of(row) * if all { row.keys as f64 } else { 1.0 };
        let sizes: Vec<_> = self.rows.iter().map(|row| (self.with.of(row), figure(row))).collect();
        let ratios = self.rows.iter().map(|row| (self.with.of(row), row.ratio(of(row))));
        Line::new(model(table, name, unit, bytes, &sizes), ratios)
    }
}
