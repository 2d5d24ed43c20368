//! The operator whose output frontier is the durable frontier of the whole job.
//!
//! On every worker it holds a capability at the epoch after the one that this process' logs have synced, and downgrades it
//! when Ring 1 reports the next sync. What timely makes of these capabilities is the smallest of all workers of all
//! processes: everything before it survives any crash of any of them. There is no other protocol, and no coordinator.
//!
//! It is also the one that always takes part in the ledger: a worker whose inputs are finished, or that has no other
//! operator with state, goes on sealing empty epochs, so that it holds nobody back.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use laminar_storage::Epoch;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Operator, Probe};
use timely::dataflow::{ProbeHandle, StreamVec};

use super::start::Process;
use super::watermarks::Says;
use super::{epoch_of, or_end, upper};
use crate::error::Error;
use crate::ledger::{Ledger, pop_up_to};

/// Adds it to the dataflow. Of `control` only the frontier counts: that of the slowest input of any worker.
pub(super) fn durable<'scope>(
    control: StreamVec<'scope, u64, Says>,
    ledger: &Rc<RefCell<Ledger>>,
    process: &Arc<Process>,
) -> StreamVec<'scope, u64, ()> {
    let (ledger, process) = (Rc::clone(ledger), Arc::clone(process));
    let scope = control.scope();
    control.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        Pipeline,
        "durable",
        move |capability, info| {
            let first = ledger.borrow().current();
            let mut held = Some(capability.delayed(&first.0));
            drop(capability);
            process.wake_when_durable(scope.worker().sync_activator_for(info.address.to_vec()));
            let activator = scope.activator_for(Rc::clone(&info.address));
            let seat = ledger.borrow_mut().take_part(move || activator.activate());
            move |(input, frontier), _| {
                input.for_each_stamp(|_, _| {});
                let mut ledger = ledger.borrow_mut();
                let last = ledger.last();
                let done = match upper(frontier) {
                    Some(upper) => Some(upper.0),
                    None => last.map(|last| last.0.saturating_add(1)),
                };
                if let Some(upper) = done.filter(|upper| *upper > first.0) {
                    or_end(ledger.done(seat, Epoch(upper - 1)));
                }
                let durable = if process.config.mistakes.acknowledge_before_sync {
                    ledger.sealed()
                } else {
                    Epoch(process.durable.load(Ordering::Acquire))
                };
                if let Some(held) = held.as_mut().filter(|held| durable.0 >= *held.time()) {
                    held.downgrade(&durable.next().0);
                }
                if last.is_some_and(|last| durable >= last || last < first) {
                    held = None;
                }
            }
        },
    )
}

/// Tells the store what is durable everywhere, so that it may go into checkpoints; the probe says so to the inputs. A message of
/// an epoch is told when exactly that is durable everywhere, before anything later is. At the end that is everything.
pub(super) fn settle<D: Clone + 'static>(
    durable: StreamVec<'_, u64, D>,
    first: Epoch,
    ledger: &Rc<RefCell<Ledger>>,
    process: &Arc<Process>,
    mut told: impl FnMut(D) -> Result<(), Error> + 'static,
) -> ProbeHandle<u64> {
    let (ledger, process) = (Rc::clone(ledger), Arc::clone(process));
    let early = process.config.mistakes.acknowledge_before_sync;
    let mut settled = Epoch(first.0.saturating_sub(1));
    let mut messages = VecDeque::new();
    let watched =
        durable.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "settle", |_, _| {
            move |(input, frontier), _| {
                input.for_each_stamp(|capability, data| {
                    let epoch = Epoch(epoch_of(&capability, "settle"));
                    messages.extend(data.flat_map(std::mem::take).map(|message| (epoch, message)));
                });
                let everywhere = match upper(frontier) {
                    Some(upper) => Some(Epoch(upper.0.saturating_sub(1))),
                    None => ledger.borrow().last(),
                };
                if let Some(everywhere) = everywhere.filter(|everywhere| *everywhere > settled && !early) {
                    while let Some((_, message)) = pop_up_to(&mut messages, everywhere) {
                        or_end(told(message));
                    }
                    or_end(process.settle(everywhere));
                    settled = everywhere;
                }
            }
        });
    watched.probe().0
}
