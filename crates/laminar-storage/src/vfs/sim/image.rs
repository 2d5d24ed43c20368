//! A disk at one instant, and what a power cut at that instant may leave of it.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::content::{Content, in_memory};
use super::disk::{CLOCK_START_NS, SimDisk};
use super::image_id::{ImageId, Picks};
use super::machine::Machine;
use super::select::{ImagePolicy, Images};
use super::trace::Op;
use super::tree::{DataChange, DirNode, FileNode, Ino, Names, Node, ROOT, SECTOR, Tree};

/// How far apart the clocks of two boots may be: an hour.
pub const CLOCK_JUMP_NS: u64 = 3_600_000_000_000;

/// A pending item of the whole disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub op: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// `index` in the pending list of file `file` of the survey.
    Atom { file: usize, index: usize },
    /// As `Atom`.
    Size { file: usize, index: usize },
    /// `index` in the pending list of directory changes.
    Entry { index: usize },
}

/// A file with pending items.
#[derive(Debug)]
pub(super) struct Unclean {
    ino: Ino,
    /// Where it is among the nodes.
    at: usize,
    pub file: Arc<Node>,
    /// Item number of each pending change; none for an atom that changes nothing.
    items: Vec<Option<usize>>,
}

impl Unclean {
    pub(super) fn node(&self) -> &FileNode {
        static EMPTY: FileNode = FileNode::EMPTY;
        match self.file.as_ref() {
            Node::File(file) => file,
            Node::Dir(_) => &EMPTY,
        }
    }
}

/// What is pending on a disk, numbered in the order of the operations.
#[derive(Debug)]
pub(super) struct Survey {
    pub tree: Tree,
    pub items: Vec<Item>,
    pub files: Vec<Unclean>,
    /// Item number of each pending directory change.
    entries: Vec<usize>,
    /// The nodes with nothing of what is pending.
    base: Arc<Vec<(Ino, Arc<Node>)>>,
    origin: Origin,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    op: u64,
    seed: u64,
    clock: u64,
}

/// Files that some image may show: the others' pending bytes make no difference.
fn reachable(tree: &Tree) -> Vec<Ino> {
    use super::tree::DirChange;
    let mut inos = Vec::new();
    for (_, node) in &tree.nodes {
        if let Node::Dir(dir) = node.as_ref() {
            inos.extend(dir.durable.values());
        }
    }
    for item in tree.dirents.iter() {
        if let DirChange::Add { ino, .. } | DirChange::Move { ino, .. } = item.change {
            inos.push(ino);
        }
    }
    inos.sort_unstable();
    inos
}

/// Which pending changes of a file are atoms that leave every image as it is: they repeat what the
/// disk holds and nothing else touches their sector.
fn inert(file: &FileNode) -> Vec<bool> {
    let mut sectors = Vec::new();
    let mut len = file.durable.len();
    let mut shrinks = false;
    for item in &file.pending {
        match item.change {
            DataChange::Atom { offset, .. } => sectors.push(offset / SECTOR),
            DataChange::Size(new) => {
                shrinks |= new < len;
                len = new;
            }
        }
    }
    sectors.sort_unstable();
    let alone = |sector: u64| {
        let first = sectors.partition_point(|s| *s < sector);
        sectors.get(first + 1) != Some(&sector)
    };
    let repeats = |change: &DataChange| match change {
        DataChange::Atom { offset, data, start, len } => {
            !shrinks && alone(offset / SECTOR) && file.durable.holds(*offset, &data[*start..start + len])
        }
        DataChange::Size(_) => false,
    };
    file.pending.iter().map(|i| repeats(&i.change)).collect()
}

