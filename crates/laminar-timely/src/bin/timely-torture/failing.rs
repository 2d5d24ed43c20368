//! A disk that fails once, under a log: a sync that loses what it was to make durable, or a write for which there is no room. And a
//! process that dies when it has changed a name, before it can sync the directory.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What of a log fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Sync,
    Write,
    /// A file or directory was created, renamed or removed.
    Name,
}

impl Operation {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Sync, "sync"), (Self::Write, "write"), (Self::Name, "name")];

    /// What the system says of a disk that fails so: EIO, or ENOSPC.
    pub fn code(self) -> i32 {
        if self == Self::Write { 28 } else { 5 }
    }
}

/// One failure of one process: `sync:2:17`.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    pub operation: Operation,
    /// So many of these succeed first, so that it is not always the first worker's log.
    pub skip: u64,
    /// Epochs of input before; 0 for while the state is opened.
    pub after: u64,
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Operation::ALL.iter().find(|(operation, _)| *operation == self.operation);
        let operation = name.map_or("", |(_, name)| name);
        write!(f, "{operation}:{}:{}", self.skip, self.after)
    }
}

impl FromStr for Failing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (operation, numbers) = text.split_once(':')?;
            let (skip, after) = numbers.split_once(':')?;
            let (operation, _) = Operation::ALL.iter().find(|(_, name)| *name == operation)?;
            Some(Self { operation: *operation, skip: skip.parse().ok()?, after: after.parse().ok()? })
        };
        parse().ok_or_else(|| format!("{text:?} is no failure such as sync:0:17"))
    }
}

/// The failure of a disk, from when it is due until it has come.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<Failing>>);

impl Trouble {
    /// It is to come now.
    pub fn is_due(&self, failing: Failing) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failing);
    }

    /// The name of this was changed: ends the process once, as a kill at this moment would.
    pub fn may_die(&self, path: &Path) {
        if self.strikes(Operation::Name, path).is_err() {
            println!("dies when the name of {} was changed", path.display());
            std::process::abort();
        }
    }

    /// Asked before this is done to a file: fails once.
    pub fn strikes(&self, operation: Operation, path: &Path) -> io::Result<()> {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let concerned =
            operation == Operation::Name || path.extension().is_some_and(|extension| extension == "log");
        let Some(failing) = due.as_mut().filter(|failing| concerned && failing.operation == operation) else {
            return Ok(());
        };
        if failing.skip > 0 {
            failing.skip -= 1;
            return Ok(());
        }
        *due = None;
        Err(io::Error::from_raw_os_error(operation.code()))
    }
}
