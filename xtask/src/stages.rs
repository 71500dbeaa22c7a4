//! The stages of `cargo xtask test`, in the order they run.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::{Outcome, Skip};
use crate::restrict::{NOBODY, ORDINARY, RESTRICT, effective_capabilities};
use crate::stage::{Context, SOAK_FACTOR, Stage};
use crate::target_dir;
use crate::vm;
use crate::within::WITHIN;

const LIMIT_FMT: Duration = Duration::from_secs(60);
const LIMIT_BUILD: Duration = Duration::from_secs(30 * 60);
const LIMIT_TESTS: Duration = Duration::from_secs(45 * 60);
/// For one test program: several times what the longest takes.
const LIMIT_PROGRAM: Duration = Duration::from_secs(12 * 60);
const LIMIT_FUZZ: Duration = Duration::from_secs(30 * 60);
/// For the main example alone, once it is built.
const LIMIT_ECHO: Duration = Duration::from_secs(120);
/// For asking a tool whether it is there.
const LIMIT_ASK: Duration = Duration::from_secs(60);
const LIMIT_INSTALL: Duration = Duration::from_secs(5 * 60);

/// The package whose tests are the behaviour suite, for every transport.
const CONFORMANCE: &str = "zc-conformance";
/// What property tests begin with. They have a stage of their own, in which they try more cases.
const FUZZ: &str = "fuzz_";
const KILL_ROUNDS: u32 = 200;
/// Tests of the suite at a time, for each processor: many wait for something most of their time.
const SUITE_THREADS: usize = 2;

/// Cases per property in the fuzz stage; an ordinary test run tries proptest's 256.
const FUZZ_CASES: u32 = 20_000;
/// ... and under the address sanitizer, where a case takes several times as long.
const ASAN_CASES: u32 = 16;
/// Forced preemptions that loom explores per execution. Most races need two.
const LOOM_PREEMPTIONS: u32 = 3;
const LOOM_PREEMPTIONS_FULL: u32 = 4;
/// The build with `--cfg loom` has a directory of its own, so that it does not undo the ordinary one.
pub(crate) const LOOM_DIR: &str = "loom";

/// So has the one with the sanitizer.
pub(crate) const ASAN_DIR: &str = "asan";

const ADD_COMPONENTS: &str = "rustup component add clippy rustfmt";

/// Every stage.
pub(crate) const STAGES: &[Stage] = &[
    stage("fmt", "formatting", LIMIT_FMT, fmt),
    stage("clippy", "lints, as errors", LIMIT_BUILD, clippy),
    stage("features", "zc-http builds with each of its features alone", LIMIT_BUILD, features),
    stage("limits", "docs/limits.md says what the sources say", LIMIT_FMT, limits),
    stage("unit", "unit tests", LIMIT_TESTS, unit),
    stage("integration", "integration tests", LIMIT_TESTS, integration),
    stage("conformance", "the behaviour suite of every transport", LIMIT_TESTS, conformance),
    stage("doc", "examples in the documentation", LIMIT_TESTS, doc),
    stage("rustdoc", "documentation builds without a warning", LIMIT_BUILD, rustdoc),
    stage("examples", "examples build, and run for a moment", LIMIT_TESTS, examples),
    stage(
        "restricted",
        "echo runs with less: privileges, memlock, io_uring, /dev/shm",
        LIMIT_BUILD,
        restricted,
    ),
    stage("loom", "models of the lock-free structures", LIMIT_TESTS, loom),
    stage("fuzz", "property tests of the decoders", LIMIT_FUZZ, fuzz),
    stage("asan", "hostile peers of shared memory, under the address sanitizer", LIMIT_TESTS, asan),
    stage("vm", "the test machine boots, and RDMA works in it", LIMIT_BUILD, vm::check::vm),
    stage("rdma", "the layout of verbs, and queue pairs on the test machine", LIMIT_BUILD, vm::rdma::rdma),
    stage(
        "rdmapair",
        "RDMA between two test machines, of which one is killed",
        LIMIT_BUILD,
        vm::rdmapair::rdmapair,
    ),
    stage("xdpvm", "AF_XDP without copies, on the test machine's cards", LIMIT_TESTS, vm::xdp::xdp),
    stage(
        "zcrx",
        "zero-copy receive by io_uring, on the test machine's newer kernel",
        LIMIT_TESTS,
        vm::zcrx::zcrx,
    ),
    Stage {
        soak: true,
        ..stage("idle", "what 10,000 idle connections cost, and 1,000 over shared memory", LIMIT_BUILD, idle)
    },
    Stage { soak: true, ..stage("kill", "tests that kill processes, over and over", LIMIT_TESTS, kill) },
];

