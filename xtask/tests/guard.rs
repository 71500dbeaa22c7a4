//! Nothing that a stage started outlives it.

// Helpers of a test are tests to a reader, if not to the lint.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const HANG_GUARD: Duration = Duration::from_secs(60);

/// Starts `script` under the guard and hands back the first line it prints, often a process to watch.
/// The pipe comes separately because `Child::wait` would close it, which tells the guard to end everything.
fn start(script: &str) -> (Child, ChildStdin, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["__guard", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pipe = child.stdin.take().unwrap();
    (child, pipe, line.trim().to_owned())
}

fn assert_ends(pid: &str) {
    let start = Instant::now();
    let stat = Path::new("/proc").join(pid).join("stat");
    // A zombie has ended; when it is reaped is up to whoever inherited it.
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(start.elapsed() < HANG_GUARD, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_exit_code_passes_through() {
    let (mut guard, _pipe, line) = start("echo hello; exit 7");
    assert_eq!(line, "hello");
    assert_eq!(guard.wait().unwrap().code(), Some(7));
}

#[test]
fn a_daemon_left_behind_is_ended() {
    let (mut guard, _pipe, pid) = start("setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    assert!(guard.wait().unwrap().success());
    assert_ends(&pid);
}

#[test]
fn a_caller_that_goes_takes_everything_with_it() {
    let (mut guard, pipe, pid) = start("sleep 1000 & echo $!; wait");
    drop(pipe);
    assert!(!guard.wait().unwrap().success());
    assert_ends(&pid);
}

#[test]
fn the_command_dies_with_the_guard() {
    let (mut guard, _pipe, pid) = start("echo $$; exec sleep 1000");
    guard.kill().unwrap();
    guard.wait().unwrap();
    assert_ends(&pid);
}
