//! The steps of the protocol: which can be taken, and what each does.

use crate::crash::{cut_power, kill, outcomes};
use crate::disk::{CHECKPOINTS, Checkpoint, Kind, Record, Segment, Stage, bit};
use crate::recovery::{plan, replay};
use crate::rules::{Bounds, Broken};
use crate::world::{Core, Job, OpenStep, Phase, Process, World};

/// A step. The number is that of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The program changes something, once per epoch.
    Put(usize),
    /// The program seals the core's epoch.
    Seal(usize),
    /// Ring 1 gives what it has to the operating system before anybody asks for a sync.
    Flush(usize),
    /// Ring 1 writes all logs, to make the smallest sealed epoch durable.
    BeginSync,
    /// One core's sync is done.
    SyncCore(usize),
    /// One core's sync fails.
    SyncFails(usize),
    /// The epoch is published as durable.
    Ack,
    /// A checkpoint of the durable epoch is written under a temporary name.
    Write,
    /// It is synced.
    Sync,
    /// It gets its name.
    Rename,
    /// Its name is durable; it is read back.
    Publish,
    /// The oldest checkpoint becomes trash.
    Retire,
    /// That is durable, and it is removed.
    Remove,
    /// Segments that the second newest checkpoint covers are removed.
    Unlink(usize),
    /// That is durable.
    UnlinkDurable,
    /// The newest checkpoint's manifest goes bad.
    Rot,
    /// An opening finds its state.
    Open,
    /// The opening's next step, where it is one for all cores.
    OpenStep,
    /// The opening's next step, for one core.
    OpenCore(usize),
    /// The process dies.
    Kill,
    /// The power is cut, with one of the possible outcomes.
    PowerCut(u32),
}

/// The rules that the steps follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How much may happen.
    pub bounds: Bounds,
    /// The rule that is broken.
    pub broken: Option<Broken>,
}

impl Rules {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// The steps that can be taken.
    pub fn steps(&self, world: &World, steps: &mut Vec<Step>) {
        match &world.phase {
            Phase::Down => {
                if plan(world, self.broken, None).is_ok() {
                    steps.push(Step::Open);
                }
            }
            Phase::Opening { step, .. } => {
                let for_all = !matches!(step, OpenStep::Logs | OpenStep::Create);
                if for_all {
                    steps.push(Step::OpenStep);
                } else {
                    steps.extend(cores(world, |core| !core.done).map(Step::OpenCore));
                }
            }
            Phase::Running(process) => self.running(world, process, steps),
        }
        if world.phase != Phase::Down && world.crashes < self.bounds.crashes {
            steps.push(Step::Kill);
            steps.extend((0..outcomes(world)).map(Step::PowerCut));
        }
    }

    fn running(&self, world: &World, process: &Process, steps: &mut Vec<Step>) {
        if !process.poisoned {
            let bound = self.bounds.epochs;
            let incarnation = process.incarnation;
            let untouched = |core: &Core| {
                core.epoch <= bound && core.truth[usize::from(core.epoch)] & bit(incarnation) == 0
            };
            if !self.bounds.coarse {
                steps.extend(cores(world, untouched).map(Step::Put));
            }
            steps.extend(cores(world, |core| core.epoch <= bound).map(Step::Seal));
            self.group_commit(world, process, steps);
        }
        self.checkpointing(world, process, steps);
        let newest = world.listed().next_back();
        let sound = |id: u8| {
            let checkpoint = &world.checkpoints[usize::from(id)];
            checkpoint.stage == Stage::Published && !checkpoint.rotten
        };
        if world.rotten < self.bounds.rotten && newest.is_some_and(sound) {
            steps.push(Step::Rot);
        }
    }

