//! What a job is run with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use laminar_storage::Settings;
use laminar_storage::error::Detail;
use laminar_storage::vfs::{OsVfs, Vfs, absolute};

use crate::error::Error;

/// The processes that run a job together, and which of them this one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// This process, from 0.
    pub process: usize,
    /// Worker threads of every process.
    pub workers: usize,
    /// Where every process listens, `host:port`, in the same order everywhere. Empty for a job of one process.
    pub addresses: Vec<String>,
}

impl Cluster {
    /// A job of one process with so many workers.
    #[must_use]
    pub fn single(workers: usize) -> Self {
        Self { process: 0, workers, addresses: Vec::new() }
    }

    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.addresses.len().max(1)
    }

    /// How many workers there are, in all processes.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.processes() * self.workers
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refused =
            |what: String, remedy: &'static str| Err(Error::config(Detail::new(what).remedy(remedy)));
        if self.workers == 0 || self.workers > 1024 {
            return refused(
                format!("{} workers, must be 1..=1024", self.workers),
                "Use one worker for each processor.",
            );
        }
        if self.process >= self.processes() || self.processes() > 1024 {
            return refused(
                format!("this is process {} of {}", self.process, self.processes()),
                "Number the processes from 0, one for each address, at most 1024.",
            );
        }
        let mut sorted = self.addresses.clone();
        sorted.sort();
        sorted.dedup();
        if sorted.len() != self.addresses.len() {
            return refused(
                "an address stands twice in the list of processes".to_owned(),
                "Give each its own.",
            );
        }
        Ok(())
    }
}

/// What to do when the state was made by another number of processes or workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherSize {
    /// Say so and end.
    #[default]
    Refuse,
    /// Distribute the state anew before the job begins.
    Rescale,
}

/// Deliberate mistakes, to test that tests notice them. All off unless a test says otherwise.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mistakes {
    /// Takes an epoch for durable when it is sealed.
    pub acknowledge_before_sync: bool,
    /// Does not give sinks again what they had not committed.
    pub forget_waiting_rows: bool,
    /// Does not wake a worker when an epoch is durable.
    pub wake_nobody: bool,
}

/// What a job is run with; the same in all processes, but for the directory.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) dir: PathBuf,
    pub(crate) job: String,
    pub(crate) settings: Settings,
    pub(crate) max_ahead_epochs: u64,
    pub(crate) max_ahead_bytes: u64,
    pub(crate) connect_timeout: Duration,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) stall_timeout: Option<Duration>,
    pub(crate) other_size: OtherSize,
    pub(crate) program: String,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) mistakes: Mistakes,
    #[cfg(feature = "object-store")]
    pub(crate) backups: Option<crate::backups::BackupPlan>,
}

impl Config {
    /// A job called `job` with its state below `dir`. Processes on one machine may share a directory; each keeps its own
    /// part in it.
    #[must_use]
    pub fn new(dir: impl AsRef<Path>, job: impl Into<String>) -> Self {
        Self {
            dir: absolute(dir.as_ref()),
            job: job.into(),
            settings: Settings::default(),
            max_ahead_epochs: 16,
            max_ahead_bytes: 256 << 20,
            connect_timeout: Duration::from_secs(60),
            start_timeout: Some(Duration::from_secs(3600)),
            stall_timeout: Some(Duration::from_secs(60)),
            other_size: OtherSize::default(),
            program: String::new(),
            vfs: Arc::new(OsVfs::new()),
            mistakes: Mistakes::default(),
            #[cfg(feature = "object-store")]
            backups: None,
        }
    }

    /// What the program does, in words of its own, where that depends on options: a process that says something else is found out
    /// when they connect, and the job does not start. Default: nothing. It is not kept, so that a later version may say something
    /// else.
    #[must_use]
    pub fn program(mut self, does: impl Into<String>) -> Self {
        self.program = does.into();
        self
    }

    /// What processes that belong together say alike.
    pub(crate) fn says(&self) -> String {
        format!("{}\0{}", self.job, self.program)
    }

    /// Settings of the store of every process.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Epochs that an input may be ahead of what is durable and committed everywhere, 1 or more; default 16. More let several
    /// epochs become durable with one sync; all of them may be rolled back by a crash and done again.
    #[must_use]
    pub fn max_ahead_epochs(mut self, epochs: u64) -> Self {
        self.max_ahead_epochs = epochs;
        self
    }

    /// Bytes that an input of a worker may be ahead, in rows as large as they are in memory; default 256 MiB.
    #[must_use]
    pub fn max_ahead_bytes(mut self, bytes: u64) -> Self {
        self.max_ahead_bytes = bytes;
        self
    }

