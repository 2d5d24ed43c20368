//! What a writer makes of a place that is damaged, too small, out of reach, or not its own any more: a backup that is
//! confirmed is whole, and what a failed attempt left neither stays nor is begun anew for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, TryStreamExt};
use laminar_backup_tests::faults::{Fault, Faulty, Kind};
use laminar_backup_tests::stores::{Checkpoints, owner, quick, restored, target, writer};
use laminar_storage::Store;
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::path::Path;
use laminar_storage::backup::object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use laminar_storage::backup::{
    BackupError, BackupTarget, BackupWriter, list_backups, restore, verify_backup,
};

fn all(inner: &Arc<InMemory>) -> Vec<ObjectMeta> {
    inner.list(None).try_collect::<Vec<_>>().now_or_never().unwrap().unwrap()
}

fn bytes_in(inner: &Arc<InMemory>) -> u64 {
    all(inner).iter().map(|meta| meta.size).sum()
}

fn chunks(inner: &Arc<InMemory>) -> Vec<ObjectMeta> {
    all(inner).into_iter().filter(|meta| meta.location.as_ref().contains("/files/")).collect()
}

fn get(inner: &Arc<InMemory>, path: &Path) -> bytes::Bytes {
    inner.get(path).now_or_never().unwrap().unwrap().bytes().now_or_never().unwrap().unwrap()
}

fn put(inner: &Arc<InMemory>, path: &Path, bytes: Vec<u8>) {
    inner.put(path, bytes.into()).now_or_never().unwrap().unwrap();
}

fn remove(inner: &Arc<InMemory>, path: &Path) {
    inner.delete(path).now_or_never().unwrap().unwrap();
}

/// All backups that count are whole.
fn all_whole(place: &Arc<dyn ObjectStore>) {
    for backup in list_backups(&target(place), &quick()).unwrap() {
        verify_backup(&target(place), Some(backup.id), &quick(), |_| {}).unwrap();
    }
}

/// An object that a rule of the bucket, or a human, removed or cut off was taken for the file that it had been: every later
/// backup referred to it, and was confirmed.
#[test]
fn a_backup_after_an_object_was_lost_is_whole() {
    let checkpoints = Checkpoints::new(3);
    // By the writer itself, and by the next opening of its store; of another checkpoint, and of the same.
    for (life, at, cut) in [(1, 1, false), (2, 1, false), (1, 0, false), (2, 0, false), (1, 0, true)] {
        let inner = Arc::new(InMemory::new());
        let place: Arc<dyn ObjectStore> = inner.clone();
        let mut first = writer(&place, 1);
        first.back_up(&checkpoints.open(0), &[("job.json", b"what to do")]).unwrap();
        for victim in chunks(&inner) {
            if cut {
                let bytes = get(&inner, &victim.location).to_vec();
                put(&inner, &victim.location, bytes[..bytes.len() / 2].to_vec());
            } else {
                remove(&inner, &victim.location);
            }
        }
        verify_backup(&target(&place), None, &quick(), |_| {}).unwrap_err();
        let mut next = if life == 1 { first } else { writer(&place, life) };
        let receipt = next.back_up(&checkpoints.open(at), &[("job.json", b"what to do")]).unwrap();
        assert!(receipt.is_new && receipt.files_sent > 0, "life {life}, {at}: {receipt:?}");
        verify_backup(&target(&place), None, &quick(), |_| {}).unwrap();
        assert_eq!(restored(&place), *checkpoints.state(at), "life {life}, {at}");
    }
}

