//! Where io_uring is refused there is a typed reason. Filters can't be taken off, so a child process has them.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod common;

use common::*;
use std::process::Command;
use std::sync::Arc;
use zc_transport_uring::{Engine, EngineOptions, probe};

/// For the child: which call the filter refuses, and with what.
const REFUSE: &str = "ZC_TEST_REFUSE";

/// From here on this thread, and those that it starts, get `errno` from system call `call`.
fn refuse(call: i64, errno: i32) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(load, 0, 0, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
        op(equal, 0, 1, call as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl(2) reads `filter` and the program it points to, both alive, and keeps its own copy.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

/// What the child does; without the variable it is no test.
#[test]
fn child() {
    let Ok(what) = std::env::var(REFUSE) else { return };
    let (call, errno) = what.split_once(' ').unwrap();
    refuse(call.parse().unwrap(), errno.parse().unwrap());
    let code = probe().unwrap_err().code();
    on_one_thread(async {
        for flavour in FLAVOURS {
            let reactor = Arc::new(zc::TokioReactor::new());
            let why = Engine::start(reactor, &pool(), EngineOptions::new(flavour)).unwrap_err();
            assert_eq!(why.code(), code);
        }
    });
    println!("\nreason: {}", probe().unwrap_err());
}

fn reason(call: i64, errno: i32) -> Option<String> {
    if probe().is_err() {
        eprintln!("skipped, no io_uring here");
        return None;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture"]).env(REFUSE, format!("{call} {errno}"));
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text.lines().find_map(|line| line.strip_prefix("reason: ")).unwrap().to_owned())
}

#[test]
fn a_filter_is_named_with_the_call_that_it_refuses() {
    let calls = [
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_uring_register", libc::SYS_io_uring_register),
        // The set-up succeeds then, and the first use does not.
        ("io_uring_enter", libc::SYS_io_uring_enter),
    ];
    for (name, call) in calls {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let Some(reason) = reason(call, errno) else { return };
            assert!(reason.starts_with("seccomp") && reason.contains(name), "{reason}");
        }
    }
}

#[test]
fn other_refusals_keep_their_errno() {
    let Some(reason) = reason(libc::SYS_io_uring_setup, libc::EMFILE) else { return };
    assert!(reason.contains(&format!("errno {}", libc::EMFILE)), "{reason}");
}

#[test]
fn features_are_listed() {
    let Ok(features) = probe() else { return };
    assert!(features.has("send_zc") && features.has("buffer_ring"), "{features:?}");
    assert!(!features.has("nonsense"));
    assert_eq!(features.list().len(), 14);
}
