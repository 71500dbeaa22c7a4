//! Where things are: the programs of zc, and what a run leaves in the file system while it lasts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, test_kill_process};

use crate::Result;

/// Every name of a run begins with this, and ends with the run's process.
const PREFIX: &str = "zc-peers-";

/// Programs of zc, and how cargo builds them.
#[derive(Clone, Copy)]
pub(crate) struct Programs {
    names: &'static [&'static str],
    build: &'static [&'static [&'static str]],
}

const BUILD_ZC: &[&str] = &["-p", "zc-cli"];

/// What the comparison of messages needs.
pub(crate) const PERF: Programs = Programs { names: &["zc"], build: &[BUILD_ZC] };

/// What the comparison of calls needs.
pub(crate) const EXAMPLES: Programs = Programs {
    names: &["zc", "grpc_echo", "grpc_echo_raw"],
    build: &[BUILD_ZC, &["-p", "zc-examples-rpc", "--features", "zc/shm", "--bins"]],
};

/// The `zc` program with the others beside it; they are built in the checkout that this was built in, if missing.
pub(crate) fn programs(given: Option<PathBuf>, programs: Programs) -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let zc = given.clone().unwrap_or_else(|| checkout.join("target/release/zc"));
    let beside = zc.parent().unwrap_or(Path::new("."));
    let missing = |name: &&&str| !beside.join(name).exists();
    if programs.names.iter().find(missing).is_none() {
        return Ok(zc.canonicalize()?);
    }
    if given.is_some() {
        return Err(format!("{} lacks one of {:?}", beside.display(), programs.names).into());
    }
    for arguments in programs.build {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(&checkout).args(["build", "--release", "--target-dir", "target"]).args(*arguments);
        if !cargo.status()?.success() {
            return Err(format!("cargo build {arguments:?} failed").into());
        }
    }
    Ok(zc)
}

/// The names of this run; what bears them is removed in the end.
pub(crate) struct Place {
    tag: String,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        sweep(|pid| test_kill_process(pid).is_err());
        let place = Self { tag: format!("{PREFIX}{}", std::process::id()) };
        fs::create_dir(std::env::temp_dir().join(&place.tag))?;
        Ok(place)
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let own = std::process::id();
        sweep(|pid| pid.as_raw_nonzero().get() as u32 == own);
    }
}

/// Removes what runs of these processes left behind: files, and memory that iceoryx2 had no time to unlink.
fn sweep(whose: impl Fn(Pid) -> bool) {
    for directory in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            if pid_in(&entry.file_name().to_string_lossy()).is_some_and(&whose) {
                let path = entry.path();
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
    }
}

fn pid_in(name: &str) -> Option<Pid> {
    let digits = name.strip_prefix(PREFIX)?.split(|c: char| !c.is_ascii_digit()).next()?;
    Pid::from_raw(digits.parse().ok()?)
}
