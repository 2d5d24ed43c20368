//! Where rows leave the job, once their epoch is durable on all workers of all processes.

use std::fmt;
use std::io;

use laminar_storage::Epoch;

/// Which part of a job's output a sink takes: one for each worker, and new ones when the job gets another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkPart {
    /// Which size of the job, counted from 1.
    pub generation: u32,
    /// The worker.
    pub worker: u32,
}

impl fmt::Display for SinkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{:04}-w{:04}", self.generation, self.worker)
    }
}

/// Takes the rows of one part of the output, exactly once.
///
/// It is given every epoch that has rows, in order, when the epoch is durable on all workers: none of it can be rolled back
/// any more. After a crash the job asks what is [committed](Self::committed), and gives it the rest again, out of the state,
/// so that nothing is lost; what it has, it is not given again, so that nothing is there twice. That is exact if `commit`
/// is all or nothing for each epoch, and `committed` knows it. Where a target cannot do that, it must at least take the
/// same epoch twice, and know it by its number.
///
/// It has a thread of its own: blocking holds up no worker.
pub trait EpochSink<D>: Send {
    /// Up to this epoch everything that was given is in the target, and survives.
    fn committed(&self) -> Epoch;

    /// Puts the rows of these epochs into the target, durably when it returns. They are in order and later than what is
    /// committed; one call may bring several.
    ///
    /// # Errors
    /// What the target says. The process ends then, and after the restart the job asks again what is committed.
    fn commit(&mut self, epochs: &[(Epoch, Vec<D>)]) -> io::Result<()>;

    /// Says how what was committed after `epoch`, and what was committed in one call with it, is taken back, and **changes
    /// nothing yet**. Asked only when the job was restored from a backup of that epoch and the sink has more: the job computes
    /// it anew, and would give it a second time.
    ///
    /// The job asks all sinks of all workers first. Only when none refuses, each is [cut](CutBack::cut).
    ///
    /// # Errors
    /// That it cannot, which is what happens when it is not implemented: the job does not start then, and no sink is changed.
    fn prepare_cut_back(&mut self, epoch: Epoch) -> io::Result<CutBack<Self>>
    where
        Self: Sized,
    {
        let what = format!("this sink cannot take back what came after epoch {epoch}");
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }
}

/// What cuts a sink back.
type Cut<S> = Box<dyn FnOnce(&mut S) -> io::Result<()>>;

/// How a sink is cut back: made by [`EpochSink::prepare_cut_back`], and done once all sinks of the job have made theirs.
pub struct CutBack<S> {
    /// What [`EpochSink::committed`] says afterwards.
    pub to: Epoch,
    /// Does it, durably. It fails for what could not be foreseen only, as a device that fails: other sinks may be cut back
    /// already. It may be interrupted by a crash anywhere, and the sink is asked again at the next start if it still has more.
    pub cut: Cut<S>,
}

impl<S> CutBack<S> {
    /// Back to what was committed up to `to`, by `cut`.
    pub fn new(to: Epoch, cut: impl FnOnce(&mut S) -> io::Result<()> + 'static) -> Self {
        Self { to, cut: Box::new(cut) }
    }
}

impl<S> fmt::Debug for CutBack<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutBack").field("to", &self.to).finish_non_exhaustive()
    }
}
