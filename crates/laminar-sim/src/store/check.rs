//! Opening a store on a disk, and what it holds there, by two ways: as its owner and as a reader.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use laminar_storage::error::Detail;
use laminar_storage::ids::Epoch;
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImageId, SimDisk};
use laminar_storage::{DigestCheck, Health, Opened, Router, Settings, StateReader, Store, StoreError};

use super::{DIR, StoreScenario, small_settings};
use crate::oracle::{CoreView, Model, Recovered, State};

/// Keeps the library's helper thread alive between the openings, which would start and end it each time.
fn keep_helper() {
    static KEPT: Mutex<Option<Opened>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        let builder = Store::builder(DIR).settings(small_settings()).vfs(Arc::new(SimDisk::new(0)));
        *kept = builder.open().ok();
    }
}

/// Opens the store on a disk.
///
/// # Errors
/// As [`laminar_storage::StoreBuilder::open`].
pub fn open(disk: &SimDisk, cores: u16, settings: &Settings) -> Result<Opened, StoreError> {
    keep_helper();
    let builder = Store::builder(DIR).cores(usize::from(cores)).settings(settings.clone());
    builder.vfs(Arc::new(disk.clone())).open()
}

impl StoreScenario {
    /// Opens the store as this scenario wants it; as a part of a whole to what is acknowledged, and with other cores than it has
    /// only once it has landed there.
    pub(super) fn open_on(
        &self,
        vfs: &Arc<dyn Vfs>,
        cores: u16,
        model: &Model,
    ) -> Result<Opened, StoreError> {
        keep_helper();
        let builder = |cores| {
            let builder = Store::builder(DIR).cores(usize::from(cores)).settings(self.settings.clone());
            builder.manager_options(self.manager.clone()).router(self.router()).vfs(Arc::clone(vfs))
        };
        if !self.part {
            return builder(cores).open();
        }
        let land = |cores| builder(cores).open_as_part(|_| Ok(model.acked()));
        let before = u16::try_from(model.core_count()).unwrap_or(cores);
        if before != cores {
            drop(land(before)?);
        }
        land(cores)
    }
}

/// What an opened store holds, as the oracle wants it and core by core.
///
/// # Errors
/// When the store contradicts itself.
pub fn recovered(opened: &Opened) -> Result<(Recovered, Vec<CoreView>), String> {
    recovered_routed(opened, &Router::default())
}

pub(super) fn recovered_routed(
    opened: &Opened,
    router: &Router,
) -> Result<(Recovered, Vec<CoreView>), String> {
    let Opened { cores, report, .. } = opened;
    let mut layout = Vec::new();
    let (mut offsets, mut watermark) = (BTreeMap::<String, u64>::new(), None);
    for (index, core) in cores.iter().enumerate() {
        let state: State = core.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        if state.len() != core.len() || state.iter().any(|(k, v)| core.get(k) != Some(v)) {
            return Err(format!("WRONG: core {index} contradicts itself"));
        }
        if let Some(key) = state.keys().find(|k| router.route(k, cores.len()) != index) {
            return Err(format!("WRONG: core {index} has {}, which is not its own", key.escape_ascii()));
        }
        for (source, offset) in core.source_offsets() {
            let known = offsets.entry(source.clone()).or_default();
            *known = (*known).max(*offset);
        }
        watermark = [watermark, core.watermark()].into_iter().flatten().min();
        layout.push((state, core.source_offsets().clone(), core.watermark()));
    }
    if (&offsets, watermark) != (&report.source_offsets, report.watermark) {
        let reported = (&report.source_offsets, report.watermark);
        return Err(format!("WRONG: offsets {offsets:?} {watermark:?}, reported {reported:?}"));
    }
    let epoch = report.recovery_point;
    if epoch != Epoch::ZERO && report.digest != DigestCheck::Verified {
        return Err(format!("WRONG: the digest at epoch {epoch} is {:?}", report.digest));
    }
    let state = layout.iter().map(|(state, ..)| state.clone()).collect();
    Ok((Recovered { epoch, state, offsets, watermark }, layout))
}