/// Damage that leaves an object as long as it was is not in any listing: a backup that relies on nothing that is there is whole.
#[test]
fn a_backup_that_sends_all_is_whole_after_any_damage() {
    let checkpoints = Checkpoints::new(3);
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let own: [(&str, &[u8]); 1] = [("job.json", b"what to do")];
    writer(&place, 1).back_up(&checkpoints.open(1), &own).unwrap();
    for victim in chunks(&inner) {
        let bytes = get(&inner, &victim.location).iter().map(|byte| !byte).collect();
        put(&inner, &victim.location, bytes);
    }
    let error = verify_backup(&target(&place), None, &quick(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("laminar backup --full"), "{error}");
    let options = quick().send_all(true);
    let mut second = BackupWriter::open(&target(&place), &options, owner(1, 2)).unwrap();
    let receipt = second.back_up(&checkpoints.open(1), &own).unwrap();
    assert!(receipt.is_new && receipt.bytes_sent == receipt.bytes, "{receipt:?}");
    verify_backup(&target(&place), None, &quick(), |_| {}).unwrap();
    assert_eq!(restored(&place), *checkpoints.state(1));
    // What this opening sent is not sent again.
    let again = second.back_up(&checkpoints.open(1), &own).unwrap();
    assert_eq!((again.is_new, again.files_sent), (false, 0), "{again:?}");
    let next = second.back_up(&checkpoints.open(2), &own).unwrap();
    assert!(next.files_sent < next.files, "{next:?}");
}

/// A place with room for one and a half backups: what an attempt left that was killed took the room from every later one.
#[test]
fn what_a_failed_attempt_left_does_not_take_the_room_from_the_next() {
    let checkpoints = Checkpoints::of_size(1, 60, 400);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    writer(&plain, 1).back_up(&checkpoints.open(0), &[]).unwrap();
    let need = bytes_in(&inner);
    let inner = Arc::new(InMemory::new());
    let watched = Arc::clone(&inner);
    let dies: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, _| {
        let is_late = kind == Kind::Put && bytes_in(&watched) > need * 8 / 10;
        if is_late { Fault::Dead } else { Fault::None }
    });
    writer(&dies, 1).back_up(&checkpoints.open(0), &[]).unwrap_err();
    assert!(bytes_in(&inner) > need / 2, "too early to leave much");
    let watched = Arc::clone(&inner);
    let full: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
        let is_chunk = kind == Kind::Put && path.as_ref().contains("/files/");
        if is_chunk && bytes_in(&watched) + 700 > need * 3 / 2 { Fault::Before } else { Fault::None }
    });
    let mut second = writer(&full, 2);
    second.back_up(&checkpoints.open(0), &[]).unwrap();
    assert_eq!(restored(&full), *checkpoints.state(0));
}

/// A network that breaks off again and again: each attempt began at the first chunk, under new names, so that there was never
/// a backup and ever more litter.
#[test]
fn the_next_attempt_goes_on_from_what_was_put() {
    let checkpoints = Checkpoints::of_size(8, 60, 400);
    let inner = Arc::new(InMemory::new());
    let count = AtomicUsize::new(0);
    let faulty = Faulty::new(&inner, move |_, kind, path| {
        if kind != Kind::Put || !path.as_ref().contains("/files/") {
            return Fault::None;
        }
        // So many chunks, then nothing until the attempt is given up.
        if count.fetch_add(1, Ordering::SeqCst) % 48 >= 40 { Fault::Before } else { Fault::None }
    });
    let place: Arc<dyn ObjectStore> = faulty.clone();
    let mut writer = BackupWriter::open(&target(&place), &quick().concurrency(1), owner(1, 1)).unwrap();
    let reader = checkpoints.open(7);
    let mut failed = 0;
    let receipt = loop {
        match writer.back_up(&reader, &[]) {
            Ok(receipt) => break receipt,
            Err(error) => assert!(matches!(error, BackupError::Unreachable(_)), "{error}"),
        }
        failed += 1;
        assert!(failed < 12, "every attempt begins anew");
    };
    assert!(failed > 0, "nothing was interrupted");
    assert_eq!(restored(&place), *checkpoints.state(7));
    // Nothing was put twice, and nothing is left over.
    let bytes: u64 = chunks(&inner).iter().map(|meta| meta.size).sum();
    assert_eq!(receipt.bytes, bytes, "{receipt:?}");
    let puts = faulty
        .operations()
        .iter()
        .filter(|(kind, path)| *kind == Kind::Put && path.as_ref().contains("/files/"))
        .count();
    assert_eq!(puts, chunks(&inner).len() + failed * 8);
}

