//! An object store that fails as real ones may, by a plan or by a seed; the same plan gives the same failures.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::path::Path;
use laminar_storage::backup::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Put,
    Delete,
    List,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It works.
    None,
    /// It is not carried out, and fails with an error that may pass.
    Before,
    /// It is carried out, and the reply is lost.
    LostReply,
    /// A put is refused as if something was there (412), although nothing is.
    Conflict,
    /// The same, as of an object that exists (409).
    Exists,
    /// A listing breaks off after half of it.
    PartialListing,
    /// A listing does not show the newest objects.
    StaleListing,
    /// Nothing works any more from here on: the writer died, or the network.
    Dead,
}

/// Decides what happens to operation number `n`.
pub type Plan = dyn Fn(usize, Kind, &Path) -> Fault + Send + Sync;

/// An object store with faults over one without.
pub struct Faulty {
    inner: Arc<InMemory>,
    plan: Box<Plan>,
    state: Mutex<Progress>,
    turns: Option<Arc<Turns>>,
    name: usize,
}

#[derive(Default)]
struct Progress {
    operations: Vec<(Kind, Path)>,
    dead: bool,
    /// Number of the operation that put each object, over all.
    put_at: HashMap<Path, usize>,
    under_way: usize,
    most_under_way: usize,
    bytes_put: u64,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

/// Objects that a stale listing hides.
const HIDDEN: usize = 6;

impl Faulty {
    /// Over an object store in memory.
    pub fn new(
        inner: &Arc<InMemory>,
        plan: impl Fn(usize, Kind, &Path) -> Fault + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            plan: Box::new(plan),
            state: Mutex::default(),
            turns: None,
            name: 0,
        })
    }

    /// One that works, whose operations wait for their turn.
    pub fn taking_turns(inner: &Arc<InMemory>, turns: &Arc<Turns>, name: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            plan: Box::new(|_, _, _| Fault::None),
            state: Mutex::default(),
            turns: Some(Arc::clone(turns)),
            name,
        })
    }

    /// The operations so far.
    pub fn operations(&self) -> Vec<(Kind, Path)> {
        self.state.lock().unwrap().operations.clone()
    }

    /// The most operations that were under way at a time.
    pub fn most_under_way(&self) -> usize {
        self.state.lock().unwrap().most_under_way
    }

    /// Bytes of all puts that were carried out.
    pub fn bytes_put(&self) -> u64 {
        self.state.lock().unwrap().bytes_put
    }

    fn begin(&self, kind: Kind, path: &Path) -> Fault {
        if let Some(turns) = &self.turns {
            turns.wait(self.name);
        }
        let mut state = self.state.lock().unwrap();
        let number = state.operations.len();
        state.operations.push((kind, path.clone()));
        let fault = if state.dead { Fault::Dead } else { (self.plan)(number, kind, path) };
        state.dead |= fault == Fault::Dead;
        state.under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way);
        fault
    }

    fn end(&self) {
        self.state.lock().unwrap().under_way -= 1;
        if let Some(turns) = &self.turns {
            turns.done(self.name);
        }
    }

    /// The objects that a stale listing hides.
    fn newest(&self) -> Vec<Path> {
        let state = self.state.lock().unwrap();
        let mut newest: Vec<_> = state.put_at.iter().map(|(path, at)| (*at, path)).collect();
        newest.sort_unstable();
        newest.iter().rev().take(HIDDEN).map(|(_, path)| (*path).clone()).collect()
    }

    /// Gives other requests the chance to be under way too.
    async fn linger(&self) {
        for _ in 0..3 {
            let mut first = true;
            std::future::poll_fn(|context| {
                if std::mem::take(&mut first) {
                    context.waker().wake_by_ref();
                    return std::task::Poll::Pending;
                }
                std::task::Poll::Ready(())
            })
            .await;
        }
    }
}

