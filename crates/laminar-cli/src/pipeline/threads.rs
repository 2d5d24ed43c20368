//! Starting the threads of a job.

use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::CliError;

/// Starts a thread that tools can tell from the others.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    #[cfg(test)]
    tests::refuse(name)?;
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work)
}

/// A job cannot go on without this thread.
pub fn not_started(error: &io::Error) -> CliError {
    CliError::failure(format!("could not start a thread: {error}")).remedy(
        "Use fewer --cores, or raise the limit of processes (`ulimit -u`). What was durable before is.",
    )
}

#[cfg(test)]
pub mod tests {
    use std::cell::RefCell;
    use std::io;

    thread_local! {
        /// Threads that cannot be started, by the start of their names. All are started by the one
        /// thread that runs the job, so that tests beside it are not concerned.
        static REFUSED: RefCell<String> = const { RefCell::new(String::new()) };
    }

    /// Lets threads with such a name fail to start, as they do when the system has too many.
    pub fn refuse_all(name: &str) {
        REFUSED.replace(name.to_owned());
    }

    pub(super) fn refuse(name: &str) -> io::Result<()> {
        const EAGAIN: i32 = 11;
        let refused = REFUSED.with_borrow(|refused| !refused.is_empty() && name.starts_with(refused));
        if refused { Err(io::Error::from_raw_os_error(EAGAIN)) } else { Ok(()) }
    }
}
