//! A restore of a job's backup that ends after any operation, killed or by a power cut: under its name is nothing or all of it,
//! and the same call goes on.

use std::collections::BTreeMap;

use laminar_storage::StateReader;
use laminar_storage::backup::PartWriter;
use laminar_storage::backup::object_store::memory::InMemory;
use laminar_storage::backup::object_store::path;
use laminar_storage::vfs::sim::{ImagePolicy, SimDisk};

use super::*;
use crate::backups::folder_of;
use crate::layout::Generation;

const DIR: &str = "/job";
const GENERATION: Generation = Generation(3);
const SIZE: Size = Size { processes: 3, workers: 2 };
const EPOCH: Epoch = Epoch(4);
const NOTES: &[u8] = b"of the program";

/// A backup of a job, and what is in it.
struct Backup {
    place: BackupTarget,
    /// Keys and values of each part.
    parts: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
}

fn options() -> BackupOptions {
    BackupOptions::new().chunk_bytes(700)
}

fn backed_up() -> Backup {
    let store = Arc::new(InMemory::new());
    let place = BackupTarget::from_store(store, path::Path::from("jobs"), "test://jobs").unwrap();
    let folder = place.within(&folder_of(GENERATION));
    let id = WholeId::new(EPOCH);
    let parts = (0..SIZE.processes).map(|number| {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::builder(dir.path()).cores(SIZE.workers as usize).open_as_part(Ok).unwrap();
        let (store, mut cores) = (opened.store, opened.cores);
        store.reserve_checkpoint(EPOCH).unwrap();
        let mut state = BTreeMap::new();
        for key in 0..40_u32 {
            let (name, value) =
                (format!("{number}-{key}").into_bytes(), format!("value of {key}").into_bytes());
            cores[key as usize % 2].put(&name, &value).unwrap();
            state.insert(name, value);
        }
        cores.iter_mut().for_each(|core| core.seal_epoch_to(EPOCH).unwrap());
        store.wait_durable(EPOCH).unwrap();
        store.settle(EPOCH).unwrap();
        let mark = Part::new("sums", GENERATION, number, SIZE, Stage::Current).encode();
        let mut writer = PartWriter::new(&folder, number, SIZE.processes, &options()).unwrap();
        writer.back_up(&store.part_checkpoint(EPOCH).unwrap(), id, &mark, &[("notes", NOTES)]).unwrap();
        state
    });
    Backup { parts: parts.collect(), place }
}

impl Backup {
    fn restore(&self, disk: &SimDisk, parts: &[u32]) -> Result<RestoredJob, Error> {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        restore_job_with(&vfs, &self.place, None, Some(parts), Path::new(DIR), &options(), |_| {})
    }

    /// What is under the name is these parts, and nothing else.
    fn check(&self, disk: &SimDisk, parts: &[u32], label: &str) {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let names = disk.read_dir(Path::new(DIR)).unwrap().into_iter().map(|(name, _)| name);
        let names: Vec<_> = names.filter(|name| name != MARKER).collect();
        assert_eq!(names, [folder_of(GENERATION), "notes".to_owned()], "{label}");
        assert_eq!(disk.read_file("/job/notes").unwrap(), NOTES, "{label}");
        let layout = Layout::new(Path::new(DIR), &vfs);
        let there = layout.parts().unwrap();
        assert_eq!(there.iter().map(|part| part.part).collect::<Vec<_>>(), parts, "{label}");
        for part in there {
            let restored =
                Restored { epoch: EPOCH, generation: GENERATION, size: SIZE, at: EPOCH, used: EPOCH };
            let told = (part.size, part.stage, part.restored);
            assert_eq!(told, (SIZE, Stage::Current, Some(restored)), "{label}");
            let reader = StateReader::open_with(layout.store_dir(GENERATION, part.part), Arc::clone(&vfs));
            let reader = reader.unwrap_or_else(|e| panic!("{label}: {e}"));
            assert_eq!(reader.report().recovery_point, EPOCH, "{label}");
            let state: BTreeMap<_, _> = reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            assert_eq!(state, self.parts[part.part as usize], "{label}");
        }
    }

    /// Goes on from what a crash left; what is there then stays, whatever comes. True when it was there already.
    fn goes_on(&self, disk: &SimDisk, parts: &[u32], label: &str) -> bool {
        let there = disk.kind(Path::new(DIR)).unwrap().is_some();
        if there {
            self.check(disk, parts, label);
            return true;
        }
        self.restore(disk, parts).unwrap_or_else(|e| panic!("{label}: {e}"));
        self.check(disk, parts, label);
        let last = ImagePolicy { exhaustive_bits: 0, random: 0, torn_cuts: 0, ..ImagePolicy::default() };
        for image in disk.snapshot().images(&last).take(1) {
            self.check(&image.mount(), parts, &format!("{label}, then {:?}", image.id()));
        }
        false
    }
}

/// Decides which of thousands of images are tried.
fn seed() -> u64 {
    std::env::var("LAMINAR_SEED").map_or(1, |seed| seed.parse().unwrap())
}

