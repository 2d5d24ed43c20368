//! Backups of a whole whose parts are stores of their own: what counts, what stays, and what is never put together.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use laminar_backup_tests::faults::{Fault, Faulty, Kind, seeded};
use laminar_backup_tests::stores::{quick, target};
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::path::Path;
use laminar_storage::backup::object_store::{ObjectStore, ObjectStoreExt};
use laminar_storage::backup::{
    BackupError, BackupInfo, BackupOptions, BackupTarget, PartWriter, WholeBackups, WholeId,
    list_whole_backups, restore, restore_several, verify_backup,
};
use laminar_storage::vfs::OsVfs;
use laminar_storage::{CoreStore, Epoch, Settings, Store};

/// One part: a store, which is opened anew for each use, as by a process that was started again.
struct Part {
    store: Store,
    core: CoreStore,
}

impl Part {
    fn open(dir: &FilePath) -> Self {
        let settings = Settings { checkpoint_interval_ms: 0, checkpoint_wal_bytes: 0, ..Settings::default() };
        let opened = Store::builder(dir).settings(settings).open_as_part(Ok).unwrap();
        Self { store: opened.store, core: opened.cores.into_iter().next().unwrap() }
    }

    /// Goes on to the end of `epoch`, in which `key` gets its value.
    fn seal(&mut self, epoch: Epoch) {
        self.store.reserve_checkpoint(epoch).unwrap();
        self.core.put(b"epoch", &epoch.get().to_le_bytes()).unwrap();
        self.core.seal_epoch_to(epoch).unwrap();
        self.store.wait_durable(epoch).unwrap();
        self.store.settle(epoch).unwrap();
    }

    fn back_up(&self, writer: &mut PartWriter, id: WholeId) -> Result<(), BackupError> {
        let checkpoint = self.store.part_checkpoint(id.epoch()).unwrap();
        writer.back_up(&checkpoint, id, b"mark", &[]).map(drop)
    }
}

fn options() -> BackupOptions {
    quick().keep(2).attempts(2, Duration::ZERO)
}

fn writer(place: &Arc<dyn ObjectStore>, part: u32, parts: u32) -> PartWriter {
    PartWriter::new(&target(place), part, parts, &options()).unwrap()
}

fn list(place: &Arc<dyn ObjectStore>) -> WholeBackups {
    list_whole_backups(&target(place), &options()).unwrap()
}

fn ids(place: &Arc<dyn ObjectStore>) -> Vec<WholeId> {
    list(place).backups.iter().map(|backup| backup.id).collect()
}

/// Every part of every backup that is listed is there to the last byte, and holds the epoch it says.
fn check(place: &Arc<dyn ObjectStore>) {
    let dir = tempfile::tempdir().unwrap();
    for backup in list(place).backups {
        for (number, (place, info)) in backup.parts.iter().enumerate() {
            assert_eq!(info.epoch, backup.id.epoch());
            verify_backup(place, Some(info.id), &options(), |_| {}).unwrap();
            let saved = dir.path().join(format!("{}-{number}", backup.id));
            restore(place, Some(info.id), &saved, &options(), |_| {}).unwrap();
            let fork = dir.path().join(format!("{}-{number}-fork", backup.id));
            let fork = Store::builder(fork).from_savepoint(&saved).open_as_part(Ok).unwrap();
            assert_eq!(fork.report.recovery_point, backup.id.epoch());
            let value = fork.cores[0].get(b"epoch").unwrap();
            assert_eq!(value, backup.id.epoch().get().to_le_bytes());
        }
    }
}

#[test]
fn a_backup_counts_when_every_part_has_it_and_no_older_one_goes_before() {
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
    let mut writers = [writer(&place, 0, 2), writer(&place, 1, 2)];
    assert!(list(&place).backups.is_empty());
    let mut made = Vec::new();
    for epoch in (1..=4).map(Epoch) {
        let id = WholeId::new(epoch);
        parts.iter_mut().for_each(|part| part.seal(epoch));
        parts[0].back_up(&mut writers[0], id).unwrap();
        assert!(!ids(&place).contains(&id), "half of it counts");
        assert!(list(&place).incomplete.contains(&id), "nobody knows of half of it");
        parts[1].back_up(&mut writers[1], id).unwrap();
        made.push(id);
        assert!(list(&place).incomplete.iter().all(|incomplete| incomplete.epoch() < epoch));
        // Two are kept; the one before stays until the next part is sure of the newer one.
        let there = ids(&place);
        assert!(there.ends_with(&made[made.len().saturating_sub(2)..]) && there.len() <= 3, "{there:?}");
        check(&place);
    }
    // One part gets ahead of the other, crash after crash: what is whole stays.
    let whole = ids(&place);
    for epoch in (5..=12).map(Epoch) {
        parts[0].seal(epoch);
        parts[0].back_up(&mut writer(&place, 0, 2), WholeId::new(epoch)).unwrap();
        assert!(whole.ends_with(&ids(&place)) && ids(&place).len() >= 2, "epoch {epoch}: {:?}", ids(&place));
    }
    check(&place);
}

