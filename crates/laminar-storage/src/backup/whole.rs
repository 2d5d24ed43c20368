//! Backups of a whole whose parts are stores of their own, on several machines.
//!
//! ```text
//! PLACE/part-0000-of-0003/…        the backups of part 0, as those of any store
//! PLACE/part-0001-of-0003/…
//! PLACE/part-0002-of-0003/…
//! ```
//! Every part makes a backup of the same epoch ([`crate::Store::reserve_checkpoint`]) under the same [`WholeId`], which is in the
//! name of a file that goes with it. A backup of the whole is there when every part has one of that id. There is no record
//! of it elsewhere, so none that could be wrong: whoever looks reads the logs of all parts.
//!
//! An epoch alone would not do. A whole that was restored to an earlier epoch, and went on, has other states under the numbers
//! of later ones; an id is drawn for each backup.

use std::fmt;
use std::str::FromStr;

use super::catalog::{BackupInfo, list_part, read_chunk, unless_removed};
use super::error::{BackupError, Result};
use super::log::read_record;
use super::names::{LOG, parse_record_name};
use super::options::BackupOptions;
use super::record::{Keep, Nonce, Object, Opening, Record};
use super::remote::Remote;
use super::target::BackupTarget;
use super::writer::{BackupReceipt, BackupWriter};
use crate::ids::{BackupId, Epoch};
use crate::incremental::CheckpointReader;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{OsVfs, Vfs};

/// Begins the name of the file that says which backup of the whole it is.
const MARK: &str = "whole-";

/// One backup of a whole, the same in all of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeId {
    epoch: Epoch,
    nonce: Nonce,
}

impl WholeId {
    /// A new one, of the end of this epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, nonce: Nonce(OsVfs::new().random_u64()) }
    }

    /// The epoch whose end it holds, in all parts.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        self.epoch
    }

    /// The name of the file that says so in every part's backup, and in what is restored from it.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("{MARK}{self}.json")
    }

    fn of_file_name(name: &str) -> Option<Self> {
        name.strip_prefix(MARK)?.strip_suffix(".json")?.parse().ok()
    }

    pub(super) fn of_record(record: &Record) -> Option<Self> {
        record.backup.as_ref()?.objects.iter().find_map(|object| Self::of_file_name(&object.name))
    }
}

impl fmt::Display for WholeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.epoch.0, self.nonce.0)
    }
}

impl FromStr for WholeId {
    type Err = BackupError;

    fn from_str(text: &str) -> Result<Self> {
        let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let numbers = text.split_once('-').and_then(|(epoch, nonce)| Some((hex(epoch)?, hex(nonce)?)));
        let id = numbers.map(|(epoch, nonce)| Self { epoch: Epoch(epoch), nonce: Nonce(nonce) });
        // Only what is written here: a sign or a capital would be another name of the same.
        id.filter(|id| id.to_string() == text).ok_or_else(|| {
            let remedy =
                "Use one as it is listed (`laminar backups URL`), such as 000000000000001e-93c1f0a2b4d5e6f7.";
            BackupError::invalid("this is not the id of a backup of a job, or of another whole", text, remedy)
        })
    }
}

/// A checkpoint of a part, opened to be backed up; from [`crate::Store::part_checkpoint`].
#[derive(Debug)]
pub struct PartCheckpoint {
    pub(crate) reader: CheckpointReader,
    pub(crate) opening: Opening,
}

/// Makes the backups of one part of a whole.
#[derive(Debug)]
pub struct PartWriter {
    place: BackupTarget,
    part: u32,
    parts: u32,
    options: BackupOptions,
    writer: Option<BackupWriter>,
}

impl PartWriter {
    /// For part `part`, counted from 0, of `parts`, at `place`. Nothing is done yet. [`BackupOptions::keep`] are backups of the
    /// whole.
    ///
    /// # Errors
    /// `InvalidInput` for options, or a part that there is not.
    pub fn new(place: &BackupTarget, part: u32, parts: u32, options: &BackupOptions) -> Result<Self> {
        options.validate()?;
        if part >= parts || parts > MOST_PARTS {
            let what = format!("part {part} of {parts} cannot be backed up");
            let remedy = "Parts are counted from 0, up to 9999 of them.";
            return Err(BackupError::invalid(what, place.to_string(), remedy));
        }
        Ok(Self { place: place.clone(), part, parts, options: options.clone(), writer: None })
    }

