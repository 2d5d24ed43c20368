//! Backups of a running store: who makes them, and of what. How is the part of [`crate::backup`].

use std::io;
use std::sync::Arc;

use super::builder::StoreBuilder;
use super::error::StoreError;
use super::open::Layout;
use super::shared::Shared;
use crate::backup::Opening;
use crate::backup::worker::Backups;
use crate::ids::{CheckpointId, Epoch};
use crate::incremental::CheckpointReader;
use crate::incremental::recovery::locate::Located;
use crate::sync::thread::JoinHandle;

/// Starts the backups that the builder asks for; a checkpoint that is there already is the first.
pub(super) fn start(
    builder: &StoreBuilder,
    layout: &Layout,
    located: &Located,
    opening: Option<Opening>,
    shared: &Shared,
) -> io::Result<Option<JoinHandle<()>>> {
    let (Some(plan), Some(opening)) = (builder.backups(), opening) else { return Ok(None) };
    let backups = Arc::new(Backups::new(plan.clone(), builder.vfs_ref(), &layout.checkpoints, opening));
    if let Some(newest) = located.metadata() {
        backups.checkpointed(CheckpointId(newest.id), newest.size_bytes);
    }
    if shared.backups.set(Arc::clone(&backups)).is_err() {
        return Ok(None);
    }
    backups.start().map(Some)
}

impl Shared {
    /// Makes a checkpoint of the durable epoch and opens it before anybody can remove it.
    pub(crate) fn checkpoint_to_read(&self) -> Result<(CheckpointReader, Opening), StoreError> {
        self.with_checkpointer(|checkpointer| {
            self.checkpoint_with(checkpointer)?;
            checkpointer.open_newest()
        })
    }

    /// As [`Self::checkpoint_to_read`], of exactly this epoch.
    pub(crate) fn checkpoint_at_to_read(
        &self,
        epoch: Epoch,
    ) -> Result<(CheckpointReader, Opening), StoreError> {
        self.with_checkpointer(|checkpointer| {
            self.checkpoint_exactly(checkpointer, epoch)?;
            let opened = checkpointer.open_newest()?;
            self.release(epoch);
            Ok(opened)
        })
    }
}
