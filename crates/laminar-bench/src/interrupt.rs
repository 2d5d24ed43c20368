//! Ctrl-C: whatever a run has made and started is gone with it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Error;

/// Exit code of a run that was ended by a signal.
const EXIT: i32 = 130;

/// What has to go.
struct Left {
    dirs: Vec<PathBuf>,
    processes: Vec<u32>,
}

static LEFT: Mutex<Left> = Mutex::new(Left { dirs: Vec::new(), processes: Vec::new() });

fn left() -> MutexGuard<'static, Left> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on a signal that asks the process to end has all of it removed first. The thread that waits for one sleeps
/// until then, so that it is no part of what is measured.
pub fn watch() -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("laminar-bench-signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            // It is kept until the end, so that nothing is begun meanwhile.
            let left = left();
            end(&left);
            std::process::exit(EXIT);
        }
    })?;
    Ok(())
}

fn end(left: &Left) {
    let processes = left.processes.iter().filter_map(|id| Pid::from_raw(i32::try_from(*id).ok()?));
    processes.for_each(|process| {
        let _ = kill_process(process, Signal::KILL);
    });
    left.dirs.iter().for_each(|dir| remove(dir));
}

/// Removes a directory that other threads still work in. By its old name they find nothing, so that they make nothing new.
fn remove(dir: &Path) {
    let mut name = dir.as_os_str().to_owned();
    name.push(".removed");
    let renamed = PathBuf::from(name);
    let dir = if std::fs::rename(dir, &renamed).is_ok() { renamed.as_path() } else { dir };
    // Where a file was just being made, the next try finds it.
    for _ in 0..100 {
        match std::fs::remove_dir_all(dir) {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// A directory that goes when a signal ends the run, while this is there.
#[derive(Debug)]
pub struct Removed(PathBuf);

impl Removed {
    pub fn new(dir: &Path) -> Self {
        left().dirs.push(dir.to_path_buf());
        Self(dir.to_path_buf())
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        left().dirs.retain(|dir| *dir != self.0);
    }
}

/// A process that is killed when a signal ends the run, while this is there. It must not have been waited for.
#[derive(Debug)]
pub struct Killed(u32);

impl Killed {
    pub fn new(process: u32) -> Self {
        left().processes.push(process);
        Self(process)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        left().processes.retain(|process| *process != self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_when_a_run_is_ended_is_removed_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir_all(state.join("wal")).unwrap();
        std::fs::write(state.join("wal/segment"), "x").unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        end(&Left { dirs: vec![state, dir.path().join("never there")], processes: vec![child.id()] });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_is_gone_by_itself_is_forgotten() {
        let removed = Removed::new(Path::new("/no/such/dir/of/this/test"));
        assert!(left().dirs.contains(&removed.0));
        drop(removed);
        assert!(!left().dirs.iter().any(|dir| dir.ends_with("no/such/dir/of/this/test")));
    }
}
