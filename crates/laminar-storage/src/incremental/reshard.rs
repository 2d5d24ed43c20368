//! Laying the state out for another number of cores, in parallel.
//!
//! The keys are cut into ranges. Each range is one piece of work: all cores' files are merged over it, and
//! every live record goes to the file of its new core. So every new core gets one file for each range
//! that has keys for it; no two of them have a key in common, and the next checkpoint that changes the
//! core merges them. How many ranges there are depends on the state alone, so that the same state gives
//! the same files on every machine.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::IncrementalCheckpointError;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result};
use super::merge::{Merge, Source};
use super::metadata::CoreDigest;
use super::overlay::SortedChanges;
use super::spill::Spill;
use super::state_file::StateFileWriter;
use crate::error::Detail;
use crate::format::MAX_CORES;
use crate::format::digest::record_digest;
use crate::ids::CoreId;
use crate::parallel::in_parallel;

/// Most ranges, and so most files of a core: what a chain may have anyway before it is merged.
const MOST_RANGES: usize = 8;
/// Most files that are written at the same time, where that is not fewer than there are cores.
const MOST_WRITERS: usize = 256;
/// Bytes of state for which one more range pays.
const RANGE_LEN: u64 = 1 << 20;
/// Changes in memory of which one is looked at to place the borders: about one for a block's length.
const SAMPLE_EVERY: usize = 256;

/// The keys from one up to, and without, another; `None` for no border.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub(super) from: Option<Vec<u8>>,
    pub(super) to: Option<Vec<u8>>,
}

/// What one range gave one new core.
struct Piece {
    core: CoreId,
    file: ChainFile,
    digest: CoreDigest,
}

impl IncrementalCheckpointManager {
    /// Lays the whole state out for another number of cores: every live key goes to the core that
    /// `route` names. Uses several threads. Nothing of it is durable before the next checkpoint. Input
    /// positions move to the first core; give the new ones with [`Self::set_core_offsets`].
    ///
    /// # Errors
    /// `InvalidConfig` for no cores, too many, or a core that `route` makes up; `AlreadyExists` while
    /// a checkpoint is in flight; `Poisoned`; and whatever fails while the state is read and written,
    /// which poisons the manager.
    pub fn reshard(&mut self, cores: usize, route: impl Fn(&[u8]) -> CoreId + Sync) -> Result<()> {
        self.reshard_with_digests(cores, route).map(drop)
    }

    /// As [`Self::reshard`]; returns the digest of every new core, computed from what was written.
    pub(crate) fn reshard_with_digests(
        &mut self,
        cores: usize,
        route: impl Fn(&[u8]) -> CoreId + Sync,
    ) -> Result<Vec<CoreDigest>> {
        self.check_usable()?;
        self.check_nothing_in_flight()?;
        if cores == 0 || cores > MAX_CORES {
            let what = format!("core_count is {cores}, it must be 1 to {MAX_CORES}");
            return Err(IncrementalCheckpointError::invalid(Detail::new(what)));
        }
        let done = self.try_reshard(cores, route);
        self.poison_on_error(done)
    }

    fn try_reshard(
        &mut self,
        cores: usize,
        route: impl Fn(&[u8]) -> CoreId + Sync,
    ) -> Result<Vec<CoreDigest>> {
        let spill = self.take_spill()?;
        let vfs = self.vfs.as_ref();
        let sorted = in_parallel(vfs, self.overlay.cores(), |core| Result::Ok(core.sorted()))?;
        let ranges = self.ranges(cores, &sorted);
        let write = |range| self.reshard_range(&range, &sorted, cores, &route, &spill);
        let pieces = in_parallel(vfs, ranges, write)?;
        let mut chains: Vec<Vec<ChainFile>> = (0..cores).map(|_| Vec::new()).collect();
        let mut digests = vec![CoreDigest { digest: 0, live_keys: 0 }; cores];
        for Piece { core, file, digest } in pieces.into_iter().flatten() {
            let (Some(chain), Some(sum)) = (chains.get_mut(core.index()), digests.get_mut(core.index()))
            else {
                continue;
            };
            chain.push(file);
            sum.digest = sum.digest.wrapping_add(digest.digest);
            sum.live_keys += digest.live_keys;
        }
        // A manifest lists the parts of a core in order; which range came to which part is chance.
        chains.iter_mut().for_each(|chain| chain.sort_by_key(|file| file.reader.meta().part));
        for old in self.chains.iter().flatten().filter(|file| file.spilled) {
            spill.discard(vfs, &old.reader.meta().name)?;
        }
        self.spill = Some(spill);
        self.lay_out(cores);
        self.chains = chains;
        self.rewrite_all = false;
        self.live_keys = Some(digests.iter().map(|core| core.live_keys).sum());
        Ok(digests)
    }

