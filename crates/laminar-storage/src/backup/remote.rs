//! The object store as the rest of this module sees it: a few operations, each tried again until its outcome is known.
//!
//! A request whose reply is lost may have been carried out, or may be carried out later. What is done here is the same
//! when it is done twice: objects are only put where there is none, with a name that always means the same bytes.

use std::cell::Cell;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::directory::Directory;
use super::error::{BackupError, Result};
use super::names::place;
use super::options::BackupOptions;
use super::runtime::OwnRuntime;
use super::stop::Stop;
use super::target::BackupTarget;
use super::throttle::Throttle;
use crate::error::Detail;
use crate::sabotage::{Sabotage, sabotaged};
use crate::sync::lock;

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Done,
    /// There is an object of this name, or the store says so.
    Exists,
}

/// The bytes of an object in two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// They were put.
    New,
    /// They were there already.
    Old,
}

/// One place in an object store.
#[derive(Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    directory: Option<Directory>,
    pub(super) options: BackupOptions,
    pub(super) stop: Stop,
    pace: Arc<Pace>,
    runtime: Arc<OwnRuntime>,
}

/// How fast things are moved, at several places together.
#[derive(Debug)]
struct Pace {
    throttle: Mutex<Throttle>,
    started: Instant,
    waited_ns: AtomicU64,
}

