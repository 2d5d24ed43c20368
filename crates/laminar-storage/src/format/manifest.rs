//! The envelope of `metadata.json`: `{"manifest":{…},"crc32c":"xxxxxxxx"}`.
//!
//! The checksum covers the exact text of the inner object. The outer text is fixed down to the byte,
//! so that a changed byte anywhere is seen: inside by the checksum, outside by comparison.

use serde::Deserialize;

use crate::format::FORMAT_VERSION;
use crate::format::checksum::crc32c;
use crate::format::state_file::Fault;
use crate::sabotage::{Sabotage, sabotaged};

/// Longest manifest that is read, in bytes.
pub const MAX_MANIFEST_LEN: u64 = 64 << 20;

const BEFORE: &str = "{\"manifest\":";
const BETWEEN: &str = ",\"crc32c\":\"";
const AFTER: &str = "\"}";

/// Puts a manifest's JSON text into its envelope.
#[must_use]
pub fn seal(manifest: &str) -> String {
    format!("{BEFORE}{manifest}{BETWEEN}{:08x}{AFTER}", crc32c(manifest.as_bytes()))
}

/// Takes a manifest's JSON text out of its envelope, after checking version and checksum.
///
/// # Errors
/// A newer version (looked at first, so that a later version may change everything else), an
/// envelope that is not exactly as [`seal`] writes it, or a wrong checksum.
pub fn open(text: &str) -> Result<&str, Fault> {
    #[derive(Deserialize)]
    struct Outer {
        manifest: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        format_version: u32,
    }
    if let Ok(outer) = serde_json::from_str::<Outer>(text)
        && outer.manifest.format_version > FORMAT_VERSION
    {
        return Err(Fault::NewerVersion { found: outer.manifest.format_version });
    }
    let parts = || {
        let rest = text.strip_prefix(BEFORE)?.strip_suffix(AFTER)?;
        let (rest, crc) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
        let stored = u32::from_str_radix(crc, 16).ok()?;
        let manifest = rest.strip_suffix(BETWEEN)?;
        (format!("{stored:08x}") == crc).then_some((manifest, stored))
    };
    let (manifest, stored) = parts().ok_or(Fault::Damaged("this is not a checkpoint manifest"))?;
    let computed = crc32c(manifest.as_bytes());
    if stored == computed || sabotaged(Sabotage::ManifestUnchecked) {
        Ok(manifest)
    } else {
        Err(Fault::Checksum { what: "manifest", stored, computed })
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let sealed = seal("{\"format_version\":1}");
        assert_eq!(sealed, "{\"manifest\":{\"format_version\":1},\"crc32c\":\"93af7345\"}");
        assert_eq!(open(&sealed), Ok("{\"format_version\":1}"));
    }

    #[test]
    fn a_newer_version_is_named_before_anything_else() {
        let text = "{\"manifest\":{\"format_version\":7,\"other\":1},\"hash\":0}";
        assert_eq!(open(text), Err(Fault::NewerVersion { found: 7 }));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let sealed = seal("{\"format_version\":1,\"id\":12}");
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(open(&text).is_err(), "bit {bit}");
            }
        }
        for len in 0..sealed.len() {
            assert!(open(&sealed[..len]).is_err());
        }
    }
}
