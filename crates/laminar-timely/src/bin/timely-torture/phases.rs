//! How far a process of the job is. It says so on its log, and the driver reads there what a kill met.

#[cfg(feature = "object-store")]
use std::collections::BTreeSet;
use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// What a process does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It starts, and looks for the others.
    Connecting,
    /// The processes agree where the job goes on, and open their states.
    Recovering,
    /// The state of another size is distributed anew.
    Distributing,
    /// The first backup in a new size is made.
    FirstBackup,
    /// Sinks are opened, cut back and given what they had not committed.
    OpeningSinks,
    Running,
    /// All input was sent: what is on its way becomes durable and is committed, and the last backup is made.
    Closing,
    Ended,
}

const ALL: [Phase; 8] = [
    Phase::Connecting,
    Phase::Recovering,
    Phase::Distributing,
    Phase::FirstBackup,
    Phase::OpeningSinks,
    Phase::Running,
    Phase::Closing,
    Phase::Ended,
];

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "before it was connected",
            Self::Recovering => "while it recovered",
            Self::Distributing => "while states were distributed",
            Self::FirstBackup => "before the first backup in a new size",
            Self::OpeningSinks => "while sinks were opened",
            Self::Running => "while it ran",
            Self::Closing => "while it closed",
            Self::Ended => "after it had ended",
        }
    }

    /// The line that a process says when it comes there.
    pub fn line(self) -> String {
        format!("phase: {}", self.name())
    }

    /// Says that this process has come there.
    pub fn begins(self) {
        println!("{}", self.line());
    }

    /// How far a process is that said this.
    pub fn of(said: &str) -> Self {
        let known = |line: &str| ALL.into_iter().find(|phase| line == phase.line());
        said.lines().rev().find_map(known).unwrap_or(Self::Connecting)
    }
}

/// What a process says when it begins to copy its part of a backup, behind its checkpoint.
pub const COPIES: &str = "a backup is copied";
/// What the library logs when it is copied, with the epoch.
pub const BACKED_UP: &str = "log: backed up epoch=";
/// What it logs when there will be no more backups of this life.
#[cfg(feature = "object-store")]
pub const REFUSED: &str = "ends=true";

/// Whether a process that said this had begun to copy a backup and was not done with it.
pub fn copies(said: &str) -> bool {
    let last = said.lines().rev().find(|line| *line == COPIES || line.starts_with(BACKED_UP));
    last == Some(COPIES)
}

/// The epochs that a process that said this has backed up its part of.
#[cfg(feature = "object-store")]
pub fn backed_up(said: &str) -> BTreeSet<u64> {
    let epochs = said.lines().filter_map(|line| line.strip_prefix(BACKED_UP));
    epochs.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect()
}

/// Puts what the library logs on the log of this process, one line for each event.
pub struct Log;

impl Log {
    pub fn begins() -> Result<(), String> {
        tracing::subscriber::set_global_default(Self).map_err(|e| e.to_string())
    }
}

/// An event as a line.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log: {}{}", self.message, self.fields)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("laminar")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if line.message.starts_with("the first backup in this size") {
            Phase::FirstBackup.begins();
        }
        println!("{line}");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
