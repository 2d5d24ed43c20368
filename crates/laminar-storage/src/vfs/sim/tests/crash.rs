use super::*;

#[test]
fn an_unsynced_write_is_absent_present_or_torn() {
    let (disk, file) = disk_with("f", b"old-old-");
    write_all_at(file.as_ref(), b"new-new-", 0).unwrap();
    let found = outcomes(&disk, |d| text(d, "f").unwrap());
    assert!(found.contains("old-old-") && found.contains("new-new-"));
    assert!(found.contains("new-old-"), "torn in the middle: {found:?}");
    for bytes in &found {
        assert_eq!(bytes.len(), 8);
        let changes = bytes.bytes().zip("old-old-".bytes().zip("new-new-".bytes()));
        assert!(changes.into_iter().all(|(b, (o, n))| b == o || b == n));
    }
    file.sync_data().unwrap();
    assert_eq!(outcomes(&disk, |d| text(d, "f").unwrap()), ["new-new-".to_owned()].into());
}

#[test]
fn two_sectors_arrive_in_any_combination() {
    let (disk, file) = disk_with("f", &[0; 1024]);
    write_all_at(file.as_ref(), &[1; 1024], 0).unwrap();
    let found = outcomes(&disk, |d| {
        let bytes = d.read_file("f").unwrap();
        (bytes[0], bytes[511], bytes[512], bytes[1023])
    });
    for combination in [(0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)] {
        assert!(found.contains(&combination), "{combination:?} in {found:?}");
    }
}

#[test]
fn two_writes_arrive_in_any_combination_even_in_one_sector() {
    let (disk, file) = disk_with("f", b"....");
    write_all_at(file.as_ref(), b"A", 0).unwrap();
    write_all_at(file.as_ref(), b"B", 2).unwrap();
    let found = outcomes(&disk, |d| text(d, "f").unwrap());
    assert_eq!(found, ["....", "A...", "..B.", "A.B."].map(str::to_owned).into());
}

#[test]
fn the_size_may_be_lost_without_the_bytes_and_the_bytes_without_the_size() {
    let (disk, file) = disk_with("f", b"12");
    write_all_at(file.as_ref(), b"34", 2).unwrap();
    let found = outcomes(&disk, |d| d.read_file("f").unwrap());
    assert!(found.contains(b"12".as_slice()));
    assert!(found.contains(b"12\0\0".as_slice()));
    assert!(found.contains(b"1234".as_slice()));
    assert!(found.contains(b"123\0".as_slice()), "torn");
    let garbage = |b: &&Vec<u8>| b.len() == 4 && b[2] != 0 && b[2] != b'3';
    assert!(found.iter().any(|b| garbage(&b)));
    let policy = ImagePolicy { garbage: false, ..ImagePolicy::default() };
    let images = disk.snapshot().images(&policy);
    assert!(images.map(|i| i.mount().read_file("f").unwrap()).all(|b| !garbage(&&b)));
}

#[test]
fn of_several_sizes_any_may_survive() {
    let (disk, file) = disk_with("f", b"123456");
    file.set_len(2).unwrap();
    file.set_len(4).unwrap();
    let found = outcomes(&disk, |d| d.read_file("f").unwrap());
    assert_eq!(found, [b"123456".to_vec(), b"12".to_vec(), b"12\0\0".to_vec()].into());
    file.sync_data().unwrap();
    assert_eq!(outcomes(&disk, |d| d.read_file("f").unwrap()), [b"12\0\0".to_vec()].into());
}

#[test]
fn a_synced_file_without_a_synced_entry_may_vanish() {
    let disk = SimDisk::new(1);
    let file = disk.create_new(path("f")).unwrap();
    write_all_at(file.as_ref(), b"x", 0).unwrap();
    file.sync_data().unwrap();
    let found = outcomes(&disk, |d| text(d, "f"));
    assert_eq!(found, [None, Some("x".to_owned())].into());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk, |d| text(d, "f")), [Some("x".to_owned())].into());
}

#[test]
fn a_synced_entry_says_nothing_about_the_bytes() {
    let disk = SimDisk::new(1);
    let file = disk.create_new(path("f")).unwrap();
    write_all_at(file.as_ref(), b"x", 0).unwrap();
    disk.sync_dir(path("")).unwrap();
    let found = outcomes(&disk, |d| d.read_file("f").unwrap());
    assert!(found.contains(b"".as_slice()) && found.contains(b"\0".as_slice()));
}

#[test]
fn a_rename_is_old_or_new_never_neither_never_both() {
    let disk = SimDisk::new(1);
    disk.overwrite("f", b"old").unwrap();
    let file = disk.create_new(path("t")).unwrap();
    write_all_at(file.as_ref(), b"new", 0).unwrap();
    file.sync_data().unwrap();
    disk.rename(path("t"), path("f")).unwrap();
    let look = |d: &SimDisk| (text(d, "f").unwrap(), text(d, "t"));
    let found = outcomes(&disk, look);
    let (old, new) = ("old".to_owned(), "new".to_owned());
    assert_eq!(found, [(old.clone(), None), (old, Some(new.clone())), (new.clone(), None)].into());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk, look), [(new, None)].into());
}

