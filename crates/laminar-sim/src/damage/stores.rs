//! The stores that damage is tried on: six of about 64 KiB each, and one with compressed files.

use laminar_storage::incremental::ManagerOptions;
use laminar_storage::{Compression, Settings};

use crate::store::{Do, StoreScenario, small_settings};

/// A store at rest, by what was done with it.
#[derive(Clone, Debug)]
pub struct Reference {
    /// What was done.
    pub scenario: StoreScenario,
    /// Whether it was killed right after an acknowledgement, when no later frame testified to it.
    pub killed: bool,
}

fn reference(name: &str, cores: u16, settings: Settings, script: Vec<Do>) -> Reference {
    let killed = script.last() == Some(&Do::Ack);
    let scenario = StoreScenario {
        name: name.to_owned(),
        cores,
        recover_cores: None,
        recover_checkpoint: false,
        settings,
        manager: ManagerOptions::default(),
        router: None,
        part: false,
        script,
    };
    Reference { scenario, killed }
}

/// One epoch, durable: puts, a delete, an offset and a watermark.
fn epoch(round: u32, from: u32, to: u32, len: usize) -> Vec<Do> {
    let core = round as usize;
    vec![
        Do::Put(from, to, len),
        Do::Delete(from + round % 3),
        Do::Update(to - 1),
        Do::Offset(core, 100 + u64::from(round)),
        Do::Watermark(core, i64::from(round) - 3),
        Do::SealAll,
        Do::Ack,
    ]
}

fn epochs(rounds: std::ops::Range<u32>, step: u32, keys: u32, len: usize) -> Vec<Do> {
    rounds.flat_map(|round| epoch(round, round * step % 40, round * step % 40 + keys, len)).collect()
}

fn one_core() -> Reference {
    let mut script = epochs(0..6, 5, 20, 300);
    script.push(Do::Checkpoint);
    script.extend(epochs(6..9, 3, 15, 250));
    script.push(Do::Close);
    let settings = Settings { segment_bytes: 32 << 10, ..small_settings() };
    reference("one-core", 1, settings, script)
}

fn two_cores() -> Reference {
    let mut script = Vec::new();
    for round in 0..4 {
        script.extend(epochs(round * 3..round * 3 + 2, 7, 14, 260));
        script.extend([Do::Idle, Do::Checkpoint]);
    }
    script.extend(epochs(12..15, 2, 9, 200));
    script.push(Do::Idle);
    let settings = Settings { segment_bytes: 8 << 10, preallocate_bytes: 8 << 10, ..small_settings() };
    reference("two-cores", 2, settings, script)
}

fn four_cores() -> Reference {
    let mut script = epochs(0..5, 9, 30, 180);
    script.push(Do::Checkpoint);
    script.extend(epochs(5..11, 4, 16, 170));
    reference("four-cores", 4, Settings { segment_bytes: 16 << 10, ..small_settings() }, script)
}

fn resharded() -> Reference {
    let mut script = epochs(0..4, 8, 30, 170);
    script.extend([Do::Checkpoint, Do::Open(3)]);
    script.extend(epochs(4..7, 6, 20, 170));
    script.extend([Do::Checkpoint, Do::Drop, Do::Open(2)]);
    script.extend(epochs(7..9, 5, 12, 150));
    script.push(Do::Close);
    reference("resharded", 2, Settings { segment_bytes: 16 << 10, ..small_settings() }, script)
}

fn segments() -> Reference {
    let mut script = epochs(0..13, 3, 14, 280);
    script.extend(epochs(13..17, 1, 3, 60));
    reference("segments", 1, small_settings(), script)
}

fn retention() -> Reference {
    let mut script = Vec::new();
    for round in 0..6 {
        // The same keys again and again, so that files are merged and records die in them.
        script.extend(epochs(round * 2..round * 2 + 2, 0, 24, 220));
        script.extend((0..8).map(|n| Do::Delete((round * 5 + n) % 24)));
        script.extend([Do::SealAll, Do::Ack, Do::Checkpoint]);
    }
    script.extend(epochs(12..14, 11, 6, 100));
    script.push(Do::Close);
    reference("retention", 1, Settings { max_retained: 3, ..small_settings() }, script)
}

/// Many small records that resemble each other, so that LZ4 makes them smaller.
fn compressed() -> Reference {
    let mut script = Vec::new();
    for round in 0..4 {
        script.extend([Do::Put(round * 100, round * 100 + 300, 12), Do::Delete(round * 100 + 7)]);
        script.extend([Do::Offset(0, u64::from(round)), Do::SealAll, Do::Ack, Do::Checkpoint]);
    }
    script.extend(epochs(4..6, 5, 10, 40));
    script.push(Do::Close);
    let settings = Settings { compression: Compression::Lz4, ..small_settings() };
    reference("compressed", 1, settings, script)
}

/// All of them.
#[must_use]
pub fn reference_stores() -> Vec<Reference> {
    vec![one_core(), two_cores(), four_cores(), resharded(), segments(), retention(), compressed()]
}

/// The one of this name.
///
/// # Errors
/// The names there are.
pub fn reference_store(name: &str) -> Result<Reference, String> {
    let stores = reference_stores();
    let names: Vec<_> = stores.iter().map(|store| store.scenario.name.clone()).collect();
    let found = stores.into_iter().find(|store| store.scenario.name == name);
    found.ok_or_else(|| format!("no store {name}, only {}", names.join(", ")))
}
