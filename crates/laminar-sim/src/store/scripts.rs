//! What programs do with a store: every scenario by hand.

use laminar_storage::Compression;
use laminar_storage::incremental::ManagerOptions;
use laminar_storage::incremental::merge::MergePolicy;
use laminar_storage::vfs::sim::{Fault, Keep};

use super::random::random_scenario;
use super::{Do, StoreScenario, small_settings};

/// Seeds of the random scenarios that are among all scenarios. Any other can be had by its name.
pub(super) const RANDOM_SEEDS: std::ops::RangeInclusive<u64> = 1..=10;

/// A scenario with the small settings.
fn scenario(name: &str, cores: u16, script: Vec<Do>) -> StoreScenario {
    StoreScenario {
        name: name.to_owned(),
        cores,
        recover_cores: None,
        recover_checkpoint: false,
        settings: small_settings(),
        manager: ManagerOptions::default(),
        router: None,
        part: false,
        script,
    }
}

/// An epoch in which something of everything happens.
fn epoch(first: u32, len: usize) -> Vec<Do> {
    vec![
        Do::Put(first, first + 3, len),
        Do::Update(first),
        Do::Delete(first + 1),
        Do::Offset(0, u64::from(first)),
        Do::Watermark(0, i64::from(first) - 5),
        Do::SealAll,
        Do::Ack,
    ]
}

/// All scenarios of the store.
#[must_use]
pub fn store_scenarios() -> Vec<StoreScenario> {
    let mut all = one_layout();
    all.extend(checkpointing());
    all.extend(as_if_large());
    all.extend(several_layouts());
    all.extend(parts());
    all.extend(failing());
    all.extend(RANDOM_SEEDS.map(random_scenario));
    all
}

/// The number of cores stays what it is.
fn one_layout() -> Vec<StoreScenario> {
    let mut ahead = scenario("store-preallocated", 2, [epoch(0, 30), roll_two()].concat());
    ahead.settings.preallocate_bytes = 4 << 10;
    vec![
        scenario("store-one-core", 1, [epoch(0, 30), epoch(1, 30), epoch(2, 300)].concat()),
        scenario("store-two-cores", 2, two_cores()),
        scenario("store-four-cores", 4, [epoch(0, 30), vec![Do::Put(0, 12, 40)], epoch(4, 60)].concat()),
        scenario("store-tails", 2, tails()),
        scenario("store-jumps", 2, jumps()),
        scenario("store-idle", 2, idle()),
        scenario("store-reopen", 2, reopen()),
        scenario("store-roll", 1, roll()),
        scenario("store-full-ring", 1, full_ring()),
        scenario("store-reinsert", 1, reinsert()),
        scenario("store-atoms", 1, atoms()),
        scenario("store-big-values", 1, big_values()),
        scenario("store-empty-epochs", 2, empty_epochs()),
        scenario("store-positions", 2, positions()),
        scenario("store-batches", 2, batches()),
        scenario("store-close-each", 2, ends(Do::Close)),
        scenario("store-drop-each", 2, ends(Do::Drop)),
        ahead,
    ]
}

/// Truncation, retention and merging.
fn checkpointing() -> Vec<StoreScenario> {
    let retaining = |name, cores, retained, recover_checkpoint, script: Vec<Do>| {
        let mut scenario = scenario(name, cores, script);
        scenario.settings.max_retained = retained;
        scenario.recover_checkpoint = recover_checkpoint;
        scenario
    };
    let mut compressed = retaining("store-compressed", 2, 2, true, checkpoints());
    compressed.settings.compression = Compression::Lz4;
    vec![
        compressed,
        retaining("store-checkpoints", 2, 2, false, checkpoints()),
        retaining("store-retain-one", 1, 1, true, checkpoints()),
        retaining("store-retain-three", 1, 3, true, checkpoints()),
        retaining("store-merging", 1, 2, false, merging()),
        retaining("store-cut-many", 1, 2, false, cut_many(&[])),
        retaining("store-reused", 2, 2, false, reused()),
        retaining("store-cut-departed", 2, 2, false, cut_many(&[Do::Open(1)])),
        retaining("store-checkpoint-nothing", 2, 2, true, checkpoint_nothing()),
        retaining("store-savepoints", 2, 1, true, savepoints()),
        retaining("store-forks", 1, 2, false, forks()),
    ]
}

