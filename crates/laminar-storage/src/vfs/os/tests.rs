use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::vfs::{read_exact_at, read_up_to_at, replace_file_durably, write_all_at};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_are_private_and_hold_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let path = dir.path().join("a");
    let file = vfs.create_new(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    write_all_at(file.as_ref(), b"hello", 3).unwrap();
    assert_eq!(file.size().unwrap(), 8);
    let mut bytes = [9; 8];
    read_exact_at(file.as_ref(), &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"\0\0\0hello");
    file.sync_data().unwrap();
    file.set_len(4).unwrap();
    assert_eq!(read_up_to_at(file.as_ref(), &mut bytes, 2).unwrap(), 2);
    let short = read_exact_at(file.as_ref(), &mut bytes, 0).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.read_at(&mut bytes, 100).unwrap(), 0);
    assert_eq!(vfs.create_new(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let reader = vfs.open(&path, Access::Read).unwrap();
    assert!(reader.write_at(b"x", 0).is_err());
    let writer = vfs.open(&path, Access::ReadWrite).unwrap();
    assert_eq!(writer.write_at(b"x", 0).unwrap(), 1);
}

#[test]
fn a_file_counts_what_is_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let files: Vec<_> = ["a", "b"].map(|name| vfs.create_new(&dir.path().join(name)).unwrap()).into();
    write_all_at(files[0].as_ref(), b"hello", 3).unwrap();
    write_all_at(files[0].as_ref(), b"you", 0).unwrap();
    assert_eq!((files[0].unsynced_bytes(), files[1].unsynced_bytes()), (8, 0));
    assert!(vfs.sync_many(&files).iter().all(Result::is_ok));
    assert_eq!(files[0].unsynced_bytes(), 0);
    let reader = vfs.open(&dir.path().join("a"), Access::Read).unwrap();
    reader.write_at(b"x", 0).unwrap_err();
    write_all_at(files[0].as_ref(), b"hello", 0).unwrap();
    assert_eq!((files[0].unsynced_bytes(), reader.unsynced_bytes()), (5, 0), "each handle its own");
    files[0].sync_data().unwrap();
    assert_eq!(files[0].unsynced_bytes(), 0);
}

#[test]
fn how_many_bytes_a_batch_has_is_known_to_whom_chooses_how_it_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let files: Vec<_> = ["a", "b"].map(|name| vfs.create_new(&dir.path().join(name)).unwrap()).into();
    let large = vec![7; 1 << 20];
    for (bytes, tries) in [(&large[..], (1, 0)), (&large[..100], (1, 1)), (&large[..200], (1, 2))] {
        files.iter().for_each(|file| write_all_at(file.as_ref(), bytes, 0).unwrap());
        assert!(vfs.sync_many(&files).iter().all(Result::is_ok));
        assert_eq!((vfs.pool.tries(2, 2 << 20), vfs.pool.tries(2, 200)), tries);
    }
}

#[test]
fn missing_files_are_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let path = dir.path().join("none");
    let not_found = |e: io::Error| assert_eq!(e.kind(), io::ErrorKind::NotFound);
    not_found(vfs.open(&path, Access::Read).unwrap_err());
    not_found(vfs.remove_file(&path).unwrap_err());
    not_found(vfs.remove_dir(&path).unwrap_err());
    not_found(vfs.read_dir(&path).unwrap_err());
    not_found(vfs.sync_dir(&path).unwrap_err());
    not_found(vfs.rename(&path, &dir.path().join("b")).unwrap_err());
    not_found(vfs.hard_link(&path, &dir.path().join("b")).unwrap_err());
    not_found(vfs.create_dir(&path.join("child")).unwrap_err());
    assert_eq!(vfs.kind(&path).unwrap(), None);
}

#[test]
fn directories_list_rename_link_and_remove() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let sub = dir.path().join("sub");
    vfs.create_dir(&sub).unwrap();
    assert_eq!(mode(&sub), 0o700);
    let file = vfs.create_new(&sub.join("b")).unwrap();
    write_all_at(file.as_ref(), b"abc", 0).unwrap();
    vfs.hard_link(&sub.join("b"), &sub.join("a")).unwrap();
    vfs.create_dir(&sub.join("d")).unwrap();
    symlink("a", sub.join("c")).unwrap();
    let names = vfs.read_dir(&sub).unwrap();
    assert_eq!(
        names,
        vec![
            ("a".to_owned(), FileKind::File { len: 3 }),
            ("b".to_owned(), FileKind::File { len: 3 }),
            ("c".to_owned(), FileKind::Other),
            ("d".to_owned(), FileKind::Dir),
        ]
    );
    vfs.rename(&sub.join("b"), &sub.join("e")).unwrap();
    assert_eq!(vfs.kind(&sub.join("b")).unwrap(), None);
    assert_eq!(vfs.kind(&sub.join("e")).unwrap(), Some(FileKind::File { len: 3 }));
    vfs.sync_dir(&sub).unwrap();
    assert!(vfs.remove_dir(&sub).is_err());
    for name in ["a", "c", "e"] {
        vfs.remove_file(&sub.join(name)).unwrap();
    }
    vfs.remove_dir(&sub.join("d")).unwrap();
    vfs.remove_dir(&sub).unwrap();
    assert_eq!(vfs.kind(&sub).unwrap(), None);
}

