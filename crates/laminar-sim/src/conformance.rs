//! The same scenario on the simulated disk and on the operating system, as its kernel saw it.
//!
//! ```text
//!   scenario ─▶ SimDisk ─▶ its trace ──────────────────────┐
//!   scenario ─▶ RealDisk ─▶ OsVfs ─▶ kernel ─▶ strace ─▶ lines ─▶ the same?
//! ```
//!
//! Clock and random numbers of the real run are the simulation's, and like there no threads are used; so
//! that both runs write the same bytes. What is compared is every call that reads or changes a file or a
//! directory's entries, with path, offset, length, and result. Looks at a path and listings of a directory
//! are left out: they are one operation here and several there.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use laminar_storage::vfs::sim::{Op, SimDisk};
use laminar_storage::vfs::{Access, FileKind, OsVfs, Vfs, VfsFile};

use crate::driver::{Scenario, guarded};
use crate::log::Log;

/// The operating system's files below a directory, with the clock and random numbers of a simulated disk.
#[derive(Debug)]
struct RealDisk {
    os: OsVfs,
    root: PathBuf,
    twin: SimDisk,
}

impl RealDisk {
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Vfs for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.os.create_new(&self.at(path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        self.os.open(&self.at(path), access)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.os.create_dir(&self.at(path))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(String, FileKind)>> {
        self.os.read_dir(&self.at(path))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.os.kind(&self.at(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.os.rename(&self.at(from), &self.at(to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.os.remove_file(&self.at(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.os.remove_dir(&self.at(path))
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.os.hard_link(&self.at(existing), &self.at(new))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.os.sync_dir(&self.at(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        self.os.lock(&self.at(path))
    }

    fn parallel(&self) -> bool {
        self.twin.parallel()
    }

    fn now_ns(&self) -> u64 {
        self.twin.now_ns()
    }

    fn random_u64(&self) -> u64 {
        self.twin.random_u64()
    }
}

/// Runs a scenario on real files below `root`, an empty directory.
///
/// # Errors
/// As [`Scenario::run`].
pub fn run_real<S: Scenario>(scenario: &S, seed: u64, root: &Path) -> Result<(), String> {
    let twin = SimDisk::new(seed);
    let real = RealDisk { os: OsVfs::new(), root: root.to_owned(), twin: twin.clone() };
    let mut log = Log::of_real(scenario.start(), Arc::new(real));
    guarded(|| scenario.run(&twin, &mut log))
}

/// What a scenario does on the simulated disk, one normalised line per operation.
///
/// # Errors
/// As [`Scenario::run`].
pub fn simulated<S: Scenario>(scenario: &S, seed: u64) -> Result<Vec<String>, String> {
    let disk = SimDisk::new(seed);
    let mut log = Log::of_last(scenario.start());
    guarded(|| scenario.run(&disk, &mut log))?;
    Ok(disk.trace().iter().filter_map(line_of_op).collect())
}

fn line_of_op(op: &Op) -> Option<String> {
    let (path, to) = (&op.path, op.to.as_deref().unwrap_or_default());
    let result = op.outcome.map_or_else(|_| "failed".to_owned(), |n| n.to_string());
    let done = if op.outcome.is_ok() { "done" } else { "failed" };
    Some(match op.call {
        "pread" | "pwrite" => format!("{} {path} {}+{} = {result}", op.call, op.offset, op.len),
        "ftruncate" => format!("{} {path} {} = {done}", op.call, op.len),
        "rename" | "link" => format!("{} {path} -> {to} = {done}", op.call),
        "stat" | "readdir" => return None,
        call => format!("{call} {path} = {done}"),
    })
}

/// The calls to be seen; those that no operation of [`Vfs`] makes are there to be noticed.
const CALLS: &str = "trace=open,openat,openat2,creat,pread64,pwrite64,pwritev,pwritev2,preadv,preadv2,write,\
    writev,ftruncate,truncate,fallocate,fdatasync,fsync,sync_file_range,mkdir,mkdirat,rename,renameat,\
    renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,flock";

/// What the kernel saw of a command that works below `root`, one normalised line per call.
///
/// # Errors
/// That the tracer could not be run, or what the command said.
pub fn traced(command: &[&str], root: &Path) -> Result<Vec<String>, String> {
    let file = root.with_extension("strace");
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-y", "-s", "0", "-e", CALLS, "-o"]).arg(&file).arg("--").args(command);
    let output = tracer.output().map_err(|e| format!("strace: {e}"))?;
    let text = std::fs::read_to_string(&file).map_err(|e| format!("strace left no trace: {e}"));
    let _ = std::fs::remove_file(&file);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let root = root.to_string_lossy();
    let mut open = HashMap::new();
    Ok(text?.lines().filter_map(|line| line_of_call(line, &root, &mut open)).collect())
}

/// One line of the tracer's. `None` for calls that are not about anything below `root`, and for those that
/// are part of looks and listings. `open` remembers by what name each descriptor was opened, which the
/// tracer does not: it gives the name that the file has now.
fn line_of_call(line: &str, root: &str, open: &mut HashMap<u32, String>) -> Option<String> {
    let line = line.split_once(' ')?.1.trim_start();
    let (call, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ").or_else(|| rest.rsplit_once(" = "))?;
    let arguments = arguments.trim_end().trim_end_matches(')');
    let paths: Vec<String> = paths_in(arguments).iter().filter_map(|path| below(path, root)).collect();
    let descriptor = |text: &str| text.split_once('<').and_then(|(number, _)| number.parse::<u32>().ok());
    let known = descriptor(arguments).and_then(|number| open.get(&number).cloned());
    let path = &known.or_else(|| paths.first().cloned())?;
    if let (true, Some(number)) = (call.starts_with("open"), descriptor(result)) {
        open.insert(number, path.clone());
    }
    let result = result.split(['<', ' ']).next().unwrap_or_default();
    let done = if result.starts_with('-') { "failed" } else { "done" };
    let mut numbers = arguments.rsplit(", ");
    let last = numbers.next().unwrap_or_default();
    let before = numbers.next().unwrap_or_default();
    Some(match call {
        "pread64" | "pwrite64" => {
            let result = if done == "done" { result } else { done };
            format!("{} {path} {last}+{before} = {result}", call.trim_end_matches("64"))
        }
        "ftruncate" => format!("{call} {path} {last} = {done}"),
        "rename" | "link" | "linkat" | "renameat" | "renameat2" => {
            format!("{} {path} -> {} = {done}", call.trim_end_matches("at"), paths.get(1)?)
        }
        "open" | "openat" if arguments.contains("O_EXCL") => format!("create {path} = {done}"),
        // The lock file, of which the lock itself tells; and directories, to list or to sync them.
        "open" | "openat" if arguments.contains("O_CREAT") || arguments.contains("O_DIRECTORY") => {
            return None;
        }
        "openat" => format!("open {path} = {done}"),
        call => format!("{call} {path} = {done}"),
    })
}

/// Everything in a line that is a path: quoted, or in brackets behind a file descriptor.
fn paths_in(arguments: &str) -> Vec<&str> {
    let mut paths = Vec::new();
    let mut rest = arguments;
    while let Some(at) = rest.find(['"', '<']) {
        let end = if rest[at..].starts_with('"') { '"' } else { '>' };
        let Some(len) = rest[at + 1..].find(end) else { break };
        paths.push(&rest[at + 1..at + 1 + len]);
        rest = &rest[at + 2 + len..];
    }
    paths
}

fn below(path: &str, root: &str) -> Option<String> {
    let inside = path.strip_prefix(root)?;
    match inside.strip_prefix('/') {
        Some(_) => Some(inside.to_owned()),
        None if inside.is_empty() => Some("/".to_owned()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_becomes_the_line_of_its_operation() {
        for (call, line) in [
            (r#"7 pwrite64(3</r/a/b>, ""..., 64, 128) = 64"#, Some("pwrite /a/b 128+64 = 64")),
            (r#"7 pread64(3</r/a/b>, "", 64, 128) = 0"#, Some("pread /a/b 128+64 = 0")),
            (
                r#"7 openat(AT_FDCWD</home>, "/r/a", O_RDWR|O_CREAT|O_EXCL, 0600) = 3</r/a>"#,
                Some("create /a = done"),
            ),
            (
                r#"7 openat(AT_FDCWD</home>, "/r/a", O_RDONLY|O_NOFOLLOW) = -1 ENOENT (No such file)"#,
                Some("open /a = failed"),
            ),
            (r#"7 openat(AT_FDCWD</home>, "/r/a", O_RDONLY|O_DIRECTORY) = 3</r/a>"#, None),
            (r#"7 openat(AT_FDCWD</home>, "/other/a", O_RDONLY) = 3</other/a>"#, None),
            (r#"7 fsync(3</r>) = 0"#, Some("fsync / = done")),
            (r#"7 rename("/r/a", "/r/b") = 0"#, Some("rename /a -> /b = done")),
            (
                r#"7 linkat(AT_FDCWD</home>, "/r/a", AT_FDCWD</home>, "/r/b", 0) = 0"#,
                Some("link /a -> /b = done"),
            ),
            (r#"7 write(3</r/a>, ""..., 5) = 5"#, Some("write /a = done")),
            (r#"7 +++ exited with 0 +++"#, None),
        ] {
            assert_eq!(line_of_call(call, "/r", &mut HashMap::new()).as_deref(), line, "{call}");
        }
    }

    #[test]
    fn a_file_keeps_the_name_it_was_opened_by() {
        let mut open = HashMap::new();
        let mut line = |call| line_of_call(call, "/r", &mut open);
        line(r#"7 openat(AT_FDCWD</>, "/r/a", O_RDWR|O_CREAT|O_EXCL, 0600) = 3</r/a>"#);
        line(r#"7 rename("/r/a", "/r/b") = 0"#);
        assert_eq!(line("7 fdatasync(3</r/b>) = 0").as_deref(), Some("fdatasync /a = done"));
        line(r#"7 openat(AT_FDCWD</>, "/r/c", O_RDONLY|O_NOFOLLOW) = 3</r/c>"#);
        assert_eq!(line("7 fdatasync(3</r/c>) = 0").as_deref(), Some("fdatasync /c = done"));
    }
}
