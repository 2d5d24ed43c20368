//! What the result must be, computed without anything that the job uses: one thread, one map, its
//! own parsing of the file and its own arithmetic in cents.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::COLUMNS;
use crate::args::ExportFormat;
use crate::error::{CliError, Result};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    user: Owner<'a>,
    #[serde(borrow)]
    page: Cow<'a, str>,
    #[serde(borrow)]
    amount: &'a RawValue,
}

#[derive(Deserialize)]
struct Owner<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// The line that `laminar export` must have for a key.
#[derive(Deserialize)]
struct Exported<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    count: u64,
    #[serde(borrow, rename = "sum:amount")]
    sum: &'a RawValue,
    #[serde(borrow, rename = "min:amount")]
    min: &'a RawValue,
    #[serde(borrow, rename = "max:amount")]
    max: &'a RawValue,
    #[serde(borrow, rename = "last:page")]
    last: Cow<'a, str>,
}

/// What is known of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    count: u64,
    sum: i64,
    min: i64,
    max: i64,
    last: String,
}

/// All users.
pub type Truth = HashMap<String, User>;

fn lines(path: &Path, mut each: impl FnMut(&str, u64) -> Result<()>) -> Result<()> {
    let io = |e: std::io::Error| CliError::io("read", path, &e);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
    let mut line = String::new();
    let mut number = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).map_err(io)? == 0 {
            return Ok(());
        }
        number += 1;
        each(&line, number)?;
    }
}

/// Cents of an amount with at most two decimal places.
fn cents(text: &str) -> Option<i64> {
    let negative = text.starts_with('-');
    let (whole, part) =
        text.trim_start_matches('-').split_once('.').unwrap_or((text.trim_start_matches('-'), ""));
    let part: i64 = match part.len() {
        0 => 0,
        1 => part.parse::<i64>().ok()? * 10,
        2 => part.parse().ok()?,
        _ => return None,
    };
    let value = whole.parse::<i64>().ok()? * 100 + part;
    Some(if negative { -value } else { value })
}

/// Computes the truth from the event file.
pub fn compute(path: &Path, format: ExportFormat) -> Result<Truth> {
    let mut truth = Truth::new();
    lines(path, |line, number| {
        let bad = |why: String| CliError::failure(format!("{}: line {number}: {why}", path.display()));
        match format {
            ExportFormat::Ndjson => {
                let event: Event<'_> = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
                let amount = cents(event.amount.get()).ok_or_else(|| bad("not an amount".to_owned()))?;
                add(&mut truth, &event.user.id, &event.page, amount);
            }
            ExportFormat::Csv if number == 1 => {
                if line.trim_end() != COLUMNS.join(",") {
                    return Err(bad("not the header of an event file".to_owned()));
                }
            }
            ExportFormat::Csv => {
                // No field of an event file has a comma or a quote.
                let fields: Vec<&str> = line.trim_end().split(',').collect();
                let &[_, user, page, _, amount] = &fields[..] else {
                    return Err(bad("not an event".to_owned()));
                };
                let amount = cents(amount).ok_or_else(|| bad("not an amount".to_owned()))?;
                add(&mut truth, user, page, amount);
            }
        }
        Ok(())
    })?;
    Ok(truth)
}

fn add(truth: &mut Truth, id: &str, page: &str, amount: i64) {
    match truth.get_mut(id) {
        Some(user) => {
            user.count += 1;
            user.sum += amount;
            user.min = user.min.min(amount);
            user.max = user.max.max(amount);
            page.clone_into(&mut user.last);
        }
        None => {
            let user = User { count: 1, sum: amount, min: amount, max: amount, last: page.to_owned() };
            truth.insert(id.to_owned(), user);
        }
    }
}