#[test]
fn only_regular_files_are_opened_and_links_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    let target = dir.path().join("target");
    vfs.create_new(&target).unwrap();
    let link = dir.path().join("link");
    symlink(&target, &link).unwrap();
    for access in [Access::Read, Access::ReadWrite] {
        assert!(vfs.open(&link, access).is_err());
        assert_eq!(vfs.open(dir.path(), access).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }
    assert!(vfs.lock(&link).is_err());
    assert!(vfs.create_new(&link).is_err());
    assert_eq!(vfs.kind(&link).unwrap(), Some(FileKind::Other));
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nowhere"), &dangling).unwrap();
    assert!(vfs.lock(&dangling).is_err());
    assert_eq!(vfs.kind(&dir.path().join("nowhere")).unwrap(), None);
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    assert_eq!(vfs.open(&fifo, Access::Read).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_lock_excludes_until_its_guard_is_dropped_and_leaves_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("LOCK");
    let vfs = OsVfs::new();
    let guard = vfs.lock(&path).unwrap();
    assert_eq!(OsVfs::new().lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    let again = vfs.lock(&path).unwrap();
    drop(again);
    assert_eq!(vfs.kind(&path).unwrap(), Some(FileKind::File { len: 0 }));
    assert_eq!(mode(&path), 0o600);
}

/// Fails when its number is odd, panics on request.
#[derive(Debug)]
struct Scripted {
    number: usize,
    calls: Arc<AtomicUsize>,
}

impl VfsFile for Scripted {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }
    fn size(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(self.number != 77, "told to panic");
        if self.number % 2 == 1 {
            return Err(io::Error::other(self.number.to_string()));
        }
        Ok(())
    }
}

#[test]
fn sync_many_answers_for_each_file_in_order() {
    let vfs = OsVfs::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let mut expected = 0;
    for count in [0, 1, 2, 5, 40, 3] {
        let files: Vec<Arc<dyn VfsFile>> = (0..count)
            .map(|number| Arc::new(Scripted { number, calls: Arc::clone(&calls) }) as Arc<dyn VfsFile>)
            .collect();
        let results = vfs.clone().sync_many(&files);
        assert_eq!(results.len(), count);
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => assert_eq!(number % 2, 0),
                Err(e) => assert_eq!(e.to_string(), number.to_string()),
            }
        }
        expected += count;
        assert_eq!(calls.load(Ordering::Relaxed), expected, "synced once each");
    }
}

#[test]
fn a_panicking_sync_is_a_failed_sync() {
    let calls = Arc::new(AtomicUsize::new(0));
    let file = |number| Arc::new(Scripted { number, calls: Arc::clone(&calls) }) as Arc<dyn VfsFile>;
    let results = OsVfs::new().sync_many(&[file(0), file(77), file(2)]);
    assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
}

#[test]
fn sync_many_from_several_threads_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (vfs, dir) = (vfs.clone(), dir.path());
            scope.spawn(move || {
                let files: Vec<_> =
                    (0..4).map(|n| vfs.create_new(&dir.join(format!("{thread}-{n}"))).unwrap()).collect();
                for round in 0..5_u8 {
                    for file in &files {
                        write_all_at(file.as_ref(), &[round; 100], 0).unwrap();
                    }
                    assert!(vfs.sync_many(&files).iter().all(Result::is_ok));
                }
            });
        }
    });
}

#[test]
fn replacing_a_file_and_the_clock_and_randomness() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = OsVfs::new();
    replace_file_durably(&vfs, dir.path(), "CURRENT", b"one").unwrap();
    replace_file_durably(&vfs, dir.path(), "CURRENT", b"two").unwrap();
    assert_eq!(std::fs::read(dir.path().join("CURRENT")).unwrap(), b"two");
    assert_eq!(vfs.read_dir(dir.path()).unwrap().len(), 1);
    assert!(vfs.now_ns() > 1_600_000_000_000_000_000);
    assert_ne!(vfs.random_u64(), vfs.random_u64());
}

/// The name is gone at once, of a link only the link; what is held open of it, soon.
#[test]
fn a_file_that_is_removed_lazily_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (vfs, path) = (OsVfs::new(), dir.path().join("f"));
    let held = || {
        let open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        open.filter(|target| target.starts_with(dir.path())).count()
    };
    for round in 0..20 {
        vfs.create_new(&path).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        vfs.remove_file_lazily(&dir.path().join("link")).unwrap();
        assert!(path.exists(), "{round}");
        vfs.remove_file_lazily(&path).unwrap();
        assert_eq!(vfs.kind(&path).unwrap(), None);
        assert_eq!(vfs.remove_file_lazily(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    let since = std::time::Instant::now();
    while held() > 0 {
        assert!(since.elapsed() < std::time::Duration::from_secs(60), "{} are held", held());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
