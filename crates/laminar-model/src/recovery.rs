//! Where recovery lands: looks at the disk as the operating system shows it, and changes nothing.

use crate::disk::{Content, Kind, Record, Segment};
use crate::rules::Broken;
use crate::world::{Core, World};

/// Why opening is refused. Without damage it never may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// `CURRENT` names an incarnation that a core has no segment of.
    NotEstablished,
    /// A core's log does not reach back to the checkpoint.
    Gap,
    /// A closed segment does not reach the length that its successor recorded (case D).
    Short,
    /// Epochs or sequences of a log go backwards.
    Backwards,
    /// The checkpoint contains more than the log ever had.
    CheckpointAhead,
    /// A record testifies to an acknowledged epoch above the point.
    Acknowledged,
}

/// What recovery decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The checkpoint it starts from, 0 for none.
    pub base: u8,
    /// The epoch it lands on.
    pub point: u8,
    /// The state of every core.
    pub contents: Vec<Content>,
}

/// Recovers from the newest checkpoint that is good and is not `without`.
///
/// # Errors
/// Why it refuses.
pub fn plan(world: &World, broken: Option<Broken>, without: Option<u8>) -> Result<Plan, Refusal> {
    let established = |core: &Core| {
        world.current == 0 || core.listed().last().is_some_and(|s| s.incarnation >= world.current)
    };
    if !world.cores.iter().all(established) {
        return Err(Refusal::NotEstablished);
    }
    let base = world.listed().rev().find(|id| world.is_good(*id) && Some(*id) != without).unwrap_or(0);
    let base_epoch = world.checkpoints[usize::from(base)].epoch;
    for core in &world.cores {
        check_core(world, core, base)?;
    }
    let cut_short = |core: &Core| core.cuts[usize::from(base)] > core.high_water().1;
    if base != 0 && world.cores.iter().any(cut_short) {
        return Err(Refusal::CheckpointAhead);
    }
    let sealed = world.cores.iter().filter_map(|core| sealed(core, broken)).min();
    let point = sealed.unwrap_or(0).max(base_epoch);
    let acknowledged = world.cores.iter().flat_map(records).filter_map(|record| match record.kind {
        Kind::Barrier(durable) => Some(durable),
        Kind::Change => None,
    });
    if acknowledged.max().is_some_and(|acknowledged| acknowledged > point) {
        return Err(Refusal::Acknowledged);
    }
    let contents = world.cores.iter().map(|core| {
        let mut content = world.checkpointed(core, base);
        replay(world, core, core.cuts[usize::from(base)], point, &mut content);
        content
    });
    Ok(Plan { base, point, contents: contents.collect() })
}

/// Adds the changes of a core's log behind `after`, up to `up_to`, but for void ones; returns the sequence of the
/// last record that counted.
pub fn replay(world: &World, core: &Core, after: u8, up_to: u8, content: &mut Content) -> u8 {
    let mut last = after;
    for segment in core.listed() {
        let up_to = up_to.min(void_above(world, segment.incarnation));
        for record in segment.readable() {
            if record.sequence <= after || record.sequence <= core.begin || record.epoch > up_to {
                continue;
            }
            last = last.max(record.sequence);
            if record.kind == Kind::Change {
                content[usize::from(record.epoch)] |= 1 << segment.incarnation;
            }
        }
    }
    last
}

/// The largest epoch of an incarnation that later ones let stand.
fn void_above(world: &World, incarnation: u8) -> u8 {
    let segments = world.cores.iter().flat_map(Core::listed);
    segments.filter(|s| s.incarnation > incarnation).map(|s| s.void_above).min().unwrap_or(u8::MAX)
}

/// The records of a core that are still there.
fn records(core: &Core) -> impl Iterator<Item = Record> + '_ {
    core.listed().flat_map(Segment::readable).filter(|record| record.sequence > core.begin)
}

/// The last epoch closed on a core, as its newest segment says.
fn sealed(core: &Core, broken: Option<Broken>) -> Option<u8> {
    let Some(newest) = core.listed().last() else { return Some(0) };
    let barriers = newest.readable().filter(|record| record.kind != Kind::Change);
    let last = barriers.map(|record| record.epoch).max();
    if broken == Some(Broken::MinimumOverAnsweringCores) {
        return last;
    }
    Some(last.unwrap_or(0).max(newest.sealed))
}

fn check_core(world: &World, core: &Core, base: u8) -> Result<(), Refusal> {
    if core.begin > core.cuts[usize::from(base)] {
        return Err(Refusal::Gap);
    }
    if core.segments.is_empty() {
        let has_records = world.cores.iter().any(|core| core.segments.iter().any(|s| !s.is_empty()));
        let never_written = world.current == 0 && base == 0 && !has_records;
        return if never_written { Ok(()) } else { Err(Refusal::Gap) };
    }
    let segments: Vec<_> = core.listed().collect();
    for pair in segments.windows(2) {
        if let [older, newer] = pair
            && older.readable_len() < newer.previous_len
        {
            return Err(Refusal::Short);
        }
    }
    for segment in &segments {
        let (mut epoch, mut sequence) = (0, segment.last_sequence);
        for record in segment.readable() {
            if record.epoch < epoch || record.sequence <= sequence {
                return Err(Refusal::Backwards);
            }
            (epoch, sequence) = (record.epoch, record.sequence);
        }
    }
    Ok(())
}