/// Small states that are treated as large ones: spilled, cut into ranges, renewed range by range.
fn as_if_large() -> Vec<StoreScenario> {
    let large = |name, cores, overlay_budget, script: Vec<Do>| {
        let merge = MergePolicy { small_files: 0, small_bytes: 0, run: 3, range_bytes: 900 };
        StoreScenario { manager: ManagerOptions { overlay_budget, merge }, ..scenario(name, cores, script) }
    };
    let resharded = |cores| StoreScenario {
        recover_cores: Some(cores),
        recover_checkpoint: true,
        ..large("store-ranges-recover-resharded", 1, usize::MAX, ranges(&[]))
    };
    vec![
        large("store-ranges", 1, usize::MAX, ranges(&[Do::Open(0)])),
        large("store-ranges-reshard", 2, usize::MAX, ranges(&[Do::Open(3), Do::Open(1)])),
        resharded(2),
        large("store-spilling", 2, 700, ranges(&[Do::Open(0)])),
    ]
}

/// Stores that are parts of a whole, of which other parts may have less.
fn parts() -> Vec<StoreScenario> {
    let part = |name, cores, script| StoreScenario { part: true, ..scenario(name, cores, script) };
    let behind = [
        epoch(0, 30),
        vec![Do::Put(0, 6, 40), Do::Delete(1), Do::Offset(0, 50), Do::SealAll, Do::Wait, Do::Checkpoint],
        vec![Do::Put(2, 4, 60), Do::SealAll, Do::Wait, Do::Open(0)],
        epoch(3, 30),
        vec![Do::Checkpoint, Do::Put(1, 5, 50), Do::SealAll, Do::Wait],
    ];
    let behind = behind.concat();
    let rolls = (0..9).flat_map(|n| [Do::Put(n, n + 4, 300), Do::SealAll, Do::Wait]);
    let rolls =
        [epoch(0, 300), vec![Do::Checkpoint], rolls.collect(), vec![Do::Checkpoint, Do::Ack, Do::Checkpoint]];
    // One checkpoint is of an epoch in the middle of what became durable together, and one that is asked for before may hold less only.
    let reserved = [
        epoch(0, 30),
        vec![
            Do::Reserve,
            Do::Put(0, 5, 40),
            Do::SealAll,
            Do::Put(1, 4, 50),
            Do::Delete(0),
            Do::SealAll,
            Do::Ack,
        ],
        vec![Do::Checkpoint, Do::Put(2, 6, 30), Do::SealAll, Do::Ack, Do::CheckpointReserved],
        vec![Do::Put(0, 3, 300), Do::SealAll, Do::Ack, Do::Checkpoint, Do::Wait],
    ];
    vec![
        part("store-part", 2, behind.clone()),
        part("store-part-reserved", 2, reserved.concat()),
        part("store-part-rolls", 1, rolls.concat()),
        StoreScenario { recover_cores: Some(3), ..part("store-part-recover-resharded", 2, behind.clone()) },
        StoreScenario {
            recover_checkpoint: true,
            ..part(
                "store-part-never-agreed",
                2,
                [vec![Do::Put(0, 6, 40), Do::SealAll, Do::Wait, Do::Checkpoint], behind].concat(),
            )
        },
    ]
}

/// A state of several ranges, of which every checkpoint changes a little; somewhere in the middle, something else.
fn ranges(between: &[Do]) -> Vec<Do> {
    let mut script = vec![Do::Put(0, 12, 400), Do::SealAll, Do::Ack, Do::Checkpoint];
    for (round, n) in [3, 9, 0, 6, 11, 2, 7].into_iter().enumerate() {
        script.extend([
            Do::Put(n, n + 1, 300),
            Do::Delete((n + 5) % 12),
            Do::SealAll,
            Do::Ack,
            Do::Checkpoint,
        ]);
        if round == 1 {
            script.extend_from_slice(between);
        }
    }
    script
}

