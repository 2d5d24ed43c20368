//! The object store as the rest of this module sees it: a few operations, each tried again until its outcome is known.
//!
//! A request whose reply is lost may have been carried out, or may be carried out later. What is done here is the same
//! when it is done twice: objects are only put where there is none, with a name that always means the same bytes.

use std::cell::Cell;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
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

/// How long an object store may take to begin its answer to a request that moves no file. An honest one does not need it; one
/// that takes connections and never answers is not waited for as long as a chunk on a slow line is.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a listing may go on without showing anything: its pages may be empty, but not for ever.
const EMPTY_PAGES: Duration = Duration::from_secs(60);
/// A put of more bytes than this moves a file, or as much as one.
const SMALL: usize = 64 << 10;

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
    limits: Limits,
    pub(super) options: BackupOptions,
    pub(super) stop: Stop,
    pace: Arc<Pace>,
    runtime: Arc<OwnRuntime>,
}

/// How long is waited for an answer; none in a directory, where there is nobody to be silent.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    answer: Option<Duration>,
    empty_pages: Option<Duration>,
}

impl Limits {
    fn of_network() -> Self {
        Self { answer: Some(ANSWER), empty_pages: Some(EMPTY_PAGES) }
    }
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
            limits: target.on_this_machine().map_or_else(Limits::of_network, |_| Limits::default()),
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
            // The bytes come after this.
            let found = within(self.limits.answer, self.store.get(&path)).await?;
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
            let limit = self.limits.answer.filter(|_| bytes.len() <= SMALL);
            let put = self.store.put_opts(&path, payload, PutMode::Create.into());
            within(limit, put).await.map(|_| Put::Done)
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
            let mut listed = self.store.list(Some(&path));
            let mut found = Vec::new();
            loop {
                match within(self.limits.empty_pages, listed.try_next()).await {
                    Ok(Some(meta)) => found.push(meta),
                    Ok(None) => break,
                    Err(_) if sabotaged(Sabotage::BrokenListingIsWhole) => break,
                    Err(error) => return Err(error),
                }
            }
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
            let listed = self.store.list_with_delimiter(Some(&self.prefix));
            let found = within(self.limits.empty_pages, listed).await?;
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
        let delete = async || within(self.limits.answer, self.store.delete(&path)).await;
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
        let (mut attempt, began) = (0, Instant::now());
        // What is left of the patience.
        let left = || self.options.patience.map(|patience| patience.saturating_sub(began.elapsed()));
        loop {
            let answer = self.stop.unless_asked(async { Ok(within(left(), request()).await) }).await?;
            let error = match answer {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(meaning) = known(&error) {
                return Ok(meaning);
            }
            attempt += 1;
            let is_over = left().is_some_and(|left| left <= self.pause_after(attempt - 1));
            if !may_pass(&error) || attempt >= self.options.attempts || is_over {
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

    fn pause_after(&self, attempt: u32) -> Duration {
        self.options.first_pause.saturating_mul(1 << attempt.min(8))
    }

    /// Waits before another attempt.
    pub(super) async fn pause(&self, attempt: u32) {
        let pause = self.pause_after(attempt);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Waits for an answer, but not for longer than this.
async fn within<T>(
    limit: Option<Duration>,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    let Some(limit) = limit else { return request.await };
    tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
        let source = format!("nothing came within {limit:.1?}").into();
        Err(Error::Generic { store: "object store", source })
    })
}

/// Whether an error may be gone when the same is asked again.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. } | Error::NotModified { .. })
}

/// What the operating system said, where the objects are files.
fn local_cause(error: &Error) -> Option<ErrorKind> {
    let first = std::error::Error::source(error);
    let chain = std::iter::successors(first, |error| error.source());
    chain.filter_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind).last()
}

fn failure(action: &str, place: &str, error: &Error, attempts: u32) -> BackupError {
    let detail = |what| Detail::new(what).at_path(place);
    if may_pass(error) {
        let what = format!("could not {action} this after {attempts} attempts: {error}");
        let remedy = match local_cause(error) {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                "Free space there, or keep fewer backups; what is there is intact, and trying again goes on."
            }
            Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                "Give this user the right to write and read there; what is there is intact, and trying again goes on."
            }
            _ => {
                "Check the network, the URL, and what the environment says of the object store (endpoint, credentials); what is there is intact, and \
                 trying again goes on."
            }
        };
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

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::backup::names::LOG;

    const SHORT: Duration = Duration::from_millis(200);

    /// A place at a server of our own, which is not waited for as long as others are.
    fn remote(server: &TcpListener) -> Remote {
        let endpoint = format!("http://{}", server.local_addr().unwrap());
        let settings = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "a"),
            ("aws_secret_access_key", "b"),
            ("timeout", "20s"),
        ];
        let target = BackupTarget::parse_with("s3://bucket/x", settings).unwrap();
        let mut remote = Remote::new(&target, &BackupOptions::new().attempts(2, Duration::ZERO)).unwrap();
        remote.limits = Limits { answer: Some(SHORT), empty_pages: Some(SHORT) };
        remote
    }

    fn gives_up<T: std::fmt::Debug>(remote: &Remote, work: impl Future<Output = Result<T>>) {
        let began = Instant::now();
        let error = remote.run(work).unwrap_err();
        assert!(matches!(error, BackupError::Unreachable(_)), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    /// A full disk was said to be a matter of network, URL and object store.
    #[test]
    fn what_the_operating_system_says_of_a_directory_is_what_is_to_be_done_about() {
        let said = |kind| {
            let source = Box::new(std::io::Error::from(kind));
            let error = Error::Generic { store: "LocalFileSystem", source };
            failure("write", "files/1", &error, 6).to_string()
        };
        assert!(said(ErrorKind::StorageFull).contains("Free space there"));
        assert!(said(ErrorKind::ReadOnlyFilesystem).contains("the right to write"));
        assert!(said(ErrorKind::ConnectionRefused).contains("Check the network"));
    }

    /// Every small request was given as long as a chunk on a slow line is.
    #[test]
    fn a_server_that_never_answers_is_not_waited_for_as_long_as_a_chunk() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = remote(&silent);
        gives_up(&remote, remote.list(LOG));
        gives_up(&remote, remote.folders());
        gives_up(&remote, remote.get(LOG, "a", 10));
        gives_up(&remote, remote.put_new(LOG, "a", &Bytes::from_static(b"a")));
        gives_up(&remote, remote.delete(LOG, "a"));
    }

    /// Each page of its listings has nothing on it, and says that there is another one.
    #[test]
    fn a_listing_of_empty_pages_without_end_is_given_up() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = remote(&server);
        thread::spawn(move || {
            let page = "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>\
                        <NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
            for socket in server.incoming() {
                let (mut socket, answer) = (socket.unwrap(), answer.clone());
                // One request without a body comes in one piece, or is answered a piece too often.
                thread::spawn(move || {
                    let mut request = [0; 4096];
                    while socket.read(&mut request).is_ok_and(|read| read > 0) {
                        if socket.write_all(answer.as_bytes()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        gives_up(&remote, remote.list(LOG));
        gives_up(&remote, remote.folders());
    }
}
