//! Each rule of the module documentation, pinned.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::vfs::{
    Access, FileKind, Vfs, VfsFile, create_dir_durably, read_small_file, replace_file_durably, write_all_at,
};

mod crash;
mod fault;
mod speed;

fn path(text: &str) -> &Path {
    Path::new(text)
}

/// A disk with one durable file in the root directory.
fn disk_with(name: &str, bytes: &[u8]) -> (SimDisk, Arc<dyn VfsFile>) {
    let disk = SimDisk::new(1);
    disk.overwrite(name, bytes).unwrap();
    let file = disk.open(path(name), Access::ReadWrite).unwrap();
    (disk, file)
}

/// What `look` finds over all images of the disk as it is now.
fn outcomes<T: Ord>(disk: &SimDisk, look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    let images = disk.snapshot().images(&ImagePolicy::default());
    images.map(|image| look(&image.mount())).collect()
}

/// The file's content as text, `None` when it has no name.
fn text(disk: &SimDisk, name: &str) -> Option<String> {
    let bytes = disk.read_file(name).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[test]
fn a_running_program_sees_what_it_did() {
    let disk = SimDisk::new(1);
    create_dir_durably(&disk, path("a/b")).unwrap();
    let file = disk.create_new(path("a/b/f")).unwrap();
    write_all_at(file.as_ref(), &[7; 1000], 100).unwrap();
    assert_eq!(file.size().unwrap(), 1100);
    let mut bytes = [1; 200];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 200);
    assert_eq!((bytes[99], bytes[100]), (0, 7));
    assert_eq!(file.read_at(&mut bytes, 1090).unwrap(), 10);
    assert_eq!(file.read_at(&mut bytes, 1100).unwrap(), 0);
    file.set_len(10).unwrap();
    file.set_len(20).unwrap();
    assert_eq!(read_small_file(&disk, path("a/b/f"), 100).unwrap(), [0; 20]);
    disk.hard_link(path("a/b/f"), path("a/g")).unwrap();
    disk.remove_file(path("a/b/f")).unwrap();
    let names = disk.read_dir(path("a")).unwrap();
    let expected = [("b", FileKind::Dir), ("g", FileKind::File { len: 20 })];
    assert_eq!(names, expected.map(|(n, k)| (n.to_owned(), k)));
    disk.remove_dir(path("a/b")).unwrap();
    assert_eq!(disk.kind(path("a/b")).unwrap(), None);
    write_all_at(file.as_ref(), b"x", 0).unwrap();
    assert_eq!(disk.files(), [("a/g".into(), 20)]);
}

#[test]
fn errors_are_those_of_the_system() {
    use io::ErrorKind::*;
    let (disk, _) = disk_with("f", b"1");
    disk.create_dir(path("d")).unwrap();
    disk.create_new(path("d/x")).unwrap();
    let kind = |e: io::Error| e.kind();
    assert_eq!(kind(disk.create_new(path("f")).unwrap_err()), AlreadyExists);
    assert_eq!(kind(disk.create_dir(path("d")).unwrap_err()), AlreadyExists);
    assert_eq!(kind(disk.open(path("n"), Access::Read).unwrap_err()), NotFound);
    assert_eq!(kind(disk.open(path("d"), Access::Read).unwrap_err()), IsADirectory);
    assert_eq!(kind(disk.create_new(path("n/f")).unwrap_err()), NotFound);
    assert_eq!(kind(disk.create_new(path("f/f")).unwrap_err()), NotADirectory);
    assert_eq!(kind(disk.remove_dir(path("d")).unwrap_err()), DirectoryNotEmpty);
    assert_eq!(kind(disk.remove_file(path("d")).unwrap_err()), IsADirectory);
    assert_eq!(kind(disk.remove_dir(path("f")).unwrap_err()), NotADirectory);
    assert_eq!(kind(disk.rename(path("n"), path("m")).unwrap_err()), NotFound);
    assert_eq!(kind(disk.rename(path("f"), path("d")).unwrap_err()), IsADirectory);
    assert_eq!(kind(disk.rename(path("d"), path("f")).unwrap_err()), NotADirectory);
    assert_eq!(kind(disk.rename(path("d"), path("d/y")).unwrap_err()), InvalidInput);
    assert_eq!(kind(disk.hard_link(path("f"), path("d/x")).unwrap_err()), AlreadyExists);
    assert_eq!(kind(disk.sync_dir(path("f")).unwrap_err()), NotADirectory);
    assert_eq!(kind(disk.open(path("../f"), Access::Read).unwrap_err()), InvalidInput);
    let reader = disk.open(path("/f"), Access::Read).unwrap();
    assert!(reader.write_at(b"x", 0).is_err());
}

#[test]
fn a_lock_excludes_until_dropped_and_dies_with_the_machine() {
    let disk = SimDisk::new(1);
    let guard = disk.lock(path("LOCK")).unwrap();
    let again = disk.lock(path("LOCK")).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
    assert!(disk.snapshot().restart().lock(path("LOCK")).is_ok());
    assert!(disk.snapshot().flushed().mount().lock(path("LOCK")).is_ok());
    drop(guard);
    let guard = disk.lock(path("LOCK")).unwrap();
    assert_eq!(disk.files(), [("LOCK".into(), 0)]);
    drop(guard);
}

