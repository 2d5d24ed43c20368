//! Counting every event of a source exactly once, although the program is interrupted again and again.
//!
//! The position in the source is sealed together with the changes that the events before it made. After
//! an interruption state and position come back from the same epoch, so that reading on from that
//! position neither leaves an event out nor counts one twice.
//!
//! `cargo run --example exactly_once -p laminar-storage [NEW_DIRECTORY]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use laminar_storage::{Opened, Settings, Store, StoreError};

/// Name of the source in the store.
const SOURCE: &str = "payments";
/// Events per epoch.
const PER_EPOCH: usize = 100;

/// One event of the source, which can be read again from any position, like a file or a log.
struct Payment {
    account: u32,
    amount: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().join("state"), PathBuf::from);
    let source: Vec<Payment> =
        (0..20_000_u32).map(|n| Payment { account: n * 31 % 257, amount: u64::from(n % 97) }).collect();

    // Each life ends in the middle of an epoch, at another place, without waiting for anything.
    for interrupted_after in [1_234, 17, 5_678, 4_321, 99] {
        live(&dir, &source, Some(interrupted_after))?;
    }
    live(&dir, &source, None)?;

    let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for payment in &source {
        *expected.entry(payment.account.to_be_bytes().to_vec()).or_default() += payment.amount;
    }
    let Opened { cores, report, .. } = open(&dir)?;
    let found: BTreeMap<Vec<u8>, u64> =
        cores[0].iter().map(|(account, sum)| (account.to_vec(), number(Some(sum)))).collect();
    assert_eq!(report.source_offsets[SOURCE], source.len() as u64);
    assert_eq!(found, expected, "every event counts exactly once");
    println!("{} events, {} accounts: every event was counted exactly once", source.len(), found.len());
    Ok(())
}

/// Opens the store, reads the source on from where the recovered state ends, and stops after so many
/// events, or at the end of the source.
fn live(dir: &Path, source: &[Payment], stop_after: Option<usize>) -> Result<(), Box<dyn Error>> {
    let Opened { store, mut cores, report } = open(dir)?;
    let core = &mut cores[0];
    let start = usize::try_from(report.source_offsets.get(SOURCE).copied().unwrap_or(0))?;
    println!("epoch {:>4}: reading on from event {start}", report.recovery_point);

    let end = stop_after.map_or(source.len(), |events| source.len().min(start + events));
    for (position, payment) in source.iter().enumerate().take(end).skip(start) {
        core.update(&payment.account.to_be_bytes(), |old| {
            Some((number(old) + payment.amount).to_le_bytes())
        })?;
        if (position + 1) % PER_EPOCH == 0 {
            core.set_source_offset(SOURCE, position as u64 + 1);
            core.seal_epoch()?;
        }
    }
    if stop_after.is_some() {
        // Core and store are dropped. Changes after the last seal are gone, as after a crash, and the
        // position goes back with them.
        return Ok(());
    }
    core.set_source_offset(SOURCE, source.len() as u64);
    let last = core.seal_epoch()?;
    store.wait_durable(last)?;
    store.close()?;
    Ok(())
}

fn open(dir: &Path) -> Result<Opened, StoreError> {
    // Small files, because this store is opened seven times for little data.
    let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
    Store::builder(dir).cores(1).settings(settings).open()
}

fn number(value: Option<&[u8]>) -> u64 {
    value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}
