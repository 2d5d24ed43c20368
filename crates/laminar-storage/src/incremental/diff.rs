//! What is different between two states: keys added, changed, removed.

use std::cmp::Ordering;

use super::base::sources;
use super::checkpoint_reader::CheckpointReader;
use super::error::IncrementalCheckpointError;
use super::merge::{Merge, Source};
use super::state_file::StateFileReader;
use super::state_map::{Iter, StateMap};
use crate::ids::CoreId;

/// A state to compare: that of a checkpoint, read block by block, or one in memory.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// A checkpoint or savepoint. Comparing holds one block of each of its files in memory.
    Checkpoint(&'a CheckpointReader),
    /// A state in memory, as [`crate::StateReader::state`] has it.
    Memory(&'a StateMap),
}

impl<'a> From<&'a CheckpointReader> for Contents<'a> {
    fn from(reader: &'a CheckpointReader) -> Self {
        Self::Checkpoint(reader)
    }
}

impl<'a> From<&'a StateMap> for Contents<'a> {
    fn from(state: &'a StateMap) -> Self {
        Self::Memory(state)
    }
}

/// One key that is not the same in two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference<'a> {
    /// Only the second state has it.
    Added {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Both have it, with different values.
    Changed {
        /// The key.
        key: &'a [u8],
        /// Its value in the first state.
        before: &'a [u8],
        /// Its value in the second state.
        after: &'a [u8],
    },
    /// Only the first state has it.
    Removed {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
}

impl<'a> Difference<'a> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Added { key, .. } | Self::Changed { key, .. } | Self::Removed { key, .. } => key,
        }
    }
}

/// How much is different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiffSummary {
    /// Keys that only the second state has.
    pub added: u64,
    /// Keys that both have, with different values.
    pub changed: u64,
    /// Keys that only the first state has.
    pub removed: u64,
}

impl DiffSummary {
    /// Are the two states equal?
    #[must_use]
    pub fn is_equal(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, difference: &Difference<'_>) {
        match difference {
            Difference::Added { .. } => self.added += 1,
            Difference::Changed { .. } => self.changed += 1,
            Difference::Removed { .. } => self.removed += 1,
        }
    }
}