/// A record whose put was given up, and which the object store carries out later, counts then: what it needs must still be
/// there, and what was confirmed meanwhile must be what is restored.
#[test]
fn a_record_that_lands_late_takes_nothing_from_anybody() {
    let checkpoints = Checkpoints::full(4);
    let inner = Arc::new(InMemory::new());
    let stage = Arc::new(AtomicUsize::new(0));
    let stolen: Arc<Mutex<Option<(Path, bytes::Bytes)>>> = Arc::default();
    let (now, took, under) = (Arc::clone(&stage), Arc::clone(&stolen), Arc::clone(&inner));
    let faulty: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
        match now.load(Ordering::SeqCst) {
            // What is to be swept cannot be listed.
            1 if kind == Kind::List => Fault::Before,
            // The put of the record is under way for long: here it is carried out, and taken back until later.
            2 if kind == Kind::Put && path.as_ref().contains("/log/") => {
                let mut took = took.lock().unwrap();
                if took.is_none() && under.head(path).now_or_never().unwrap().is_ok() {
                    *took = Some((path.clone(), get(&under, path)));
                    remove(&under, path);
                }
                if took.is_none() { Fault::LostReply } else { Fault::Before }
            }
            _ => Fault::None,
        }
    });
    let mut first = writer(&faulty, 1);
    stage.store(1, Ordering::SeqCst);
    first.back_up(&checkpoints.open(0), &[]).unwrap();
    stage.store(2, Ordering::SeqCst);
    let error = first.back_up(&checkpoints.open(1), &[]).unwrap_err();
    assert!(matches!(error, BackupError::Unreachable(_)), "{error}");
    stage.store(3, Ordering::SeqCst);
    // What counts holds this already, but the other record may yet come.
    let receipt = first.back_up(&checkpoints.open(0), &[]).unwrap();
    assert!(receipt.is_new, "{receipt:?}");
    let (path, bytes) = stolen.lock().unwrap().take().unwrap();
    let late = inner.put_opts(&path, bytes.into(), PutMode::Create.into()).now_or_never().unwrap();
    assert!(late.is_err(), "its place is taken");
    all_whole(&faulty);
    assert_eq!(restored(&faulty), *checkpoints.state(0));
    for at in [1, 2, 1, 2, 3, 0] {
        first.back_up(&checkpoints.open(at), &[]).unwrap();
        all_whole(&faulty);
        assert_eq!(restored(&faulty), *checkpoints.state(at));
    }
    // It is settled, and what it needed is needed no more: each of the three backups has a file.
    let chunks = chunks(&inner);
    let object = |meta: &ObjectMeta| meta.location.as_ref().rsplit_once('-').unwrap().0.to_owned();
    assert_eq!(chunks.iter().map(object).collect::<BTreeSet<_>>().len(), 3, "{chunks:?}");
}

/// As long as such a record can come, an attempt that fails again sweeps nothing that it needs.
#[test]
fn what_a_record_needs_that_may_land_late_is_not_swept() {
    let checkpoints = Checkpoints::full(3);
    let inner = Arc::new(InMemory::new());
    let stage = Arc::new(AtomicUsize::new(0));
    let stolen: Arc<Mutex<Option<(Path, bytes::Bytes)>>> = Arc::default();
    let (now, took, under) = (Arc::clone(&stage), Arc::clone(&stolen), Arc::clone(&inner));
    let faulty: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
        let is_record = kind == Kind::Put && path.as_ref().contains("/log/");
        match now.load(Ordering::SeqCst) {
            1 if is_record => {
                let mut took = took.lock().unwrap();
                if took.is_none() && under.head(path).now_or_never().unwrap().is_ok() {
                    *took = Some((path.clone(), get(&under, path)));
                    remove(&under, path);
                }
                if took.is_none() { Fault::LostReply } else { Fault::Before }
            }
            2 if is_record => Fault::Before,
            _ => Fault::None,
        }
    });
    let mut first = writer(&faulty, 1);
    first.back_up(&checkpoints.open(0), &[]).unwrap();
    stage.store(1, Ordering::SeqCst);
    first.back_up(&checkpoints.open(1), &[]).unwrap_err();
    stage.store(2, Ordering::SeqCst);
    // It sweeps before it sends, and fails again.
    first.back_up(&checkpoints.open(2), &[]).unwrap_err();
    first.back_up(&checkpoints.open(0), &[]).unwrap_err();
    let (path, bytes) = stolen.lock().unwrap().take().unwrap();
    inner.put_opts(&path, bytes.into(), PutMode::Create.into()).now_or_never().unwrap().unwrap();
    stage.store(3, Ordering::SeqCst);
    all_whole(&faulty);
    assert_eq!(restored(&faulty), *checkpoints.state(1));
    let receipt = first.back_up(&checkpoints.open(2), &[]).unwrap();
    assert!(receipt.is_new, "{receipt:?}");
    all_whole(&faulty);
    assert_eq!(restored(&faulty), *checkpoints.state(2));
}

