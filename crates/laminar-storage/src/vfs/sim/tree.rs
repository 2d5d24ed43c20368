//! What is on the disk and what the running system believes is on it.
//!
//! Every inode exists twice: *cached*, what a running program reads, and *durable*, what certainly
//! survives. The difference is the pending items: data atoms and sizes per file, and changes of
//! directory entries, each with the number of the operation that made it. Syncing applies items to
//! the durable side; a crash applies any legal selection of them (see `image`).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::content::Content;

pub(super) type Ino = u32;
pub(super) const ROOT: Ino = 1;
/// What a disk writes at once: a write is cut into atoms at multiples of this.
pub(super) const SECTOR: u64 = 512;

/// A change of a file's bytes or size that is not durable yet.
#[derive(Clone, Debug)]
pub(super) struct DataItem {
    pub op: u64,
    pub change: DataChange,
}

#[derive(Clone, Debug)]
pub(super) enum DataChange {
    /// Bytes within one sector: `data[start..start + len]` at `offset`.
    Atom { offset: u64, data: Arc<[u8]>, start: usize, len: usize },
    /// The file has this length from now on; when that is less than before, what lay beyond is gone.
    Size(u64),
}

impl DataChange {
    /// Whether this is an atom of just these bytes: one that is written again in place, where the file has been durable
    /// and keeps its size, is one item, its last version. A file that is never synced would have more and more of them.
    fn is_replaced_by(&self, at: u64, bytes: usize) -> bool {
        matches!(self, Self::Atom { offset, len, .. } if (*offset, *len) == (at, bytes))
    }

    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Self::Atom { offset, data, start, len } => content.put(*offset, &data[*start..start + len]),
            Self::Size(len) => content.set_len(*len),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileNode {
    pub durable: Content,
    pub cached: Content,
    pub pending: Vec<DataItem>,
    /// Set when a failed sync marked lost bytes as clean: from then on `cached` is not `durable`
    /// plus `pending`.
    pub diverged: bool,
}

impl FileNode {
    pub(super) const EMPTY: Self =
        Self { durable: Content::EMPTY, cached: Content::EMPTY, pending: Vec::new(), diverged: false };

    pub(super) fn clean(content: Content) -> Self {
        Self { durable: content.clone(), cached: content, pending: Vec::new(), diverged: false }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.pending.is_empty() && !self.diverged
    }

    pub(super) fn write(&mut self, op: u64, offset: u64, bytes: &[u8]) {
        let data: Arc<[u8]> = bytes.into();
        let in_place = !self.pending.iter().any(|item| matches!(item.change, DataChange::Size(_)));
        let mut start = 0;
        while start < bytes.len() {
            let at = offset + start as u64;
            let room = SECTOR - at % SECTOR;
            let len = super::content::in_memory(room).min(bytes.len() - start);
            let change = DataChange::Atom { offset: at, data: Arc::clone(&data), start, len };
            if in_place && at + len as u64 <= self.durable.len() {
                self.pending.retain(|earlier| !earlier.change.is_replaced_by(at, len));
            }
            self.pending.push(DataItem { op, change });
            start += len;
        }
        let before = self.cached.len();
        self.cached.write(offset, bytes);
        if self.cached.len() != before {
            let change = DataChange::Size(self.cached.len());
            self.pending.push(DataItem { op, change });
        }
    }

    pub(super) fn set_len(&mut self, op: u64, len: u64) {
        if len != self.cached.len() {
            self.cached.set_len(len);
            let change = DataChange::Size(len);
            self.pending.push(DataItem { op, change });
        }
    }

    pub(super) fn sync(&mut self) {
        if self.diverged {
            self.drop_and_clean(|_| true);
        } else {
            self.durable = self.cached.clone();
            self.pending.clear();
        }
    }

    /// Makes the items that `keep` accepts durable and forgets about the others.
    pub(super) fn drop_and_clean(&mut self, mut keep: impl FnMut(usize) -> bool) {
        for (i, item) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if keep(i) {
                item.change.apply(&mut self.durable);
            } else {
                self.diverged = true;
            }
        }
        // Bytes kept without the size that would show them are as good as lost.
        let len = self.durable.len();
        self.durable.set_len(len);
    }
}

