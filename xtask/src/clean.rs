//! `cargo xtask clean`: removes what the checks built besides the ordinary build.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use crate::stages::{ASAN_DIR, LOOM_DIR};
use crate::target_dir;

/// Below the target directory.
const BUILT_BY_THE_CHECKS: &[&str] = &[LOOM_DIR, ASAN_DIR, "doc", "release/examples"];

pub(crate) fn clean(root: &Path) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in BUILT_BY_THE_CHECKS {
        let dir = target_dir(root).join(name);
        match fs::remove_dir_all(&dir) {
            Ok(()) => println!("removed {}", dir.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                eprintln!("cannot remove {}: {error}", dir.display());
                code = ExitCode::FAILURE;
            }
        }
    }
    println!("The ordinary build is still there; to remove it too: cargo clean");
    code
}
