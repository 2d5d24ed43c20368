//! State files on disk: written once in key order, then only read.
//!
//! The bytes are described in [`crate::format::state_file`]; here they meet the file system. Memory
//! stays bounded: a writer holds a few hundred KiB and the index, a reader the index, a cursor one
//! block.

mod cursor;
mod reader;
mod writer;

pub use cursor::FileCursor;
pub use reader::{BlockCache, StateFileReader};
pub use writer::{FinishedFile, StateFileWriter};

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
