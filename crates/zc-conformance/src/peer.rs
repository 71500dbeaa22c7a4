//! The other process of a behaviour: the test binary itself, started again with a role.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use zc::{Completion, Connection};

use crate::behaviours;
use crate::data::{self, numbered};
use crate::run::nothing_is_left;
use crate::setup::{Bench, Setup};

/// The role of a process that the suite started, and where it connects to.
pub const ENV_ROLE: &str = "ZC_CONFORMANCE_ROLE";
/// The process that it dies with.
const ENV_PARENT: &str = "ZC_CONFORMANCE_PARENT";

/// Messages that a holder sends before it says that it is ready.
pub(crate) const FROM_HOLDER: u32 = 100;
/// Messages that a holder takes and keeps.
pub(crate) const HELD: u32 = 25;

/// What the other process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Sends [`FROM_HOLDER`] messages, takes [`HELD`], says "ready", keeps them.
    Hold,
    /// Sends without end.
    Flood,
    /// Connects and answers.
    Echo,
    /// Writes into memory that it is granted, without end.
    Remote,
    /// Opens and closes connections with itself.
    Churn,
}

const PARTS: [(Part, &str); 5] = [
    (Part::Hold, "hold"),
    (Part::Flood, "flood"),
    (Part::Echo, "echo"),
    (Part::Remote, "remote"),
    (Part::Churn, "churn"),
];

/// A process that is killed however the behaviour ends.
pub(crate) struct Peer(Child);

impl Peer {
    /// Plays `part` against `uri`. Call this on the behaviour's own thread: the process dies with it.
    pub(crate) fn start(bench: &Bench, part: Part, uri: &str) -> Self {
        // Without the crate's name, and with the name of the test that plays a part.
        let (_, path) = bench.name().split_once("::").expect("a path");
        let test = match path.rsplit_once("::") {
            Some((module, _)) => format!("{module}::peer_process"),
            None => "peer_process".to_owned(),
        };
        let (_, name) = PARTS.iter().find(|(p, _)| *p == part).expect("all parts have names");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", &test, "--nocapture", "--test-threads=1"])
            .env(ENV_ROLE, format!("{name} {uri}"))
            .env(ENV_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("a second process"))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }

    /// SIGSTOP; returns once all its threads have stopped.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let stopped = rustix::process::waitpid(Some(Pid::from_child(&self.0)), WaitOptions::UNTRACED);
        assert!(matches!(stopped, Ok(Some((_, status))) if status.stopped()), "{stopped:?}");
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).expect("a signal");
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays the part that the environment names; nothing without one.
///
/// # Panics
/// When the part fails.
pub fn peer_process(setup: Setup) {
    let Ok(role) = std::env::var(ENV_ROLE) else { return };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("PR_SET_PDEATHSIG");
    let parent = rustix::process::getppid().map(Pid::as_raw_nonzero);
    let expected = std::env::var(ENV_PARENT).ok();
    if parent.map(|pid| pid.to_string()) != expected {
        return; // It was gone before the signal was set.
    }
    let (name, uri) = role.split_once(' ').expect("a part and a URI");
    let (part, _) = PARTS.iter().find(|(_, n)| *n == name).expect("a known part");
    let bench = Bench::new(setup, "peer_process");
    bench.runtime().block_on(async {
        match part {
            Part::Hold => hold(connect(&bench, uri).await).await,
            Part::Flood => flood(connect(&bench, uri).await).await,
            Part::Echo => data::echo(connect(&bench, uri).await).await,
            Part::Remote => behaviours::write_for_ever(connect(&bench, uri).await).await,
            Part::Churn => {
                behaviours::churn(&bench).await;
                nothing_is_left(&bench, 0).await;
            }
        }
    });
}

async fn connect(bench: &Bench, uri: &str) -> Connection {
    bench.client().build().unwrap().connect(uri).await.unwrap()
}

async fn hold(mut connection: Connection) {
    let sender = connection.sender();
    for n in 0..FROM_HOLDER {
        sender.send_with(numbered(1, n, 2000), Completion::Delivered).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..HELD {
        held.push(connection.recv().await.unwrap().unwrap());
    }
    sender.send(&b"ready"[..]).await.unwrap();
    std::future::pending::<()>().await;
}

async fn flood(connection: Connection) {
    for n in 0.. {
        if connection.send(numbered(2, n, 100_000)).await.is_err() {
            return;
        }
    }
}
