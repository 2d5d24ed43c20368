//! Ctrl-C and SIGTERM: the first asks the job to stop cleanly, the second ends the process at once.
//! Both are safe; the first only saves the time of replaying the log at the next start.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::error::{CliError, Result};

/// Exit code after a second signal.
const EXIT_NOW: i32 = 130;

/// Installs the handlers. The flag becomes true at the first signal.
pub fn install() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Order matters: the first handler acts only if the second has already run once.
        flag::register_conditional_shutdown(signal, EXIT_NOW, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .map_err(|e| CliError::failure(format!("could not install a signal handler: {e}")))?;
    }
    // A file that reaches the limit of the shell (`ulimit -f`) is an error that says so, not a death without a word.
    flag::register(SIGXFSZ, Arc::default())
        .map_err(|e| CliError::failure(format!("could not install a signal handler: {e}")))?;
    Ok(stop)
}
