//! The time that a test program has, and what hangs in it when that is over.
//!
//! libtest has no such bound: one test that waits for ever would take its stage along, and say nothing of where it waits.
//! Cargo starts test programs through this (`target.….runner`), so that the others still run.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::child::{Cmd, Runner, wait_until};
use crate::guard::{self, EXIT_CANNOT_RUN, Process};

/// The hidden subcommand.
pub(crate) const WITHIN: &str = "__within";
/// How a report of what hangs begins, and its last line.
pub(crate) const HANGS: &str = "xtask: hangs: ";
pub(crate) const THAT_HANGS: &str = "xtask: that is what hangs";

/// What `timeout(1)` answers.
const EXIT_HANGS: u8 = 124;
/// For a debugger to read all stacks of a process.
const LIMIT_STACKS: Duration = Duration::from_secs(60);
/// For what was killed to end: one that sticks in the kernel is left to the stage's guard.
const LIMIT_KILL: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// Frames of the workspace's own that are shown for each thread.
const FRAMES: usize = 8;

/// Runs `command`; what takes longer than `limit` is reported and ended.
pub(crate) fn within(limit: Duration, command: &[OsString]) -> ExitCode {
    let mut child = match Command::new(&command[0]).args(&command[1..]).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("xtask: cannot start {}: {error}", command[0].display());
            return ExitCode::from(EXIT_CANNOT_RUN);
        }
    };
    if let Some(status) = wait_until(&mut child, Instant::now() + limit) {
        // Cargo sees no signal through the code.
        if let Some(signal) = status.signal() {
            eprintln!("xtask: ended by signal {signal}");
        }
        return ExitCode::from(guard::exit_code(status.code(), status.signal()));
    }
    let hanging: String = guard::running(&guard::descendants()).into_iter().map(report).collect();
    // At once, for what hangs may still say something; and libtest may be in the middle of a line.
    print!("\n{HANGS}{} after {} s\n{hanging}{THAT_HANGS}\n", command[0].display(), limit.as_secs());
    let deadline = Instant::now() + LIMIT_KILL;
    loop {
        guard::kill_all(&guard::descendants());
        if wait_until(&mut child, Instant::now() + SWEEP_INTERVAL).is_some() || Instant::now() > deadline {
            return ExitCode::from(EXIT_HANGS);
        }
    }
}

/// A process's threads, which libtest names after their tests: where there is a gdb, the frames of ours in which they are,
/// and for what each waits in the kernel.
fn report(process: &Process) -> String {
    let at = Path::new("/proc").join(process.pid.to_string());
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let command = read(&at.join("cmdline")).replace('\0', " ");
    let mut text =
        format!("process {}: {}\n{}", process.pid, command.trim(), own_frames(&stacks(process.pid)));
    for task in fs::read_dir(at.join("task")).into_iter().flatten().flatten() {
        let (name, waits) = (read(&task.path().join("comm")), read(&task.path().join("wchan")));
        let _ = writeln!(text, "  thread {} {name:?} waits in {waits}", task.file_name().display());
    }
    text
}

/// All stacks of a process, as gdb prints them; nothing where there is none.
fn stacks(pid: i32) -> String {
    let gdb =
        Cmd::new("gdb", "-nx -batch -ex").arg("thread apply all backtrace").args("-p").arg(pid.to_string());
    Runner::new(&crate::root(), LIMIT_STACKS).ask(&gdb).unwrap_or_default()
}

/// Of each thread's frames those in files of this workspace: these are named from its directory, others are not.
fn own_frames(stacks: &str) -> String {
    let mut text = String::new();
    for thread in stacks.split("\nThread ").skip(1) {
        let frames = thread.lines().filter(|line| line.starts_with('#') && is_own(line)).take(FRAMES);
        let frames: String = frames.map(|frame| format!("    {frame}\n")).collect();
        if !frames.is_empty() {
            let _ = write!(text, "  Thread {}\n{frames}", thread.lines().next().unwrap_or_default());
        }
    }
    text
}

fn is_own(frame: &str) -> bool {
    let foreign = |file: &str| file.starts_with(['/', '.']) || file.starts_with("library/");
    frame.rsplit_once(" at ").is_some_and(|(_, file)| !foreign(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_others_are_left_out() {
        let stacks = "
Thread 2 (Thread 0x7f76 (LWP 6091) \"tests::hang\"):
#0  syscall () at ../sysdeps/unix/sysv/linux/x86_64/syscall.S:38
#1  std::thread::Thread::park () at library/std/src/thread/thread.rs:121
#2  0x0000 in tokio::park () at /home/a/.cargo/registry/src/tokio-1/src/park.rs:1
#3  0x0001 in zc::Listener::close () at src/listener.rs:42
#4  clone3 () at ./nptl/clone3.S:81

Thread 1 (Thread 0x7f77 (LWP 6090) \"main\"):
#0  0x0002 in zc_core::pool::take () at crates/zc-core/src/pool.rs:7
";
        let expected = "  \
  Thread 2 (Thread 0x7f76 (LWP 6091) \"tests::hang\"):
    #3  0x0001 in zc::Listener::close () at src/listener.rs:42
  Thread 1 (Thread 0x7f77 (LWP 6090) \"main\"):
    #0  0x0002 in zc_core::pool::take () at crates/zc-core/src/pool.rs:7
";
        assert_eq!(own_frames(stacks), expected);
    }
}
