//! Segments as bytes: where their frames are, and checksums that fit again after bytes were changed, so
//! that the checks behind the checksums are reached.

use std::path::Path;

use laminar_storage::format::checksum::crc32c;
use laminar_storage::format::closed::CLOSED_LEN;
use laminar_storage::format::current::CURRENT_LEN;
use laminar_storage::format::frame::{FRAME_HEADER_LEN, frame_len};
use laminar_storage::format::manifest::seal;
use laminar_storage::format::segment_header::{SEGMENT_HEADER_LEN, SEGMENT_MAGIC, frame_salt};
use laminar_storage::format::state_file::{FOOTER_LEN, FileIdentity, HEADER_LEN};
use laminar_storage::format::synced::SLOT_LEN;
use laminar_storage::ids::{CheckpointId, CoreId, Incarnation, SegmentNumber, StoreId};
use laminar_storage::incremental::layout::parse_state_file_name;

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn set(bytes: &mut [u8], at: usize, new: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(new.len())?)?.copy_from_slice(new);
    Some(())
}

/// Where each frame of a segment begins and ends, going by the lengths alone.
#[must_use]
pub fn frames(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_LEN;
    while let (Some(len), Some(1)) = (u32_at(segment, at + 8), segment.get(at + 12)) {
        let end = at.saturating_add(frame_len(len as usize));
        if end > segment.len() {
            break;
        }
        found.push(at..end);
        at = end;
    }
    found
}

/// Makes the checksums of a file fit its bytes, as far as it can be made out what they are. `store` is
/// the identity that salts a state file.
pub fn mend(path: &Path, store: u64, bytes: &mut Vec<u8>) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let done = match name {
        "CURRENT" => mend_end(bytes, CURRENT_LEN),
        "CLOSED" => mend_end(bytes, CLOSED_LEN),
        "SYNCED" => bytes.chunks_exact_mut(SLOT_LEN).try_for_each(|slot| mend_end(slot, SLOT_LEN)),
        "metadata.json" => mend_manifest(bytes),
        _ if name.ends_with(".log") => mend_segment(bytes),
        _ => parse_state_file_name(name).and_then(|(checkpoint, core, part)| {
            let (store_id, checkpoint) = (StoreId(store), CheckpointId(checkpoint));
            mend_state_file(bytes, &FileIdentity { store_id, checkpoint, core: CoreId(core), part })
        }),
    };
    // What is too short or too odd to be mended stays as it is.
    let _ = done;
}

/// A file whose last four bytes are the checksum of those before.
fn mend_end(bytes: &mut [u8], len: usize) -> Option<()> {
    let crc = crc32c(bytes.get(..len - 4)?);
    set(bytes, len - 4, &crc.to_le_bytes())
}

/// The segment's header and every frame that its lengths lead to.
pub fn mend_segment(bytes: &mut [u8]) -> Option<()> {
    mend_end(bytes, SEGMENT_HEADER_LEN)?;
    set(bytes, 0, &SEGMENT_MAGIC)?;
    mend_end(bytes, SEGMENT_HEADER_LEN)?;
    let salt = frame_salt(
        StoreId(u64_at(bytes, 16)?),
        Incarnation(u64_at(bytes, 24)?),
        CoreId(u16_at(bytes, 32)?),
        SegmentNumber(u32_at(bytes, 12)?),
    );
    for frame in frames(bytes) {
        let payload = salt.crc(&[bytes.get(frame.start + FRAME_HEADER_LEN..frame.end)?]);
        set(bytes, frame.start + 4, &payload.to_le_bytes())?;
        let at = (frame.start as u64).to_le_bytes();
        let header = salt.crc(&[&at, bytes.get(frame.start + 4..frame.start + FRAME_HEADER_LEN)?]);
        set(bytes, frame.start, &header.to_le_bytes())?;
    }
    Some(())
}

/// The envelope around the inner object, whose place the envelope's fixed text decides.
pub fn mend_manifest(bytes: &mut Vec<u8>) -> Option<()> {
    let inner = bytes.get(12..bytes.len().checked_sub(21)?)?;
    *bytes = seal(std::str::from_utf8(inner).ok()?).into_bytes();
    Some(())
}

/// Header, blocks, index and footer, as the footer says where they are.
pub fn mend_state_file(bytes: &mut [u8], identity: &FileIdentity) -> Option<()> {
    mend_end(bytes, HEADER_LEN)?;
    let footer = bytes.len().checked_sub(FOOTER_LEN)?;
    let index_at = usize::try_from(u64_at(bytes, footer)?).ok()?;
    let index_len = usize::try_from(u64_at(bytes, footer + 8)?).ok()?;
    let index_end = index_at.checked_add(index_len)?;
    let mut entry = index_at;
    while entry < index_end {
        let at = u64_at(bytes, entry)?;
        let start = usize::try_from(at).ok()?;
        let end = start.checked_add(u32_at(bytes, entry + 8)? as usize)?;
        let crc = identity.block_crc(at, bytes.get(start..end)?);
        set(bytes, entry + 16, &crc.to_le_bytes())?;
        entry += 22 + usize::from(u16_at(bytes, entry + 20)?);
    }
    let crc = identity.index_crc(index_at as u64, bytes.get(index_at..index_end)?);
    set(bytes, footer + 48, &crc.to_le_bytes())?;
    let covered = [bytes.get(footer..footer + 52)?, bytes.get(footer + 56..)?].concat();
    let crc = identity.index_crc(0, &covered);
    set(bytes, footer + 52, &crc.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::Subject;
    use crate::damage::stores::reference_store;

    /// Mending what is whole changes nothing: it computes the checksums that the library computes.
    #[test]
    fn whole_files_are_mended_to_themselves() {
        for name in ["one-core", "resharded"] {
            let subject = Subject::new(&reference_store(name).unwrap()).unwrap();
            for (path, bytes) in subject.contents() {
                let mut mended = bytes.clone();
                mend(&path, subject.checkpoint_set(), &mut mended);
                assert!(mended == bytes, "{}", path.display());
                if mended.len() > 100 {
                    let at = mended.len() / 2;
                    mended[at] ^= 1;
                    let changed = mended.clone();
                    mend(&path, subject.checkpoint_set(), &mut mended);
                    let text = path.extension().is_some_and(|e| e == "json");
                    assert!(text || mended != changed, "{}", path.display());
                }
            }
        }
    }
}
