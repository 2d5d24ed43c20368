//! How long the parts of a record may be, checked before anything of it is written.

use super::error::PerCoreWalError;
use crate::error::Detail;
use crate::format::record::Record;
use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::CoreId;

/// Refuses a record that no frame can hold.
pub(super) fn check(record: &Record<'_>, core: CoreId) -> Result<(), PerCoreWalError> {
    let within = |what, len, max| if len > max { Err(too_long(what, len, max, core)) } else { Ok(()) };
    match record {
        Record::Put { key, value } => {
            within("key", key.len(), MAX_KEY_LEN)?;
            within("value", value.len(), MAX_VALUE_LEN)
        }
        Record::Delete { key } => within("key", key.len(), MAX_KEY_LEN),
        Record::Commit(body) => within("list of source offsets", body.len(), MAX_VALUE_LEN),
        _ => Ok(()),
    }
}

pub(super) fn too_long(what: &str, len: usize, max: usize, core: CoreId) -> PerCoreWalError {
    PerCoreWalError::invalid(
        Detail::new(format!("a {what} of {len} bytes, at most {max} fit"))
            .on_core(core)
            .remedy("Nothing was written; split it or store a reference to it."),
    )
}