#[test]
fn a_rename_may_overtake_the_bytes() {
    let disk = SimDisk::new(1);
    disk.overwrite("f", b"old").unwrap();
    let file = disk.create_new(path("t")).unwrap();
    write_all_at(file.as_ref(), b"new", 0).unwrap();
    disk.rename(path("t"), path("f")).unwrap();
    disk.sync_dir(path("/")).unwrap();
    let found = outcomes(&disk, |d| d.read_file("f").unwrap());
    assert!(found.contains(b"".as_slice()) && found.contains(b"\0\0\0".as_slice()));
}

#[test]
fn a_name_used_again_does_not_undo_half_a_rename() {
    let disk = SimDisk::new(1);
    disk.overwrite("a", b"1").unwrap();
    disk.rename(path("a"), path("b")).unwrap();
    disk.create_new(path("a")).unwrap();
    let found = outcomes(&disk, |d| (text(d, "a"), text(d, "b")));
    let one = Some("1".to_owned());
    let empty = Some(String::new());
    assert_eq!(found, [(one.clone(), None), (None, one.clone()), (empty, one)].into());
}

#[test]
fn a_rename_between_directories_needs_both_synced() {
    let disk = SimDisk::new(1);
    for dir in ["a", "b"] {
        create_dir_durably(&disk, path(dir)).unwrap();
    }
    disk.overwrite("a/f", b"x").unwrap();
    disk.rename(path("a/f"), path("b/f")).unwrap();
    let look = |d: &SimDisk| (text(d, "a/f").is_some(), text(d, "b/f").is_some());
    let either = [(true, false), (false, true)].into();
    assert_eq!(outcomes(&disk, look), either);
    disk.sync_dir(path("b")).unwrap();
    assert_eq!(outcomes(&disk, look), either);
    disk.sync_dir(path("a")).unwrap();
    assert_eq!(outcomes(&disk, look), [(false, true)].into());
}

#[test]
fn what_moves_out_of_a_removed_directory_into_a_new_one_is_not_lost() {
    let disk = SimDisk::new(1);
    create_dir_durably(&disk, path("a")).unwrap();
    disk.overwrite("a/f", b"x").unwrap();
    disk.create_dir(path("b")).unwrap();
    disk.rename(path("a/f"), path("b/f")).unwrap();
    disk.remove_dir(path("a")).unwrap();
    let look = |d: &SimDisk| (text(d, "a/f").is_some(), text(d, "b/f").is_some());
    let either: BTreeSet<_> = [(true, false), (false, true)].into();
    assert_eq!(outcomes(&disk, look), either);
    disk.sync_dir(path("/")).unwrap();
    // The removal is durable and with it what it needs.
    assert_eq!(outcomes(&disk, look), [(false, true)].into());
}

#[test]
fn a_removed_file_may_come_back_with_its_bytes() {
    let (disk, file) = disk_with("f", b"x");
    drop(file);
    disk.remove_file(path("f")).unwrap();
    let found = outcomes(&disk, |d| text(d, "f"));
    assert_eq!(found, [None, Some("x".to_owned())].into());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk, |d| text(d, "f")), [None].into());
}

#[test]
fn removals_and_new_names_are_independent() {
    let disk = SimDisk::new(1);
    disk.overwrite("a", b"1").unwrap();
    disk.remove_file(path("a")).unwrap();
    disk.create_new(path("b")).unwrap();
    disk.create_new(path("c")).unwrap();
    let found = outcomes(&disk, |d| ["a", "b", "c"].map(|n| text(d, n).is_some()));
    assert_eq!(found.len(), 8);
}

#[test]
fn a_lost_directory_takes_its_content_with_it() {
    let disk = SimDisk::new(1);
    disk.create_dir(path("d")).unwrap();
    let file = disk.create_new(path("d/f")).unwrap();
    write_all_at(file.as_ref(), b"x", 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path("d")).unwrap();
    let look = |d: &SimDisk| (d.kind(path("d")).unwrap().is_some(), text(d, "d/f"));
    let x = Some("x".to_owned());
    assert_eq!(outcomes(&disk, look), [(false, None), (true, x.clone())].into());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk, look), [(true, x)].into());
}

#[test]
fn a_renamed_directory_may_miss_what_was_not_synced_in_it() {
    let disk = SimDisk::new(1);
    disk.create_dir(path("t")).unwrap();
    disk.create_new(path("t/f")).unwrap();
    disk.rename(path("t"), path("d")).unwrap();
    disk.sync_dir(path("/")).unwrap();
    let look = |d: &SimDisk| (d.kind(path("t")).unwrap().is_some(), text(d, "d/f").is_some());
    assert_eq!(outcomes(&disk, look), [(false, false), (false, true)].into());
}