/// Opened with another number of cores, by the program or by recovery.
fn several_layouts() -> Vec<StoreScenario> {
    let recovered = |name, cores, recover_cores, recover_checkpoint| {
        let mut scenario = scenario(name, cores, two_cores());
        (scenario.recover_cores, scenario.recover_checkpoint) = (Some(recover_cores), recover_checkpoint);
        scenario
    };
    let mut routed = scenario("store-routed", 3, [epoch(0, 30), epoch(3, 40), vec![Do::Open(2)]].concat());
    routed.script.extend(epoch(1, 30));
    routed.router = Some(by_last_byte);
    let mut rerouted = recovered("store-recover-routed", 2, 4, false);
    rerouted.router = Some(by_last_byte);
    vec![
        scenario("store-reshard", 2, reshard(&[3, 1, 2])),
        scenario("store-reshard-up", 1, reshard(&[2, 4])),
        scenario("store-reshard-down", 4, reshard(&[2, 1])),
        recovered("store-recover-resharded", 2, 3, false),
        recovered("store-recover-one-core", 3, 1, true),
        recovered("store-recover-four-cores", 1, 4, true),
        routed,
        rerouted,
    ]
}

/// A router of a user's own.
fn by_last_byte(key: &[u8], cores: usize) -> usize {
    usize::from(key.last().copied().unwrap_or(0)) % cores
}

/// A disk that fails while the store runs; what was acknowledged before is there afterwards.
fn failing() -> Vec<StoreScenario> {
    let broken = |name, cores, broken: Vec<Do>| {
        let mut script = epoch(0, 30);
        script.extend(broken);
        script.extend([Do::Put(0, 4, 40), Do::SealAll, Do::Refused, Do::Repair, Do::Free(None), Do::Drop]);
        script.push(Do::Open(cores));
        script.extend(epoch(2, 30));
        scenario(name, cores, script)
    };
    let dropped = |keep, reads_old| Do::Break(Fault::SyncDropsAndCleans { keep, reads_old });
    vec![
        broken("store-poisoned-sync", 2, vec![dropped(Keep::Nothing, false)]),
        broken("store-poisoned-half", 2, vec![dropped(Keep::SecondHalf, false)]),
        broken("store-poisoned-reads-old", 1, vec![dropped(Keep::FirstHalf, true)]),
        broken("store-poisoned-write", 1, vec![Do::Break(Fault::Eio)]),
        broken("store-disk-full", 2, vec![Do::Free(Some(200)), Do::Put(3, 9, 100)]),
    ]
}

/// Keys that go and come back, within an epoch and over several.
fn reinsert() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 3, 20), Do::Delete(0), Do::Put(0, 1, 10), Do::SealAll, Do::Ack];
    script.extend([Do::Delete(0), Do::Take(1), Do::Take(9), Do::SealAll, Do::Put(0, 2, 5), Do::Delete(1)]);
    script.extend([Do::SealAll, Do::Ack, Do::Checkpoint, Do::Delete(2), Do::Update(2), Do::Put(1, 2, 0)]);
    script.extend([Do::SealAll, Do::Ack, Do::Delete(0), Do::Delete(1), Do::Delete(2), Do::SealAll, Do::Ack]);
    script
}

/// Values that begin and end anywhere in a sector, and epochs that end near its edge.
fn atoms() -> Vec<Do> {
    let mut script = Vec::new();
    for len in [1, 330, 512, 700, 1023, 90] {
        script.extend([Do::Put(0, 1, len), Do::SealAll, Do::Ack]);
    }
    script.extend([Do::Put(1, 3, 511), Do::SealAll, Do::Put(2, 4, 513), Do::SealAll, Do::Ack]);
    script
}

/// Values longer than a segment.
fn big_values() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 1, 9_000), Do::SealAll, Do::Ack, Do::Put(1, 2, 40), Do::SealAll];
    script.extend([Do::Put(0, 2, 20_000), Do::SealAll, Do::Ack, Do::Checkpoint, Do::Put(0, 1, 6_000)]);
    script.extend([Do::SealAll, Do::Ack]);
    script
}

/// Epochs in which nothing happens, and epochs in which only one core does something.
fn empty_epochs() -> Vec<Do> {
    let mut script = vec![Do::SealAll, Do::SealAll, Do::Ack, Do::Put(0, 1, 20), Do::SealAll, Do::SealAll];
    script.extend([Do::Ack, Do::Open(2), Do::SealAll, Do::Ack, Do::Drop, Do::Open(2), Do::Offset(1, 4)]);
    script.extend([Do::SealAll, Do::Ack, Do::Close, Do::Open(2), Do::SealAll]);
    script
}

