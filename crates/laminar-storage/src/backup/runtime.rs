//! What drives the requests: a runtime for the thread that waits for them.
//!
//! There is one for each target and its clones, because a client keeps connections, and whoever uses a connection must
//! drive the runtime that it was made on.

use std::future::Future;

use tokio::runtime::{Builder, Handle, Runtime};

use super::error::{BackupError, Result};
use crate::error::Detail;

/// A private runtime, without threads of its own.
#[derive(Debug)]
pub(super) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    pub(super) fn new() -> Result<Self> {
        let made = Builder::new_current_thread().enable_all().build();
        made.map(|runtime| Self(Some(runtime))).map_err(|e| {
            let detail = Detail::new("could not begin to talk to the object store").caused_by(e);
            BackupError::Local(Box::new(
                detail.remedy("Raise the limit of open files (`ulimit -n`), then try again."),
            ))
        })
    }

    /// Does the work on the calling thread.
    pub(super) fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match &self.0 {
            Some(runtime) if Handle::try_current().is_err() => runtime.block_on(work),
            _ => Err(BackupError::InvalidInput(Box::new(
                Detail::new("backups block the calling thread, and this one belongs to an asynchronous runtime")
                    .remedy("Call this on a thread of its own, with `spawn_blocking` for example; nothing was changed."),
            ))),
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for it would panic on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}
