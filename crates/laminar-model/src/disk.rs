//! What stands on the disk: records, segments, checkpoints.
//!
//! Each has two views at once: what the operating system shows, which survives the death of the process,
//! and what of it is durable, which survives a power cut.

/// Epoch numbers are below this; 0 is "none yet".
pub const EPOCHS: usize = 7;
/// Checkpoint ids are below this; 0 is "none".
pub const CHECKPOINTS: usize = 4;

/// What a core's state is: for every epoch, a bit for each incarnation whose change of that epoch is in it. Two
/// bits in one epoch are two histories mixed under one number.
pub type Content = [u8; EPOCHS];

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A change.
    Change,
    /// The end of its epoch. Carries the durable epoch that the writer knew.
    Barrier(u8),
}

/// A record of a core's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Its epoch.
    pub epoch: u8,
    /// Its number in the core's log; never used again.
    pub sequence: u8,
    /// What it says.
    pub kind: Kind,
}

/// The records that one incarnation wrote to one core's log, and the header in front of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment {
    /// The opening that made it.
    pub incarnation: u8,
    /// Of earlier incarnations, epochs above this are void.
    pub void_above: u8,
    /// Last epoch closed on this core before it.
    pub sealed: u8,
    /// Largest epoch and sequence seen when it was made.
    pub last_epoch: u8,
    /// See `last_epoch`.
    pub last_sequence: u8,
    /// How many records of the segment before it count.
    pub previous_len: u8,
    /// Its directory entry is durable.
    pub named: bool,
    /// Records, as the operating system shows them; `None` where a power cut took one and left later ones.
    pub slots: Vec<Option<Record>>,
    /// Records that survive a power cut.
    pub durable: u8,
    /// Records that the operating system believes to be on the disk; more than are after a failed sync.
    pub clean: u8,
}

impl Segment {
    /// Number of records, as the operating system shows it.
    #[must_use]
    pub fn len(&self) -> u8 {
        u8::try_from(self.slots.len()).unwrap_or(u8::MAX)
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The records up to the first one that is missing.
    pub fn readable(&self) -> impl Iterator<Item = Record> + '_ {
        self.slots.iter().map_while(|slot| *slot)
    }

    /// How many they are.
    #[must_use]
    pub fn readable_len(&self) -> u8 {
        u8::try_from(self.readable().count()).unwrap_or(u8::MAX)
    }

    /// Everything dirty goes to the disk. What a failed sync dropped is not dirty any more.
    pub fn sync(&mut self) {
        if self.durable == self.clean {
            self.durable = self.len();
        }
        self.clean = self.len();
    }

    /// A sync that fails: the pages are dropped and count as clean.
    pub fn sync_fails(&mut self) {
        self.clean = self.len();
    }

    /// What may be lost is written again, and then synced.
    pub fn write_again_and_sync(&mut self) {
        self.clean = self.durable;
        self.sync();
    }

    /// In how many ways a power cut can leave it: every beginning of what is not durable; and each beginning
    /// that lacks one record and has all behind it.
    #[must_use]
    pub fn power_cut_outcomes(&self) -> u32 {
        match u32::from(self.len() - self.durable) {
            0 => 1,
            volatile => 2 * volatile,
        }
    }

    /// Leaves it as the given power cut does.
    pub fn cut_power(&mut self, outcome: u32) {
        let volatile = usize::from(self.len() - self.durable);
        let outcome = usize::try_from(outcome).unwrap_or(0);
        let durable = usize::from(self.durable);
        if outcome <= volatile {
            self.slots.truncate(durable + outcome);
        } else if let Some(slot) = self.slots.get_mut(durable + outcome - volatile - 1) {
            *slot = None;
        }
        self.durable = self.len();
        self.clean = self.len();
    }
}

/// How far a checkpoint has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// There is none.
    #[default]
    Absent,
    /// Under its temporary name. A crash of any kind leaves only what the next opening sweeps.
    Temporary,
    /// Under its final name, which a power cut may take away again.
    Renamed,
    /// Under its final name for good.
    Published,
    /// Renamed to trash, which a power cut may take back.
    Trash,
    /// Removed.
    Gone,
}

/// A checkpoint directory. What its files hold of each core stands with the core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checkpoint {
    /// How far it has come.
    pub stage: Stage,
    /// The epoch whose end it holds.
    pub epoch: u8,
    /// The state files it consists of: a bit for each checkpoint that wrote one.
    pub files: u8,
    /// What it wrote itself is durable.
    pub synced: bool,
    /// Its manifest went bad.
    pub rotten: bool,
}

impl Checkpoint {
    /// It has its final name.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        matches!(self.stage, Stage::Renamed | Stage::Published)
    }
}

/// The bit of a checkpoint id or an incarnation.
#[must_use]
pub fn bit(number: u8) -> u8 {
    1 << number
}
