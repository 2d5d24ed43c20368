//! Names of objects. A name is made from numbers here or it is not used: whatever stands in a listing must be exactly
//! what this file would have written.
//!
//! ```text
//! PREFIX/laminar-backups                                   says what this is
//! PREFIX/log/0000000000000007.json                         record 7 of the log
//! PREFIX/files/0000000000000005-00000002-00000000          object 2 of the writer whose claim is record 5, chunk 0
//! ```

use object_store::path::Path;

use super::record::{ObjectId, Serial};
use crate::ids::BackupId;

/// Folder of the records.
pub(super) const LOG: &str = "log";
/// Folder of the chunks.
pub(super) const FILES: &str = "files";

/// The number of a chunk within its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChunkNumber(pub(super) u32);

/// The file name of a record.
pub(super) fn record_name(id: BackupId) -> String {
    format!("{:016x}.json", id.get())
}

/// The record that a file name in the log's folder means.
pub(super) fn parse_record_name(name: &str) -> Option<BackupId> {
    parse_hex(name.strip_suffix(".json")?, 16).map(BackupId)
}

/// The file name of a chunk.
pub(super) fn chunk_name(object: ObjectId, chunk: ChunkNumber) -> String {
    format!("{:016x}-{:08x}-{:08x}", object.term.get(), object.serial.0, chunk.0)
}

/// The object and chunk that a file name in the chunks' folder means.
pub(super) fn parse_chunk_name(name: &str) -> Option<(ObjectId, ChunkNumber)> {
    let mut numbers = name.split('-');
    let term = BackupId(parse_hex(numbers.next()?, 16)?);
    let serial = Serial(u32::try_from(parse_hex(numbers.next()?, 8)?).ok()?);
    let chunk = ChunkNumber(u32::try_from(parse_hex(numbers.next()?, 8)?).ok()?);
    numbers.next().is_none().then_some((ObjectId { term, serial }, chunk))
}

/// Whether a folder has the name that a job in parts gives to the place of the backups of one of its sizes: `generation-00000001`.
pub(super) fn is_of_job(folder: &str) -> bool {
    let number = folder.strip_prefix("generation-").and_then(|digits| digits.parse::<u32>().ok());
    number.is_some_and(|number| folder == format!("generation-{number:08}"))
}

/// A file in a folder below the prefix; without a folder, right below it.
pub(super) fn place(prefix: &Path, folder: &str, name: &str) -> Path {
    let folder = if folder.is_empty() { prefix.clone() } else { prefix.clone().join(folder) };
    folder.join(name)
}

/// Only what is written here: all digits, and small letters.
fn parse_hex(digits: &str, len: usize) -> Option<u64> {
    let ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() == len && digits.bytes().all(ours)).then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_nothing_else_does() {
        let id = BackupId(0x2a);
        assert_eq!(parse_record_name(&record_name(id)), Some(id));
        let object = ObjectId { term: id, serial: Serial(7) };
        assert_eq!(parse_chunk_name(&chunk_name(object, ChunkNumber(3))), Some((object, ChunkNumber(3))));
        for name in ["2a.json", "000000000000002A.json", "000000000000002a", "+00000000000002a.json", ""] {
            assert_eq!(parse_record_name(name), None, "{name}");
        }
        for name in
            ["000000000000002a-00000007", "000000000000002a-00000007-00000003-00000000", "2a-7-3", "a#1", ""]
        {
            assert_eq!(parse_chunk_name(name), None, "{name}");
        }
    }
}
