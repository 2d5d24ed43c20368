//! Deliberate mistakes, one or more for each class of bug that the tests claim to catch.
//!
//! Without the feature `sabotage`, which only the scorecard turns on, [`sabotaged`] is `false` at compile
//! time and nothing of this is left. With it, the environment variable `LAMINAR_SABOTAGE` names the one
//! mistake that this process makes. `cargo run -p laminar-scorecard` makes each of them and shows which
//! test notices; a mistake that no test notices is a missing test.

/// Defines the mistakes: name, what it is, row of the catalogue in `docs/TESTING.md`, test that catches it.
macro_rules! sabotages {
    ($($row:literal $variant:ident $what:literal $target:literal $test:literal)*) => {
        /// A mistake to make.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Sabotage {$(
            #[doc = $what]
            $variant,
        )*}

        /// All mistakes.
        #[cfg(feature = "sabotage")]
        pub const ALL: &[Entry] = &[$(Entry {
            sabotage: Sabotage::$variant,
            name: stringify!($variant),
            row: $row,
            what: $what,
            target: $target,
            test: $test,
        }),*];
    };
}

/// A line of the scorecard.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The mistake.
    pub sabotage: Sabotage,
    /// Its name, as `LAMINAR_SABOTAGE` takes it.
    pub name: &'static str,
    /// The class of bug: a row of the catalogue.
    pub row: u8,
    /// What is done wrong.
    pub what: &'static str,
    /// The test program that notices: `package/target`.
    pub target: &'static str,
    /// The test in it.
    pub test: &'static str,
}

/// Is this mistake to be made?
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) const fn sabotaged(_: Sabotage) -> bool {
    false
}

/// Is this mistake to be made?
#[cfg(feature = "sabotage")]
pub(crate) fn sabotaged(sabotage: Sabotage) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Sabotage>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(chosen) == Some(sabotage)
}

/// The mistake that the environment names. A name that does not exist must not look like a mistake that
/// nothing notices, so it ends the process.
#[cfg(feature = "sabotage")]
fn chosen() -> Option<Sabotage> {
    let name = std::env::var("LAMINAR_SABOTAGE").ok().filter(|name| !name.is_empty())?;
    let entry = ALL.iter().find(|entry| entry.name == name);
    if entry.is_none() {
        eprintln!("LAMINAR_SABOTAGE={name}: there is no such mistake");
        std::process::exit(70);
    }
    entry.map(|entry| entry.sabotage)
}

sabotages! {
    1 SyncRetried "a failed sync is tried again, and believed" "" ""
    1 PoisonForgotten "a writer goes on after a failed write or sync" "" ""
    1 AcknowledgedBeforeSync "an epoch is acknowledged before its records are synced" "" ""
    1 LogSyncDropped "the log is never synced" "" ""
    2 SegmentNameNotSynced "the names of a new incarnation's segments are not synced" "" ""
    2 RollNotSynced "the name of the next segment is not synced" "" ""
    2 CheckpointNameNotSynced "the name of a checkpoint is not synced" "" ""
    2 CheckpointDirNotSynced "the names of a checkpoint's files are not synced" "" ""
    2 ParentNotSynced "the name of a new directory is not synced" "" ""
    3 SaltConstant "frames of every segment and incarnation carry the same salt" "" ""
    4 BoundaryUnchecked "a closed segment may be shorter than its successor says" "" ""
    4 GapIgnored "a missing segment in the chain counts as its beginning" "" ""
    5 TornTailKept "a torn tail counts as part of a closed segment" "" ""
    6 DamageIsEnd "damage in the last segment counts as a torn tail" "" ""
    8 LengthBelieved "a frame's length is allocated before it is checked" "" ""
    9 HeaderHalfChecked "a frame header's checksum leaves out epoch and sequence" "" ""
    9 PayloadUnchecked "a frame's payload is not checked" "" ""
    9 BlockUnchecked "a block of a state file is not checked" "" ""
    10 LogCutEarly "the log is cut whatever the checkpoint covers" "" ""
    10 LogCutToNewest "the log is cut up to the newest checkpoint, not the one before" "" ""
    10 CheckpointNotSynced "a checkpoint is published without a sync" "" ""
    10 NotReadBack "a checkpoint is not read back before the log is cut" "" ""
    11 UnsyncedLogCovered "re-sharding covers records that were never synced" "" ""
    12 MissingCoreIgnored "a core without segments counts as an empty one" "" ""
    12 FastestCoreAcknowledges "an epoch is acknowledged once the first core closed it" "" ""
    12 FastestCoreRecovers "recovery lands on the largest epoch that any core closed" "" ""
    13 OffsetsNotInCheckpoint "a checkpoint leaves out offsets and watermark" "" ""
    13 OffsetsInNextEpoch "offsets are written to the epoch after their changes" "" ""
    14 DiscardedEpochsReturn "epochs that a recovery discarded count again" "" ""
    14 EpochReused "numbers of discarded epochs are given to new ones" "" ""
    14 RecoveryNotDurable "recovery exposes records without syncing them" "" ""
    14 EndNotWrittenAgain "recovery syncs what a failed sync may have dropped, without writing it" "" ""
    14 ReplaySkipsOne "replay begins one record too late" "" ""
    14 DigestUnchecked "a recovered state with the wrong digest is accepted" "" ""
    15 FullRingDrops "a change that finds the ring full is dropped" "" ""
    15 FirstVersionWins "coalescing keeps the first version of a key" "" ""
    16 RawClock "timestamps come from the clock as it is" "" ""
    17 LockIgnored "somebody else's lock is ignored" "" ""
    18 FailedWriteKept "what a failed write may have written is written again later" "" ""
    19 ShortWriteIsWhole "a short write counts as a whole one" "" ""
    21 RetentionTakesNewest "retention removes the newest checkpoints" "" ""
    21 ManifestListsNewOnly "a manifest leaves out the files it shares" "" ""
    21 FailedListingIsEmpty "checkpoints that cannot be listed count as none" "" ""
    22 CopyNotSynced "a file copied instead of linked is not synced" "" ""
    23 PositionOf32Bits "positions in the log have 32 bits" "" ""
    24 RenamedUnsynced "a file is renamed into place without a sync" "" ""
    24 ManifestUnchecked "a manifest's checksum is not checked" "" ""
    25 SymlinkFollowed "a symbolic link in the store is followed" "" ""
    27 SlotsReusedEarly "a slot is reused before Ring 1 has read it" "" ""
}