impl Survey {
    fn new(tree: &Tree, origin: Origin) -> Self {
        let live = reachable(tree);
        let mut found = Vec::new();
        let mut files = Vec::new();
        let mut base = tree.nodes.clone();
        for (at, (ino, node)) in tree.nodes.iter().enumerate() {
            match node.as_ref() {
                Node::File(file) if !file.is_clean() => {
                    base[at].1 = Arc::new(Node::File(FileNode::clean(file.durable.clone())));
                    if file.pending.is_empty() || live.binary_search(ino).is_err() {
                        continue;
                    }
                    let inert = inert(file);
                    for (index, item) in file.pending.iter().enumerate() {
                        let file = files.len();
                        let what = match item.change {
                            DataChange::Atom { .. } => What::Atom { file, index },
                            DataChange::Size(_) => What::Size { file, index },
                        };
                        if !inert[index] {
                            found.push(Item { op: item.op, what });
                        }
                    }
                    files.push(Unclean {
                        ino: *ino,
                        at,
                        file: Arc::clone(node),
                        items: vec![None; file.pending.len()],
                    });
                }
                Node::Dir(dir) if !Arc::ptr_eq(&dir.durable, &dir.cached) => {
                    base[at].1 = Arc::new(Node::Dir(DirNode {
                        durable: Arc::clone(&dir.durable),
                        cached: Arc::clone(&dir.durable),
                    }));
                }
                _ => {}
            }
        }
        for (index, item) in tree.dirents.iter().enumerate() {
            let what = What::Entry { index };
            found.push(Item { op: item.op, what });
        }
        // Stable, so that the atoms of one write stay before the size it made.
        found.sort_by_key(|item| item.op);
        let mut entries = vec![0; tree.dirents.len()];
        for (number, item) in found.iter().enumerate() {
            match item.what {
                What::Atom { file, index } | What::Size { file, index } => {
                    files[file].items[index] = Some(number);
                }
                What::Entry { index } => entries[index] = number,
            }
        }
        Self { tree: tree.clone(), items: found, files, entries, base: Arc::new(base), origin }
    }

    /// Number of the last operation before.
    pub(super) fn op(&self) -> u64 {
        self.origin.op
    }

    /// The clean content of a file when these items arrived; `None` when that is the durable one.
    fn content(&self, unclean: &Unclean, id: &ImageId) -> Option<Content> {
        let file = unclean.node();
        let picked = |item: &Option<usize>| item.is_some_and(|i| id.picks.has(i));
        if !id.garbage && !unclean.items.iter().any(picked) {
            return None;
        }
        let mut content = file.durable.clone();
        for (pending, item) in file.pending.iter().zip(&unclean.items) {
            match &pending.change {
                DataChange::Atom { offset, data, start, len } if picked(item) => {
                    let mut range = 0..*len;
                    if let Some(torn) = id.torn.filter(|torn| Some(torn.item) == *item) {
                        let cut = torn.cut.min(*len);
                        range = if torn.head { 0..cut } else { cut..*len };
                    }
                    let at = offset + range.start as u64;
                    content.put(at, &data[start + range.start..start + range.end]);
                }
                DataChange::Atom { offset, len, .. } => {
                    if id.garbage && *offset >= file.durable.len() {
                        content.put(*offset, &garbage(*offset)[..*len]);
                    }
                }
                change @ DataChange::Size(_) if picked(item) => change.apply(&mut content),
                DataChange::Size(_) => {}
            }
        }
        content.set_len(content.len());
        Some(content)
    }

    /// Most images are known already once they have a hash, so that nothing is put together for it.
    pub(super) fn image(&self, id: ImageId) -> Image {
        let mut nodes = Nodes { base: Arc::clone(&self.base), changed: Vec::new() };
        for unclean in &self.files {
            if let Some(content) = self.content(unclean, &id) {
                debug_assert_eq!(self.base[unclean.at].0, unclean.ino);
                nodes.changed.push((unclean.at, Arc::new(Node::File(FileNode::clean(content)))));
            }
        }
        for (item, number) in self.tree.dirents.iter().zip(&self.entries) {
            if id.picks.has(*number) {
                item.apply(|ino, edit| nodes.edit_dir(ino, edit));
            }
        }
        let Hashes { hash, outline, named } = hashes(&nodes);
        Image { nodes, named, next_ino: self.tree.next_ino(), id, hash, outline, origin: self.origin }
    }
}

/// The nodes of an image: those of its survey, but for a few.
#[derive(Clone, Debug)]
struct Nodes {
    /// Ordered by inode number.
    base: Arc<Vec<(Ino, Arc<Node>)>>,
    /// What stands in place of the node at this index.
    changed: Vec<(usize, Arc<Node>)>,
}

impl Nodes {
    fn index(&self, ino: Ino) -> Option<usize> {
        self.base.binary_search_by_key(&ino, |node| node.0).ok()
    }

    fn at(&self, at: usize) -> &Arc<Node> {
        let changed = self.changed.iter().find(|(index, _)| *index == at);
        changed.map_or_else(|| &self.base[at].1, |(_, node)| node)
    }

