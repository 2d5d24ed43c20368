//! Operation sequences against the model, with a crash wherever the bytes say.

use laminar_storage::incremental::ManagerOptions;
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};

use super::directory::Input;
use crate::driver::{Scenario, guarded};
use crate::log::Log;
use crate::oracle::Model;
use crate::store::{Do, StoreScenario, small_settings};

fn script(input: &mut Input<'_>) -> Vec<Do> {
    let mut script = Vec::new();
    while script.len() < 40 && !input.0.is_empty() {
        let (what, a, b) = (input.byte(), u32::from(input.byte() % 8), input.byte());
        let (core, len) = (usize::from(b % 4), usize::from(b) * 4);
        match what % 16 {
            0..4 => script.push(Do::Put(a, a + 1 + u32::from(b % 3), len)),
            4 => script.push(Do::Delete(a)),
            5 => script.push(Do::Update(a)),
            6 => script.push(Do::Batch(a, a + 4, len)),
            7 => script.push(Do::Offset(core, u64::from(b))),
            8 => script.push(Do::Watermark(core, i64::from(b) - 99)),
            9 => script.push(Do::Seal(core)),
            10 => script.push(Do::Jump(core, 1 + u64::from(b % 3))),
            11 | 12 => script.extend([Do::SealAll, Do::Ack]),
            13 => script.push(Do::Checkpoint),
            14 => script.push(Do::Idle),
            _ => script.extend([Do::Drop, Do::Open(1 + u16::from(b % 4))]),
        }
    }
    script
}

/// Runs a script, crashes it at one operation in one way, and lets the oracle judge the recovery.
pub(super) fn ops(data: &[u8]) {
    let mut input = Input(data);
    let (cores, at, image) = (1 + u16::from(input.byte() % 4), input.byte(), usize::from(input.byte()));
    let scenario = StoreScenario {
        name: "fuzzed".to_owned(),
        cores,
        recover_cores: None,
        recover_checkpoint: image % 3 == 0,
        settings: small_settings(),
        manager: ManagerOptions::default(),
        router: None,
        part: false,
        script: script(&mut input),
    };
    let disk = SimDisk::new(1);
    disk.set_tracing(false);
    disk.record(true);
    let mut log = Log::new(Model::new(cores));
    let mut result = guarded(|| scenario.run(&disk, &mut log));
    let history = disk.history();
    // Near the end as often as at the beginning.
    let place = usize::from(at) * history.len() / 256;
    if let (Ok(()), Some(snapshot)) = (&result, history.get(place)) {
        let model = log.at(snapshot.op()).model.as_ref().clone();
        let policy = ImagePolicy { exhaustive_bits: 4, random: 8, ..ImagePolicy::default() };
        let mut images = snapshot.images(&policy);
        let crashed = images.by_ref().take(1 + image % 16).last();
        let crashed = crashed.map_or_else(|| snapshot.restart(), |image| image.mount());
        crashed.set_tracing(false);
        result = guarded(|| scenario.recover_and_go_on(&crashed, &mut Log::of_last(model)));
    }
    assert_eq!(result, Ok(()), "{:?}", scenario.script);
}