    /// Backs a checkpoint of this part up, as part of the backup `id` of the whole, whose epoch it must hold. `mark` is the
    /// content of the file that says so; `own_files` are others of the program's own. Older backups stay as long as they belong to one of
    /// the newest [`BackupOptions::keep`] that are whole, or to a later one, whatever the other parts have.
    ///
    /// # Errors
    /// As [`BackupWriter::open`], and [`BackupWriter::back_up`]; `InvalidInput` when the checkpoint holds another epoch. It may be
    /// called again with the same arguments.
    pub fn back_up(
        &mut self,
        checkpoint: &PartCheckpoint,
        id: WholeId,
        mark: &[u8],
        own_files: &[(&str, &[u8])],
    ) -> Result<BackupReceipt> {
        let held = Epoch(checkpoint.reader.metadata().epoch);
        if held != id.epoch {
            let what = format!("the checkpoint holds epoch {held}, the backup is of {}", id.epoch);
            let remedy = "Make a checkpoint of exactly that epoch, with Store::part_checkpoint.";
            return Err(BackupError::invalid(what, self.place.to_string(), remedy));
        }
        let oldest = self.oldest_needed()?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let place = part_place(&self.place, self.part, self.parts);
                self.writer.insert(BackupWriter::open_for(&place, &self.options, &checkpoint.opening)?)
            }
        };
        let name = id.file_name();
        let own: Vec<_> = [(name.as_str(), mark)].into_iter().chain(own_files.iter().copied()).collect();
        writer.back_up_keeping(&checkpoint.reader, &own, Keep::Since(oldest))
    }

    /// The oldest backup of this part that is to stay; 0 while no backup is whole, or, where one is damaged, fewer than are to be
    /// kept, and then everything stays. One with a damaged record is not whole, and an older one stays instead; of a part whose
    /// newest record is damaged none is.
    fn oldest_needed(&self) -> Result<BackupId> {
        let mut damaged = Vec::new();
        let mut records =
            |part| list_part(&part_place(&self.place, part, self.parts), &self.options, &mut damaged);
        let mut whole = records(self.part)?;
        // Made again after a reply was lost, with other files of the program: the same backup of the whole.
        whole.dedup_by_key(|(_, id)| *id);
        for part in (0..self.parts).filter(|part| *part != self.part) {
            let there = records(part)?;
            if sabotaged(Sabotage::WholeGoesEarly) {
                continue;
            }
            whole.retain(|(_, id)| there.iter().any(|(_, other)| other == id));
        }
        for error in &damaged {
            tracing::warn!(%error, "a backup of a part is damaged; it does not count as one of those that are kept");
        }
        // Of those that are whole now; the one that is being made comes on top.
        let enough = damaged.is_empty() || whole.len() >= self.options.keep;
        let oldest = whole.get(whole.len().saturating_sub(self.options.keep)).filter(|_| enough);
        Ok(oldest.map_or(BackupId(0), |(info, _)| info.id))
    }
}

/// Parts of a whole at most.
const MOST_PARTS: u32 = 10_000;

fn part_folder(part: u32, parts: u32) -> String {
    format!("part-{part:04}-of-{parts:04}")
}

fn part_place(place: &BackupTarget, part: u32, parts: u32) -> BackupTarget {
    place.within(&part_folder(part, parts))
}

/// A backup of a whole: every part has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WholeBackup {
    /// Which it is.
    pub id: WholeId,
    /// The backup of each part, and where it is, in the order of the parts.
    pub parts: Vec<(BackupTarget, BackupInfo)>,
}

/// What [`list_whole_backups`] finds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WholeBackups {
    /// Those that every part has, oldest first.
    pub backups: Vec<WholeBackup>,
    /// What is damaged or missing of others.
    pub damaged: Vec<BackupError>,
    /// Those that some parts have and others do not: older ones are being removed; a newer one is under way, or what a part had is lost.
    pub incomplete: Vec<WholeId>,
}

/// What the part says about itself in one of its backups: what [`PartWriter::back_up`] was given as its mark. None when there is no
/// such backup any more, or it is not a part's.
///
/// # Errors
/// `Corruption` naming what is missing or damaged; `Unreachable`, `Refused`.
pub fn read_mark(place: &BackupTarget, id: BackupId, options: &BackupOptions) -> Result<Option<Vec<u8>>> {
    let remote = Remote::new(place, options)?;
    remote.run(async {
        let Some(contents) = read_record(&remote, id).await?.and_then(|record| record.backup) else {
            return Ok(None);
        };
        let is_mark = |object: &&Object| WholeId::of_file_name(&object.name).is_some();
        let Some(object) = contents.objects.iter().find(is_mark) else { return Ok(None) };
        let mut mark = Vec::new();
        for chunk in 0..object.chunks.len() {
            match read_chunk(&remote, object, chunk).await {
                Ok(bytes) => mark.extend_from_slice(&bytes),
                Err(error) => {
                    return match unless_removed(&remote, id, error).await {
                        BackupError::NotFound(_) => Ok(None),
                        error => Err(error),
                    };
                }
            }
        }
        Ok(Some(mark))
    })
}