/// The same epochs, in two lives: an id that only one part has, and another one of the same epoch that the other has, make no backup.
#[test]
fn what_two_lives_left_of_an_epoch_is_never_put_together() {
    let place: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
    let epoch = Epoch(1);
    for (number, part) in (0..).zip(&mut parts) {
        part.seal(epoch);
        part.back_up(&mut writer(&place, number, 2), WholeId::new(epoch)).unwrap();
    }
    assert!(list(&place).backups.is_empty());
    // Of another number of parts, under the same place: each counts for itself.
    let id = WholeId::new(epoch);
    for (number, part) in (0..).zip(&parts) {
        part.back_up(&mut writer(&place, number, 2), id).unwrap();
    }
    let other = tempfile::tempdir().unwrap();
    let mut alone = Part::open(other.path());
    alone.seal(epoch);
    let only = WholeId::new(epoch);
    alone.back_up(&mut writer(&place, 0, 1), only).unwrap();
    let there: Vec<_> = list(&place).backups.iter().map(|backup| (backup.id, backup.parts.len())).collect();
    assert!(there.contains(&(id, 2)) && there.contains(&(only, 1)) && there.len() == 2, "{there:?}");
    let refused = alone.store.part_checkpoint(epoch).unwrap();
    let error = writer(&place, 0, 1).back_up(&refused, WholeId::new(Epoch(2)), b"", &[]).unwrap_err();
    assert!(error.to_string().contains("holds epoch 1, the backup is of 2"), "{error}");
}

