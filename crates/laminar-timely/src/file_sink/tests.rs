#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};

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
    assert!(sink.commits_len < 1000, "{}", sink.commits_len);
    drop(sink);
    let sink = open(&disk, "job").unwrap();
    assert_eq!((sink.committed(), sink.len), (Epoch(commits), commits * 2));
}
