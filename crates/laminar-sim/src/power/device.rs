//! The disk as a file that this process serves through FUSE, next to the file for acknowledgements. One
//! thread answers one request after the other, which puts all of them in an order.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use super::machine::unmount;
use super::recording::Recorder;

/// The name of the disk.
pub const DISK: &str = "disk";
/// The name of the file for acknowledgements.
pub const ACKS: &str = "acks";

const DISK_NODE: INodeNo = INodeNo(2);
const ACKS_NODE: INodeNo = INodeNo(3);
/// Nothing changes that the kernel could remember.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A recorder that a thread and its owner share.
pub type Shared = Arc<Mutex<Recorder>>;

/// The recorder, also after a panic of the other side.
pub fn lock(shared: &Shared) -> MutexGuard<'_, Recorder> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two files while they are mounted; unmounted when dropped.
pub struct Device {
    session: Option<BackgroundSession>,
    at: PathBuf,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Device {
    /// Mounts them on an existing directory.
    ///
    /// # Errors
    /// FUSE does not work here.
    pub fn mount(recorder: Shared, at: &Path) -> Result<Self, String> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("laminar-power".into()), MountOption::NoAtime];
        config.n_threads = Some(1);
        let files = Files { recorder };
        let session =
            fuser::spawn_mount(files, at, &config).map_err(|e| format!("FUSE: {}: {e}", at.display()))?;
        Ok(Self { session: Some(session), at: at.to_owned() })
    }

    /// Unmounts them and waits for the end of the thread.
    ///
    /// # Errors
    /// Something still uses them.
    pub fn unmount(mut self) -> Result<(), String> {
        // A loop device lets go of its file a moment after the file system on it was unmounted.
        unmount(&self.at)?;
        self.session.take().map_or(Ok(()), BackgroundSession::join).map_err(|e| format!("FUSE: {e}"))
    }
}

struct Files {
    recorder: Shared,
}

impl Files {
    fn attributes(&self, node: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match node {
            INodeNo::ROOT => (FileType::Directory, 0),
            DISK_NODE => (FileType::RegularFile, lock(&self.recorder).now().len()),
            ACKS_NODE => (FileType::RegularFile, 0),
            _ => return None,
        };
        Some(FileAttr {
            ino: node,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if kind == FileType::Directory { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let node = match name.to_str() {
            Some(DISK) => DISK_NODE,
            Some(ACKS) => ACKS_NODE,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.attributes(node) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(node) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every read and write comes here at once; nothing waits in the page cache of this file.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match node {
            DISK_NODE => reply.data(&lock(&self.recorder).now().read(offset, size as usize)),
            _ => reply.data(&[]),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Ok(written) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        match node {
            DISK_NODE => lock(&self.recorder).write(offset, data),
            ACKS_NODE => lock(&self.recorder).hear(data),
            _ => return reply.error(Errno::ENOENT),
        }
        reply.written(written);
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if node == DISK_NODE {
            lock(&self.recorder).flush();
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Not a flush of the disk: somebody closed a descriptor.
        reply.ok();
    }
}
