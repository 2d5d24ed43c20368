//! Damages every file of a store in every way a table names, and judges each opening: the state as it
//! was, or an error that names the file. Nothing else is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use laminar_storage::vfs::sim::{SimDisk, Snapshot};
use laminar_storage::{StateReader, StoreError};

use crate::driver::guarded;
use crate::log::Log;
use crate::meter::Meter;
use crate::oracle::{Model, Recovered};
use crate::store::{DIR, Do, Live, StoreScenario, open, recovered};

pub mod stores;
pub mod sweep;

use stores::Reference;

const SECTOR: u64 = 512;
/// What an opening may hold in memory beyond the size of the damaged file.
const ALLOCATION_SLACK: u64 = 1 << 20;
/// Older versions of a file that are put in its place, at most.
const OLDER_MAX: usize = 48;

/// What happens to one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is wrong.
    Bit(u64),
    /// Cut to a length.
    Cut(u64),
    /// Gone.
    Removed,
    /// As long as before, all zeros.
    Zeroed,
    /// The sector of this number is zeros.
    ZeroSector(u64),
    /// The sector of this number stands also where the next one was.
    DoubleSector(u64),
    /// The sector of this number and the next one have changed places.
    SwapSectors(u64),
    /// The file of that name, or else of that kind, of another store.
    Foreign,
    /// What it was at an earlier time; 0 is the oldest.
    Older(u64),
}

impl Damage {
    fn class(self) -> &'static str {
        match self {
            Self::Bit(_) => "bit flipped",
            Self::Cut(0) => "emptied",
            Self::Cut(_) => "cut",
            Self::Removed => "removed",
            Self::Zeroed => "zeroed",
            Self::ZeroSector(_) => "sector zeroed",
            Self::DoubleSector(_) => "sector doubled",
            Self::SwapSectors(_) => "sectors swapped",
            Self::Foreign => "of another store",
            Self::Older(_) => "older version",
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bit(n) => write!(f, "bit:{n}"),
            Self::Cut(n) => write!(f, "cut:{n}"),
            Self::Removed => f.write_str("removed"),
            Self::Zeroed => f.write_str("zeroed"),
            Self::ZeroSector(n) => write!(f, "zero-sector:{n}"),
            Self::DoubleSector(n) => write!(f, "double-sector:{n}"),
            Self::SwapSectors(n) => write!(f, "swap-sectors:{n}"),
            Self::Foreign => f.write_str("foreign"),
            Self::Older(n) => write!(f, "older:{n}"),
        }
    }
}

impl FromStr for Damage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = text.split_once(':').unwrap_or((text, "0"));
        let n = number.parse().map_err(|e| format!("damage {text}: {e}"))?;
        Ok(match kind {
            "bit" => Self::Bit(n),
            "cut" => Self::Cut(n),
            "removed" => Self::Removed,
            "zeroed" => Self::Zeroed,
            "zero-sector" => Self::ZeroSector(n),
            "double-sector" => Self::DoubleSector(n),
            "swap-sectors" => Self::SwapSectors(n),
            "foreign" => Self::Foreign,
            "older" => Self::Older(n),
            _ => return Err(format!("there is no damage {text}")),
        })
    }
}

/// A store at rest, what it must hold, and where its damaged files come from.
pub struct Subject {
    disk: Snapshot,
    model: Model,
    reference: Reference,
    files: BTreeMap<PathBuf, File>,
    checkpoint_set: u64,
}

struct File {
    bytes: Vec<u8>,
    foreign: Option<Vec<u8>>,
    older: Vec<Vec<u8>>,
}

/// How often each thing came of each class of damage to each class of file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By file class, damage class and outcome.
    pub rows: BTreeMap<(String, &'static str, &'static str), u64>,
    /// Cases tried.
    pub cases: u64,
    /// Cases that would have changed nothing.
    pub same_bytes: u64,
    /// The most memory that was taken at once, in bytes beyond the damaged file.
    pub largest: u64,
    /// Outcomes that are not allowed, each with the line that reproduces it.
    pub findings: Vec<String>,
}

