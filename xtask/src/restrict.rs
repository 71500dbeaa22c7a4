//! Becoming a program that may do less: what a user without privileges, or a container, looks like from inside.
//!
//! Everything is given up in this process alone, which then becomes the program. Nothing of the host is changed:
//! mounts are in a namespace that goes with the process, and so does what is copied there.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::{self as proc, Pid, Resource, Rlimit, Signal, setrlimit};

use crate::sys;

/// The hidden subcommand.
pub(crate) const RESTRICT: &str = "__restrict";
/// A user without a name, of whom there is no other process.
pub(crate) const ORDINARY: u32 = 65533;
pub(crate) const NOBODY: u32 = 65534;
const EXIT_CANNOT_RESTRICT: u8 = 126;
/// `ulimit -l 64`.
const MEMLOCK_BYTES: u64 = 64 << 10;

#[derive(clap::Args, Clone, Default)]
pub(crate) struct Options {
    /// As an ordinary user, without a capability.
    #[arg(long)]
    pub(crate) user: bool,
    /// As `nobody`, which is also what the kernel calls users that it can't name: zc takes no other nobody for itself.
    #[arg(long)]
    pub(crate) nobody: bool,
    /// `ulimit -l 64`.
    #[arg(long)]
    pub(crate) memlock: bool,
    /// io_uring is refused by a seccomp filter.
    #[arg(long)]
    pub(crate) no_io_uring: bool,
    /// /dev/shm is empty and read-only.
    #[arg(long)]
    pub(crate) no_shm: bool,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Gives up what is asked, checks that it is gone, and becomes the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    let error = match give_up(options).and_then(|program| verify(options).map(|()| program)) {
        Ok(program) => {
            let error = Command::new(&program).args(&options.command[1..]).exec();
            format!("cannot run {}: {error}", program.display())
        }
        Err(error) => error,
    };
    eprintln!("xtask: {error}");
    ExitCode::from(EXIT_CANNOT_RESTRICT)
}

/// Hands back where the program is now.
fn give_up(options: &Options) -> Result<PathBuf, String> {
    let parent = proc::getppid();
    let mut program = PathBuf::from(&options.command[0]);
    let is_root = proc::geteuid().is_root();
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let other = options.user || options.nobody;
    if is_root && (other || options.no_shm) {
        sys::private_mounts().map_err(failed("a mount namespace"))?;
        if other {
            program = copied(&program).map_err(failed("a copy that everyone may run"))?;
        }
        if options.no_shm {
            sys::mount_empty(c"/dev/shm", true).map_err(failed("an empty /dev/shm"))?;
        }
    }
    if options.memlock {
        let limit = Rlimit { current: Some(MEMLOCK_BYTES), maximum: Some(MEMLOCK_BYTES) };
        setrlimit(Resource::Memlock, limit).map_err(|error| format!("memlock: {error}"))?;
    }
    if other && is_root {
        let id = if options.nobody { NOBODY } else { ORDINARY };
        sys::become_user(id).map_err(failed("becoming another user"))?;
        // The kernel forgets the death signal when credentials change.
        die_with(parent)?;
    }
    if options.no_io_uring {
        sys::refuse_io_uring().map_err(failed("a seccomp filter"))?;
    }
    Ok(program)
}

fn die_with(parent: Option<Pid>) -> Result<(), String> {
    proc::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("death signal: {error}"))?;
    if proc::getppid() == parent { Ok(()) } else { Err("the parent is gone".to_owned()) }
}

/// Puts the program where every user can reach it: on a file system in memory that nobody else sees.
fn copied(program: &Path) -> std::io::Result<PathBuf> {
    let bytes = fs::read(program)?;
    sys::mount_empty(c"/tmp", false)?;
    std::env::set_current_dir("/tmp")?;
    let copy = Path::new("/tmp").join(program.file_name().unwrap_or_default());
    fs::File::create(&copy)?.write_all(&bytes)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// A restriction that is not there would make the check worthless.
fn verify(options: &Options) -> Result<(), String> {
    let claim = |what: &str, holds: bool| if holds { Ok(()) } else { Err(format!("not in force: {what}")) };
    if options.nobody {
        claim("nobody", proc::geteuid().as_raw() == NOBODY)?;
    }
    if options.user || options.nobody {
        claim("no root", !proc::geteuid().is_root() && !proc::getuid().is_root())?;
        claim("no capability", effective_capabilities() == Some(0))?;
    }
    if options.memlock {
        let limit = proc::getrlimit(Resource::Memlock).current;
        claim("ulimit -l 64", limit.is_some_and(|limit| limit <= MEMLOCK_BYTES))?;
    }
    if options.no_io_uring {
        let refused = sys::probe_io_uring().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
        claim("io_uring refused", refused)?;
    }
    if options.no_shm {
        let empty = fs::read_dir("/dev/shm").is_ok_and(|mut entries| entries.next().is_none());
        claim("an empty /dev/shm", empty)?;
        claim("a read-only /dev/shm", fs::File::create("/dev/shm/zc-xtask").is_err())?;
    }
    Ok(())
}

/// The mask in /proc/self/status (proc(5)).
pub(crate) fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}