    /// How long to wait for the other processes; default 60 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the workers may wait for each other before the job begins, while states are opened, distributed among another
    /// number of workers, and backed up in a new size, and while sinks are opened and get what they had not committed, before
    /// the process ends itself; default one hour, `None` for ever. What a process sends or gets of a state that is
    /// distributed, and an epoch that a sink commits, begin the time anew. A peer that hangs meanwhile is noticed by this
    /// alone; one that dies is noticed at once.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How long nothing may become durable while something waits for it, before the process ends itself; default 60 s,
    /// `None` for ever. A peer that hangs, or a link that is cut, is noticed by this alone, by workers that have ended or
    /// are as far ahead as they may be. Nothing is durable before every worker has sealed it: one that has nothing to send seals
    /// empty epochs, more often than this. It counts from when the dataflow is built on all workers until all processes have
    /// ended: once everything is committed, closing the sinks may not take longer either.
    #[must_use]
    pub fn stall_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// What to do with the state of another number of processes or workers; default is to refuse it.
    #[must_use]
    pub fn other_size(mut self, what: OtherSize) -> Self {
        self.other_size = what;
        self
    }

    /// Another way to the disk than the operating system.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// Has the job backed up while it runs, and at its end: every process copies its part, and all parts of a backup are of the
    /// same epoch. The next one begins `every` after the last began, at the earliest, and when that is complete on all
    /// processes; the last holds everything the job did. The same in all processes.
    ///
    /// A backup that fails is tried again, and holds up nothing but the next one. Only the last is waited for:
    /// [`crate::run`] returns an error when it is not made.
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_to(
        mut self,
        place: &laminar_storage::backup::BackupTarget,
        options: &laminar_storage::backup::BackupOptions,
        every: Duration,
    ) -> Self {
        self.backups = Some(crate::backups::BackupPlan::new(place, options, every));
        self
    }

    /// Small files of the program's own that go with the backups of this process, name and content of each, asked for with
    /// each backup after its checkpoint was made. [`crate::restore_job`] puts them into the job's directory; of a name that several
    /// processes give, the first one's. After [`Self::backup_to`].
    #[cfg(feature = "object-store")]
    #[must_use]
    pub fn backup_files(
        mut self,
        own_files: impl Fn() -> std::io::Result<Vec<(String, Vec<u8>)>> + Send + Sync + 'static,
    ) -> Self {
        if let Some(backups) = &mut self.backups {
            backups.own_files = Arc::new(own_files);
        }
        self
    }

    /// Deliberate mistakes, for tests of tests.
    #[doc(hidden)]
    #[must_use]
    pub fn mistakes(mut self, mistakes: Mistakes) -> Self {
        self.mistakes = mistakes;
        self
    }

    /// Where the job is backed up, if it is.
    pub(crate) fn backs_up(&self) -> Option<String> {
        #[cfg(feature = "object-store")]
        let place = self.backups.as_ref().map(ToString::to_string);
        #[cfg(not(feature = "object-store"))]
        let place = None;
        place
    }

    /// The latest generation that there are backups of; 0 when none is, or that cannot be seen now.
    pub(crate) fn backed_up(&self) -> u32 {
        #[cfg(feature = "object-store")]
        let generation = self.backups.as_ref().map_or(0, crate::backups::BackupPlan::latest);
        #[cfg(not(feature = "object-store"))]
        let generation = 0;
        generation
    }

    /// Whether there is a whole backup of the job, as far as that can be seen.
    pub(crate) fn restorable(&self) -> bool {
        #[cfg(feature = "object-store")]
        let restorable = self.backups.as_ref().is_some_and(crate::backups::BackupPlan::is_restorable);
        #[cfg(not(feature = "object-store"))]
        let restorable = false;
        restorable
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refused = |what: String| {
            Err(Error::config(Detail::new(what).remedy("Correct the configuration of the job.")))
        };
        if self.job.is_empty() || self.job.len() > 200 {
            return refused(format!("the job's name has {} bytes, must have 1 to 200", self.job.len()));
        }
        if self.max_ahead_epochs == 0 || self.max_ahead_bytes == 0 {
            return refused("an input must be allowed to be ahead by 1 epoch and 1 byte at least".to_owned());
        }
        if [self.start_timeout, self.stall_timeout].contains(&Some(Duration::ZERO)) {
            return refused("start_timeout and stall_timeout must be more than nothing, or none".to_owned());
        }
        if !self.vfs.parallel() {
            return refused(
                "a job runs on several threads, which this file system does not allow".to_owned(),
            );
        }
        self.settings.validate()?;
        #[cfg(feature = "object-store")]
        if let Some(backups) = &self.backups {
            backups.options.validate()?;
        }
        Ok(())
    }
}
