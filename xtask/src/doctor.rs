//! `cargo xtask doctor`: what the checks need, what this machine has, and the one command that closes a gap.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::child::{Cmd, Runner};
use crate::stages::has_tool;
use crate::sys::probe_io_uring;
use crate::vm;

const LIMIT: Duration = Duration::from_secs(120);
const CORES_WANTED: usize = 2;
const MEMORY_WANTED_MIB: u64 = 2048;
/// Two ends of the largest connection test, and some.
const NOFILE_WANTED: u64 = 4096;
/// What an ordinary user has on most distributions.
const MEMLOCK_WANTED_BYTES: u64 = 8 << 20;

enum Verdict {
    Fine,
    /// Some tests do less, or take longer.
    Less,
    /// The checks cannot run, or not all of them.
    Missing,
}

struct Finding {
    what: &'static str,
    have: String,
    verdict: Verdict,
    remedy: String,
}

impl Finding {
    fn new(
        what: &'static str,
        have: impl Into<String>,
        fine: bool,
        otherwise: Verdict,
        remedy: &str,
    ) -> Self {
        let verdict = if fine { Verdict::Fine } else { otherwise };
        Self { what, have: have.into(), verdict, remedy: remedy.to_owned() }
    }
}

/// Prints the findings; fails if something that the checks cannot do without is missing.
pub(crate) fn doctor(root: &Path) -> ExitCode {
    let runner = Runner::new(root, LIMIT);
    let findings = [
        rustc(root, &runner),
        component(&runner, "clippy", "clippy"),
        component(&runner, "fmt", "rustfmt"),
        linker(&runner),
        cores(),
        memory(),
        limit("nofile", Resource::Nofile, NOFILE_WANTED, "ulimit -n hard"),
        limit(
            "memlock",
            Resource::Memlock,
            MEMLOCK_WANTED_BYTES,
            "sudo prlimit --pid $$ --memlock=unlimited",
        ),
        shm(),
        io_uring(),
        userns(&runner),
        machine(),
    ];
    for Finding { what, have, verdict, remedy } in &findings {
        let (mark, remedy) = match verdict {
            Verdict::Fine => ("ok", String::new()),
            Verdict::Less => ("less", format!("\n{:<18}{remedy}", "")),
            Verdict::Missing => ("MISSING", format!("\n{:<18}{remedy}", "")),
        };
        println!("{mark:<8}{what:<10}{have}{remedy}");
    }
    println!("\nok: as wanted; less: some tests do less or are skipped; MISSING: a stage cannot run");
    let missing = findings.iter().any(|finding| matches!(finding.verdict, Verdict::Missing));
    if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn rustc(root: &Path, runner: &Runner) -> Finding {
    let wanted =
        fs::read_to_string(root.join("Cargo.toml")).ok().and_then(|manifest| rust_version(&manifest));
    let have = runner.ask(&Cmd::new("rustc", "--version")).unwrap_or_default();
    let number = have.split(' ').nth(1).and_then(version);
    let fine = number.is_some() && number >= wanted;
    let needs = wanted.map_or_else(String::new, |(major, minor)| format!(" (needs {major}.{minor})"));
    let have = if have.is_empty() { "not found" } else { have.trim() };
    Finding::new("rustc", format!("{have}{needs}"), fine, Verdict::Missing, "rustup update stable")
}

/// The workspace's `rust-version`.
fn rust_version(manifest: &str) -> Option<(u32, u32)> {
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version"))?;
    version(line.trim_matches([' ', '=', '"']))
}

/// Major and minor number of `1.90` or `1.90.0-nightly`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn component(runner: &Runner, tool: &str, name: &'static str) -> Finding {
    let there = has_tool(runner, tool);
    let have = if there { "installed" } else { "not installed" };
    Finding::new(name, have, there, Verdict::Missing, &format!("rustup component add {name}"))
}

fn linker(runner: &Runner) -> Finding {
    let have = runner.ask(&Cmd::new("cc", "--version")).unwrap_or_default();
    let first = have.lines().next().unwrap_or("no C linker (cc)");
    Finding::new("linker", first, !have.is_empty(), Verdict::Missing, "sudo apt-get install gcc libc6-dev")
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let remedy = "no command: tests that need a core per side take longer";
    Finding::new("cores", cores.to_string(), cores >= CORES_WANTED, Verdict::Less, remedy)
}

fn memory() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let mib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024;
    let remedy = "CARGO_BUILD_JOBS=1 cargo xtask test";
    Finding::new("memory", format!("{mib} MiB available"), mib >= MEMORY_WANTED_MIB, Verdict::Less, remedy)
}

fn limit(what: &'static str, resource: Resource, wanted: u64, remedy: &str) -> Finding {
    let limit = getrlimit(resource);
    let shown = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let have = format!("{} (hard limit {})", shown(limit.current), shown(limit.maximum));
    Finding::new(what, have, limit.current.is_none_or(|limit| limit >= wanted), Verdict::Less, remedy)
}

fn shm() -> Finding {
    let there = Path::new("/dev/shm").is_dir();
    let have = if there { "/dev/shm is there" } else { "no /dev/shm" };
    Finding::new("shm", have, there, Verdict::Less, "sudo mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm")
}

fn io_uring() -> Finding {
    match probe_io_uring() {
        Ok(()) => Finding::new("io_uring", "allowed", true, Verdict::Less, ""),
        Err(error) => {
            let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            let remedy = match sysctl.trim() {
                "1" | "2" => "sudo sysctl kernel.io_uring_disabled=0",
                _ => {
                    "no command: a seccomp filter or the kernel refuses it (in a container: allow io_uring_setup)"
                }
            };
            Finding::new("io_uring", format!("refused: {error}"), false, Verdict::Less, remedy)
        }
    }
}

/// Tried in a process of its own; the namespace goes with it.
fn userns(runner: &Runner) -> Finding {
    let allowed = runner.ask(&Cmd::new("unshare", "--user --map-root-user true")).is_ok();
    let restricted = fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let remedy = match restricted.as_deref().map(str::trim) {
        Ok("1") => "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        _ => "sudo sysctl user.max_user_namespaces=10000",
    };
    let have = if allowed { "user namespaces work" } else { "no user namespaces (or no unshare command)" };
    Finding::new("userns", have, allowed, Verdict::Less, remedy)
}

/// The test machine. Whether there is a network shows when it is fetched.
fn machine() -> Finding {
    let (have, fine) = match vm::standing() {
        vm::Standing::Kept => ("the test machine is in the cache", true),
        vm::Standing::ToFetch => ("the test machine will be fetched", true),
        vm::Standing::Unobtainable => ("no test machine: not x86-64, or no apt-get and dpkg", false),
    };
    let remedy =
        "no command: the stage vm needs an x86-64 Debian, or a cache folder (docs/testing.md) filled on one";
    Finding::new("vm", have, fine, Verdict::Less, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(rust_version("edition = \"2024\"\nrust-version = \"1.90\"\n"), Some((1, 90)));
        assert_eq!(version("1.100.0-nightly"), Some((1, 100)));
        assert!(version("1.100.0") > version("1.90"));
        assert_eq!(version("?"), None);
    }
}