impl Table {
    /// Adds another table.
    pub fn add(&mut self, other: Self) {
        for (row, count) in other.rows {
            *self.rows.entry(row).or_default() += count;
        }
        self.cases += other.cases;
        self.same_bytes += other.same_bytes;
        self.largest = self.largest.max(other.largest);
        self.findings.extend(other.findings);
    }

    /// Cases with this outcome.
    #[must_use]
    pub fn count(&self, outcome: &str) -> u64 {
        self.rows.iter().filter(|(row, _)| row.2 == outcome).map(|(_, count)| count).sum()
    }

    /// Cases with this class of damage.
    #[must_use]
    pub fn count_class(&self, class: &str) -> u64 {
        self.rows.iter().filter(|(row, _)| row.1 == class).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((file, damage, outcome), count) in &self.rows {
            writeln!(f, "{file:<16} {damage:<18} {outcome:<28} {count}")?;
        }
        write!(
            f,
            "{} cases ({} more would have changed nothing): {} errors naming the file, {} errors naming another \
             path, {} the same state, {} findings; at most {} bytes of memory beyond the file",
            self.cases,
            self.same_bytes,
            self.count(NAMED),
            self.count(NAMED_OTHER),
            self.count(SAME),
            self.findings.len(),
            self.largest,
        )
    }
}

/// Outcomes that are allowed.
pub const NAMED: &str = "error naming the file";
/// An error about what is missing or contradicted by the damaged file, which names another path.
pub const NAMED_OTHER: &str = "error naming another path";
/// As if nothing had happened.
pub const SAME: &str = "same state";

