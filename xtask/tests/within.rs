//! A test program that hangs is reported and ended; others pass through.

// Helpers of a test are tests to a reader, if not to the lint.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn within(seconds: &str, script: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["__within", seconds, "--", "sh", "-c", script]).output().unwrap()
}

#[test]
fn output_and_exit_code_pass_through() {
    let output = within("60", "echo hello; exit 7");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(within("60", "kill -ABRT $$").status.code(), Some(128 + 6));
}

#[test]
fn what_hangs_is_named_and_ended() {
    let output = within("1", "sleep 1000; true");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(124), "{said}");
    assert!(said.starts_with("\nxtask: hangs: sh after 1 s\n"), "{said}");
    assert!(said.contains("sleep 1000\n  thread ") && said.contains("\"sleep\" waits in "), "{said}");
    assert!(said.ends_with("xtask: that is what hangs\n"), "{said}");
}
