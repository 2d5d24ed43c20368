//! Faults on request: which operation fails, how, and what that leaves behind.

use std::io;

use rustix::io::Errno;

/// How many bytes of a write or read happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// A single byte.
    One,
    /// Half of them.
    Half,
    /// All but one.
    AllButOne,
}

impl Short {
    pub(super) fn of(self, len: usize) -> usize {
        match self {
            Self::One => 1.min(len),
            Self::Half => len.div_ceil(2),
            Self::AllButOne => len.saturating_sub(1).max(1).min(len),
        }
    }
}

/// What a failed sync leaves on the disk of what it should have made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The first half of the pending items.
    FirstHalf,
    /// The second half of the pending items: later bytes without earlier ones.
    SecondHalf,
    /// Everything: it arrived, and still the error came.
    All,
}

impl Keep {
    pub(super) fn keeps(self, index: usize, count: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::FirstHalf => index < count / 2,
            Self::SecondHalf => index >= count / 2,
            Self::All => true,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Input/output error, without any effect. Every operation.
    Eio,
    /// Input/output error although the operation took effect: the answer was lost. Every operation
    /// that changes something.
    EioAfter,
    /// No space left, without any effect. Operations that may need space: writes, growing, syncs of
    /// files, new entries.
    Enospc,
    /// Interrupted, without any effect. Reads and writes.
    Eintr,
    /// Fewer bytes are written than asked for.
    ShortWrite(Short),
    /// Fewer bytes are read than asked for.
    ShortRead(Short),
    /// A sync fails and what was pending counts as clean from then on, as on Linux: it is lost but
    /// for `keep`, and the next sync succeeds without writing it.
    SyncDropsAndCleans {
        /// What reached the disk all the same.
        keep: Keep,
        /// Whether reads after the failure see the disk's bytes; otherwise they see what was written.
        reads_old: bool,
    },
}

/// For how long a fault is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// That operation only.
    Once,
    /// That operation and all later ones the fault applies to.
    Forever,
}

/// What an operation is to a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Look,
    Write,
    Grow,
    NewEntry,
    Change,
    SyncFile,
    SyncDir,
}

impl Class {
    pub(super) fn mutates(self) -> bool {
        !matches!(self, Self::Read | Self::Look)
    }
}

impl Fault {
    fn applies_to(self, class: Class) -> bool {
        match self {
            Self::Eio => true,
            Self::EioAfter => class.mutates(),
            Self::Enospc => matches!(class, Class::Write | Class::Grow | Class::NewEntry | Class::SyncFile),
            Self::Eintr => matches!(class, Class::Read | Class::Write),
            Self::ShortWrite(_) => class == Class::Write,
            Self::ShortRead(_) => class == Class::Read,
            Self::SyncDropsAndCleans { .. } => matches!(class, Class::SyncFile | Class::SyncDir),
        }
    }

    /// The error of a fault that prevents any effect.
    pub(super) fn immediate(self) -> Option<io::Error> {
        match self {
            Self::Eio => Some(Errno::IO.into()),
            Self::Enospc => Some(Errno::NOSPC.into()),
            Self::Eintr => Some(Errno::INTR.into()),
            _ => None,
        }
    }
}

/// A fault to come, and how often it came.
#[derive(Debug)]
struct Planned {
    op: u64,
    fault: Fault,
    duration: Duration,
    fired: u64,
}

impl Planned {
    fn is_due(&self, op: u64) -> bool {
        match self.duration {
            Duration::Once => self.op == op,
            Duration::Forever => self.op <= op,
        }
    }
}

/// The faults to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<Planned>,
    fired: u64,
}

impl Faults {
    pub(super) fn plan(&mut self, op: u64, fault: Fault, duration: Duration) {
        self.planned.push(Planned { op, fault, duration, fired: 0 });
    }

    /// The last one that was planned like this is over.
    pub(super) fn end(&mut self, op: u64, fault: Fault) {
        if let Some(at) = self.planned.iter().rposition(|planned| (planned.op, planned.fault) == (op, fault))
        {
            self.planned.remove(at);
        }
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    pub(super) fn fired(&self) -> u64 {
        self.fired
    }

    pub(super) fn has_fired(&self, op: u64, fault: Fault) -> bool {
        self.planned.iter().any(|planned| (planned.op, planned.fault) == (op, fault) && planned.fired > 0)
    }

    pub(super) fn at(&mut self, op: u64, class: Class) -> Option<Fault> {
        let due = |planned: &&mut Planned| planned.is_due(op) && planned.fault.applies_to(class);
        let planned = self.planned.iter_mut().find(due)?;
        planned.fired += 1;
        self.fired += 1;
        Some(planned.fault)
    }
}
