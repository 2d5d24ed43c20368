//! Bytes and structs: encodes and decodes everything that goes to disk, opens no file.

pub mod checksum;
