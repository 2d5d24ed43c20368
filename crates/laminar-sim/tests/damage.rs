//! Damage to the files of stores at rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::damage::stores::{reference_store, reference_stores};
use laminar_sim::damage::sweep::{Extent, damage_all};
use laminar_sim::damage::{Damage, SAME, Subject, Table};
use laminar_storage::StateReader;
use std::sync::Arc;

fn counted(work: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(work).bytes_max
}

fn subject(name: &str) -> Subject {
    Subject::new(&reference_store(name).unwrap()).unwrap()
}

fn sweep(name: &str, stride: u64) -> Table {
    let subject = subject(name);
    assert!(subject.total_len() > 50_000, "{name} has {} bytes", subject.total_len());
    let extent = Extent { stride, seed: 11, threads: 2, progress_every: None };
    let table = damage_all(&subject, &extent, counted);
    println!("{name}: {table}");
    for finding in table.findings.iter().take(20) {
        println!("  {finding}");
    }
    assert!(table.cases > 8 * 50_000 / stride, "{} cases", table.cases);
    assert!(table.findings.is_empty(), "{} findings", table.findings.len());
    table
}

#[test]
fn damage_to_a_closed_store_is_an_error_or_harmless() {
    for name in ["resharded", "retention", "compressed"] {
        sweep(name, 97);
    }
}

/// Regression: nothing but its own end testifies to the end of a log of one core. Cut off, or replaced by
/// an older copy, it was taken for a log that never got further, and acknowledged epochs were gone
/// without a word. An orderly end now leaves the last epoch in `CLOSED`.
#[test]
fn a_closed_store_of_one_core_knows_how_far_it_got() {
    sweep("one-core", 13);
}

/// Regression: of a store that was killed right after an acknowledgement, damage to the last frame, which nothing
/// testified to, was taken for a torn write, and the epoch was gone without a word. What is synced is now noted
/// before it is acknowledged, in `SYNCED`.
#[test]
fn damage_to_a_killed_store_is_an_error_or_harmless() {
    for name in ["four-cores", "segments"] {
        assert!(reference_store(name).unwrap().killed);
        sweep(name, 97);
    }
    sweep("two-cores", 97);
}

/// A note of how far the log was synced that is old, damaged or gone proves less and refuses nothing: a power cut may
/// leave it so.
#[test]
fn a_log_opens_with_any_note_of_how_far_it_was_synced() {
    for name in ["four-cores", "segments"] {
        let subject = subject(name);
        let files = subject.contents();
        let (synced, bytes) = files.iter().find(|(path, _)| path.ends_with("SYNCED")).unwrap();
        let mut table = Table::default();
        let bits = (0..bytes.len() as u64 * 8).map(Damage::Bit);
        let cuts = (0..bytes.len() as u64).map(Damage::Cut);
        let whole =
            [Damage::Removed, Damage::Zeroed, Damage::Foreign].into_iter().chain((0..48).map(Damage::Older));
        for damage in bits.chain(cuts).chain(whole) {
            subject.try_one(synced, damage, counted, &mut table).unwrap();
        }
        assert_eq!((table.count(SAME), table.findings.len()), (table.cases, 0), "{table}");
        assert!(table.count_class("older version") > 3, "{table}");
    }
}

/// Regression, found by damaging the checkpoint that a re-sharding made: whoever read the store then, with
/// `StateReader` or `recover_per_core`, began at the checkpoint before, and kept the watermark and the
/// source offsets of a core that the new layout does not have beside those of the cores it has. The
/// watermark was too low, and a source that was removed later would have come back.
#[test]
fn a_reader_that_falls_back_behind_a_re_sharding_sees_the_same_positions() {
    let subject = subject("resharded");
    let seen = |disk| StateReader::open_with(laminar_sim::store::DIR, Arc::new(disk)).unwrap();
    let whole = seen(subject.disk());
    let mut fell_back = 0;
    for (path, _) in subject.contents().iter().filter(|(path, _)| path.ends_with("metadata.json")) {
        let disk = subject.disk();
        disk.remove(path).unwrap();
        let other = seen(disk);
        fell_back += usize::from(!other.report().checkpoints_skipped.is_empty());
        assert_eq!(other.report().watermark, whole.report().watermark);
        assert_eq!(other.report().source_offsets, whole.report().source_offsets);
        assert!(other.iter().eq(whole.iter()));
    }
    assert!(fell_back > 0);
}

