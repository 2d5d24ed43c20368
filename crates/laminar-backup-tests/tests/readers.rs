//! Whoever reads backups: beside a writer that removes old ones, beside another restore, and where something is damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::sync::Arc;

use futures_util::FutureExt;
use laminar_backup_tests::stores::{Checkpoints, owner, quick, state_in, target, writer};
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::path::Path;
use laminar_storage::backup::object_store::{ObjectStore, ObjectStoreExt};
use laminar_storage::backup::{
    BackupError, BackupOptions, BackupWriter, TransferProgress, list_backups, read_catalog, restore,
    verify_backup,
};
use laminar_storage::ids::BackupId;

/// Does something while a backup is read, on a thread of its own, as another process would.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Two restores into one directory at a time mixed: one gave it its name, and the other went on writing into its files.
#[test]
fn of_two_restores_into_one_directory_the_second_is_refused() {
    let checkpoints = Checkpoints::full(2);
    let [one, other] = [0, 1].map(|at| {
        let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        writer(&place, 1).back_up(&checkpoints.open(at), &[("job.json", at.to_string().as_bytes())]).unwrap();
        target(&place)
    });
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    let mut refused = None;
    restore(&one, None, &at, &quick().concurrency(1), |_| {
        refused.get_or_insert_with(|| elsewhere(|| restore(&other, None, &at, &quick(), |_| {})));
    })
    .unwrap();
    let error = refused.unwrap().unwrap_err();
    assert!(
        matches!(error, BackupError::InvalidInput(_)) && error.to_string().contains("another restore"),
        "{error}"
    );
    assert_eq!(state_in(&at), *checkpoints.state(0));
    assert_eq!(std::fs::read(at.join("job.json")).unwrap(), b"0");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["restored"]);
}