/// Compares two states and calls `tell` with every key that is not the same, in key order. The numbers of
/// cores need not be equal, nor need the two come from the same store. Parts of two checkpoints that are
/// the same files are not read.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temporary = tempfile::tempdir()?;
/// # let state = temporary.path().join("state");
/// # let (before, after) = (temporary.path().join("before"), temporary.path().join("after"));
/// use laminar_storage::Store;
/// use laminar_storage::incremental::{CheckpointReader, Difference, IncrementalCheckpointError, diff};
/// use laminar_storage::vfs::OsVfs;
///
/// let opened = Store::builder(&state).open()?;
/// let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
/// core.put(b"ann", b"1")?;
/// core.put(b"bob", b"1")?;
/// store.wait_durable(core.seal_epoch()?)?;
/// store.savepoint(&before)?;
/// core.put(b"bob", b"2")?;
/// core.put(b"cid", b"1")?;
/// store.wait_durable(core.seal_epoch()?)?;
/// store.savepoint(&after)?;
///
/// let before = CheckpointReader::open(&OsVfs::new(), &before)?;
/// let after = CheckpointReader::open(&OsVfs::new(), &after)?;
/// let mut told = Vec::new();
/// let summary = diff(&before, &after, |difference| {
///     told.push(match difference {
///         Difference::Added { key, .. } => format!("+{}", String::from_utf8_lossy(key)),
///         Difference::Changed { key, .. } => format!("~{}", String::from_utf8_lossy(key)),
///         Difference::Removed { key, .. } => format!("-{}", String::from_utf8_lossy(key)),
///     });
///     Ok::<_, IncrementalCheckpointError>(())
/// })?;
/// assert_eq!(told, ["~bob", "+cid"]);
/// assert_eq!((summary.added, summary.changed, summary.removed), (1, 1, 0));
/// # Ok(()) }
/// ```
///
/// # Errors
/// The first error of `tell`; `Io`, `ChecksumMismatch`, `Corruption` of what is read.
pub fn diff<'a, 'b, E, F>(
    before: impl Into<Contents<'a>>,
    after: impl Into<Contents<'b>>,
    mut tell: F,
) -> Result<DiffSummary, E>
where
    E: From<IncrementalCheckpointError>,
    F: FnMut(Difference<'_>) -> Result<(), E>,
{
    let (before, after) = (before.into(), after.into());
    let is_shared = |core| match (&before, &after) {
        (Contents::Checkpoint(before), Contents::Checkpoint(after)) => is_shared(before, after, core),
        _ => false,
    };
    let (mut left, mut right) = (Side::of(before, is_shared)?, Side::of(after, is_shared)?);
    let mut summary = DiffSummary::default();
    left.advance()?;
    right.advance()?;
    loop {
        let (order, difference) = match (left.current(), right.current()) {
            (None, None) => return Ok(summary),
            (Some((key, value)), None) => (Ordering::Less, Some(Difference::Removed { key, value })),
            (None, Some((key, value))) => (Ordering::Greater, Some(Difference::Added { key, value })),
            (Some((key, before)), Some((other, after))) => match key.cmp(other) {
                Ordering::Less => (Ordering::Less, Some(Difference::Removed { key, value: before })),
                Ordering::Greater => {
                    (Ordering::Greater, Some(Difference::Added { key: other, value: after }))
                }
                Ordering::Equal if before == after => (Ordering::Equal, None),
                Ordering::Equal => (Ordering::Equal, Some(Difference::Changed { key, before, after })),
            },
        };
        if let Some(difference) = difference {
            summary.count(&difference);
            tell(difference)?;
        }
        if order.is_le() {
            left.advance()?;
        }
        if order.is_ge() {
            right.advance()?;
        }
    }
}

/// Whether a core has the very same files in both checkpoints, and so the same keys.
fn is_shared(before: &CheckpointReader, after: &CheckpointReader, core: CoreId) -> bool {
    let (files, others) = (before.files(core), after.files(core));
    before.metadata().store_id == after.metadata().store_id
        && files.len() == others.len()
        && files.iter().zip(others).all(|(file, other)| file.meta() == other.meta())
}

/// One of two states, key by key.
enum Side<'a> {
    Checkpoint(Merge<'a>),
    Memory(Iter<'a>, Option<(&'a [u8], &'a [u8])>),
}

impl<'a> Side<'a> {
    fn of(
        contents: Contents<'a>,
        leave_out: impl Fn(CoreId) -> bool,
    ) -> Result<Self, IncrementalCheckpointError> {
        let reader = match contents {
            Contents::Memory(state) => return Ok(Self::Memory(state.iter(), None)),
            Contents::Checkpoint(reader) => reader,
        };
        // A key is live on one core at most, so the live records of all cores are one sorted sequence.
        let cores = reader.cores().filter(|core| !leave_out(*core)).map(|core| {
            Ok(Source::live(Merge::new(sources(reader.files(core).iter(), StateFileReader::cursor))?))
        });
        let cores = cores.collect::<Result<Vec<_>, IncrementalCheckpointError>>()?;
        Ok(Self::Checkpoint(Merge::new(cores)?))
    }

    fn advance(&mut self) -> Result<(), IncrementalCheckpointError> {
        match self {
            Self::Checkpoint(merge) => merge.step(),
            Self::Memory(rest, at) => {
                *at = rest.next();
                Ok(())
            }
        }
    }

    fn current(&mut self) -> Option<(&[u8], &[u8])> {
        match self {
            Self::Checkpoint(merge) => {
                let record = merge.on_key()?;
                Some((record.key, record.value.unwrap_or_default()))
            }
            Self::Memory(_, at) => *at,
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
