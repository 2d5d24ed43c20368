//! Opens a store, changes it, waits until the change is durable, and finds it again.
//!
//! `cargo run --example quick_start -p laminar-storage [DIRECTORY]`
//!
//! With a directory, run it twice: the counter goes on where it stopped.

use std::error::Error;
use std::path::PathBuf;

use laminar_storage::{Opened, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().join("state"), PathBuf::from);

    let before = {
        let Opened { store, mut cores, report } = Store::builder(&dir).cores(1).open()?;
        println!("opened at epoch {}, {} keys", report.recovery_point, report.keys);
        let core = &mut cores[0];
        let before = count(core.get(b"runs"));

        // Visible at once, to this thread.
        core.update(b"runs", |old| Some((count(old) + 1).to_le_bytes()))?;
        core.put(b"greeting", b"hello")?;
        assert_eq!(core.get(b"greeting"), Some(b"hello".as_slice()));
        core.delete(b"greeting")?;

        // Durable once the epoch is: from here on it survives a power failure.
        let epoch = core.seal_epoch()?;
        store.wait_durable(epoch)?;
        println!("epoch {epoch} is durable");

        // Optional: a checkpoint makes the next opening short. It also happens by itself.
        let checkpoint = store.checkpoint()?;
        println!("checkpoint {} wrote {} bytes", checkpoint.id, checkpoint.bytes_written);
        store.close()?;
        before
    };

    let Opened { cores, report, .. } = Store::builder(&dir).cores(1).open()?;
    println!("opened again at epoch {} from checkpoint {:?}", report.recovery_point, report.checkpoint);
    assert_eq!(count(cores[0].get(b"runs")), before + 1);
    assert!(!cores[0].contains(b"greeting"));
    println!("runs: {}", before + 1);
    Ok(())
}

/// A stored counter; 0 where there is none.
fn count(value: Option<&[u8]>) -> u64 {
    value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}
