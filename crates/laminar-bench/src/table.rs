//! Tables on the terminal, and the same figures as JSON.

use serde_json::{Map, Value, json};

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

fn shown_nanos(n: f64) -> String {
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
        eprintln!("  {}: {}", self.id, cells.iter().map(Cell::shown).collect::<Vec<_>>().join("  "));
        self.rows.push(cells);
    }

    /// Says what is not equal between rows, or otherwise not to be read off the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn print(&self) {
        println!("\n## {}", self.title);
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain(self.columns.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut out = String::new();
            for (column, (cell, width)) in cells.zip(&widths).enumerate() {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                // The first column is the name of the row.
                let (left, right) = if column == 0 { ("", pad.as_str()) } else { (pad.as_str(), "") };
                out.push_str(&format!("| {left}{cell}{right} "));
            }
            println!("{out}|");
        };
        line(&mut self.columns.iter().copied());
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        line(&mut rules.iter().map(String::as_str));
        for row in &shown {
            line(&mut row.iter().map(String::as_str));
        }
        for note in &self.notes {
            println!("- {note}");
        }
    }

    fn json(&self) -> Value {
        let row = |row: &Vec<Cell>| -> Value {
            let cells = self.columns.iter().zip(row).map(|(name, cell)| {
                let unit = match cell {
                    Cell::Nanos(_) => " (ns)",
                    Cell::Bytes(_) => " (bytes)",
                    _ => "",
                };
                (format!("{name}{unit}"), cell.json())
            });
            Value::Object(cells.collect::<Map<_, _>>())
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
}

impl Report {
    /// Keeps the table, and prints it.
    pub fn add(&mut self, table: Table) {
        table.print();
        self.tables.push(table);
    }

    pub fn json(&self, about: &Value) -> Value {
        json!({
            "about": about,
            "differences": self.differences,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
        })
    }
}
