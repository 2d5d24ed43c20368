//! Deliberate mistakes, one or more for each class of bug that the tests claim to catch.
//!
//! Without the feature `sabotage`, which only the scorecard turns on, [`sabotaged`] is `false` at compile
//! time and nothing of this is left. With it, the environment variable `LAMINAR_SABOTAGE` names the one
//! mistake that this process makes. `cargo run -p laminar-sim --features sabotage --bin scorecard` makes each of them and shows which
//! test notices; a mistake that no test notices is a missing test.

/// Defines the mistakes: name, what it is, row of the catalogue in `docs/TESTING.md`, test that catches it.
macro_rules! sabotages {
    ($($row:literal $variant:ident $what:literal $target:literal $test:literal)*) => {
        /// A mistake to make.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(feature = "object-store"), allow(dead_code, reason = "some are made by backups only"))]
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
    1 SyncRetried "a failed sync is tried again, and believed"
        "laminar-sim/faults" "a_store_of_one_core_survives_every_fault"
    1 PoisonForgotten "a writer goes on after a failed write or sync"
        "laminar-storage/contract_per_core_wal" "after_a_failed_write_or_sync_a_log_is_left_alone"
    1 LostNameForgotten "a failed sync of the log's directory concerns only who called it"
        "laminar-storage/lib" "per_core_wal::names::tests::after_a_failure_no_sync_of_the_directory_succeeds"
    1 LostNamesTrusted "segments are removed although a sync of their directory failed"
        "laminar-storage/lib" "per_core_wal::truncate::tests::after_a_failed_sync_of_the_directory_nothing_more_is_removed"
    1 AcknowledgedBeforeSync "an epoch is acknowledged before its records are synced"
        "laminar-sim/enumeration" "store_one_core"
    1 LogSyncDropped "the log is never synced"
        "laminar-sim/enumeration" "wal_plain"
    1 CameBesideCounts "an epoch that came while the log was synced is acknowledged with that sync"
        "laminar-storage/hung_device" "what_comes_beside_a_sync_is_not_part_of_it"
    1 WrittenBesideSync "what comes while the log is synced is written meanwhile"
        "laminar-storage/hung_device" "nothing_is_written_while_a_sync_is_on_its_way"
    2 SegmentNameNotSynced "the names of a new incarnation's segments are not synced"
        "laminar-sim/enumeration" "store_one_core"
    2 RollNotSynced "the name of the next segment is not synced"
        "laminar-sim/enumeration" "store_roll"
    2 CheckpointNameNotSynced "the name of a checkpoint is not synced"
        "laminar-storage/lib" "incremental::manager::tests::crash::a_checkpoint_that_was_returned_survives_a_power_cut"
    2 CheckpointDirNotSynced "the names of a checkpoint's files are not synced"
        "laminar-storage/lib" "incremental::manager::tests::crash::a_power_cut_after_any_operation_leaves_a_checkpoint"
    2 ParentNotSynced "the name of a new directory is not synced"
        "laminar-sim/enumeration" "store_one_core"
    3 SaltConstant "frames of every segment and incarnation carry the same salt"
        "laminar-storage/contract_per_core_wal" "frames_of_an_earlier_life_do_not_count_in_another_segment"
    3 SpareWrittenEarly "a file is used again before its old name is gone for good"
        "laminar-sim/enumeration" "wal_reused"
    3 SpareNamedEarly "a file that is used again gets its name before its header is durable"
        "laminar-sim/enumeration" "store_reused"
    3 StaleNotCutOff "what an earlier use of a file left is not cut off behind the last frame"
        "laminar-storage/lib" "per_core_wal::spares::tests::a_segment_of_a_used_file_ends_in_order"
    3 OthersFilesReused "files of an earlier incarnation are used again"
        "laminar-storage/lib" "per_core_wal::spares::tests::only_files_of_this_opening_are_used_again"
    4 BoundaryUnchecked "a closed segment may be shorter than its successor says"
        "laminar-storage/contract_per_core_wal" "a_closed_segment_that_lost_its_last_frames_is_damage"
    4 GapIgnored "a missing segment in the chain counts as its beginning"
        "laminar-storage/contract_per_core_wal" "a_segment_that_is_missing_in_the_middle_is_an_error"
    5 TornTailKept "a torn tail counts as part of a closed segment"
        "laminar-sim/enumeration" "store_tails"
    5 TornFrameCompleted "zeros are written behind a file that ends within a frame"
        "laminar-sim/faults" "what_a_recovery_gave_up_is_not_completed_by_zeros"
    6 ReadErrorIsEnd "a read that fails counts as the end of the log"
        "laminar-sim/faults" "every_scenario_survives_faults"
    6 SyncNotNoted "how far the log was synced is not noted before it is acknowledged"
        "laminar-storage/lib" "per_core_wal::evidence::tests::what_is_acknowledged_is_noted_before"
    6 DamageIsEnd "damage in the last segment counts as a torn tail"
        "laminar-storage/contract_per_core_wal" "a_reader_tells_a_torn_tail_from_damage"
    7 OldSegmentContinued "an opening goes on at the end of the newest file of the one before"
        "laminar-storage/contract_per_core_wal" "what_is_written_after_a_torn_end_is_found_again"
    8 LengthBelieved "a frame's length is allocated before it is checked"
        "laminar-storage/lib" "per_core_wal::frames::tests::a_claimed_length_allocates_nothing"
    9 HeaderHalfChecked "a frame header's checksum leaves out epoch and sequence"
        "laminar-storage/lib" "format::frame::tests::every_flipped_bit_is_seen"
    9 PayloadUnchecked "a frame's payload is not checked"
        "laminar-storage/lib" "format::frame::tests::every_flipped_bit_of_a_payload_is_seen"
    9 BlockUnchecked "a block of a state file is not checked"
        "laminar-storage/lib" "incremental::state_file::tests::every_bit_and_every_length"
    10 LogCutEarly "the log is cut whatever the checkpoint covers"
        "laminar-storage/contract_store" "without_its_newest_checkpoint_a_store_recovers_the_same"
    10 DepartedNewestFirst "of a core that left, the newest segment does not wait for the others to be gone for good"
        "laminar-storage/lib" "per_core_wal::truncate::tests::the_newest_segment_of_a_core_that_left_goes_last"
    10 LogCutToNewest "the log is cut up to the newest checkpoint, not the one before"
        "laminar-storage/lib" "incremental::manager::tests::the_log_may_go_up_to_the_second_newest_checkpoint"
    10 CheckpointNotSynced "a checkpoint is published without a sync"
        "laminar-storage/lib" "incremental::manager::tests::crash::a_checkpoint_that_was_returned_survives_a_power_cut"
    10 NotReadBack "a checkpoint is not read back before the log is cut"
        "laminar-storage/lib" "incremental::manager::tests::what_reads_back_different_is_not_published"
    11 UnsyncedLogCovered "re-sharding covers records that were never synced"
        "laminar-sim/crash" "a_resharding_checkpoint_never_covers_records_that_can_still_vanish"
    12 MissingCoreIgnored "a core without segments counts as an empty one"
        "laminar-storage/contract_per_core_wal" "a_core_whose_newest_segment_is_gone_is_an_error"
    12 FastestCoreAcknowledges "an epoch is acknowledged once the first core closed it"
        "laminar-storage/contract_store" "an_epoch_that_one_core_has_not_closed_is_not_durable"
    12 FastestCoreRecovers "recovery lands on the largest epoch that any core closed"
        "laminar-sim/enumeration" "store_two_cores"
    13 OffsetsNotInCheckpoint "a checkpoint leaves out offsets and watermark"
        "laminar-storage/contract_store" "a_checkpoint_alone_has_offsets_and_watermark"
    13 OffsetsInNextEpoch "offsets are written to the epoch after their changes"
        "laminar-storage/contract_store" "a_sealed_and_durable_epoch_comes_back_with_offsets_and_watermark"
    14 DiscardedEpochsReturn "epochs that a recovery discarded count again"
        "laminar-sim/enumeration" "store_tails"
    14 EpochReused "numbers of discarded epochs are given to new ones"
        "laminar-storage/contract_store" "the_numbers_of_discarded_epochs_are_not_used_again"
    14 RecoveryNotDurable "recovery exposes records without syncing them"
        "laminar-sim/enumeration" "store_one_core"
    14 EndNotWrittenAgain "recovery syncs what a failed sync may have dropped, without writing it"
        "laminar-sim/faults" "a_store_of_one_core_survives_every_fault"
    14 ReplaySkipsOne "replay begins one record too late"
        "laminar-sim/enumeration" "store_two_cores"
    14 DigestUnchecked "a recovered state with the wrong digest is accepted"
        "laminar-storage/attacks" "a_state_without_the_digest_that_was_stored_is_refused"
    15 FullRingDrops "a change that finds the ring full is dropped"
        "laminar-storage/contract_store" "a_put_on_a_full_ring_is_made_and_not_dropped"
    15 FirstVersionWins "coalescing keeps the first version of a key"
        "laminar-sim/enumeration" "store_one_core"
    16 RawClock "timestamps come from the clock as it is"
        "laminar-storage/attacks" "no_clock_and_no_timestamp_makes_a_log_unreadable"
    17 LockIgnored "somebody else's lock is ignored"
        "laminar-storage/contract_store" "a_second_opening_is_refused_until_the_first_is_closed"
    18 FailedWriteKept "what a failed write may have written is written again later"
        "laminar-storage/contract_per_core_wal" "after_a_failed_write_or_sync_a_log_is_left_alone"
    19 ShortWriteIsWhole "a short write counts as a whole one"
        "laminar-storage/lib" "incremental::manager::tests::crash::short_and_interrupted_transfers_change_nothing"
    21 RetentionTakesNewest "retention removes the newest checkpoints"
        "laminar-storage/contract_incremental" "listing_retention_and_deletion"
    21 DeltaGoesEarly "a delta goes when the newest range has it, not when all have"
        "laminar-storage/lib" "incremental::base::tests::a_large_state_is_written_in_ranges_and_they_are_renewed_a_few_at_a_time"
    21 ManifestListsNewOnly "a manifest leaves out the files it shares"
        "laminar-storage/contract_incremental" "each_directory_stands_alone"
    21 FailedListingIsEmpty "checkpoints that cannot be listed count as none"
        "laminar-storage/lib" "incremental::manager::tests::crash::checkpoints_that_cannot_be_listed_are_an_error"
    21 ForkWithoutSavepoint "a log that was begun on a savepoint is read without it"
        "laminar-storage/savepoint" "a_fork_that_lost_its_savepoint_is_refused_and_not_empty"
    21 SkippedUncovered "an older checkpoint is taken for a damaged one that no log stands behind"
        "laminar-storage/lib" "incremental::recovery::locate::tests::without_a_log_no_older_checkpoint_is_taken_for_a_damaged_one"
    22 CopyNotSynced "a file copied instead of linked is not synced"
        "laminar-storage/lib" "incremental::manager::tests::links_that_are_refused_become_copies"
    22 SavepointNotSynced "a savepoint gets its name before it is synced"
        "laminar-storage/lib" "incremental::savepoint::tests::a_power_cut_after_any_operation_leaves_a_savepoint_or_none"
    22 TakenBackUnsynced "files of a savepoint that failed go before its name is gone for good"
        "laminar-storage/lib" "incremental::savepoint::tests::a_savepoint_that_fails_harms_nobody"
    22 SavepointNameNotSynced "the name of a savepoint is not synced"
        "laminar-storage/lib" "incremental::savepoint::tests::a_power_cut_after_any_operation_leaves_a_savepoint_or_none"
    23 PositionOf32Bits "positions in the log have 32 bits"
        "laminar-storage/lib" "per_core_wal::writer::tests::positions_go_beyond_4_gib"
    24 RenamedUnsynced "a file is renamed into place without a sync"
        "laminar-storage/lib" "vfs::sim::tests::crash::replacing_a_file_durably_is_old_or_new_at_every_instant"
    24 ManifestUnchecked "a manifest's checksum is not checked"
        "laminar-storage/lib" "format::manifest::tests::every_flipped_bit_and_every_cut_is_seen"
    25 SymlinkFollowed "a symbolic link in the store is followed"
        "laminar-storage/lib" "vfs::os::tests::only_regular_files_are_opened_and_links_never_followed"
    25 NameBelieved "a manifest's file names are used as they stand there"
        "laminar-storage/lib" "incremental::metadata::tests::hostile_manifests_are_refused"
    26 ParallelFailureLost "a sync that failed beside others counts as done"
        "laminar-storage/lib" "vfs::os::tests::sync_many_answers_for_each_file_in_order"
    27 SlotsReusedEarly "a slot is reused before Ring 1 has read it"
        "laminar-storage/lib" "ring0::tests::drained_records_stay_until_they_are_released"
    28 FencedGoesOn "a writer of backups goes on behind a claim of somebody else"
        "laminar-backup-tests/protocol" "two_writers_in_every_order_of_their_requests_and_the_earlier_is_fenced"
    28 BrokenListingIsWhole "a listing that breaks off counts as whole"
        "laminar-backup-tests/crashes" "a_listing_that_fails_or_breaks_off_removes_nothing"
    28 ChunkNotPut "a chunk of a backup is not put"
        "laminar-backup-tests/s3" "a_directory_does_all_of_it"
    28 HalfOfAWholeCounts "a backup of a whole counts when one part has it"
        "laminar-backup-tests/whole" "a_backup_counts_when_every_part_has_it_and_no_older_one_goes_before"
    28 WholeByEpoch "parts of a whole are put together by their epochs"
        "laminar-backup-tests/whole" "what_two_lives_left_of_an_epoch_is_never_put_together"
    28 WholeGoesEarly "a part removes backups without looking at the other parts"
        "laminar-backup-tests/whole" "a_backup_counts_when_every_part_has_it_and_no_older_one_goes_before"
    29 UnsettledInCheckpoint "what the other parts may not have gets into a checkpoint"
        "laminar-storage/parts" "a_part_lands_on_any_epoch_that_is_not_settled_and_goes_on_from_there"
    29 ReservedPassed "a checkpoint goes beyond a reserved epoch"
        "laminar-storage/parts" "a_checkpoint_of_a_reserved_epoch_holds_that_epoch_and_nothing_else"
}
