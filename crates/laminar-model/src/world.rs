//! A state of the model: the disk, the process that works on it, and what the outside was told.

use crate::disk::{CHECKPOINTS, Checkpoint, Content, Record, Segment, bit};

/// One core: its log, its part of every checkpoint, and its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Core {
    /// Its log, oldest segment first.
    pub segments: Vec<Segment>,
    /// Records up to this sequence were removed, as the operating system shows it.
    pub begin: u8,
    /// The same, durably.
    pub begin_durable: u8,
    /// Per checkpoint: records up to this sequence are in it.
    pub cuts: [u8; CHECKPOINTS],
    /// Per checkpoint: what the file holds that it wrote for this core.
    pub files: [Content; CHECKPOINTS],
    /// What the program did and recovery did not discard: what has to come back, epoch by epoch.
    pub truth: Content,
    /// Memory: the epoch that changes belong to, and the last one sealed.
    pub epoch: u8,
    /// See `epoch`.
    pub sealed: u8,
    /// Memory: sequence of the last record.
    pub sequence: u8,
    /// Memory: records on their way, in the ring and in the writer's buffer.
    pub buffer: Vec<Record>,
    /// Memory: where in the newest segment the next record goes.
    pub tail: u8,
    /// Memory: done with the present step that all cores take.
    pub done: bool,
}

impl Core {
    /// The death of the process.
    pub fn forget(&mut self) {
        (self.epoch, self.sealed, self.sequence, self.tail, self.done) = (0, 0, 0, 0, false);
        self.buffer.clear();
    }

    /// Gives what is on its way to the operating system.
    pub fn flush(&mut self) {
        let Some(segment) = self.segments.last_mut() else { return };
        for record in self.buffer.drain(..) {
            let tail = usize::from(self.tail);
            match segment.slots.get_mut(tail) {
                Some(slot) => *slot = Some(record),
                None => segment.slots.push(Some(record)),
            }
            segment.durable = segment.durable.min(self.tail);
            segment.clean = segment.clean.min(self.tail);
            self.tail += 1;
        }
    }

    /// Segments whose names are there: all that are not removed.
    pub fn listed(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        let removed = |index: usize| {
            self.segments
                .get(index + 1)
                .is_some_and(|successor| self.begin > 0 && successor.last_sequence <= self.begin)
        };
        self.segments.iter().enumerate().filter(move |(index, _)| !removed(*index)).map(|(_, s)| s)
    }

    /// Largest epoch and sequence anywhere, behind a torn tail too.
    #[must_use]
    pub fn high_water(&self) -> (u8, u8) {
        self.segments.last().map_or((0, 0), |segment| {
            let seen = segment.slots.iter().flatten();
            seen.fold((segment.last_epoch, segment.last_sequence), |(epoch, sequence), record| {
                (epoch.max(record.epoch), sequence.max(record.sequence))
            })
        })
    }

    /// The segment that is written to.
    pub fn newest(&mut self) -> Option<&mut Segment> {
        self.segments.last_mut()
    }

    /// Forgets segments that are removed for good.
    pub fn drop_removed(&mut self) {
        let keep: Vec<_> = self.listed().cloned().collect();
        self.segments = keep;
    }
}

/// A step of an opening that has found its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenStep {
    /// The directory of checkpoints is synced, what is unfinished swept.
    Checkpoints,
    /// Every core's last segment is written again and synced.
    Logs,
    /// The directory of the log is synced.
    LogDirectory,
    /// Every core gets a new segment.
    Create,
    /// Their names are made durable.
    Names,
    /// `CURRENT` is replaced.
    Current,
    /// That is made durable.
    CurrentDurable,
}

/// What the checkpoint thread is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Job {
    /// Nothing.
    #[default]
    Idle,
    /// Checkpoint `.0` is written.
    Written(u8),
    /// It is synced.
    Synced(u8),
    /// It is renamed.
    Renamed(u8),
    /// It is published; checkpoint `victim` is too old. Then the log is cut up to `floor`.
    Retire {
        /// Which one goes.
        victim: u8,
        /// The checkpoint that the log may be cut up to, 0 for none.
        floor: u8,
    },
    /// The same, and the victim is trash.
    Retired {
        /// Which one goes.
        victim: u8,
        /// See [`Job::Retire`].
        floor: u8,
    },
    /// The log is cut.
    Truncate {
        /// See [`Job::Retire`].
        floor: u8,
    },
}

/// The memory of a running store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// Which opening it is.
    pub incarnation: u8,
    /// The durable epoch.
    pub durable: u8,
    /// A sync of all cores is under way; it makes this epoch durable.
    pub syncing: Option<u8>,
    /// A sync failed.
    pub poisoned: bool,
    /// The newest checkpoint it knows to be good, 0 for none.
    pub latest: u8,
    /// Checkpoints it was told to pass over.
    pub skipped: u8,
    /// The checkpoint thread.
    pub job: Job,
}

/// Who is at work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nobody.
    Down,
    /// An opening that has found its state and begins to write.
    Opening {
        /// What it does next.
        step: OpenStep,
        /// The recovery point it found.
        point: u8,
        /// The checkpoint it starts from, 0 for none.
        base: u8,
        /// The epoch that new changes get.
        first_epoch: u8,
    },
    /// A store.
    Running(Process),
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The cores, in an order of no meaning: they are interchangeable, and kept sorted.
    pub cores: Vec<Core>,
    /// Who is at work.
    pub phase: Phase,
    /// The incarnation that `CURRENT` names, as the operating system shows it.
    pub current: u8,
    /// The same, durably.
    pub current_durable: u8,
    /// The checkpoints, at their ids.
    pub checkpoints: [Checkpoint; CHECKPOINTS],
    /// State files that are gone or empty: a bit for each checkpoint that wrote one.
    pub lost_files: u8,
    /// The largest epoch that anybody was told to be durable, by an acknowledgement or by an opening.
    pub acked: u8,
    /// The point that every opening has to find until something new is sealed.
    pub pinned: Option<u8>,
    /// Crashes so far.
    pub crashes: u8,
    /// Failed syncs so far.
    pub failed_syncs: u8,
    /// Checkpoints gone bad so far.
    pub rotten: u8,
}

impl World {
    /// An empty directory.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self {
            cores: vec![Core::default(); cores],
            phase: Phase::Down,
            current: 0,
            current_durable: 0,
            checkpoints: Default::default(),
            lost_files: 0,
            acked: 0,
            pinned: None,
            crashes: 0,
            failed_syncs: 0,
            rotten: 0,
        }
    }

    /// Can the checkpoint be read?
    #[must_use]
    pub fn is_good(&self, id: u8) -> bool {
        let checkpoint = &self.checkpoints[usize::from(id)];
        checkpoint.is_listed() && !checkpoint.rotten && checkpoint.files & self.lost_files == 0
    }

    /// The ids of checkpoints under their final name, oldest first.
    pub fn listed(&self) -> impl DoubleEndedIterator<Item = u8> + '_ {
        let ids = 1..u8::try_from(CHECKPOINTS).unwrap_or(u8::MAX);
        ids.filter(|id| self.checkpoints[usize::from(*id)].is_listed())
    }

    /// What a checkpoint has of a core.
    #[must_use]
    pub fn checkpointed(&self, core: &Core, id: u8) -> Content {
        let mut content = Content::default();
        for (file, held) in (0..).zip(&core.files) {
            if self.checkpoints[usize::from(id)].files & bit(file) != 0 {
                content.iter_mut().zip(held).for_each(|(all, held)| *all |= held);
            }
        }
        content
    }
}
