//! Hands on the disk from outside: what a bad sector, an operator or another program may do. None of
//! it is numbered, traced or subject to faults; all of it is durable at once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::content::Content;
use super::disk::SimDisk;
use super::tree::{FileNode, Ino, Node, ROOT, Tree};

impl SimDisk {
    /// All files with their lengths, ordered by path, as a running program sees them.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        fn walk(tree: &Tree, ino: Ino, at: &Path, files: &mut Vec<(PathBuf, u64)>) {
            match tree.node(ino).map(Arc::as_ref) {
                Some(Node::File(file)) => files.push((at.to_owned(), file.cached.len())),
                Some(Node::Dir(dir)) => {
                    for (name, child) in dir.cached.iter() {
                        walk(tree, *child, &at.join(name.as_ref()), files);
                    }
                }
                None => {}
            }
        }
        let mut files = Vec::new();
        walk(&self.machine().tree, ROOT, Path::new(""), &mut files);
        files
    }

    /// A whole file.
    ///
    /// # Errors
    /// `NotFound`; `IsADirectory`.
    pub fn read_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let machine = self.machine();
        let ino = machine.tree.lookup(path.as_ref())?;
        Ok(machine.tree.file(ino)?.cached.to_vec())
    }

    /// Gives a file this content, creating it when missing; its directory must exist.
    ///
    /// # Errors
    /// `NotFound` when the directory is missing; `IsADirectory`.
    pub fn overwrite(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut content = Content::default();
        content.write(0, bytes);
        self.install(path.as_ref(), content)
    }

    /// Overwrites bytes within a file, or beyond its end.
    ///
    /// # Errors
    /// `NotFound`; `IsADirectory`.
    pub fn patch(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.edit(path.as_ref(), |content| content.write(offset, bytes))
    }

    /// Flips one bit of a file: bit `bit % 8` of byte `bit / 8`.
    ///
    /// # Errors
    /// `NotFound`; `IsADirectory`; `InvalidInput` when the file is not that long.
    pub fn flip_bit(&self, path: impl AsRef<Path>, bit: u64) -> io::Result<()> {
        let mut inside = false;
        self.edit(path.as_ref(), |content| {
            let mut byte = [0];
            inside = content.read(&mut byte, bit / 8) == 1;
            if inside {
                content.write(bit / 8, &[byte[0] ^ (1 << (bit % 8))]);
            }
        })?;
        if inside { Ok(()) } else { Err(Errno::INVAL.into()) }
    }

    /// Cuts a file, or extends it with zeros.
    ///
    /// # Errors
    /// `NotFound`; `IsADirectory`.
    pub fn truncate(&self, path: impl AsRef<Path>, len: u64) -> io::Result<()> {
        self.edit(path.as_ref(), |content| content.set_len(len))
    }

    /// Takes the name of a file, or of a directory with everything in it, away.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut machine = self.machine();
        let (cell, there) = machine.tree.cell(path.as_ref())?;
        there.ok_or(Errno::NOENT)?;
        if let Some(dir) = machine.tree.dir_mut(cell.dir) {
            Arc::make_mut(&mut dir.cached).remove(&cell.name);
            Arc::make_mut(&mut dir.durable).remove(&cell.name);
        }
        Ok(())
    }

    /// Copies the content of one file over another, creating it when missing.
    ///
    /// # Errors
    /// `NotFound`; `IsADirectory`.
    pub fn copy(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let content = {
            let machine = self.machine();
            let ino = machine.tree.lookup(from.as_ref())?;
            machine.tree.file(ino)?.cached.clone()
        };
        self.install(to.as_ref(), content)
    }

    fn edit(&self, path: &Path, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut machine = self.machine();
        let ino = machine.tree.lookup(path)?;
        let file = machine.tree.file_mut(ino)?;
        let mut content = file.cached.clone();
        change(&mut content);
        *file = FileNode::clean(content);
        Ok(())
    }

    fn install(&self, path: &Path, content: Content) -> io::Result<()> {
        let mut machine = self.machine();
        let (cell, there) = machine.tree.cell(path)?;
        if let Some(ino) = there {
            *machine.tree.file_mut(ino)? = FileNode::clean(content);
            return Ok(());
        }
        let ino = machine.tree.add_node(Node::File(FileNode::clean(content)));
        if let Some(dir) = machine.tree.dir_mut(cell.dir) {
            Arc::make_mut(&mut dir.cached).insert(Arc::clone(&cell.name), ino);
            Arc::make_mut(&mut dir.durable).insert(cell.name, ino);
        }
        Ok(())
    }
}