#[test]
fn a_restore_of_a_job_that_ends_after_any_operation_leaves_it_or_nothing_and_it_goes_on() {
    let backup = backed_up();
    let parts = [0, 2];
    let seed = seed();
    let disk = SimDisk::new(seed);
    disk.record(true);
    backup.restore(&disk, &parts).unwrap();
    backup.check(&disk, &parts, "without a crash");
    let few = ImagePolicy {
        exhaustive_bits: 3,
        random: 2,
        torn_cuts: 1,
        one_in: 20,
        seed,
        ..ImagePolicy::default()
    };
    let (mut killed, mut cut, mut complete) = (0, 0, 0);
    for snapshot in disk.history() {
        let label = format!("seed {seed}, killed after {:?}", snapshot.last_op());
        complete += u32::from(backup.goes_on(&snapshot.restart(), &parts, &label));
        killed += 1;
        for image in snapshot.images(&few) {
            let label = format!("seed {seed}, power cut after {:?}, {:?}", snapshot.last_op(), image.id());
            complete += u32::from(backup.goes_on(&image.mount(), &parts, &label));
            cut += 1;
        }
    }
    println!("{killed} kills, {cut} power cuts, {complete} of them after it was complete");
    assert!(killed > 200 && cut > 200 && complete > 5, "{killed} {cut} {complete}");
}

/// A second try goes on from what the first one left, and is cut off after any operation too.
#[test]
fn a_second_try_of_a_restore_that_is_cut_off_too_leaves_it_or_nothing_and_it_goes_on() {
    let backup = backed_up();
    let (parts, seed) = ([0, 2], seed());
    let first = SimDisk::new(seed);
    first.record(true);
    backup.restore(&first, &parts).unwrap();
    let history = first.history();
    let after = |path: &str| {
        let renamed = |op: &laminar_storage::vfs::sim::Op| op.call == "rename" && &*op.path == path;
        history.iter().position(|snapshot| snapshot.last_op().is_some_and(renamed)).unwrap()
    };
    // Everything is made but for its name.
    let made = || history[after("/job.unfinished") - 1].flushed().mount();
    // What says whose the directory is stands there, and is not durable.
    let marked = || history[after("/job.fetched/laminar-restore.tmp")].restart();
    let mut cut = 0;
    for (left, disk, exhaustive_bits, one_in) in [("made", made(), 6, 4), ("marked", marked(), 8, 40)] {
        disk.record(true);
        backup.restore(&disk, &parts).unwrap();
        let few =
            ImagePolicy { exhaustive_bits, random: 2, torn_cuts: 0, one_in, seed, ..ImagePolicy::default() };
        for snapshot in disk.history() {
            for image in snapshot.images(&few) {
                let label = format!("seed {seed}, {left}, then {:?}, {:?}", snapshot.last_op(), image.id());
                backup.goes_on(&image.mount(), &parts, &label);
                cut += 1;
            }
        }
    }
    println!("{cut} power cuts of a second try");
    assert!(cut > 200, "{cut}");
    // Nothing of it is left when other parts are asked for.
    let disk = made();
    backup.restore(&disk, &[1]).unwrap();
    backup.check(&disk, &[1], "other parts");
}

/// Two that ran at a time used the same directories: one could publish what the other had just begun.
#[test]
fn a_restore_beside_another_one_of_the_same_directory_is_refused() {
    let backup = backed_up();
    let disk = SimDisk::new(1);
    disk.record(true);
    backup.restore(&disk, &[1]).unwrap();
    let history = disk.history();
    let there = |disk: &SimDisk, path: &str| disk.kind(Path::new(path)).unwrap().is_some();
    let halfway = history.iter().map(|snapshot| snapshot.restart());
    let disk = halfway.into_iter().find(|disk| there(disk, "/job.fetched/part-0001")).unwrap();
    let other = disk.lock(Path::new("/job.fetched/LOCK")).unwrap();
    let refused = backup.restore(&disk, &[1]).unwrap_err().to_string();
    assert!(refused.contains("another restore of this directory is running"), "{refused}");
    drop(other);
    backup.restore(&disk, &[1]).unwrap();
    backup.check(&disk, &[1], "afterwards");
}

/// What says that a restore works in a directory stays when it is killed right after it gave it its name. It was believed in a
/// directory that was called otherwise by then, which was removed.
#[test]
fn a_directory_that_was_renamed_or_is_somebody_elses_is_not_removed() {
    let backup = backed_up();
    for of in ["a job that is complete", "a directory"] {
        let disk = SimDisk::new(1);
        let unfinished = Path::new("/job.unfinished");
        disk.create_dir(unfinished).unwrap();
        if of == "a directory" {
            disk.create_dir(&unfinished.join(MARKER)).unwrap();
        } else {
            replace_file_durably(&disk, unfinished, MARKER, marker(Path::new("/other")).as_bytes()).unwrap();
        }
        replace_file_durably(&disk, unfinished, "notes", NOTES).unwrap();
        let refused = backup.restore(&disk, &[1]).unwrap_err().to_string();
        assert!(refused.contains("this is in the way"), "{of}: {refused}");
        assert_eq!(disk.read_file("/job.unfinished/notes").unwrap(), NOTES, "{of}");
    }
}