#[test]
fn same_seed_same_run() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        create_dir_durably(&disk, path("d")).unwrap();
        let random = disk.random_u64();
        let bytes = random.to_le_bytes();
        replace_file_durably(&disk, path("d"), "f", &bytes[..(random % 7) as usize]).unwrap();
        (disk.trace_hash(), random, disk.now_ns(), disk)
    };
    let (first, again, other) = (run(1), run(1), run(3));
    assert_eq!((first.0, first.1, first.2), (again.0, again.1, again.2));
    assert_ne!(first.1, other.1);
    assert_ne!(first.0, other.0);
    let hashes = |disk: &SimDisk| -> Vec<u64> {
        let images = disk.snapshot().images(&ImagePolicy::default());
        images.map(|i| i.hash()).collect()
    };
    assert_eq!(hashes(&first.3), hashes(&again.3));
}

#[test]
fn the_trace_is_readable_and_counts() {
    let disk = SimDisk::new(1);
    let dir = path("d");
    disk.create_dir(dir).unwrap();
    replace_file_durably(&disk, dir, "f", b"abc").unwrap();
    let lines: Vec<String> = disk.trace().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "1 mkdir d = 0",
            "0 stat d/f.tmp = 0",
            "2 create d/f.tmp = 0",
            "3 pwrite d/f.tmp 0+3 = 3",
            "4 fdatasync d/f.tmp = 0",
            "5 rename d/f.tmp -> d/f = 0",
            "6 fsync d = 0",
        ]
    );
    let stats = disk.stats();
    assert_eq!((stats.sync_data, stats.sync_dir), (1, 1));
    assert_eq!((stats.writes, stats.bytes_written), (1, 3));
    assert_eq!(disk.ops(), 6);
    assert!(disk.open(path("n"), Access::Read).is_err());
    let last = disk.trace().pop().unwrap().to_string();
    assert_eq!(last, "0 open n ! entity not found");
}

#[test]
fn damage_is_durable_at_once_and_leaves_no_trace() {
    let (disk, _) = disk_with("f", b"abc");
    disk.flip_bit("f", 9).unwrap();
    assert_eq!(disk.read_file("f").unwrap(), b"a`c");
    assert!(disk.flip_bit("f", 24).is_err());
    disk.patch("f", 2, b"xyz").unwrap();
    disk.copy("f", "g").unwrap();
    disk.truncate("f", 1).unwrap();
    assert_eq!(disk.files(), [("f".into(), 1), ("g".into(), 5)]);
    assert_eq!(outcomes(&disk, |d| text(d, "g")), [Some("a`xyz".to_owned())].into());
    disk.remove("g").unwrap();
    assert_eq!(disk.files().len(), 1);
    assert_eq!(disk.ops(), 0);
    assert_eq!(disk.trace().len(), 1, "only the open");
}

#[test]
fn history_has_the_disk_after_every_change() {
    let disk = SimDisk::new(1);
    disk.record(true);
    replace_file_durably(&disk, path("/"), "f", b"abc").unwrap();
    let history = disk.history();
    let ops: Vec<u64> = history.iter().map(Snapshot::op).collect();
    assert_eq!(ops, [0, 1, 2, 3, 4, 5]);
    assert!(history[0].last_op().is_none());
    assert_eq!(history[2].last_op().unwrap().call, "pwrite");
    assert_eq!(history[2].flushed().mount().files(), [("f.tmp".into(), 3)]);
    assert_eq!(history[5].pending(), 0);
    assert!(history[5].is_clean() && !history[4].is_clean());
    let hashes: BTreeSet<u64> = history.iter().map(Snapshot::hash).collect();
    assert_eq!(hashes.len(), 6);
    let killed = history[4].restart();
    assert_eq!(killed.snapshot().hash(), history[4].hash());
    assert_eq!(killed.files(), [("f".into(), 3)]);
    assert!(killed.snapshot().pending() > 0, "a kill makes nothing durable");
}

#[test]
fn an_image_can_be_made_again_from_its_name() {
    let (disk, file) = disk_with("f", &[1; 2000]);
    write_all_at(file.as_ref(), &[2; 3000], 100).unwrap();
    disk.create_new(path("g")).unwrap();
    let snapshot = disk.snapshot();
    let mut names = BTreeSet::new();
    for image in snapshot.images(&ImagePolicy::default()) {
        let name = image.id().to_string();
        let again = snapshot.image(&name.parse().unwrap());
        assert_eq!(again.hash(), image.hash(), "{name}");
        assert!(names.insert(name));
    }
    assert!(names.iter().any(|n| n.contains("head")));
    assert!(names.iter().any(|n| n.contains("garbage")));
    assert!("pick:zz".parse::<ImageId>().is_err());
    assert!("torn:1".parse::<ImageId>().is_err());
}
