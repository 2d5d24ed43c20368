use super::*;

#[test]
fn a_fault_hits_its_operation_once_or_forever() {
    let (disk, file) = disk_with("f", b"");
    disk.fail_op(2, Fault::Eio, Duration::Once);
    assert!(file.write_at(b"1", 0).is_ok());
    assert!(file.write_at(b"2", 1).is_err());
    assert!(file.write_at(b"2", 1).is_ok());
    disk.fail_op(4, Fault::Enospc, Duration::Forever);
    for _ in 0..3 {
        let full = file.write_at(b"3", 2).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
    assert!(disk.create_new(path("g")).is_err());
    assert_eq!(disk.faults_fired(), 5);
    disk.clear_faults();
    assert_eq!(disk.read_file("f").unwrap(), b"12");
    file.write_at(b"3", 2).unwrap();
}

#[test]
fn short_and_interrupted_transfers_are_survived_by_the_helpers() {
    let bytes: Vec<u8> = (0..100).collect();
    for short in [Short::One, Short::Half, Short::AllButOne] {
        let (disk, file) = disk_with("f", b"");
        disk.number_reads(true);
        disk.fail_op(1, Fault::Eintr, Duration::Once);
        disk.fail_op(2, Fault::ShortWrite(short), Duration::Forever);
        write_all_at(file.as_ref(), &bytes, 0).unwrap();
        assert!(disk.stats().writes > 1);
        disk.fail_op(0, Fault::ShortRead(short), Duration::Forever);
        assert_eq!(read_small_file(&disk, path("f"), 100).unwrap(), bytes);
        assert!(disk.stats().reads > 1);
    }
}

#[test]
fn reads_fail_only_when_they_are_numbered() {
    let (disk, file) = disk_with("f", b"x");
    disk.fail_op(1, Fault::Eio, Duration::Forever);
    assert!(file.read_at(&mut [0], 0).is_ok());
    disk.number_reads(true);
    assert!(file.read_at(&mut [0], 0).is_err());
    assert!(disk.kind(path("f")).is_err());
    assert!(disk.read_dir(path("/")).is_err());
    assert_eq!(disk.ops(), 3);
}

#[test]
fn a_lost_answer_hides_a_change_that_happened() {
    let (disk, _file) = disk_with("f", b"x");
    disk.fail_op(1, Fault::EioAfter, Duration::Once);
    assert!(disk.rename(path("f"), path("g")).is_err());
    assert_eq!(disk.files(), [("g".into(), 1)]);
}

#[test]
fn a_failed_sync_loses_what_it_should_have_written_and_the_next_one_succeeds() {
    for (keep, expected) in [
        (Keep::Nothing, b"..".to_vec()),
        (Keep::FirstHalf, b"A.".to_vec()),
        (Keep::SecondHalf, b".B".to_vec()),
        (Keep::All, b"AB".to_vec()),
    ] {
        for reads_old in [false, true] {
            let (disk, file) = disk_with("f", b"..");
            write_all_at(file.as_ref(), b"A", 0).unwrap();
            write_all_at(file.as_ref(), b"B", 1).unwrap();
            let fault = Fault::SyncDropsAndCleans { keep, reads_old };
            disk.fail_op(3, fault, Duration::Once);
            assert!(file.sync_data().is_err());
            file.sync_data().unwrap();
            let seen = disk.read_file("f").unwrap();
            assert_eq!(seen, if reads_old { &expected[..] } else { b"AB" });
            let left = outcomes(&disk, |d| d.read_file("f").unwrap());
            assert_eq!(left, [expected.clone()].into(), "{keep:?}");
        }
    }
}

#[test]
fn writing_on_after_a_failed_sync_leaves_a_hole() {
    let (disk, file) = disk_with("f", b"");
    write_all_at(file.as_ref(), b"12", 0).unwrap();
    let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
    disk.fail_op(2, fault, Duration::Once);
    assert!(file.sync_data().is_err());
    write_all_at(file.as_ref(), b"34", 2).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.read_file("f").unwrap(), b"1234");
    assert_eq!(outcomes(&disk, |d| d.read_file("f").unwrap()), [b"\0\x0034".to_vec()].into());
}

