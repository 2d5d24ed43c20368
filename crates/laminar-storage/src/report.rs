//! What recovery did, in full.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::ids::{CheckpointId, CoreId, Epoch};

/// What recovery did. Every opening returns one, also of a new directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The epoch recovery landed on: the state is exactly that of its end.
    pub recovery_point: Epoch,
    /// The checkpoint it started from.
    pub checkpoint: Option<CheckpointId>,
    /// Newer checkpoints that were damaged and passed over, because the log still covered them.
    pub checkpoints_skipped: Vec<CheckpointId>,
    /// Per core of the log, what was replayed and cut.
    pub cores: Vec<CoreReport>,
    /// Live keys recovered.
    pub keys: u64,
    /// Where to go on reading each source.
    pub source_offsets: BTreeMap<String, u64>,
    /// The smallest watermark of the cores that have one.
    pub watermark: Option<i64>,
    /// Was the recovered state compared with the digest that was stored with it?
    pub digest: DigestCheck,
    /// The store had another number of cores before, and its keys were distributed anew.
    pub resharded_from: Option<usize>,
    /// How long each phase took.
    pub phases: PhaseTimes,
}

/// One core's part of a recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CoreReport {
    /// The core of the log.
    pub core: CoreId,
    /// Changes replayed from the log.
    pub replayed: u64,
    /// Bytes of the log that they and the records beside them took.
    pub replayed_bytes: u64,
    /// Bytes cut off the end of the log because a crash tore them; they were never acknowledged.
    pub dropped_bytes: u64,
    /// Last epoch that this core had closed; epochs above the recovery point were discarded.
    pub sealed_epoch: Epoch,
    /// Case of the truth table (`docs/RECOVERY.md`) at the end of the log.
    pub case: Option<char>,
}

/// Was the recovered state compared with the digest stored with it?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum DigestCheck {
    /// It was, and they agree. (If they did not, recovery would have failed.)
    Verified,
    /// None is stored that is the digest of the whole state: it is empty, or its last changes were written by the low-level
    /// functions, or belong to an epoch that was never closed. What is stored before them was compared all the same.
    #[default]
    NotStored,
}

/// How long each phase of a recovery took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PhaseTimes {
    /// Finding and checking checkpoint and log, and filling the state from them.
    pub recover: Duration,
    /// Of that, reading the log for the first time, to learn where it ends and what was acknowledged.
    pub survey: Duration,
    /// Making it durable and beginning a new incarnation.
    pub begin: Duration,
}
