//! The machine around the disk: what an operation does once it may happen, and whether it may.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::content::in_memory;
use super::faults::{Class, Fault, Faults};
use super::image::Snapshot;
use super::trace::{Call, Op, Stats};
use super::tree::{DataChange, DataItem, DirChange, DirNode, FileNode, Ino, Node, Tree};
use crate::vfs::FileKind;

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) tree: Tree,
    pub(super) seed: u64,
    pub(super) random: u64,
    pub(super) clock: u64,
    pub(super) ops: u64,
    pub(super) number_reads: bool,
    pub(super) traced: Option<Vec<Op>>,
    pub(super) recorded: Option<Vec<Snapshot>>,
    pub(super) faults: Faults,
    pub(super) free: Option<u64>,
    pub(super) read_only: bool,
    pub(super) power: bool,
    pub(super) power_off_after: Option<u64>,
    pub(super) stats: Stats,
    pub(super) open: BTreeMap<Ino, u32>,
    pub(super) locks: Vec<Ino>,
    known_dir: KnownDir,
}

/// The directory that was looked up last: most paths are in the same one as the path before.
#[derive(Debug, Default)]
struct KnownDir {
    path: String,
    found: Option<(Ino, u64)>,
}

impl Machine {
    pub(super) fn new(tree: Tree, seed: u64, clock: u64) -> Self {
        Self {
            tree,
            seed,
            random: seed,
            clock,
            ops: 0,
            number_reads: false,
            traced: None,
            recorded: None,
            faults: Faults::default(),
            free: None,
            read_only: false,
            power: true,
            power_off_after: None,
            stats: Stats::default(),
            open: BTreeMap::new(),
            locks: Vec::new(),
            known_dir: KnownDir::default(),
        }
    }

    /// The inode at a path, `NotFound` when there is none.
    pub(super) fn lookup(&mut self, path: &Path) -> io::Result<Ino> {
        let parts = path.to_str().and_then(|path| path.rsplit_once('/'));
        let Some((parent, name)) = parts.filter(|(_, name)| !matches!(*name, "" | "." | "..")) else {
            return self.tree.lookup(path);
        };
        let generation = self.tree.generation();
        let known = self.known_dir.found.filter(|(_, at)| *at == generation && self.known_dir.path == parent);
        let dir = match known {
            Some((dir, _)) => dir,
            None => {
                let dir = self.tree.lookup(Path::new(parent))?;
                self.known_dir.path.clear();
                self.known_dir.path.push_str(parent);
                self.known_dir.found = Some((dir, generation));
                dir
            }
        };
        Ok(*self.tree.dir(dir)?.cached.get(name).ok_or(Errno::NOENT)?)
    }

    /// Numbers the operation and says which fault it meets; an error when nothing may happen.
    pub(super) fn start(&mut self, class: Class) -> io::Result<Option<Fault>> {
        if !self.power {
            return Err(io::Error::other("sim: power is off"));
        }
        self.stats.changes += u64::from(class.mutates());
        if !class.mutates() && !self.number_reads {
            return Ok(None);
        }
        if self.power_off_after.is_some_and(|last| self.ops >= last) {
            self.power = false;
            return Err(io::Error::other("sim: power is off"));
        }
        self.ops += 1;
        let syncs = matches!(class, Class::SyncFile | Class::SyncDir);
        if self.read_only && class.mutates() && !syncs {
            return Err(Errno::ROFS.into());
        }
        let fault = self.faults.at(self.ops, class);
        if let Some(error) = fault.and_then(Fault::immediate) {
            return Err(error);
        }
        if class == Class::NewEntry && self.free == Some(0) {
            return Err(Errno::NOSPC.into());
        }
        Ok(fault)
    }

    pub(super) fn finish(&mut self, class: Class, call: &Call<'_>, outcome: Result<u64, io::ErrorKind>) {
        let numbered = class.mutates() || self.number_reads;
        if self.traced.is_none() && (self.recorded.is_none() || !class.mutates()) {
            return;
        }
        let op = call.answered(if numbered { self.ops } else { 0 }, outcome);
        if class.mutates() && self.power && self.recorded.is_some() {
            let snapshot = self.snapshot(Some(op.clone()));
            if let Some(recorded) = &mut self.recorded {
                recorded.push(snapshot);
            }
        }
        if let Some(traced) = &mut self.traced {
            traced.push(op);
        }
    }

    pub(super) fn snapshot(&self, op: Option<Op>) -> Snapshot {
        Snapshot::new(self.tree.clone(), self.ops, op, self.seed, self.clock)
    }

    /// Takes as many of `wanted` new bytes as there is room for.
    pub(super) fn allocate(&mut self, wanted: u64) -> io::Result<u64> {
        let Some(free) = &mut self.free else {
            return Ok(wanted);
        };
        let granted = wanted.min(*free);
        if granted == 0 && wanted > 0 {
            return Err(Errno::NOSPC.into());
        }
        *free -= granted;
        Ok(granted)
    }

    pub(super) fn write(&mut self, ino: Ino, buf: &[u8], offset: u64) -> io::Result<usize> {
        let end = offset.checked_add(buf.len() as u64).ok_or(Errno::FBIG)?;
        let len = self.tree.file(ino)?.cached.len();
        let inside = len.clamp(offset, end) - offset;
        let beyond = (end - offset) - inside;
        let granted = match self.allocate(beyond) {
            Ok(granted) => granted,
            // What lies inside the file needs no new space.
            Err(_) if inside > 0 => 0,
            Err(e) => return Err(e),
        };
        let n = in_memory(inside + granted);
        self.tree.file_mut(ino)?.write(self.ops, offset, &buf[..n]);
        self.stats.bytes_written += n as u64;
        Ok(n)
    }