/// Source offsets and watermarks that go backwards, and sources that are given up.
fn positions() -> Vec<Do> {
    let mut script = Vec::new();
    for (offset, watermark) in [(10, 100), (7, 50), (30, -5), (0, 7)] {
        script.extend([Do::Offset(0, offset), Do::Watermark(0, watermark), Do::Offset(1, offset / 2)]);
        script.extend([Do::Watermark(1, watermark * 2), Do::SealAll, Do::Ack]);
        if offset == 7 {
            script.extend([Do::Forget(0), Do::SealAll, Do::Ack, Do::Checkpoint]);
        }
    }
    script.extend([Do::Forget(1), Do::Put(0, 2, 9), Do::SealAll, Do::Ack, Do::Forget(0), Do::Open(2)]);
    script.extend([Do::SealAll, Do::Ack]);
    script
}

fn batches() -> Vec<Do> {
    let mut script = vec![Do::Batch(0, 8, 30), Do::SealAll, Do::Ack, Do::Batch(0, 90, 3), Do::Batch(2, 6, 9)];
    script.extend([Do::SealAll, Do::Ack, Do::Checkpoint, Do::Batch(3, 7, 200), Do::Take(3), Do::SealAll]);
    script.push(Do::Ack);
    script
}

/// A store that ends like this after every epoch, with changes that were not sealed.
fn ends(end: Do) -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..3 {
        script.extend(epoch(round * 2, 30));
        script.extend([Do::Put(8, 10, 20), end, Do::Open(2)]);
    }
    script
}

/// So many checkpoints of so little that deltas are merged, and the merged ones again.
fn merging() -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..9 {
        script.extend([Do::Put(round % 4, round % 4 + 2, 60), Do::Delete(round % 3), Do::SealAll, Do::Ack]);
        script.push(Do::Checkpoint);
    }
    script
}

/// Checkpoints of an empty store, of the same epoch twice, and while changes are not sealed.
fn checkpoint_nothing() -> Vec<Do> {
    let mut script = vec![Do::Checkpoint, Do::SealAll, Do::Ack, Do::Checkpoint, Do::Put(0, 2, 20)];
    script.extend([Do::Checkpoint, Do::SealAll, Do::Ack, Do::Put(1, 4, 20), Do::Seal(0), Do::Checkpoint]);
    script.extend([Do::Checkpoint, Do::Open(0), Do::Checkpoint]);
    script
}

/// Savepoints that retention must not touch, of the newest checkpoint and of one that is made for them.
fn savepoints() -> Vec<Do> {
    let mut script = vec![Do::Savepoint(0)];
    script.extend(epoch(0, 30));
    script.extend([Do::Checkpoint, Do::Savepoint(1)]);
    script.extend(epoch(2, 40));
    script.extend([Do::Put(0, 2, 9), Do::Savepoint(2), Do::SealAll, Do::Ack, Do::Checkpoint, Do::Open(0)]);
    script
}

/// Stores that begin with savepoints, with the same number of cores and others, while the old one goes on.
///
/// Found: a fork whose first start was interrupted, which was then re-sharded and interrupted again before
/// every core had a segment, was refused for good, because the re-sharded checkpoint counted as one that has
/// something of the log.
fn forks() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Savepoint(0), Do::Fork(0, 1), Do::Put(0, 4, 60), Do::SealAll, Do::Ack]);
    script.extend([Do::Savepoint(1), Do::Fork(1, 2), Do::Open(0), Do::Put(1, 3, 9), Do::SealAll, Do::Ack]);
    script
}

fn two_cores() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Offset(1, 9), Do::Watermark(1, 3)]);
    script.extend(epoch(4, 200));
    script.push(Do::Checkpoint);
    script.extend(epoch(2, 50));
    script
}

/// Changes that are never sealed, and an epoch that only one core seals.
fn tails() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Put(0, 6, 40), Do::Seal(0), Do::Put(0, 6, 40), Do::Ack, Do::Close]);
    script.push(Do::Open(2));
    script.extend([Do::Put(0, 4, 30), Do::Seal(1), Do::Ack, Do::Put(2, 6, 30), Do::Seal(1)]);
    script.extend([Do::Seal(0), Do::Ack, Do::Put(6, 9, 10), Do::Drop, Do::Open(2)]);
    script
}

