#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use laminar_storage::vfs::sim::{Duration, Fault, ImageId, ImagePolicy, Keep, SimDisk};

use super::*;

const DIR: &str = "/out";
const PART: SinkPart = SinkPart { generation: 1, worker: 0 };

fn open(disk: &SimDisk, job: &str) -> Result<FileSink<u64>, Error> {
    let line = |row: &u64, out: &mut Vec<u8>| out.extend_from_slice(format!("{row}\n").as_bytes());
    FileSink::open_with(DIR, job, PART, line, Arc::new(disk.clone()))
}

fn rows(disk: &SimDisk) -> String {
    let bytes = disk.read_file(FileSink::<u64>::path(Path::new(DIR), PART)).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn cut_back(sink: &mut FileSink<u64>, epoch: Epoch) {
    let CutBack { to, cut } = sink.prepare_cut_back(epoch).unwrap();
    cut(sink).unwrap();
    assert_eq!(sink.committed(), to);
}

#[test]
fn rows_are_there_once_and_in_order() {
    let disk = SimDisk::new(1);
    let mut sink = open(&disk, "job").unwrap();
    assert_eq!(sink.committed(), Epoch::ZERO);
    sink.commit(&[(Epoch(3), vec![1, 2]), (Epoch(4), vec![3])]).unwrap();
    sink.commit(&[(Epoch(9), vec![4])]).unwrap();
    drop(sink);
    let sink = open(&disk, "job").unwrap();
    assert_eq!((sink.committed(), rows(&disk).as_str()), (Epoch(9), "1\n2\n3\n4\n"));
    assert!(open(&disk, "job").unwrap_err().to_string().contains("already"), "it is open");
}

#[test]
fn a_power_cut_at_any_moment_leaves_whole_epochs_and_committed_says_which() {
    let disk = SimDisk::new(5);
    drop(open(&disk, "job").unwrap());
    disk.record(true);
    let mut acknowledged = vec![(disk.ops(), 0_u64)];
    let mut sink = open(&disk, "job").unwrap();
    for epoch in 1..=4 {
        sink.commit(&[(Epoch(epoch), vec![epoch, epoch * 10])]).unwrap();
        acknowledged.push((disk.ops(), epoch));
    }
    drop(sink);
    let policy = ImagePolicy { exhaustive_bits: 4, random: 4, torn_cuts: 2, ..ImagePolicy::default() };
    let mut images = 0;
    for snapshot in disk.history() {
        let at_least =
            acknowledged.iter().rev().find(|(op, _)| *op <= snapshot.op()).map_or(0, |(_, epoch)| *epoch);
        for image in snapshot.images(&policy) {
            let disk = image.mount();
            let sink = open(&disk, "job").unwrap();
            let committed = sink.committed().0;
            assert!(committed >= at_least, "op {}: {committed}, {at_least} was acknowledged", snapshot.op());
            let expected: String =
                (1..=committed).map(|epoch| format!("{epoch}\n{}\n", epoch * 10)).collect();
            assert_eq!(rows(&disk), expected);
            images += 1;
        }
    }
    assert!(images > 50, "{images}");
}

#[test]
fn files_of_another_job_and_files_that_were_cut_are_refused() {
    let disk = SimDisk::new(1);
    let mut sink = open(&disk, "job").unwrap();
    sink.commit(&[(Epoch(3), vec![1, 2])]).unwrap();
    drop(sink);
    assert!(open(&disk, "other").unwrap_err().to_string().contains("another job"));
    disk.truncate(FileSink::<u64>::path(Path::new(DIR), PART), 2).unwrap();
    assert!(open(&disk, "job").unwrap_err().to_string().contains("4 bytes of rows were committed, and 2"));
    disk.remove(Path::new(DIR).join("g0001-w0000.commits")).unwrap();
    assert!(open(&disk, "job").unwrap_err().to_string().contains("whose it is"));
}

#[test]
fn old_records_are_forgotten_and_the_last_is_not() {
    let disk = SimDisk::new(1);
    let mut sink = open(&disk, "job").unwrap();
    let commits = COMPACT / RECORD as u64 + 10;
    for epoch in 1..=commits {
        sink.commit(&[(Epoch(epoch), vec![7])]).unwrap();
    }
    assert!(sink.commits_len < COMPACT * 3 / 4, "{}", sink.commits_len);
    drop(sink);
    let mut sink = open(&disk, "job").unwrap();
    assert_eq!((sink.committed(), sink.len), (Epoch(commits), commits * 2));
    // The newer half is there to be cut back to, the older one is not.
    cut_back(&mut sink, Epoch(commits - 1000));
    assert_eq!((sink.committed(), sink.len), (Epoch(commits - 1000), (commits - 1000) * 2));
    let error = sink.prepare_cut_back(Epoch(7)).unwrap_err().to_string();
    assert!(error.contains("epoch 7 is not noted"), "{error}");
}

/// Wherever the power goes, the sink has all of what is to stay, and what is cut off is gone for good once that is said.
#[test]
fn a_sink_that_is_cut_back_has_what_it_had_then() {
    let disk = SimDisk::new(3);
    let mut sink = open(&disk, "job").unwrap();
    for epoch in [2, 4, 7] {
        sink.commit(&[(Epoch(epoch), vec![epoch, epoch])]).unwrap();
    }
    let before = disk.snapshot();
    let cut = sink.prepare_cut_back(Epoch(6)).unwrap();
    assert_eq!((cut.to, sink.committed(), sink.len), (Epoch(4), Epoch(7), 12), "it was only asked");
    assert_eq!(rows(&disk), "2\n2\n4\n4\n7\n7\n");
    (cut.cut)(&mut sink).unwrap();
    assert_eq!((sink.committed(), sink.len), (Epoch(4), 8));
    drop(sink);
    let again = before.image(&ImageId::default()).mount();
    let sink = open(&again, "job").unwrap();
    assert_eq!((sink.committed(), rows(&again).as_str()), (Epoch(7), "2\n2\n4\n4\n7\n7\n"));
    drop(sink);
    let after = disk.snapshot().image(&ImageId::default()).mount();
    let mut sink = open(&after, "job").unwrap();
    assert_eq!((sink.committed(), rows(&after).as_str()), (Epoch(4), "2\n2\n4\n4\n"));
    sink.commit(&[(Epoch(5), vec![5])]).unwrap();
    assert_eq!(rows(&after), "2\n2\n4\n4\n5\n");
    cut_back(&mut sink, Epoch(1));
    assert_eq!((sink.committed(), rows(&after).as_str()), (Epoch::ZERO, ""));
}

/// After a sync that failed the system may show bytes that are not on the disk, and let the next sync succeed without writing them.
/// The record of a commit whose sync failed is taken for a commit by the next process, the job gives its rows up, and then the
/// power goes.
#[test]
fn a_commit_whose_record_was_not_synced_is_not_taken_for_one() {
    let mut tried = 0;
    for after in 1..8 {
        let disk = SimDisk::new(1);
        let mut sink = open(&disk, "job").unwrap();
        sink.commit(&[(Epoch(3), vec![1, 2])]).unwrap();
        let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
        disk.fail_op(disk.ops() + after, fault, Duration::Once);
        if sink.commit(&[(Epoch(4), vec![3])]).is_ok() {
            continue;
        }
        tried += 1;
        // The process ends, as it must. The next one asks what is committed.
        drop(sink);
        let sink = open(&disk, "job").unwrap();
        let committed = sink.committed();
        drop(sink);
        for image in disk.snapshot().images(&ImagePolicy::default()) {
            let sink = open(&image.mount(), "job");
            let has = sink.map(|sink| sink.committed());
            assert_eq!(has.unwrap(), committed, "operation {after}: {committed} was said to survive");
        }
    }
    assert!(tried > 1, "{tried}");
}
