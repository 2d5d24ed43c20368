//! Writing one core's part of a checkpoint.

use super::base::{CoreFiles, is_range, sources};
use super::links::link_or_copy;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result};
use super::merge::{Merge, Plan, RangeWeight, Source, Weight};
use super::overlay::{CoreChanges, Overlay};
use super::spill::Spill;
use super::state_file::StateFileReader;
use super::tokens::DraftFile;
use crate::ids::CoreId;
use crate::sabotage::{Sabotage, sabotaged};

/// Into so many ranges a core's large state is cut when all of it is written, fewer where there are many cores: all
/// together have about `ALL_RANGES`. Each is an open file, and a link and a line in the manifest of every checkpoint.
const MOST_RANGES: usize = 32;
const FEWEST_RANGES: usize = 4;
const ALL_RANGES: usize = 128;

impl IncrementalCheckpointManager {
    /// What is to be done with a core's files.
    pub(super) fn plan(&self, core: CoreId, changes: &Overlay) -> Plan {
        if self.rewrite_all || !self.config.incremental {
            return Plan::All;
        }
        let chain = self.chains.get(core.index()).map_or(&[][..], Vec::as_slice);
        let files = CoreFiles::of(chain);
        let base: Vec<_> = files
            .ranges
            .iter()
            .map(|file| RangeWeight { checkpoint: file.reader.meta().checkpoint, weight: file.weight() })
            .collect();
        let deltas: Vec<_> = files.deltas.iter().map(|file| file.weight()).collect();
        let spilled = files.deltas.iter().filter(|file| file.spilled).map(|file| file.weight());
        let changes = changes.cores().get(core.index()).map(CoreChanges::weight).unwrap_or_default();
        let changed = spilled.fold(changes, Weight::plus);
        let live = self.digests.get(core.index()).map(|core| core.live_keys);
        self.options.merge.plan(&base, &deltas, changes, changed, live, self.ranges_per_core())
    }

    /// How many ranges a core's base is to have.
    fn ranges_per_core(&self) -> usize {
        (ALL_RANGES / self.chains.len().max(1)).clamp(FEWEST_RANGES, MOST_RANGES)
    }

    /// Writes one core's part.
    pub(super) fn write_core(
        &self,
        core: CoreId,
        plan: &Plan,
        changes: &Overlay,
        spill: &Spill,
    ) -> Result<Vec<DraftFile>> {
        let chain = self.chains.get(core.index()).map_or(&[][..], Vec::as_slice);
        let changes = changes.cores().get(core.index()).filter(|core| !core.is_empty());
        let part = CorePart { manager: self, core, chain, changes, spill };
        match plan {
            Plan::All => part.write_all(),
            Plan::Some { first, ranges } => part.write_some(*first, ranges),
        }
    }

    /// Gives a file of the newest checkpoint a second name in the new one, or copies it where the
    /// file system has no links or no room for another.
    fn link(&self, file: &ChainFile, spill: &Spill) -> Result<()> {
        let Some(latest) = &self.latest else {
            return Ok(());
        };
        let name = &file.reader.meta().name;
        let target = spill.dir.join(name);
        let source = latest.checkpoint_path(&self.config.checkpoint_dir).join(name);
        let copy = link_or_copy(self.vfs.as_ref(), &file.reader, &source, &target)?;
        if let Some(copy) = copy.filter(|_| !sabotaged(Sabotage::CopyNotSynced)) {
            spill.track(name.clone(), copy);
        }
        Ok(())
    }
}

/// One core of a checkpoint that is being written.
struct CorePart<'a> {
    manager: &'a IncrementalCheckpointManager,
    core: CoreId,
    /// What there is, oldest first.
    chain: &'a [ChainFile],
    changes: Option<&'a CoreChanges>,
    spill: &'a Spill,
}

