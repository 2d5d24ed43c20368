//! Bytes on a disk, and bytes on their way to one. `predecessor/` has this file, too.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Error;

/// Bytes of all files under a directory, each counted once however many names it has.
pub fn disk_bytes(dir: &Path) -> u64 {
    let (mut seen, mut total, mut todo) = (HashSet::new(), 0, vec![dir.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) if seen.insert(meta.ino()) => total += meta.len(),
                _ => {}
            }
        }
    }
    total
}

/// Bytes that this process has given the system to write. What the system counts as written is by its pages in
/// memory, which may be many times larger than what was changed of them.
pub fn written_bytes() -> Result<u64, Error> {
    written_bytes_of(std::process::id())
}

/// The same of another process, with those of its children that have ended.
pub fn written_bytes_of(process: u32) -> Result<u64, Error> {
    let io = fs::read_to_string(format!("/proc/{process}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(line.ok_or("no wchar in /proc/PID/io")?.trim().parse()?)
}
