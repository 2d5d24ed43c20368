//! Sinks before the job begins: none is changed before all of them, on all workers, are known to be able to go on.
//!
//! 1. While the dataflow is declared, each sink is opened and asked what it has and, where that is more than a restored state,
//!    how it is cut back. Nothing is changed.
//! 2. All workers tell each other which sinks refuse. If any does, the job does not begin, on any worker.
//! 3. Each worker cuts its sinks back and gives them the rows that wait for them. Their threads start.
//!
//! No row of this run comes to a sink before all workers are through with that. A crash in between is no other case: at the
//! next start those that are cut back have no more than the state, and the others are asked again.

use std::sync::Arc;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use serde::{Deserialize, Serialize};
use timely::worker::Worker;

use super::gather::gather;
use crate::error::Error;
use crate::fail::Pulse;
use crate::sink::{CutBack, EpochSink, SinkPart};

/// Epochs with their rows.
pub(super) type Epochs<D> = Vec<(Epoch, Vec<D>)>;

/// Why a sink cannot go on with the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    sink: String,
    what: String,
    epoch: u64,
    remedy: String,
}

/// The sinks of a worker, as far as they are declared.
#[derive(Default)]
pub(super) struct Sinks {
    pub(super) refusals: Vec<Refusal>,
    /// What is done with each when no worker has one that refuses.
    pub(super) begin: Vec<Box<dyn FnOnce() -> Result<(), Error>>>,
}

impl Sinks {
    /// Lets all of them begin, or none of any worker. All workers call it.
    pub(super) fn begin(self, worker: &mut Worker, pulse: &Arc<Pulse>) -> Result<(), Error> {
        let all = gather(worker, pulse, &self.refusals)?;
        let all: Vec<_> = all.into_iter().flatten().collect();
        if let Some(error) = refused(&all) {
            return Err(error);
        }
        self.begin.into_iter().try_for_each(|begin| begin())
    }
}

/// What the job says when sinks refuse: why the first one does, and which the others are.
fn refused(all: &[Refusal]) -> Option<Error> {
    let (first, others) = all.split_first()?;
    let mut what = format!("{} {}", first.sink, first.what);
    if !others.is_empty() {
        let others: Vec<_> = others.iter().map(|other| other.sink.as_str()).collect();
        what = format!("{what} (nor can these go on: {})", others.join(", "));
    }
    let remedy = format!("No sink was changed. {}", first.remedy);
    Some(Error::sink(Detail::new(what).in_epoch(Epoch(first.epoch)).remedy(remedy)))
}

/// What the state says about a part of a sink.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) name: &'a str,
    pub(super) part: SinkPart,
    /// Nothing later is in the state.
    pub(super) point: Epoch,
    /// The state is that of a backup, so that the sink may have more.
    pub(super) restored: bool,
    /// Rows up to here were committed, and are not in the state any more.
    pub(super) had: Epoch,
}

impl Known<'_> {
    /// Whether a sink can go on with the state, and how it is cut back first if it has more. Changes nothing.
    pub(super) fn ask<D, S: EpochSink<D>>(self, sink: &mut S) -> Result<Option<CutBack<S>>, Refusal> {
        let Self { point, restored, had, .. } = self;
        let has = sink.committed();
        if has <= point {
            return if has < had { Err(self.lost(has)) } else { Ok(None) };
        }
        let what = format!("has epoch {has}, but the state goes only to {point}");
        if !restored {
            let remedy = "The sink belongs to another state, or the state was lost: put together what belongs together.";
            return Err(self.refusal(what, point, remedy.to_owned()));
        }
        let remedy = format!(
            "Restore a backup of epoch {has} or a later one, or bring the sink's target back to what it had at epoch {point}; or \
             begin with an empty target and another state."
        );
        let cannot = |why: &str| {
            self.refusal(format!("{what}, from a backup, and it cannot be cut back: {why}"), point, remedy)
        };
        match sink.prepare_cut_back(point) {
            Err(error) => Err(cannot(&error.to_string())),
            Ok(cut) if cut.to > point => {
                Err(cannot(&format!("it would keep what it has up to epoch {}", cut.to)))
            }
            Ok(cut) if cut.to < had => Err(cannot(&format!(
                "it would have rows up to epoch {} only, and those up to {had} are not in the state any more",
                cut.to
            ))),
            Ok(cut) => Ok(Some(cut)),
        }
    }

    fn lost(&self, has: Epoch) -> Refusal {
        let had = self.had;
        let what = format!("has rows up to epoch {has} only, but had committed them up to {had}");
        let remedy = "What it lost cannot be given again. Bring back a newer copy of its target, or begin anew with another \
                      state and an empty target.";
        self.refusal(what, had, remedy.to_owned())
    }

    fn refusal(&self, what: String, epoch: Epoch, remedy: String) -> Refusal {
        Refusal { sink: title(self.name, self.part), what, epoch: epoch.0, remedy }
    }
}

/// One part of a sink, as it was when it was opened, and what it needs to go on.
pub(super) struct Opened<D, S> {
    pub(super) part: SinkPart,
    pub(super) sink: S,
    pub(super) cut: Option<CutBack<S>>,
    /// Rows in the state; it may have some of them.
    pub(super) waiting: Epochs<D>,
}

impl<D, S: EpochSink<D>> Opened<D, S> {
    /// Cuts it back, if that is needed, and gives it what it had not committed.
    pub(super) fn begin(self, name: &str, pulse: &Pulse) -> Result<S, Error> {
        let Self { part, mut sink, cut, waiting } = self;
        let title = title(name, part);
        if let Some(CutBack { to, cut }) = cut {
            tracing::info!(sink = %title, has = %sink.committed(), %to, "the sink is cut back to the backup");
            let failed = |what: String| {
                Error::sink(Detail::new(format!("{title} {what}")).in_epoch(to).remedy(
                    "Look at its target, then start again: what is cut back stays so, the rest is cut back then.",
                ))
            };
            cut(&mut sink).map_err(|error| failed(format!("could not be cut back: {error}")))?;
            let has = sink.committed();
            if has != to {
                return Err(failed(format!("was to be cut back to epoch {to}, and has {has}")));
            }
            pulse.beat();
        }
        catch_up(&mut sink, &title, waiting, pulse)?;
        Ok(sink)
    }
}

/// Gives a sink what it had not committed.
fn catch_up<D>(
    sink: &mut impl EpochSink<D>,
    title: &str,
    mut epochs: Epochs<D>,
    pulse: &Pulse,
) -> Result<(), Error> {
    let committed = sink.committed();
    epochs.retain(|(epoch, _)| *epoch > committed);
    if epochs.is_empty() {
        return Ok(());
    }
    tracing::info!(sink = title, epochs = epochs.len(), "rows are given to the sink again");
    // One by one: a slow target is seen to go on, and keeps what it has when the next one fails.
    for epoch in epochs.chunks(1) {
        sink.commit(epoch).map_err(|error| sink_failed(title, &error))?;
        pulse.beat();
    }
    Ok(())
}

/// How messages call a part of a sink.
fn title(name: &str, part: SinkPart) -> String {
    format!("the sink {name:?} of {part}")
}

/// A sink that did not take rows.
pub(super) fn sink_failed(which: &str, error: &std::io::Error) -> Error {
    Error::sink(
        Detail::new(format!("{which} failed: {error}"))
            .remedy("Look at its target; after a restart it is given again what it had not committed."),
    )
}

#[cfg(test)]
mod tests;