/// A zombie that sleeps between its listings and its removals woke up at a place that had been emptied and begun anew by the
/// next opening, whose objects have the same names, and removed them.
#[test]
fn a_zombie_takes_nothing_from_a_place_that_was_begun_anew() {
    let (checkpoints, other) = (Checkpoints::full(5), Arc::new(Checkpoints::full(3)));
    for folder in ["files", "log"] {
        let inner = Arc::new(InMemory::new());
        let armed = Arc::new(AtomicBool::new(false));
        let (sleeps, under, begun) = (Arc::clone(&armed), Arc::clone(&inner), Arc::clone(&other));
        let faulty: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
            let is_it = kind == Kind::List && path.as_ref().ends_with(folder);
            if is_it && sleeps.swap(false, Ordering::SeqCst) {
                for meta in all(&under) {
                    remove(&under, &meta.location);
                }
                let plain: Arc<dyn ObjectStore> = under.clone();
                // As many as are kept, so that their names are those that the zombie is about to remove, among others.
                let life = || {
                    let mut next = writer(&plain, 2);
                    for at in 0..3 {
                        next.back_up(&begun.open(at), &[]).unwrap();
                    }
                };
                std::thread::scope(|scope| scope.spawn(life).join().unwrap());
            }
            Fault::None
        });
        let mut zombie = writer(&faulty, 1);
        for at in 0..4 {
            zombie.back_up(&checkpoints.open(at), &[]).unwrap();
        }
        armed.store(true, Ordering::SeqCst);
        drop(zombie.back_up(&checkpoints.open(4), &[]));
        assert!(!armed.load(Ordering::SeqCst), "it did not sleep");
        let plain: Arc<dyn ObjectStore> = inner.clone();
        all_whole(&plain);
        assert_eq!(restored(&plain), *other.state(2), "{folder}");
    }
}

/// A store that was put back from an image of its disk is an earlier opening of itself, and could not be told to go on.
#[test]
fn a_store_from_an_image_of_its_disk_takes_over_when_it_is_told_to() {
    let checkpoints = Checkpoints::full(2);
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut later = writer(&place, 40);
    later.back_up(&checkpoints.open(0), &[]).unwrap();
    let error = BackupWriter::open(&target(&place), &quick(), owner(1, 12)).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)) && error.to_string().contains("--take-over"), "{error}");
    let mut image = BackupWriter::open(&target(&place), &quick().take_over(true), owner(1, 12)).unwrap();
    image.back_up(&checkpoints.open(1), &[]).unwrap();
    let error = later.back_up(&checkpoints.open(0), &[]).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)), "{error}");
    assert_eq!(restored(&place), *checkpoints.state(1));
    // Said once: from then on it is as any store.
    writer(&place, 13).back_up(&checkpoints.open(1), &[]).unwrap();
}

/// The object that says what a place is was never read: a version that keeps backups otherwise would have been mixed with.
#[test]
fn a_place_of_another_version_is_refused() {
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let marker = Path::from("a/prefix/laminar-backups");
    put(&inner, &marker, b"Backups of laminar-storage, version 2. See docs/BACKUP.md there.\n".to_vec());
    let error = BackupWriter::open(&target(&place), &quick(), owner(1, 1)).unwrap_err();
    assert!(
        matches!(error, BackupError::Refused(_)) && error.to_string().contains("laminar-backups"),
        "{error}"
    );
    assert_eq!(all(&inner).len(), 1, "nothing was put beside it");
}

