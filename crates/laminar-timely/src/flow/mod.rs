//! Everything that touches Timely Dataflow's interface.
//!
//! | file | what it is |
//! |---|---|
//! | `execute` | connecting, starting the workers, ending as a whole |
//! | `gather` | one message from every worker to all |
//! | `start` | agreeing and opening the state, before the dataflow is built |
//! | `rescale` | from the state of one size of the job to that of another |
//! | `job` | what the program's code sees on a worker |
//! | `durable` | the operator whose output frontier is the durable frontier |
//! | `marks` | which epochs are backed up |
//! | `input` | inputs that go from epoch to epoch, not too far ahead |
//! | `keyed` | operators with state |
//! | `groups` | the rows of an epoch, by key |
//! | `windows` | windows by event time |
//! | `sink` | rows that leave the job once they are durable |
//! | `begin` | sinks before the job begins: none is changed before all can go on |

mod begin;
mod durable;
mod execute;
mod gather;
mod groups;
mod input;
mod job;
mod keyed;
#[cfg(feature = "object-store")]
mod marks;
mod rescale;
mod sink;
mod start;
mod watermarks;
mod windows;

pub use execute::run;
pub use input::EpochInput;
pub use job::{Flow, Job};
pub use keyed::{Key, KeyedState, owner_of};
pub use windows::Windowed;

pub(crate) use start::merged;

use std::collections::BTreeMap;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use timely::dataflow::operators::InputCapability;
use timely::progress::frontier::MutableAntichain;

use crate::error::Error;
use crate::fail::fail_stop;

/// The epoch that records came in.
///
/// Ends the process when they came without one: such records do not hold the frontier back, so that no epoch is theirs.
fn epoch_of(capability: &InputCapability<u64>, operator: &str) -> u64 {
    match capability.least() {
        Some(epoch) => *epoch,
        None => fail_stop(&format!(
            "{}",
            Detail::new(format!("records came to the operator {operator:?} without an epoch"))
                .remedy("Send records only under capabilities of the epoch they belong to.")
        )),
    }
}

/// Everything before this epoch has come; `None` when everything has.
fn upper(frontier: &MutableAntichain<u64>) -> Option<Epoch> {
    frontier.frontier().iter().next().map(|epoch| Epoch(*epoch))
}

/// The rows that an operator has of epochs it has not worked on.
type Stash<R> = BTreeMap<Epoch, Vec<R>>;

/// Where rows go that came with a capability. Ends the process when it is of an epoch before `next`, the first that the operator has
/// not worked on: what is done is done.
fn stash_of<'s, R>(
    stash: &'s mut Stash<R>,
    capability: &InputCapability<u64>,
    operator: &str,
    next: Epoch,
) -> &'s mut Vec<R> {
    let epoch = Epoch(epoch_of(capability, operator));
    if epoch < next {
        fail_stop(&format!(
            "{}",
            Detail::new(format!("rows of epoch {epoch} came to {operator:?}, which is in epoch {next}")).remedy(
                "Send them through an input of the job, or in the epoch that `Job::resume_epoch` says: a run begins with that one."
            )
        ));
    }
    stash.entry(epoch).or_default()
}

/// What an operator has when the job ends: no rows of epochs that will not come.
fn check_stash<R>(operator: &str, last: Epoch, stash: &Stash<R>) -> Result<(), Error> {
    let Some((epoch, rows)) = stash.iter().find(|(_, rows)| !rows.is_empty()) else { return Ok(()) };
    let what = format!(
        "the job ends with epoch {last}, and {} rows for {operator:?} belong to epoch {epoch} and are lost",
        rows.len()
    );
    Err(Error::config(Detail::new(what).remedy(
        "Give rows on in the epoch they came in: what an operator without state holds back is also lost in a crash. Keep what has to \
         wait in the state (`map_with_state`).",
    )))
}

/// What an operator does with an error: its process cannot go on.
fn or_end<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| fail_stop(&error))
}
