//! The stage `rdma`: our idea of libibverbs' header compared with the C compiler's, and queue pairs on the test machine.

use std::fs;
use std::path::{Path, PathBuf};

use super::Kernel;
use super::apt::{Apt, Package};
use super::cache::{Cache, Kind};
use super::check::unobtainable;
use super::error::Error;
use super::program::Program;
use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::Outcome;
use crate::stage::Context;

const HEADERS: &str = "libibverbs-dev";
const HEADER_DIR: &str = "usr/include";
const LAYOUT: u32 = 1;
const LAYOUT_TEST: &str =
    "test --workspace --all-features --lib -- --nocapture --exact sys::layout::layout_is_that_of_the_header";
/// What it prints when it has compared something: a test of another name would be none, and pass.
const COMPARED: &str = "offsets, sizes and constants are those of the header";
/// The tests that need a device.
const PROGRAM: Program =
    Program { build: "test --workspace --all-features --test on_device", kind: "test", target: "on_device" };
/// Those of what has no name outside.
const INSIDE: Program =
    Program { build: "test --workspace --all-features --lib", kind: "lib", target: "zc_transport_rdma" };
/// The example whose lookups the device does.
const KV: Program =
    Program { build: "test --workspace --all-features --test kv", kind: "test", target: "kv" };
/// A hang guard: the tests take about eight minutes there, most of them the suite, and twice that where others build.
const LIMIT_S: &str = "1500";
/// What the tests print that took the device and found it.
const PASSED: &str = "test result: ok.";
const RUNS: usize = 4;
/// With `--full`, the longest message there may be, and a machine that holds it twice. Else the tests have one that fits any machine.
const LONGEST_MIB: &str = "ZC_RDMA_LONGEST_MIB=1024";
const FULL_MEMORY_MIB: &str = "5120";
/// What is left of us on the device when all processes have ended: nothing.
const NOTHING_LEFT: &str = "mr 0 ctx 0 srq 0";

pub(crate) fn rdma(context: &Context, runner: &Runner) -> Outcome {
    let had = super::obtain(Kernel::Stable, false).and_then(|_| headers());
    let headers = match had {
        Ok(headers) => headers,
        Err(error) => return unobtainable(&error),
    };
    let done = layout(&headers, runner).and_then(|()| on_the_machine(context, runner));
    done.map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn headers() -> Result<PathBuf, Error> {
    let recipe = format!("{LAYOUT} {HEADERS}");
    let kind = Kind { what: "headers", recipe, suite: None, packages, make };
    Ok(Cache::of_the_user()?.tree(&kind, false)?.join(HEADER_DIR))
}

/// The one package: what it depends on is no header of verbs.
fn packages(apt: &Apt) -> Result<Vec<Package>, Error> {
    let mut packages = apt.closure(&[HEADERS])?;
    packages.retain(|package| package.name == HEADERS);
    Ok(packages)
}

fn make(unpacked: &Path, made: &Path) -> Result<(), Error> {
    let (from, to) = (unpacked.join(HEADER_DIR), made.join(HEADER_DIR));
    let parent = to.parent().unwrap_or(made);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    fs::rename(&from, &to).map_err(Error::io("move", &from))
}

fn layout(headers: &Path, runner: &Runner) -> Result<(), String> {
    let said = runner.capture(&Cmd::cargo(LAYOUT_TEST).env("ZC_VERBS_INCLUDE", headers))?;
    print!("{said}");
    if said.contains(COMPARED) { Ok(()) } else { Err("nothing was compared with the header".to_owned()) }
}

fn on_the_machine(context: &Context, runner: &Runner) -> Result<(), String> {
    let root = &context.root;
    let programs = [PROGRAM.built(root, runner)?, INSIDE.built(root, runner)?, KV.built(root, runner)?];
    let cmd = Cmd::new(SELF, "vm --bare --timeout").arg(LIMIT_S);
    let cmd = if context.full { cmd.args("--memory").arg(FULL_MEMORY_MIB) } else { cmd };
    let cmd = programs.iter().fold(cmd, |cmd, program| cmd.args("--with").arg(&program.path));
    let names = programs.each_ref().map(|program| program.name.as_str());
    let said = runner.capture(&cmd.args("-- sh -c").arg(script(names, context.full)))?;
    print!("{said}");
    // All runs, and then nobody.
    match (said.matches(PASSED).count(), said.contains(NOTHING_LEFT)) {
        (RUNS, true) => Ok(()),
        (RUNS, false) => Err("something was left on the device".to_owned()),
        (runs, _) => Err(format!("{runs} of {RUNS} runs passed")),
    }
}

/// One test at a time: two processors are emulated, and some tests look at all of the device. Last come those that take
/// the port down.
fn script([program, inside, kv]: [&str; 3], full: bool) -> String {
    let longest = if full { LONGEST_MIB } else { "" };
    format!(
        "set -e; export ZC_RDMA_MACHINE=1 {longest}; {inside} --test-threads=1 --skip fuzz_; {program} --test-threads=1; {kv} --test-threads=1 --skip fuzz_; \
         {program} --test-threads=1 --ignored; rdma resource"
    )
}
