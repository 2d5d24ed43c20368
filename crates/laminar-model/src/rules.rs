//! How large the model is, and which rule it breaks on purpose.

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Cores.
    pub cores: usize,
    /// The largest epoch number; crashes leave gaps in them.
    pub epochs: u8,
    /// Checkpoints.
    pub checkpoints: u8,
    /// Checkpoints that are kept.
    pub retained: u8,
    /// Process deaths and power cuts together.
    pub crashes: u8,
    /// Failing syncs.
    pub failing_syncs: u8,
    /// Checkpoints whose manifest goes bad.
    pub rotten: u8,
    /// In every epoch every core changes something, in one step with the seal, and Ring 1 writes only to sync.
    pub coarse: bool,
}

/// A rule of the protocol, to be broken: the checker has to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Acknowledged once one core is synced (I2).
    AckBeforeAllSynced,
    /// Acknowledged once it is written, before any sync (I2).
    AckBeforeSync,
    /// The durable epoch is that of the fastest core (I2).
    AckFastestCore,
    /// A failed sync is tried again instead of poisoning the store (I11).
    RetryFailedSync,
    /// Recovery lands on the minimum over the cores whose newest segment has a barrier (I3).
    MinimumOverAnsweringCores,
    /// What recovery exposes is not synced (I2).
    ExposeUnsynced,
    /// It is synced, but not written again before (I11).
    ExposeWithoutRewriting,
    /// The new segments do not say what is void (I5).
    NoCut,
    /// The new segments' names are not durable before the first new record is written (I5).
    CutNotDurable,
    /// `CURRENT` is replaced before the new segments' names are durable (I3, I5).
    CurrentBeforeSegments,
    /// New epochs begin behind the recovery point, not above everything ever seen (I5).
    ReuseEpochs,
    /// New records go behind the torn tail of the old segment (I8).
    AppendToOldSegment,
    /// The log is cut up to a checkpoint that is not published yet (I6).
    TruncateBeforePublish,
    /// The log is cut up to the newest checkpoint (I6).
    TruncateToNewest,
    /// The log is cut up to a checkpoint before, which nobody looked at again (I6).
    TruncateToUnchecked,
    /// Checkpoints are published without a sync of their files (I6).
    PublishUnsynced,
    /// A checkpoint contains epochs that are sealed and not durable (I6).
    CheckpointAheadOfLog,
    /// With an old checkpoint go the files that it wrote, whoever else links to them (I13).
    CollectByAge,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::AckBeforeAllSynced,
        Self::AckBeforeSync,
        Self::AckFastestCore,
        Self::RetryFailedSync,
        Self::MinimumOverAnsweringCores,
        Self::ExposeUnsynced,
        Self::ExposeWithoutRewriting,
        Self::NoCut,
        Self::CutNotDurable,
        Self::CurrentBeforeSegments,
        Self::ReuseEpochs,
        Self::AppendToOldSegment,
        Self::TruncateBeforePublish,
        Self::TruncateToNewest,
        Self::TruncateToUnchecked,
        Self::PublishUnsynced,
        Self::CheckpointAheadOfLog,
        Self::CollectByAge,
    ];
}
