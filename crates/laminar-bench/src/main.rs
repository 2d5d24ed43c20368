//! Measurements of laminar-storage.
fn main() {}
