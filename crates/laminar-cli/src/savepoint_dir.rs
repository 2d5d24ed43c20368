//! Telling the directory of a savepoint from that of a state.

use std::path::Path;

/// Whether this is the directory of a savepoint, or of a checkpoint: it has a manifest.
pub fn is_savepoint(dir: &Path) -> bool {
    dir.join("metadata.json").is_file()
}
