//! Beginning a store with the state of a savepoint.
//!
//! The savepoint becomes the first checkpoint of the new store before anything else happens, so that
//! opening then is the ordinary case of a checkpoint and an empty log. A crash before its publication leaves a
//! directory without a state, one after it the fork. Trying again is the same as going on, as long as nothing
//! was changed.

use std::io;
use std::path::Path;

use super::builder::StoreBuilder;
use super::error::StoreError;
use super::open::{Layout, LoadFailure};
use crate::error::io_detail;
use crate::incremental::recovery::locate::Located;
use crate::incremental::savepoint::{Imported, import, in_use};
use crate::per_core_wal::recovery::identity::{CLOSED, CURRENT};
use crate::per_core_wal::segment::list_segments;
use crate::vfs::Vfs;

/// A store that is to begin with a savepoint; its checkpoint is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fork(Imported);

impl Fork {
    /// Imports the savepoint that the builder names, if it names one. The caller has the locks.
    pub(crate) fn begin(builder: &StoreBuilder, layout: &Layout) -> Result<Option<Self>, StoreError> {
        let Some(savepoint) = builder.savepoint() else { return Ok(None) };
        let vfs = builder.vfs_ref().as_ref();
        let has_log = has_log(vfs, &layout.wal)
            .map_err(|e| StoreError::Io(Box::new(io_detail("could not look at the log", &layout.wal, e))))?;
        Ok(Some(Self(import(vfs, savepoint, &layout.checkpoints, has_log)?)))
    }

    /// A savepoint that was imported before may only be opened with again while nothing came after it.
    pub(crate) fn check_unused(&self, located: &Located, layout: &Layout) -> Result<(), LoadFailure> {
        let (plan, epoch) = (&located.plan, located.metadata().map(|metadata| metadata.epoch));
        let unused = !plan.survey.has_records() && epoch == Some(self.0.epoch.0);
        if !self.0.existed || unused {
            return Ok(());
        }
        Err(LoadFailure::Store(in_use(&layout.checkpoints).into()))
    }
}

/// Whether a log was ever begun in the directory.
fn has_log(vfs: &dyn Vfs, wal: &Path) -> io::Result<bool> {
    for name in [CURRENT, CLOSED] {
        if vfs.kind(&wal.join(name))?.is_some() {
            return Ok(true);
        }
    }
    Ok(!list_segments(vfs, wal)?.is_empty())
}
