//! One message from every worker of every process to all workers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::dataflow::InputHandle;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Input, Operator};
use timely::worker::Worker;

use crate::error::Error;
use crate::fail::Pulse;
use laminar_storage::error::Detail;
use std::sync::Arc;

/// Gives `own` to all workers, and returns what all of them gave, in the order of the workers. All workers call it, in the
/// same order with other dataflows.
pub(super) fn gather<T: Serialize + DeserializeOwned>(
    worker: &mut Worker,
    pulse: &Arc<Pulse>,
    own: &T,
) -> Result<Vec<T>, Error> {
    let unreadable = |e: serde_json::Error| {
        let what = format!("what another worker says cannot be read: {e}");
        Error::connect(Detail::new(what).remedy("Run the same version of the program in all processes."))
    };
    let heard: Rc<RefCell<Vec<Option<Vec<u8>>>>> = Rc::new(RefCell::new(vec![None; worker.peers()]));
    let hears = Rc::clone(&heard);
    let mut input = InputHandle::new();
    worker.dataflow::<u64, _, _>(|scope| {
        let stream: StreamVec<u64, (u64, Vec<u8>)> = scope.input_from(&mut input);
        stream.broadcast().sink(Pipeline, "gather", move |(input, _)| {
            input.for_each_stamp(|_, data| {
                for (from, bytes) in data.flat_map(std::mem::take) {
                    let mut heard = hears.borrow_mut();
                    if let Some(place) = usize::try_from(from).ok().and_then(|from| heard.get_mut(from)) {
                        *place = Some(bytes);
                    }
                }
            });
        });
    });
    let bytes = serde_json::to_vec(own).map_err(unreadable)?;
    input.send((worker.index() as u64, bytes));
    input.close();
    let _waits = pulse.waits();
    while heard.borrow().iter().any(Option::is_none) {
        worker.step_or_park(Some(Duration::from_millis(100)));
    }
    pulse.beat();
    let heard = heard.take();
    heard.into_iter().flatten().map(|bytes| serde_json::from_slice(&bytes).map_err(unreadable)).collect()
}
