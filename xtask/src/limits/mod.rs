//! `cargo xtask limits`: writes `docs/limits.md` from the sources, so that the page can't go stale.
//!
//! ```text
//! sources ──(read: syn)──> constants, options, variables ──(value: numbers)──> (page) ──> docs/limits.md
//! ```
//!
//! A documented constant, and a public field or setter of an options type, appears by itself. What no source
//! says, such as what an option means for memory, is in `notes`; a note about nothing that exists is an error.

mod notes;
mod page;
mod read;
mod value;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// Below the workspace's directory.
pub(crate) const PAGE: &str = "docs/limits.md";

/// Writes the page.
pub(crate) fn write(root: &Path) -> ExitCode {
    let done =
        page(root).and_then(|text| fs::write(root.join(PAGE), text).map_err(|error| error.to_string()));
    match done {
        Ok(()) => {
            println!("wrote {PAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {PAGE}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the page says what the sources say.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let now = fs::read_to_string(root.join(PAGE)).map_err(|error| format!("{PAGE}: {error}"))?;
    let then = page(root)?;
    let differs = now.lines().zip(then.lines()).find(|(now, then)| now != then);
    match differs {
        None if now == then => Ok(()),
        None => Err(format!("{PAGE} is stale: its length differs. Run: cargo xtask limits")),
        Some((now, then)) => {
            println!("- {now}\n+ {then}");
            Err(format!("{PAGE} is stale. Run: cargo xtask limits"))
        }
    }
}

fn page(root: &Path) -> Result<String, String> {
    page::text(&read::sources(root)?)
}
