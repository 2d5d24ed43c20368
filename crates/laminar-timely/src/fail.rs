//! Fail-stop: a process whose part of the job cannot go on ends at once, as a whole.
//!
//! Nothing else is safe. A worker that goes away quietly closes its inputs, and the others take that for the end of its
//! data; a panic of one thread leaves its siblings waiting for ever. The other processes notice that the connection is
//! gone and end too; whoever supervises them starts all of them again, and they recover together.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use laminar_storage::{Health, Store};

/// Exit code of a process that ended itself because its part of the job could not go on.
pub const EXIT_FAILED: i32 = 86;

/// The watchdog looks this often. It counts its own looks and not the time that passes, so that a process that was
/// stopped and goes on is not taken for one that makes no progress.
const LOOK: Duration = Duration::from_millis(100);

/// How long a process that ends may take to say why.
const UNHEARD: Duration = Duration::from_secs(2);

/// Ends the process.
pub(crate) fn fail_stop(what: &dyn Display) -> ! {
    ends_unheard();
    tracing::error!(%what, "the process ends");
    let told = "The process ends, so that no other takes its silence for an end of its data.";
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("laminar-timely: {what}\n{told}\n").as_bytes(),
    );
    std::process::exit(EXIT_FAILED)
}

/// Whoever should hear why the process ends may not listen: it ends all the same.
fn ends_unheard() {
    let _ = thread::Builder::new().spawn(|| {
        thread::sleep(UNHEARD);
        std::process::exit(EXIT_FAILED)
    });
}

/// From now on any panic of any thread ends the process, after it was reported as usual.
pub(crate) fn panics_end_the_process() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        ends_unheard();
        report(panic);
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        // What timely says when a socket is closed.
        if text.starts_with("timely communication error") {
            fail_stop(
                &"the connection to another process is gone: look there why, then start all processes again",
            );
        }
        fail_stop(&"a thread panicked");
    }));
}

/// What the watchdog looks at.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Grows with everything that became durable or was committed, on any worker.
    progress: AtomicU64,
    /// Workers that wait for progress.
    waiting: AtomicUsize,
    /// The state is recovered, and the dataflow built with its sinks, on all workers.
    started: AtomicBool,
    /// A worker has done all of the job, and ends.
    ending: AtomicBool,
    ended: AtomicBool,
}

/// How long nothing may come while workers wait; no limit where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until the job has begun: opening and distributing a large state takes its time, a sink's target as well, and says
    /// nothing meanwhile.
    pub(crate) start: Option<Duration>,
    pub(crate) stall: Option<Duration>,
}

impl Pulse {
    /// Something became durable or committed.
    pub(crate) fn beat(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker waits for progress while the guard lives.
    pub(crate) fn waits(self: &Arc<Self>) -> Waits {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(Arc::clone(self))
    }

    /// The state is recovered and the dataflow built, on all workers.
    pub(crate) fn start(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// The job is done.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Watches on a thread of its own, until the job is done.
    pub(crate) fn watch(
        self: &Arc<Self>,
        patience: Patience,
        store: StoreSlot,
    ) -> std::io::Result<JoinHandle<()>> {
        let pulse = Arc::clone(self);
        thread::Builder::new().name("laminar-watchdog".into()).spawn(move || pulse.run(patience, &store))
    }

    fn run(&self, patience: Patience, store: &StoreSlot) {
        let (mut seen, mut looks, mut begun) = (0, 0_u32, false);
        while !self.ended.load(Ordering::Relaxed) {
            thread::sleep(LOOK);
            if let Some(store) = store.get()
                && let Health::Poisoned(cause) = store.health()
            {
                fail_stop(&cause);
            }
            let started = self.started.load(Ordering::Acquire);
            let now = self.progress.load(Ordering::Relaxed);
            let waits = self.waiting.load(Ordering::Relaxed) > 0;
            looks = if waits && now == seen && started == begun { looks.saturating_add(1) } else { 0 };
            (seen, begun) = (now, started);
            let limit = if started { patience.stall } else { patience.start };
            if let Some(limit) = limit.filter(|limit| LOOK * looks >= *limit) {
                let ending = self.ending.load(Ordering::Relaxed);
                fail_stop(&Stalled { started, ending, limit });
            }
        }
    }
}

/// Why the watchdog ends the process.
struct Stalled {
    started: bool,
    ending: bool,
    limit: Duration,
}

impl Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { started, ending, limit } = self;
        if *ending {
            write!(
                f,
                "all is durable and committed, but for {limit:?} not all processes have ended: one of them hangs, the \
                 connection to it is cut, or a sink does not close. Start all of them again: there is little left to do."
            )
        } else if *started {
            write!(
                f,
                "nothing became durable for {limit:?} while workers wait for it: another process hangs, the connection to it \
                 is cut, a worker seals nothing, or the device does not answer. Look at the other processes, then start all \
                 of them again."
            )
        } else {
            write!(
                f,
                "the job has not begun for {limit:?}: another process hangs, the connection to it is cut, or a state takes \
                 longer to open, to distribute or to back up, or a sink to open. Look at the other processes, raise `start_timeout` (`--start-timeout`) in the last \
                 case, then start all of them again."
            )
        }
    }
}

/// A worker waits for progress as long as this lives.
#[derive(Debug)]
pub(crate) struct Waits(Arc<Pulse>);

impl Waits {
    /// Waits until the watchdog is told that all is over.
    pub(crate) fn until_the_end(self) {
        self.0.ending.store(true, Ordering::Relaxed);
        std::mem::forget(self);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the store of a process is, once it is opened.
pub(crate) type StoreSlot = Arc<std::sync::OnceLock<Arc<Store>>>;
