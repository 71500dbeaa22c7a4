//! The stage `xdpvm`: AF_XDP without copies, on the network cards of the test machine.

use std::path::Path;

use super::Kernel;
use super::check::unobtainable;
use super::program::Program;
use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::Outcome;
use crate::stage::Context;

/// Test targets of the workspace that take the cards where `ZC_XDP_MACHINE` is set.
const TESTS: &[&str] = &["device", "owner"];
/// The behaviour suite of the lane, which sends much: all is emulated there.
const SUITE: Program =
    Program { build: "test --release -p zc-transport-xdp --test cards", kind: "test", target: "cards" };
const BENCH: Program =
    Program { build: "bench -p zc-transport-xdp --bench device", kind: "bench", target: "device" };
/// A hang guard: tests and benchmark take three minutes there where others build.
const LIMIT_S: &str = "1200";
const PASSED: &str = "test result: ok.";
/// Of whom the benchmark prints the ratio to copy mode, once for short packets and once for long ones.
const CONTENDER: &str = " zero copy ";
const SIZES: usize = 2;

pub(crate) fn xdp(context: &Context, runner: &Runner) -> Outcome {
    if let Err(error) = super::obtain(Kernel::Backports, false) {
        return unobtainable(&error);
    }
    on_the_machine(&context.root, runner).map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn on_the_machine(root: &Path, runner: &Runner) -> Result<(), String> {
    let targets: String = TESTS.iter().map(|target| format!(" --test {target}")).collect();
    let build = format!("test --workspace --all-features{targets}");
    let mut cmd = Cmd::new(SELF, "vm --kernel backports --bare --timeout").arg(LIMIT_S);
    let mut script = String::from("set -e; export ZC_XDP_MACHINE=1");
    let tests = TESTS.iter().map(|target| Program { build: &build, kind: "test", target }).chain([SUITE]);
    for program in tests {
        let program = program.built(root, runner)?;
        // The cards are there once.
        script += &format!("; {} --test-threads=1", program.name);
        cmd = cmd.args("--with").arg(&program.path);
    }
    let bench = BENCH.built(root, runner)?;
    script += &format!("; {} --bench", bench.name);
    let said = runner.capture(&cmd.args("--with").arg(&bench.path).args("-- sh -c").arg(script))?;
    print!("{said}");
    let passed = said.matches(PASSED).count();
    let programs = TESTS.len() + 1;
    if passed != programs {
        return Err(format!("{passed} of {programs} test programs passed"));
    }
    match &ratios(&said)[..] {
        found if found.len() != SIZES => Err(format!("the benchmark printed {} ratios", found.len())),
        found if found.iter().all(|ratio| *ratio > 1.0) => Ok(()),
        found => Err(format!("without copies it is not faster than with them: {found:?}")),
    }
}

/// How many times as many packets arrive without copies as with them, in the same run of the machine: the last words of
/// the benchmark's lines, as `7.83x`.
fn ratios(said: &str) -> Vec<f64> {
    let lines = said.lines().filter(|line| line.starts_with("one way") && line.contains(CONTENDER));
    lines.filter_map(|line| line.trim_end().strip_suffix('x')?.rsplit(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_last_word() {
        let said = "one way       64 B  device, driver        0.99 k/s   1.00x\n\
                    one way       64 B  zero copy            10.81 k/s   7.83x\n\
                    test zero copy ... ok\n\
                    one way     1400 B  zero copy            12.83 k/s  17.00x \n";
        assert_eq!(ratios(said), [7.83, 17.0]);
        assert!(ratios("").is_empty());
    }
}
