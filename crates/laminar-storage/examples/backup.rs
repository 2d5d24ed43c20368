//! A store whose checkpoints are copied elsewhere, and the machine that it is restored on.
//!
//! `cargo run -p laminar-storage --features object-store --example backup [URL]`: `s3://BUCKET/PREFIX` with credentials in
//! the environment, or a directory. Without one, a temporary directory stands in for the bucket.

use std::time::Duration;

use laminar_storage::Store;
use laminar_storage::backup::{BackupOptions, BackupTarget, list_backups, restore, verify_backup};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let [bucket, state, restored, again] =
        ["bucket", "state", "restored", "again"].map(|name| temporary.path().join(name));
    let url = std::env::args().nth(1).unwrap_or_else(|| bucket.display().to_string());
    // An example may be run twice with one URL; each time the store is another one.
    let options = BackupOptions::new().keep(2).take_over(true);
    let target = BackupTarget::create(&url)?;

    // The machine that will be lost.
    let opened = Store::builder(&state).backup_to(&target, &options, &[("version", b"7")]).open()?;
    let (store, mut cores) = (opened.store, opened.cores);
    for round in 1..=3_u64 {
        for core in &mut cores {
            for key in 0..1000_u64 {
                core.put(&key.to_le_bytes(), format!("{key} in round {round}").as_bytes())?;
            }
            core.set_source_offset("orders", round * 1000);
            let epoch = core.seal_epoch()?;
            store.wait_durable(epoch)?;
        }
        store.checkpoint()?;
        if !store.wait_backed_up(Duration::from_secs(60))? {
            println!("not backed up yet: {:?}", store.backup_status());
        }
    }
    let stats = store.stats();
    println!("{} checkpoints, {} not backed up", stats.checkpoints, stats.backup_checkpoints_behind);
    drop(cores);
    store.close()?;

    // An empty machine. More cores than before are no matter.
    for backup in list_backups(&target, &options)? {
        verify_backup(&target, Some(backup.id), &options, |_| {})?;
        println!("backup {} holds epoch {} with {} keys, whole", backup.id, backup.epoch, backup.keys);
    }
    let receipt = restore(&target, None, &restored, &options, |progress| {
        print!("\r{} of {} bytes ", progress.bytes_done, progress.bytes_total);
    })?;
    println!("restored: {} keys", receipt.keys);
    let again = Store::builder(&again).cores(2).from_savepoint(&restored).open()?;
    println!("goes on at epoch {} and {:?}", again.report.recovery_point, again.report.source_offsets);
    Ok(())
}
