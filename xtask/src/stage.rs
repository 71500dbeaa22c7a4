//! `cargo xtask test`: which stages run, and running them one after the other.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::child::Runner;
use crate::report::{Line, Outcome, Report, again, seconds};
use crate::stages::STAGES;

/// How many times longer a stage may take, and how many times more cases it tries, with `--soak`.
pub(crate) const SOAK_FACTOR: u32 = 20;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run this stage only; may be given several times.
    #[arg(long, value_name = "STAGE", value_parser = stage_names())]
    only: Vec<String>,
    /// Also run tests marked `#[ignore]` and let loom explore one more preemption.
    #[arg(long)]
    full: bool,
    /// Like --full, with 20 times the cases and the time, a million half-open connections, and more stages
    /// (sets ZC_SOAK=1 for the tests).
    #[arg(long)]
    soak: bool,
    /// Add missing toolchain components (rustup component add clippy rustfmt).
    #[arg(long)]
    install: bool,
    /// For build servers: like --install, and a stage skipped although it could run here is a failure.
    #[arg(long)]
    ci: bool,
    /// List the stages and end.
    #[arg(long)]
    list: bool,
}

fn stage_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(STAGES.iter().map(|stage| stage.name))
}

/// One step of the project's check.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The hang guard: far more than the stage needs on two cores with everything still to build.
    pub(crate) limit: Duration,
    /// Part of a run with `--soak` only, unless it is named.
    pub(crate) soak: bool,
    pub(crate) run: fn(&Context, &Runner) -> Outcome,
}

/// What a stage needs to know of the run.
pub(crate) struct Context {
    pub(crate) root: PathBuf,
    pub(crate) full: bool,
    pub(crate) soak: bool,
    /// Whether missing toolchain components may be added.
    pub(crate) install: bool,
}

/// Runs the chosen stages in their order; a failed one does not stop those after it.
pub(crate) fn test(root: &Path, options: &Options) -> ExitCode {
    let chosen = STAGES.iter().filter(|stage| match &options.only[..] {
        [] => options.soak || !stage.soak,
        only => only.iter().any(|name| name == stage.name),
    });
    if options.list {
        chosen.for_each(|stage| println!("{:<12} {}", stage.name, stage.about));
        return ExitCode::SUCCESS;
    }
    let context = Context {
        root: root.to_owned(),
        full: options.full || options.soak,
        soak: options.soak,
        install: options.install || options.ci,
    };
    let mut report = Report::default();
    for stage in chosen {
        report.lines.push(run(stage, &context));
    }
    println!("\n{}", report.summary(options.ci));
    let _ = std::io::stdout().flush();
    if report.good(options.ci) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(stage: &Stage, context: &Context) -> Line {
    println!("\n==> {}: {}", stage.name, stage.about);
    let limit = if context.soak { stage.limit * SOAK_FACTOR } else { stage.limit };
    let start = Instant::now();
    let runner = Runner::new(&context.root, limit);
    let outcome = (stage.run)(context, &runner);
    let took = start.elapsed();
    let detail = match outcome.detail() {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    println!("<== {} {} after {}{detail}", stage.name, outcome.word(), seconds(took));
    if let Outcome::Failed(_) = outcome {
        println!("    again, alone: {}", again(stage.name));
    }
    Line { stage: stage.name, outcome, took, said: runner.said() }
}