const fn stage(
    name: &'static str,
    about: &'static str,
    limit: Duration,
    run: fn(&Context, &Runner) -> Outcome,
) -> Stage {
    Stage { name, about, limit, soak: false, run }
}

fn fmt(context: &Context, runner: &Runner) -> Outcome {
    with_component("fmt", "rustfmt", context, runner, &Cmd::cargo("fmt --all --check"))
}

fn clippy(context: &Context, runner: &Runner) -> Outcome {
    let cmd = Cmd::cargo("clippy --workspace --all-features --all-targets -- -D warnings");
    with_component("clippy", "clippy", context, runner, &cmd)
}

/// What all other stages build with all features.
fn features(context: &Context, runner: &Runner) -> Outcome {
    for features in ["", " --features tonic", " --features hyper"] {
        let step = format!("clippy -p zc-http --no-default-features{features} -- -D warnings");
        let outcome = with_component("clippy", "clippy", context, runner, &Cmd::cargo(&step));
        if !matches!(outcome, Outcome::Passed) {
            return outcome;
        }
    }
    Outcome::Passed
}

fn unit(context: &Context, runner: &Runner) -> Outcome {
    run(runner, &tests(context, "test --workspace --all-features --lib --bins"))
}

fn integration(context: &Context, runner: &Runner) -> Outcome {
    let cmd = targets(context, |package| !package.ends_with(CONFORMANCE));
    cmd.map_or_else(|| nothing("no package has integration tests"), |cmd| run(runner, &cmd))
}

