//! The stages of `cargo xtask test`, in the order they run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::child::{Cmd, Runner};
use crate::report::{Outcome, Skip};
use crate::stage::{Context, SOAK_FACTOR, Stage};
use crate::target_dir;

const LIMIT_FMT: Duration = Duration::from_secs(60);
const LIMIT_BUILD: Duration = Duration::from_secs(10 * 60);
const LIMIT_TESTS: Duration = Duration::from_secs(15 * 60);
const LIMIT_FUZZ: Duration = Duration::from_secs(10 * 60);
/// For the main example alone, once it is built.
const LIMIT_ECHO: Duration = Duration::from_secs(120);
/// For asking a tool whether it is there.
const LIMIT_ASK: Duration = Duration::from_secs(60);
const LIMIT_INSTALL: Duration = Duration::from_secs(5 * 60);

/// Cases per property in the fuzz stage; an ordinary test run tries proptest's 256.
const FUZZ_CASES: u32 = 20_000;
/// Forced preemptions that loom explores per execution. Most races need two.
const LOOM_PREEMPTIONS: u32 = 3;
const LOOM_PREEMPTIONS_FULL: u32 = 4;
/// The build with `--cfg loom` has a directory of its own, so that it does not undo the ordinary one.
pub(crate) const LOOM_DIR: &str = "loom";

const ADD_COMPONENTS: &str = "rustup component add clippy rustfmt";

/// Every stage.
pub(crate) const STAGES: &[Stage] = &[
    Stage { name: "fmt", about: "formatting", limit: LIMIT_FMT, run: fmt },
    Stage { name: "clippy", about: "lints, as errors", limit: LIMIT_BUILD, run: clippy },
    Stage { name: "unit", about: "unit tests", limit: LIMIT_TESTS, run: unit },
    Stage {
        name: "integration",
        about: "integration tests and the conformance suites",
        limit: LIMIT_TESTS,
        run: integration,
    },
    Stage { name: "doc", about: "examples in the documentation", limit: LIMIT_TESTS, run: doc },
    Stage {
        name: "rustdoc",
        about: "documentation builds without a warning",
        limit: LIMIT_BUILD,
        run: rustdoc,
    },
    Stage { name: "examples", about: "examples build; echo runs", limit: LIMIT_BUILD, run: examples },
    Stage { name: "loom", about: "models of the lock-free structures", limit: LIMIT_TESTS, run: loom },
    Stage { name: "fuzz", about: "property tests of the decoders", limit: LIMIT_FUZZ, run: fuzz },
];

fn fmt(context: &Context, runner: &Runner) -> Outcome {
    with_component("fmt", "rustfmt", context, runner, &Cmd::cargo("fmt --all --check"))
}

fn clippy(context: &Context, runner: &Runner) -> Outcome {
    let cmd = Cmd::cargo("clippy --workspace --all-features --all-targets -- -D warnings");
    with_component("clippy", "clippy", context, runner, &cmd)
}

fn unit(context: &Context, runner: &Runner) -> Outcome {
    run(runner, &tests(context, "test --workspace --all-features --lib --bins"))
}

/// `--test *` and not `--tests`: the latter would run the unit tests a second time.
fn integration(context: &Context, runner: &Runner) -> Outcome {
    if !has_integration_tests(&context.root) {
        return nothing("no package has integration tests");
    }
    run(runner, &tests(context, "test --workspace --all-features --test *"))
}

fn doc(_: &Context, runner: &Runner) -> Outcome {
    run(runner, &Cmd::cargo("test --workspace --all-features --doc"))
}

fn rustdoc(_: &Context, runner: &Runner) -> Outcome {
    run(runner, &Cmd::cargo("doc --workspace --all-features --no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

fn examples(context: &Context, runner: &Runner) -> Outcome {
    let dir = context.root.join("examples");
    let built = runner.run(&Cmd::cargo("build --workspace --release --examples"));
    if let Err(how) = built {
        return Outcome::Failed(how);
    }
    if !dir.join("echo.rs").exists() && !dir.join("echo/main.rs").exists() {
        return nothing("there is no example named echo");
    }
    let echo = target_dir(&context.root).join("release/examples/echo");
    run(&runner.at_most(LIMIT_ECHO), &Cmd::new(echo, "--quick"))
}

fn loom(context: &Context, runner: &Runner) -> Outcome {
    let preemptions = if context.full { LOOM_PREEMPTIONS_FULL } else { LOOM_PREEMPTIONS };
    let cmd = Cmd::cargo("test -p zc-core --lib --release loom")
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", preemptions.to_string())
        .env("CARGO_TARGET_DIR", target_dir(&context.root).join(LOOM_DIR));
    run_if_any(runner, &cmd, "zc-core has no test with loom in its name")
}

fn fuzz(context: &Context, runner: &Runner) -> Outcome {
    let cases = if context.soak { FUZZ_CASES * SOAK_FACTOR } else { FUZZ_CASES };
    let cmd = Cmd::cargo("test --workspace --tests fuzz_").env("PROPTEST_CASES", cases.to_string());
    run_if_any(runner, &cmd, "no test has fuzz_ in its name")
}

fn run(runner: &Runner, cmd: &Cmd) -> Outcome {
    runner.run(cmd).map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

/// A test command, with the tests that `--full` and `--soak` add.
fn tests(context: &Context, args: &str) -> Cmd {
    let mut cmd = Cmd::cargo(args);
    if context.full {
        cmd = cmd.args("-- --include-ignored");
    }
    if context.soak { cmd.env("ZC_SOAK", "1") } else { cmd }
}

/// A filter that matches no test would pass without having checked anything: ask first.
fn run_if_any(runner: &Runner, cmd: &Cmd, none: &str) -> Outcome {
    match runner.capture(&cmd.clone().args("-- --list")) {
        Ok(list) if list.lines().any(|line| line.ends_with(": test")) => run(runner, cmd),
        Ok(_) => nothing(none),
        Err(how) => Outcome::Failed(how),
    }
}

/// Runs a stage that needs a component of the toolchain, which a person decides to install.
fn with_component(tool: &str, component: &str, context: &Context, runner: &Runner, cmd: &Cmd) -> Outcome {
    if !has_tool(runner, tool) && context.install {
        // Whether it helped is what the next question shows.
        let _ = runner.at_most(LIMIT_INSTALL).run(&Cmd::new("rustup", "component add clippy rustfmt"));
    }
    if has_tool(runner, tool) {
        return run(runner, cmd);
    }
    let reason = format!("{component} is not installed");
    Outcome::Skipped(Skip { reason, remedy: Some(ADD_COMPONENTS), beyond_this_machine: false })
}

/// Whether cargo knows the subcommand `tool`.
pub(crate) fn has_tool(runner: &Runner, tool: &str) -> bool {
    runner.at_most(LIMIT_ASK).ask(&Cmd::cargo(tool).args("--version")).is_ok()
}

/// The tree holds nothing for the stage to run. That is no property of the machine.
fn nothing(reason: &str) -> Outcome {
    Outcome::Skipped(Skip { reason: reason.to_owned(), remedy: None, beyond_this_machine: false })
}

fn has_integration_tests(root: &Path) -> bool {
    let crates = fs::read_dir(root.join("crates")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = crates.chain([root.to_owned(), root.join("xtask")]);
    packages.any(|package| {
        let mut entries = fs::read_dir(package.join("tests")).into_iter().flatten().flatten();
        entries.any(|entry| {
            let path = entry.path();
            path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").exists()
        })
    })
}
