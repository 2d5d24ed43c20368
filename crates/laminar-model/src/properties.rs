//! What has to hold in every state, and what has to happen in some, so that the first means something.

use stateright::Property;

use crate::Protocol;
use crate::disk::{Content, Stage};
use crate::recovery::{Plan, Refusal, plan};
use crate::world::{Core, Phase, World};

/// All properties that the model's bounds can show.
#[must_use]
pub fn properties(model: &Protocol) -> Vec<Property<Protocol>> {
    let bounds = model.rules.bounds;
    let mut all = always();
    let mut sometimes = |name, condition: fn(&Protocol, &World) -> bool, possible: bool| {
        if possible {
            all.push(Property::sometimes(name, condition));
        }
    };
    sometimes("every epoch is acknowledged", |m, w| w.acked == m.rules.bounds.epochs, true);
    sometimes("a core is far behind", far_behind, bounds.cores > 1);
    sometimes("every checkpoint is published", every_checkpoint, bounds.checkpoints > 0);
    sometimes("the log is cut", |_, w| w.cores.iter().any(|c| c.begin_durable > 0), bounds.checkpoints > 1);
    sometimes("a checkpoint is removed", removed, bounds.checkpoints > bounds.retained);
    let crashes = bounds.crashes > 0;
    sometimes("a crash leaves something to discard", discards, crashes);
    sometimes("a power cut leaves records behind a torn tail", torn, crashes && bounds.epochs > 1);
    sometimes("recovery goes on from a checkpoint", |m, w| base(m, w) > 0, crashes && bounds.checkpoints > 0);
    sometimes("an opening is interrupted", interrupted, bounds.crashes > 1);
    sometimes("epochs are acknowledged after a discarded one", gap, crashes && bounds.epochs > 1);
    sometimes("a failed sync poisons", poisoned, bounds.failing_syncs > 0);
    sometimes("recovery passes over a checkpoint", passes_over, bounds.rotten > 0 && crashes);
    all
}

fn always() -> Vec<Property<Protocol>> {
    vec![
        Property::always("opening is never refused", |m, w| recovered(m, w).is_none_or(|plan| plan.is_ok())),
        Property::always("an acknowledged epoch is never lost", |m, w| {
            holds(m, w, |world, plan| plan.point >= world.acked)
        }),
        Property::always("nothing of a recovered epoch is missing", |m, w| {
            holds(m, w, |world, plan| compare(world, plan, |truth, found| truth & !found == 0))
        }),
        Property::always("nothing discarded comes back", |m, w| {
            holds(m, w, |world, plan| compare(world, plan, |truth, found| found & !truth == 0))
        }),
        Property::always("opening again finds the same point", |m, w| {
            holds(m, w, |world, plan| world.pinned.is_none_or(|pinned| pinned == plan.point))
        }),
        Property::always("the second newest checkpoint and the log are enough", |m: &Protocol, w: &World| {
            w.phase != Phase::Down || m.rules.bounds.retained < 2 || w.rotten > 0 || second_is_enough(m, w)
        }),
        Property::always("no epoch number is used twice", |_, w: &World| {
            w.cores.iter().all(numbers_are_unique)
        }),
    ]
}

/// What an opening would find now; `None` while there is a process.
fn recovered(model: &Protocol, world: &World) -> Option<Result<Plan, Refusal>> {
    (world.phase == Phase::Down).then(|| plan(world, model.rules.broken, None))
}

fn holds(model: &Protocol, world: &World, condition: impl Fn(&World, &Plan) -> bool) -> bool {
    match recovered(model, world) {
        Some(Ok(plan)) => condition(world, &plan),
        _ => true,
    }
}

/// Compares the state found with the truth, epoch by epoch; of epochs above the point nothing may be there.
fn compare(world: &World, plan: &Plan, fits: impl Fn(u8, u8) -> bool) -> bool {
    let up_to_point = |truth: &Content, epoch: usize| {
        if epoch <= usize::from(plan.point) { truth[epoch] } else { 0 }
    };
    let same = |(core, found): (&Core, &Content)| {
        found.iter().enumerate().all(|(epoch, found)| fits(up_to_point(&core.truth, epoch), *found))
    };
    world.cores.iter().zip(&plan.contents).all(same)
}

fn second_is_enough(model: &Protocol, world: &World) -> bool {
    let Ok(first) = plan(world, model.rules.broken, None) else { return false };
    let second = plan(world, model.rules.broken, Some(first.base));
    second.is_ok_and(|second| second.point == first.point && second.contents == first.contents)
}

fn numbers_are_unique(core: &Core) -> bool {
    let records: Vec<_> = core
        .listed()
        .flat_map(|segment| segment.slots.iter().flatten().map(|record| (record.epoch, segment.incarnation)))
        .collect();
    records.iter().all(|(epoch, one)| records.iter().all(|(other, two)| epoch != other || one == two))
}

fn far_behind(_: &Protocol, world: &World) -> bool {
    let sealed = || world.cores.iter().map(|core| core.sealed);
    matches!(world.phase, Phase::Running(_)) && sealed().max() >= sealed().min().map(|least| least + 2)
}

fn every_checkpoint(model: &Protocol, world: &World) -> bool {
    world.checkpoints[usize::from(model.rules.bounds.checkpoints)].stage == Stage::Published
}

fn removed(_: &Protocol, world: &World) -> bool {
    world.checkpoints.iter().any(|checkpoint| checkpoint.stage == Stage::Gone)
}

fn discards(model: &Protocol, world: &World) -> bool {
    let left =
        |core: &Core, point: u8| core.truth.iter().skip(usize::from(point) + 1).any(|epoch| *epoch != 0);
    matches!(recovered(model, world), Some(Ok(plan)) if world.cores.iter().any(|core| left(core, plan.point)))
}

fn torn(_: &Protocol, world: &World) -> bool {
    world.cores.iter().flat_map(|core| &core.segments).any(|segment| segment.slots.contains(&None))
}

fn base(model: &Protocol, world: &World) -> u8 {
    recovered(model, world).and_then(Result::ok).map_or(0, |plan| plan.base)
}

fn interrupted(_: &Protocol, world: &World) -> bool {
    let unnamed = |core: &Core| core.segments.last().is_some_and(|segment| !segment.named);
    world.phase == Phase::Down && world.current > 0 && world.cores.iter().any(unnamed)
}

fn gap(_: &Protocol, world: &World) -> bool {
    let after_a_gap =
        |core: &Core| core.segments.iter().any(|s| s.last_epoch > s.void_above && s.last_epoch < world.acked);
    world.cores.iter().any(after_a_gap)
}

fn poisoned(_: &Protocol, world: &World) -> bool {
    matches!(&world.phase, Phase::Running(process) if process.poisoned)
}

fn passes_over(model: &Protocol, world: &World) -> bool {
    let found = base(model, world);
    found > 0 && world.listed().any(|id| id > found)
}