#[test]
fn a_hard_link_is_an_entry_of_its_own() {
    let (disk, file) = disk_with("f", b"1");
    disk.hard_link(path("f"), path("g")).unwrap();
    write_all_at(file.as_ref(), b"2", 0).unwrap();
    file.sync_data().unwrap();
    let found = outcomes(&disk, |d| (text(d, "f"), text(d, "g")));
    let two = Some("2".to_owned());
    assert_eq!(found, [(two.clone(), None), (two.clone(), two)].into());
    disk.sync_dir(path("/")).unwrap();
    disk.remove_file(path("f")).unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk, |d| text(d, "g").is_some()), [true].into());
}

#[test]
fn a_journal_keeps_changes_in_order_and_bytes_before_sizes() {
    let disk = SimDisk::new(1);
    let policy = ImagePolicy { profile: Profile::Ext4Ordered, ..ImagePolicy::default() };
    let see = |disk: &SimDisk| -> BTreeSet<_> {
        let images = disk.snapshot().images(&policy);
        images
            .map(|i| {
                let d = i.mount();
                (text(&d, "a"), text(&d, "b").is_some())
            })
            .collect()
    };
    let file = disk.create_new(path("a")).unwrap();
    write_all_at(file.as_ref(), b"x", 0).unwrap();
    disk.create_new(path("b")).unwrap();
    let empty = Some(String::new());
    let x = Some("x".to_owned());
    let expected = [(None, false), (empty, false), (x.clone(), false), (x.clone(), true)];
    assert_eq!(see(&disk), expected.into());
    file.sync_data().unwrap();
    assert_eq!(see(&disk), [(x, true)].into());
}

#[test]
fn prewriting_zeros_is_one_image_but_for_the_size() {
    let (disk, file) = disk_with("f", b"");
    write_all_at(file.as_ref(), &[0; 64 * 1024], 0).unwrap();
    assert_eq!(disk.snapshot().pending(), 1);
    let mut images = disk.snapshot().images(&ImagePolicy::default());
    assert_eq!(images.by_ref().count(), 3, "empty, zeros, garbage");
    assert!(images.is_exhaustive());
}

#[test]
fn many_pending_items_are_sampled() {
    let (disk, file) = disk_with("f", &[0; 8192]);
    write_all_at(file.as_ref(), &[1; 8192], 0).unwrap();
    let mut images = disk.snapshot().images(&ImagePolicy::default());
    let count = images.by_ref().count();
    assert!(!images.is_exhaustive());
    assert!(count > 300, "{count} images");
    let found = outcomes(&disk, |d| d.read_file("f").unwrap().chunks(512).filter(|s| s[0] == 1).count());
    for telling in [0, 1, 15, 16] {
        assert!(found.contains(&telling));
    }
}

#[test]
fn replacing_a_file_durably_is_old_or_new_at_every_instant() {
    let disk = SimDisk::new(1);
    create_dir_durably(&disk, path("d")).unwrap();
    replace_file_durably(&disk, path("d"), "f", b"old").unwrap();
    disk.record(true);
    replace_file_durably(&disk, path("d"), "f", &[b'n'; 1500]).unwrap();
    let mut images = 0;
    for snapshot in disk.history() {
        for image in snapshot.images(&ImagePolicy::default()) {
            let bytes = image.mount().read_file("d/f").unwrap();
            assert!(bytes == b"old" || bytes == [b'n'; 1500], "{}", image.id());
            images += 1;
        }
    }
    assert!(images >= 40, "{images}");
}

#[test]
fn what_an_operation_adds_is_all_that_is_new_after_it() {
    let disk = SimDisk::new(1);
    disk.record(true);
    create_dir_durably(&disk, path("d")).unwrap();
    let file = disk.create_new(path("d/a")).unwrap();
    write_all_at(file.as_ref(), &[1; 700], 0).unwrap();
    file.set_len(2000).unwrap();
    write_all_at(file.as_ref(), &[2; 100], 1500).unwrap();
    file.sync_data().unwrap();
    disk.rename(path("d/a"), path("d/b")).unwrap();
    write_all_at(file.as_ref(), &[3; 600], 100).unwrap();
    disk.sync_dir(path("d")).unwrap();
    file.set_len(50).unwrap();
    write_all_at(file.as_ref(), &[4; 600], 40).unwrap();
    disk.remove_file(path("d/b")).unwrap();
    // Where an atom is torn depends on its number, which changes.
    let policy = ImagePolicy { torn_cuts: 0, ..ImagePolicy::default() };
    let (mut all, mut new, mut made) = (std::collections::HashSet::new(), all_of(&disk, &policy), 0);
    for (number, snapshot) in disk.history().iter().enumerate() {
        all.extend(snapshot.images(&policy).map(|image| image.hash()));
        if number > 0 {
            let before = disk.history()[number - 1].op();
            for image in snapshot.images(&policy).newer_than(before) {
                new.insert(image.hash());
                made += 1;
            }
        }
    }
    assert_eq!(all, new);
    assert!(made < 3 * all.len(), "{made} of {}", all.len());
}

/// Of the first snapshot.
fn all_of(disk: &SimDisk, policy: &ImagePolicy) -> std::collections::HashSet<u64> {
    disk.history()[0].images(policy).map(|image| image.hash()).collect()
}
