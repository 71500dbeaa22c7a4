//! The stage `zcrx`: zero-copy receive by io_uring, on the test machine's newer kernel, in its mode without a device.

use super::Kernel;
use super::check::unobtainable;
use super::program::Program;
use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::Outcome;
use crate::stage::Context;

/// Passes by elsewhere, but where `ZC_ZCRX_MACHINE` is set it fails instead.
const PROGRAM: Program =
    Program { build: "test --workspace --all-features --test zcrx", kind: "test", target: "zcrx" };
/// A hang guard: the tests take about five minutes there, most of them the suite, and several times that where others build.
const LIMIT_S: &str = "1800";
/// Each connection of the suite has an area, all of which is there from the start.
const MEMORY_MIB: &str = "1536";
/// What every lane must do. It takes most of the time, and runs with `--full`.
const SUITE: &str = "in_an_area::";
const PASSED: &str = "test result: ok.";

pub(crate) fn zcrx(context: &Context, runner: &Runner) -> Outcome {
    if let Err(error) = super::obtain(Kernel::Backports, false) {
        return unobtainable(&error);
    }
    on_the_machine(context, runner).map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn on_the_machine(context: &Context, runner: &Runner) -> Result<(), String> {
    let program = PROGRAM.built(&context.root, runner)?;
    let cmd = Cmd::new(SELF, "vm --kernel backports --bare --timeout").arg(LIMIT_S);
    let cmd = cmd.args("--memory").arg(MEMORY_MIB).args("--with").arg(&program.path);
    let script = format!("ZC_ZCRX_MACHINE=1 {} --test-threads=1 --nocapture", program.name);
    let script = if context.full { script } else { format!("{script} --skip {SUITE}") };
    let said = runner.capture(&cmd.args("-- sh -c").arg(script))?;
    print!("{said}");
    if said.contains(PASSED) { Ok(()) } else { Err("the tests did not pass".to_owned()) }
}
