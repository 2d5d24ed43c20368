//! Scenarios drawn from a seed: any of the things a program can do, in any order that makes sense.

use laminar_storage::incremental::ManagerOptions;

use super::{Do, StoreScenario, mixed, small_settings};

/// A source of numbers, the same for the same seed.
struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.drawn += 1;
        mixed(self.seed, self.drawn) % sides
    }

    fn key(&mut self) -> u32 {
        u32::try_from(self.roll(8)).unwrap_or_default()
    }

    /// Mostly short values, sometimes one over several sectors.
    fn len(&mut self) -> usize {
        let most = [20, 60, 400, 1800][usize::try_from(self.roll(4)).unwrap_or_default()];
        usize::try_from(self.roll(most)).unwrap_or_default()
    }

    fn core(&mut self, cores: u16) -> usize {
        usize::try_from(self.roll(u64::from(cores))).unwrap_or_default()
    }

    fn cores(&mut self) -> u16 {
        [1, 2, 2, 3, 4][self.core(5)]
    }
}

/// The scenario `store-random-SEED`.
#[must_use]
pub fn random_scenario(seed: u64) -> StoreScenario {
    let mut dice = Dice { seed, drawn: 0 };
    let cores = dice.cores();
    let mut settings = small_settings();
    settings.max_retained = 1 + dice.core(3);
    settings.preallocate_bytes = if dice.roll(4) == 0 { settings.segment_bytes } else { 0 };
    StoreScenario {
        name: format!("store-random-{seed}"),
        cores,
        recover_cores: if dice.roll(4) == 0 { Some(dice.cores()) } else { None },
        recover_checkpoint: dice.roll(3) == 0,
        settings,
        manager: ManagerOptions::default(),
        router: None,
        part: false,
        script: script(&mut dice, cores),
    }
}

fn script(dice: &mut Dice, mut cores: u16) -> Vec<Do> {
    let mut script = Vec::new();
    for _ in 0..24 + dice.roll(16) {
        match dice.roll(32) {
            0..8 => {
                let first = dice.key();
                let (last, len) = (first + 1 + dice.key() % 3, dice.len());
                script.push(Do::Put(first, last, len));
            }
            8..10 => script.push(Do::Delete(dice.key())),
            10 => script.push(Do::Update(dice.key())),
            11 => script.push(Do::Take(dice.key())),
            12 => {
                let first = dice.key();
                script.push(Do::Batch(first, first + 5, dice.len()));
            }
            13 => script.push(Do::Offset(dice.core(cores), dice.roll(100))),
            14 => script.push(Do::Forget(dice.core(cores))),
            15 => script.push(Do::Watermark(dice.core(cores), i64::from(dice.key()) - 4)),
            16..18 => script.push(Do::Seal(dice.core(cores))),
            18 => script.push(Do::Jump(dice.core(cores), 1 + dice.roll(3))),
            19..25 => script.extend([Do::SealAll, Do::Ack]),
            25 => script.extend([Do::Ack, Do::Idle]),
            26..29 => script.push(Do::Checkpoint),
            29 => script.extend([Do::Close, Do::Open(cores)]),
            30 => script.extend([Do::Drop, Do::Open(cores)]),
            _ => {
                cores = dice.cores();
                script.push(Do::Open(cores));
            }
        }
    }
    script
}