    /// Cuts all keys into ranges of about the same weight.
    fn ranges(&self, cores: usize, sorted: &[SortedChanges<'_>]) -> Vec<KeyRange> {
        let files = || self.chains.iter().flatten().map(|file| &file.reader);
        let in_files: u64 = files().map(|file| file.meta().len).sum();
        let in_memory: u64 = self.overlay.cores().iter().map(|core| core.weight().bytes).sum();
        let most = (MOST_WRITERS / cores).clamp(1, MOST_RANGES);
        let pays = usize::try_from((in_files + in_memory) / RANGE_LEN).unwrap_or(usize::MAX);
        let count = pays.clamp(1, most);
        let mut samples: Vec<&[u8]> = files().flat_map(|file| file.first_keys()).collect();
        samples.extend(sorted.iter().flat_map(|changes| changes.keys().step_by(SAMPLE_EVERY)));
        samples.sort_unstable();
        let mut borders: Vec<&[u8]> =
            (1..count).filter_map(|nth| samples.get(samples.len() * nth / count).copied()).collect();
        borders.dedup();
        let from = std::iter::once(None).chain(borders.iter().map(|key| Some(key.to_vec())));
        let to = borders.iter().map(|key| Some(key.to_vec())).chain([None]);
        from.zip(to).map(|(from, to)| KeyRange { from, to }).collect()
    }

    /// Writes the live records of a range to the files of their new cores.
    fn reshard_range(
        &self,
        range: &KeyRange,
        sorted: &[SortedChanges<'_>],
        cores: usize,
        route: &impl Fn(&[u8]) -> CoreId,
        spill: &Spill,
    ) -> Result<Vec<Piece>> {
        let mut writers: BTreeMap<CoreId, (CoreDigest, StateFileWriter)> = BTreeMap::new();
        // Keys are live on one core at most, but an older core may hold a tombstone of a key that
        // moved; so the newest record counts within a core, and live ones win between cores.
        let mut merges = Vec::new();
        for (chain, changes) in self.chains.iter().zip(sorted) {
            let files = chain.iter().map(|file| Source::File(file.reader.cursor_within(range)));
            let memory = Source::Memory(changes.within(range));
            merges.push(Merge::new(files.chain([memory]).collect())?);
        }
        let mut merge = Merge::new(merges.into_iter().map(Source::live).collect())?;
        while let Some(record) = merge.next_record()? {
            let core = route(record.key);
            if core.index() >= cores {
                let what = format!("the router names core {core}, there are {cores} cores");
                return Err(IncrementalCheckpointError::invalid(Detail::new(what)));
            }
            let (digest, writer) = match writers.entry(core) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(vacant) => {
                    let writer = spill.begin(self.vfs.as_ref(), self.store_id, core)?;
                    vacant.insert((CoreDigest { digest: 0, live_keys: 0 }, writer))
                }
            };
            writer.push(record)?;
            let value = record.value.unwrap_or_default();
            digest.digest = digest.digest.wrapping_add(record_digest(record.key, value));
            digest.live_keys += 1;
        }
        let finish = |(core, (digest, writer))| {
            let finished = spill.finish(writer)?;
            Ok(Piece { core, file: spill.open(&finished, self.store_id)?, digest })
        };
        writers.into_iter().map(finish).collect()
    }
}