/// Cores that seal several epochs at once, at different times.
fn jumps() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Put(0, 4, 20), Do::Jump(0, 3), Do::Put(4, 8, 20), Do::Seal(1), Do::Ack]);
    script.extend([Do::Offset(1, 5), Do::Put(0, 8, 20), Do::Jump(1, 2), Do::Ack, Do::Checkpoint]);
    script.extend([Do::Jump(1, 4), Do::Put(0, 3, 9), Do::Jump(0, 2), Do::Ack, Do::Jump(0, 2), Do::Ack]);
    script
}

/// Ring 1 finds nothing to do between epochs, and leaves evidence.
fn idle() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Idle, Do::Put(0, 3, 20), Do::Idle]);
    script.extend(epoch(2, 30));
    script.extend([Do::Idle, Do::Idle, Do::SealAll, Do::Ack, Do::Idle]);
    script
}

/// Openings with and without anything new.
fn reopen() -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend([Do::Close, Do::Open(2), Do::Drop, Do::Open(2)]);
    script.extend(epoch(3, 30));
    script.extend([Do::Drop, Do::Open(2), Do::Checkpoint, Do::Close, Do::Open(2)]);
    script.extend(epoch(1, 30));
    script.push(Do::Open(2));
    script
}

/// One epoch over several segments, and segments of several epochs.
fn roll() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 5, 1500), Do::SealAll, Do::Ack];
    script.extend([Do::Put(2, 4, 900), Do::Delete(0), Do::SealAll, Do::Put(3, 6, 1200), Do::SealAll]);
    script.extend([Do::Ack, Do::Put(0, 4, 1800), Do::Idle, Do::SealAll, Do::Ack]);
    script
}

fn roll_two() -> Vec<Do> {
    vec![
        Do::Put(0, 8, 900),
        Do::SealAll,
        Do::Ack,
        Do::Put(4, 12, 700),
        Do::SealAll,
        Do::Ack,
        Do::Idle,
        Do::Checkpoint,
        Do::Put(1, 6, 900),
        Do::SealAll,
        Do::Ack,
    ]
}

/// Enough checkpoints for truncation, retention and merging.
fn checkpoints() -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..5 {
        script.extend([Do::Put(round, round + 4, 1100), Do::Delete(round * 2), Do::SealAll, Do::Ack]);
        script.push(Do::Checkpoint);
    }
    script.extend([Do::Open(0), Do::Put(1, 3, 900), Do::SealAll, Do::Ack, Do::Checkpoint]);
    script
}

/// A log of several segments per core, which one checkpoint cuts at once; between, something else.
fn cut_many(between: &[Do]) -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..5 {
        script.extend([Do::Put(round, round + 8, 1200), Do::SealAll, Do::Ack]);
    }
    script.extend_from_slice(between);
    for round in 0..3 {
        script.extend([Do::Put(round, round + 2, 40), Do::SealAll, Do::Ack, Do::Checkpoint]);
    }
    script
}

/// Segments that the log was cut by are used again, more than once, and end within old bytes.
fn reused() -> Vec<Do> {
    let mut script = Vec::new();
    for round in 0..6 {
        script.extend([Do::Put(round, round + 12, 900), Do::SealAll, Do::Ack, Do::Checkpoint]);
        script.extend([Do::Put(round, round + 2, 40), Do::SealAll, Do::Ack]);
    }
    script.extend(epoch(1, 30));
    script.extend([Do::Put(0, 4, 200), Do::SealAll, Do::Put(2, 4, 7), Do::SealAll, Do::Ack]);
    script
}

/// Ring 1 works in the middle of epochs, because the ring is full.
fn full_ring() -> Vec<Do> {
    let mut script = vec![Do::Put(0, 90, 4), Do::SealAll, Do::Put(40, 120, 4), Do::Ack];
    script.extend([Do::Put(0, 70, 4), Do::SealAll, Do::Ack, Do::Put(0, 80, 4)]);
    script
}

/// Opened with one number of cores after the other, with an epoch or two in each.
fn reshard(cores: &[u16]) -> Vec<Do> {
    let mut script = epoch(0, 30);
    script.extend(epoch(3, 30));
    script.extend([Do::Put(0, 9, 10), Do::Seal(0)]);
    for (round, cores) in (2..).zip(cores) {
        let last = usize::from(*cores) - 1;
        script.extend([Do::Open(*cores), Do::Watermark(last, 4), Do::Offset(last, u64::from(round))]);
        script.extend(epoch(round, 30));
        if round == 2 {
            script.push(Do::Checkpoint);
        }
    }
    script
}
