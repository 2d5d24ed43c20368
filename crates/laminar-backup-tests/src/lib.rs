//! What the tests of backups share: a store to back up, object stores that go wrong in every way that is allowed, an S3 server of
//! our own, and a network to it that breaks.
//!
//! It is no part of what is published. What is allowed to an object store is said in `docs/BACKUP.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

pub mod faults;
pub mod proxy;
pub mod server;
pub mod stores;
