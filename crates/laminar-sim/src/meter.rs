//! How much memory was asked for at once, as far as the program that uses this library counts it.

/// Two functions of a counting allocator, for the calling thread. The library itself has none: a global
/// allocator needs unsafe code, which belongs to a program.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// Forgets what was asked for so far.
    pub reset: fn(),
    /// Bytes of the largest single allocation since.
    pub largest: fn() -> usize,
}

impl Meter {
    /// Counts nothing: every allocation has 0 bytes.
    pub const NONE: Self = Self { reset: || (), largest: || 0 };
}
