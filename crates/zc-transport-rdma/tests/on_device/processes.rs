//! What takes another process: one that is killed, and one that may lock little memory. Each is this program again, as the
//! test that a variable names.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use zc_core::memory::BufPool;
use zc_core::transport::Unavailable;
use zc_transport_rdma::*;

use super::engine::{end_of, engine, message, receive, send};
use super::rig::device;

const ROLE: &str = "ZC_RDMA_ROLE";
const ORDINARY: u32 = 1000;

fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// This program again, for one test alone, through a shell that does something before.
fn child(test: &str, before: &str) -> Command {
    let mut command = Command::new("sh");
    let program = std::env::current_exe().unwrap();
    command.arg("-c").arg(format!("{before} exec \"$0\" --exact \"$1\" --nocapture --test-threads=1"));
    command.arg(program).arg(test).env(ROLE, "child");
    command
}

fn pool() -> BufPool {
    BufPool::builder().max_bytes(16 << 20).build()
}

#[tokio::test]
async fn too_little_lockable_memory_is_said_so() {
    if is_child() {
        let reactor = Arc::new(zc::TokioReactor::new());
        let started = Engine::start(reactor, &pool(), &DeviceChoice::default(), RdmaOptions::default());
        match started {
            Err(Unavailable::Memlock { need, soft: 65_536, hard: 65_536 }) if need > 65_536 => {}
            other => panic!("{other:?}"),
        }
        return;
    }
    if device().is_none() {
        return;
    }
    let mut child = child("processes::too_little_lockable_memory_is_said_so", "ulimit -l 64;");
    let said = child.uid(ORDINARY).gid(ORDINARY).current_dir("/").output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("1 passed"), "{said:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Says what it is, connects to what it is told, echoes one message, and waits to be killed.
async fn be_killed() {
    let pool = pool();
    let engine = engine(&pool, RdmaOptions::default()).unwrap();
    let endpoint = engine.endpoint().unwrap();
    println!("\nEND {}", hex(&endpoint.describe().encode()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    endpoint.connect(&End::decode(&unhex(line.trim())).unwrap(), RemoteAccess::default()).unwrap();
    let heard = receive(&endpoint, 1).await.remove(0);
    send(&endpoint, 1, heard.into());
    endpoint.flush();
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_is_noticed_by_who_sends() {
    if is_child() {
        return be_killed().await;
    }
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions::default()) else { return };
    let endpoint = engine.endpoint().unwrap();
    let mut peer = child("processes::a_process_that_is_killed_is_noticed_by_who_sends", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(peer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let described = lines.filter_map(|line| line.strip_prefix("END ").map(unhex)).next().unwrap();
    endpoint.connect(&End::decode(&described).unwrap(), RemoteAccess::default()).unwrap();
    writeln!(peer.stdin.as_mut().unwrap(), "{}", hex(&endpoint.describe().encode())).unwrap();
    // The peer hears us once it is connected; until then the device tries again.
    send(&endpoint, 1, message(&pool, &[7; 1000]));
    endpoint.flush();
    assert_eq!(&receive(&endpoint, 1).await[0][..], [7; 1000]);
    peer.kill().unwrap();
    peer.wait().unwrap();
    // That alone gives no completion; whoever sends gets one.
    for tag in 2..6 {
        send(&endpoint, tag, message(&pool, &[7; 1000]));
    }
    endpoint.flush();
    match end_of(&endpoint).await {
        EndpointEnd::Work(error) => assert_eq!(error.fault(), WorkFault::NotAcknowledged),
        other => panic!("{other:?}"),
    }
    let left = Command::new("rdma").args(["resource", "show", "qp"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    // The kernel names threads there, so they are counted.
    assert_eq!(left.matches("type RC").count(), 1, "ours is left alone: {left}");
}
