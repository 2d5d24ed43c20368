//! What is told on standard error while a measurement runs.

use std::fmt::Arguments;
use std::io::Write;

/// Tells a line. Nobody has to be there to read it.
pub fn tell(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// As `eprintln!`, which would panic where nobody reads.
macro_rules! progress {
    ($($line:tt)*) => { $crate::progress::tell(format_args!($($line)*)) };
}

pub(crate) use progress;
