//! Writes an event file: page views, orders and returns of a shop's users.

use std::io::Write;
use std::path::Path;

use super::random::Random;
use crate::args::ExportFormat;
use crate::error::{CliError, Result};
use crate::output::whole_file;

/// The columns, which are also the fields: `user.id` is `id` within `user`.
pub const COLUMNS: [&str; 5] = ["ts", "user.id", "page", "type", "amount"];
const PAGES: u64 = 5_000;

/// What is written. The same fields give the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    pub count: u64,
    /// Number of users; with uniform keys all of them occur if there are events enough.
    pub keys: u64,
    pub seed: u64,
    /// Most events by few users, instead of equally many by each.
    pub zipf: bool,
    pub format: ExportFormat,
}

impl Events {
    /// Writes the file, which appears when it is complete; gives its size in bytes.
    pub fn write(&self, path: &Path) -> Result<u64> {
        whole_file(path, |out| {
            self.write_to(out).map_err(|e| CliError::io("write the event file", path, &e))
        })?;
        let metadata = path.metadata().map_err(|e| CliError::io("read the length of", path, &e))?;
        Ok(metadata.len())
    }

    fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        const FLUSH_AT: usize = 1 << 20;
        let mut buffer = Vec::with_capacity(FLUSH_AT + 4096);
        if self.format == ExportFormat::Csv {
            writeln!(buffer, "{}", COLUMNS.join(","))?;
        }
        let mut random = Random::new(self.seed);
        let users = Users::new(self, &mut random);
        for i in 0..self.count {
            let event = Event::new(i, &users, &mut random);
            match self.format {
                ExportFormat::Ndjson => event.ndjson(&mut buffer)?,
                ExportFormat::Csv => event.csv(&mut buffer)?,
            }
            if buffer.len() >= FLUSH_AT {
                out.write_all(&buffer)?;
                buffer.clear();
            }
        }
        out.write_all(&buffer)
    }
}

/// Who causes an event.
struct Users {
    count: u64,
    zipf: bool,
    /// Bits of the largest user's number, at least 2.
    bits: u32,
    salt: u64,
}

impl Users {
    fn new(events: &Events, random: &mut Random) -> Self {
        let count = events.keys.max(1);
        let bits = (u64::BITS - (count - 1).leading_zeros()).max(2);
        Self { count, zipf: events.zipf, bits, salt: random.next() }
    }

    fn pick(&self, i: u64, random: &mut Random) -> u64 {
        if self.zipf {
            random.zipf(self.count)
        } else if i < self.count {
            self.in_mixed_order(i)
        } else {
            random.below(self.count)
        }
    }

    /// Every user for exactly one `i` below their number.
    fn in_mixed_order(&self, i: u64) -> u64 {
        let mask = u64::MAX >> (u64::BITS - self.bits);
        let mut x = i;
        loop {
            // Each step has an inverse within the mask, so that this goes round in a circle of which
            // `i` is a part, and ends there at the latest.
            x = (x ^ self.salt) & mask;
            for factor in [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9] {
                x = x.wrapping_mul(factor) & mask;
                x ^= x >> (self.bits / 2);
            }
            if x < self.count {
                return x;
            }
        }
    }
}

struct Event {
    /// Milliseconds since midnight.
    time: u64,
    user: u64,
    page: u64,
    kind: &'static str,
    cents: i64,
}

impl Event {
    fn new(i: u64, users: &Users, random: &mut Random) -> Self {
        let user = users.pick(i, random);
        let page = random.zipf(PAGES);
        // One event in five is an order; a return has a negative amount.
        let (kind, cents) = match random.below(40) {
            0 => ("return", -100 - i64::try_from(random.below(20_000)).unwrap_or(0)),
            1..8 => ("order", 100 + i64::try_from(random.below(50_000)).unwrap_or(0)),
            _ => ("view", 0),
        };
        Self { time: i * 4 % 86_400_000, user, page, kind, cents }
    }

    fn ndjson(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        out.write_all(b"{\"ts\":\"")?;
        self.ts(out)?;
        write!(
            out,
            "\",\"user\":{{\"id\":\"user-{:07}\"}},\"page\":\"/products/{}\",\"type\":\"{}\",\"amount\":",
            self.user, self.page, self.kind
        )?;
        self.amount(out)?;
        out.write_all(b"}\n")
    }

    fn csv(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        self.ts(out)?;
        write!(out, ",user-{:07},/products/{},{},", self.user, self.page, self.kind)?;
        self.amount(out)?;
        out.write_all(b"\n")
    }

    fn ts(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let (second, milli) = (self.time / 1000, self.time % 1000);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(out, "2026-11-22T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }

    fn amount(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let (sign, cents) = (if self.cents < 0 { "-" } else { "" }, self.cents.unsigned_abs());
        write!(out, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn text(events: Events) -> String {
        let mut out = Vec::new();
        events.write_to(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn users(text: &str) -> BTreeMap<&str, usize> {
        let mut users = BTreeMap::new();
        for line in text.lines().skip(1) {
            *users.entry(line.split(',').nth(1).unwrap()).or_default() += 1;
        }
        users
    }

    #[test]
    fn the_seed_decides_and_every_key_occurs() {
        let events = Events { count: 3000, keys: 90, seed: 1, zipf: false, format: ExportFormat::Csv };
        assert_eq!(text(events), text(events));
        assert_ne!(text(events), text(Events { seed: 2, ..events }));
        for keys in [1, 2, 90, 97, 3000] {
            assert_eq!(users(&text(Events { keys, ..events })).len() as u64, keys);
        }
        assert_eq!(users(&text(Events { keys: 1 << 40, ..events })).len(), 3000);
        assert_eq!(text(Events { count: 0, ..events }).lines().count(), 1, "the header");
        assert_eq!(text(Events { count: 0, format: ExportFormat::Ndjson, ..events }), "");
    }

    #[test]
    fn zipf_prefers_few_and_uniform_nobody() {
        let events = Events { count: 20_000, keys: 100, seed: 7, zipf: false, format: ExportFormat::Csv };
        let (even, odd) = (text(events), text(Events { zipf: true, ..events }));
        let most = |text: &str| users(text).into_values().max().unwrap();
        assert!((200..300).contains(&most(&even)), "{}", most(&even));
        assert!(most(&odd) > 2000, "{}", most(&odd));
    }
}
