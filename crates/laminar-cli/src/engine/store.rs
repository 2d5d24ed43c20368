//! The real engine: `laminar_storage::Store`, call by call.

use std::path::Path;

use laminar_storage::incremental::{CheckpointReader, StateMap};
use laminar_storage::vfs::OsVfs;
use laminar_storage::{CoreStore, RecoveryReport, Settings, StateReader, Store, StoreError};

use super::advice::for_user;
use super::{Checkpoint, CoreEngine, Engine, OpenOptions, Opened, Report, Router, StateView, Stats};
use crate::distributed::JobView;
use crate::error::{CliError, Result};
use crate::inspect::Parts;
use crate::opening::{self, Watched};
use crate::savepoint_dir::is_savepoint;

/// The store's errors say what, where and what to do; the latter to a programmer.
impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::failure(for_user(&error.to_string()))
    }
}

/// An open store.
pub struct StoreEngine {
    store: Store,
    /// The store counts log bytes since the log began; a run is told of its own.
    wal_bytes_before: u64,
    #[cfg(feature = "object-store")]
    backups: Option<crate::backup::running::Running>,
}

impl Engine for StoreEngine {
    type Core = CoreStore;

    fn look(dir: &Path) -> Option<Report> {
        // A job that was interrupted before it made its store has none.
        if !dir.join("wal").exists() && !dir.join("checkpoints").exists() {
            return Some(Report::default());
        }
        StateReader::open(dir).ok().map(|reader| Report::from(reader.report()))
    }

    fn open(options: &OpenOptions) -> Result<Opened<Self>> {
        let mut settings = Settings::default();
        if let Some(interval) = options.checkpoint_interval {
            settings.checkpoint_interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        }
        let mut builder = Store::builder(&options.dir).cores(options.cores).settings(settings);
        if let Some(objective) = options.recovery_objective {
            builder = builder.with_recovery_objective(objective);
        }
        if options.opening == Watched::Yes {
            builder = builder.on_progress(opening::bar());
        }
        #[cfg(feature = "object-store")]
        if let Some(backups) = &options.backups {
            builder = backups.on(builder, &options.dir);
        }
        let opened = builder.open()?;
        let route = laminar_storage::Router::default();
        let cores = options.cores;
        Ok(Opened {
            engine: Self {
                wal_bytes_before: opened.store.stats().wal_bytes,
                store: opened.store,
                #[cfg(feature = "object-store")]
                backups: options.backups.clone(),
            },
            cores: opened.cores,
            report: Report::from(&opened.report),
            router: Router::new(cores, move |key| route.route(key, cores)),
        })
    }

    fn durable_epoch(&self) -> u64 {
        self.store.durable_epoch().get()
    }

    fn wait_durable(&self, epoch: u64) -> Result<()> {
        Ok(self.store.wait_durable(epoch.into())?)
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        let receipt = self.store.checkpoint()?;
        Ok(Checkpoint {
            id: receipt.id.get(),
            epoch: receipt.epoch.get(),
            bytes: receipt.bytes_written,
            took: receipt.time,
        })
    }

    fn stats(&self) -> Stats {
        let stats = self.store.stats();
        Stats {
            checkpoints: stats.checkpoints,
            wal_bytes: stats.wal_bytes.saturating_sub(self.wal_bytes_before),
            estimated_recovery: stats.estimated_recovery,
            #[cfg(feature = "object-store")]
            backup_checkpoints_behind: stats.backup_checkpoints_behind,
        }
    }

    #[cfg(feature = "object-store")]
    fn backed_up(&self) -> Option<crate::backup::running::BackedUp> {
        self.backups.as_ref().map(|backups| backups.finish(&self.store))
    }

    fn close(self) -> Result<()> {
        self.store.close()?;
        Ok(())
    }
}

impl CoreEngine for CoreStore {
    fn update<'v, F>(&mut self, key: &[u8], change: F) -> Result<()>
    where
        F: FnOnce(Option<&[u8]>) -> Option<&'v [u8]>,
    {
        Ok(CoreStore::update(self, key, change)?)
    }

