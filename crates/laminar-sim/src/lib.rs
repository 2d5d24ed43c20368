//! Proof of crash safety by enumeration: scenarios run on the simulated disk, every image that a
//! crash may leave is recovered, and an oracle says whether the result is allowed.
//!
//! A [`Scenario`] says what to do and how to check; [`explore`] crashes it after every operation, in
//! every way the disk knows, and again inside the recoveries; [`sweep_faults`] makes every operation
//! fail in every way. A failure names itself in one line that [`replay`] takes.
//!
//! It is not a load test and knows nothing of time. It is not published.
#![deny(missing_docs)]

pub mod checkpoints;
pub mod conformance;
pub mod damage;
pub mod dice;
pub mod distinct;
pub mod driver;
pub mod faults;
pub mod flags;
pub mod fuzz;
pub mod log;
pub mod meter;
pub mod oracle;
pub mod part;
pub mod power;
pub mod registry;
pub mod report;
pub mod store;
pub mod torture;
pub mod toy;
pub mod trail;
pub mod wal;
pub mod wire;

pub use distinct::Distinct;
pub use driver::{Plan, Scenario, explore, replay};
pub use faults::{FaultReport, Sweep, sweep_faults};
pub use log::Log;
pub use oracle::{CoreView, Model, Recovered, State};
pub use part::Part;
pub use report::{Failure, Report};
pub use trail::{Crash, Step, Trail};