    fn group_commit(&self, world: &World, process: &Process, steps: &mut Vec<Step>) {
        if process.syncing.is_none() {
            if !self.bounds.coarse {
                steps.extend(cores(world, |core| !core.buffer.is_empty()).map(Step::Flush));
            }
            if self.closed(world) > process.durable {
                steps.push(Step::BeginSync);
            }
            return;
        }
        steps.extend(cores(world, |core| !core.done).map(Step::SyncCore));
        if world.failed_syncs < self.bounds.failing_syncs {
            steps.extend(cores(world, |core| !core.done).map(Step::SyncFails));
        }
        let done = world.cores.iter().filter(|core| core.done).count();
        let enough = match self.broken {
            Some(Broken::AckBeforeAllSynced) => 1,
            Some(Broken::AckBeforeSync) => 0,
            _ => world.cores.len(),
        };
        if done >= enough {
            steps.push(Step::Ack);
        }
    }

    /// The epoch that a sync of everything makes durable.
    fn closed(&self, world: &World) -> u8 {
        let sealed = world.cores.iter().map(|core| core.sealed);
        let closed = if self.breaks(Broken::AckFastestCore) { sealed.max() } else { sealed.min() };
        closed.unwrap_or(0)
    }

    /// The epoch that a checkpoint holds which is written now.
    fn checkpoint_epoch(&self, world: &World, process: &Process) -> u8 {
        if self.breaks(Broken::CheckpointAheadOfLog) { self.closed(world) } else { process.durable }
    }

    fn checkpointing(&self, world: &World, process: &Process, steps: &mut Vec<Step>) {
        if world.cores.iter().any(|core| core.begin != core.begin_durable) {
            steps.push(Step::UnlinkDurable);
            // What all cores can do without is removed before that is made durable.
            if let Job::Truncate { floor } = process.job {
                steps.extend(truncatable(world, floor).map(Step::Unlink));
            }
            return;
        }
        match process.job {
            Job::Idle => {
                let latest = world.checkpoints[usize::from(process.latest)].epoch;
                let room = next_id(world) <= self.bounds.checkpoints;
                if !process.poisoned && room && self.checkpoint_epoch(world, process) > latest {
                    steps.push(Step::Write);
                }
            }
            Job::Written(id) => {
                steps.push(Step::Sync);
                if self.breaks(Broken::TruncateBeforePublish) {
                    steps.extend(truncatable(world, id).map(Step::Unlink));
                }
            }
            Job::Synced(_) => steps.push(Step::Rename),
            Job::Renamed(_) => steps.push(Step::Publish),
            Job::Retire { .. } => steps.push(Step::Retire),
            Job::Retired { .. } => steps.push(Step::Remove),
            Job::Truncate { floor } => steps.extend(truncatable(world, floor).map(Step::Unlink)),
        }
    }

    /// The state after a step; `None` where it cannot be taken.
    #[must_use]
    pub fn take(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match (step, last.phase.clone()) {
            (Step::Kill, _) => kill(&mut world),
            (Step::PowerCut(outcome), _) => cut_power(&mut world, outcome),
            (Step::Open, Phase::Down) => self.open(&mut world)?,
            (Step::OpenStep, Phase::Opening { step, point, base, first_epoch }) => {
                let next = self.open_step(&mut world, step, point);
                self.opened(&mut world, next, point, base, first_epoch);
            }
            (Step::OpenCore(core), Phase::Opening { step, point, base, first_epoch }) => {
                let next = self.open_core(&mut world, core, step, point, base)?;
                self.opened(&mut world, next, point, base, first_epoch);
            }
            (step, Phase::Running(mut process)) => {
                self.run(&mut world, &mut process, step)?;
                world.phase = Phase::Running(process);
            }
            _ => return None,
        }
        // Which core is which means nothing: of all orders one is kept.
        world.cores.sort_unstable();
        Some(world)
    }

