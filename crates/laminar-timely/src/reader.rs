//! Looking at the state of a job without running it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laminar_storage::error::Detail;
use laminar_storage::vfs::{OsVfs, Vfs, absolute};
use laminar_storage::{Epoch, StateReader};

use crate::error::Error;
use crate::flow::merged;
use crate::layout::{Generation, Layout, Part, Stage};
use crate::ledger::{Kind, OperatorId, split_key};

/// The state of a job that has ended, or was ended: what all its parts hold. Never writes, and holds the state in memory.
#[derive(Debug)]
pub struct JobReader {
    job: String,
    epoch: Epoch,
    parts: Vec<StateReader>,
}

impl JobReader {
    /// Is there anything of a job in `dir`? What is damaged counts as well: nobody may begin another state there.
    #[must_use]
    pub fn is_job(dir: impl AsRef<Path>) -> bool {
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
        let dir = absolute(dir.as_ref());
        match Layout::new(&dir, &vfs).parts() {
            Ok(parts) => !parts.is_empty(),
            // Of what is no directory nothing is known.
            Err(_) => vfs.read_dir(&dir).is_ok(),
        }
    }

    /// Reads all parts of the job whose state is below `dir`; all of them must be there.
    ///
    /// # Errors
    /// `Disagreement` when a part is missing, or the parts are not at the same epoch: the job was interrupted, and goes on
    /// when it is run again. Otherwise what reading a part says.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
        let dir = absolute(dir.as_ref());
        let layout = Layout::new(&dir, &vfs);
        let all = layout.parts()?;
        let refused = |what: String, remedy: &'static str| {
            Error::disagreement(Detail::new(what).at_path(&dir).remedy(remedy))
        };
        let generations = all.iter().filter(|part| part.stage == Stage::Current).map(|part| part.generation);
        let newest: Generation = generations
            .max()
            .ok_or_else(|| refused("there is no state of a job here".into(), "Check the path."))?;
        let parts: Vec<&Part> = all.iter().filter(|part| part.generation == newest).collect();
        let size = parts.first().map_or(0, |part| part.size.processes);
        if let Some(missing) = (0..size).find(|number| !parts.iter().any(|part| part.part == *number)) {
            let what = format!("part {missing} of {size} is not here");
            return Err(refused(what, "Read the job where all of its parts are, or copy them together."));
        }
        let job = parts.first().map(|part| part.job.clone()).unwrap_or_default();
        let read = |part: &&Part| Ok(StateReader::open(layout.store_dir(newest, part.part))?);
        let readers = parts.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
        let points: Vec<_> = readers.iter().map(|reader| reader.report().recovery_point).collect();
        let epoch = points.iter().copied().min().unwrap_or_default();
        if points.iter().any(|point| *point != epoch) {
            let what = format!(
                "the parts are at different epochs, {epoch} and later: the job runs, or was interrupted"
            );
            return Err(refused(what, "Run the job to its end; it goes on by itself where all parts agree."));
        }
        Ok(Self { job, epoch, parts: readers })
    }

    /// The job's name.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The epoch that all parts are at.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Source offsets of that epoch.
    #[must_use]
    pub fn source_offsets(&self) -> BTreeMap<String, u64> {
        merged(self.parts.iter().map(|part| part.report().source_offsets.clone()))
    }

    /// Keys and values of the operator called `operator`, as bytes, in the order of keys.
    #[must_use]
    pub fn state(&self, operator: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let operator = OperatorId::of(operator);
        let pairs = self.parts.iter().flat_map(StateReader::iter);
        let own = pairs.filter_map(|(key, value)| match split_key(key) {
            Some((Kind::State, of, key)) if of == operator => Some((key.to_vec(), value.to_vec())),
            _ => None,
        });
        own.collect()
    }
}
