//! `cargo xtask vm -- COMMAND`: runs a command on a small machine of its own, whose kernel has RDMA (Soft-RoCE), or
//! network cards that AF_XDP sockets use without a copy.
//!
//! ```text
//! packages ──(apt, cache)──> kernel and its modules               (kernel, cpio)
//!                            first file system                    (guest, cpio)
//!                            qemu, unless there is one            (qemu)
//! cargo build ──> zc, examples ──> boot ──> stdout, stderr, exit status, --out    (boot, ports)
//! ```
//!
//! With `--peer` there are two of them, and a wire in between (pair, wire).

mod apt;
mod boot;
mod cache;
pub(crate) mod check;
mod cpio;
mod error;
mod guest;
mod kernel;
mod pair;
mod ports;
mod program;
mod qemu;
mod quote;
pub(crate) mod rdma;
pub(crate) mod rdmapair;
mod wire;
pub(crate) mod xdp;
pub(crate) mod zcrx;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use self::boot::Job;
use self::cache::Cache;
use self::error::Error;
pub(crate) use self::kernel::Kernel;
use self::pair::Pair;
use self::qemu::Qemu;
use self::wire::{End, Wire};
use crate::child::{Cmd, Runner};
use crate::target_dir;

/// What timeout(1) answers.
const EXIT_DEADLINE: u8 = 124;
/// What tools answer that run commands elsewhere, for what went wrong with themselves.
const EXIT_OURS: u8 = 125;
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
const BUILD: &str = "build --quiet --release -p zc -p zc-cli --bins --examples";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What it boots.
    #[arg(long, value_enum, default_value_t = Kernel::Stable)]
    kernel: Kernel,
    /// Seconds from switching the machine on to the command's end.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Put this program on PATH in the machine, for instance a test that is built; may be given several times.
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Bring back what the command leaves in /out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Do not build zc and the examples, and do not take them along.
    #[arg(long)]
    bare: bool,
    /// Memory of the machine; what it needs, if not given.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Run this line of shell on a second machine, at the other end of a wire: 10.0.0.2, where COMMAND is on 10.0.0.1. It is
    /// switched off when COMMAND has ended; if it fails before, that ends the run.
    #[arg(long, value_name = "LINE")]
    peer: Option<OsString>,
    /// Wait until both commands have ended.
    #[arg(long, requires = "peer")]
    both: bool,
    /// Look for newer packages of the kernel, the userland and qemu.
    #[arg(long)]
    update: bool,
    /// What to run there, as root.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Answers with the command's exit status.
pub(crate) fn vm(root: &Path, options: Options) -> ExitCode {
    match run(root, options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(if let Error::Deadline { .. } = error { EXIT_DEADLINE } else { EXIT_OURS })
        }
    }
}

fn run(root: &Path, options: Options) -> Result<u8, Error> {
    let parts = obtain(options.kernel, options.update)?;
    let mut programs = if options.bare { Vec::new() } else { build(root)? };
    programs.extend(options.with);
    let job = Job {
        command: options.command,
        programs,
        out: options.out,
        limit: Duration::from_secs(options.timeout),
        memory_mib: options.memory,
        place: None,
    };
    let Some(line) = options.peer else { return job.run(&parts) };
    if options.kernel != Kernel::Stable {
        return Err(Error::NoPair);
    }
    let wire = Arc::<Wire>::default();
    let at = |end| Some((wire.clone(), end));
    let command = vec!["sh".into(), "-c".into(), line];
    let peer = Job { command, programs: job.programs.clone(), out: None, place: at(End::Peer), ..job };
    let main = Job { place: at(End::Main), ..job };
    Pair { main, peer, wire, both: options.both }.run(&parts)
}

/// The machine's parts.
struct Parts {
    qemu: Qemu,
    kernel: Kernel,
    kernel_dir: PathBuf,
    userland_dir: PathBuf,
}

/// From the cache, or fetched.
fn obtain(kernel: Kernel, newest: bool) -> Result<Parts, Error> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Architecture);
    }
    let cache = Cache::of_the_user()?;
    Ok(Parts {
        qemu: Qemu::find(&cache, newest)?,
        kernel,
        kernel_dir: cache.tree(&kernel.kind(), newest)?,
        userland_dir: cache.tree(&guest::kind(), newest)?,
    })
}

/// What using the machine would take here.
pub(crate) enum Standing {
    Kept,
    ToFetch,
    Unobtainable,
}

/// Looks without fetching anything.
pub(crate) fn standing() -> Standing {
    let kinds = [Kernel::Stable.kind(), Kernel::Backports.kind(), guest::kind()];
    let has_all = |cache: &Cache| kinds.iter().all(|kind| cache.has(kind)) && Qemu::is_here(cache);
    let kept = Cache::of_the_user().is_ok_and(|cache| has_all(&cache));
    match std::env::consts::ARCH {
        "x86_64" if kept => Standing::Kept,
        "x86_64" if apt::TOOLS.iter().all(|tool| on_path(tool).is_some()) => Standing::ToFetch,
        _ => Standing::Unobtainable,
    }
}

/// Builds `zc` and the examples as their users do, and says where they are.
fn build(root: &Path) -> Result<Vec<PathBuf>, Error> {
    eprintln!("xtask: cargo {BUILD}");
    Runner::new(root, BUILD_LIMIT).output(&Cmd::cargo(BUILD)).map_err(|how| Error::Build { how })?;
    let release = target_dir(root).join("release");
    let is_source = |path: &PathBuf| path.extension() == Some(OsStr::new("rs"));
    // A file, or a folder of them.
    let is_example = |path: &PathBuf| is_source(path) || path.join("main.rs").is_file();
    let sources = entries(&root.join("examples"))?.into_iter().filter(is_example);
    let examples = sources.filter_map(|path| Some(release.join("examples").join(path.file_stem()?)));
    Ok(examples.chain([release.join("zc")]).collect())
}

/// The program of that name that a shell would run.
fn on_path(name: &str) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(executable)
}

/// What is in a directory, in order.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let all =
        fs::read_dir(dir).and_then(|all| all.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>());
    let mut all = all.map_err(Error::io("read", dir))?;
    all.sort();
    Ok(all)
}

/// The one entry of a directory whose name begins so.
fn one(root: &Path, dir: &str, prefix: &str) -> Result<PathBuf, Error> {
    let found = existing(root, &[dir])?.into_iter().find(|path| name(path).starts_with(prefix));
    found.ok_or_else(|| Error::Package { what: format!("no {dir}/{prefix}…") })
}

/// All entries of those directories that are there.
fn existing(root: &Path, dirs: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let dirs = dirs.iter().map(|dir| root.join(dir)).filter(|dir| dir.is_dir());
    dirs.map(|dir| entries(&dir)).collect::<Result<Vec<_>, _>>().map(|found| found.concat())
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
