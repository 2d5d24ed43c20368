//! Every damage to every file of a store, on several threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Damage, SECTOR, Subject, Table};
use crate::meter::Meter;

/// Cases that a thread takes at a time.
const CHUNK: u64 = 64;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Every so manieth bit and length, from `seed` on; 1 for all. Everything else is always complete.
    pub stride: u64,
    /// Where a stride begins.
    pub seed: u64,
    /// Threads that try.
    pub threads: usize,
    /// Says on standard error how far it is, this often.
    pub progress_every: Option<Duration>,
}

/// All damages of one file, numbered.
struct Cases<'a> {
    path: &'a Path,
    bits: u64,
    cuts: u64,
    sectors: u64,
    older: u64,
    stride: u64,
    first: u64,
}

impl Cases<'_> {
    fn len(&self) -> u64 {
        self.bits + self.cuts + 3 * self.sectors + self.older + 3
    }

    fn get(&self, n: u64) -> Damage {
        let Self { bits, cuts, sectors, older, stride, first, .. } = *self;
        let mut n = n;
        let mut within = |count: u64| {
            let hit = (n < count).then_some(n);
            n = n.wrapping_sub(count);
            hit
        };
        let spread = |n: u64| n * stride + first;
        if let Some(n) = within(bits) {
            return Damage::Bit(spread(n));
        }
        if let Some(n) = within(cuts) {
            return Damage::Cut(spread(n));
        }
        let by_sector = [Damage::ZeroSector, Damage::DoubleSector, Damage::SwapSectors];
        for damage in by_sector {
            if let Some(n) = within(sectors) {
                return damage(n);
            }
        }
        if let Some(n) = within(older) {
            return Damage::Older(n);
        }
        match n {
            0 => Damage::Removed,
            1 => Damage::Zeroed,
            _ => Damage::Foreign,
        }
    }
}

fn cases<'a>(subject: &'a Subject, extent: &Extent) -> Vec<Cases<'a>> {
    let stride = extent.stride.max(1);
    let first = extent.seed % stride;
    let every = |count: u64| count.saturating_sub(first).div_ceil(stride);
    let file = |(path, file): (&'a PathBuf, &'a super::File)| {
        let len = file.bytes.len() as u64;
        let (bits, cuts, sectors) = (every(len * 8), every(len), len.div_ceil(SECTOR));
        let older = file.older.len() as u64;
        Cases { path, bits, cuts, sectors, older, stride, first }
    };
    subject.files.iter().map(file).collect()
}

/// Tries them all.
pub fn damage_all(subject: &Subject, extent: &Extent, meter: Meter) -> Table {
    let start = Instant::now();
    let cases = cases(subject, extent);
    let total: u64 = cases.iter().map(Cases::len).sum();
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Table::default());
    let work = || {
        let mut table = Table::default();
        let mut said = Instant::now();
        loop {
            let from = next.fetch_add(CHUNK, Ordering::Relaxed);
            if from >= total {
                break;
            }
            for n in from..total.min(from + CHUNK) {
                try_number(subject, &cases, n, meter, &mut table);
            }
            if extent.progress_every.is_some_and(|every| said.elapsed() >= every) {
                said = Instant::now();
                let seconds = start.elapsed().as_secs();
                eprintln!("  {}: {from} of {total} cases after {seconds} s", subject.name());
            }
        }
        sum.lock().unwrap_or_else(PoisonError::into_inner).add(table);
    };
    std::thread::scope(|scope| {
        for _ in 0..extent.threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut table = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    table.findings.sort();
    table
}

fn try_number(subject: &Subject, cases: &[Cases<'_>], number: u64, meter: Meter, table: &mut Table) {
    let mut n = number;
    for file in cases {
        if n < file.len() {
            if let Err(error) = subject.try_one(file.path, file.get(n), meter, table) {
                table.findings.push(format!("{}: case {number}: {error}", subject.name()));
            }
            return;
        }
        n -= file.len();
    }
}