fn lost() -> Error {
    Error::Generic { store: "Faulty", source: "the connection was reset".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fault = self.begin(Kind::Put, location);
        self.linger().await;
        let len = payload.content_length() as u64;
        let result = match fault {
            Fault::Before | Fault::Dead => Err(lost()),
            Fault::Conflict => Err(Error::Precondition {
                path: location.to_string(),
                source: "412, although there is nothing".into(),
            }),
            Fault::Exists => Err(Error::AlreadyExists {
                path: location.to_string(),
                source: "409, although there is nothing".into(),
            }),
            fault => {
                let put = self.inner.put_opts(location, payload, opts).await;
                if put.is_ok() {
                    let mut state = self.state.lock().unwrap();
                    let number = state.operations.len();
                    state.put_at.insert(location.clone(), number);
                    state.bytes_put += len;
                }
                if fault == Fault::LostReply { Err(lost()) } else { put }
            }
        };
        self.end();
        result
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".into(), implementer: "Faulty".into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.begin(Kind::Get, location);
        self.linger().await;
        let result = match fault {
            Fault::Before | Fault::LostReply | Fault::Dead => Err(lost()),
            _ => self.inner.get_opts(location, options).await,
        };
        self.end();
        result
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // One at a time, as this library does it.
        let inner = Arc::clone(&self.inner);
        let paths: Vec<Path> = futures_util::FutureExt::now_or_never(
            locations.filter_map(|path| async { path.ok() }).collect::<Vec<_>>(),
        )
        .unwrap();
        let mut results = Vec::new();
        for path in paths {
            let fault = self.begin(Kind::Delete, &path);
            let delete = || futures_util::FutureExt::now_or_never(inner.delete(&path)).unwrap();
            results.push(match fault {
                Fault::LostReply => delete().and(Err(lost())),
                Fault::Before | Fault::Dead => Err(lost()),
                _ => delete().map(|()| path.clone()),
            });
            self.end();
        }
        stream::iter(results).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let fault = self.begin(Kind::List, prefix.unwrap_or(&Path::default()));
        let listed =
            futures_util::FutureExt::now_or_never(self.inner.list(prefix).collect::<Vec<_>>()).unwrap();
        let listed = match fault {
            Fault::PartialListing => {
                let half = listed.len() / 2;
                listed.into_iter().take(half).chain([Err(lost())]).collect()
            }
            Fault::StaleListing => {
                let hidden = self.newest();
                let is_hidden =
                    |m: &Result<ObjectMeta>| m.as_ref().is_ok_and(|m| hidden.contains(&m.location));
                listed.into_iter().filter(|m| !is_hidden(m)).collect()
            }
            Fault::Before | Fault::LostReply | Fault::Dead => vec![Err(lost())],
            _ => listed,
        };
        self.end();
        stream::iter(listed).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.begin(Kind::List, prefix.unwrap_or(&Path::default()));
        self.linger().await;
        let listed = match fault {
            // All pages of it are one answer: what breaks off is none.
            Fault::Before | Fault::LostReply | Fault::PartialListing | Fault::Dead => Err(lost()),
            Fault::StaleListing => {
                let hidden = self.newest();
                let shown = self.inner.list(prefix).try_collect::<Vec<_>>().await?;
                let shown: Vec<_> = shown.into_iter().filter(|m| !hidden.contains(&m.location)).collect();
                let mut listed = self.inner.list_with_delimiter(prefix).await?;
                listed
                    .common_prefixes
                    .retain(|folder| shown.iter().any(|m| m.location.prefix_matches(folder)));
                listed.objects.retain(|m| !hidden.contains(&m.location));
                Ok(listed)
            }
            _ => self.inner.list_with_delimiter(prefix).await,
        };
        self.end();
        listed
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Lets threads go on one operation at a time, in a given order.
#[derive(Default)]
pub struct Turns {
    state: Mutex<Waiting>,
    bell: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Per thread: it waits for its turn.
    waiting: [bool; 2],
    ended: [bool; 2],
    /// Whose turn it is; none while it is decided.
    turn: Option<usize>,
}

impl Turns {
    fn wait(&self, name: usize) {
        let mut state = self.state.lock().unwrap();
        state.waiting[name] = true;
        self.bell.notify_all();
        while state.turn != Some(name) {
            state = self.bell.wait(state).unwrap();
        }
        state.waiting[name] = false;
    }

    fn done(&self, _: usize) {
        self.state.lock().unwrap().turn = None;
        self.bell.notify_all();
    }

    /// A thread has done all it has to.
    pub fn end(&self, name: usize) {
        self.state.lock().unwrap().ended[name] = true;
        self.bell.notify_all();
    }

    /// Gives turns until both have ended: where both wait, `choose` says whose it is, by the number of choices before.
    /// Returns the choices.
    pub fn conduct(&self, mut choose: impl FnMut(usize) -> usize) -> Vec<usize> {
        let mut choices = Vec::new();
        loop {
            let mut state = self.state.lock().unwrap();
            while state.turn.is_some() || (0..2).any(|name| !state.waiting[name] && !state.ended[name]) {
                state = self.bell.wait(state).unwrap();
            }
            let next = match (state.waiting[0], state.waiting[1]) {
                (false, false) => return choices,
                (true, false) => 0,
                (false, true) => 1,
                (true, true) => {
                    let chosen = choose(choices.len());
                    choices.push(chosen);
                    chosen
                }
            };
            state.turn = Some(next);
            self.bell.notify_all();
        }
    }
}

/// A plan by seed: of a hundred operations so many go wrong, in all ways.
pub fn seeded(seed: u64, percent: u64) -> impl Fn(usize, Kind, &Path) -> Fault + Send + Sync {
    move |number, kind, _| {
        let mixed = mix(seed ^ mix(number as u64));
        if mixed % 100 >= percent {
            return Fault::None;
        }
        let faults: &[Fault] = match kind {
            Kind::Get => &[Fault::Before],
            Kind::Put => &[Fault::Before, Fault::LostReply, Fault::Conflict, Fault::Exists],
            Kind::Delete => &[Fault::Before, Fault::LostReply],
            Kind::List => &[Fault::Before, Fault::PartialListing, Fault::StaleListing],
        };
        faults[usize::try_from(mixed / 100).unwrap() % faults.len()]
    }
}

pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
