//! A disk that fails once, under a log: a sync that loses what it was to make durable, or a write for which there is no room.

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
}

impl Operation {
    /// What the system says then: EIO, or ENOSPC.
    pub fn code(self) -> i32 {
        match self {
            Self::Sync => 5,
            Self::Write => 28,
        }
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
        let operation = if self.operation == Operation::Sync { "sync" } else { "write" };
        write!(f, "{operation}:{}:{}", self.skip, self.after)
    }
}

impl FromStr for Failing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (operation, numbers) = text.split_once(':')?;
            let (skip, after) = numbers.split_once(':')?;
            let operation = match operation {
                "sync" => Operation::Sync,
                "write" => Operation::Write,
                _ => return None,
            };
            Some(Self { operation, skip: skip.parse().ok()?, after: after.parse().ok()? })
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

    /// Asked before this is done to a file: fails once.
    pub fn strikes(&self, operation: Operation, path: &Path) -> io::Result<()> {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let log = path.extension().is_some_and(|extension| extension == "log");
        let Some(failing) = due.as_mut().filter(|failing| log && failing.operation == operation) else {
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