/// What came of it, and what is wrong with that, if anything is.
type Outcome = (&'static str, Option<String>);

/// Runs a script and calls `each` with the disk after every step; the disk of the process dead at last.
fn script(
    scenario: &StoreScenario,
    seed: u64,
    mut each: impl FnMut(&SimDisk),
) -> Result<(SimDisk, Model), String> {
    let disk = SimDisk::new(seed);
    disk.set_tracing(false);
    let mut log = Log::of_last(Model::new(scenario.cores));
    let mut live = Live::new(scenario, &disk, &mut log);
    live.open(scenario.cores)?;
    for act in &scenario.script {
        live.act(*act)?;
        if !matches!(act, Do::Put(..) | Do::Delete(_) | Do::Offset(..) | Do::Watermark(..)) {
            each(&disk);
        }
    }
    // The process dies here, unless the script closed the store; what it wrote is in the files.
    let dead = disk.snapshot().restart();
    drop(live);
    let model = log.model().clone();
    Ok((dead, model))
}

fn read_all(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |(path, _): (PathBuf, u64)| disk.read_file(&path).ok().map(|bytes| (path, bytes));
    disk.files().into_iter().filter_map(read).collect()
}

/// At most so many of them, evenly.
fn thinned(all: Vec<Vec<u8>>, max: usize) -> Vec<Vec<u8>> {
    let step = all.len().div_ceil(max).max(1);
    all.into_iter().step_by(step).collect()
}

impl Subject {
    /// Makes the store.
    ///
    /// # Errors
    /// What the store says.
    pub fn new(reference: &Reference) -> Result<Self, String> {
        let mut history: BTreeMap<PathBuf, Vec<Vec<u8>>> = BTreeMap::new();
        let note = |disk: &SimDisk| {
            for (path, bytes) in read_all(disk) {
                let versions = history.entry(path).or_default();
                if versions.last() != Some(&bytes) {
                    versions.push(bytes);
                }
            }
        };
        let (disk, model) = script(&reference.scenario, 1, note)?;
        let (other, _) = script(&reference.scenario, 2, |_| ())?;
        let (here, there) = (read_all(&disk), read_all(&other));
        let mut checkpoint_set = 0;
        let mut files = BTreeMap::new();
        for (path, bytes) in here {
            let mut older = history.remove(&path).unwrap_or_default();
            older.retain(|version| *version != bytes);
            let same_kind = || there.iter().find(|(name, _)| class_of(name) == class_of(&path));
            let foreign = there.get(&path).or_else(|| same_kind().map(|(_, bytes)| bytes)).cloned();
            if class_of(&path) == "state file" {
                checkpoint_set =
                    bytes.get(16..24).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            }
            let older = thinned(older, OLDER_MAX);
            files.insert(path, File { bytes, foreign, older });
        }
        Ok(Self { disk: disk.snapshot(), model, reference: reference.clone(), files, checkpoint_set })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.reference.scenario.name
    }

    /// What it was made with.
    #[must_use]
    pub fn scenario(&self) -> &StoreScenario {
        &self.reference.scenario
    }

    /// The identity that salts its state files.
    #[must_use]
    pub fn checkpoint_set(&self) -> u64 {
        self.checkpoint_set
    }

    /// Files of the store with what is in them.
    #[must_use]
    pub fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.files.iter().map(|(path, file)| (path.clone(), file.bytes.clone())).collect()
    }

    /// A disk with the store on it.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        self.disk.restart()
    }

    /// Damages what is on another disk from now on.
    pub fn set_disk(&mut self, disk: &SimDisk) {
        self.disk = disk.snapshot();
    }

    /// Cores that it is opened with.
    #[must_use]
    pub fn cores(&self) -> u16 {
        self.scenario().cores_at_last()
    }

    /// What is wrong with what comes of a disk on which this file alone was damaged.
    #[must_use]
    pub fn judge_disk(&self, disk: &SimDisk, path: &Path) -> Option<String> {
        self.files.get(path)?;
        let (outcome, wrong) = self.outcome(disk, path, true);
        wrong.map(|wrong| format!("{}: {outcome}: {wrong}", path.display()))
    }

    /// Whether this is the state of some epoch: the last one, or one before it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn allows(&self, found: &Recovered) -> Result<(), String> {
        self.model.lowered_to(found.epoch).check_recovered(found)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.files.values().map(|file| file.bytes.len()).sum()
    }

    /// What a file becomes; `None` inside when it is removed, and outside when the damage does not
    /// apply to it.
    fn damaged(file: &File, damage: Damage) -> Option<Option<Vec<u8>>> {
        let at = |n: u64| usize::try_from(n).ok();
        let sector = |n: u64| Some(at(n.checked_mul(SECTOR)?)?..at(n.checked_add(1)?.checked_mul(SECTOR)?)?);
        let mut bytes = file.bytes.clone();
        match damage {
            Damage::Bit(bit) => *bytes.get_mut(at(bit / 8)?)? ^= 1 << (bit % 8),
            Damage::Cut(len) => bytes.truncate(at(len)?),
            Damage::Removed => return Some(None),
            Damage::Zeroed => bytes.fill(0),
            Damage::ZeroSector(n) => {
                let range = sector(n)?;
                let end = range.end.min(bytes.len());
                bytes.get_mut(range.start..end)?.fill(0);
            }
            Damage::DoubleSector(n) => {
                let (from, to) = (sector(n)?, sector(n + 1)?);
                let len = bytes.get(to.start..)?.len().min(from.len());
                bytes.copy_within(from.start..from.start + len, to.start);
            }
            Damage::SwapSectors(n) => {
                let (first, second) = (sector(n)?, sector(n + 1)?);
                let end = second.end.min(bytes.len());
                let both = bytes.get_mut(first.start..end)?;
                if both.len() <= first.len() {
                    return None;
                }
                both.rotate_left(first.len());
            }
            Damage::Foreign => bytes.clone_from(file.foreign.as_ref()?),
            Damage::Older(n) => bytes.clone_from(file.older.get(at(n)?)?),
        }
        Some(Some(bytes))
    }

    /// Tries one damage.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn try_one(
        &self,
        path: &Path,
        damage: Damage,
        meter: Meter,
        table: &mut Table,
    ) -> Result<(), String> {
        let file = self.files.get(path).ok_or_else(|| format!("no file {}", path.display()))?;
        let Some(after) = Self::damaged(file, damage) else { return Ok(()) };
        if after.as_ref() == Some(&file.bytes) {
            table.same_bytes += 1;
            return Ok(());
        }
        let disk = self.disk.restart();
        match &after {
            Some(bytes) => disk.overwrite(path, bytes),
            None => disk.remove(path),
        }
        .map_err(|e| e.to_string())?;
        let len = after.map_or(0, |bytes| bytes.len());
        let mut judged = ("PANIC", None);
        let most = meter(&mut || judged = self.outcome(&disk, path, reads(damage)));
        let (outcome, wrong) = judged;
        let allowed = file.bytes.len().max(len) as u64;
        let beyond = most.saturating_sub(allowed);
        table.cases += 1;
        table.largest = table.largest.max(beyond);
        *table.rows.entry((class_of(path), damage.class(), outcome)).or_default() += 1;
        let too_large =
            (beyond > ALLOCATION_SLACK).then(|| format!("{beyond} bytes allocated beyond the file"));
        if let Some(wrong) = wrong.or(too_large) {
            table.findings.push(format!(
                "damage --store {} --file {} --damage {damage}  # {outcome}: {wrong}",
                self.name(),
                path.display(),
            ));
        }
        Ok(())
    }

    /// By opening it, and, if `read`, by a reader before that, which must come to the same.
    fn outcome(&self, disk: &SimDisk, path: &Path, read: bool) -> Outcome {
        let scenario = self.scenario();
        let mut outcome = ("PANIC", None);
        let judged = guarded(|| {
            let seen = read.then(|| match StateReader::open_with(DIR, Arc::new(disk.clone())) {
                Ok(reader) => self.judge_state(&seen_by(&reader)),
                Err(error) => judge_error(&error, path),
            });
            outcome = match open(disk, scenario.cores_at_last(), &scenario.settings) {
                Ok(opened) => match recovered(&opened) {
                    Ok((found, _)) => self.judge_state(&found),
                    Err(wrong) => ("WRONG STATE", Some(wrong)),
                },
                Err(error) => judge_error(&error, path),
            };
            // The two may notice the same damage at different places.
            let agrees = |(seen, wrong): &Outcome| {
                wrong.is_none() && (*seen == outcome.0 || (is_error(seen) && is_error(outcome.0)))
            };
            if let Some((seen, wrong)) = seen.filter(|seen| outcome.1.is_none() && !agrees(seen)) {
                let text = format!("{} when opened; for a reader {seen} {wrong:?}", outcome.0);
                outcome = ("READER DIFFERS", Some(text));
            }
            Ok(())
        });
        match judged {
            Ok(()) => outcome,
            Err(panic) => ("PANIC", Some(panic)),
        }
    }

    fn judge_state(&self, found: &Recovered) -> Outcome {
        match self.model.check_recovered(found) {
            Ok(()) => (SAME, None),
            Err(wrong) if wrong.starts_with("LOST") => ("ROLLED BACK", Some(wrong)),
            Err(wrong) => ("WRONG STATE", Some(wrong)),
        }
    }
}

