//! Backups and restores that end after any number of requests, or whose requests fail in every way: what counts is
//! always a whole backup, no older than what was confirmed, and the next try goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use laminar_backup_tests::faults::{Fault, Faulty, Kind, seeded};
use laminar_backup_tests::stores::{Checkpoints, owner, quick, restored, state_in, target, writer};
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use laminar_storage::backup::{
    BackupError, BackupOptions, BackupWriter, list_backups, restore, verify_backup,
};

fn names(store: &InMemory) -> BTreeSet<String> {
    let listed = store.list(None).map(|meta| meta.unwrap().location.to_string()).collect::<Vec<_>>();
    listed.now_or_never().unwrap().into_iter().collect()
}

/// One life: claims, and backs up the given checkpoints; returns the last that was confirmed.
fn life(
    store: &Arc<dyn ObjectStore>,
    incarnation: u64,
    checkpoints: &Checkpoints,
    which: std::ops::Range<usize>,
) -> (Option<usize>, Option<BackupError>) {
    let mut confirmed = None;
    let work = || {
        let mut writer = BackupWriter::open(
            &target(store),
            &quick().keep(2).attempts(3, Duration::ZERO),
            owner(1, incarnation),
        )?;
        for at in which {
            writer.back_up(&checkpoints.open(at), &[("job.json", format!("job {at}").as_bytes())])?;
            confirmed = Some(at);
        }
        Ok(())
    };
    let error = work().err();
    (confirmed, error)
}

/// Every object that is there is needed, or one of the few records that stay.
fn nothing_is_left_over(inner: &Arc<InMemory>, checkpoints: &Checkpoints, last: usize) {
    // Alone at another place, the two backups that count need exactly so many objects.
    let fresh = Arc::new(InMemory::new());
    let store: Arc<dyn ObjectStore> = fresh.clone();
    life(&store, 1, checkpoints, last - 1..last + 1);
    let files = |store: &InMemory| names(store).iter().filter(|name| name.contains("/files/")).count();
    assert_eq!(files(inner), files(&fresh), "{:#?}", names(inner));
}

/// A process that is killed after any request, or cut off: the next one finds what was confirmed, goes on, and leaves
/// nothing behind.
#[test]
fn a_writer_may_die_after_every_request() {
    // With files that checkpoints share, and with files that go with the checkpoint.
    dies_after_every_request(&Checkpoints::new(5));
    dies_after_every_request(&Checkpoints::full(5));
}

fn dies_after_every_request(checkpoints: &Checkpoints) {
    let mut died = 0;
    for after in 0.. {
        // Its last request is carried out, or not; either way nobody hears of it.
        for reply in [Fault::Dead, Fault::LostReply] {
            let inner = Arc::new(InMemory::new());
            let plain: Arc<dyn ObjectStore> = inner.clone();
            life(&plain, 1, checkpoints, 0..1);
            let store = Faulty::new(&inner, move |number, _, _| match number {
                n if n == after => reply,
                n if n > after => Fault::Dead,
                _ => Fault::None,
            });
            let store: Arc<dyn ObjectStore> = store;
            let (confirmed, error) = life(&store, 2, checkpoints, 1..4);
            died += usize::from(error.is_some());
            let found = checkpoints.position(&restored(&plain)).unwrap();
            assert!(
                found >= confirmed.unwrap_or(0) && found < 4,
                "{after} {reply:?}: {found}, {confirmed:?}"
            );
            for backup in list_backups(&target(&plain), &quick()).unwrap() {
                verify_backup(&target(&plain), Some(backup.id), &quick(), |_| {}).unwrap();
            }
            if error.is_none() && reply == Fault::Dead {
                assert!(died > 60, "{died}");
                return;
            }
            let (confirmed, error) = life(&plain, 3, checkpoints, 3..5);
            assert!(error.is_none() && confirmed == Some(4), "{after} {reply:?}: {error:?}");
            assert_eq!(restored(&plain), *checkpoints.state(4));
            nothing_is_left_over(&inner, checkpoints, 4);
        }
    }
}

