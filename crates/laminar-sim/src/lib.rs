//! Simulated-disk scenarios for laminar-storage.
