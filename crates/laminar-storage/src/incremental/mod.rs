//! Incremental checkpoints: only what changed is written, every directory stands on its own.

pub mod changelog;

pub use changelog::{
    ChangelogConsumer, ChangelogProducer, StateChangelogBuffer, StateChangelogEntry, StateOp,
    UnknownStateOp,
};