/// Lost replies, refusals for nothing, listings that break off or are behind, at random.
#[test]
fn faults_of_every_kind_are_survived() {
    let kinds = [Checkpoints::new(6), Checkpoints::full(6)];
    let seeds = std::env::var("LAMINAR_SEED").map_or(0..60, |seed| {
        let seed: u64 = seed.parse().unwrap();
        seed..seed + 1
    });
    let (mut complete, mut failed) = (0, 0);
    for seed in seeds {
        let inner = Arc::new(InMemory::new());
        let plain: Arc<dyn ObjectStore> = inner.clone();
        let checkpoints = &kinds[usize::from(seed % 2 == 0)];
        let mut newest = None;
        for (incarnation, which) in [(1, 0..2), (2, 2..4), (3, 4..6)] {
            let store: Arc<dyn ObjectStore> = Faulty::new(&inner, seeded(seed * 10 + incarnation, 25));
            let (confirmed, error) = life(&store, incarnation, checkpoints, which);
            let clean = matches!(error, None | Some(BackupError::Unreachable(_)));
            assert!(clean, "seed {seed}: {error:?}");
            (complete, failed) = (complete + u64::from(error.is_none()), failed + u64::from(error.is_some()));
            newest = confirmed.or(newest);
            if let Some(newest) = newest {
                let found = checkpoints.position(&restored(&plain)).unwrap();
                assert!(found >= newest, "seed {seed}: {found} instead of {newest}");
                for backup in list_backups(&target(&plain), &quick()).unwrap() {
                    verify_backup(&target(&plain), Some(backup.id), &quick(), |_| {})
                        .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                }
                // Restoring is no easier.
                let dir = tempfile::tempdir().unwrap();
                let store: Arc<dyn ObjectStore> = Faulty::new(&inner, seeded(seed + 1_000, 25));
                let at = dir.path().join("restored");
                while let Err(error) = restore(&target(&store), None, &at, &quick(), |_| {}) {
                    assert!(matches!(error, BackupError::Unreachable(_)), "seed {seed}: {error}");
                }
                assert_eq!(checkpoints.position(&state_in(&at)), Some(found), "seed {seed}");
            }
        }
        let (confirmed, error) = life(&plain, 9, checkpoints, 4..6);
        assert!(error.is_none() && confirmed == Some(5), "seed {seed}: {error:?}");
        nothing_is_left_over(&inner, checkpoints, 5);
    }
    if std::env::var("LAMINAR_SEED").is_err() {
        assert!(complete > 20 && failed > 20, "{complete} complete, {failed} failed");
    }
}

