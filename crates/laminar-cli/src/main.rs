//! The `laminar` command.
fn main() {}