/// An amount in the notation of the event file.
fn amount(cents: i64) -> String {
    let (sign, cents) = (if cents < 0 { "-" } else { "" }, cents.unsigned_abs());
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

/// Writes what `laminar export` must give for `--key user.id --agg count,sum:amount`.
pub fn write(truth: &Truth, out: &mut dyn Write) -> std::io::Result<()> {
    let mut users: Vec<_> = truth.iter().collect();
    users.sort_unstable_by_key(|(id, _)| id.as_bytes());
    for (id, user) in users {
        let sum = amount(user.sum);
        writeln!(out, "{{\"key\":\"{id}\",\"count\":{},\"sum:amount\":{sum}}}", user.count)?;
    }
    Ok(())
}

/// Whether an NDJSON export of the demo's aggregates has the very bytes of the truth.
pub fn is_identical(truth: &Truth, export: &Path) -> Result<bool> {
    let found = std::fs::read(export).map_err(|e| CliError::io("read", export, &e))?;
    let mut users: Vec<_> = truth.iter().collect();
    users.sort_unstable_by_key(|(id, _)| id.as_bytes());
    let mut rest = found.as_slice();
    for user in users {
        match rest.strip_prefix(line_of(user).as_bytes()) {
            Some(after) => rest = after,
            None => return Ok(false),
        }
    }
    Ok(rest.is_empty())
}

/// One line of the export of the demo's aggregates.
fn line_of((id, user): (&String, &User)) -> String {
    let (sum, min, max) = (amount(user.sum), amount(user.min), amount(user.max));
    format!(
        "{{\"key\":\"{id}\",\"count\":{},\"sum:amount\":{sum},\"min:amount\":{min},\"max:amount\":{max},\"last:page\":\"{}\"}}\n",
        user.count, user.last
    )
}

/// Compares an NDJSON export with the truth; the first difference is the error.
pub fn compare(truth: &Truth, export: &Path) -> Result<()> {
    let mut seen = 0usize;
    lines(export, |line, number| {
        let differs = |why: String| {
            CliError::failure(format!("the result is WRONG: {} line {number}: {why}", export.display()))
        };
        let found: Exported<'_> = serde_json::from_str(line).map_err(|e| differs(e.to_string()))?;
        let amounts = [found.sum, found.min, found.max].map(|raw| cents(raw.get()));
        let [Some(sum), Some(min), Some(max)] = amounts else {
            return Err(differs(format!("not amounts: {}", line.trim())));
        };
        let found_user = User { count: found.count, sum, min, max, last: found.last.into_owned() };
        seen += 1;
        match truth.get(found.key.as_ref()) {
            Some(expected) if *expected == found_user => Ok(()),
            expected => Err(differs(format!("{} is {found_user:?}, expected {expected:?}", found.key))),
        }
    })?;
    if seen != truth.len() {
        return Err(CliError::failure(format!(
            "the result is WRONG: it has {seen} keys, expected {}",
            truth.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::events::Events;
    use super::*;

    #[test]
    fn amounts_are_cents() {
        for (text, value) in [("0.00", 0), ("12.34", 1234), ("-0.05", -5), ("7", 700), ("-3.5", -350)] {
            assert_eq!(cents(text), Some(value), "{text}");
        }
        assert_eq!(cents("1.234"), None);
        assert_eq!(cents("x"), None);
    }

    #[test]
    fn a_wrong_export_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("e.ndjson");
        let format = ExportFormat::Ndjson;
        Events { count: 1000, keys: 90, seed: 7, zipf: true, format }.write(&events).unwrap();
        let truth = compute(&events, format).unwrap();
        let good: Vec<String> = truth.iter().map(line_of).collect();
        let export = dir.path().join("x.ndjson");
        std::fs::write(&export, good.concat()).unwrap();
        compare(&truth, &export).unwrap();
        let mut sorted = good.clone();
        sorted.sort_unstable();
        std::fs::write(&export, sorted.concat()).unwrap();
        assert!(is_identical(&truth, &export).unwrap());
        // The same values in other bytes: another order, another notation, something behind.
        sorted.swap(0, 1);
        std::fs::write(&export, sorted.concat()).unwrap();
        compare(&truth, &export).unwrap();
        assert!(!is_identical(&truth, &export).unwrap());
        sorted.swap(0, 1);
        for other in [sorted.concat().replacen(':', ": ", 1), sorted.concat() + "\n"] {
            std::fs::write(&export, other).unwrap();
            assert!(!is_identical(&truth, &export).unwrap());
        }
        std::fs::write(&export, good[1..].concat()).unwrap();
        assert!(compare(&truth, &export).unwrap_err().to_string().contains("keys, expected"));
        std::fs::write(&export, good.concat().replacen("\"count\":", "\"count\":1", 1)).unwrap();
        assert!(compare(&truth, &export).unwrap_err().to_string().contains("WRONG"));
    }
}