/// Every object is refused once, by 412 or by 409, as if it was there.
#[test]
fn a_put_that_is_refused_although_nothing_is_there_is_made_again() {
    let checkpoints = Checkpoints::new(2);
    for fault in [Fault::Conflict, Fault::Exists] {
        let inner = Arc::new(InMemory::new());
        let refused = Mutex::new(BTreeSet::new());
        let store = Faulty::new(&inner, move |_, kind, path| {
            let is_first = kind == Kind::Put && refused.lock().unwrap().insert(path.clone());
            if is_first { fault } else { Fault::None }
        });
        let store: Arc<dyn ObjectStore> = store;
        let (confirmed, error) = life(&store, 1, &checkpoints, 0..2);
        assert!(error.is_none() && confirmed == Some(1), "{fault:?}: {error:?}");
        let plain: Arc<dyn ObjectStore> = inner.clone();
        assert_eq!(restored(&plain), *checkpoints.state(1), "{fault:?}");
        for backup in list_backups(&target(&plain), &quick()).unwrap() {
            verify_backup(&target(&plain), Some(backup.id), &quick(), |_| {}).unwrap();
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_requests() {
    let checkpoints = Checkpoints::new(2);
    let requests = || {
        let store = Faulty::new(&Arc::new(InMemory::new()), seeded(7, 25));
        let plain: Arc<dyn ObjectStore> = store.clone();
        let ended = life(&plain, 1, &checkpoints, 0..2);
        (store.operations(), format!("{ended:?}"))
    };
    let (first, second) = (requests(), requests());
    assert!(first.0.len() > 10);
    assert_eq!(first, second);
}

/// What could go stays while one of the two folders cannot be listed as a whole.
#[test]
fn a_listing_that_fails_or_breaks_off_removes_nothing() {
    // They share no file: what only the first ones needed is not needed any more in the end.
    let checkpoints = Checkpoints::full(5);
    for (folder, fault) in [
        // The same run removes something, or that the others do not would mean nothing.
        ("files", Fault::None),
        ("files", Fault::PartialListing),
        ("files", Fault::Before),
        ("log", Fault::PartialListing),
        ("log", Fault::Before),
    ] {
        let inner = Arc::new(InMemory::new());
        let plain: Arc<dyn ObjectStore> = inner.clone();
        life(&plain, 1, &checkpoints, 0..3);
        let before = names(&inner);
        // The first three listings are those of the claim; all others are those of sweeping.
        let listings = std::sync::atomic::AtomicUsize::new(0);
        let store = Faulty::new(&inner, move |_, kind, path| {
            let is_sweeping =
                kind == Kind::List && listings.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 2;
            if is_sweeping && path.filename() == Some(folder) { fault } else { Fault::None }
        });
        let faulty: Arc<dyn ObjectStore> = store.clone();
        let (confirmed, error) = life(&faulty, 2, &checkpoints, 3..5);
        assert!(error.is_none() && confirmed == Some(4), "{error:?}");
        let deletes = store.operations().iter().any(|(kind, _)| *kind == Kind::Delete);
        let all_stayed = names(&inner).is_superset(&before);
        let whole = fault == Fault::None;
        assert_eq!((deletes, all_stayed), (whole, !whole), "{folder} {fault:?}");
        // Once it can be listed again, it is swept.
        life(&plain, 3, &checkpoints, 3..5);
        nothing_is_left_over(&inner, &checkpoints, 4);
    }
}

/// Whoever took what was listed for all there is would see no backup, and begin anew below the head.
#[test]
fn a_listing_that_fails_or_breaks_off_hides_no_backup() {
    let checkpoints = Checkpoints::full(2);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let options = quick().keep(2);
    let mut first = BackupWriter::open(&target(&plain), &options, owner(1, 1)).unwrap();
    // So many that the lowest records are gone: no way leads from the claim to the head but the listing.
    for round in 0..40 {
        first.back_up(&checkpoints.open(round % 2), &[]).unwrap();
    }
    assert!(!names(&inner).iter().any(|name| name.ends_with("log/0000000000000002.json")));
    let (before, newest) = (names(&inner), first.newest());
    for fault in [Fault::Before, Fault::PartialListing] {
        let store: Arc<dyn ObjectStore> = Faulty::new(&inner, move |_, kind, _| match kind {
            Kind::List => fault,
            _ => Fault::None,
        });
        let (confirmed, error) = life(&store, 2, &checkpoints, 0..1);
        let clean = |error: &Option<BackupError>| matches!(error, Some(BackupError::Unreachable(_)));
        assert!(confirmed.is_none() && clean(&error), "{fault:?}: confirmed {confirmed:?}, {error:?}");
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("restored");
        let listed = list_backups(&target(&store), &options).err();
        let restored = restore(&target(&store), None, &at, &options, |_| {}).err();
        assert!(clean(&listed) && clean(&restored), "{fault:?}: {listed:?}, {restored:?}");
        assert_eq!(names(&inner), before, "{fault:?}");
    }
    assert_eq!(list_backups(&target(&plain), &options).unwrap().last().map(|backup| backup.id), newest);
}

#[test]
fn only_what_is_not_there_is_sent_and_never_more_at_a_time_than_allowed() {
    let checkpoints = Checkpoints::of_size(3, 300, 200);
    let store = Faulty::new(&Arc::new(InMemory::new()), |_, _, _| Fault::None);
    let plain: Arc<dyn ObjectStore> = store.clone();
    let options = BackupOptions::new().chunk_bytes(1000).concurrency(3);
    let mut first = BackupWriter::open(&target(&plain), &options, owner(1, 1)).unwrap();
    let whole = first.back_up(&checkpoints.open(0), &[]).unwrap();
    assert!(whole.bytes_sent == whole.bytes && whole.objects_sent > 20, "{whole:?}");
    assert_eq!(store.most_under_way(), 3);
    let delta = first.back_up(&checkpoints.open(1), &[]).unwrap();
    assert!(delta.files_sent < delta.files && delta.bytes_sent < whole.bytes / 10, "{delta:?}");
    // Another life reads its files, and sends none that is there.
    let mut second = BackupWriter::open(&target(&plain), &options, owner(1, 2)).unwrap();
    let put = store.bytes_put();
    let again = second.back_up(&checkpoints.open(1), &[]).unwrap();
    assert_eq!((again.is_new, again.files_sent, again.bytes_sent, store.bytes_put()), (false, 0, 0, put));
    let next = second.back_up(&checkpoints.open(2), &[]).unwrap();
    assert!(next.is_new && next.files_sent < next.files && next.bytes_sent < whole.bytes / 10, "{next:?}");
    assert_eq!(restored(&plain), *checkpoints.state(2));
    // One request at a time.
    let single = Faulty::new(&Arc::new(InMemory::new()), |_, _, _| Fault::None);
    let plain: Arc<dyn ObjectStore> = single.clone();
    let mut writer = BackupWriter::open(&target(&plain), &options.concurrency(1), owner(1, 1)).unwrap();
    writer.back_up(&checkpoints.open(0), &[]).unwrap();
    assert_eq!(single.most_under_way(), 1);
}

/// What is asked for in time is what the limit says, whatever the clock of the machine does.
#[test]
fn the_limit_of_the_bandwidth_holds_every_transfer_back() {
    let checkpoints = Checkpoints::of_size(1, 300, 200);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let options = BackupOptions::new().chunk_bytes(1000).concurrency(1).bytes_per_second(1 << 20);
    let mut writer = BackupWriter::open(&target(&store), &options, owner(1, 1)).unwrap();
    let receipt = writer.back_up(&checkpoints.open(0), &[]).unwrap();
    // All but the last chunk have had their time, waiting or putting.
    let least = (receipt.bytes_sent - 1000) as f64 / f64::from(1 << 20);
    assert!(receipt.time.as_secs_f64() >= least && !receipt.held_back.is_zero(), "{receipt:?}");
}

#[test]
fn an_interrupted_restore_goes_on_where_it_stopped() {
    let checkpoints = Checkpoints::of_size(2, 300, 200);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let mut first = writer(&plain, 1);
    let files: [(&str, &[u8]); 2] = [("job.json", b"what to do"), ("empty", b"")];
    first.back_up(&checkpoints.open(1), &files).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    let mut fetched = 0;
    let mut tries = 0;
    let receipt = loop {
        // Each try gets a few requests further, and then the process dies.
        let requests = 8 + tries * 5;
        let store: Arc<dyn ObjectStore> =
            Faulty::new(&inner, move |n, _, _| if n < requests { Fault::None } else { Fault::Dead });
        let mut told = Vec::new();
        let result = restore(&target(&store), None, &at, &quick(), |progress| told.push(progress));
        assert!(told.is_sorted_by(|a, b| a.bytes_done < b.bytes_done), "{told:?}");
        match result {
            Ok(receipt) => break receipt,
            Err(error) => assert!(matches!(error, BackupError::Unreachable(_)) && !at.exists(), "{error}"),
        }
        tries += 1;
        fetched += requests;
    };
    assert!(tries > 3, "{tries}, {fetched} requests");
    assert!(receipt.bytes_kept > 0 && receipt.bytes_fetched < receipt.bytes, "{receipt:?}");
    assert_eq!(state_in(&at), *checkpoints.state(1));
    assert_eq!(std::fs::read(at.join("job.json")).unwrap(), b"what to do");
    assert_eq!(std::fs::read(at.join("empty")).unwrap(), b"");
    assert!(!dir.path().join("restored.unfinished").exists());
    // What is there is not written over; what is in the way is not removed.
    let error = restore(&target(&plain), None, &at, &quick(), |_| {}).unwrap_err();
    assert!(
        matches!(error, BackupError::InvalidInput(_)) && error.to_string().contains("already"),
        "{error}"
    );
    std::fs::create_dir(dir.path().join("other.unfinished")).unwrap();
    std::fs::write(dir.path().join("other.unfinished/letters.txt"), b"mine").unwrap();
    let error = restore(&target(&plain), None, dir.path().join("other"), &quick(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("letters.txt"), "{error}");
}

/// A chunk that a fetch left behind damaged is fetched again.
#[test]
fn what_is_left_of_a_restore_is_checked() {
    let checkpoints = Checkpoints::of_size(1, 300, 200);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    writer(&plain, 1).back_up(&checkpoints.open(0), &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    let store: Arc<dyn ObjectStore> =
        Faulty::new(&inner, |n, _, _| if n < 30 { Fault::None } else { Fault::Dead });
    restore(&target(&store), None, &at, &quick(), |_| {}).unwrap_err();
    for entry in std::fs::read_dir(dir.path().join("restored.unfinished")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().step_by(500).for_each(|byte| *byte ^= 0x10);
        bytes.push(1);
        std::fs::write(&path, bytes).unwrap();
    }
    let receipt = restore(&target(&plain), None, &at, &quick(), |_| {}).unwrap();
    assert_eq!((receipt.bytes_kept, state_in(&at) == *checkpoints.state(0)), (0, true), "{receipt:?}");
}

/// Every object of a backup, damaged or gone, is found and named.
#[test]
fn damage_of_any_object_is_found() {
    let checkpoints = Checkpoints::new(1);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    writer(&plain, 1).back_up(&checkpoints.open(0), &[("job.json", b"what to do")]).unwrap();
    let objects: Vec<_> = names(&inner)
        .into_iter()
        .filter(|name| name.contains("/files/") || name.ends_with("2.json"))
        .collect();
    assert!(objects.len() > 3, "{objects:?}");
    for name in objects {
        let path = Path::from(name.as_str());
        let bytes =
            inner.get(&path).now_or_never().unwrap().unwrap().bytes().now_or_never().unwrap().unwrap();
        let put = |bytes: Vec<u8>| inner.put(&path, PutPayload::from(bytes)).now_or_never().unwrap().unwrap();
        let mut wrong: Vec<Vec<u8>> = vec![bytes[..bytes.len() - 1].to_vec(), Vec::new()];
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            wrong.push(flipped);
        }
        for damaged in wrong {
            put(damaged);
            let error = verify_backup(&target(&plain), None, &quick(), |_| {}).unwrap_err();
            assert!(matches!(error, BackupError::Corruption(_)), "{name}: {error}");
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().join("restored");
            let error = restore(&target(&plain), None, &at, &quick(), |_| {}).unwrap_err();
            assert!(matches!(error, BackupError::Corruption(_)) && !at.exists(), "{name}: {error}");
            assert!(error.to_string().contains(name.rsplit('/').next().unwrap()), "{name}: {error}");
        }
        inner.delete(&path).now_or_never().unwrap().unwrap();
        verify_backup(&target(&plain), None, &quick(), |_| {}).unwrap_err();
        put(bytes.to_vec());
    }
    verify_backup(&target(&plain), None, &quick(), |_| {}).unwrap();
}

/// A damaged newest record kept every backup from being restored, also one that was named.
#[test]
fn behind_a_damaged_newest_record_an_older_backup_is_restored_by_its_number() {
    let checkpoints = Checkpoints::new(2);
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let mut writer = writer(&plain, 1);
    let older = writer.back_up(&checkpoints.open(0), &[]).unwrap().id;
    let newest = writer.back_up(&checkpoints.open(1), &[]).unwrap().id;
    let record = |number: u64| {
        names(&inner).into_iter().find(|name| name.ends_with(&format!("{number}.json"))).unwrap()
    };
    let path = Path::from(record(newest.0));
    inner.put(&path, PutPayload::from_static(b"{")).now_or_never().unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = restore(&target(&plain), None, dir.path().join("newest"), &quick(), |_| {}).unwrap_err();
    assert!(matches!(error, BackupError::Corruption(_)), "{error}");
    let error =
        restore(&target(&plain), Some(newest), dir.path().join("newest"), &quick(), |_| {}).unwrap_err();
    assert!(matches!(error, BackupError::Corruption(_)), "{error}");
    restore(&target(&plain), Some(older), dir.path().join("older"), &quick(), |_| {}).unwrap();
    // Once it is moved away, everything is as before it.
    inner.delete(&path).now_or_never().unwrap().unwrap();
    verify_backup(&target(&plain), Some(older), &quick(), |_| {}).unwrap();
}

/// A store that ignores conditions is refused before anything relies on it.
#[test]
fn a_store_without_conditional_puts_is_refused() {
    #[derive(Debug)]
    struct Careless(InMemory);
    impl std::fmt::Display for Careless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Careless")
        }
    }
    use futures_util::stream::BoxStream;
    use laminar_storage::backup::object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMode,
        PutMultipartOptions, PutOptions, PutResult, Result,
    };
    #[async_trait::async_trait]
    impl ObjectStore for Careless {
        async fn put_opts(&self, to: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
            opts.mode = PutMode::Overwrite;
            self.0.put_opts(to, payload, opts).await
        }
        async fn put_multipart_opts(
            &self,
            at: &Path,
            o: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, o).await
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(at, options).await
        }
        fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(at)
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }
    let store: Arc<dyn ObjectStore> = Arc::new(Careless(InMemory::new()));
    let error = BackupWriter::open(&target(&store), &quick(), owner(1, 1)).unwrap_err();
    assert!(
        matches!(error, BackupError::Refused(_)) && error.to_string().contains("If-None-Match"),
        "{error}"
    );
}