#[test]
fn a_failed_directory_sync_loses_entries() {
    for (keep, expected) in [
        (Keep::Nothing, [false, false]),
        (Keep::FirstHalf, [true, false]),
        (Keep::SecondHalf, [false, true]),
        (Keep::All, [true, true]),
    ] {
        let disk = SimDisk::new(1);
        disk.create_new(path("a")).unwrap();
        disk.create_new(path("b")).unwrap();
        let fault = Fault::SyncDropsAndCleans { keep, reads_old: keep == Keep::FirstHalf };
        disk.fail_op(3, fault, Duration::Once);
        assert!(disk.sync_dir(path("/")).is_err());
        disk.sync_dir(path("/")).unwrap();
        let left = outcomes(&disk, |d| ["a", "b"].map(|n| text(d, n).is_some()));
        assert_eq!(left, [expected].into());
        let seen = if keep == Keep::FirstHalf { 1 } else { 2 };
        assert_eq!(disk.files().len(), seen);
    }
}

#[test]
fn a_full_disk_takes_what_fits_and_gets_room_back() {
    let (disk, file) = disk_with("f", b"123");
    disk.set_capacity(Some(2));
    assert_eq!(file.write_at(b"abcdef", 1).unwrap(), 4);
    assert!(file.write_at(b"x", 5).is_err());
    assert_eq!(file.write_at(b"xy", 4).unwrap(), 1, "inside the file");
    assert!(disk.create_new(path("g")).is_err());
    assert!(disk.create_dir(path("d")).is_err());
    file.set_len(4).unwrap();
    disk.create_new(path("g")).unwrap();
    disk.remove_file(path("f")).unwrap();
    assert!(disk.open(path("g"), Access::ReadWrite).unwrap().write_at(&[1; 9], 0).unwrap() == 1);
    drop(file);
    let g = disk.open(path("g"), Access::ReadWrite).unwrap();
    assert_eq!(g.write_at(&[1; 9], 1).unwrap(), 4, "the removed file's bytes");
}

#[test]
fn a_read_only_disk_can_be_read_and_locked() {
    let (disk, file) = disk_with("f", b"x");
    drop(disk.lock(path("LOCK")).unwrap());
    disk.set_read_only(true);
    let refused = file.write_at(b"y", 0).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(disk.open(path("f"), Access::ReadWrite).is_err());
    assert!(disk.open(path("f"), Access::Read).is_ok());
    assert!(disk.remove_file(path("f")).is_err());
    assert!(disk.lock(path("LOCK")).is_ok());
    assert!(disk.lock(path("LOCK2")).is_err());
    file.sync_data().unwrap();
}

#[test]
fn without_power_nothing_works() {
    let (disk, file) = disk_with("f", b"x");
    disk.record(true);
    disk.power_off_after(2);
    file.write_at(b"1", 0).unwrap();
    file.write_at(b"2", 1).unwrap();
    let off = file.write_at(b"3", 2).unwrap_err();
    assert_eq!(off.to_string(), "sim: power is off");
    assert!(file.read_at(&mut [0], 0).is_err());
    assert!(disk.open(path("f"), Access::Read).is_err());
    assert_eq!(disk.history().len(), 3);
    let found = outcomes(&disk, |d| d.read_file("f").unwrap());
    assert!(found.contains(b"x".as_slice()) && found.contains(b"12".as_slice()));
    let disk = SimDisk::new(1);
    disk.power_off();
    assert!(disk.create_dir(path("d")).is_err());
}

#[test]
fn removed_and_closed_files_are_forgotten() {
    let disk = SimDisk::new(1);
    for _ in 0..50 {
        let file = disk.create_new(path("f")).unwrap();
        file.write_at(b"x", 0).unwrap();
        disk.remove_file(path("f")).unwrap();
        file.write_at(b"y", 1).unwrap();
        drop(file);
        disk.sync_dir(path("/")).unwrap();
    }
    assert_eq!(disk.machine().tree.nodes.len(), 1);
}