fn conformance(context: &Context, runner: &Runner) -> Outcome {
    let Some(cmd) = targets(context, |package| package.ends_with(CONFORMANCE)) else {
        return nothing("zc-conformance has no tests");
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    run(runner, &cmd.env("RUST_TEST_THREADS", (SUITE_THREADS * processors).to_string()))
}

/// Test targets by name, and not `--tests`: that would run the unit tests a second time. The whole workspace is
/// named each time, so that all stages share one build.
fn targets(context: &Context, chosen: fn(&Path) -> bool) -> Option<Cmd> {
    let chosen: Vec<_> = packages(&context.root).into_iter().filter(|package| chosen(package)).collect();
    let names: BTreeSet<_> = chosen.iter().flat_map(|package| test_targets(package)).collect();
    if names.is_empty() {
        return None;
    }
    let names: String = names.iter().map(|name| format!(" --test {name}")).collect();
    Some(tests(context, &format!("test --workspace --all-features{names}")))
}

fn limits(context: &Context, _: &Runner) -> Outcome {
    crate::limits::check(&context.root).map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn doc(_: &Context, runner: &Runner) -> Outcome {
    run(runner, &Cmd::cargo("test --workspace --all-features --doc"))
}

fn rustdoc(_: &Context, runner: &Runner) -> Outcome {
    run(runner, &Cmd::cargo("doc --workspace --all-features --no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

fn examples(context: &Context, runner: &Runner) -> Outcome {
    let release = target_dir(&context.root).join("release");
    let example = |name: &str, args: &str| Cmd::new(release.join("examples").join(name), args);
    let rpc = |name: &str, args: &str| Cmd::new(release.join(name), args);
    let own_loop = "run --quiet --release -p zc --no-default-features --features tcp --example own_loop";
    let bench = "bench --uri zc://127.0.0.1:0 --size 64 --inflight 8 --duration-s 0.1";
    let build = Cmd::cargo("build --workspace --release --examples");
    if let Err(how) = runner.run(&build) {
        return Outcome::Failed(format!("{build}: {how}"));
    }
    let echo = example("echo", "--quick");
    for (step, expected) in [(echo.clone(), SHM_CHOSEN), (echo.env("ZC_TRANSPORTS", "^shm"), SHM_FORBIDDEN)] {
        if let Err(how) = run_reporting(runner, &step, expected) {
            return Outcome::Failed(format!("{step}: {how}"));
        }
    }
    let steps = [
        example("proxy", ""),
        example("custom_transport", ""),
        example("file_server", "--quick"),
        example("kv", "--quick"),
        // Built once more, without the runtime that it does without.
        Cmd::cargo(own_loop),
        Cmd::cargo("build --release -p zc-examples-rpc --bins"),
        rpc("grpc_echo", bench),
        rpc("grpc_echo_raw", bench),
        rpc("tarpc_echo", bench),
        rpc("axum_hello", ""),
        rpc("pubsub", ""),
    ];
    for step in &steps {
        if let Err(how) = runner.run(step) {
            return Outcome::Failed(format!("{step}: {how}"));
        }
    }
    Outcome::Passed
}

/// What a program that chooses for itself reports of shared memory with a process of its host: as a rule; where it must
/// not; and of the user whom the kernel shows for all that it can't name.
const SHM_CHOSEN: &str = "chosen";
const SHM_FORBIDDEN: &str = "unavailable: forbidden_by_policy";
const SHM_OF_NOBODY: &str = "unavailable: peer_uid (65534)";

/// Runs a program that prints its selection report, in which shared memory must have ended so.
fn run_reporting(runner: &Runner, cmd: &Cmd, expected: &str) -> Result<(), String> {
    let said = runner.capture(cmd)?;
    print!("{said}");
    match reported("shm", &said) {
        Some(found) if found.contains(expected) => Ok(()),
        found => Err(format!("it reports of shm: {}; expected: {expected}", found.unwrap_or("nothing"))),
    }
}

/// The line of a transport in a selection report, without its name.
fn reported<'a>(transport: &str, text: &'a str) -> Option<&'a str> {
    let of_it = |line: &'a str| line.strip_prefix(transport).filter(|rest| rest.starts_with(' '));
    text.lines().find_map(of_it).map(str::trim)
}

/// What a program may do without, one by one and together, and what it then reports of shared memory.
const RESTRICTIONS: &[(&str, &str)] = &[
    ("--user", SHM_CHOSEN),
    ("--nobody", SHM_OF_NOBODY),
    ("--memlock", SHM_CHOSEN),
    ("--no-io-uring", SHM_CHOSEN),
    ("--no-shm", SHM_CHOSEN),
    ("--user --memlock", SHM_CHOSEN),
    ("--user --no-io-uring", SHM_CHOSEN),
    ("--user --no-shm", SHM_CHOSEN),
    ("--memlock --no-io-uring --no-shm", SHM_CHOSEN),
    ("--user --memlock --no-io-uring --no-shm", SHM_CHOSEN),
];

fn restricted(context: &Context, runner: &Runner) -> Outcome {
    let build = Cmd::cargo("build --release --example echo");
    if let Err(how) = runner.run(&build) {
        return Outcome::Failed(format!("{build}: {how}"));
    }
    let echo = target_dir(&context.root).join("release/examples/echo");
    let mut left_out = Vec::new();
    for (flags, expected) in RESTRICTIONS {
        if let Some(reason) = beyond_us(flags) {
            println!("left out: {flags}: {reason}");
            left_out.push(format!("{flags} ({reason})"));
            continue;
        }
        let cmd = Cmd::new(SELF, RESTRICT).args(flags).args("--").arg(&echo).args("--quick");
        if let Err(how) = run_reporting(&runner.at_most(LIMIT_ECHO), &cmd, expected) {
            return Outcome::Failed(format!("{flags}: {how}"));
        }
    }
    if left_out.is_empty() {
        return Outcome::Passed;
    }
    let ran = RESTRICTIONS.len() - left_out.len();
    let reason = format!("{ran} of {} ran; left out: {}", RESTRICTIONS.len(), left_out.join(", "));
    Outcome::Skipped(Skip { reason, remedy: None, beyond_this_machine: true })
}

/// Why this process can't restrict a child so.
fn beyond_us(flags: &str) -> Option<&'static str> {
    const SETGID_SETUID_SYS_ADMIN: u64 = 1 << 6 | 1 << 7 | 1 << 21;
    let capabilities = effective_capabilities().unwrap_or(0);
    let able = capabilities & SETGID_SETUID_SYS_ADMIN == SETGID_SETUID_SYS_ADMIN;
    let other =
        if flags.contains("--nobody") { Some(NOBODY) } else { flags.contains("--user").then_some(ORDINARY) };
    let is_root = rustix::process::geteuid().is_root();
    match () {
        () if is_root && other.is_some_and(|id| !is_known(id)) => {
            Some("this user namespace has no such user")
        }
        () if able => None,
        () if flags.contains("--nobody") => Some("becoming nobody takes CAP_SETUID"),
        () if flags.contains("--no-shm") => Some("mounting takes CAP_SYS_ADMIN"),
        // An ordinary user is what is wanted.
        () if flags.contains("--user") && capabilities != 0 => Some("dropping some privileges takes others"),
        () => None,
    }
}

/// Whether somebody here can be this user and this group. Capabilities don't say: in a namespace of one user root has all.
fn is_known(id: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|map| fs::read_to_string(map).is_ok_and(|map| is_mapped(&map, id)))
}

/// The lines of a map are `first here, first outside, count` (user_namespaces(7)).
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if id.checked_sub(first).is_some_and(|at| at < count))
    })
}