/// A record that is damaged made every backup of the job impossible to list, to restore and to go on from.
#[test]
fn a_damaged_record_keeps_nobody_from_the_other_backups() {
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
    let mut back_up = |epoch| {
        let id = WholeId::new(epoch);
        for (number, part) in (0..).zip(&mut parts) {
            part.seal(epoch);
            part.back_up(&mut writer(&place, number, 2), id).unwrap();
        }
        id
    };
    let made = [back_up(Epoch(1)), back_up(Epoch(2))];
    let first = list(&place).backups[0].parts[1].1.id;
    let record = Path::from(format!("a/prefix/part-0001-of-0002/log/{:016x}.json", first.get()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(inner.put(&record, bytes::Bytes::from_static(b"{}").into())).unwrap();
    let found = list(&place);
    assert_eq!(found.backups.iter().map(|backup| backup.id).collect::<Vec<_>>(), made[1..]);
    assert!(found.damaged.len() == 1 && found.damaged[0].to_string().contains("part-0001-of-0002"));
    assert_eq!(found.incomplete, made[..1]);
    check(&place);
    let third = back_up(Epoch(3));
    assert_eq!(ids(&place), [made[1], third]);
}

/// A damaged record of one part, or one that was moved away, ended for good that old backups of any part were removed.
#[test]
fn old_backups_go_also_after_a_record_was_damaged() {
    let inner = Arc::new(InMemory::new());
    let place: Arc<dyn ObjectStore> = inner.clone();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
    let mut writers = [0, 1].map(|number| writer(&place, number, 2));
    let mut back_up = |epoch| {
        let id = WholeId::new(Epoch(epoch));
        for (part, writer) in parts.iter_mut().zip(&mut writers) {
            part.seal(Epoch(epoch));
            part.back_up(writer, id).unwrap();
        }
        id
    };
    for (first, gone) in [(1, false), (11, true)] {
        for epoch in first..first + 4 {
            back_up(epoch);
        }
        let newest = list(&place).backups.pop().unwrap().parts[1].1.id;
        let record = Path::from(format!("a/prefix/part-0001-of-0002/log/{:016x}.json", newest.get()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // The head, until something comes after it.
        let last = back_up(first + 4);
        runtime.block_on(async {
            if gone {
                inner.delete(&record).await.unwrap();
            } else {
                inner.put(&record, bytes::Bytes::from_static(b"{}").into()).await.unwrap();
            }
        });
        let before = list(&place);
        // What is damaged is none of those that are kept: older ones stay instead of it.
        assert!(before.backups.len() == 2 && before.damaged.len() == 1, "{:?}", before.damaged);
        let next = back_up(first + 5);
        assert!(ids(&place).ends_with(&[last, next]) && ids(&place).len() == 3, "{:?}", ids(&place));
        let made: Vec<_> = (first + 6..first + 10).map(&mut back_up).collect();
        let there = list(&place);
        assert!(there.damaged.is_empty() && there.backups.len() <= 3, "{:?}", there.damaged);
        assert!(ids(&place).ends_with(&made[2..]));
        check(&place);
    }
}

/// Of all parts together no more requests are under way and no more bytes are moved in a second than of one.
#[test]
fn parts_that_are_restored_together_keep_to_the_limits_together() {
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let id = WholeId::new(Epoch(1));
    for number in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mut part = Part::open(dir.path());
        for key in 0..200_u32 {
            part.core.put(&key.to_le_bytes(), &[b'x'; 100]).unwrap();
        }
        part.seal(id.epoch());
        part.back_up(&mut writer(&plain, number, 2), id).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let restored = |store: &Arc<dyn ObjectStore>, name: &str, options: &BackupOptions| {
        let whole = list_whole_backups(&target(store), options).unwrap().backups.pop().unwrap();
        let wanted = whole.parts.iter().enumerate().map(|(number, (place, info))| {
            (place.clone(), info.id, dir.path().join(format!("{name}-{number}")))
        });
        let mut told = Vec::new();
        let wanted: Vec<_> = wanted.collect();
        let receipts = restore_several(&OsVfs::new(), &wanted, options, |now| told.push(now)).unwrap();
        let bytes: u64 = receipts.iter().map(|receipt| receipt.bytes).sum();
        assert!(told.is_sorted_by(|a, b| a.bytes_done < b.bytes_done), "{told:?}");
        let last = told.pop().unwrap();
        assert_eq!((last.bytes_done, last.bytes_total), (bytes, bytes));
        for (number, receipt) in receipts.iter().enumerate() {
            let fork = dir.path().join(format!("{name}-{number}-fork"));
            let fork = Store::builder(fork).from_savepoint(&receipt.path).open_as_part(Ok).unwrap();
            assert_eq!((fork.report.keys, fork.report.recovery_point), (201, id.epoch()));
        }
        receipts
    };
    let watched = |concurrency| {
        let store = Faulty::new(&inner, |_, _, _| Fault::None);
        let name = format!("of-{concurrency}");
        let plain: Arc<dyn ObjectStore> = store.clone();
        restored(&plain, &name, &options().concurrency(concurrency));
        let operations = store.operations();
        let chunks_of = |part: &str| {
            operations
                .iter()
                .filter(|(_, path)| path.as_ref().contains(&format!("{part}-of-0002/files/")))
                .count()
        };
        (store.most_under_way(), chunks_of("part-0000"), chunks_of("part-0001"))
    };
    let (all, first, second) = watched(256);
    assert!(first > 20 && second > 20 && all > first.max(second), "{all} of {first} and {second}");
    assert_eq!((watched(3).0, watched(1).0), (3, 1));

    let limit: u32 = 100 << 10;
    // All chunks wait for their time from the beginning.
    let slow = options().concurrency(256).bytes_per_second(limit.into());
    for receipt in restored(&plain, "slow", &slow) {
        // All but the last chunk of both parts have had their time.
        let least = (2 * receipt.bytes - 1400) as f64 / f64::from(limit);
        assert!(receipt.time.as_secs_f64() >= least && least > 0.2, "{receipt:?}, not {least}");
    }

    // Two targets, although of one store: nothing would drive the connections of the second.
    let [one, other] = [(); 2].map(|()| list(&plain).backups.pop().unwrap().parts);
    let wanted = |(place, info): &(BackupTarget, BackupInfo), name: &str| {
        (place.clone(), info.id, dir.path().join(name))
    };
    let apart = [wanted(&one[0], "apart"), wanted(&other[1], "apart, too")];
    let same = [wanted(&one[0], "apart"), wanted(&one[1], "apart")];
    for (backups, why) in [(apart, "within"), (same, "Name a directory for each")] {
        let error = restore_several(&OsVfs::new(), &backups, &options(), |_| {}).unwrap_err();
        assert!(matches!(error, BackupError::InvalidInput(_)) && error.to_string().contains(why), "{error}");
        assert!(!dir.path().join("apart.unfinished").exists());
    }
}

/// What tells which parts there are fails or breaks off: it is asked again, or it is an error, and never a place with nothing in it.
#[test]
fn a_listing_of_the_parts_that_fails_is_no_empty_place() {
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let id = WholeId::new(Epoch(1));
    for number in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mut part = Part::open(dir.path());
        part.seal(id.epoch());
        part.back_up(&mut writer(&plain, number, 2), id).unwrap();
    }
    for fault in [Fault::Before, Fault::LostReply, Fault::PartialListing] {
        let failing = |times| -> Arc<dyn ObjectStore> {
            let left = AtomicUsize::new(times);
            Faulty::new(&inner, move |_, kind, path| {
                let is_it = kind == Kind::List && path.as_ref() == "a/prefix";
                let fails = is_it
                    && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
                if fails { fault } else { Fault::None }
            })
        };
        assert_eq!(ids(&failing(1)), [id], "{fault:?}");
        let error = list_whole_backups(&target(&failing(2)), &options()).unwrap_err();
        assert!(matches!(error, BackupError::Unreachable(_)), "{fault:?}: {error}");
    }
}

/// Lost replies, refusals for nothing, listings that break off or are behind, at random: what all parts confirmed counts, or a later
/// one, and everything that counts is there.
#[test]
fn faults_of_every_kind_are_survived_by_a_whole() {
    let seeds = std::env::var("LAMINAR_SEED").map_or(1..9, |seed| {
        let seed: u64 = seed.parse().unwrap();
        seed..seed + 1
    });
    let (mut made, mut failed) = (0, 0);
    for seed in seeds {
        let inner = Arc::new(InMemory::new());
        let plain: Arc<dyn ObjectStore> = inner.clone();
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
        let mut confirmed = Epoch(0);
        for epoch in (1..=4).map(Epoch) {
            let id = WholeId::new(epoch);
            let mut all = true;
            for (number, part) in (0..).zip(&mut parts) {
                part.seal(epoch);
                let store = seeded(seed * 100 + epoch.get() * 10 + u64::from(number), 15);
                let store: Arc<dyn ObjectStore> = Faulty::new(&inner, store);
                let outcome = part.back_up(&mut writer(&store, number, 2), id);
                assert!(
                    matches!(outcome, Ok(()) | Err(BackupError::Unreachable(_))),
                    "seed {seed}: {outcome:?}"
                );
                all &= outcome.is_ok();
            }
            (made, failed) = (made + u64::from(all), failed + u64::from(!all));
            confirmed = if all { epoch } else { confirmed };
            let there = ids(&plain);
            let newest = there.last().map_or(Epoch(0), |id| id.epoch());
            assert!(newest >= confirmed, "seed {seed}: {there:?} instead of {confirmed}");
            // Whoever looks through the same network sees nothing that is not there.
            let store: Arc<dyn ObjectStore> = Faulty::new(&inner, seeded(seed + epoch.get() * 7_919, 25));
            match list_whole_backups(&target(&store), &options()) {
                Ok(seen) => {
                    assert!(seen.backups.iter().all(|backup| there.contains(&backup.id)), "seed {seed}")
                }
                Err(error) => assert!(matches!(error, BackupError::Unreachable(_)), "seed {seed}: {error}"),
            }
        }
        check(&plain);
    }
    if std::env::var("LAMINAR_SEED").is_err() {
        assert!(made > 3 && failed > 3, "{made} made, {failed} failed");
    }
}

/// A part's writer dies at every one of its requests, before or after it took effect, and another one goes on.
#[test]
fn wherever_a_writer_dies_what_is_whole_stays_and_the_next_backup_is_made() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut parts = dirs.each_ref().map(|dir| Part::open(dir.path()));
    let inner = Arc::new(InMemory::new());
    let plain: Arc<dyn ObjectStore> = inner.clone();
    let mut epoch = Epoch(0);
    let mut next = |parts: &mut [Part; 2]| {
        epoch = epoch.next();
        parts.iter_mut().for_each(|part| part.seal(epoch));
        WholeId::new(epoch)
    };
    let mut cases = 0;
    for victim in [0_u32, 1] {
        for after in [false, true] {
            for at in 0.. {
                let id = next(&mut parts);
                let before = ids(&plain);
                let count = Arc::new(AtomicUsize::new(0));
                let seen = Arc::clone(&count);
                let dying: Arc<dyn ObjectStore> =
                    Faulty::new(&inner, move |_, _, _| match (seen.fetch_add(1, Ordering::SeqCst), after) {
                        (n, _) if n < at => Fault::None,
                        (n, true) if n == at => Fault::LostReply,
                        _ => Fault::Dead,
                    });
                let died = parts[victim as usize].back_up(&mut writer(&dying, victim, 2), id).is_err();
                let there = ids(&plain);
                assert!(before.len() < 2 || there.len() >= 2, "{before:?} became {there:?}, request {at}");
                cases += 1;
                // All parts go on with the same or, as after a crash of the whole, with the next one.
                for part in &parts {
                    part.store.checkpoint_at(id.epoch()).unwrap();
                }
                let id = if at % 2 == 0 { id } else { next(&mut parts) };
                for (number, part) in (0..).zip(&parts) {
                    part.back_up(&mut writer(&plain, number, 2), id).unwrap();
                }
                assert_eq!(ids(&plain).last(), Some(&id), "request {at}");
                if !died {
                    break;
                }
            }
            check(&plain);
        }
    }
    assert!(cases > 40, "{cases}");
}