    fn edit_dir(&mut self, ino: Ino, edit: &mut dyn FnMut(&mut Names)) {
        let Some(at) = self.index(ino) else { return };
        let Node::Dir(dir) = self.at(at).as_ref() else { return };
        let mut names = Arc::clone(&dir.durable);
        edit(&mut names);
        let dir = Arc::new(Node::Dir(DirNode { durable: Arc::clone(&names), cached: names }));
        match self.changed.iter_mut().find(|(index, _)| *index == at) {
            Some((_, node)) => *node = dir,
            None => self.changed.push((at, dir)),
        }
    }
}

/// What a disk block held before anyone wrote to it: never zero, never the same in two places.
fn garbage(offset: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let word = xxh3_64(&offset.wrapping_add(i as u64).to_le_bytes()) | 1;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// What an image is named by.
struct Hashes {
    /// Of names and contents.
    hash: u64,
    /// Of names, lengths, and the contents of files up to [`OUTLINED`] bytes.
    outline: u64,
    /// Which nodes have a name; the others are forgotten.
    named: Vec<bool>,
}

/// Files of at most so many bytes belong to the outline of an image with all they hold.
const OUTLINED: u64 = 64;

/// Hashes everything that has a name.
fn hashes(nodes: &Nodes) -> Hashes {
    let mut walk = Walk {
        named: vec![false; nodes.base.len()],
        text: Vec::with_capacity(512),
        outline: 0,
        scratch: Vec::new(),
    };
    walk.visit(nodes, ROOT);
    Hashes { hash: xxh3_64(&walk.text), outline: walk.outline, named: walk.named }
}

struct Walk {
    named: Vec<bool>,
    text: Vec<u8>,
    outline: u64,
    scratch: Vec<u8>,
}

impl Walk {
    fn visit(&mut self, nodes: &Nodes, ino: Ino) {
        let Some(at) = nodes.index(ino) else { return };
        let again = std::mem::replace(&mut self.named[at], true);
        match nodes.at(at).as_ref() {
            Node::File(file) => {
                let (len, hash) = (file.durable.len(), file.durable.hash(&mut self.scratch));
                self.text.push(b'f');
                self.text.extend_from_slice(&hash.to_le_bytes());
                let outline = if len <= OUTLINED { hash } else { len };
                self.outline = xxh3_64_with_seed(&outline.to_le_bytes(), self.outline);
            }
            // Two names of one directory can only come from an impossible selection.
            Node::Dir(_) if again => self.text.push(b'?'),
            Node::Dir(dir) => {
                self.text.push(b'(');
                for (name, child) in dir.durable.iter() {
                    self.text.extend_from_slice(name.as_bytes());
                    self.text.push(0);
                    self.outline = xxh3_64_with_seed(name.as_bytes(), self.outline);
                    self.visit(nodes, *child);
                }
                self.text.push(b')');
            }
        }
    }
}

/// A disk at one instant, with what is durable and what is pending. Cheap to keep and to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tree: Tree,
    last: Option<Op>,
    origin: Origin,
}

impl Snapshot {
    pub(super) fn new(tree: Tree, op: u64, last: Option<Op>, seed: u64, clock: u64) -> Self {
        let origin = Origin { op, seed, clock };
        Self { inner: Arc::new(Inner { tree, last, origin }) }
    }

    /// Number of the last operation before this instant.
    #[must_use]
    pub fn op(&self) -> u64 {
        self.inner.origin.op
    }

    /// That operation, when the snapshot was recorded after one.
    #[must_use]
    pub fn last_op(&self) -> Option<&Op> {
        self.inner.last.as_ref()
    }

    pub(super) fn survey(&self) -> Survey {
        Survey::new(&self.inner.tree, self.inner.origin)
    }