/// Small files of the program were told apart by 32 bits: one in some thousand files of an unlucky program came back as another.
#[test]
fn files_of_the_program_are_told_apart_by_their_content() {
    let checkpoints = Checkpoints::full(2);
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut writer = writer(&place, 1);
    let (one, two) = same_checksum();
    writer.back_up(&checkpoints.open(0), &[("job.json", &one)]).unwrap();
    writer.back_up(&checkpoints.open(1), &[("job.json", &two)]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    restore(&target(&place), None, dir.path().join("restored"), &quick(), |_| {}).unwrap();
    assert_eq!(std::fs::read(dir.path().join("restored/job.json")).unwrap(), two);
}

/// Two texts of the same length and CRC-32C.
fn same_checksum() -> (Vec<u8>, Vec<u8>) {
    let mut seen = HashMap::new();
    for number in 0_u64.. {
        let text =
            format!("{{\"offset\":{:016}}}", number * 2_654_435_761 % 10_000_000_000_000_000).into_bytes();
        let checksum = laminar_storage::format::checksum::crc32c(&text);
        match seen.insert(checksum, text.clone()) {
            Some(old) if old != text => return (old, text),
            _ => {}
        }
    }
    unreachable!()
}

/// A disk that gives other bytes while a file is sent than when it was checked: the record was of the wrong bytes, so that
/// verifying it found nothing, and restoring it did.
#[test]
fn what_a_disk_garbles_while_it_is_sent_becomes_no_backup() {
    let checkpoints = Checkpoints::of_size(1, 200, 400);
    let inner = Arc::new(InMemory::new());
    let reader = checkpoints.open(0);
    let file = files_below(checkpoints.dir())
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let (at, good) = (std::fs::metadata(&file).unwrap().len() / 2, AtomicBool::new(true));
    let (damaged, mut byte) = (file.clone(), [0]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::open(&file).unwrap().read_exact_at(&mut byte, at).unwrap();
    let faulty: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, path| {
        let is_chunk = kind == Kind::Put && path.as_ref().contains("/files/");
        if is_chunk && good.swap(false, Ordering::SeqCst) {
            std::fs::File::options()
                .write(true)
                .open(&damaged)
                .unwrap()
                .write_all_at(&[!byte[0]], at)
                .unwrap();
        }
        Fault::None
    });
    let mut writer = writer(&faulty, 1);
    let error = writer.back_up(&reader, &[]).unwrap_err();
    assert!(matches!(error, BackupError::Local(_)), "{error}");
    assert!(list_backups(&target(&faulty), &quick()).unwrap().is_empty());
    // Once the disk gives what was written again, nothing of what was garbled is used.
    std::fs::File::options().write(true).open(&file).unwrap().write_all_at(&byte, at).unwrap();
    writer.back_up(&reader, &[]).unwrap();
    all_whole(&faulty);
    assert_eq!(restored(&faulty), *checkpoints.state(0));
}

fn files_below(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// What is no place for backups must not become one.
#[test]
fn a_mistyped_url_is_no_directory_and_no_secret_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["s3:/bucket/totals", "file:/dir/totals", "gs:/x"] {
        let error = BackupTarget::create(url).unwrap_err();
        assert!(matches!(error, BackupError::InvalidInput(_)), "{url}: {error}");
    }
    for url in [
        "s3://bucket/job#1",
        "s3://bucket/job?x=2",
        "file:///dir?x",
        "file:///dir#TOPSECRET",
        "s3://KEY:TOPSECRET@bucket/job",
        "s3://KEY:TOP/SECRET@bucket/job",
        "https://account.blob.core.windows.net/box/job?sig=TOPSECRET",
        "ftp://KEY:TOPSECRET@example.com/x?y=TOPSECRET",
    ] {
        let error = BackupTarget::parse_with(url, []).unwrap_err();
        assert!(matches!(error, BackupError::InvalidInput(_)), "{url}: {error}");
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{url}: {error}");
    }
    let endpoint = [("aws_endpoint", "http://KEY:TOPSECRET@localhost:1"), ("aws_region", "x")];
    let error = BackupTarget::parse_with("s3://bucket/job", endpoint).unwrap_err();
    assert!(error.to_string().starts_with("AWS_ENDPOINT: this endpoint has credentials"), "{error}");
    assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
    // In a name they mean what they say, and a directory of such a name is one when it is said to be a path.
    let named = BackupTarget::parse_with("s3://bucket/me@example.com/job", []).unwrap();
    assert_eq!(named.to_string(), "s3://bucket/me@example.com/job");
    BackupTarget::create(&format!("{}/s3:/x#1?y", dir.path().display())).unwrap();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let at = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &at);
        } else {
            std::fs::copy(entry.path(), at).unwrap();
        }
    }
}

/// Opens a store, goes on by so many epochs, and backs each up, as another writer of the same opening.
fn epochs(
    dir: &std::path::Path,
    place: &BackupTarget,
    count: u64,
    take_over: bool,
) -> Result<u64, BackupError> {
    let opened = Store::builder(dir).open().unwrap();
    let (store, mut core) = (opened.store, opened.cores.into_iter().next().unwrap());
    let options = quick().take_over(take_over);
    let mut held = 0;
    for number in 0..count {
        core.put(b"key", &number.to_le_bytes()).unwrap();
        store.wait_durable(core.seal_epoch().unwrap()).unwrap();
        held = store.back_up(place, &options, &[])?.epoch.get();
    }
    drop(core);
    store.close().unwrap();
    Ok(held)
}

