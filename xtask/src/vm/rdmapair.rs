//! The stage `rdmapair`: RDMA between two machines. Each part switches both on.

use std::path::Path;

use super::Kernel;
use super::check::unobtainable;
use super::program::Program;
use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::Outcome;
use crate::stage::Context;
use crate::target_dir;

/// The tests that know of two machines.
const PROGRAM: Program = Program {
    build: "test --workspace --all-features --test two_machines",
    kind: "test",
    target: "two_machines",
};
/// A hang guard for each part: the longer one takes a minute and a half, and several times that where others build.
const LIMIT_S: &str = "600";
/// What a program prints that found nothing but RDMA to carry its connection, and what `kv` prints when the device has done all.
const CHOSEN: &str = "rdma   commit       chosen";
const NATIVE: &str = "one-sided, natively";
const NOBODY: &str = "took part in 0 of";
const NO_OPERATIONS: &str = ", 0 one-sided operations done";
const PASSED: &str = "test result: ok.";
/// What is left of us on the device when all processes have ended: nothing.
const NOTHING_LEFT: &str = "mr 0 ctx 0 srq 0";

pub(crate) fn rdmapair(context: &Context, runner: &Runner) -> Outcome {
    if let Err(error) = super::obtain(Kernel::Stable, false) {
        return unobtainable(&error);
    }
    let done = examples(&context.root, runner).and_then(|()| tests(&context.root, runner));
    done.map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

/// As their users run them: servers on the peer, clients here. The shell has an `echo` of its own.
fn examples(root: &Path, runner: &Runner) -> Result<(), String> {
    super::build(root).map_err(|error| error.to_string())?;
    let release = target_dir(root).join("release/examples");
    let peer = "kv server zc+rdma://10.0.0.2:7001 & exec /usr/local/bin/echo server zc+rdma://10.0.0.2:7000";
    let script = "set -e
        for port in 7000 7001; do until nc 10.0.0.2 $port </dev/null 2>/dev/null; do sleep 0.2; done; done
        /usr/local/bin/echo client zc+rdma://10.0.0.2:7000
        kv bench zc://10.0.0.2:7001 --seconds 2 --keys 256
        rdma resource";
    let cmd = Cmd::new(SELF, "vm --bare --timeout").arg(LIMIT_S);
    let cmd = cmd.args("--with").arg(release.join("echo")).args("--with").arg(release.join("kv"));
    let said = runner.capture(&cmd.args("--peer").arg(peer).args("-- sh -c").arg(script))?;
    print!("{said}");
    // Once for each program.
    if said.matches(CHOSEN).count() != 2 {
        return Err("RDMA was not chosen by both programs".to_owned());
    }
    match [NATIVE, NOBODY, NO_OPERATIONS, NOTHING_LEFT].into_iter().find(|expected| !said.contains(expected))
    {
        None => Ok(()),
        Some(expected) => Err(format!("the output lacks {expected:?}")),
    }
}

/// The peer's card takes packets of 1500 bytes, and ours of 9000: both queue pairs have to use the shorter ones. Last, the peer is asked to end, and shows that it leaves nothing, either: its exit
/// status is part of ours.
fn tests(root: &Path, runner: &Runner) -> Result<(), String> {
    let program = PROGRAM.built(root, runner)?;
    let name = &program.name;
    let peer = format!(
        "set -e; ip link set eth0 mtu 1500; export ZC_RDMA_SIDE=peer; {name} --exact the_peer_serves; \
         rdma resource | grep '{NOTHING_LEFT}'"
    );
    let script = format!(
        "set -e; export ZC_RDMA_SIDE=main; {name} --test-threads=1 --nocapture; {name} --ignored; rdma resource"
    );
    let cmd = Cmd::new(SELF, "vm --bare --both --timeout").arg(LIMIT_S).args("--with").arg(&program.path);
    let said = runner.capture(&cmd.args("--peer").arg(peer).args("-- sh -c").arg(script))?;
    print!("{said}");
    match (said.matches(PASSED).count(), said.contains(NOTHING_LEFT)) {
        (2, true) => Ok(()),
        (2, false) => Err("something was left on the device".to_owned()),
        (runs, _) => Err(format!("{runs} of 2 runs passed")),
    }
}
