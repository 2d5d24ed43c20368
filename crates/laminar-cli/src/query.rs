//! `get`, `top` and `scan`: looking into a state without changing it.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use comfy_table::{Table, presets};

use crate::agg::decimal::Number;
use crate::agg::value::Outcome;
use crate::agg::{Kind, Plan};
use crate::args::{GetArgs, ScanArgs, TopArgs};
use crate::engine::StateView;
use crate::error::{CliError, Result};
use crate::export::{Meaning, sorted};
use crate::input::sink::shown;
use crate::opening::Watched;
use crate::visible;

type Entry<'a> = (&'a [u8], &'a [u8]);

/// `laminar get`.
pub fn get<V: StateView>(args: &GetArgs, out: &mut dyn Write) -> Result<()> {
    let view = V::open_watched(&args.state.state, Watched::unless(args.json))?;
    let meaning = Meaning::of(&args.state.state, args.state.raw, view.report())?;
    let key = args.key.as_bytes();
    let Some(value) = view.get(key) else {
        let state = args.state.state.display();
        return Err(CliError::failure(format!("{state} has no key {}", shown(key)))
            .remedy(format!("It has {} keys; `laminar scan --prefix ...` lists them.", view.report().keys)));
    };
    print(&[(key, value)], &meaning, args.json, out)
}

/// `laminar scan`.
pub fn scan<V: StateView>(args: &ScanArgs, out: &mut dyn Write) -> Result<()> {
    let view = V::open_watched(&args.state.state, Watched::unless(args.json))?;
    let meaning = Meaning::of(&args.state.state, args.state.raw, view.report())?;
    let mut entries = sorted(&view);
    if let Some(prefix) = &args.prefix {
        entries.retain(|(key, _)| key.starts_with(prefix.as_bytes()));
    }
    entries.truncate(args.limit.unwrap_or(usize::MAX));
    print(&entries, &meaning, args.json, out)
}

/// `laminar top`.
pub fn top<V: StateView>(args: &TopArgs, out: &mut dyn Write) -> Result<()> {
    let view = V::open_watched(&args.state.state, Watched::unless(args.json))?;
    let meaning = Meaning::of(&args.state.state, args.state.raw, view.report())?;
    let Meaning::Job { plan, .. } = &meaning else {
        return Err(CliError::usage(
            "top needs the aggregates of a job, and this state was not made by `laminar run`",
        )
        .remedy("Use `laminar scan`, and leave out --raw."));
    };
    let column = order_column(plan, args.by.as_deref())?;
    let mut best = Best::new(args.count.get());
    let mut damaged = None;
    view.for_each(&mut |key, value| match number(plan, column, value) {
        Some(number) => best.offer(Ranked { number, key, value }),
        None => damaged = Some(key),
    });
    if let Some(key) = damaged {
        return Err(CliError::failure(format!(
            "the stored value of key {} is not one that this job writes",
            shown(key)
        ))
        .remedy("Run `laminar verify`."));
    }
    print(&best.into_sorted(), &meaning, args.json, out)
}

fn order_column(plan: &Plan, by: Option<&str>) -> Result<usize> {
    let choices = || {
        let numeric = plan.aggregates.iter().filter(|a| a.kind != Kind::Last).map(ToString::to_string);
        format!("This state can be ordered by: {}.", numeric.collect::<Vec<_>>().join(", "))
    };
    let column = match by {
        Some(by) => plan.position(by).ok_or_else(|| {
            CliError::usage(format!("--by {by} is not an aggregate of this state")).remedy(choices())
        })?,
        None => plan.aggregates.iter().position(|a| a.kind != Kind::Last).unwrap_or(0),
    };
    if plan.aggregates.get(column).is_none_or(|a| a.kind == Kind::Last) {
        return Err(CliError::usage("`last` values have no order of size").remedy(choices()));
    }
    Ok(column)
}

fn number(plan: &Plan, column: usize, value: &[u8]) -> Option<Number> {
    let outcomes = plan.decode(value)?;
    match outcomes.get(column)? {
        Outcome::Count(count) => Some(Number::from(*count)),
        Outcome::Sum(sum) => Some(sum.number()),
        Outcome::Text(text) => Number::parse(text),
    }
}

