//! Tables on the terminal, and the same figures as JSON.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::progress::progress;

/// One figure.
#[derive(Clone, Debug)]
pub enum Cell {
    Text(String),
    /// A count.
    Count(u64),
    /// Nanoseconds.
    Nanos(f64),
    /// Bytes.
    Bytes(u64),
    /// Any other number, and how many decimals are worth showing.
    Number(f64, usize),
    /// Nothing was measured.
    None,
}

impl Cell {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub fn time(time: std::time::Duration) -> Self {
        Self::Nanos(time.as_nanos() as f64)
    }

    /// As it is printed.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(n) => grouped(*n),
            Self::Nanos(n) => shown_nanos(*n),
            Self::Bytes(n) => shown_bytes(*n),
            Self::Number(n, decimals) => format!("{n:.decimals$}"),
            Self::None => "-".into(),
        }
    }

    fn figure(&self) -> Option<f64> {
        match self {
            Self::Count(n) | Self::Bytes(n) => Some(*n as f64),
            Self::Nanos(n) | Self::Number(n, _) => Some(*n),
            Self::Text(_) | Self::None => None,
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(n) | Self::Bytes(n) => json!(n),
            Self::Nanos(n) | Self::Number(n, _) => json!(n),
            Self::None => Value::Null,
        }
    }
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

pub fn shown_nanos(n: f64) -> String {
    match n {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.2} µs", n / 1e3),
        n if n < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

fn shown_bytes(n: u64) -> String {
    match n as f64 {
        b if b < 1e3 => format!("{n} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.2} GB", b / 1e9),
    }
}

/// Rows with the same columns, and what must be known to compare them.
#[derive(Debug)]
pub struct Table {
    id: &'static str,
    title: String,
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Table {
    pub fn new(id: &'static str, title: impl Into<String>, columns: &'static [&'static str]) -> Self {
        Self { id, title: title.into(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        progress!("  {}: {}", self.id, cells.iter().map(Cell::shown).collect::<Vec<_>>().join("  "));
        self.rows.push(cells);
    }

    /// Says what is not equal between rows, or otherwise not to be read off the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Name, and the figures of columns, of each row that has all of them.
    pub fn figures<const N: usize>(&self, columns: [&str; N]) -> Vec<(String, [f64; N])> {
        let places = columns.map(|wanted| self.columns.iter().position(|name| *name == wanted));
        let figures = |row: &Vec<Cell>| {
            let mut figures = [0.0; N];
            for (figure, place) in figures.iter_mut().zip(places) {
                *figure = row.get(place?)?.figure()?;
            }
            Some((row.first()?.shown(), figures))
        };
        self.rows.iter().filter_map(figures).collect()
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\n## {}", self.title)?;
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain(self.columns.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, (cell, width)) in cells.zip(&widths).enumerate() {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                // The first column is the name of the row.
                let (left, right) = if column == 0 { ("", pad.as_str()) } else { (pad.as_str(), "") };
                line.push_str(&format!("| {left}{cell}{right} "));
            }
            line + "|"
        };
        writeln!(out, "{}", line(&mut self.columns.iter().copied()))?;
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        writeln!(out, "{}", line(&mut rules.iter().map(String::as_str)))?;
        for row in &shown {
            writeln!(out, "{}", line(&mut row.iter().map(String::as_str)))?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "- {note}"))?;
        out.flush()
    }

    fn json(&self) -> Value {
        let row = |row: &Vec<Cell>| -> Value {
            let mut cells = Map::new();
            for (name, cell) in self.columns.iter().zip(row) {
                let unit = match cell {
                    Cell::Nanos(_) => " (ns)",
                    Cell::Bytes(_) => " (bytes)",
                    _ => "",
                };
                let name = format!("{name}{unit}");
                // Of columns with one name none is lost.
                let again = (2..).map(|nth| format!("{name}, {nth}"));
                let free = std::iter::once(name.clone()).chain(again).find(|name| !cells.contains_key(name));
                cells.extend(free.map(|name| (name, cell.json())));
            }
            Value::Object(cells)
        };
        json!({
            "id": self.id,
            "title": self.title,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "not_equal": self.notes,
        })
    }
}

/// Everything a run measured.
#[derive(Debug, Default)]
pub struct Report {
    tables: Vec<Table>,
    /// Comparisons that came out different.
    pub differences: u64,
    /// Why something could not be printed.
    not_printed: Option<io::Error>,
}

impl Report {
    /// Keeps the table, and prints it.
    pub fn add(&mut self, table: Table) {
        if self.not_printed.is_none() {
            self.not_printed = table.print(&mut io::stdout().lock()).err();
        }
        self.tables.push(table);
    }

    /// Whether everything so far was.
    pub fn printed(&mut self) -> io::Result<()> {
        self.not_printed.take().map_or(Ok(()), Err)
    }

    pub fn json(&self, about: &Value) -> Value {
        json!({
            "about": about,
            "differences": self.differences,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_rows_that_have_them() {
        let mut table = Table::new("id", "title", &["name", "cores", "puts/s"]);
        table.row(vec![Cell::text("all"), Cell::Count(2), Cell::Number(7.5, 1)]);
        table.row(vec![Cell::text("not all"), Cell::None, Cell::Number(7.5, 1)]);
        assert_eq!(table.figures(["puts/s", "cores"]), [("all".to_owned(), [7.5, 2.0])]);
        assert!(table.figures(["no such column"]).is_empty());
    }

    /// In figures that go to a file, of two columns with one name the first was lost.
    #[test]
    fn columns_with_one_name_are_all_in_the_figures() {
        let mut table = Table::new("id", "title", &["name", "p99", "longest", "p99"]);
        table.row(vec![Cell::text("all"), Cell::Nanos(1.0), Cell::Nanos(2.0), Cell::Nanos(3.0)]);
        let json = table.json();
        let row = json["rows"][0].as_object().unwrap();
        assert_eq!(row.len(), 4);
        assert_eq!((&row["p99 (ns)"], &row["p99 (ns), 2"]), (&json!(1.0), &json!(3.0)));
    }
}
