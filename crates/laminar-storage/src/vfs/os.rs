//! The operating system.

/// The operating system's files and clock.
#[derive(Debug)]
pub struct OsVfs;
