//! A global allocator that remembers the largest single allocation of each thread.
//!
//! Below it is mimalloc: recoveries on the simulated disk allocate all the time, on all threads.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use laminar_sim::meter::Meter;
use mimalloc::MiMalloc;

struct Measuring;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Measuring = Measuring;

/// What this allocator counts.
pub const METER: Meter =
    Meter { reset: || LARGEST.with(|largest| largest.set(0)), largest: || LARGEST.with(Cell::get) };

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: passes everything on to mimalloc.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.realloc(address, layout, size) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.dealloc(address, layout) }
    }
}
