//! What a tortured store must hold at the end of an epoch: a function of seed and epoch alone, so that
//! nobody has to remember what was written, and epochs that were skipped or lost leave no trace.

use std::collections::BTreeMap;

use laminar_storage::ids::Epoch;

use crate::dice::mixed;
use crate::oracle::State;

const KEYS: u64 = 28;
/// A key changes every so many epochs.
const STEPS: u64 = 5;
/// The source whose offset is the epoch.
pub const SOURCE: &str = "epochs";

/// The value of one key at the end of an epoch.
fn value(seed: u64, key: u64, epoch: Epoch) -> Option<Vec<u8>> {
    if epoch == Epoch::ZERO {
        return None;
    }
    let step = (epoch.get() + mixed(seed, key) % STEPS) / STEPS;
    let drawn = mixed(mixed(seed, key), step);
    let len = usize::try_from(drawn % 150).unwrap_or_default();
    let text = format!("{key} since step {step} ");
    (!drawn.is_multiple_of(4)).then(|| text.bytes().cycle().take(8 + len).collect())
}

/// All of it.
#[must_use]
pub fn state(seed: u64, epoch: Epoch) -> State {
    let key = |key: u64| Some((format!("key {key}").into_bytes(), value(seed, key, epoch)?));
    (0..KEYS).filter_map(key).collect()
}

/// The source offsets.
#[must_use]
pub fn offsets(epoch: Epoch) -> BTreeMap<String, u64> {
    let all = [(SOURCE.to_owned(), epoch.get())];
    all.into_iter().filter(|_| epoch != Epoch::ZERO).collect()
}

/// The watermark.
#[must_use]
pub fn watermark(epoch: Epoch) -> Option<i64> {
    let epoch = i64::try_from(epoch.get()).unwrap_or(i64::MAX);
    (epoch != 0).then(|| epoch * 3 - 7)
}

/// Whether a store may hold this.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    seed: u64,
    (epoch, acked): (Epoch, Epoch),
    found: &State,
    found_offsets: &BTreeMap<String, u64>,
    found_watermark: Option<i64>,
) -> Result<(), String> {
    if epoch < acked {
        return Err(format!("LOST: epoch {acked} was acknowledged, {epoch} came back"));
    }
    let wanted = state(seed, epoch);
    if *found != wanted {
        let differs = |key: &&Vec<u8>| found.get(*key) != wanted.get(*key);
        let first = found.keys().chain(wanted.keys()).find(differs);
        let name = first.map(|key| key.escape_ascii().to_string()).unwrap_or_default();
        let (is, should) = (found.len(), wanted.len());
        return Err(format!(
            "WRONG: at epoch {epoch} \"{name}\" differs; {is} keys found, {should} expected"
        ));
    }
    if (found_offsets, found_watermark) != (&offsets(epoch), watermark(epoch)) {
        return Err(format!("WRONG: at epoch {epoch} {found_offsets:?} and {found_watermark:?}"));
    }
    Ok(())
}
