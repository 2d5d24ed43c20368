//! Being asked to stop, while waiting for a network.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};

use super::error::{BackupError, Result};
use crate::error::Detail;

/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// A wish to stop, which anybody may have at any time.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error once it is asked to stop.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_asked() { Err(stopped()) } else { Ok(()) }
    }

    /// Runs the work, and gives it up where it waits when asked to stop.
    pub(super) async fn unless_asked<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let asked = async {
            while !self.is_asked() {
                tokio::time::sleep(LOOK).await;
            }
        };
        match select(pin!(work), pin!(asked)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(stopped()),
        }
    }
}

fn stopped() -> BackupError {
    let detail = Detail::new("the backup was stopped before it was complete");
    BackupError::Stopped(Box::new(
        detail.remedy("Nothing is wrong: the next one goes on from what is there."),
    ))
}
