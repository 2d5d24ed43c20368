//! Recovery into another layout: another number of cores, or a log that the low-level functions wrote.
//!
//! Checkpoint and log are brought together by the checkpoint manager, incarnation by incarnation, each
//! in its own layout; the result is distributed anew and published as a checkpoint of the same epoch.
//! After that, opening is the ordinary case. A crash before the publication leaves everything as it
//! was; after it, the new checkpoint covers the whole log.

use std::sync::{Arc, OnceLock};

use super::builder::StoreBuilder;
use super::error::StoreError;
use super::open::{Layout, Locks};
use crate::error::Detail;
use crate::format::digest::StateDigest;
use crate::format::segment_header::WalMode;
use crate::ids::{CoreId, Epoch, Sequence, WalPosition};
use crate::incremental::recovery::digests::Mismatch;
use crate::incremental::recovery::locate::{Failure, Located};
use crate::incremental::recovery::recover_state;
use crate::incremental::{CoreDigest, IncrementalCheckpointManager};
use crate::per_core_wal::PerCoreWalError;
use crate::per_core_wal::apply::{Applied, apply_incarnation};
use crate::per_core_wal::incarnation::make_durable;
use crate::per_core_wal::recovery::plan::Wanted;
use crate::per_core_wal::recovery::repair::cut_torn_ends;
use crate::progress::Watch;
use crate::report::{CoreReport, RecoveryReport};
use crate::sabotage::{Sabotage, sabotaged};

/// What a rebuilding did, for the report of the recovery.
#[derive(Clone, Debug)]
pub(crate) struct Rebuilt {
    /// Cores before, if that number changed.
    pub(crate) from_cores: Option<usize>,
    /// What was replayed of each core of the log.
    pub(crate) cores: Vec<CoreReport>,
    /// Digest of the whole state, if the log knew it.
    pub(crate) expected: Option<StateDigest>,
}

/// Is anything of the state in another layout than `cores`?
pub(crate) fn wants_rebuild(located: &Located, cores: u16) -> bool {
    if located.metadata().is_some_and(|metadata| metadata.core_count != cores) {
        return true;
    }
    let plan = &located.plan;
    plan.survey.cores.iter().any(|log| {
        let after = plan.span(log.core).after;
        log.segments.iter().any(|segment| {
            segment.has_records_after(after)
                && (segment.header.core_count != cores || segment.header.mode == WalMode::Plain)
        })
    })
}

/// Rebuilds the state for the builder's number of cores.
pub(crate) fn rebuild(
    builder: &StoreBuilder,
    layout: &Layout,
    located: &Located,
    locks: &Locks,
    watch: &Watch,
) -> Result<Rebuilt, StoreError> {
    let vfs = builder.vfs_ref();
    let (plan, survey) = (&located.plan, &located.plan.survey);
    let mut config = builder.checkpoint_config(layout);
    if !survey.has_records() {
        // A fork in which nothing was changed may be begun again with its savepoint, and is known by the checkpoint
        // that it began with. Checkpoints that are too many go with the next one.
        config = config.with_max_retained(usize::MAX);
    }
    let mut manager = IncrementalCheckpointManager::open_on(
        config,
        Arc::clone(vfs),
        builder.manager_options_ref().clone(),
        located.checkpoint.as_ref(),
        Arc::clone(&locks.checkpoints),
    )?;
    // What is read of it from now on; what is written is not counted.
    manager.watch(watch);
    let before = located.metadata().map_or(survey.core_count(), |metadata| metadata.core_count);
    let mut applied = known_so_far(located);
    // Whoever wrote a plain log need not have known the router, and the store's program looks where it says.
    let mut astray = false;
    for incarnation in survey.incarnations(|core| plan.span(core).after) {
        let Some(header) = survey.header_of(incarnation) else { continue };
        let routed = header.mode == WalMode::Epochs;
        reshard(builder, &mut manager, header.core_count, astray && routed)?;
        astray = !routed;
        let span = |core| plan.span(core);
        let before = applied.barriers.clone();
        apply_incarnation(vfs, survey, incarnation, span, &mut manager, &mut applied, watch)?;
        if applied.barriers != before {
            // Its cores hold everything; what those say that an earlier layout had beside them is past.
            applied.barriers.truncate(usize::from(header.core_count));
        }
    }
    let from = survey.newest().map_or(before, |header| header.core_count);
    let expected = expected_digest(&applied, plan.point);
    let digests = match reshard(builder, &mut manager, builder.core_count(), astray)? {
        Some(digests) => digests,
        None => manager.live_digests()?,
    };
    let since = located.metadata().map_or(Epoch::ZERO, |metadata| Epoch(metadata.epoch));
    check_digest(builder, layout, &digests, expected, (since, plan.point))?;
    // The checkpoint will say that it has the log up to its end, so that end must not vanish: records
    // written after it would get the same sequences and count as contained (I5).
    if !sabotaged(Sabotage::UnsyncedLogCovered) {
        make_durable(vfs, &layout.wal, survey)?;
    }
    manager.set_digests(digests)?;
    if let Some(store_id) = survey.store_id {
        manager.bind_wal(store_id)?;
        // Everything that any core ever wrote is in the checkpoint, or was discarded. What a crash tore off counts as never
        // written, so it must not be there any more: what a cut says to be contained is missed when it is gone.
        cut_torn_ends(vfs, survey)?;
        manager.set_wal_cuts(&vec![survey.last_counting(); usize::from(builder.core_count())])?;
    }
    manager.set_epoch(plan.point.0);
    let id = manager.next_checkpoint_id()?;
    let positions = survey.cores.iter().map(|log| log.position()).fold(0, u64::saturating_add);
    let published = manager.create_checkpoint_as(id, WalPosition(positions))?;
    tracing::info!(from, to = builder.core_count(), checkpoint = published.metadata().id, "state rebuilt");
    Ok(Rebuilt {
        from_cores: (from != builder.core_count()).then_some(usize::from(from)),
        cores: RecoveryReport::of(located).cores,
        expected,
    })
}