impl Remote {
    pub(super) fn new(target: &BackupTarget, options: &BackupOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self {
            store: Arc::clone(target.store()),
            prefix: target.prefix().clone(),
            url: target.to_string(),
            directory: target.on_this_machine().cloned(),
            options: options.clone(),
            stop: Stop::default(),
            pace: Arc::new(Pace {
                throttle: Mutex::new(Throttle::new(options.bytes_per_second)),
                started: Instant::now(),
                waited_ns: AtomicU64::new(0),
            }),
            runtime: Arc::clone(target.runtime()),
        })
    }

    /// As [`Self::new`], under the limit of the bandwidth of `other`, which must be at a place below the same one: what is
    /// done at several places at a time is driven by one thread.
    pub(super) fn beside(other: &Self, target: &BackupTarget) -> Result<Self> {
        if !Arc::ptr_eq(&other.runtime, target.runtime()) {
            let what = format!("this is not in the same object store as {}", other.url);
            let remedy = "Take both from one BackupTarget, with BackupTarget::within.";
            return Err(BackupError::invalid(what, target.to_string(), remedy));
        }
        Ok(Self { pace: Arc::clone(&other.pace), ..Self::new(target, &other.options)? })
    }

    /// Does the work on the calling thread.
    pub(super) fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.run(work)
    }

    /// The URL of the place.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where it is, when that is a directory of this machine.
    pub(super) fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// The URL of an object, for messages.
    pub(super) fn name_of(&self, folder: &str, name: &str) -> String {
        let between = if folder.is_empty() { "" } else { "/" };
        format!("{}{between}{folder}/{name}", self.url.trim_end_matches('/'))
    }

    /// How long transfers were held back for the limit of the bandwidth.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_nanos(self.pace.waited_ns.load(Ordering::Relaxed))
    }

    /// Waits until a transfer of so many bytes may begin.
    pub(super) async fn make_way(&self, bytes: u64) -> Result<()> {
        let pace = &self.pace;
        let wait = lock(&pace.throttle).take(pace.started.elapsed(), bytes);
        if wait.is_zero() {
            return Ok(());
        }
        pace.waited_ns.fetch_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let pause = async {
            tokio::time::sleep(wait).await;
            Ok(())
        };
        self.stop.unless_asked(pause).await
    }

    /// The bytes of an object; none when there is none. One that is longer than `most` bytes is an error and is not read,
    /// so that nothing there can make us allocate (I10).
    pub(super) async fn get(&self, folder: &str, name: &str, most: u64) -> Result<Option<Bytes>> {
        let path = place(&self.prefix, folder, name);
        let read = async || {
            let found = self.store.get(&path).await?;
            let len = found.meta.size;
            Ok(Some(if len > most { Err(len) } else { Ok(found.bytes().await?) }))
        };
        let place = self.name_of(folder, name);
        let found = self.persistently("read", &place, read, |error| match error {
            Error::NotFound { .. } => Some(None),
            _ => None,
        });
        found.await?.transpose().map_err(|len| {
            BackupError::corruption(
                format!("the object has {len} bytes, at most {most} were written"),
                &place,
            )
        })
    }

    /// Puts an object where there is none. In a directory, one that is there is on the disk too, or this fails: see
    /// [`super::directory`].
    pub(super) async fn put_new(&self, folder: &str, name: &str, bytes: &Bytes) -> Result<Put> {
        let path = place(&self.prefix, folder, name);
        let tries = Cell::new(0_u32);
        let put = async || {
            tries.set(tries.get().saturating_add(1));
            let payload = PutPayload::from_bytes(bytes.clone());
            self.store.put_opts(&path, payload, PutMode::Create.into()).await.map(|_| Put::Done)
        };
        let place = self.name_of(folder, name);
        let done = self.persistently("write", &place, put, |error| match error {
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Some(Put::Exists),
            _ => None,
        });
        let done = done.await?;
        if let (Put::Exists, Some(directory)) = (done, &self.directory) {
            if tries.get() > 1 {
                return Err(directory.unproved(folder, name));
            }
            // Of another process, or of a request that was given up.
            directory.sync(folder)?;
        }
        Ok(done)
    }

    /// Makes sure that an object with a name that nobody else gives has these bytes.
    pub(super) async fn keep(&self, folder: &str, name: &str, bytes: &Bytes) -> Result<Kept> {
        for attempt in 0..self.options.attempts {
            let put = self.put_new(folder, name, bytes).await?;
            if put == Put::Done && !self.options.read_back {
                return Ok(Kept::New);
            }
            // Either asked for, or an earlier request was carried out after all.
            match self.get(folder, name, bytes.len() as u64).await? {
                Some(found) if found == *bytes => {
                    return Ok(if put == Put::Done { Kept::New } else { Kept::Old });
                }
                Some(_) => {
                    let what = "the object reads back different from what was put";
                    return Err(BackupError::corruption(what, &self.name_of(folder, name)));
                }
                None => self.pause(attempt).await,
            }
        }
        Err(self.contradicts(folder, name))
    }

    /// The store says in turn that an object is there and that it is not.
    pub(super) fn contradicts(&self, folder: &str, name: &str) -> BackupError {
        let what = "the object store says that the object is there when it is to be put, and that it is not when it is read";
        BackupError::Unreachable(Box::new(Detail::new(what).at_path(self.name_of(folder, name)).remedy(
            "It is tried again with the next backup; ask whoever runs the object store if it goes on.",
        )))
    }

    /// File names of all objects in a folder; whole, or an error.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.list_sizes(folder).await?.into_iter().map(|(name, _)| name).collect())
    }

    /// As [`Self::list`], with the bytes of each.
    pub(super) async fn list_sizes(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let path = self.prefix.clone().join(folder);
        let read = async || {
            let listed = self.store.list(Some(&path));
            let found: Vec<_> = if sabotaged(Sabotage::BrokenListingIsWhole) {
                listed.filter_map(async |meta| meta.ok()).collect().await
            } else {
                listed.try_collect().await?
            };
            let names = found.iter().filter_map(|meta| {
                let mut below = meta.location.prefix_match(&path)?;
                let name = below.next()?.as_ref().to_owned();
                below.next().is_none().then_some((name, meta.size))
            });
            Ok(names.collect())
        };
        self.persistently("list", &self.name_of(folder, ""), read, |error| match error {
            // A folder that nothing was put into.
            Error::NotFound { .. } => Some(Vec::new()),
            _ => None,
        })
        .await
    }

    /// Names of all folders right below the prefix; whole, or an error.
    pub(super) async fn folders(&self) -> Result<Vec<String>> {
        let read = async || {
            let found = self.store.list_with_delimiter(Some(&self.prefix)).await?;
            let names = found.common_prefixes.iter().filter_map(|folder| folder.filename());
            Ok(names.map(ToOwned::to_owned).collect())
        };
        self.persistently("list", &self.url, read, |error| match error {
            // A place that nothing was put into.
            Error::NotFound { .. } => Some(Vec::new()),
            _ => None,
        })
        .await
    }

    /// Removes an object, which may be gone already.
    pub(super) async fn delete(&self, folder: &str, name: &str) -> Result<()> {
        let path = place(&self.prefix, folder, name);
        let delete = async || self.store.delete(&path).await;
        self.persistently("remove", &self.name_of(folder, name), delete, |error| match error {
            Error::NotFound { .. } => Some(()),
            _ => None,
        })
        .await
    }

    /// Tries until the outcome is known. `known` says what an error means that is an answer.
    async fn persistently<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        action: &'static str,
        place: &str,
        request: impl Fn() -> F,
        known: impl Fn(&Error) -> Option<T>,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            let answer = self.stop.unless_asked(async { Ok(request().await) }).await?;
            let error = match answer {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(meaning) = known(&error) {
                return Ok(meaning);
            }
            attempt += 1;
            if !may_pass(&error) || attempt >= self.options.attempts {
                return Err(failure(action, place, &error, attempt));
            }
            tracing::debug!(%error, place, attempt, "a request to the object store failed and is made again");
            let pause = async {
                self.pause(attempt - 1).await;
                Ok(())
            };
            self.stop.unless_asked(pause).await?;
        }
    }

    /// Waits before another attempt.
    pub(super) async fn pause(&self, attempt: u32) {
        let pause = self.options.first_pause.saturating_mul(1 << attempt.min(8));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Whether an error may be gone when the same is asked again.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. } | Error::NotModified { .. })
}

fn failure(action: &str, place: &str, error: &Error, attempts: u32) -> BackupError {
    let detail = |what| Detail::new(what).at_path(place);
    if may_pass(error) {
        let what = format!("could not {action} this after {attempts} attempts: {error}");
        let remedy = "Check the network, the URL and the object store; what is there is intact, and trying again goes on.";
        return BackupError::Unreachable(Box::new(detail(what).remedy(remedy)));
    }
    let remedy = match error {
        Error::PermissionDenied { .. } => {
            "Give these credentials the right to read, put, list and delete there."
        }
        Error::Unauthenticated { .. } => {
            "Set the credentials that the object store's own tools use, in the environment."
        }
        Error::NotFound { .. } => "Check the URL: bucket, container or directory must exist.",
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            "Use an object store that has conditional puts (put if absent)."
        }
        _ => "Check the URL and the object store's settings.",
    };
    BackupError::Refused(Box::new(detail(format!("could not {action} this: {error}")).remedy(remedy)))
}
