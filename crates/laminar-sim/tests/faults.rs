//! Every operation of every scenario fails in every way; nothing acknowledged is lost, nothing is
//! acknowledged after it, and the next opening recovers. `laminar-sim faults --all` makes all runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::path::Path;
use std::sync::Arc;

use laminar_sim::registry::{find, real};
use laminar_sim::store::{DIR, open, small_settings};
use laminar_sim::{FaultReport, Sweep};
use laminar_storage::vfs::sim::{Duration, Fault, ImageId, Keep, SimDisk};
use laminar_storage::vfs::{Access, Vfs};
use laminar_storage::{Opened, StateReader};
use mimalloc::MiMalloc;

/// As in the long runs.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn swept(name: &str, sweep: &Sweep) -> FaultReport {
    let report = find(name).unwrap().sweep_faults(1, sweep);
    println!("{name}: {report}");
    for failure in report.failures.iter().take(8) {
        println!("  {failure}");
    }
    assert!(report.failures.is_empty(), "{name}: {} failures", report.failures.len());
    report
}

#[test]
fn a_store_of_one_core_survives_every_fault() {
    let report = swept("store-one-core", &Sweep { images_max: 2, threads: 2, ..Sweep::default() });
    assert!(report.runs > 800 && report.refused > 500, "{report}");
}

/// A sync of the log's directory that failed in a truncation dropped the name of the segment that a writer had
/// just begun; the writer's own sync of the directory then succeeded without doing anything, and a power cut
/// took a segment with acknowledged epochs. Found over `store-random-8`; now the first such failure counts
/// for everybody.
#[test]
fn every_scenario_survives_faults() {
    let sweep = Sweep { images_max: 2, one_in: 60, threads: 2, ..Sweep::default() };
    let mut total = FaultReport::default();
    for scenario in real() {
        total.add(&swept(&scenario.name(), &sweep));
    }
    println!("all: {total}");
    assert!(total.runs > 2_500 && total.refused > total.runs / 3, "{total}");
}

/// An opening wrote the end of the log again and zeros behind it, and its sync failed: bytes and length
/// were gone from the disk and counted as clean. The next opening wrote the bytes again but, finding the
/// file longer than its frames, not the length; after a power cut the segment ended before the place that
/// its successor had noted, and the store refused to open. Found by the sweep over `store-tails`.
#[test]
fn a_length_that_a_failed_sync_forgot_is_written_again() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, 1, &small_settings()).unwrap();
    opened.cores[0].put(b"key", b"value").unwrap();
    let epoch = opened.cores[0].seal_epoch().unwrap();
    opened.store.wait_durable(epoch).unwrap();
    let dead = disk.snapshot();
    let mut refused = 0;
    for op in 1..40 {
        let disk = dead.restart();
        let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
        disk.fail_op(op, fault, Duration::Forever);
        refused += u32::from(open(&disk, 1, &small_settings()).is_err());
        let disk = disk.snapshot().restart();
        drop(open(&disk, 1, &small_settings()).unwrap());
        if disk.has_lost_names() {
            continue;
        }
        let cut = disk.snapshot().image(&ImageId::default()).mount();
        let reader = StateReader::open_with(DIR, Arc::new(cut)).unwrap_or_else(|e| panic!("op {op}: {e}"));
        assert_eq!(reader.report().recovery_point, epoch, "op {op}");
    }
    assert!(refused > 5, "{refused}");
}

/// A write stopped short of the zeros at the end of a frame, and failed. Recovery gave the frame up, wrote zeros
/// behind the end of the file, as it always did, and so completed it: the next opening found an epoch that had been
/// discarded. Found by the sweep with pairs of faults over `store-recover-one-core`.
#[test]
fn what_a_recovery_gave_up_is_not_completed_by_zeros() {
    let mut tried = 0;
    for key_len in 1..=8 {
        let disk = SimDisk::new(1);
        disk.record(true);
        let Opened { store, mut cores, .. } = open(&disk, 2, &small_settings()).unwrap();
        for (core, letter) in cores.iter_mut().zip(*b"ab") {
            core.put(&vec![letter; key_len], b"value").unwrap();
            core.seal_epoch().unwrap();
        }
        drop((store, cores));
        let writes = disk.history().into_iter().filter(|snapshot| {
            snapshot.last_op().is_some_and(|op| op.call == "pwrite" && op.path.ends_with(".log"))
        });
        for written in writes {
            let path = Path::new(&*written.last_op().unwrap().path);
            let bytes = written.restart().read_file(path).unwrap();
            let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count().min(bytes.len() - 256);
            for missing in 1..=zeros {
                tried += 1;
                let disk = written.restart();
                let file = disk.open(path, Access::ReadWrite).unwrap();
                file.set_len((bytes.len() - missing) as u64).unwrap();
                let point = |cores| open(&disk, cores, &small_settings()).unwrap().report.recovery_point;
                // The core that leaves has no later segment that would say where its log ends.
                let reader = StateReader::open_with(DIR, Arc::new(disk.clone())).unwrap();
                assert_eq!(
                    [1, 1, 2, 1].map(point),
                    [reader.report().recovery_point; 4],
                    "{}: {missing} bytes missing",
                    path.display()
                );
            }
        }
    }
    assert!(tried > 10, "{tried}");
}