    fn run(&self, world: &mut World, process: &mut Process, step: Step) -> Option<()> {
        match step {
            Step::Put(core) => put(world.cores.get_mut(core)?, process),
            Step::Seal(core) => {
                let core = world.cores.get_mut(core)?;
                if self.bounds.coarse {
                    put(core, process);
                }
                seal(core, process);
            }
            Step::Flush(core) => world.cores.get_mut(core)?.flush(),
            Step::BeginSync => {
                process.syncing = Some(self.closed(world));
                for core in &mut world.cores {
                    core.flush();
                    core.done = false;
                }
            }
            Step::SyncCore(core) => {
                let core = world.cores.get_mut(core)?;
                core.newest()?.sync();
                core.done = true;
            }
            Step::SyncFails(core) => {
                world.failed_syncs += 1;
                world.cores.get_mut(core)?.newest()?.sync_fails();
                process.syncing = None;
                process.poisoned = !self.breaks(Broken::RetryFailedSync);
            }
            Step::Ack => {
                process.durable = process.syncing.take()?;
                world.acked = world.acked.max(process.durable);
                world.cores.iter_mut().for_each(|core| core.done = false);
            }
            Step::Rot => {
                let newest = world.listed().next_back()?;
                world.checkpoints[usize::from(newest)].rotten = true;
                world.rotten += 1;
            }
            _ => self.checkpoint(world, process, step)?,
        }
        if matches!(step, Step::Put(_) | Step::Seal(_)) {
            world.pinned = None;
        }
        Some(())
    }

