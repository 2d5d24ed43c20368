//! What comes back after a power cut, judged.

use laminar_storage::ids::Epoch;
use laminar_storage::{StateReader, Store, StoreError};

use super::disk::Disk;
use super::machine::{Mounted, Place};
use super::recording::Recording;
use crate::dice::{Dice, mixed};
use crate::oracle::State;
use crate::torture::{child, truth};

/// The directory of the store on its file system.
pub const STORE: &str = "store";

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With the store.
    Store(String),
    /// The file system could not be mounted.
    Mount(String),
    /// With the harness, or the machine.
    Harness(String),
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The epoch that came back; none before the store existed.
    pub landed: Option<Epoch>,
}

/// Mounts a disk, opens the store on it in several ways, and unmounts it.
///
/// # Errors
/// What is wrong.
pub fn judge(
    place: &Place,
    recording: &Recording,
    disk: &Disk,
    acknowledged: Epoch,
) -> Result<Verdict, Fault> {
    let mounted = place.mount_image(disk, &recording.kind, &recording.options).map_err(Fault::Mount)?;
    let dir = place.cut().join(STORE);
    let verdict = open(&dir, recording.truth, acknowledged).map_err(Fault::Store);
    let unmounted: Result<(), String> = Mounted::unmount(mounted);
    verdict.and_then(|verdict| unmounted.map(|()| verdict).map_err(Fault::Harness))
}

fn open(dir: &std::path::Path, seed: u64, acknowledged: Epoch) -> Result<Verdict, String> {
    let read = look(dir, seed, acknowledged)?;
    let cores = 1 + Dice::new(mixed(seed, read.map_or(0, Epoch::get))).index(4);
    let builder = Store::builder(dir).cores(cores).settings(child::settings());
    let opened = builder.open().map_err(|e| format!("open with {cores} cores: {e}"))?;
    let landed = child::check_opened(&opened, seed, acknowledged).map_err(|e| format!("open: {e}"))?;
    if read.is_some_and(|read| read != landed) {
        return Err(format!("WRONG: a reader saw {read:?}, opening landed on {landed}"));
    }
    drop(opened);
    let again = look(dir, seed, landed)?;
    if again != Some(landed) {
        return Err(format!("WRONG: opening landed on {landed}, and then a reader on {again:?}"));
    }
    Ok(Verdict { landed: read })
}

/// Reads without opening; `None` when there is no store yet and none must be there.
fn look(dir: &std::path::Path, seed: u64, acknowledged: Epoch) -> Result<Option<Epoch>, String> {
    let reader = match StateReader::open(dir) {
        Ok(reader) => reader,
        Err(StoreError::InvalidInput(_)) if acknowledged == Epoch::ZERO => return Ok(None),
        Err(error) => return Err(format!("reader, with {acknowledged} acknowledged: {error}")),
    };
    let report = reader.report();
    let state: State = reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    let epoch = report.recovery_point;
    truth::check(seed, (epoch, acknowledged), &state, &report.source_offsets, report.watermark)
        .map_err(|e| format!("reader: {e}"))?;
    Ok(Some(epoch))
}
