//! Segment files: their names, their creation, and how to find them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::evidence::Evidence;
use super::names::{Names, take_back};
use super::spares::Spares;
use crate::format::MAX_CORES;
use crate::format::frame::FRAME_HEADER_LEN;
use crate::format::segment_header::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{CoreId, Incarnation, SegmentNumber};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{Access, FileKind, Vfs, VfsFile, write_all_at};

/// How segments of a log are made; the same for all its cores.
#[derive(Clone, Debug)]
pub(crate) struct SegmentPolicy {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) segment_size: u64,
    pub(crate) preallocation: u64,
    /// Shared by all who change names in `dir`.
    pub(crate) names: Arc<Names>,
    /// What segments that are begun may be made of.
    pub(crate) spares: Arc<Spares>,
    /// Where the writers of this incarnation note what they have synced, if they do.
    pub(crate) evidence: Option<Arc<Evidence>>,
}

/// The ids that a segment's file name is made of: `wal-{core}.{incarnation}.{number}.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) core: CoreId,
    pub(crate) number: SegmentNumber,
    pub(crate) incarnation: Incarnation,
}

impl SegmentName {
    pub(crate) fn of(header: &SegmentHeader) -> Self {
        Self { core: header.core, number: header.number, incarnation: header.incarnation }
    }

    pub(crate) fn file_name(self) -> String {
        format!("wal-{}.{:08x}.{:08x}.log", self.core.0, self.incarnation.0, self.number.0)
    }

    /// The ids of a name that is exactly what [`Self::file_name`] makes of them.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("wal-")?.strip_suffix(".log")?.split('.');
        let (core, incarnation, number) = (parts.next()?, parts.next()?, parts.next()?);
        let written_so = is_padded(core, 1, |b| b.is_ascii_digit())
            && is_padded(incarnation, 8, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            && is_padded(number, 8, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !written_so || parts.next().is_some() {
            return None;
        }
        let parsed = Self {
            core: CoreId(core.parse().ok()?),
            incarnation: Incarnation(u64::from_str_radix(incarnation, 16).ok()?),
            number: SegmentNumber(u32::from_str_radix(number, 16).ok()?),
        };
        (parsed.core.index() < MAX_CORES).then_some(parsed)
    }
}

/// Whether a number is written with these digits and no more zeros in front than make it `width` long.
fn is_padded(text: &str, width: usize, digit: impl Fn(u8) -> bool) -> bool {
    text.len() >= width && text.bytes().all(digit) && (text.len() == width || !text.starts_with('0'))
}

/// All segments of a directory, sorted by core and number. Other names are left out.
pub(crate) fn list_segments(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<SegmentName>> {
    let mut names: Vec<_> = vfs
        .read_dir(dir)?
        .iter()
        .filter(|(_, kind)| matches!(kind, FileKind::File { .. }))
        .filter_map(|(name, _)| SegmentName::parse(name))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Creates a segment: header, then zeros up to `preallocation`, all synced. Its directory entry is
/// not durable yet. One that could not be completed is removed again: on a full disk it only takes up room.
pub(crate) fn create_segment(
    vfs: &dyn Vfs,
    dir: &Path,
    header: &SegmentHeader,
    preallocation: u64,
) -> io::Result<(PathBuf, Arc<dyn VfsFile>)> {
    let path = dir.join(SegmentName::of(header).file_name());
    let file = vfs.create_new(&path)?;
    let filled = write_all_at(file.as_ref(), &header.encode(), 0)
        .and_then(|()| write_zeros(file.as_ref(), SEGMENT_HEADER_LEN as u64, preallocation))
        .and_then(|()| file.sync_data());
    if let Err(error) = filled {
        take_back(vfs, &path);
        return Err(error);
    }
    Ok((path, file))
}

/// A segment in a file that was one before.
pub(crate) struct Reused {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn VfsFile>,
    /// Up to here the file has bytes from before.
    pub(crate) stale: u64,
}

/// Makes a segment of a file that was one before: the header and zeros over its first page, synced, and only then the
/// name, which is not durable yet. `None` when there is no such file that could be used: nothing is in it, so nothing is
/// lost.
pub(crate) fn reuse_segment(
    vfs: &dyn Vfs,
    dir: &Path,
    header: &SegmentHeader,
    spare: &Path,
) -> io::Result<Option<Reused>> {
    let path = dir.join(SegmentName::of(header).file_name());
    let opened = vfs.open(spare, Access::ReadWrite).and_then(|file| Ok((file.size()?, file)));
    let Ok((stale, file)) = opened else {
        take_back(vfs, spare);
        return Ok(None);
    };
    let mut beginning = header.encode().to_vec();
    beginning.resize(stale_cut(SEGMENT_HEADER_LEN as u64, stale), 0);
    let made = write_all_at(file.as_ref(), &beginning, 0)
        .and_then(|()| if sabotaged(Sabotage::SpareNamedEarly) { Ok(()) } else { file.sync_data() })
        .and_then(|()| vfs.rename(spare, &path));
    if let Err(error) = made {
        take_back(vfs, spare);
        return Err(error);
    }
    Ok(Some(Reused { path, file, stale }))
}

/// Up to where zeros are written behind frames that end at `end`, in a file with old bytes up to `stale`: at least where a
/// frame's header would stand, and to the end of the page, which else would have to be read before it is written.
pub(crate) fn stale_cut(end: u64, stale: u64) -> usize {
    const PAGE: u64 = 4096;
    let cut = (end + FRAME_HEADER_LEN as u64).next_multiple_of(PAGE).min(stale).max(end);
    usize::try_from(cut).unwrap_or(usize::MAX)
}

fn write_zeros(file: &dyn VfsFile, from: u64, to: u64) -> io::Result<()> {
    const CHUNK: usize = 256 << 10;
    let mut at = from;
    let zeros = if to > from { vec![0; CHUNK] } else { Vec::new() };
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
        write_all_at(file, zeros.get(..len).unwrap_or_default(), at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_strangers_are_refused() {
        let name = SegmentName { core: CoreId(12), number: SegmentNumber(255), incarnation: Incarnation(3) };
        assert_eq!(name.file_name(), "wal-12.00000003.000000ff.log");
        assert_eq!(SegmentName::parse(&name.file_name()), Some(name));
        for bad in [
            "wal-12.3.ff.log",
            "wal-012.00000003.000000ff.log",
            "wal-12.00000003.000000FF.log",
            "wal-12.00000003.000000ff.log.tmp",
            "wal-9999.00000003.000000ff.log",
            "wal-12.000000003.000000ff.log",
            "wal-12.00000003.000000ff.000000ff.log",
            "wal-12.00000003.1000000ff.log",
            "wal-12.00000003.log",
            "wal-+1.00000003.000000ff.log",
            "LOCK",
        ] {
            assert_eq!(SegmentName::parse(bad), None, "{bad}");
        }
    }
}
