//! Which epochs are backed up: worker 0 says so in the dataflow, so that all processes back up the same.
//!
//! A mark is a message whose timestamp is an epoch that is not durable yet. What comes behind it, the settling, sees the frontier
//! pass that epoch only when it has seen the mark, on every worker. So no process can settle a later epoch, and put it
//! into a checkpoint, before it knows that exactly this one is asked for. There is no other agreement, and no coordinator.
//!
//! A new mark comes when the backup before is complete on all processes: each holds a capability at the epoch after the last that it has
//! backed up, and the frontier of these is what all have.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laminar_storage::Epoch;
use laminar_storage::backup::WholeId;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Operator, Probe};
use timely::dataflow::{ProbeHandle, Scope, StreamVec};

use super::start::Process;
use super::upper;
use crate::ledger::Ledger;

/// How often it is looked whether the job is at its end.
const LOOK: Duration = Duration::from_millis(50);

/// The durable frontier with the marks of what is to be backed up, and a probe behind what is backed up on all processes.
pub(super) fn marks<'scope>(
    durable: StreamVec<'scope, u64, ()>,
    first: Epoch,
    every: Duration,
    ledger: &Rc<RefCell<Ledger>>,
    process: &Arc<Process>,
) -> (StreamVec<'scope, u64, String>, ProbeHandle<u64>) {
    let closed = ProbeHandle::new();
    let backed_up = backed_up(durable.scope(), first, closed.clone(), ledger, process);
    let complete = backed_up.clone();
    let decides = durable.scope().index() == 0;
    let marks = durable.unary_frontier::<CapacityContainerBuilder<Vec<String>>, _, _, _>(
        Pipeline,
        "marks",
        move |capability, _| {
            let mut held = decides.then(|| capability.delayed(&first.0));
            drop(capability);
            let (mut under_way, mut begun) = (None::<Epoch>, Instant::now());
            move |(input, frontier), output| {
                input.for_each_stamp(|_, _| {});
                let (Some(capability), Some(epoch)) = (held.as_mut(), upper(frontier)) else {
                    held = None;
                    return;
                };
                if epoch.0 > *capability.time() {
                    capability.downgrade(&epoch.0);
                }
                let ready = under_way.is_none_or(|epoch| !complete.less_equal(&epoch.0));
                if ready && begun.elapsed() >= every && epoch >= first {
                    // Not durable yet, so that nobody has settled anything later.
                    output.session(&*capability).give(WholeId::new(epoch).to_string());
                    (under_way, begun) = (Some(epoch), Instant::now());
                }
            }
        },
    );
    (marks.broadcast().probe_with(&closed), backed_up)
}

/// Says what this process has backed up, as a frontier, until the marks are `closed`. Did it end before, worker 0 would take a backup
/// for complete that is not.
fn backed_up(
    scope: Scope<'_, u64>,
    first: Epoch,
    closed: ProbeHandle<u64>,
    ledger: &Rc<RefCell<Ledger>>,
    process: &Arc<Process>,
) -> ProbeHandle<u64> {
    let (ledger, process) = (Rc::clone(ledger), Arc::clone(process));
    let of_process = scope.index().is_multiple_of(process.cluster.workers);
    let stream: StreamVec<u64, ()> =
        source::<_, CapacityContainerBuilder<Vec<()>>, _, _>(scope, "backed up", move |capability, info| {
            let activator = scope.activator_for(Rc::clone(&info.address));
            process.wake_when_backed_up(scope.worker().sync_activator_for(info.address.to_vec()));
            // One of a process says it for all of its workers.
            let mut held = of_process.then(|| capability.delayed(&first.0));
            drop(capability);
            move |_| {
                if ledger.borrow().last().is_some() && closed.done() {
                    // The job ends, and no mark can come any more; the last backup is waited for elsewhere.
                    held = None;
                }
                let Some(capability) = &mut held else { return };
                let done = process.backed_up();
                if done.0 >= *capability.time() {
                    capability.downgrade(&done.next().0);
                }
                activator.activate_after(LOOK);
            }
        });
    stream.probe().0
}
