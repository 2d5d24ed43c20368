//! How long a checkpoint holds up a writer: its longest put while one is made, beside its longest put for as
//! long without one, which tells what the machine and the store make of a put anyway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::Error;
use crate::keys::Random;

/// From one put until the next is due. Without a pause a writer would be held up by a log that falls behind,
/// whatever the checkpoint does.
const PACE: Duration = Duration::from_micros(2);

/// What a table says of it.
pub const NOTE: &str = "longest put: the worst of several checkpoints, without a checkpoint for as long; one thread puts on random keys every 2 µs, or as fast as it can, each put counted from when it is due, so that pauses of the machine are in both; the puts are not waited for: ours are sealed every millisecond, RocksDB's are in its log, which is not synced";

/// The longest put of a writer.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub alone: Duration,
    /// While a checkpoint was made.
    pub beside: Duration,
    /// What the checkpoint took.
    pub time: Duration,
}

impl Stall {
    /// The worst of two.
    pub fn or_worse(self, other: Self) -> Self {
        Self { alone: self.alone.max(other.alone), beside: self.beside.max(other.beside), time: other.time }
    }
}

/// Draws the keys that are put.
pub struct Writer {
    random: Random,
    keys: u64,
}

impl Writer {
    pub fn new(keys: u64) -> Self {
        Self { random: Random::new(11), keys }
    }

    /// Puts by another thread, first for some time alone, then while this one makes a checkpoint.
    pub fn beside(
        &mut self,
        quiet: Duration,
        mut put: impl FnMut(u64) -> Result<(), Error> + Send,
        checkpoint: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Stall, Error> {
        let over = AtomicBool::new(false);
        let (alone_is_over, begin) = channel();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let alone = self.alone(quiet, &mut put);
                // Also after an error, which the other thread must not wait behind. By the time that it has
                // woken up, this one is putting again.
                alone_is_over.send(())?;
                let beside = self.longest(&mut put, || !over.load(Ordering::Relaxed))?;
                Ok::<_, Error>((alone?, beside))
            });
            begin.recv()?;
            let started = Instant::now();
            let made = checkpoint();
            let time = started.elapsed();
            over.store(true, Ordering::Relaxed);
            let (alone, beside) = writer.join().map_err(|_| "the thread that put panicked")??;
            made?;
            Ok(Stall { alone, beside, time })
        })
    }

    /// The longest put in some time.
    pub fn alone(
        &mut self,
        time: Duration,
        put: impl FnMut(u64) -> Result<(), Error>,
    ) -> Result<Duration, Error> {
        let until = Instant::now() + time;
        self.longest(put, || Instant::now() < until)
    }

    fn longest(
        &mut self,
        mut put: impl FnMut(u64) -> Result<(), Error>,
        go_on: impl Fn() -> bool,
    ) -> Result<Duration, Error> {
        let (mut longest, mut due) = (Duration::ZERO, Instant::now());
        while go_on() {
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            put(self.random.below(self.keys))?;
            let done = Instant::now();
            longest = longest.max(done - due);
            due = done.max(due + PACE);
        }
        Ok(longest)
    }
}
