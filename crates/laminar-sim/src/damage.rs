//! Damages every file of a store in every way a table names, and judges each opening: the state as it
//! was, or an error that says what is wrong. Nothing else is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use laminar_storage::StoreError;
use laminar_storage::vfs::sim::{SimDisk, Snapshot};

use crate::driver::guarded;
use crate::log::Log;
use crate::oracle::Model;
use crate::store::{Do, Live, StoreScenario, open, recovered};

/// What happens to one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is wrong.
    Bit(u64),
    /// Cut to a length.
    Cut(u64),
    /// Gone.
    Removed,
    /// As long as before, all zeros.
    Zeroed,
    /// 512 bytes of it are zeros.
    ZeroSector(u64),
    /// The file of that name of another store.
    Foreign,
    /// What it was at an earlier time.
    Older,
}

impl Damage {
    fn class(&self) -> &'static str {
        match self {
            Self::Bit(_) => "bit flipped",
            Self::Cut(0) => "emptied",
            Self::Cut(_) => "cut",
            Self::Removed => "removed",
            Self::Zeroed => "zeroed",
            Self::ZeroSector(_) => "sector zeroed",
            Self::Foreign => "of another store",
            Self::Older => "older version",
        }
    }
}

/// A store at rest, what it must hold, and where its damaged files come from.
pub struct Subject {
    disk: Snapshot,
    model: Model,
    scenario: StoreScenario,
    other: SimDisk,
    older: SimDisk,
}

/// How often each thing came of each class of damage to each class of file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By file class, damage class and outcome.
    pub rows: BTreeMap<(String, &'static str, &'static str), u64>,
    /// Cases tried.
    pub cases: u64,
    /// Outcomes that are not allowed: what was done, and what came of it.
    pub violations: Vec<String>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((file, damage, outcome), count) in &self.rows {
            writeln!(f, "{file:<22} {damage:<18} {outcome:<22} {count}")?;
        }
        write!(f, "{} cases, {} violations", self.cases, self.violations.len())
    }
}

fn script(scenario: &StoreScenario, seed: u64, acts: &[Do]) -> Result<(SimDisk, Model), String> {
    let disk = SimDisk::new(seed);
    disk.set_tracing(false);
    let mut log = Log::new(Model::new(scenario.cores));
    let mut live = Live::new(scenario, &disk, &mut log);
    live.open(scenario.cores)?;
    acts.iter().try_for_each(|act| live.act(*act))?;
    // The process dies here, unless the script closed the store; what it wrote is in the files.
    let dead = disk.snapshot().restart();
    drop(live);
    let model = log.model().clone();
    Ok((dead, model))
}

impl Subject {
    /// Runs a script, which may close the store or not; `earlier` of its steps make the older version.
    ///
    /// # Errors
    /// What the store says.
    pub fn new(scenario: &StoreScenario, earlier: usize) -> Result<Self, String> {
        let (disk, model) = script(scenario, 1, &scenario.script)?;
        let (other, _) = script(scenario, 2, &scenario.script)?;
        let (older, _) = script(scenario, 1, scenario.script.get(..earlier).unwrap_or_default())?;
        Ok(Self { disk: disk.snapshot(), model, scenario: scenario.clone(), other, older })
    }

    /// Files of the store with their lengths.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.disk.restart().files()
    }

    /// Tries one damage. `None` when it would change nothing.
    pub fn try_one(&self, path: &Path, damage: &Damage, table: &mut Table) -> Option<()> {
        let disk = self.disk.restart();
        let before = disk.read_file(path).ok()?;
        match damage {
            Damage::Bit(bit) => disk.flip_bit(path, *bit).ok()?,
            Damage::Cut(len) => disk.truncate(path, *len).ok()?,
            Damage::Removed => disk.remove(path).ok()?,
            Damage::Zeroed => disk.overwrite(path, &vec![0; before.len()]).ok()?,
            Damage::ZeroSector(at) => {
                let len = (before.len() as u64).saturating_sub(*at).min(512);
                disk.patch(path, *at, &vec![0; usize::try_from(len).ok()?]).ok()?;
            }
            Damage::Foreign => disk.overwrite(path, &self.other.read_file(path).ok()?).ok()?,
            Damage::Older => disk.overwrite(path, &self.older.read_file(path).ok()?).ok()?,
        }
        if disk.read_file(path).is_ok_and(|now| now == before) {
            return None;
        }
        table.cases += 1;
        let (outcome, wrong) = self.outcome(&disk);
        *table.rows.entry((class_of(path), damage.class(), outcome)).or_default() += 1;
        if let Some(wrong) = wrong {
            table.violations.push(format!("{} {damage:?}: {outcome}: {wrong}", path.display()));
        }
        Some(())
    }

    fn outcome(&self, disk: &SimDisk) -> (&'static str, Option<String>) {
        let mut outcome = ("panic", None);
        let judged = guarded(|| {
            outcome = match open(disk, self.scenario.cores, &self.scenario.settings) {
                Ok(opened) => {
                    match recovered(&opened).and_then(|(found, _)| self.model.check_recovered(&found)) {
                        Ok(()) => ("same state", None),
                        Err(wrong) if wrong.starts_with("LOST") => ("ROLLED BACK", Some(wrong)),
                        Err(wrong) => ("WRONG STATE", Some(wrong)),
                    }
                }
                Err(error) => judge(&error),
            };
            Ok(())
        });
        match judged {
            Ok(()) => outcome,
            Err(panic) => ("panic", Some(panic)),
        }
    }
}

/// An error must say that it is damage, or at least name what it is about.
fn judge(error: &StoreError) -> (&'static str, Option<String>) {
    match error {
        _ if error.is_corruption() && error.detail().path().is_some() => ("corruption", None),
        StoreError::NewerFormat(_) => ("newer format", None),
        _ if error.detail().path().is_some() => ("error naming a path", None),
        _ => ("VAGUE ERROR", Some(error.to_string())),
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

/// Every damage of the table to every file, with every `stride`th bit and length.
pub fn damage_all(subject: &Subject, stride: u64) -> Table {
    let mut table = Table::default();
    for (path, len) in subject.files() {
        let mut all = vec![Damage::Removed, Damage::Zeroed, Damage::Foreign, Damage::Older];
        all.extend((0..len * 8).step_by(usize::try_from(stride).unwrap_or(1)).map(Damage::Bit));
        all.extend((0..len).step_by(usize::try_from(stride).unwrap_or(1)).map(Damage::Cut));
        all.extend(len.checked_sub(1).map(Damage::Cut));
        all.extend((0..len).step_by(512).map(Damage::ZeroSector));
        for damage in &all {
            subject.try_one(&path, damage, &mut table);
        }
    }
    table
}
