//! The durability protocol of `laminar-storage` as a model that is checked in every state.
//!
//! It is for finding out whether the *order of steps* is right: sealing, group commit, checkpoints, cutting the log,
//! and opening after a crash at any step, also of the opening. It is not the code, and proves nothing about bytes,
//! checksums or threads; the simulated disk, loom and shuttle look at those.
//!
//! # What a step stands for
//!
//! | step of the model | in `crates/laminar-storage/src/` |
//! |---|---|
//! | `Put`, `Seal` | `CoreStore::put`, `seal_epoch`; the ring and the writer's buffer are one, both die with the process |
//! | `Flush` | `CoreWalWriter::flush`, before anybody asks for a sync |
//! | `BeginSync`, `SyncCore`, `SyncFails`, `Ack` | `Drain::turn`, `sync_writers`, `Durable::publish`, `Durable::poison` |
//! | `Write`, `Sync`, `Rename`, `Publish` | `Checkpointer::apply`, and `write`, `sync`, `publish` of `incremental/publish.rs` |
//! | `Retire`, `Remove` | `cleanup_old_checkpoints`: rename to trash, sync, remove |
//! | `Unlink`, `UnlinkDurable` | `truncate_segments`, up to `Published::wal_floor` |
//! | `Open` | `locate`, `Survey::of`, `Plan::make`, `load_cores`: [`recovery::plan`] |
//! | `OpenStep` at `Checkpoints` | `IncrementalCheckpointManager::open_on` |
//! | `OpenCore` at `Logs`, `OpenStep` at `LogDirectory` | `make_durable` of `per_core_wal/incarnation.rs` |
//! | `OpenCore` at `Create`, then `Names`, `Current`, `CurrentDurable` | `begin` of `per_core_wal/incarnation.rs` |
//! | `Kill`, `PowerCut` | the machine |
//! | `Rot` | a manifest that cannot be read any more |
//!
//! # What was made simpler
//!
//! - A core changes something at most once in an epoch. What the change was is the incarnation that made it.
//! - Segments do not roll within an incarnation. Instead the log is cut at any record, which allows more than
//!   cutting at segments does.
//! - A record is written whole or not at all; a power cut takes any end of what is not durable, or one record out
//!   of it. Where a torn record ends is the business of `format` and of the truth table.
//! - Sequences are counted per core. In the code an incarnation begins above those of all cores.
//! - Checkpoints are never merged, so that every one needs the files of all before.
//! - Confirm records, the note of a clean end, and another number of cores are left out.
//! - Of what is unfinished under a temporary name nothing is left after a crash; the next opening would sweep it.
//! - [`Bounds::coarse`] takes a change and its seal as one step.
//! - Cores are interchangeable: states that differ in their order only are one.

pub mod crash;
pub mod disk;
pub mod properties;
pub mod recovery;
pub mod rules;
pub mod steps;
pub mod world;
pub mod worlds;

use stateright::{Model, Property};

pub use rules::{Bounds, Broken};
pub use steps::{Rules, Step};
pub use world::World;

/// The protocol within bounds, with all its rules or one of them broken.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Bounds and rules.
    pub rules: Rules,
}

impl Protocol {
    /// The protocol as it is.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { rules: Rules { bounds, broken: None } }
    }

    /// The protocol with a rule broken.
    #[must_use]
    pub fn breaking(bounds: Bounds, rule: Broken) -> Self {
        Self { rules: Rules { bounds, broken: Some(rule) } }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.rules.bounds.cores)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.rules.steps(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        self.rules.take(world, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::properties(self)
    }
}
