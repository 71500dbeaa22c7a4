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

/// Nobody, who may lock nothing.
fn lock_nothing() {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain integers and a limit that is alive.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert!(libc::geteuid() != 0 || libc::setuid(65534) == 0);
    }
}

/// Leaves this process `free` descriptors.
fn exhaust(free: usize) -> Vec<std::fs::File> {
    let limit = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
    // SAFETY: a limit that is alive.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    let mut all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    all.truncate(all.len() - free);
    all
}

/// What the child does; without the variable it is no test.
#[test]
fn child() {
    let Ok(what) = std::env::var(REFUSE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (reactor, pool) = (Arc::new(zc::TokioReactor::new()), pool());
    let start = |flavour| Engine::start(reactor.clone(), &pool, EngineOptions::new(flavour)).map(drop);
    let (word, number) = what.split_once(' ').unwrap();
    let number: i32 = number.parse().unwrap();
    let mut _held = Vec::new();
    match word {
        "memlock" => lock_nothing(),
        "nofile" => _held = exhaust(number as usize),
        call => refuse(call.parse().unwrap(), number),
    }
    let starts = FLAVOURS.map(start);
    let reason = starts[0].as_ref().err().map_or("none".to_owned(), |why| format!("{why}: {}", why.remedy()));
    assert!(starts.iter().all(|start| start == &starts[0]), "{starts:?}");
    // A ring alone takes fewer descriptors than an engine.
    if word != "nofile" {
        assert_eq!(probe().err().as_ref(), starts[0].as_ref().err());
    }
    println!("\nreason: {reason}");
}

fn reason(what: &str) -> Option<String> {
    if probe().is_err() {
        eprintln!("skipped, no io_uring here");
        return None;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture"]).env(REFUSE, what);
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
            let Some(reason) = reason(&format!("{call} {errno}")) else { return };
            assert!(reason.starts_with("seccomp") && reason.contains(name), "{reason}");
        }
    }
}

#[test]
fn other_refusals_keep_their_errno() {
    let what = format!("{} {}", libc::SYS_io_uring_setup, libc::EMFILE);
    let Some(reason) = reason(&what) else { return };
    assert!(reason.contains(&format!("errno {}", libc::EMFILE)), "{reason}");
}

/// Kernels from 5.12 to 6.13 do not count a ring as locked memory.
#[test]
fn without_locked_memory_the_limit_is_named() {
    let Some(reason) = reason("memlock 0") else { return };
    let is_counted = reason.starts_with("memlock (need") && reason.contains("ulimit -l");
    assert!(is_counted || reason == "none", "{reason}");
}

/// Whichever of an engine's descriptors is the one too many.
#[test]
fn without_descriptors_the_limit_is_named() {
    for free in 0..4 {
        let Some(reason) = reason(&format!("nofile {free}")) else { return };
        assert!(reason.contains("ulimit -n"), "{free} are free: {reason}");
    }
    let Some(reason) = reason("nofile 30") else { return };
    assert_eq!(reason, "none");
}

#[test]
fn features_are_listed() {
    let Ok(features) = probe() else { return };
    let names = [
        "read_fixed",
        "write_fixed",
        "registered_buffers",
        "sendmsg_zc",
        "report_usage",
        "recv_zc",
        "splice",
    ];
    for name in names {
        assert!(features.list().iter().any(|feature| feature.name == name), "{name}");
    }
    let takes_more = features.list().iter().filter(|feature| feature.needs.is_some());
    assert_eq!(takes_more.map(|feature| feature.name).collect::<Vec<_>>(), ["recv_zc"]);
    assert!(features.has("send_zc") && features.has("buffer_ring"), "{features:?}");
    assert!(!features.has("nonsense"));
    assert_eq!(features.list().len(), 20);
}
