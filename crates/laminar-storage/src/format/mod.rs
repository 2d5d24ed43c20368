//! Bytes and structs: encodes and decodes everything that goes to disk, opens no file.
//!
//! `docs/FORMAT.md` draws the same structures as boxes. Every integer is fixed-width little-endian.

pub mod checksum;
pub mod closed;
pub mod compression;
pub mod current;
pub mod digest;
pub mod fields;
pub mod frame;
pub mod manifest;
pub mod record;
pub mod segment_header;
pub mod state_file;
pub mod synced;

/// Longest key in bytes.
pub const MAX_KEY_LEN: usize = u16::MAX as usize;
/// Longest value in bytes.
pub const MAX_VALUE_LEN: usize = 16 << 20;
/// Most cores a store can have.
pub const MAX_CORES: usize = 1024;
/// Version of everything this crate writes; a larger one on disk is refused.
pub const FORMAT_VERSION: u32 = 1;
