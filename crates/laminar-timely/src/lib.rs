//! Durable, exactly-once stateful operators on Timely Dataflow, over several threads, processes and machines, on
//! [`laminar_storage`].
//!
//! # What it is for
//! A dataflow that runs on one machine or several, and must go on after any crash of any of them as if nothing had
//! happened: state, positions in the sources and output all at the same epoch, nothing lost, nothing twice.
//!
//! # What it is not
//! No replication: the state of a process is on the disk of its machine, and a disk that is lost is lost, but for backups. No
//! supervisor: when a process ends, all of them end, and somebody starts them again.
//!
//! # Quick start
//! ```
//! use laminar_timely::{Cluster, Config, FileSink, run};
//! # let dir = tempfile::tempdir()?;
//! # let (state, out) = (dir.path().join("state"), dir.path().join("out"));
//! let words = ["to", "be", "or", "not", "to", "be"];
//! # let out_again = out.clone();
//! run(&Cluster::single(2), &Config::new(&state, "words"), move |job| {
//!     let mut input = job.dataflow(|flow| {
//!         let (input, stream) = flow.input::<(String, u64)>("words")?;
//!         let counts = flow.fold(stream, "counts", |count: &mut u64, one| *count += one)?;
//!         flow.sink(counts, "out", |part| {
//!             FileSink::open(&out, "words", part, |(word, count), line| {
//!                 line.extend_from_slice(format!("{word} {count}\n").as_bytes());
//!             })
//!         })?;
//!         Ok(input)
//!     })?;
//!     // One worker reads the source, from where the recovered state ends.
//!     let mut position = job.source_offset("words").unwrap_or(0);
//!     while job.index() == 0 && position < words.len() as u64 {
//!         input.send((words[position as usize].to_owned(), 1));
//!         position += 1;
//!         input.set_source_offset("words", position);
//!         input.seal()?;
//!     }
//!     input.finish()
//! })?;
//! # let mut lines = Vec::new();
//! # for entry in std::fs::read_dir(out_again)? {
//! #     let path = entry?.path();
//! #     if path.extension().is_some_and(|e| e == "rows") {
//! #         lines.extend(std::fs::read_to_string(path)?.lines().map(str::to_owned));
//! #     }
//! # }
//! # lines.sort();
//! # assert_eq!(lines, ["be 1", "be 2", "not 1", "or 1", "to 1", "to 2"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Run it again, and it goes on behind the last word, and writes nothing twice.
//!
//! # How it works
//! - Every process has one store, every worker one core of it: **one log and one seal for each worker and epoch**, for all
//!   operators and sinks on it.
//! - One operator holds a capability at the epoch after the last that the logs of its process have synced. So **its output
//!   frontier is the durable frontier** of all workers of all processes. There is no coordinator.
//! - Before the dataflow is built, all workers agree on the **recovery point**: the newest epoch that all of them have. Each
//!   cuts its log to it.
//! - Rows for a sink are part of the state of their epoch until they are committed, so that a sink that is behind gets them
//!   again, and none that it has.
//! - A process that cannot go on **ends**, and with it the others; see [`run`].
//!
//! `docs/DISTRIBUTED.md` says what is guaranteed when what fails, and what is not.
#![deny(missing_docs)]

#[cfg(feature = "object-store")]
mod backups;
mod codec;
mod config;
mod connect;
mod error;
mod fail;
mod file_sink;
mod flow;
mod layout;
mod ledger;
mod reader;
mod recover;
#[cfg(feature = "object-store")]
mod restore;
mod sink;

pub use codec::Codec;
#[doc(hidden)]
pub use config::Mistakes;
pub use config::{Cluster, Config, OtherSize};
pub use error::Error;
pub use fail::EXIT_FAILED;
pub use file_sink::FileSink;
pub use flow::{EpochInput, Flow, Job, Key, KeyedState, Windowed, owner_of, run};
pub use reader::JobReader;
#[cfg(feature = "object-store")]
pub use restore::{JobBackup, JobBackups, RestoredJob, list_job_backups, restore_job, restore_job_with};
pub use sink::{CutBack, EpochSink, SinkPart};
pub use timely;
