//! How a server that is found by name says that it is there.

use std::io::Write;

use crate::Result;

/// Tells the client that the server's ports are open.
pub(super) fn say_ready() -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(b"r")?;
    Ok(stdout.flush()?)
}
