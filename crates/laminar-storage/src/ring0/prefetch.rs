//! Asks the processor for memory before it is needed. A hint only: any address is allowed.
#![expect(unsafe_code, reason = "the prefetch instruction is an unsafe intrinsic")]

/// Bytes per cache line.
const LINE: usize = 64;

/// The line at `address` will be used.
#[inline]
pub(super) fn line(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching never faults and changes no memory, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// The line at `address` will be written.
#[inline]
pub(super) fn line_to_write(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetching never faults and changes no memory, whatever the address is; processors
    // without this instruction do nothing. (The intrinsic for it falls back to fetching for reading
    // unless the whole program is built for newer processors.)
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// The lines of `bytes` bytes at `address` will be written; no more than eight of them are fetched,
/// the processor's own prefetcher finds the rest.
#[inline]
pub(super) fn range_to_write(address: *const u8, bytes: usize) {
    let mut at = 0;
    while at < bytes.min(8 * LINE) {
        line_to_write(address.wrapping_add(at));
        at += LINE;
    }
}

/// The lines of `bytes` bytes at `address` will be used; as [`range_to_write`].
#[inline]
pub(crate) fn range(address: *const u8, bytes: usize) {
    let mut at = 0;
    while at < bytes.min(8 * LINE) {
        line(address.wrapping_add(at));
        at += LINE;
    }
}