    fn visit(&self, keys: &[&[u8]], visit: &mut dyn FnMut(Option<&[u8]>)) {
        CoreStore::get_batch(self, keys).for_each(visit);
    }

    fn set_source_offset(&mut self, name: &str, offset: u64) {
        CoreStore::set_source_offset(self, name, offset);
    }

    fn seal_epoch(&mut self) -> Result<u64> {
        Ok(CoreStore::seal_epoch(self)?.get())
    }

    fn len(&self) -> u64 {
        CoreStore::len(self) as u64
    }
}

impl From<&RecoveryReport> for Report {
    fn from(report: &RecoveryReport) -> Self {
        let cuts = report.cores.iter().filter(|core| core.dropped_bytes > 0).map(|core| {
            let case = core.case.map_or_else(String::new, |case| format!(" (case {case})"));
            format!(
                "Core {}: {} torn bytes at the end of its log were cut{case}; they were never acknowledged.",
                core.core, core.dropped_bytes
            )
        });
        Self {
            epoch: report.recovery_point.get(),
            source_offsets: report.source_offsets.clone(),
            checkpoint: report.checkpoint.map(Into::into),
            checkpoints_skipped: report.checkpoints_skipped.iter().map(|id| id.get()).collect(),
            replayed: report.cores.iter().map(|core| core.replayed).sum(),
            cuts: cuts.collect(),
            took: report.phases.recover.saturating_add(report.phases.begin),
            keys: report.keys,
        }
    }
}

/// Reads a state, with a bar for whoever watches.
pub fn read(dir: &Path, watched: Watched) -> Result<StateReader> {
    Ok(match watched {
        Watched::Yes => StateReader::open_with_progress(dir, opening::bar())?,
        Watched::No => StateReader::open(dir)?,
    })
}

/// What opening the store would recover, without opening it; or what a savepoint holds.
pub struct StoreView {
    source: Source,
    report: Report,
}

enum Source {
    Store(Box<StateReader>),
    Savepoint(StateMap),
    /// Of a job of several processes.
    Job(JobView),
}

impl StoreView {
    fn state(&self) -> Option<&StateMap> {
        match &self.source {
            Source::Store(reader) => Some(reader.state()),
            Source::Savepoint(state) => Some(state),
            Source::Job(_) => None,
        }
    }

    fn of_savepoint(dir: &Path) -> Result<Self> {
        let reader = CheckpointReader::open(&OsVfs::new(), dir)?;
        let metadata = reader.metadata();
        let report = Report {
            epoch: metadata.epoch,
            source_offsets: metadata.source_offsets.clone(),
            checkpoint: Some(metadata.id),
            keys: metadata.key_count,
            ..Report::default()
        };
        Ok(Self { source: Source::Savepoint(reader.load()?), report })
    }
}

impl StateView for StoreView {
    fn open(dir: &Path) -> Result<Self> {
        Self::open_watched(dir, Watched::No)
    }

    fn open_watched(dir: &Path, watched: Watched) -> Result<Self> {
        if is_savepoint(dir) {
            return Self::of_savepoint(dir);
        }
        if let Some(job) = JobView::of(dir)? {
            let report = job.report().clone();
            return Ok(Self { source: Source::Job(job), report });
        }
        Parts::of(dir)?;
        let reader = read(dir, watched)?;
        let report = Report::from(reader.report());
        Ok(Self { source: Source::Store(Box::new(reader)), report })
    }

    fn for_each<'s>(&'s self, visit: &mut dyn FnMut(&'s [u8], &'s [u8])) {
        if let Source::Job(job) = &self.source {
            job.iter().for_each(|(key, value)| visit(key, value));
        }
        for (key, value) in self.state().into_iter().flat_map(StateMap::iter) {
            visit(key, value);
        }
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        match &self.source {
            Source::Job(job) => job.get(key),
            _ => self.state()?.get(key),
        }
    }

    fn report(&self) -> &Report {
        &self.report
    }
}
