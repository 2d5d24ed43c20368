//! Backups in an S3 server of this process and in directories, by their URLs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use laminar_backup_tests::proxy::{Cut, Proxy, seeded};
use laminar_backup_tests::server::{BUCKET, Server};
use laminar_backup_tests::stores::{Checkpoints, owner, quick, state_in};
use laminar_storage::backup::{
    BackupError, BackupTarget, BackupWriter, list_backups, restore, verify_backup,
};
use laminar_storage::{Settings, Store};

/// Backs up, takes over, retains, restores: the same everywhere.
fn all_of_it(target: &BackupTarget) {
    let options = quick().keep(2);
    let checkpoints = Checkpoints::of_size(5, 100, 100);
    assert_eq!(list_backups(target, &options).unwrap(), []);
    let missing = verify_backup(target, None, &options, |_| {}).unwrap_err();
    assert!(matches!(missing, BackupError::NotFound(_)), "{missing}");
    let mut first = BackupWriter::open(target, &options, owner(1, 1)).unwrap();
    for at in 0..4 {
        let receipt = first.back_up(&checkpoints.open(at), &[("job.json", b"the job")]).unwrap();
        assert!(receipt.is_new && (at == 0 || receipt.files_sent < receipt.files), "{receipt:?}");
    }
    let mut second = BackupWriter::open(target, &options, owner(1, 2)).unwrap();
    let error = first.back_up(&checkpoints.open(4), &[]).unwrap_err();
    assert!(matches!(error, BackupError::Fenced(_)), "{error}");
    let receipt = second.back_up(&checkpoints.open(4), &[("job.json", b"the job")]).unwrap();
    assert!(receipt.files_sent < receipt.files, "{receipt:?}");
    let listed = list_backups(target, &options).unwrap();
    assert_eq!(listed.iter().map(|backup| backup.epoch.get()).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(listed[1].id, receipt.id);
    let dir = checkpoints.dir();
    for (backup, at) in listed.iter().zip([3, 4]) {
        assert_eq!(verify_backup(target, Some(backup.id), &options, |_| {}).unwrap(), *backup);
        let restored = dir.join(format!("restored-{at}"));
        restore(target, Some(backup.id), &restored, &options, |_| {}).unwrap();
        assert_eq!(state_in(&restored), *checkpoints.state(at));
        assert_eq!(std::fs::read(restored.join("job.json")).unwrap(), b"the job");
    }
    let gone = restore(target, Some(2.into()), dir.join("gone"), &options, |_| {}).unwrap_err();
    assert!(matches!(gone, BackupError::NotFound(_)) && gone.to_string().contains("Choose one"), "{gone}");
}

#[test]
fn an_s3_server_does_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    all_of_it(&server.target("some/prefix"));
    all_of_it(&server.target("another"));
    let wrong = server.target_as("some/prefix", "not the secret");
    let error = list_backups(&wrong, &quick()).unwrap_err();
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    let target = server.target("some/prefix");
    drop(server);
    // Nobody listens there any more.
    let error = list_backups(&target, &quick().attempts(1, Duration::ZERO));
    assert!(matches!(error, Err(BackupError::Unreachable(_))), "{error:?}");
}

/// The names of all files below a directory.
fn names_below(dir: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(names_below(&path));
        } else {
            names.insert(path);
        }
    }
    names
}

/// Connections that break anywhere, answers that say no or come late, requests that are carried out when nobody waits for them
/// any more: what is done is done once, and nothing else is left over.
#[test]
fn a_network_that_breaks_anywhere_changes_nothing_of_what_comes_out() {
    let below = |dir: &Path| -> BTreeSet<PathBuf> {
        let root = dir.join(BUCKET).join("some/prefix");
        names_below(&root).iter().map(|path| path.strip_prefix(&root).unwrap().to_owned()).collect()
    };
    let undisturbed = tempfile::tempdir().unwrap();
    all_of_it(&Server::start(undisturbed.path()).target("some/prefix"));
    let seeds = std::env::var("LAMINAR_SEED").map_or(1..5, |seed| {
        let seed: u64 = seed.parse().unwrap();
        seed..seed + 1
    });
    let mut cuts: HashMap<Cut, usize> = HashMap::new();
    for seed in seeds {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path());
        // Fewer of one request than there are attempts: in the end everything is done.
        let proxy = Proxy::start(server.address(), seeded(seed, 35, 4));
        println!("LAMINAR_SEED={seed}");
        all_of_it(&server.target_through("some/prefix", &proxy));
        proxy.told().iter().for_each(|(_, cut)| *cuts.entry(*cut).or_default() += 1);
        assert_eq!(below(dir.path()), below(undisturbed.path()), "seed {seed}");
    }
    println!("{cuts:?}");
    if std::env::var("LAMINAR_SEED").is_err() {
        assert!(Cut::ALL.iter().all(|cut| cuts.get(cut).is_some_and(|count| *count > 5)), "{cuts:?}");
    }
}

