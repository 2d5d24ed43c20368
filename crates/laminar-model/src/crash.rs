//! What a crash leaves. The death of the process takes its memory; a power cut takes besides whatever subset of
//! what is not durable.

use crate::disk::{Checkpoint, Stage, bit};
use crate::world::{Phase, World};

/// The death of the process: what was written stays, synced or not.
pub fn kill(world: &mut World) {
    world.phase = Phase::Down;
    world.crashes += 1;
    world.cores.iter_mut().for_each(|core| core.forget());
    for (id, checkpoint) in world.checkpoints.iter_mut().enumerate() {
        if matches!(checkpoint.stage, Stage::Temporary | Stage::Absent) {
            *checkpoint = Checkpoint::default();
            for core in &mut world.cores {
                core.cuts[id] = 0;
                core.files[id] = Default::default();
            }
        }
    }
}

/// The number of ways in which each thing that is not durable can go.
fn choices(world: &World) -> Vec<u32> {
    let either = |undecided: bool| if undecided { 2 } else { 1 };
    let mut choices = Vec::new();
    for core in &world.cores {
        choices.extend(core.segments.iter().map(|segment| segment.power_cut_outcomes()));
        choices.push(either(core.segments.last().is_some_and(|segment| !segment.named)));
        choices.push(either(core.begin != core.begin_durable));
    }
    for checkpoint in &world.checkpoints {
        choices.push(either(matches!(checkpoint.stage, Stage::Renamed | Stage::Trash)));
    }
    choices.push(either(world.current != world.current_durable));
    choices
}

/// The number of outcomes that a power cut can have.
#[must_use]
pub fn outcomes(world: &World) -> u32 {
    choices(world).into_iter().product()
}

/// A power cut with one of its outcomes.
pub fn cut_power(world: &mut World, outcome: u32) {
    let mut left = outcome;
    let mut picks = choices(world).into_iter().map(|count| {
        let pick = left % count;
        left /= count;
        pick
    });
    let mut pick = || picks.next().unwrap_or(0);
    for core in &mut world.cores {
        for segment in &mut core.segments {
            segment.cut_power(pick());
        }
        let name_lost = pick() == 1;
        if name_lost {
            core.segments.pop();
        } else if let Some(segment) = core.segments.last_mut() {
            segment.named = true;
        }
        let removal_lost = pick() == 1;
        if removal_lost {
            core.begin = core.begin_durable;
        }
        core.begin_durable = core.begin;
        core.drop_removed();
    }
    for checkpoint in &mut world.checkpoints {
        let lost = pick() == 1;
        checkpoint.stage = match (checkpoint.stage, lost) {
            (Stage::Renamed, true) => Stage::Absent,
            (Stage::Renamed, false) | (Stage::Trash, true) => Stage::Published,
            (stage, _) => stage,
        };
    }
    if pick() == 1 {
        world.current = world.current_durable;
    }
    world.current_durable = world.current;
    for (id, checkpoint) in (0..).zip(&mut world.checkpoints) {
        if checkpoint.is_listed() && !checkpoint.synced {
            checkpoint.synced = true;
            world.lost_files |= bit(id);
        }
    }
    kill(world);
}
