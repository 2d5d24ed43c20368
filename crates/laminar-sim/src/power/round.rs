//! One recording, and the power cuts that it is examined with.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laminar_storage::ids::Epoch;

use super::cut::{Cursor, Stretch, stretches};
use super::device::{ACKS, DISK, Device, Shared, lock};
use super::disk::Disk;
use super::judge::{Fault, STORE, judge};
use super::machine::{Mounted, Place};
use super::recording::{Record, Recorder, Recording};
use super::tally::{Count, Tally};
use crate::dice::Dice;
use crate::torture::child::Life;

/// No process lives as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a recording begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Nothing but the disk and what is known of it.
    pub blank: Recording,
    /// Where opening the store must land.
    pub expected: Option<Epoch>,
    /// How many power cuts led here.
    pub depth: u64,
}

fn error(of: &str, e: &dyn std::fmt::Display) -> String {
    format!("{of}: {e}")
}

/// A recorder and the file system on it.
struct Bench {
    mounted: Mounted,
    device: Device,
    recorder: Shared,
}

impl Bench {
    fn new(place: &Place, blank: Recording) -> Result<Self, String> {
        let (kind, options) = (blank.kind.clone(), blank.options.clone());
        let recorder = Arc::new(Mutex::new(Recorder::new(blank)));
        let device = Device::mount(Arc::clone(&recorder), &place.device())?;
        let mounted = Mounted::mount(&place.device().join(DISK), &kind, &options, place.live())?;
        Ok(Self { mounted, device, recorder })
    }

    fn so_far(&self) -> Recording {
        lock(&self.recorder).recording().clone()
    }

    fn end(self) -> Result<Recording, String> {
        self.mounted.unmount()?;
        self.device.unmount()?;
        Ok(lock(&self.recorder).recording().clone())
    }
}

/// Whether a sync of a file is a flush of the disk here, after its bytes.
///
/// # Errors
/// It is not, and nothing that is found here means anything.
pub fn probe(place: &Place, blank: Recording) -> Result<(), String> {
    let bench = Bench::new(place, blank)?;
    let word = b"these bytes were synced";
    let before = bench.so_far().records.len();
    let mut file = File::create(place.live().join("probe")).map_err(|e| error("probe", &e))?;
    file.write_all(word).and_then(|()| file.sync_data()).map_err(|e| error("probe", &e))?;
    drop(file);
    let records = bench.end()?.records;
    let mut after = records.get(before..).unwrap_or_default().iter();
    let holds = |record: &Record| matches!(record, Record::Write { bytes, .. } if bytes.windows(word.len()).any(|part| part == word));
    if after.any(holds) && after.any(|record| *record == Record::Flush) {
        return Ok(());
    }
    Err("a sync of a file was not seen as its bytes and then a flush of the disk".into())
}

/// Lets processes work on a disk, and records what reaches it.
///
/// # Errors
/// A process found something wrong, or the machine did not do as it should.
pub fn record(place: &Place, start: &Start, dice: &mut Dice, tally: &mut Tally) -> Result<Recording, String> {
    let bench = Bench::new(place, start.blank.clone())?;
    let mut expected = start.expected;
    for _ in 0..1 + dice.roll(3) {
        live(place, &bench.recorder, expected.take(), dice, tally)?;
    }
    // One in four also shows the power cut while the file system is unmounted.
    let shot = bench.so_far();
    let whole = bench.end()?;
    let recording = if dice.one_in(4) { whole } else { shot };
    let [writes, bytes, flushes, acks] = recording.counts();
    for (count, more) in [
        (Count::Rounds, 1),
        (Count::AfterCut, u64::from(start.depth > 0)),
        (Count::Writes, writes),
        (Count::Bytes, bytes),
        (Count::Flushes, flushes),
        (Count::Acks, acks),
    ] {
        tally.add(count, more);
    }
    Ok(recording)
}

fn live(
    place: &Place,
    recorder: &Shared,
    expected: Option<Epoch>,
    dice: &mut Dice,
    tally: &mut Tally,
) -> Result<(), String> {
    let (truth, acked) = {
        let recorder = lock(recorder);
        (recorder.recording().truth, recorder.acknowledged())
    };
    let cores = [1, 2, 4].get(dice.index(3)).copied().unwrap_or(1);
    let life = Life { truth, seed: dice.draw(), cores, acked, expected, settings: dice.draw() };
    let acks = OpenOptions::new().write(true).open(place.device().join(ACKS)).map_err(|e| error(ACKS, &e))?;
    let root = File::open(place.live()).map_err(|e| error("root", &e))?;
    let mut child = Command::new("/proc/self/exe")
        .arg("torture-child")
        .arg(place.live().join(STORE))
        .args(life.to_arguments())
        .stdin(Stdio::piped())
        .stdout(acks)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| error("could not start a process", &e))?;
    tally.add(Count::Lives, 1);
    let kill_after = dice.one_in(3).then(|| Duration::from_millis(dice.roll(250)));
    // Somebody else's sync now and then brings to the disk what nobody asked to have there.
    let syncs = dice.one_in(3);
    let begin = Instant::now();
    let killed = loop {
        if child.try_wait().map_err(|e| error("wait", &e))?.is_some() {
            break false;
        }
        if begin.elapsed() > kill_after.unwrap_or(PATIENCE) {
            child.kill().map_err(|e| error("kill", &e))?;
            break true;
        }
        if syncs && dice.one_in(8) {
            rustix::fs::syncfs(root.as_fd()).map_err(|e| error("syncfs", &e))?;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    lock(recorder).hang_up();
    tally.add(Count::Killed, u64::from(killed));
    last_words(child, killed && kill_after.is_some(), &life)
}

fn last_words(mut child: Child, killed: bool, life: &Life) -> Result<(), String> {
    let mut text = String::new();
    // What cannot be read is not known.
    let _ = child.stderr.take().map(|mut err| err.read_to_string(&mut text));
    let status = child.wait().map_err(|e| error("wait", &e))?;
    if status.success() || killed && std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
        return Ok(());
    }
    Err(format!("a process ended with {status}: {} ({life:?})", text.trim()))
}