    pub(super) fn sync_file(&mut self, ino: Ino, fault: Option<Fault>) -> io::Result<u64> {
        self.stats.sync_data += 1;
        let journaled = self.commits_journal(ino);
        let file = self.tree.file_mut(ino)?;
        if let Some(Fault::SyncDropsAndCleans { keep, reads_old }) = fault {
            let count = file.pending.len();
            file.drop_and_clean(|i| keep.keeps(i, count));
            if reads_old {
                *file = FileNode::clean(file.durable.clone());
            }
            return Err(Errno::IO.into());
        }
        file.sync();
        if journaled {
            self.tree.journaled = self.ops;
        }
        Ok(0)
    }

    /// A journal is written out when the file's own size or name is still in it.
    pub(super) fn commits_journal(&self, ino: Ino) -> bool {
        let sized = self.tree.file(ino).is_ok_and(|file| {
            let size = |item: &DataItem| matches!(item.change, DataChange::Size(_));
            file.pending.iter().any(size)
        });
        sized
            || self
                .tree
                .dirents
                .iter()
                .any(|item| matches!(item.change, DirChange::Add { ino: new, .. } if new == ino))
    }

    pub(super) fn sync_dir(&mut self, path: &Path, fault: Option<Fault>) -> io::Result<u64> {
        self.stats.sync_dir += 1;
        let dir = self.lookup(path)?;
        self.tree.dir(dir)?;
        if let Some(Fault::SyncDropsAndCleans { keep, reads_old }) = fault {
            let pending = self.tree.dirents.iter();
            let count = pending.filter(|item| item.touches(dir)).count();
            self.tree.drop_dir_changes(dir, |i| keep.keeps(i, count));
            if reads_old && let Some(node) = self.tree.dir_mut(dir) {
                node.cached = Arc::clone(&node.durable);
            }
            return Err(Errno::IO.into());
        }
        if self.tree.sync_dir(dir) {
            let open = &self.open;
            self.tree.collect_garbage(|ino| open.contains_key(&ino));
        }
        self.tree.journaled = self.ops;
        Ok(0)
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<Ino> {
        let (at, there) = self.tree.cell(path)?;
        if there.is_some() {
            return Err(Errno::EXIST.into());
        }
        let ino = self.tree.add_node(Node::File(FileNode::default()));
        self.tree.change(self.ops, DirChange::Add { at, ino });
        self.stats.created += 1;
        Ok(ino)
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<u64> {
        let (at, there) = self.tree.cell(path)?;
        if there.is_some() {
            return Err(Errno::EXIST.into());
        }
        let ino = self.tree.add_node(Node::Dir(DirNode::default()));
        self.tree.change(self.ops, DirChange::Add { at, ino });
        self.stats.created += 1;
        Ok(0)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<u64> {
        let (from_cell, ino) = self.tree.cell(from)?;
        let ino = ino.ok_or(Errno::NOENT)?;
        let (to_cell, replaced) = self.tree.cell(to)?;
        if replaced == Some(ino) {
            return Ok(0);
        }
        let moves_dir = self.tree.dir(ino).is_ok();
        if moves_dir && to.starts_with(from) {
            return Err(Errno::INVAL.into());
        }
        if let Some(replaced) = replaced {
            match self.tree.dir(replaced) {
                Ok(dir) if !moves_dir => {
                    let _ = dir;
                    return Err(Errno::ISDIR.into());
                }
                Ok(dir) if !dir.cached.is_empty() => return Err(Errno::NOTEMPTY.into()),
                Ok(_) => {}
                Err(_) if moves_dir => return Err(Errno::NOTDIR.into()),
                Err(_) => {}
            }
        }
        let change = DirChange::Move { from: from_cell, to: to_cell, ino, replaced };
        self.tree.change(self.ops, change);
        self.release(replaced);
        Ok(0)
    }

    pub(super) fn remove(&mut self, path: &Path, directory: bool) -> io::Result<u64> {
        let (at, ino) = self.tree.cell(path)?;
        let ino = ino.ok_or(Errno::NOENT)?;
        if directory {
            if !self.tree.dir(ino)?.cached.is_empty() {
                return Err(Errno::NOTEMPTY.into());
            }
        } else {
            self.tree.file(ino)?;
        }
        self.tree.change(self.ops, DirChange::Remove { at, ino });
        self.release(Some(ino));
        Ok(0)
    }

    pub(super) fn hard_link(&mut self, existing: &Path, new: &Path) -> io::Result<u64> {
        let ino = self.lookup(existing)?;
        if self.tree.file(ino).is_err() {
            return Err(Errno::PERM.into());
        }
        let (at, there) = self.tree.cell(new)?;
        if there.is_some() {
            return Err(Errno::EXIST.into());
        }
        self.tree.change(self.ops, DirChange::Add { at, ino });
        Ok(0)
    }

    /// Gives the space of a file back when nothing refers to it any more.
    pub(super) fn release(&mut self, ino: Option<Ino>) {
        let (Some(ino), Some(free)) = (ino, self.free) else {
            return;
        };
        if !self.open.contains_key(&ino)
            && !self.tree.is_linked(ino)
            && let Ok(file) = self.tree.file(ino)
        {
            self.free = Some(free.saturating_add(file.cached.len()));
        }
    }

    pub(super) fn kind_of(&self, ino: Ino) -> FileKind {
        match self.tree.node(ino).map(Arc::as_ref) {
            Some(Node::File(file)) => FileKind::File { len: file.cached.len() },
            Some(Node::Dir(_)) => FileKind::Dir,
            None => FileKind::Other,
        }
    }
}
