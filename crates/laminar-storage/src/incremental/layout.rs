//! Names in a checkpoint directory. A name is made from ids here or it is not used: whatever stands
//! in a manifest or a listing must be exactly what this file would have written.

use std::path::{Path, PathBuf};

use crate::ids::CheckpointId;

/// File name of the manifest in a checkpoint's directory.
pub const MANIFEST_NAME: &str = "metadata.json";
/// File name of the lock in the directory of all checkpoints.
pub const LOCK_NAME: &str = "LOCK";
/// Suffix of a directory that is being written.
const PENDING: &str = ".tmp";
/// Suffix of a directory that is being deleted.
const TRASH: &str = ".trash";

/// What an entry of the directory of all checkpoints is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryName {
    /// A published checkpoint.
    Checkpoint(CheckpointId),
    /// A checkpoint that was never finished.
    Pending(CheckpointId),
    /// A checkpoint whose deletion was never finished.
    Trash(CheckpointId),
}

impl EntryName {
    /// Recognises a name; `None` for everything this library did not write.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("checkpoint_")?;
        let (digits, make): (_, fn(CheckpointId) -> Self) = if let Some(d) = digits.strip_suffix(PENDING) {
            (d, Self::Pending)
        } else if let Some(d) = digits.strip_suffix(TRASH) {
            (d, Self::Trash)
        } else {
            (digits, Self::Checkpoint)
        };
        Some(make(CheckpointId(parse_hex(digits, 16)?)))
    }

    /// The id in the name.
    #[must_use]
    pub fn id(self) -> CheckpointId {
        match self {
            Self::Checkpoint(id) | Self::Pending(id) | Self::Trash(id) => id,
        }
    }

    /// The path of the entry.
    #[must_use]
    pub fn path(self, checkpoint_dir: &Path) -> PathBuf {
        checkpoint_dir.join(self.to_string())
    }
}

impl std::fmt::Display for EntryName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = match self {
            Self::Checkpoint(_) => "",
            Self::Pending(_) => PENDING,
            Self::Trash(_) => TRASH,
        };
        write!(f, "checkpoint_{:016x}{suffix}", self.id().get())
    }
}

/// Whether a file of this name beside those of a checkpoint can be a program's own: it is a plain name, and not one that the
/// library gives.
#[must_use]
pub fn can_be_own_file(name: &str) -> bool {
    let plain = Path::new(name).file_name().is_some_and(|file_name| file_name == name);
    plain && name != MANIFEST_NAME && parse_state_file_name(name).is_none()
}

/// Name of a state file: the checkpoint that wrote it, the core, and its number among those, which from
/// 0x8000 on is that of a range of the base.
#[must_use]
pub fn state_file_name(checkpoint: u64, core: u16, part: u16) -> String {
    format!("state-{checkpoint:016x}-{core:04x}-{part:04x}.sst")
}

/// Checkpoint, core and part from a state file's name; `None` for any other name.
#[must_use]
pub fn parse_state_file_name(name: &str) -> Option<(u64, u16, u16)> {
    let mut numbers = name.strip_prefix("state-")?.strip_suffix(".sst")?.split('-');
    let checkpoint = parse_hex(numbers.next()?, 16)?;
    let core = u16::try_from(parse_hex(numbers.next()?, 4)?).ok()?;
    let part = u16::try_from(parse_hex(numbers.next()?, 4)?).ok()?;
    numbers.next().is_none().then_some((checkpoint, core, part))
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
        let id = CheckpointId(0x2a);
        for entry in [EntryName::Checkpoint(id), EntryName::Pending(id), EntryName::Trash(id)] {
            assert_eq!(EntryName::parse(&entry.to_string()), Some(entry));
        }
        for name in [
            "LOCK",
            "checkpoint_2a",
            "checkpoint_000000000000002A",
            "checkpoint_+00000000000002a",
            "checkpoint_000000000000002a.tmp.tmp",
            "checkpoint_000000000000002a.old",
        ] {
            assert_eq!(EntryName::parse(name), None, "{name}");
        }
        assert_eq!(parse_state_file_name(&state_file_name(5, 3, 1)), Some((5, 3, 1)));
        for name in [
            "../state-0000000000000005-0003-0001.sst",
            "state-0000000000000005-0003-0001.sst/..",
            "state-0000000000000005-0003.sst",
            "state-0000000000000005-+003-0001.sst",
            "state-0000000000000005-0003-000A.sst",
            "state-0000000000000005-0003-0001-.sst",
            "state-0000000000000005-0003-0001-0001.sst",
            "state-00000000000000005-003-0001.sst",
            "state-0000000000000005-0003-0001.sst.sst",
            "metadata.json",
        ] {
            assert_eq!(parse_state_file_name(name), None, "{name}");
        }
    }
}
