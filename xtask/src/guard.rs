//! The guard: a process between `xtask` and a stage's command that lets nothing outlive the stage.
//!
//! ```text
//! xtask ──pipe──> xtask __guard ──> xtask __exec ──execve──> cargo ──> rustc, tests, servers …
//!                 own process group; adopts orphans          killed by the kernel if the guard dies
//! ```
//!
//! The pipe carries nothing. It closes when `xtask` gives up on the stage or dies in whatever way (Ctrl-C, SIGKILL),
//! and the guard then kills every descendant. The same sweep follows a command that ended by itself but left
//! processes behind. Orphans come to the guard, not to init, so that daemonised processes are found too.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{self as proc, Pid, Signal, WaitOptions, WaitStatus};

/// The hidden subcommand of the guard.
pub(crate) const GUARD: &str = "__guard";
/// The hidden subcommand that asks for the death signal and becomes the command.
pub(crate) const EXEC: &str = "__exec";
/// This program, also after cargo has replaced its file.
pub(crate) const SELF: &str = "/proc/self/exe";

/// What the guard answers when it could not start the command, as shells do.
pub(crate) const EXIT_CANNOT_RUN: u8 = 127;
/// How long processes that are ending by themselves get before the sweep.
const GRACE: Duration = Duration::from_millis(500);
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// Sweeps before the guard gives up on a process that does not die (one stuck in the kernel).
const SWEEPS_MAX: u32 = 250;

/// Runs `command` to its end, then ends what it left behind.
pub(crate) fn guard(command: &[OsString]) -> ExitCode {
    if let Err(error) = proc::set_child_subreaper(Some(proc::getpid())) {
        eprintln!("xtask: cannot adopt orphaned processes: {error}");
        return ExitCode::from(EXIT_CANNOT_RUN);
    }
    // The death signal is tied to the thread that spawns: this one, which lives as long as the guard.
    let child = Command::new(SELF)
        .arg(EXEC)
        .arg(proc::getpid().as_raw_nonzero().to_string())
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .spawn();
    let child = match child {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            eprintln!("xtask: cannot start {}: {error}", command[0].display());
            return ExitCode::from(EXIT_CANNOT_RUN);
        }
    };
    thread::spawn(kill_when_abandoned);
    let code = reap_until(child)
        .map_or(EXIT_CANNOT_RUN, |status| exit_code(status.exit_status(), status.terminating_signal()));
    end_leftovers();
    ExitCode::from(code)
}

/// Asks the kernel to kill this process with its parent, and becomes `command`; the request survives `execve`.
pub(crate) fn exec(parent: i32, command: &[OsString]) -> ExitCode {
    if let Err(error) = proc::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("xtask: cannot ask for a death signal: {error}");
        return ExitCode::from(EXIT_CANNOT_RUN);
    }
    // The parent may have died before the request was in place.
    if proc::getppid().map(Pid::as_raw_pid) != Some(parent) {
        return ExitCode::from(EXIT_CANNOT_RUN);
    }
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    eprintln!("xtask: cannot run {}: {error}", command[0].display());
    ExitCode::from(EXIT_CANNOT_RUN)
}

/// Reaps whatever ends, adopted orphans included, until `child` does.
fn reap_until(child: Pid) -> Option<WaitStatus> {
    loop {
        match proc::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => return Some(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// What a shell answers for a command that ended with `code` or by `signal`.
pub(crate) fn exit_code(code: Option<i32>, signal: Option<i32>) -> u8 {
    let code = code.or_else(|| signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_CANNOT_RUN)
}

/// Waits for the pipe's end, then kills every descendant until the main thread has seen the command go.
fn kill_when_abandoned() {
    let mut sink = [0; 64];
    loop {
        match std::io::stdin().read(&mut sink) {
            Ok(0) => break,
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break,
            _ => {}
        }
    }
    loop {
        kill_all(&descendants());
        thread::sleep(SWEEP_INTERVAL);
    }
}

fn end_leftovers() {
    if running(&descendants()).is_empty() {
        return;
    }
    thread::sleep(GRACE);
    let left = descendants();
    let left = running(&left);
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
        // Whoever reads us may have been killed; what is left behind still ends.
        let _ = writeln!(io::stderr(), "xtask: ending processes that were left behind: {}", names.join(", "));
    }
    for _ in 0..SWEEPS_MAX {
        let left = descendants();
        if running(&left).is_empty() {
            return;
        }
        kill_all(&left);
        while let Ok(Some(_)) = proc::wait(WaitOptions::NOHANG) {}
        thread::sleep(SWEEP_INTERVAL);
    }
}

pub(crate) fn kill_all(processes: &[Process]) {
    for process in processes {
        if let Some(pid) = Pid::from_raw(process.pid) {
            // It may have ended since it was listed.
            let _ = proc::kill_process(pid, Signal::KILL);
        }
    }
}

pub(crate) fn running(processes: &[Process]) -> Vec<&Process> {
    processes.iter().filter(|process| process.state != 'Z').collect()
}

#[derive(Debug, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    parent: i32,
    state: char,
    name: String,
}

/// Every process below this one.
pub(crate) fn descendants() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for entry in entries.flatten() {
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<i32>().is_ok());
        if let Some(process) = is_process
            .then(|| fs::read_to_string(entry.path().join("stat")).ok())
            .flatten()
            .and_then(|stat| parse_stat(&stat))
        {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![proc::getpid().as_raw_pid()];
    while let Some(parent) = pending.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            pending.push(process.pid);
            found.push(process);
        }
    }
    found
}

/// Reads `pid (name) state parent …`, where the name may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, state, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_parentheses_in_the_name() {
        let process = parse_stat("42 (a) b (c) S 7 42 42 0 -1").unwrap();
        assert_eq!(process, Process { pid: 42, parent: 7, state: 'S', name: "a) b (c".to_owned() });
        assert_eq!(parse_stat("42"), None);
    }
}
