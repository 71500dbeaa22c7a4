//! The program's output. Whoever reads it may have had enough: that is no error of ours, and no panic.

use std::fmt;
use std::io::{self, Write};

/// Nobody reads standard output any more.
#[derive(Debug)]
pub(crate) struct NobodyReads;

impl fmt::Display for NobodyReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output")
    }
}

impl std::error::Error for NobodyReads {}

/// Writes a line to standard output.
pub(crate) fn line(text: fmt::Arguments<'_>) -> crate::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => Ok(written?),
    }
}

/// As `println!`, with a `Result`.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

pub(crate) use say;

/// Complains; if nobody listens, nobody misses it.
pub(crate) fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
