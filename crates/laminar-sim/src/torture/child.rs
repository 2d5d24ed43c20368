//! The process that is killed: opens a store, writes epoch after epoch, makes checkpoints, closes, and
//! says on standard output what it was told is durable.

use std::io::{Read, Write};
use std::path::Path;

use laminar_storage::ids::Epoch;
use laminar_storage::{CoreStore, Opened, Router, Settings, Store};

use super::truth;
use crate::dice::{Dice, mixed};
use crate::oracle::State;

/// Small files and automatic checkpoints all the time.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        ring_capacity: 64,
        state_limit_bytes: 4 << 20,
        segment_bytes: 16 << 10,
        preallocate_bytes: 8 << 10,
        checkpoint_interval_ms: 3,
        checkpoint_wal_bytes: 0,
        max_retained: 2,
        ..Settings::default()
    }
}

/// Other sizes and times that a number decides; 0 is [`settings`].
#[must_use]
pub fn settings_of(variant: u64) -> Settings {
    if variant == 0 {
        return settings();
    }
    let mut dice = Dice::new(variant);
    let segment_bytes = [4 << 10, 16 << 10, 256 << 10].get(dice.index(3)).copied().unwrap_or(16 << 10);
    Settings {
        segment_bytes,
        preallocate_bytes: [0, 4 << 10, segment_bytes].get(dice.index(3)).copied().unwrap_or_default(),
        checkpoint_interval_ms: [0, 3, 20].get(dice.index(3)).copied().unwrap_or_default(),
        max_retained: 1 + dice.index(3),
        ..settings()
    }
}

/// What a child is told.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Decides the state of every epoch.
    pub truth: u64,
    /// Decides what it does when.
    pub seed: u64,
    /// Cores it opens the store with.
    pub cores: usize,
    /// What was acknowledged before.
    pub acked: Epoch,
    /// Where a reader saw that opening would land.
    pub expected: Option<Epoch>,
    /// Decides the settings; 0 for those of [`settings`].
    pub settings: u64,
}

impl Life {
    /// The lives of one store in four go on for so long, in segments so small and with so many checkpoints, that segments are
    /// used again.
    fn is_busy(&self) -> bool {
        mixed(self.truth, 4).is_multiple_of(4)
    }

    /// Those of another one in four seldom wait for an epoch, so that Ring 1 has more to do beside syncs.
    fn is_hasty(&self) -> bool {
        mixed(self.truth, 4) % 4 == 1
    }
}

impl Life {
    /// As arguments.
    #[must_use]
    pub fn to_arguments(self) -> [String; 6] {
        let expected = self.expected.map_or("-".into(), |epoch| epoch.get().to_string());
        let acked = self.acked.get();
        let numbers = [self.truth, self.seed, self.cores as u64, acked].map(|number| number.to_string());
        let [truth, seed, cores, acked] = numbers;
        [truth, seed, cores, acked, expected, self.settings.to_string()]
    }

    /// From arguments.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_arguments(arguments: &[String]) -> Result<Self, String> {
        let [truth, seed, cores, acked, expected, settings] = arguments else {
            return Err("torture-child DIR TRUTH SEED CORES ACKED EXPECTED SETTINGS".into());
        };
        let number = |text: &String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        let cores = usize::try_from(number(cores)?).map_err(|e| e.to_string())?;
        let expected = if expected == "-" { None } else { Some(Epoch(number(expected)?)) };
        let (truth, seed, acked) = (number(truth)?, number(seed)?, Epoch(number(acked)?));
        Ok(Self { truth, seed, cores, acked, expected, settings: number(settings)? })
    }
}

/// One line to the parent, at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone hears nothing, and ends this process by its standard input.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

/// Ends the process with its parent: its standard input then ends.
fn die_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::abort();
    });
}

/// What an opened store holds, judged.
///
/// # Errors
/// What is wrong with it.
pub fn check_opened(opened: &Opened, truth: u64, acked: Epoch) -> Result<Epoch, String> {
    let Opened { cores, report, .. } = opened;
    let state: State =
        cores.iter().flat_map(CoreStore::iter).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    let epoch = report.recovery_point;
    truth::check(truth, (epoch, acked), &state, &report.source_offsets, report.watermark)?;
    if state.len() != cores.iter().map(CoreStore::len).sum::<usize>() {
        return Err("WRONG: a key is on two cores".into());
    }
    Ok(epoch)
}

/// Lives until it is killed or everything is closed.
///
/// # Errors
/// What the store says.
pub fn live(dir: &Path, life: &Life) -> Result<(), String> {
    die_with_parent();
    say("start");
    let mut settings = settings_of(life.settings);
    if life.is_busy() {
        (settings.segment_bytes, settings.preallocate_bytes) = (4 << 10, 0);
    }
    if life.is_hasty() {
        settings.segment_bytes = settings.segment_bytes.max(64 << 10);
    }
    let builder = Store::builder(dir).cores(life.cores).settings(settings);
    let opened = builder.open().map_err(|e| format!("open: {e}"))?;
    let landed = check_opened(&opened, life.truth, life.acked)?;
    if life.expected.is_some_and(|expected| expected != landed) {
        return Err(format!("WRONG: a reader saw {:?}, opening landed on {landed}", life.expected));
    }
    say(&format!("open {landed}"));
    let Opened { store, mut cores, .. } = opened;
    let mut dice = Dice::new(life.seed);
    let router = Router::default();
    let mut before = truth::state(life.truth, landed);
    let (busy, hasty) = (life.is_busy(), life.is_hasty());
    let epochs = if busy || hasty { 100 + dice.roll(100) } else { 2 + dice.roll(12) };
    let checkpoint_at = dice.roll(epochs + 2);
    for round in 0..epochs {
        let epoch = cores.first().map_or(Epoch::ZERO, CoreStore::epoch);
        let after = truth::state(life.truth, epoch);
        write(&mut cores, &router, &before, &after).map_err(|e| e.to_string())?;
        for core in &mut cores {
            core.set_source_offset(truth::SOURCE, epoch.get());
            core.set_watermark(truth::watermark(epoch).unwrap_or_default());
            core.seal_epoch().map_err(|e| e.to_string())?;
        }
        before = after;
        if round + 1 == epochs || dice.one_in(if hasty { 20 } else { 2 }) {
            store.wait_durable(epoch).map_err(|e| e.to_string())?;
            say(&format!("ack {epoch}"));
        }
        if round == checkpoint_at || (busy && dice.one_in(6)) {
            say("checkpoint");
            store.checkpoint().map_err(|e| e.to_string())?;
            say("checkpointed");
        }
    }
    drop(cores);
    say("closing");
    let receipt = store.close().map_err(|e| e.to_string())?;
    say(&format!("closed {}", receipt.durable_epoch));
    Ok(())
}

/// What turns one state into the other.
fn write(
    cores: &mut [CoreStore],
    router: &Router,
    before: &State,
    after: &State,
) -> Result<(), laminar_storage::StoreError> {
    let count = cores.len();
    let mut owner =
        |key: &[u8], value: Option<&Vec<u8>>| match (cores.get_mut(router.route(key, count)), value) {
            (Some(core), Some(value)) => core.put(key, value),
            (Some(core), None) => core.delete(key).map(drop),
            (None, _) => Ok(()),
        };
    for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        owner(key, Some(value))?;
    }
    before.keys().filter(|key| !after.contains_key(*key)).try_for_each(|key| owner(key, None))
}