fn idle(_: &Context, runner: &Runner) -> Outcome {
    let bench = "bench -p zc --bench idle";
    // The name of shared memory is of the whole host.
    let shm = format!("-- 1000 zc+shm://idle-{}", std::process::id());
    for step in [Cmd::cargo(bench), Cmd::cargo(bench).args(&shm)] {
        if let Err(how) = runner.run(&step) {
            return Outcome::Failed(format!("{step}: {how}"));
        }
    }
    Outcome::Passed
}

/// Timing decides what a killed peer leaves behind, so that one run shows little.
fn kill(_: &Context, runner: &Runner) -> Outcome {
    let suite = format!("test -p {CONFORMANCE} --test *");
    let steps = [
        Cmd::cargo("test --workspace --all-features --test *kill"),
        Cmd::cargo(&suite).args("-- a_peer_killed peer_is_killed peer_dies"),
    ];
    for round in 1..=KILL_ROUNDS {
        println!("round {round} of {KILL_ROUNDS}");
        for step in &steps {
            if let Err(how) = runner.run(step) {
                return Outcome::Failed(format!("round {round}: {step}: {how}"));
            }
        }
    }
    Outcome::Passed
}

fn loom(context: &Context, runner: &Runner) -> Outcome {
    let preemptions = if context.full { LOOM_PREEMPTIONS_FULL } else { LOOM_PREEMPTIONS };
    let packages: String = loom_packages(&context.root).iter().map(|name| format!(" -p {name}")).collect();
    if packages.is_empty() {
        return nothing("no package has a dependency on loom");
    }
    let cmd = Cmd::cargo(&format!("test{packages} --lib --release loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", preemptions.to_string())
        .env("CARGO_TARGET_DIR", target_dir(&context.root).join(LOOM_DIR));
    run_if_any(runner, &cmd, "no test has loom in its name")
}

fn fuzz(context: &Context, runner: &Runner) -> Outcome {
    let cases = if context.soak { FUZZ_CASES * SOAK_FACTOR } else { FUZZ_CASES };
    let cmd = Cmd::cargo("test --workspace --all-features --tests")
        .args(FUZZ)
        .env("PROPTEST_CASES", cases.to_string());
    run_if_any(runner, &cmd, "no test has fuzz_ in its name")
}

/// What a hostile peer makes us do to the heap, which no other test looks at.
fn asan(context: &Context, runner: &Runner) -> Outcome {
    // Named, so that build scripts and macros are left alone.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let ask = Cmd::new("rustc", "--print target-libdir --target").arg(&target);
    let libraries = runner.at_most(LIMIT_ASK).ask(&ask).unwrap_or_default();
    let files = fs::read_dir(libraries.trim()).into_iter().flatten().flatten();
    if !files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with("_rt.asan.a")) {
        let reason = format!("the toolchain has no address sanitizer for {target}");
        return Outcome::Skipped(Skip { reason, remedy: None, beyond_this_machine: true });
    }
    let cases = if context.soak { ASAN_CASES * SOAK_FACTOR } else { ASAN_CASES };
    let cmd = Cmd::cargo("test -p zc-transport-shm --lib --target")
        .arg(&target)
        .env("PROPTEST_CASES", cases.to_string())
        // The sanitizer works with the stable compiler, its flag is not stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", target_dir(&context.root).join(ASAN_DIR));
    run_if_any(runner, &cmd, "zc-transport-shm has no unit tests")
}