impl CorePart<'_> {
    /// Everything as a new base.
    fn write_all(&self) -> Result<Vec<DraftFile>> {
        let mut sources = sources(self.chain.iter().map(|file| &file.reader), StateFileReader::cursor);
        sources.extend(self.newest());
        let changes = self.changes.map(CoreChanges::weight).unwrap_or_default();
        let total = self.chain.iter().map(ChainFile::weight).fold(changes, Weight::plus);
        let files = self.write_ranges(Merge::new(sources)?, self.range_len(total))?;
        self.discard(self.chain.iter())?;
        Ok(files)
    }

    /// Deltas from `first` on and the changes become one, these ranges are written again, and everything else is linked.
    fn write_some(&self, first: usize, ranges: &[usize]) -> Result<Vec<DraftFile>> {
        let files = CoreFiles::of(self.chain);
        let (kept, merged) = files.deltas.split_at_checked(first).unwrap_or((&files.deltas, &[]));
        let delta = self.write_delta(merged, !(kept.is_empty() && files.ranges.is_empty()))?;
        let mut new: Vec<DraftFile> =
            delta.iter().map(|delta| DraftFile::New(delta.reader.meta().clone())).collect();
        let deltas: Vec<_> = kept.iter().copied().chain(&delta).collect();
        let total = files.ranges.iter().map(|file| file.weight()).fold(Weight::default(), Weight::plus);
        for range in ranges {
            // Only what has grown a lot becomes two.
            let len = self.range_len(total).saturating_mul(2);
            new.extend(self.write_ranges(self.range(&files, *range, &deltas)?, len)?);
        }
        let is_rewritten = |file: &ChainFile| {
            let this = |range: &usize| files.ranges.get(*range).is_some_and(|it| std::ptr::eq(*it, file));
            ranges.iter().any(this)
        };
        // The oldest range that stays. Where there are ranges at all, one stays.
        let number = |file: &ChainFile| file.reader.meta().checkpoint;
        let stay = files.ranges.iter().filter(|file| !is_rewritten(file)).map(|file| number(file));
        let oldest = if sabotaged(Sabotage::DeltaGoesEarly) { stay.max() } else { stay.min() };
        let is_kept = |file: &&ChainFile| match is_range(file.reader.meta()) {
            true => !is_rewritten(file),
            false => kept.iter().any(|it| std::ptr::eq(*it, *file)) && Some(number(file)) > oldest,
        };
        let mut all = Vec::with_capacity(self.chain.len() + new.len());
        for file in self.chain.iter().filter(is_kept) {
            if file.spilled {
                all.push(DraftFile::New(file.reader.meta().clone()));
            } else {
                self.manager.link(file, self.spill)?;
                all.push(DraftFile::Open(file.clone()));
            }
        }
        self.discard(merged.iter().copied())?;
        all.append(&mut new);
        Ok(all)
    }

    /// These deltas and the changes as one new delta; none when there is nothing in it.
    fn write_delta(&self, merged: &[&ChainFile], keeps_tombstones: bool) -> Result<Option<ChainFile>> {
        if merged.is_empty() && self.changes.is_none() {
            return Ok(None);
        }
        let Self { manager, core, spill, .. } = self;
        let older = merged.iter().map(|file| Source::File(file.reader.cursor()));
        let merge = Merge::new(older.chain(self.newest()).collect())?;
        let finished =
            spill.write(manager.vfs.as_ref(), manager.store_id, *core, merge, !keeps_tombstones)?;
        finished.map(|finished| spill.open(&finished, manager.store_id)).transpose()
    }

    /// A range with these deltas applied.
    fn range(&self, files: &CoreFiles<'_>, range: usize, deltas: &[&ChainFile]) -> Result<Merge<'_>> {
        let Some(old) = files.ranges.get(range) else { return Merge::new(Vec::new()) };
        let keys = files.keys_of(range);
        // What is older is in it.
        let newer = deltas.iter().filter(|file| file.reader.meta().checkpoint > old.reader.meta().checkpoint);
        let changes = newer.map(|file| Source::File(file.reader.cursor_within(&keys)));
        Merge::new([Source::File(old.reader.cursor())].into_iter().chain(changes).collect())
    }

    fn newest(&self) -> Option<Source<'_>> {
        self.changes.map(|changes| Source::Memory(changes.sorted()))
    }

    fn write_ranges(&self, merge: Merge<'_>, len: u64) -> Result<Vec<DraftFile>> {
        let Self { manager, core, spill, .. } = self;
        let files = spill.write_ranges(manager.vfs.as_ref(), manager.store_id, *core, merge, len)?;
        Ok(files.into_iter().map(|file| DraftFile::New(file.meta)).collect())
    }

    /// How long a range is to be where there is so much of everything.
    fn range_len(&self, total: Weight) -> u64 {
        self.manager.options.merge.range_bytes.max(total.bytes / self.manager.ranges_per_core() as u64)
    }

    /// Removes those files that only the directory that is being written has.
    fn discard<'f>(&self, merged: impl Iterator<Item = &'f ChainFile>) -> Result<()> {
        let mut spilled = merged.filter(|file| file.spilled);
        spilled.try_for_each(|file| self.spill.discard(self.manager.vfs.as_ref(), &file.reader.meta().name))
    }
}
