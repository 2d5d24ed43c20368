//! What a person sees when something is wrong: what, where, and what to do now.
//!
//! Every failure of the command ends as one [`CliError`]; `main` prints it and turns its
//! [`Kind`] into the exit code. Nothing else prints errors.

use std::fmt;
use std::io;
use std::path::Path;

/// Linux's numbers for errors that the standard library has no stable kind for.
const EIO: i32 = 5;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// The result of everything that can fail here.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

/// What the caller of the command should conclude. Decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The job or the store failed, or is damaged: exit code 1.
    Failure,
    /// The command line asks for something that makes no sense: exit code 2.
    Usage,
    /// `diff` found a difference, and has told it: exit code 1, nothing printed.
    Different,
    /// Whoever read our output stopped reading: exit code 0, nothing printed.
    BrokenPipe,
}

/// One failure, told in full.
#[derive(Clone, Debug)]
pub struct CliError {
    kind: Kind,
    what: String,
    remedy: String,
}

impl CliError {
    /// The job, the input or the store is at fault. `what` has no full stop.
    pub fn failure(what: impl Into<String>) -> Self {
        Self { kind: Kind::Failure, what: what.into(), remedy: String::new() }
    }

    /// The command line is at fault. `what` has no full stop.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, what: what.into(), remedy: String::new() }
    }

    /// A file operation failed.
    pub fn io(action: &str, path: &Path, source: &io::Error) -> Self {
        let remedy = match (source.kind(), source.raw_os_error()) {
            (_, Some(EIO)) => "Check the device and the system log, then run the same command again.",
            (_, Some(ENFILE | EMFILE)) => {
                "Raise the limit of open files (`ulimit -n`), then run the same command again."
            }
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, _) => "Check the path.",
            (io::ErrorKind::PermissionDenied, _) => "Give this user permission, then try again.",
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
                "Free some space, then run the same command again; it continues where it stopped."
            }
            (io::ErrorKind::FileTooLarge, _) => {
                "Raise the limit of the size of files (`ulimit -f`), then run the same command again."
            }
            (io::ErrorKind::ReadOnlyFilesystem, _) => {
                "Mount the file system writable, or use another directory."
            }
            _ => "",
        };
        Self::failure(format!("could not {action} {}: {source}", path.display())).remedy(remedy)
    }

    /// Writing to standard output failed; a closed pipe is not an error to anybody.
    pub fn stdout(source: &io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Self { kind: Kind::BrokenPipe, what: String::new(), remedy: String::new() };
        }
        Self::failure(format!("could not write to standard output: {source}"))
    }

    /// There is a difference, which is no failure.
    pub fn different() -> Self {
        Self { kind: Kind::Different, what: String::new(), remedy: String::new() }
    }

    /// As a failure of `diff`, where 1 means a difference: exit code 2.
    #[must_use]
    pub fn into_trouble(self) -> Self {
        if self.kind == Kind::Failure { Self { kind: Kind::Usage, ..self } } else { self }
    }

    /// Something that the program's own logic excludes.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::failure(format!("internal error: {what}")).remedy(
            "This is a bug. The state is safe up to the last durable epoch; run the same command again.",
        )
    }

    /// Says what to do now, in full sentences.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// What the caller should conclude.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What happened, without the remedy.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::BrokenPipe => 0,
            Kind::Failure | Kind::Different => 1,
            Kind::Usage => 2,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.what.ends_with(['.', '?']) {
            f.write_str(".")?;
        }
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}
