//! The events of the job, and what must come out: computed one after the other, with nothing of the library.

use std::collections::BTreeMap;

/// The source has so many partitions, whatever the size of the job.
pub const PARTITIONS: u64 = 4;

/// What mixes bits, so that events look random and are the same in every run.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// An event: its key and its value.
pub fn event(seed: u64, partition: u64, offset: u64, keys: u64) -> (u64, u64) {
    let bits = mix(seed ^ mix(partition << 48 | offset));
    (bits % keys, bits >> 40)
}

/// What a line says of a key: how many values it had so far, and their sum.
pub fn line(key: u64, count: u64, sum: u64) -> String {
    format!("{key} {count} {sum}\n")
}

/// What a line says when a second operator has counted how often keys changed: by the last digit of the count.
pub fn digit_line(digit: u64, times: u64) -> String {
    format!("digit {digit} {times}\n")
}

/// Length of a window, in units of event time; an epoch has [`EPOCH_TIME`] of them.
pub const WINDOW: i64 = 50;
/// Event time that passes in an epoch.
pub const EPOCH_TIME: i64 = 10;

/// The event time of an event: in its epoch, or the one before; of a few, long ago.
pub fn time(epoch: u64, value: u64) -> i64 {
    let ago = if value % 50 == 7 { 20 * EPOCH_TIME } else { EPOCH_TIME };
    i64::try_from(epoch).unwrap_or(0) * EPOCH_TIME + i64::try_from(value % 20).unwrap_or(0) - ago
}

/// How far event time has come when an epoch is sealed: the next one's events may be a little older.
pub fn watermark(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(0) * EPOCH_TIME
}

/// What a line says of a window that has closed, or of a value that came after that.
pub fn window_line(end: i64, key: u64, count: Option<u64>) -> String {
    match count {
        Some(count) => format!("window {end} {key} {count}\n"),
        None => format!("late {end} {key}\n"),
    }
}

/// Every line that the job must have written, sorted. In each epoch, `events` of every partition.
pub fn lines(seed: u64, epochs: u64, events: u64, keys: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut totals: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut digits: BTreeMap<u64, u64> = BTreeMap::new();
    let mut windows: BTreeMap<(i64, u64), u64> = BTreeMap::new();
    for epoch in 0..epochs {
        let mut changed = BTreeMap::new();
        let reached = epoch.checked_sub(1).map_or(i64::MIN, watermark);
        for partition in 0..PARTITIONS {
            for offset in epoch * events..(epoch + 1) * events {
                let (key, value) = event(seed, partition, offset, keys);
                let total = totals.entry(key).or_default();
                *total = (total.0 + 1, total.1 + value);
                changed.insert(key, *total);
                let end = time(epoch, value).div_euclid(WINDOW) * WINDOW + WINDOW;
                if end <= reached {
                    lines.push(window_line(end, key % 10, None));
                } else {
                    *windows.entry((end, key % 10)).or_default() += 1;
                }
            }
        }
        let mut changed_digits = BTreeMap::new();
        for (key, (count, sum)) in changed {
            lines.push(line(key, count, sum));
            let times = digits.entry(count % 10).or_default();
            *times += 1;
            changed_digits.insert(count % 10, *times);
        }
        lines.extend(changed_digits.into_iter().map(|(digit, times)| digit_line(digit, times)));
    }
    // What is open at the end stays open.
    let closed = epochs.checked_sub(1).map_or(i64::MIN, watermark);
    let closed = windows.into_iter().filter(|((end, _), _)| *end <= closed);
    lines.extend(closed.map(|((end, key), count)| window_line(end, key, Some(count))));
    lines.sort_unstable();
    lines
}
