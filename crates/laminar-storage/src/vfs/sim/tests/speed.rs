use std::time::Instant;

use super::*;

/// Makes, mounts and reads images of a store of a few KiB. The bound is generous: it is there to
/// notice when an image comes to cost a hundred times what it should.
#[test]
fn an_image_costs_microseconds() {
    let disk = SimDisk::new(1);
    create_dir_durably(&disk, path("wal")).unwrap();
    let mut files = Vec::new();
    for core in 0..4 {
        let name = format!("wal/{core}");
        let file = disk.create_new(path(&name)).unwrap();
        write_all_at(file.as_ref(), &[1; 4000], 0).unwrap();
        file.sync_data().unwrap();
        files.push(file);
    }
    for name in 0..10 {
        disk.overwrite(format!("wal/x{name}"), &[name; 3000]).unwrap();
    }
    disk.sync_dir(path("wal")).unwrap();
    for (core, file) in files.iter().enumerate() {
        write_all_at(file.as_ref(), &[2; 900], 4000 + core as u64).unwrap();
    }
    let start = Instant::now();
    let mut images = disk.snapshot().images(&ImagePolicy::default());
    let mut count = 0_u32;
    for image in images.by_ref() {
        let disk = image.mount();
        for (name, _) in disk.read_dir(path("wal")).unwrap() {
            let bytes = read_small_file(&disk, &path("wal").join(name), 1 << 20).unwrap();
            assert!(bytes.len() >= 3000);
        }
        count += 1;
    }
    let made = count + u32::try_from(images.duplicates()).unwrap();
    let each = start.elapsed() / made;
    println!("{count} images, {made} made, {each:?} each");
    assert!(each.as_micros() < 2000);
}
