//! What a slot of the arena holds: a header, the key, the value.
//!
//! | bytes | field | written by |
//! |---|---|---|
//! | 0..4 | `value_len` | Ring 0, before publication |
//! | 4..6 | `key_len` | Ring 0, before publication |
//! | 6 | size class of the slot | Ring 0, when the slot is first used |
//! | 7 | kind | Ring 0, before publication |
//! | 8..16 | `prev`: offset of the record it replaced, 0 for none; in a free slot the next free one | Ring 0 |
//! | 16..24 | `digest` of the record | Ring 1, when it drains the record, with the place in the batch in between (Ring 0 while loading) |
//! | 24.. | key, then value | Ring 0, before publication |
#![expect(unsafe_code, reason = "turns arena offsets into references")]

use std::sync::atomic::AtomicU64;

use super::class::Class;
use super::region::Base;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Put = 1,
    /// Says that the key is gone, to Ring 1 only: the index does not know it.
    Tombstone = 2,
    /// The commit bytes of an epoch, as the value, under an empty key.
    Commit = 3,
    /// The end of an epoch without commit bytes is no record at all; this is a slot nobody uses.
    Free = 4,
}

/// The first bytes of every slot that was ever used.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Header {
    pub(super) value_len: u32,
    pub(super) key_len: u16,
    pub(super) class: Class,
    pub(super) kind: Kind,
    pub(super) prev: u64,
    pub(super) digest: AtomicU64,
}

/// Bytes before the key.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
const _: () = assert!(HEADER_LEN == 24 && align_of::<Header>() == 8);

/// A record: valid as long as what it is borrowed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordRef<'a> {
    pub(super) header: &'a Header,
    /// Key and value.
    pub(super) both: &'a [u8],
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

/// The offset as an index into memory; `usize` and `u64` are the same size (see `mod.rs`).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "64-bit targets only, checked in mod.rs")]
pub(super) const fn index(offset: u64) -> usize {
    offset as usize
}

/// The header of the slot at `offset`.
///
/// # Safety
/// 1. The slot at `offset` of the region of `base` has been used (R0-3).
/// 2. During `'a` nobody writes it, but for the digest, and the region lives (R0-2).
#[inline]
pub(super) unsafe fn header<'a>(base: Base, offset: u64) -> &'a Header {
    // SAFETY: initialised and aligned by (1) and R0-3; unchanged but for an atomic by (2).
    unsafe { &*base.at(index(offset)).cast::<Header>() }
}

/// The header of the slot at `offset`, to change.
///
/// # Safety
/// 1. The slot at `offset` of the region of `base` has been used (R0-3).
/// 2. During `'a` nobody else reads or writes it, and the region lives (R0-2).
#[inline]
pub(super) unsafe fn header_mut<'a>(base: Base, offset: u64) -> &'a mut Header {
    // SAFETY: initialised and aligned by (1) and R0-3; exclusive by (2).
    unsafe { &mut *base.at(index(offset)).cast::<Header>() }
}

/// The whole record at `offset`.
///
/// # Safety
/// As [`header`], and the slot holds a record, not [`Kind::Free`].
#[inline]
pub(super) unsafe fn read<'a>(base: Base, offset: u64) -> RecordRef<'a> {
    // SAFETY: the caller's promise is the same.
    let header: &'a Header = unsafe { header(base, offset) };
    let (key_len, value_len) = (usize::from(header.key_len), header.value_len as usize);
    let key_at = base.at(index(offset) + HEADER_LEN);
    // SAFETY: a record's key follows its header, and its value the key; they were written with it (R0-3), and
    // are unchanged during 'a by the caller's promise.
    let both = unsafe { std::slice::from_raw_parts(key_at, key_len + value_len) };
    let (key, value) = both.split_at(key_len);
    RecordRef { header, both, key, value }
}

/// Writes a record into a slot; key and value are at most as long as the header says.
///
/// # Safety
/// The slot at `offset` of the region of `base` is committed, aligned, belongs to the caller alone
/// (R0-4) and has room for the header, the key and the value.
#[inline]
pub(super) unsafe fn write(base: Base, offset: u64, header: Header, key: &[u8], value: &[u8]) {
    let slot = base.at(index(offset));
    let key_at = slot.wrapping_add(HEADER_LEN);
    let value_at = key_at.wrapping_add(key.len());
    // SAFETY: exclusive, aligned and large enough by the caller's promise.
    unsafe { slot.cast::<Header>().write(header) };
    // SAFETY: room for the key by the caller's promise; `key` is no part of an exclusive slot.
    unsafe { key_at.copy_from_nonoverlapping(key.as_ptr(), key.len()) };
    // SAFETY: room for the value by the caller's promise; `value` is no part of an exclusive slot.
    unsafe { value_at.copy_from_nonoverlapping(value.as_ptr(), value.len()) };
}
