//! What can be set about backups.

use std::num::NonZeroU64;
use std::time::Duration;

use super::error::{BackupError, Result};

/// Settings of backups and restores. The defaults suit a first user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupOptions {
    /// Backups kept, the newest ones; 1 to 10,000. Default 3.
    pub keep: usize,
    /// Requests under way at a time; 1 to 256. Each holds a chunk in memory. Default 4.
    pub concurrency: usize,
    /// Bytes of files that are moved in a second, on average; none: as many as go. Default none.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Bytes of an object: longer files are put in several. 1 to 1 GiB; default 8 MiB.
    pub chunk_bytes: u64,
    /// How often a request is made that fails with what may pass; 1 to 1000. Default 6.
    pub attempts: u32,
    /// The pause after the first failure; each further one is twice as long, up to 256 times. Default 250 ms.
    pub first_pause: Duration,
    /// How long a request is tried at most, its attempts and the pauses between them together; none: as often as `attempts` says.
    /// Default none. For a question at whose answer somebody waits, and can go on without.
    pub patience: Option<Duration>,
    /// Reads every object back after it was put. Default false: a store that confirms a put is believed.
    pub read_back: bool,
    /// Takes over the backups of another store that are at this place, or of a later opening of this one, when this one was
    /// put back from an image of its disk. Default false. To be set once: whoever always sets it takes the place from whoever
    /// took it over rightly.
    pub take_over: bool,
    /// Sends every file once in an opening of the store, also what earlier openings sent; what this opening sent is not sent
    /// again. Default false: files that are there are taken as they are, unless they are listed as missing or of another length.
    /// After damage this makes a backup that is whole.
    pub send_all: bool,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            keep: 3,
            concurrency: 4,
            bytes_per_second: None,
            chunk_bytes: 8 << 20,
            attempts: 6,
            first_pause: Duration::from_millis(250),
            patience: None,
            read_back: false,
            take_over: false,
            send_all: false,
        }
    }
}

impl BackupOptions {
    /// The default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Self::keep`].
    #[must_use]
    pub fn keep(mut self, backups: usize) -> Self {
        self.keep = backups;
        self
    }

    /// Sets [`Self::concurrency`].
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests;
        self
    }

    /// Sets [`Self::bytes_per_second`]; 0 for no limit.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = NonZeroU64::new(bytes);
        self
    }

    /// Sets [`Self::chunk_bytes`].
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    /// Sets [`Self::attempts`] and [`Self::first_pause`].
    #[must_use]
    pub fn attempts(mut self, attempts: u32, first_pause: Duration) -> Self {
        (self.attempts, self.first_pause) = (attempts, first_pause);
        self
    }

    /// Sets [`Self::patience`].
    #[must_use]
    pub fn patience(mut self, at_most: Duration) -> Self {
        self.patience = Some(at_most);
        self
    }

    /// Sets [`Self::read_back`].
    #[must_use]
    pub fn read_back(mut self, yes: bool) -> Self {
        self.read_back = yes;
        self
    }

    /// Sets [`Self::take_over`].
    #[must_use]
    pub fn take_over(mut self, yes: bool) -> Self {
        self.take_over = yes;
        self
    }

    /// Sets [`Self::send_all`].
    #[must_use]
    pub fn send_all(mut self, yes: bool) -> Self {
        self.send_all = yes;
        self
    }

    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`BackupError::InvalidInput`] naming the field, its value and the bound.
    pub fn validate(&self) -> Result<()> {
        within("keep", self.keep as u64, 1, 10_000)?;
        within("concurrency", self.concurrency as u64, 1, 256)?;
        within("chunk_bytes", self.chunk_bytes, 1, 1 << 30)?;
        within("attempts", u64::from(self.attempts), 1, 1000)
    }
}

fn within(field: &str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let what = format!("{field} is {value}, must be {min}..={max}");
    Err(BackupError::invalid(what, "backup options", "Correct it; nothing was changed."))
}