pub(super) type Names = Arc<BTreeMap<Arc<str>, Ino>>;

#[derive(Clone, Debug, Default)]
pub(super) struct DirNode {
    pub durable: Names,
    pub cached: Names,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// One name in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub dir: Ino,
    pub name: Arc<str>,
}

#[derive(Clone, Debug)]
pub(super) enum DirChange {
    Add {
        at: Cell,
        ino: Ino,
    },
    Remove {
        at: Cell,
        ino: Ino,
    },
    /// One atomic change of two names; `replaced` is what `to` named before.
    Move {
        from: Cell,
        to: Cell,
        ino: Ino,
        replaced: Option<Ino>,
    },
}

/// A change of directory entries that is not durable yet.
#[derive(Clone, Debug)]
pub(super) struct DirItem {
    pub op: u64,
    pub change: DirChange,
    /// A move between two directories is durable when both were synced; these were.
    pub synced: [bool; 2],
}

impl DirItem {
    fn cells(&self) -> [Option<&Cell>; 2] {
        match &self.change {
            DirChange::Add { at, .. } | DirChange::Remove { at, .. } => [Some(at), None],
            DirChange::Move { from, to, .. } => [Some(from), Some(to)],
        }
    }

    /// Appends bytes that are equal exactly for equal changes.
    pub(super) fn describe(&self, text: &mut Vec<u8>) {
        let (kind, inos) = match self.change {
            DirChange::Add { ino, .. } => (b'+', [ino, 0]),
            DirChange::Remove { ino, .. } => (b'-', [ino, 0]),
            DirChange::Move { ino, replaced, .. } => (b'>', [ino, replaced.unwrap_or(0)]),
        };
        text.extend([kind, u8::from(self.synced[0]), u8::from(self.synced[1])]);
        inos.iter().for_each(|ino| text.extend_from_slice(&ino.to_le_bytes()));
        for cell in self.cells().into_iter().flatten() {
            text.extend_from_slice(&cell.dir.to_le_bytes());
            text.extend_from_slice(cell.name.as_bytes());
            text.push(0);
        }
    }

    pub(super) fn touches(&self, dir: Ino) -> bool {
        self.cells().into_iter().flatten().any(|c| c.dir == dir)
    }

    fn names(&self, target: Ino) -> bool {
        match self.change {
            DirChange::Add { ino, .. } | DirChange::Move { ino, .. } => ino == target,
            DirChange::Remove { .. } => false,
        }
    }

    /// Whether `self` on disk implies that the `earlier` change is on disk as well:
    ///
    /// 1. both change the same name (the later value covers the earlier one, and a rename must not
    ///    be undone in half);
    /// 2. `self` removes a directory, `earlier` changed its entries (it had to be empty);
    /// 3. `self` moves something into a directory that `earlier` gave a name to.
    pub(super) fn needs(&self, earlier: &Self) -> bool {
        let same_name = self.cells().into_iter().flatten().any(|cell| earlier.cells().contains(&Some(cell)));
        let emptied = match self.change {
            DirChange::Add { .. } => None,
            DirChange::Remove { ino, .. } => Some(ino),
            DirChange::Move { replaced, .. } => replaced,
        };
        let into = match &self.change {
            DirChange::Move { from, to, .. } if from.dir != to.dir => Some(to.dir),
            _ => None,
        };
        same_name
            || emptied.is_some_and(|dir| earlier.touches(dir))
            || into.is_some_and(|dir| earlier.names(dir))
    }

    /// Applies the change to one side of the directories, which `names` gives access to.
    pub(super) fn apply(&self, mut names: impl FnMut(Ino, &mut dyn FnMut(&mut Names))) {
        let mut set = |cell: &Cell, ino: Option<Ino>| {
            names(cell.dir, &mut |map| {
                let map = Arc::make_mut(map);
                match ino {
                    Some(ino) => map.insert(Arc::clone(&cell.name), ino),
                    None => map.remove(&cell.name),
                };
            });
        };
        match &self.change {
            DirChange::Add { at, ino } => set(at, Some(*ino)),
            DirChange::Remove { at, .. } => set(at, None),
            DirChange::Move { from, to, ino, .. } => {
                set(from, None);
                set(to, Some(*ino));
            }
        }
    }
}

