//! The write-ahead log: one per core, no lock between them, merged by epoch.