/// The backups of a whole at a place. Where the whole once had another number of parts, those come last of which the last
/// was made last.
/// Nothing is changed.
///
/// # Errors
/// `Unreachable`, `Refused`; `Local` for a directory that cannot be read.
pub fn list_whole_backups(place: &BackupTarget, options: &BackupOptions) -> Result<WholeBackups> {
    let folders = place.folders(options)?;
    let mut counts: Vec<_> =
        folders.iter().filter_map(|name| parse_folder(name)).map(|(_, parts)| parts).collect();
    counts.sort_unstable();
    counts.dedup();
    let mut all = WholeBackups::default();
    let mut groups = Vec::new();
    for parts in counts {
        groups.push(list_whole_of(place, parts, options, &mut all)?);
    }
    // By the logs within each, whose order no clock can change.
    groups.sort_by_key(|group| group.last().map(WholeBackup::made_ms));
    all.backups = groups.concat();
    Ok(all)
}

/// Those of a whole with so many parts; what else there is of it goes to `all`.
fn list_whole_of(
    place: &BackupTarget,
    parts: u32,
    options: &BackupOptions,
    all: &mut WholeBackups,
) -> Result<Vec<WholeBackup>> {
    let mut whole: Option<Vec<WholeBackup>> = None;
    let mut seen = Vec::new();
    for part in 0..parts {
        let place = part_place(place, part, parts);
        let there = list_part(&place, options, &mut all.damaged)?;
        seen.extend(there.iter().map(|(_, id)| *id));
        let whole = whole.get_or_insert_with(|| {
            there.iter().map(|(_, id)| WholeBackup { id: *id, parts: Vec::new() }).collect()
        });
        whole.dedup_by_key(|backup| backup.id);
        whole.retain_mut(|backup| {
            let by_epoch = sabotaged(Sabotage::WholeByEpoch);
            let is_it = |id: WholeId| id == backup.id || (by_epoch && id.epoch == backup.id.epoch);
            let own = there.iter().rev().find(|(_, id)| is_it(*id));
            own.map(|(info, _)| backup.parts.push((place.clone(), info.clone()))).is_some()
                || sabotaged(Sabotage::HalfOfAWholeCounts)
        });
    }
    let whole = whole.unwrap_or_default();
    for id in seen {
        if !whole.iter().any(|backup| backup.id == id) && !all.incomplete.contains(&id) {
            all.incomplete.push(id);
        }
    }
    Ok(whole)
}

impl WholeBackup {
    /// When the first of its checkpoints was made, in milliseconds since the Unix epoch, by the clock of its machine.
    #[must_use]
    pub fn made_ms(&self) -> u64 {
        self.parts.iter().map(|(_, info)| info.made_ms).min().unwrap_or_default()
    }
}

fn parse_folder(name: &str) -> Option<(u32, u32)> {
    let (part, parts) = name.strip_prefix("part-")?.split_once("-of-")?;
    let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
    (part < parts && parts <= MOST_PARTS && part_folder(part, parts) == name).then_some((part, parts))
}

impl BackupTarget {
    /// A place below this one; `folder` is a plain name.
    #[must_use]
    pub fn within(&self, folder: &str) -> Self {
        let url = format!("{}/{folder}", self.to_string().trim_end_matches('/'));
        self.below(folder, url)
    }

    /// Whether the places of parts are right here, and so the backups of a whole.
    ///
    /// # Errors
    /// As [`Self::folders`].
    pub fn has_parts(&self, options: &BackupOptions) -> Result<bool> {
        Ok(self.folders(options)?.iter().any(|folder| parse_folder(folder).is_some()))
    }

    /// Whether there is a log of backups right here, which is that of one store: whether anybody ever made one, or was about to.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`.
    pub fn has_log(&self, options: &BackupOptions) -> Result<bool> {
        let remote = Remote::new(self, options)?;
        let names = remote.run(remote.list(LOG))?;
        Ok(names.iter().any(|name| parse_record_name(name).is_some()))
    }

    /// The names of the places below this one that anything was put into.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`; `Local` for a directory that cannot be read.
    pub fn folders(&self, options: &BackupOptions) -> Result<Vec<String>> {
        if let Some(directory) = self.on_this_machine() {
            return directory.folders();
        }
        let remote = Remote::new(self, options)?;
        remote.run(remote.folders())
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say so by failing")]
    use super::*;

    #[test]
    fn ids_and_folders_come_back_and_nothing_else_does() {
        let id = WholeId::new(Epoch(0x2a));
        assert_eq!(id.to_string().parse::<WholeId>().unwrap(), id);
        assert_eq!(WholeId::of_file_name(&id.file_name()), Some(id));
        assert_ne!(id, WholeId::new(Epoch(0x2a)), "drawn anew for each backup");
        for bad in ["", "2a-1", "+00000000000002a-0000000000000001", "000000000000002A-0000000000000001"] {
            assert!(bad.parse::<WholeId>().is_err(), "{bad}");
        }
        assert_eq!(parse_folder(&part_folder(2, 3)), Some((2, 3)));
        for bad in
            ["part-0003-of-0003", "part-2-of-3", "part-0002", "generation-00000001", "part-0001-of-20000"]
        {
            assert_eq!(parse_folder(bad), None, "{bad}");
        }
    }
}
