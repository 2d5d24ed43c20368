//! What it needs of the machine: a mount namespace of its own, a place in memory, and the programs that
//! make and mount file systems.
//!
//! All mounts are made in a private namespace, loop devices detach themselves when nothing uses them, and
//! all files are in a tmpfs that exists in the namespace only. So the kernel cleans up when the process ends,
//! in whatever way it ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::disk::Disk;

/// Why it cannot run here.
///
/// # Errors
/// What is missing.
pub fn check(kind: &str) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("power-cut needs root: it mounts file systems".into());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        std::fs::metadata(device).map_err(|e| format!("power-cut needs {device}: {e}"))?;
    }
    for (program, argument) in [("unshare", "--version"), ("mount", "--version"), (maker(kind)?, "-V")] {
        let output = Command::new(program).arg(argument).output();
        output.map_err(|e| format!("power-cut needs the program {program}: {e}"))?;
    }
    Ok(())
}

fn maker(kind: &str) -> Result<&'static str, String> {
    match kind {
        "ext4" => Ok("mkfs.ext4"),
        "xfs" => Ok("mkfs.xfs"),
        _ => Err(format!("--fs {kind}: ext4 or xfs")),
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output: Output = command.output().map_err(|e| format!("{name}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {}: {}", output.status, said.trim())) }
}

/// A directory in memory with a place for everything.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// Covers an existing directory with a tmpfs, in this process's namespace.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn cover(root: &Path) -> Result<Self, String> {
        run(Command::new("mount").args(["-n", "-t", "tmpfs", "laminar-power"]).arg(root))?;
        let place = Self { root: root.to_owned() };
        for dir in [place.device(), place.live(), place.cut()] {
            std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        Ok(place)
    }

    /// Where the recorder's files are mounted.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        self.root.join("device")
    }

    /// Where the recorded file system is mounted.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Where file systems are mounted after a power cut.
    #[must_use]
    pub fn cut(&self) -> PathBuf {
        self.root.join("cut")
    }

    /// The disk after a power cut.
    fn image(&self) -> PathBuf {
        self.root.join("image")
    }

    /// A new file system.
    ///
    /// # Errors
    /// Making it.
    pub fn make(&self, kind: &str, arguments: &[&str]) -> Result<Disk, String> {
        let image = self.fresh_image()?;
        // The smallest that has a journal and room for a store; XFS wants more.
        let (len, fixed): (u64, &[&str]) = match kind {
            "xfs" => (300 << 20, &["-q", "-f"]),
            _ => (24 << 20, &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
        };
        image.set_len(len).map_err(|e| e.to_string())?;
        run(Command::new(maker(kind)?).args(fixed).args(arguments).arg(self.image()))?;
        let mut file = File::open(self.image()).map_err(|e| e.to_string())?;
        Disk::load(&mut file).map_err(|e| e.to_string())
    }

    fn fresh_image(&self) -> Result<File, String> {
        match std::fs::remove_file(self.image()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("image: {e}")),
            _ => File::create_new(self.image()).map_err(|e| format!("image: {e}")),
        }
    }

    /// Mounts a disk as it is after a power cut.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn mount_image(&self, disk: &Disk, kind: &str, options: &str) -> Result<Mounted, String> {
        let file = self.fresh_image()?;
        disk.store(&file).map_err(|e| format!("image: {e}"))?;
        drop(file);
        Mounted::mount(&self.image(), kind, options, self.cut())
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted(Option<PathBuf>);

impl Mounted {
    /// Mounts an image through a loop device that goes away with the mount.
    ///
    /// # Errors
    /// What `mount` says.
    pub fn mount(image: &Path, kind: &str, options: &str, at: PathBuf) -> Result<Self, String> {
        let options =
            if options.is_empty() { "loop,noatime".into() } else { format!("loop,noatime,{options}") };
        run(Command::new("mount").args(["-n", "-t", kind, "-o", &options]).arg(image).arg(&at))?;
        Ok(Self(Some(at)))
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// Something still uses it.
    pub fn unmount(mut self) -> Result<(), String> {
        self.0.take().map_or(Ok(()), |at| unmount(&at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The error that led here is the one to report, and the end of the namespace unmounts all the same.
        let _ = self.0.take().map(|at| unmount(&at));
    }
}

/// Unmounts, as soon as nothing uses it.
///
/// # Errors
/// Something uses it for long.
pub fn unmount(at: &Path) -> Result<(), String> {
    let mut tries = 0;
    loop {
        match rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            // A process that was killed may not have let go of its files yet.
            Err(rustix::io::Errno::BUSY) if tries < 200 => tries += 1,
            Err(e) => return Err(format!("unmounting {}: {e}", at.display())),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