/// A file of the program was looked at chunk by chunk as it was fetched, and never again.
#[test]
fn a_restored_file_that_is_not_what_was_backed_up_is_found() {
    let checkpoints = Checkpoints::full(1);
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    writer(&place, 1).back_up(&checkpoints.open(0), &[("job.json", b"what to do")]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    let change = |progress: TransferProgress| {
        if progress.bytes_done == progress.bytes_total {
            std::fs::write(dir.path().join("restored.unfinished/job.json"), b"not to do!").unwrap();
        }
    };
    let error = restore(&target(&place), None, &at, &quick(), change).unwrap_err();
    assert!(
        matches!(error, BackupError::Local(_)) && error.to_string().contains("job.json") && !at.exists(),
        "{error}"
    );
    // As it says: the same again fetches what was changed.
    let receipt = restore(&target(&place), None, &at, &quick(), |_| {}).unwrap();
    assert_eq!(receipt.bytes_fetched, 10, "{receipt:?}");
    assert_eq!(std::fs::read(at.join("job.json")).unwrap(), b"what to do");
}

/// A place where a newer backup takes the place of the only one, while somebody reads that.
struct InUse {
    /// Names the file of the program in each backup.
    name: fn(usize) -> String,
    checkpoints: Checkpoints,
    place: Arc<dyn ObjectStore>,
    writer: BackupWriter,
    made: usize,
}

impl InUse {
    fn new(checkpoints: Checkpoints, name: fn(usize) -> String) -> Self {
        let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let options = quick().chunk_bytes(50).keep(1);
        let writer = BackupWriter::open(&target(&place), &options, owner(1, 1)).unwrap();
        let mut made = Self { name, checkpoints, place, writer, made: 0 };
        made.back_up();
        made
    }

    fn back_up(&mut self) {
        let name = (self.name)(self.made);
        self.writer.back_up(&self.checkpoints.open(self.made), &[(&name, b"7")]).unwrap();
        self.made += 1;
    }

    fn newest(&self) -> BackupId {
        self.writer.newest().unwrap()
    }
}

fn one_at_a_time() -> BackupOptions {
    quick().concurrency(1).attempts(4, std::time::Duration::ZERO)
}

/// It was said to be damaged, and `laminar backups --verify` counted it as that.
#[test]
fn a_backup_that_newer_ones_replace_while_it_is_verified_is_not_damaged() {
    let mut used = InUse::new(Checkpoints::full(20), |_| "job.json".to_owned());
    let (place, first) = (target(&used.place), used.newest());
    let told = verify_backup(&place, Some(first), &one_at_a_time(), |_| {
        elsewhere(|| used.back_up());
    });
    let error = told.unwrap_err();
    assert!(matches!(error, BackupError::NotFound(_)), "{error}");
    assert!(error.to_string().contains("backup 2 was removed while it was read"), "{error}");
    // The newest, whichever it is: after that one there are no more.
    let mut more = 3;
    let told = verify_backup(&place, None, &one_at_a_time(), |_| {
        if more > 0 {
            elsewhere(|| used.back_up());
            more -= 1;
        }
    });
    assert_eq!(told.unwrap().id, used.newest());
}

/// It failed as damaged, and did so again as long as the writer went on.
#[test]
fn a_restore_of_the_newest_backup_goes_on_with_the_newest_when_that_is_replaced() {
    let mut used = InUse::new(Checkpoints::new(9), |number| format!("file-of-{number}"));
    let place = target(&used.place);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    let mut more = 3;
    let receipt = restore(&place, None, &at, &one_at_a_time(), |_| {
        if more > 0 {
            elsewhere(|| used.back_up());
            more -= 1;
        }
    })
    .unwrap();
    assert_eq!((receipt.id, used.made), (used.newest(), 4));
    assert_eq!(state_in(&at), *used.checkpoints.state(3));
    // What they share is not fetched again, and nothing else is there of those that it began with.
    assert!(receipt.bytes_kept > receipt.bytes / 2, "{receipt:?}");
    assert!(at.join("file-of-3").exists() && !at.join("file-of-0").exists());
}

/// With a backup for every chunk there is no end to that; what is said is true, and what was fetched stays.
#[test]
fn a_restore_that_takes_longer_than_a_backup_is_kept_says_so() {
    let mut used = InUse::new(Checkpoints::full(60), |_| "job.json".to_owned());
    let place = target(&used.place);
    let dir = tempfile::tempdir().unwrap();
    for named in [false, true] {
        let at = dir.path().join(named.to_string());
        let id = named.then(|| used.newest());
        let error = restore(&place, id, &at, &one_at_a_time(), |_| elsewhere(|| used.back_up())).unwrap_err();
        assert!(matches!(error, BackupError::NotFound(_)) && !at.exists(), "{error}");
        let said = error.to_string();
        assert!(said.contains("was removed while it was read") && said.contains("keep"), "{error}");
        // Once the writer is slower, whatever is left there becomes the newest.
        let receipt = restore(&place, None, &at, &one_at_a_time(), |_| {}).unwrap();
        assert_eq!(receipt.id, used.newest());
        assert_eq!(state_in(&at), *used.checkpoints.state(used.made - 1));
    }
}

fn change(inner: &InMemory, path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let read = inner.get(path).now_or_never().unwrap().unwrap().bytes().now_or_never().unwrap().unwrap();
    let mut bytes = read.to_vec();
    how(&mut bytes);
    inner.put(path, bytes.into()).now_or_never().unwrap().unwrap();
}

/// One damaged record of an older backup kept everybody from listing the others, and so from choosing one.
#[test]
fn a_damaged_record_of_an_older_backup_hides_no_other() {
    let checkpoints = Checkpoints::full(3);
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let mut writer = writer(&place, 1);
    let ids: Vec<_> = (0..3).map(|at| writer.back_up(&checkpoints.open(at), &[]).unwrap().id).collect();
    let place = target(&place);
    let path = Path::from(format!("a/prefix/log/{:016x}.json", ids[1].get()));
    let listed =
        || list_backups(&place, &quick()).unwrap().iter().map(|backup| backup.id).collect::<Vec<_>>();
    assert_eq!(listed(), ids);
    change(&inner, &path, |bytes| bytes[100] ^= 1);
    for what in ["checksum is wrong", "is missing"] {
        assert_eq!(listed(), [ids[0], ids[2]]);
        let catalog = read_catalog(&place, &quick()).unwrap();
        assert_eq!(catalog.backups.len(), 2);
        let [(damaged, error)] = &catalog.damaged[..] else { panic!("{:?}", catalog.damaged) };
        assert_eq!(*damaged, ids[1]);
        assert!(matches!(error, BackupError::Corruption(_)) && error.to_string().contains(what), "{error}");
        for (at, id) in [(0, ids[0]), (2, ids[2])] {
            let dir = tempfile::tempdir().unwrap();
            verify_backup(&place, Some(id), &quick(), |_| {}).unwrap();
            restore(&place, Some(id), dir.path().join("a"), &quick(), |_| {}).unwrap();
            assert_eq!(state_in(&dir.path().join("a")), *checkpoints.state(at));
        }
        inner.delete(&path).now_or_never().unwrap().ok();
    }
}