/// Regression, found by the fuzz target `directory`: without the checkpoints made since a re-sharding, and with
/// the end of the log of a core that the new layout does not have damaged as well, that end was taken for a
/// torn tail of an earlier life, and an older value came back for a newer epoch.
#[test]
fn the_log_of_a_departed_core_must_reach_to_the_re_sharding() {
    let subject = subject("resharded");
    let files = subject.contents();
    let manifests: Vec<_> = files.iter().filter(|(path, _)| path.ends_with("metadata.json")).collect();
    let departed = files.iter().rfind(|(path, _)| path.to_string_lossy().contains("/wal-2.")).unwrap();
    let disk = subject.disk();
    // The log reaches back to the beginning, so that it would do without any of them.
    manifests.iter().for_each(|(path, _)| disk.remove(path).unwrap());
    assert!(StateReader::open_with(laminar_sim::store::DIR, Arc::new(disk.clone())).is_ok());
    disk.truncate(&departed.0, departed.1.len() as u64 - 200).unwrap();
    let error = StateReader::open_with(laminar_sim::store::DIR, Arc::new(disk.clone())).unwrap_err();
    let store = laminar_sim::store::open(&disk, subject.cores(), &subject.scenario().settings);
    for error in [error, store.unwrap_err()] {
        assert!(error.is_corruption(), "{error}");
    }
}

/// The judge itself: were an acknowledged epoch to go, or another state to come, it would say so.
#[test]
fn what_is_not_the_state_is_a_finding() {
    let mut of_one = subject("one-core");
    let files = of_one.contents();
    let (log, bytes) = files.iter().rfind(|(path, _)| path.extension().is_some_and(|e| e == "log")).unwrap();
    let closed = files.iter().find(|(path, _)| path.ends_with("CLOSED")).unwrap();
    let synced = files.iter().find(|(path, _)| path.ends_with("SYNCED")).unwrap();
    // Without either, a log cut short is that of a store that never got further: nobody can tell.
    let disk = of_one.disk();
    disk.remove(&closed.0).unwrap();
    disk.remove(&synced.0).unwrap();
    of_one.set_disk(&disk);
    let mut table = Table::default();
    let frames = laminar_sim::wire::frames(bytes);
    let cut = Damage::Cut(frames[frames.len() - 3].start as u64);
    of_one.try_one(log, cut, counted, &mut table).unwrap();
    assert_eq!(table.findings.len(), 1, "{table}");
    assert!(table.findings[0].contains("ROLLED BACK"), "{}", table.findings[0]);
    // The line names what to do to see it again.
    let words: Vec<_> = table.findings[0].split_whitespace().collect();
    assert_eq!(words[words.iter().position(|w| *w == "--damage").unwrap() + 1].parse(), Ok(cut));
}

#[test]
fn seven_stores_six_of_them_of_about_64_kib() {
    let stores = reference_stores();
    assert_eq!(stores.len(), 7);
    let total: usize = stores.iter().map(|store| Subject::new(store).unwrap().total_len()).sum();
    assert!(total * 8 > 3_000_000, "{total} bytes");
    assert!(stores.iter().any(|store| store.killed) && stores.iter().any(|store| !store.killed));
}

/// The store of compressed files has blocks that are packed: as they were put, its records take more room.
#[test]
fn the_compressed_store_is_smaller_than_its_records() {
    let subject = subject("compressed");
    let reader = StateReader::open_with(laminar_sim::store::DIR, Arc::new(subject.disk())).unwrap();
    let records: usize = reader.iter().map(|(key, value)| key.len() + value.len()).sum();
    let contents = subject.contents();
    let files = contents.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "sst"));
    let largest = files.map(|(_, bytes)| bytes.len()).max().unwrap();
    assert!(records > 8_000 && largest * 10 < records * 9, "{largest} bytes of {records}");
}
