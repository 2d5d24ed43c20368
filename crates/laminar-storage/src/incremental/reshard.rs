//! Laying the state out for another number of cores, in parallel.
//!
//! The keys are cut into ranges. Each range is one piece of work: all cores' files are merged over it, and
//! every live record goes to the file of its new core. So every new core gets one file for each range
//! that has keys for it; no two of them have a key in common, and a later checkpoint
//! makes a base of them. How many ranges there are depends on the state alone, so that the same state gives
//! the same files on every machine.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::base::sources;
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

/// Most ranges, and so most files of a core.
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
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Correct the number; nothing was changed."),
            ));
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
            let mut sources =
                sources(chain.iter().map(|file| &file.reader), |file| file.cursor_within(range));
            sources.push(Source::Memory(changes.within(range)));
            merges.push(Merge::new(sources)?);
        }
        let mut merge = Merge::new(merges.into_iter().map(Source::live).collect())?;
        while let Some(record) = merge.next_record()? {
            let core = route(record.key);
            if core.index() >= cores {
                let what = format!("the router names core {core}, there are {cores} cores");
                return Err(IncrementalCheckpointError::invalid(
                    Detail::new(what).remedy("Correct the router and open again; nothing was published."),
                ));
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

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use super::*;
    use crate::incremental::merge::MergePolicy;
    use crate::incremental::{CheckpointConfig, CheckpointReader};
    use crate::vfs::sim::{Duration, Fault, SimDisk};
    use crate::vfs::{OsVfs, Vfs};

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn key(n: u32) -> Vec<u8> {
        n.wrapping_mul(0x9e37_79b9).to_be_bytes().to_vec()
    }

    fn old_core(key: &[u8]) -> CoreId {
        CoreId(u16::from(key[3] % 3))
    }

    fn new_core(key: &[u8]) -> CoreId {
        CoreId(u16::from(key[1] % 4))
    }

    /// Three cores with some megabytes: in two checkpoints' files, and changes in memory.
    fn filled(vfs: Arc<dyn Vfs>, dir: &Path) -> (IncrementalCheckpointManager, Model) {
        let mut manager = IncrementalCheckpointManager::with_vfs(CheckpointConfig::new(dir), vfs).unwrap();
        manager.set_core_count(3).unwrap();
        let mut model = Model::new();
        for round in 0..3_u32 {
            for n in (0..9000).step_by([1, 5, 7][round as usize]) {
                let (key, value) = (key(n), vec![(n + round).to_le_bytes()[0]; 400 + round as usize]);
                let value = (n % 11 != round).then_some(value);
                manager.apply(old_core(&key), &key, value.as_deref()).unwrap();
                match value {
                    Some(value) => drop(model.insert(key, value)),
                    None => drop(model.remove(&key)),
                }
            }
            if round < 2 {
                manager.create_checkpoint(0).unwrap();
            }
        }
        (manager, model)
    }

    fn digests_of(model: &Model) -> Vec<CoreDigest> {
        let mut digests = vec![CoreDigest { digest: 0, live_keys: 0 }; 4];
        for (key, value) in model {
            let core = &mut digests[new_core(key).index()];
            core.digest = core.digest.wrapping_add(record_digest(key, value));
            core.live_keys += 1;
        }
        digests
    }

    /// Everything is on its new core, in several files without a common key, with the digests that were
    /// returned; on several threads as on one.
    fn moves_every_key(vfs: Arc<dyn Vfs>, dir: &Path) {
        let (mut manager, model) = filled(Arc::clone(&vfs), dir);
        let digests = manager.reshard_with_digests(4, new_core).unwrap();
        assert_eq!(digests, digests_of(&model));
        assert!(manager.chains.iter().all(|chain| chain.len() > 2), "several ranges");
        assert_eq!(manager.live_digests().unwrap(), digests);
        manager.set_digests(digests.clone()).unwrap();
        let metadata = manager.create_checkpoint(0).unwrap();
        assert_eq!(metadata.key_count, model.len() as u64);
        let reader = CheckpointReader::open(vfs.as_ref(), &metadata.checkpoint_path(dir)).unwrap();
        reader.verify_in_parallel(vfs.as_ref()).unwrap();
        for core in reader.cores() {
            let mut records = 0;
            let count = |record: crate::format::state_file::StateRecord<'_>| {
                assert_eq!(new_core(record.key), core);
                assert_eq!(record.value, model.get(record.key).map(Vec::as_slice));
                records += 1;
                Ok::<_, IncrementalCheckpointError>(())
            };
            reader.for_each_record(core, count).unwrap();
            assert_eq!(records, digests[core.index()].live_keys, "each key once");
        }
        // One more change, and the files are brought together.
        manager.options.merge = MergePolicy { small_files: 0, small_bytes: 0, run: 2, range_bytes: 1 << 20 };
        manager.apply(CoreId(0), &key(0), None).unwrap();
        let metadata = manager.create_checkpoint(0).unwrap();
        assert_eq!(metadata.files.iter().filter(|file| file.core == 0).count(), 1);
    }

    #[test]
    fn resharding_moves_every_key_once_in_a_simulated_world() {
        moves_every_key(Arc::new(SimDisk::new(1)), Path::new("/c"));
    }

    #[test]
    fn resharding_moves_every_key_once_on_several_threads() {
        let root = tempfile::tempdir().unwrap();
        moves_every_key(Arc::new(OsVfs::new()), &root.path().join("c"));
    }

    #[test]
    fn the_same_state_gives_the_same_files() {
        let names = |seed| {
            let disk = SimDisk::new(seed);
            let (mut manager, _) = filled(Arc::new(disk.clone()), Path::new("/c"));
            manager.reshard(4, new_core).unwrap();
            manager.create_checkpoint(0).unwrap();
            let state_file = |(path, _): &(PathBuf, u64)| path.extension().is_some_and(|e| e == "sst");
            disk.files().into_iter().filter(state_file).collect::<Vec<_>>()
        };
        assert_eq!(names(1), names(1));
    }

    /// Stopped at some operation, a re-sharding leaves what was published before, and can be done again.
    #[test]
    fn a_resharding_that_fails_is_done_again() {
        let disk = SimDisk::new(3);
        let (mut manager, model) = filled(Arc::new(disk.clone()), Path::new("/c"));
        manager.create_checkpoint(0).unwrap();
        for later in [1, 2, 9, 20, 26] {
            disk.fail_op(disk.ops() + later, Fault::Eio, Duration::Once);
            let failed = manager.reshard(4, new_core).and_then(|()| manager.create_checkpoint(0));
            assert!(failed.is_err() && manager.poisoned_by().is_some(), "operation {later}");
            drop(manager);
            disk.clear_faults();
            let config = CheckpointConfig::new(Path::new("/c"));
            manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
            assert_eq!(manager.core_count(), 3);
        }
        assert_eq!(manager.reshard_with_digests(4, new_core).unwrap(), digests_of(&model));
        assert_eq!(manager.create_checkpoint(0).unwrap().key_count, model.len() as u64);
    }

    /// A cursor over a range has exactly the records in it, wherever the borders are.
    #[test]
    fn a_cursor_within_borders_has_what_is_between_them() {
        let (mut manager, _) = filled(Arc::new(SimDisk::new(1)), Path::new("/c"));
        manager.apply(CoreId(0), &[0], Some(b"before every key")).unwrap();
        manager.create_checkpoint(0).unwrap();
        let largest = manager.chains[0].iter().max_by_key(|file| file.reader.meta().len).unwrap();
        let file = Arc::clone(&largest.reader);
        let mut all = Vec::new();
        let mut cursor = file.cursor();
        while cursor.advance().unwrap() {
            all.push(cursor.current().unwrap().key.to_vec());
        }
        let firsts: Vec<_> = file.first_keys().map(<[u8]>::to_vec).collect();
        assert!(firsts.len() > 3);
        let second = all.iter().position(|key| *key == firsts[1]).unwrap();
        let mut borders: Vec<_> = [0, second - 1, second, second + 1, all.len() - 1]
            .iter()
            .flat_map(|at| [all[*at].clone(), [all[*at].as_slice(), &[0]].concat()])
            .map(Some)
            .collect();
        borders.extend([None, Some(Vec::new()), Some(vec![0xff; 9])]);
        for from in &borders {
            for to in &borders {
                let range = KeyRange { from: from.clone(), to: to.clone() };
                let mut cursor = file.cursor_within(&range);
                let mut found = Vec::new();
                while cursor.advance().unwrap() {
                    found.push(cursor.current().unwrap().key.to_vec());
                }
                assert!(!cursor.advance().unwrap());
                let within = |key: &&Vec<u8>| {
                    from.as_ref().is_none_or(|from| *key >= from) && to.as_ref().is_none_or(|to| *key < to)
                };
                assert_eq!(found, all.iter().filter(within).cloned().collect::<Vec<_>>(), "{range:?}");
            }
        }
    }
}