/// A power cut after which something was wrong.
#[derive(Debug)]
pub struct Finding {
    /// Where the stretch begins.
    pub position: usize,
    /// Which part of its writes was kept.
    pub choice: u64,
    /// What was wrong.
    pub fault: Fault,
}

/// Cuts the power of a recording about as often as `budget` says; returns where another one may begin.
///
/// # Errors
/// The first thing that is wrong.
pub fn examine(
    place: &Place,
    recording: &Recording,
    budget: usize,
    dice: &mut Dice,
    tally: &mut Tally,
) -> Result<Option<Start>, Finding> {
    let mut cursor = Cursor::new(recording);
    let mut seen: HashMap<u128, Option<Epoch>> = HashMap::new();
    let mut next = None;
    for (stretch, choices) in choose(recording, budget, dice) {
        tally.add(Count::Cuts, 1);
        for choice in choices {
            let disk = cursor.image(&stretch, choice);
            let finding = |fault| Finding { position: stretch.begin, choice, fault };
            let hash = disk.hash();
            if seen.get(&hash).is_some_and(|landed| landed.unwrap_or_default() >= stretch.acknowledged) {
                tally.add(Count::Same, 1);
                continue;
            }
            let landed = try_one(place, recording, &disk, stretch.acknowledged, tally).map_err(finding)?;
            seen.insert(hash, landed);
            // Any of them, each as likely as the others.
            if dice.one_in(seen.len() as u64) {
                next = Some((disk, landed, stretch.acknowledged));
            }
        }
    }
    Ok(next.map(|(disk, landed, acknowledged)| {
        let floor = landed.unwrap_or_default().max(acknowledged);
        let blank = Recording { base: disk, floor, records: Vec::new(), ..recording.clone() };
        Start { blank, expected: landed, depth: 0 }
    }))
}

/// Judges one disk and counts it.
///
/// # Errors
/// What is wrong with it.
pub fn try_one(
    place: &Place,
    recording: &Recording,
    disk: &Disk,
    acknowledged: Epoch,
    tally: &mut Tally,
) -> Result<Option<Epoch>, Fault> {
    tally.add(Count::Mounts, 1);
    let verdict = judge(place, recording, disk, acknowledged);
    match &verdict {
        Ok(verdict) => {
            tally.add(Count::Checked, u64::from(acknowledged > Epoch::ZERO));
            tally.add(Count::Newer, u64::from(verdict.landed.unwrap_or_default() > acknowledged));
        }
        Err(Fault::Mount(_)) => tally.add(Count::Refused, 1),
        Err(_) => {}
    }
    verdict.map(|verdict| verdict.landed)
}

/// Stretches in order, each with choices. Every stretch is cut with nothing of it kept, which is when an acknowledgement
/// that came too early is worth least; as many as the budget allows in 17 more ways.
fn choose(recording: &Recording, budget: usize, dice: &mut Dice) -> Vec<(Stretch, Vec<u64>)> {
    let all = stretches(recording);
    let mut more = budget.saturating_sub(all.len());
    let mut order: Vec<usize> = (0..all.len()).collect();
    for n in (1..order.len()).rev() {
        order.swap(n, dice.index(n + 1));
    }
    let mut choices = vec![vec![0]; all.len()];
    for (n, stretch) in order.into_iter().filter_map(|n| Some((n, all.get(n)?))) {
        // The few states of a single write are not tried 17 times.
        let count = (1 + 4 * stretch.writes as u64).min(17).min(more as u64);
        if stretch.writes > 0 && count > 0 {
            let skipped = 100 * dice.roll(100);
            let chosen = (1..=count).map(|choice| if choice == 1 { 1 } else { skipped + choice });
            choices.get_mut(n).into_iter().for_each(|list| list.extend(chosen.clone()));
            more = more.saturating_sub(usize::try_from(count).unwrap_or(more));
        }
    }
    all.into_iter().zip(choices).collect()
}

/// Keeps a recording, and says where.
///
/// # Errors
/// Writing it.
pub fn keep(recording: &Recording, dir: &Path, name: &str) -> Result<PathBuf, String> {
    let path = dir.join(name);
    let file = File::create(&path).map_err(|e| error(&path.display().to_string(), &e))?;
    recording.save(&mut BufWriter::new(file)).map_err(|e| error(&path.display().to_string(), &e))?;
    Ok(path)
}