    fn checkpoint(&self, world: &mut World, process: &mut Process, step: Step) -> Option<()> {
        match (step, process.job) {
            (Step::Write, Job::Idle) => {
                let id = next_id(world);
                self.write_checkpoint(world, process, id);
                process.job = Job::Written(id);
            }
            (Step::Sync, Job::Written(id)) => {
                world.checkpoints[usize::from(id)].synced = !self.breaks(Broken::PublishUnsynced);
                process.job = Job::Synced(id);
            }
            (Step::Rename, Job::Synced(id)) => {
                world.checkpoints[usize::from(id)].stage = Stage::Renamed;
                process.job = Job::Renamed(id);
            }
            (Step::Publish, Job::Renamed(id)) => {
                world.checkpoints[usize::from(id)].stage = Stage::Published;
                let floor = self.floor(world, process, id);
                process.latest = id;
                self.go_on(world, process, floor);
            }
            (Step::Retire, Job::Retire { victim, floor }) => {
                world.checkpoints[usize::from(victim)].stage = Stage::Trash;
                process.job = Job::Retired { victim, floor };
            }
            (Step::Remove, Job::Retired { victim, floor }) => {
                world.checkpoints[usize::from(victim)].stage = Stage::Gone;
                if self.breaks(Broken::CollectByAge) {
                    world.lost_files |= bit(victim);
                }
                self.go_on(world, process, floor);
            }
            (Step::Unlink(core), Job::Truncate { floor: id } | Job::Written(id)) => {
                let core = world.cores.get_mut(core)?;
                core.begin = core.cuts[usize::from(id)];
            }
            (Step::UnlinkDurable, job) => {
                for core in &mut world.cores {
                    core.begin_durable = core.begin;
                    core.drop_removed();
                }
                if let Job::Truncate { floor } = job {
                    self.go_on(world, process, floor);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads back from the log what became durable since the newest checkpoint.
    fn write_checkpoint(&self, world: &mut World, process: &Process, id: u8) {
        let epoch = self.checkpoint_epoch(world, process);
        let files = world.checkpoints[usize::from(process.latest)].files | bit(id);
        let read = |core: &Core| {
            let mut content = Default::default();
            let after = core.cuts[usize::from(process.latest)];
            let cut = replay(world, core, after, epoch, &mut content);
            (content, cut)
        };
        let parts: Vec<_> = world.cores.iter().map(read).collect();
        for (core, (content, cut)) in world.cores.iter_mut().zip(parts) {
            core.files[usize::from(id)] = content;
            core.cuts[usize::from(id)] = cut;
        }
        world.checkpoints[usize::from(id)] =
            Checkpoint { stage: Stage::Temporary, epoch, files, ..Checkpoint::default() };
    }

    /// How far the log may be cut now that checkpoint `id` is published.
    fn floor(&self, world: &World, process: &Process, id: u8) -> u8 {
        match self.broken {
            Some(Broken::TruncateToNewest) => id,
            Some(Broken::TruncateToUnchecked) => process.latest,
            _ if world.is_good(process.latest) => process.latest,
            _ => 0,
        }
    }

    /// What is left to do for a published checkpoint.
    fn go_on(&self, world: &World, process: &mut Process, floor: u8) {
        let kept = |id: &u8| process.skipped & bit(*id) == 0;
        let known: Vec<_> = world.listed().filter(kept).collect();
        let victim = known.first().filter(|_| known.len() > usize::from(self.bounds.retained));
        process.job = match victim {
            Some(victim) => Job::Retire { victim: *victim, floor },
            None if floor != 0 && truncatable(world, floor).next().is_some() => Job::Truncate { floor },
            None => Job::Idle,
        };
    }

    fn open(&self, world: &mut World) -> Option<()> {
        let plan = plan(world, self.broken, None).ok()?;
        let seen = world.cores.iter().map(|core| core.high_water().0).max().unwrap_or(0);
        let seen = if self.breaks(Broken::ReuseEpochs) { plan.point } else { seen };
        let first_epoch = seen.max(plan.point) + 1;
        world.phase =
            Phase::Opening { step: OpenStep::Checkpoints, point: plan.point, base: plan.base, first_epoch };
        Some(())
    }

    fn open_step(&self, world: &mut World, step: OpenStep, point: u8) -> Option<OpenStep> {
        match step {
            OpenStep::Checkpoints => {
                for checkpoint in &mut world.checkpoints {
                    match checkpoint.stage {
                        Stage::Renamed => checkpoint.stage = Stage::Published,
                        Stage::Trash => checkpoint.stage = Stage::Gone,
                        _ => {}
                    }
                }
                let fresh = world.cores.iter().all(|core| core.segments.is_empty());
                let skip = fresh || self.breaks(Broken::ExposeUnsynced);
                Some(if skip { OpenStep::LogDirectory } else { OpenStep::Logs })
            }
            OpenStep::LogDirectory => {
                for core in &mut world.cores {
                    core.begin_durable = core.begin;
                    core.drop_removed();
                    core.segments.iter_mut().for_each(|segment| segment.named = true);
                }
                world.pinned = Some(point);
                let append = self.breaks(Broken::AppendToOldSegment);
                (!append || world.current == 0).then_some(OpenStep::Create)
            }
            OpenStep::Names => {
                world.cores.iter_mut().for_each(names_durable);
                (!self.breaks(Broken::CurrentBeforeSegments)).then_some(OpenStep::Current)
            }
            OpenStep::Current => {
                world.current = incarnation(world);
                Some(OpenStep::CurrentDurable)
            }
            OpenStep::CurrentDurable => {
                world.current_durable = world.current;
                self.breaks(Broken::CurrentBeforeSegments).then_some(OpenStep::Names)
            }
            OpenStep::Logs | OpenStep::Create => Some(step),
        }
    }

    fn open_core(
        &self,
        world: &mut World,
        core: usize,
        step: OpenStep,
        point: u8,
        base: u8,
    ) -> Option<Option<OpenStep>> {
        let incarnation = match step {
            // The first core to get a segment decides for the others.
            OpenStep::Create if world.cores.iter().any(|core| core.done) => incarnation(world),
            _ => incarnation(world) + 1,
        };
        let core = world.cores.get_mut(core)?;
        match step {
            OpenStep::Logs => {
                if let Some(segment) = core.newest() {
                    if self.breaks(Broken::ExposeWithoutRewriting) {
                        segment.sync();
                    } else {
                        segment.write_again_and_sync();
                    }
                }
            }
            OpenStep::Create => {
                let (last_epoch, last_sequence) = core.high_water();
                let void_above = if self.breaks(Broken::NoCut) { u8::MAX } else { point };
                let previous_len = core.segments.last().map_or(0, Segment::readable_len);
                core.segments.push(Segment {
                    incarnation,
                    void_above,
                    sealed: point,
                    last_epoch,
                    last_sequence: last_sequence.max(core.cuts[usize::from(base)]),
                    previous_len,
                    named: false,
                    slots: Vec::new(),
                    durable: 0,
                    clean: 0,
                });
            }
            _ => return None,
        }
        core.done = true;
        if world.cores.iter().any(|core| !core.done) {
            return Some(Some(step));
        }
        world.cores.iter_mut().for_each(|core| core.done = false);
        Some(match (step, self.broken) {
            (OpenStep::Logs, _) => Some(OpenStep::LogDirectory),
            (_, Some(Broken::CutNotDurable)) => None,
            (_, Some(Broken::CurrentBeforeSegments)) => Some(OpenStep::Current),
            _ => Some(OpenStep::Names),
        })
    }

    /// Goes on with the next step of an opening; without one, the store runs.
    fn opened(&self, world: &mut World, next: Option<OpenStep>, point: u8, base: u8, first_epoch: u8) {
        if let Some(step) = next {
            world.phase = Phase::Opening { step, point, base, first_epoch };
            return;
        }
        for core in &mut world.cores {
            core.epoch = first_epoch;
            core.sealed = point;
            core.sequence = core.high_water().1.max(core.cuts[usize::from(base)]);
            core.tail = core.segments.last().map_or(0, Segment::readable_len);
            // What was discarded is never to be seen again.
            core.truth.iter_mut().skip(usize::from(point) + 1).for_each(|epoch| *epoch = 0);
        }
        world.acked = world.acked.max(point);
        let skipped = world.listed().filter(|id| *id > base).fold(0, |mask, id| mask | bit(id));
        world.phase = Phase::Running(Process {
            incarnation: incarnation(world),
            durable: point,
            latest: base,
            skipped,
            ..Process::default()
        });
    }
}

/// Numbers of the cores of which something is true.
fn cores(world: &World, which: impl Fn(&Core) -> bool) -> impl Iterator<Item = usize> {
    world.cores.iter().enumerate().filter(move |(_, core)| which(core)).map(|(index, _)| index)
}

/// The cores that have something which checkpoint `floor` covers.
fn truncatable(world: &World, floor: u8) -> impl Iterator<Item = usize> {
    cores(world, move |core| core.begin < core.cuts[usize::from(floor)])
}

/// The largest incarnation in any name.
fn incarnation(world: &World) -> u8 {
    let segments = world.cores.iter().flat_map(|core| &core.segments);
    segments.map(|segment| segment.incarnation).max().unwrap_or(0).max(world.current)
}

/// One more than every checkpoint id that was used.
fn next_id(world: &World) -> u8 {
    let ids = 1..u8::try_from(CHECKPOINTS).unwrap_or(u8::MAX);
    let used = ids.rev().find(|id| world.checkpoints[usize::from(*id)].stage != Stage::Absent);
    used.unwrap_or(0) + 1
}

fn put(core: &mut Core, process: &Process) {
    core.truth[usize::from(core.epoch)] |= bit(process.incarnation);
    append(core, Kind::Change);
}

fn seal(core: &mut Core, process: &Process) {
    append(core, Kind::Barrier(process.durable));
    core.sealed = core.epoch;
    core.epoch += 1;
}

fn append(core: &mut Core, kind: Kind) {
    core.sequence += 1;
    core.buffer.push(Record { epoch: core.epoch, sequence: core.sequence, kind });
}

/// The names of new segments are durable: of what is before them only the part counts that they say.
fn names_durable(core: &mut Core) {
    core.segments.iter_mut().for_each(|segment| segment.named = true);
    for index in 1..core.segments.len() {
        let len = core.segments[index].previous_len;
        let before = &mut core.segments[index - 1];
        before.slots.truncate(usize::from(len));
        before.durable = before.durable.min(len);
        before.clean = before.clean.min(len);
    }
}