    /// How many pending items a power cut decides about.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.survey().items.len()
    }

    /// Everything that a power cut at this instant may leave, each different image once.
    #[must_use]
    pub fn images(&self, policy: &ImagePolicy) -> Images {
        Images::new(self.survey(), policy)
    }

    /// One image again, by the name it had.
    #[must_use]
    pub fn image(&self, id: &ImageId) -> Image {
        self.survey().image(id.clone())
    }

    /// The image in which everything arrived.
    #[must_use]
    pub fn flushed(&self) -> Image {
        let survey = self.survey();
        let mut picks = Picks::none(survey.items.len());
        for item in 0..survey.items.len() {
            picks.set(item, true);
        }
        survey.image(ImageId { picks, ..ImageId::default() })
    }

    /// The process was killed and the machine runs on: what was written is there to be read, and
    /// what was not synced is still not durable. Locks are released.
    #[must_use]
    pub fn restart(&self) -> SimDisk {
        let Origin { seed, clock, .. } = self.inner.origin;
        let mut machine = Machine::new(self.inner.tree.clone(), seed, clock);
        machine.random = seed ^ self.hash();
        SimDisk::from_machine(machine)
    }

    /// Equal (but for a hash collision) only when what is durable, cached and pending is equal.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let tree = &self.inner.tree;
        let mut scratch = Vec::new();
        let mut text = Vec::new();
        for (ino, node) in &tree.nodes {
            text.extend_from_slice(&ino.to_le_bytes());
            match node.as_ref() {
                Node::File(file) => {
                    text.push(if file.diverged { 2 } else { 1 });
                    for content in [&file.durable, &file.cached] {
                        text.extend_from_slice(&content.hash(&mut scratch).to_le_bytes());
                    }
                    text.extend_from_slice(&(file.pending.len() as u64).to_le_bytes());
                    for item in &file.pending {
                        hash_change(&item.change, &mut text);
                    }
                }
                Node::Dir(dir) => {
                    text.push(0);
                    for names in [&dir.durable, &dir.cached] {
                        text.extend_from_slice(&(names.len() as u64).to_le_bytes());
                        for (name, child) in names.iter() {
                            text.extend_from_slice(name.as_bytes());
                            text.push(0);
                            text.extend_from_slice(&child.to_le_bytes());
                        }
                    }
                }
            }
        }
        for item in tree.dirents.iter() {
            item.describe(&mut text);
        }
        xxh3_64(&text)
    }

    /// Whether nothing is pending or lost: the only image of a power cut is what is there.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let clean = |node: &(Ino, Arc<Node>)| match node.1.as_ref() {
            Node::File(file) => file.is_clean(),
            Node::Dir(dir) => Arc::ptr_eq(&dir.durable, &dir.cached),
        };
        self.inner.tree.dirents.is_empty() && self.inner.tree.nodes.iter().all(clean)
    }
}

fn hash_change(change: &DataChange, text: &mut Vec<u8>) {
    match change {
        DataChange::Atom { offset, data, start, len } => {
            text.push(b'a');
            text.extend_from_slice(&offset.to_le_bytes());
            text.extend_from_slice(&(*len as u64).to_le_bytes());
            text.extend_from_slice(&data[*start..start + len]);
        }
        DataChange::Size(len) => {
            text.push(b's');
            text.extend_from_slice(&len.to_le_bytes());
        }
    }
}

/// What a power cut left: everything in it is durable.
#[derive(Clone, Debug)]
pub struct Image {
    nodes: Nodes,
    /// Which of them have a name.
    named: Vec<bool>,
    next_ino: Ino,
    id: ImageId,
    hash: u64,
    outline: u64,
    origin: Origin,
}

impl Image {
    /// Which image of its snapshot it is.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Number of the last operation before the power cut.
    #[must_use]
    pub fn op(&self) -> u64 {
        self.origin.op
    }

    /// Equal exactly (but for a hash collision) for equal names and contents.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Total length of all files in bytes, each name of a linked file counted once.
    #[must_use]
    pub fn total_len(&self) -> usize {
        let len = |(_, node): (Ino, Arc<Node>)| match node.as_ref() {
            Node::File(file) => in_memory(file.durable.len()),
            Node::Dir(_) => 0,
        };
        self.named_nodes().map(len).sum()
    }

    fn named_nodes(&self) -> impl Iterator<Item = (Ino, Arc<Node>)> {
        let numbered = self.nodes.base.iter().zip(&self.named).enumerate();
        numbered
            .filter(|(_, (_, named))| **named)
            .map(|(at, ((ino, _), _))| (*ino, Arc::clone(self.nodes.at(at))))
    }

    /// A machine with this disk, powered on, with no locks held, no faults planned, not tracing.
    /// Every call gives a disk of its own. Random numbers and the clock follow from the seed and the
    /// content alone, so that the same image behaves the same however it came about; the clock may
    /// therefore have jumped by up to [`CLOCK_JUMP_NS`] either way. Of the content only names, lengths and
    /// what the smallest files hold count here: images that differ in what a recovery throws away are to
    /// recover to the same.
    #[must_use]
    pub fn mount(&self) -> SimDisk {
        let seed = self.origin.seed;
        let clock = CLOCK_START_NS + self.outline % CLOCK_JUMP_NS;
        let tree = Tree::clean(self.named_nodes().collect(), self.next_ino);
        let mut machine = Machine::new(tree, seed, clock);
        machine.random = seed ^ self.outline;
        SimDisk::from_machine(machine)
    }
}