fn run(runner: &Runner, cmd: &Cmd) -> Outcome {
    runner.run(cmd).map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

/// A test command, with the tests that `--full` and `--soak` add, and without those of the fuzz stage.
fn tests(context: &Context, args: &str) -> Cmd {
    // One failure must not hide others, nor may one that waits for ever.
    let limit = if context.soak { LIMIT_PROGRAM * SOAK_FACTOR } else { LIMIT_PROGRAM };
    // This program for cargo, too, also when its file has been replaced.
    let program = format!("/proc/{}/exe", std::process::id());
    let runner = format!(r#"target."cfg(all())".runner=["{program}","{WITHIN}","{}","--"]"#, limit.as_secs());
    let mut cmd = Cmd::cargo(args).arg("--config").arg(runner).args("--no-fail-fast -- --skip").args(FUZZ);
    if context.full {
        cmd = cmd.args("--include-ignored");
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

/// The directories of all packages.
fn packages(root: &Path) -> Vec<PathBuf> {
    let below = |dir: &str| fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
    let members = ["crates", "examples"].into_iter().flat_map(below).map(|entry| entry.path());
    let members = members.filter(|dir| dir.join("Cargo.toml").exists());
    members.chain([root.to_owned(), root.join("xtask")]).collect()
}

/// The names of a package's integration tests.
fn test_targets(package: &Path) -> Vec<String> {
    let entries = fs::read_dir(package.join("tests")).into_iter().flatten().flatten();
    let target = |path: PathBuf| {
        let is_test = path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").exists();
        is_test.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
    };
    entries.filter_map(|entry| target(entry.path())).collect()
}

/// The packages with models: those that depend on loom under `--cfg loom`. Each has the name of its directory.
fn loom_packages(root: &Path) -> BTreeSet<String> {
    let models = |package: &PathBuf| {
        let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("[target.'cfg(loom)'.dependencies]")
    };
    let name = |package: PathBuf| Some(package.file_name()?.to_str()?.to_owned());
    packages(root).into_iter().filter(models).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_among_other_words() {
        let text = "shmem is no transport\nshm    commit       chosen\ntcp    offers       not needed\n";
        assert_eq!(reported("shm", text), Some("commit       chosen"));
        assert_eq!(reported("rdma", text), None);
    }

    #[test]
    fn a_user_is_looked_up_in_the_map() {
        assert!(is_mapped("         0          0 4294967295\n", NOBODY));
        assert!(!is_mapped("         0       1000          1\n", NOBODY));
        assert!(is_mapped("0 1000 1\n1 100000 65534\n", NOBODY));
        assert!(!is_mapped("0 1000 1\n1 100000 65533\n", NOBODY));
    }

    #[test]
    fn every_package_is_found() {
        let root = crate::root();
        let models = loom_packages(&root);
        assert!(["zc-core", "zc-transport-shm"].iter().all(|name| models.contains(*name)), "{models:?}");
        let all: Vec<_> = packages(&root).iter().flat_map(|package| test_targets(package)).collect();
        for target in ["guard", "transports", "grpc", "wireup", "framing"] {
            assert!(all.iter().any(|name| name == target), "{target} is not in {all:?}");
        }
        let suite = root.join("crates").join(CONFORMANCE);
        assert_eq!(test_targets(&suite), ["transports"], "modules are no targets");
    }
}