/// A store that was put back from an image of its disk counts its openings on from those of the image: the first one had the number of
/// the one that made the newest backup, was believed, and its backups took the place of newer ones.
#[test]
fn a_store_that_is_older_than_its_backup_makes_none_until_it_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let (home, image) = (dir.path().join("store"), dir.path().join("image"));
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let place = target(&inner);
    let held = epochs(&home, &place, 2, false).unwrap();
    copy(&home, &image);
    // What it has itself made is no reason to refuse it, in this opening or a later one.
    let newest = epochs(&home, &place, 30, false).unwrap();
    assert!(newest > held, "{newest} {held}");
    std::fs::remove_dir_all(&home).unwrap();
    copy(&image, &home);
    // However often it is opened, as long as its epochs have not caught up.
    for _ in 0..3 {
        let error = epochs(&home, &place, 1, false).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, BackupError::Fenced(_)) && error.is_final(), "{said}");
        assert!(said.contains(&format!("holds epoch {newest}")) && said.contains("--take-over"), "{said}");
        assert!(said.contains("Restore the newest backup"), "{said}");
    }
    assert_eq!(list_backups(&place, &quick()).unwrap().last().unwrap().epoch.get(), newest);
    let taken = epochs(&home, &place, 1, true).unwrap();
    assert!(taken > held, "{taken}");
    assert!(epochs(&home, &place, 1, false).unwrap() > taken);
}

/// One damaged byte in the object that says what is here, and which nothing else needs, ended all backups with the advice to look for
/// another version of the library.
#[test]
fn a_damaged_marker_is_told_from_that_of_another_version() {
    let checkpoints = Checkpoints::new(1);
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    writer(&place, 1).back_up(&checkpoints.open(0), &[]).unwrap();
    let marker = Path::from("a/prefix/laminar-backups");
    let sound = get(&inner, &marker).to_vec();
    let mut damaged = sound.clone();
    damaged[0] ^= 4;
    put(&inner, &marker, damaged);
    let error = BackupWriter::open(&target(&place), &quick(), owner(1, 2)).unwrap_err();
    assert!(error.to_string().contains("is damaged; it only says"), "{error}");
    assert!(error.to_string().contains("Remove this one object"), "{error}");
    // As it advises.
    remove(&inner, &marker);
    writer(&place, 2).back_up(&checkpoints.open(0), &[]).unwrap();
    assert_eq!(get(&inner, &marker).to_vec(), sound);
    // Another version says so in the same words.
    put(&inner, &marker, String::from_utf8(sound).unwrap().replace("version 1", "version 2").into_bytes());
    let error = BackupWriter::open(&target(&place), &quick(), owner(1, 3)).unwrap_err();
    assert!(error.to_string().contains("of another version"), "{error}");
}

/// A job that starts while its backups cannot be seen is not asked where they are: it is the first backup that must not be put above
/// those of a job in parts, which nobody would see any more.
#[test]
fn the_backups_of_a_store_are_not_put_above_those_of_a_job_in_parts() {
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let part = target(&place).within("generation-00000001").within("part-0000-of-0002");
    BackupWriter::open(&part, &quick(), owner(3, 1)).unwrap();
    let before = all(&inner).len();
    let error = BackupWriter::open(&target(&place), &quick().take_over(true), owner(1, 1)).unwrap_err();
    assert!(matches!(error, BackupError::Foreign(_)), "{error}");
    assert!(error.to_string().contains("generation-00000001"), "{error}");
    assert_eq!(all(&inner).len(), before);
    // Beside those of a store it is a name like any other.
    let plain = target(&place).within("plain");
    BackupWriter::open(&plain, &quick(), owner(1, 1)).unwrap();
    put(&inner, &Path::from("a/prefix/plain/generation-00000001/notes"), b"mine".to_vec());
    BackupWriter::open(&plain, &quick(), owner(1, 2)).unwrap();
}

/// A place that takes connections and never answers kept a job from starting for half an hour; failures that pass are still tried
/// again.
#[test]
fn a_question_that_somebody_waits_for_is_given_up_when_nothing_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let settings = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_region", "us-east-1"),
        ("aws_access_key_id", "a"),
        ("aws_secret_access_key", "b"),
        ("timeout", "20s"),
    ];
    let place = BackupTarget::parse_with("s3://bucket/x", settings).unwrap();
    let began = Instant::now();
    let options = quick().patience(Duration::from_millis(200));
    let error = place.folders(&options).unwrap_err();
    assert!(matches!(error, BackupError::Unreachable(_)), "{error}");
    assert!(matches!(place.has_log(&options), Err(BackupError::Unreachable(_))));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    let inner = Arc::new(InMemory::new());
    let flaky: Arc<dyn ObjectStore> =
        Faulty::new(&inner, |n, _, _| if n < 3 { Fault::Before } else { Fault::None });
    assert!(!target(&flaky).has_log(&quick().patience(Duration::from_secs(60))).unwrap());
}