/// The digest of the whole state, as checkpoint and last barriers say; `None` when they do not all
/// belong to the recovery point.
fn expected_digest(applied: &Applied, point: Epoch) -> Option<StateDigest> {
    let at_point = applied.barriers.iter().all(|(epoch, _)| *epoch == point);
    let digests = applied.digests().filter(|digests| at_point && !digests.is_empty())?;
    Some(digests.into_iter().fold(StateDigest::default(), StateDigest::plus))
}

/// Compares what will be published with what the log knew, while nothing is published yet.
fn check_digest(
    builder: &StoreBuilder,
    layout: &Layout,
    digests: &[CoreDigest],
    expected: Option<StateDigest>,
    (since, point): (Epoch, Epoch),
) -> Result<(), StoreError> {
    let total = digests.iter().map(StateDigest::from).fold(StateDigest::default(), StateDigest::plus);
    if expected.is_none_or(|expected| expected == total) {
        return Ok(());
    }
    // Its keys are on other cores now. Whose they were, a recovery knows that leaves them where they are.
    let (vfs, checkpoints) = (builder.vfs_ref(), &layout.checkpoints);
    let again = recover_state(vfs, checkpoints, &layout.wal, Wanted::Acknowledged, &Watch::default());
    if let Err(Failure::Log(told @ PerCoreWalError::Corrupted(_))) = again {
        return Err(told.into());
    }
    let wrong = Mismatch { core: None, after: since, at: point };
    Err(StoreError::corruption(wrong.detail("rebuilt").at_path(builder.path()).remedy(
        "If one key was written on two cores, that is why: open with as many cores as before. Otherwise \
         report this with a copy of the directory; nothing was changed.",
    )))
}

/// What the checkpoint says about its cores, before anything of the log is applied.
fn known_so_far(located: &Located) -> Applied {
    let Some(metadata) = located.metadata() else { return Applied::default() };
    let cuts: Vec<_> = metadata.wal_cuts.iter().map(|cut| Sequence(cut.sequence)).collect();
    let digest = |index: usize| metadata.digests.get(index).map(StateDigest::from);
    let barriers = (0..cuts.len()).map(|index| (Epoch(metadata.epoch), digest(index)));
    Applied { barriers: barriers.collect(), cuts, ..Applied::default() }
}

/// Lays the state out for that many cores, and returns their digests; `None` when it is already, unless its
/// keys may be `astray`, on other cores than those the router names.
fn reshard(
    builder: &StoreBuilder,
    manager: &mut IncrementalCheckpointManager,
    cores: u16,
    astray: bool,
) -> Result<Option<Vec<CoreDigest>>, StoreError> {
    let same = manager.core_count() == usize::from(cores);
    if same && (!astray || cores == 1) {
        return Ok(None);
    }
    let offsets = manager.core_offsets().to_vec();
    let refused = OnceLock::new();
    let route = |key: &[u8]| {
        builder.router_ref().core(key, cores).unwrap_or_else(|| {
            refused.get_or_init(|| key.to_vec());
            CoreId::ZERO
        })
    };
    let digests = manager.reshard_with_digests(usize::from(cores), route)?;
    if same {
        manager.set_core_offsets(offsets)?;
    }
    match refused.into_inner() {
        None => Ok(Some(digests)),
        Some(key) => Err(StoreError::invalid(
            Detail::new(format!(
                "the router sends key {:?} to a core outside 0..{cores}",
                String::from_utf8_lossy(&key)
            ))
            .at_path(builder.path())
            .remedy("Correct the router and open again; nothing was changed."),
        )),
    }
}