/// Ordered by number; among equals the smaller key is the greater, so that it is shown first.
struct Ranked<'a> {
    number: Number,
    key: &'a [u8],
    value: &'a [u8],
}

impl Ord for Ranked<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.compare(other.number).then_with(|| other.key.cmp(self.key))
    }
}

impl PartialOrd for Ranked<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked<'_> {}

/// Keeps the greatest so many.
struct Best<'a> {
    count: usize,
    heap: BinaryHeap<Reverse<Ranked<'a>>>,
}

impl<'a> Best<'a> {
    fn new(count: usize) -> Self {
        Self { count, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, ranked: Ranked<'a>) {
        if self.heap.len() < self.count {
            self.heap.push(Reverse(ranked));
        } else if self.heap.peek().is_some_and(|Reverse(least)| ranked > *least) {
            self.heap.pop();
            self.heap.push(Reverse(ranked));
        }
    }

    fn into_sorted(self) -> Vec<Entry<'a>> {
        self.heap.into_sorted_vec().into_iter().map(|Reverse(r)| (r.key, r.value)).collect()
    }
}

fn print(entries: &[Entry<'_>], meaning: &Meaning, json: bool, out: &mut dyn Write) -> Result<()> {
    let text = render(entries, meaning, json, std::io::stdout().is_terminal())?;
    out.write_all(&text).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

fn render(entries: &[Entry<'_>], meaning: &Meaning, json: bool, terminal: bool) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    if json {
        for (key, value) in entries {
            let start = text.len();
            meaning.write_ndjson(&mut text, key, value)?;
            if terminal {
                visible::make_json(&mut text, start);
            }
        }
    } else {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        let columns = meaning.columns();
        let names = std::iter::once("key").chain(columns.iter().map(String::as_str));
        table.set_header(names.map(|name| visible::text(name.as_bytes())));
        for (key, value) in entries {
            let cells = meaning.cells(key, value)?;
            let shown = cells.iter().map(|cell| cell.shown().into_owned());
            table.add_row(std::iter::once(meaning.key_shown(key)).chain(shown));
        }
        text.extend_from_slice(table.trim_fmt().as_bytes());
        text.push(b'\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let entries: [Entry<'_>; 1] = [("k\u{1b}[2J\u{9b}\u{202e}\té".as_bytes(), b"a\x07\nb")];
        for json in [false, true] {
            let text = String::from_utf8(render(&entries, &Meaning::Bytes, json, true).unwrap()).unwrap();
            assert!(!text.chars().any(|c| c != '\n' && visible::acts(c)) && text.contains('é'), "{text:?}");
        }
        let json = render(&entries, &Meaning::Bytes, true, true).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(read["key"], "k\u{1b}[2J\u{9b}\u{202e}\té");
        let table = String::from_utf8(render(&entries, &Meaning::Bytes, false, true).unwrap()).unwrap();
        assert!(table.contains("k\\u{1b}[2J") && table.contains("a\\u{7}\\nb"), "{table}");
        let piped = String::from_utf8(render(&entries, &Meaning::Bytes, true, false).unwrap()).unwrap();
        assert!(piped.contains('\u{9b}'), "what is not a terminal gets JSON as it is");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_from_their_digits() {
        let entries: [Entry<'_>; 3] = [(b"\xff\0", b"\x80"), (b"ff00", b"80"), (b"\\xff", b"\\x80")];
        let table = String::from_utf8(render(&entries, &Meaning::Bytes, false, false).unwrap()).unwrap();
        for shown in ["\\xff\\0 ", " ff00 ", "\\\\xff ", "\\x80", "\\\\x80"] {
            assert!(table.contains(shown), "{shown}: {table}");
        }
        let json = String::from_utf8(render(&entries[..2], &Meaning::Bytes, true, false).unwrap()).unwrap();
        assert_eq!(
            json,
            "{\"key_hex\":\"ff00\",\"value_hex\":\"80\"}\n{\"key\":\"ff00\",\"value\":\"80\"}\n"
        );
    }
}
