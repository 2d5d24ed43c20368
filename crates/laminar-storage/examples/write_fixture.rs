//! Writes the golden files of the present format version, `tests/fixtures/v{version}`, which
//! `tests/golden.rs` opens. Used only when the format version grows: the files of every version that
//! was ever released stay as they are. See `docs/FORMAT.md`.
//!
//! `cargo run -p laminar-storage --example write_fixture` refuses to touch existing files;
//! `cargo run -p laminar-storage --example write_fixture -- --replace` writes them again.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use laminar_storage::format::FORMAT_VERSION;
use laminar_storage::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
use laminar_storage::{CoreStore, Epoch, Opened, Router, Settings, Store, StoreError};

const CORES: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = fixtures.join(format!("v{FORMAT_VERSION}"));
    if dir.exists() {
        if std::env::args().nth(1).as_deref() != Some("--replace") {
            return Err(format!("{} exists; --replace writes it again", dir.display()).into());
        }
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    write_store(&dir.join("store"))?;
    write_log(&dir.join("log"))?;
    println!("{}: {} bytes", dir.display(), size(&dir)?);
    Ok(())
}

/// A complete store: two openings, two checkpoints, a closed epoch after them in the log, and a tail
/// that was never sealed.
fn write_store(dir: &Path) -> Result<(), Box<dyn Error>> {
    {
        let Opened { store, mut cores, .. } = open(dir)?;
        for n in 0..40 {
            put(&mut cores, &format!("key-{n:02}"), &format!("first-{n}"))?;
        }
        seal(&store, &mut cores, 100, [-5, 50])?;
        store.checkpoint()?;
        store.close()?;
    }
    let Opened { store, mut cores, .. } = open(dir)?;
    for n in (0..40).step_by(4) {
        put(&mut cores, &format!("key-{n:02}"), &format!("second-{n}"))?;
    }
    for n in (3..40).step_by(10) {
        let key = format!("key-{n:02}");
        cores[core_of(&key)].delete(key.as_bytes())?;
    }
    let second = seal(&store, &mut cores, 200, [5, 60])?;
    store.checkpoint()?;

    for n in (0..40).step_by(5) {
        put(&mut cores, &format!("key-{n:02}"), &format!("third-{n}"))?;
    }
    put(&mut cores, "", "the empty key")?;
    put(&mut cores, "empty value", "")?;
    let third = seal(&store, &mut cores, 300, [15, 70])?;

    // Most of what comes now is in the log, and nothing of it in a recovered state. (The last puts before
    // a seal that never comes stay with their core.)
    for n in 0..100 {
        put(&mut cores, &format!("unsealed-{n}"), "must not come back")?;
    }
    for (index, core) in cores.iter_mut().enumerate() {
        core.set_source_offset(&format!("orders/{index}"), 999);
    }
    store.close()?;
    println!("store: checkpoint 2 is of epoch {second}, the recovery point is epoch {third}");
    Ok(())
}

/// A log of the low-level functions: two incarnations, several segments, every kind of record.
fn write_log(dir: &Path) -> Result<(), Box<dyn Error>> {
    let config = PerCoreWalConfig::new(dir, CORES).with_segment_size(4096);
    {
        let mut log = PerCoreWalManager::new(config.clone())?;
        log.set_epoch_all(1)?;
        for n in 0..60_u32 {
            log.writer(0).append_put(format!("key-{n:02}").as_bytes(), &[b'v'; 100])?;
            if n % 10 == 9 {
                log.sync_all()?;
            }
        }
        log.writer(1).append_put(b"gone", b"soon")?;
        log.writer(1).append_delete(b"gone")?;
        log.writer(1).append_commit(HashMap::from([("orders".to_owned(), 60)]), Some(-1))?;
        log.write_epoch_barrier_all()?;
        log.sync_all()?;
    }
    let mut log = PerCoreWalManager::new(config)?;
    log.writer(0).append_put(b"key-00", b"changed")?;
    log.writer(0).append_checkpoint(7)?;
    log.writer(1).append_put(b"last", b"")?;
    log.sync_all()?;
    Ok(())
}

fn open(dir: &Path) -> Result<Opened, StoreError> {
    // The smallest files there can be, and no checkpoint but those asked for.
    let settings = Settings {
        segment_bytes: 64 << 10,
        preallocate_bytes: 0,
        checkpoint_interval_ms: 0,
        checkpoint_wal_bytes: 0,
        ..Settings::default()
    };
    Store::builder(dir).cores(CORES).settings(settings).open()
}

fn core_of(key: &str) -> usize {
    Router::default().route(key.as_bytes(), CORES)
}

fn put(cores: &mut [CoreStore], key: &str, value: &str) -> Result<(), StoreError> {
    cores[core_of(key)].put(key.as_bytes(), value.as_bytes())
}

/// Closes the epoch on both cores and waits for it.
fn seal(
    store: &Store,
    cores: &mut [CoreStore],
    offset: u64,
    watermarks: [i64; 2],
) -> Result<Epoch, StoreError> {
    let mut sealed = Epoch::ZERO;
    for (index, core) in cores.iter_mut().enumerate() {
        core.set_source_offset(&format!("orders/{index}"), offset + index as u64);
        core.set_watermark(watermarks[index]);
        sealed = core.seal_epoch()?;
    }
    store.wait_durable(sealed)?;
    Ok(sealed)
}

fn size(dir: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        total += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}