/// What a reader sees; `None` when there is no store, which may only be while nothing was acknowledged.
pub(super) fn look_for(
    vfs: &Arc<dyn Vfs>,
    disk: &SimDisk,
    model: &Model,
) -> Result<Option<StateReader>, String> {
    let seen = look(vfs, disk)?;
    if seen.is_none() && model.acked() != Epoch::ZERO {
        return Err(format!("LOST: a reader finds no store, {} was acknowledged", model.acked()));
    }
    Ok(seen)
}

/// What a reader sees; `None` when there is no store. It changes nothing.
fn look(vfs: &Arc<dyn Vfs>, disk: &SimDisk) -> Result<Option<StateReader>, String> {
    let before = disk.stats().changes;
    let seen = match StateReader::open_with(DIR, Arc::clone(vfs)) {
        Ok(reader) => Some(reader),
        Err(StoreError::InvalidInput(_)) => None,
        Err(error) => return Err(format!("reader: {error}")),
    };
    if disk.stats().changes != before {
        return Err("WRONG: a reader changed the disk".into());
    }
    Ok(seen)
}

/// Whether this opening could do nothing without space: where there is a log already, only one that lays the state out
/// anew, which makes a checkpoint. Any other has to show what is there.
pub(super) fn needs_space(disk: &SimDisk, error: &Detail) -> bool {
    let current = Path::new(DIR).join("wal/CURRENT");
    let has_log = disk.kind(&current).is_ok_and(|kind| kind.is_some());
    let checkpoints = Path::new(DIR).join("checkpoints");
    let lays_out = error.path().is_some_and(|path| path.starts_with(checkpoints));
    error.is_out_of_space() && (!has_log || lays_out)
}

/// Whether a store that was opened without space says so when it is to be changed.
pub(super) fn refuses_changes(opened: &mut Opened) -> Result<(), String> {
    if matches!(opened.store.health(), Health::Running) {
        // What the opening swept away made room for a log.
        return Ok(());
    }
    for core in &mut opened.cores {
        match core.put(b"on a full disk", b"") {
            Err(StoreError::Poisoned(detail)) if detail.is_out_of_space() => {}
            other => return Err(format!("WRONG: a change without a log: {other:?}")),
        }
    }
    Ok(())
}

/// Whether what was acknowledged is there when the power goes now and nothing arrives that was not synced.
pub(super) fn survives_power_cut(disk: &SimDisk, model: &Model) -> Result<(), String> {
    if disk.has_lost_names() {
        return Ok(());
    }
    let cut = disk.snapshot().image(&ImageId::default()).mount();
    let vfs: Arc<dyn Vfs> = Arc::new(cut.clone());
    let judge = |seen: StateReader| model.check_recovered(&seen_by(&seen));
    let judged = look_for(&vfs, &cut, model).and_then(|seen| seen.map_or(Ok(()), judge));
    judged.map_err(|error| format!("after a power cut: {error}"))
}

/// What a reader sees, all cores as one.
pub(super) fn seen_by(reader: &StateReader) -> Recovered {
    let report = reader.report();
    Recovered {
        epoch: report.recovery_point,
        state: vec![reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()],
        offsets: report.source_offsets.clone(),
        watermark: report.watermark,
    }
}

pub(super) fn same_as_reader(seen: &StateReader, found: &Recovered) -> Result<(), String> {
    let state = found.state.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let found = Recovered { state: vec![state], ..found.clone() };
    let seen = seen_by(seen);
    if seen == found {
        return Ok(());
    }
    let keys = |of: &Recovered| of.state.iter().map(State::len).sum::<usize>();
    Err(format!(
        "WRONG: a reader saw epoch {} with {} keys, {:?} {:?}; opening gave epoch {} with {} keys, {:?} {:?}",
        seen.epoch,
        keys(&seen),
        seen.offsets,
        seen.watermark,
        found.epoch,
        keys(&found),
        found.offsets,
        found.watermark
    ))
}