impl StoreScenario {
    /// Cores of its last opening.
    fn cores_at_last(&self) -> u16 {
        let opened = |act: &Do| if let Do::Open(cores) = act { Some(*cores) } else { None };
        self.script.iter().rev().find_map(opened).filter(|cores| *cores > 0).unwrap_or(self.cores)
    }
}

fn seen_by(reader: &StateReader) -> Recovered {
    let report = reader.report();
    Recovered {
        epoch: report.recovery_point,
        state: vec![reader.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()],
        offsets: report.source_offsets.clone(),
        watermark: report.watermark,
    }
}

/// Whether a reader looks, too: at one bit of every byte, and at everything else.
fn reads(damage: Damage) -> bool {
    !matches!(damage, Damage::Bit(bit) if bit % 8 != bit / 8 % 8)
}

fn is_error(outcome: &str) -> bool {
    [NAMED, NAMED_OTHER].contains(&outcome)
}

/// An error must name the file, or at least another path that it is about.
fn judge_error(error: &StoreError, path: &Path) -> Outcome {
    let text = error.to_string();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match error {
        StoreError::Corruption(_) | StoreError::NewerFormat(_) | StoreError::InvalidInput(_)
            if text.contains(&name) =>
        {
            (NAMED, None)
        }
        StoreError::Corruption(_) | StoreError::NewerFormat(_) if error.detail().path().is_some() => {
            (NAMED_OTHER, None)
        }
        _ => ("VAGUE ERROR", Some(format!("{error:?}"))),
    }
}

/// What a file is, without numbers.
fn class_of(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match path.extension().and_then(|ext| ext.to_str()) {
        Some("log") => "segment".into(),
        Some("sst") => "state file".into(),
        _ => name,
    }
}