/// All inodes and pending changes. Cloning copies pointers only.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Ordered by inode number.
    pub nodes: Vec<(Ino, Arc<Node>)>,
    pub dirents: Arc<Vec<DirItem>>,
    next_ino: Ino,
    /// With a journal, every change of sizes and entries up to this operation is durable.
    pub journaled: u64,
    /// A failed sync of a directory lost names that running programs still see.
    pub names_lost: bool,
    /// Another one after every change of a directory.
    generation: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![(ROOT, Arc::new(Node::Dir(DirNode::default())))],
            dirents: Arc::default(),
            next_ino: ROOT + 1,
            journaled: 0,
            names_lost: false,
            generation: 0,
        }
    }

    /// A tree in which everything is durable.
    pub(super) fn clean(nodes: Vec<(Ino, Arc<Node>)>, next_ino: Ino) -> Self {
        Self { nodes, dirents: Arc::default(), next_ino, journaled: 0, names_lost: false, generation: 0 }
    }

    pub(super) fn next_ino(&self) -> Ino {
        self.next_ino
    }

    fn index(&self, ino: Ino) -> Option<usize> {
        self.nodes.binary_search_by_key(&ino, |n| n.0).ok()
    }

    pub(super) fn node(&self, ino: Ino) -> Option<&Arc<Node>> {
        self.index(ino).map(|i| &self.nodes[i].1)
    }

    fn node_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.index(ino).map(|i| Arc::make_mut(&mut self.nodes[i].1))
    }

    pub(super) fn file(&self, ino: Ino) -> io::Result<&FileNode> {
        match self.node(ino).map(Arc::as_ref) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> io::Result<&mut FileNode> {
        match self.node_mut(ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(Errno::ISDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    pub(super) fn dir(&self, ino: Ino) -> io::Result<&DirNode> {
        match self.node(ino).map(Arc::as_ref) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// As long as this is the same, every path leads where it led before.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> Option<&mut DirNode> {
        self.generation += 1;
        match self.node_mut(ino) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn add_node(&mut self, node: Node) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.nodes.push((ino, Arc::new(node)));
        ino
    }

    /// The inode at a path, `NotFound` when there is none.
    pub(super) fn lookup(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        let mut rest = path.to_str().ok_or(Errno::INVAL)?;
        while !rest.is_empty() {
            // Byte by byte: names are too short for a search that needs a beginning.
            let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
            let name = rest.get(..end).unwrap_or_default();
            rest = rest.get(end + 1..).unwrap_or_default();
            match name {
                "" | "." => {}
                ".." => return Err(Errno::INVAL.into()),
                name => at = *self.dir(at)?.cached.get(name).ok_or(Errno::NOENT)?,
            }
        }
        Ok(at)
    }

    /// The directory and the name that a path stands for, and what has that name now.
    pub(super) fn cell(&self, path: &Path) -> io::Result<(Cell, Option<Ino>)> {
        let name = path.file_name().and_then(|n| n.to_str());
        let name = name.ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = self.lookup(parent)?;
        let there = self.dir(dir)?.cached.get(name).copied();
        let name = name.into();
        Ok((Cell { dir, name }, there))
    }

    /// Changes the directories as a running program sees them and remembers the change as pending.
    pub(super) fn change(&mut self, op: u64, change: DirChange) {
        let item = DirItem { op, change, synced: [false; 2] };
        item.apply(|ino, edit| {
            if let Some(dir) = self.dir_mut(ino) {
                edit(&mut dir.cached);
            }
        });
        Arc::make_mut(&mut self.dirents).push(item);
    }

    /// Makes the pending changes of one directory durable, and whatever those need. Returns whether
    /// a name went away.
    pub(super) fn sync_dir(&mut self, dir: Ino) -> bool {
        if self.dirents.is_empty() {
            // Most syncs of a directory make sure of what is certain already.
            return false;
        }
        let mut items = std::mem::take(Arc::make_mut(&mut self.dirents));
        let mut chosen = vec![false; items.len()];
        for (item, chosen) in items.iter_mut().zip(&mut chosen) {
            let cells = item.cells().map(|cell| cell.map(|c| c.dir));
            for (side, cell_dir) in item.synced.iter_mut().zip(cells) {
                *side |= cell_dir.is_none_or(|d| d == dir);
            }
            *chosen = item.touches(dir) && item.synced == [true; 2];
        }
        for later in (0..items.len()).rev().filter(|i| chosen[*i]).collect::<Vec<_>>() {
            close(&items, &mut chosen, later);
        }
        self.commit(items, &chosen)
    }

    /// Drops the pending changes of one directory except those that `keep` accepts; what is kept
    /// becomes durable with whatever it needs.
    pub(super) fn drop_dir_changes(&mut self, dir: Ino, mut keep: impl FnMut(usize) -> bool) {
        let mut items = std::mem::take(Arc::make_mut(&mut self.dirents));
        let mut chosen = vec![false; items.len()];
        let mut seen = 0;
        for i in 0..items.len() {
            if items[i].touches(dir) {
                if keep(seen) {
                    chosen[i] = true;
                    close(&items, &mut chosen, i);
                }
                seen += 1;
            }
        }
        self.names_lost |= items.iter().zip(&chosen).any(|(item, kept)| item.touches(dir) && !kept);
        let mut kept = chosen.iter();
        items.retain(|item| kept.next() == Some(&true) || !item.touches(dir));
        let chosen: Vec<bool> = items.iter().map(|item| item.touches(dir)).collect();
        self.commit(items, &chosen);
    }

    /// Returns whether a name went away, and with it perhaps an inode.
    fn commit(&mut self, items: Vec<DirItem>, chosen: &[bool]) -> bool {
        let mut rest = Vec::new();
        let mut changed = Vec::new();
        let mut removed = false;
        for (item, chosen) in items.into_iter().zip(chosen) {
            if !chosen {
                rest.push(item);
                continue;
            }
            removed |= !matches!(item.change, DirChange::Add { .. });
            item.apply(|ino, edit| {
                changed.push(ino);
                if let Some(dir) = self.dir_mut(ino) {
                    edit(&mut dir.durable);
                }
            });
        }
        // Shared maps are how `image` sees quickly that a directory is clean.
        for ino in changed {
            if let Some(dir) = self.dir_mut(ino)
                && dir.durable == dir.cached
            {
                dir.durable = Arc::clone(&dir.cached);
            }
        }
        self.dirents = Arc::new(rest);
        removed
    }

    /// Whether a running program can reach an inode by a name.
    pub(super) fn is_linked(&self, target: Ino) -> bool {
        self.nodes.iter().any(|(_, node)| match node.as_ref() {
            Node::Dir(dir) => dir.cached.values().any(|ino| *ino == target),
            Node::File(_) => false,
        })
    }

    /// Forgets inodes that no name, pending change or open file refers to.
    pub(super) fn collect_garbage(&mut self, is_open: impl Fn(Ino) -> bool) {
        let mut live = vec![ROOT];
        for (_, node) in &self.nodes {
            if let Node::Dir(dir) = node.as_ref() {
                live.extend(dir.cached.values().chain(dir.durable.values()));
            }
        }
        for item in self.dirents.iter() {
            match item.change {
                DirChange::Add { ino, .. } | DirChange::Remove { ino, .. } | DirChange::Move { ino, .. } => {
                    live.push(ino)
                }
            }
            live.extend(item.cells().into_iter().flatten().map(|cell| cell.dir));
        }
        live.sort_unstable();
        self.nodes.retain(|(ino, _)| live.binary_search(ino).is_ok() || is_open(*ino));
    }
}

/// Marks everything that item `later` needs, directly or not.
fn close(items: &[DirItem], chosen: &mut [bool], later: usize) {
    for earlier in (0..later).rev() {
        if !chosen[earlier] && items[later].needs(&items[earlier]) {
            chosen[earlier] = true;
            close(items, chosen, earlier);
        }
    }
}
