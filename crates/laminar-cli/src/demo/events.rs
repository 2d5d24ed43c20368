//! Writes the event file of the demo: page views and orders of a shop, most of them by few users.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::random::Random;
use crate::error::{CliError, Result};

/// Writes `count` events; gives the size of the file in bytes.
pub fn write(path: &Path, count: u64, seed: u64) -> Result<u64> {
    let io = |e: std::io::Error| CliError::io("write the event file", path, &e);
    let file = File::create(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut random = Random::new(seed);
    // As many users as make most of them return.
    let users = (count / 8).max(100);
    for i in 0..count {
        event(&mut out, i, users, &mut random).map_err(io)?;
    }
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    Ok(file.metadata().map_err(io)?.len())
}

fn event(out: &mut impl Write, i: u64, users: u64, random: &mut Random) -> std::io::Result<()> {
    let user = random.zipf(users);
    let page = random.zipf(5_000);
    let session = random.next();
    let (second, milli) = (i / 250, i % 250 * 4);
    write!(
        out,
        "{{\"ts\":\"2026-11-22T{:02}:{:02}:{:02}.{milli:03}Z\",\"user\":\"user-{user:07}\",\"page\":\"/products/{page}\",",
        second / 3600 % 24,
        second / 60 % 60,
        second % 60
    )?;
    // One event in five is an order; a return has a negative amount.
    let (kind, cents) = match random.below(40) {
        0 => ("return", -100 - i64::try_from(random.below(20_000)).unwrap_or(0)),
        1..8 => ("order", 100 + i64::try_from(random.below(50_000)).unwrap_or(0)),
        _ => ("view", 0),
    };
    let (sign, cents) = (if cents < 0 { "-" } else { "" }, cents.unsigned_abs());
    writeln!(
        out,
        "\"type\":\"{kind}\",\"order\":{{\"amount\":{sign}{}.{:02}}},\"session\":\"{session:016x}\"}}",
        cents / 100,
        cents % 100
    )
}
