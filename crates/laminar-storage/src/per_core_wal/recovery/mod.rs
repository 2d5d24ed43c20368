//! From the bytes of a log back to the state: survey, plan, replay.
//!
//! 1. [`survey`] walks every core's segments back from the newest, checks every byte that counts and
//!    judges each segment by the truth table in [`cases`].
//! 2. [`plan`] decides the recovery point over all cores, or refuses.
//! 3. [`cursor`] streams the records that the plan lets through.
//!
//! [`tail`] is how a running store reads on, without a survey, where it has read before.
//!
//! Nothing here writes. What recovery exposes is made durable by [`super::incarnation`], before the
//! first new record.

pub(crate) mod cases;
pub(crate) mod cursor;
pub(crate) mod identity;
pub(crate) mod manager;
pub(crate) mod plan;
mod refusal;
pub(crate) mod repair;
pub(crate) mod survey;
pub(crate) mod tail;
mod tally;
mod walk;