/// The server has put a record, and the writer does not hear of it: what it finds there then is its own. Or the server has not,
/// and does it when the writer has put it again: it is refused then.
#[test]
fn a_record_whose_reply_was_lost_is_found_to_be_ours() {
    for (record, cut) in [1, 2].into_iter().flat_map(|n| [(n, Cut::BeforeReply), (n, Cut::CarriedOutLater)]) {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path());
        let checkpoints = Checkpoints::new(2);
        let put = format!("PUT /{BUCKET}/place/log/{record:016x}.json");
        let watched = put.clone();
        let plan = move |what: &str, before| if what == watched && before == 0 { cut } else { Cut::None };
        let proxy = Proxy::start(server.address(), plan);
        let target = server.target_through("place", &proxy);
        let mut writer = BackupWriter::open(&target, &quick(), owner(1, 1)).unwrap();
        for (at, id) in [(0, 2), (1, 3)] {
            let receipt = writer.back_up(&checkpoints.open(at), &[]).unwrap();
            assert!(receipt.is_new && receipt.id.get() == id, "record {record}, {cut:?}: {receipt:?}");
        }
        let puts = proxy.told().iter().filter(|(what, _)| *what == put).count();
        assert_eq!(puts, 2, "record {record}, {cut:?}: {:?}", proxy.told());
        let listed = list_backups(&target, &quick()).unwrap();
        assert_eq!(listed.iter().map(|backup| backup.id.get()).collect::<Vec<_>>(), [2, 3]);
        let restored = dir.path().join("restored");
        restore(&target, None, &restored, &quick(), |_| {}).unwrap();
        assert_eq!(state_in(&restored), *checkpoints.state(1));
    }
}

/// The requests are those that Google documents, on a server that takes these for its own.
#[test]
fn a_client_of_google_does_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_google(dir.path());
    all_of_it(&server.google_target("some/prefix"));
    all_of_it(&server.google_target("another"));
}

#[test]
fn a_directory_does_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backups").join("of this");
    all_of_it(&BackupTarget::create(path.to_str().unwrap()).unwrap());
    let url = format!("file://{}", dir.path().join("others").display());
    all_of_it(&BackupTarget::create(&url).unwrap());
}

/// A store goes on from a backup on another machine, with any number of cores.
#[test]
fn a_store_begins_with_a_restored_backup_on_any_number_of_cores() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("server"));
    let target = server.target("");
    let settings = Settings { checkpoint_interval_ms: 0, ..Settings::default() };
    let opened = Store::builder(dir.path().join("state")).cores(2).settings(settings).open().unwrap();
    let mut cores = opened.cores;
    for key in 0..500_u32 {
        let core = usize::from(key % 2 == 1);
        cores[core].put(&key.to_le_bytes(), format!("value {key}").as_bytes()).unwrap();
    }
    cores[0].set_source_offset("orders", 500);
    let epoch = cores[0].seal_epoch().unwrap();
    cores[1].seal_epoch().unwrap();
    opened.store.wait_durable(epoch).unwrap();
    let saved = dir.path().join("saved");
    opened.store.savepoint(&saved).unwrap();
    let reader =
        laminar_storage::incremental::CheckpointReader::open(&laminar_storage::vfs::OsVfs::new(), &saved)
            .unwrap();
    BackupWriter::open(&target, &quick(), owner(7, 1)).unwrap().back_up(&reader, &[]).unwrap();
    for cores in [1, 3] {
        let restored = dir.path().join(format!("restored-{cores}"));
        restore(&target, None, &restored, &quick(), |_| {}).unwrap();
        let state = dir.path().join(format!("state-{cores}"));
        let again = Store::builder(&state).cores(cores).from_savepoint(&restored).open().unwrap();
        assert_eq!((again.report.keys, again.report.recovery_point), (500, epoch));
        assert_eq!(again.report.source_offsets.get("orders"), Some(&500));
        let found = |key: u32| {
            let value = format!("value {key}").into_bytes();
            again
                .cores
                .iter()
                .any(|core| core.get(&key.to_le_bytes()).is_some_and(|found| found == value.as_slice()))
        };
        assert!((0..500).all(found));
    }
}
