//! Build tasks of the zc workspace: `cargo xtask test`, `cargo xtask doctor`, `cargo xtask vm`, `cargo xtask clean`.
//!
//! `docs/testing.md` says what each stage of `test` checks and how to run it alone.

// Talking to the person at the terminal is this program's whole job.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod child;
mod clean;
mod doctor;
#[cfg(test)]
mod documented;
mod guard;
mod limits;
mod report;
mod restrict;
mod said;
mod stage;
mod stages;
mod sys;
mod vm;
mod within;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build tasks of the zc workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the project's checks, stage by stage.
    Test(stage::Options),
    /// Say what the checks need and what this machine has; changes nothing.
    Doctor,
    /// Remove what the checks built besides the ordinary build.
    Clean,
    /// Write docs/limits.md from the sources.
    Limits,
    /// Run a command on a small machine whose kernel has RDMA.
    Vm(vm::Options),
    /// Run a command and end every process it started once it, or the caller, is gone.
    #[command(name = guard::GUARD, hide = true)]
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Become a command that the kernel kills when its parent dies.
    #[command(name = guard::EXEC, hide = true)]
    Exec {
        parent: i32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a test program; report what hangs in it, and end it, when its time is over.
    #[command(name = within::WITHIN, hide = true)]
    Within {
        seconds: u64,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Become a command that may do less.
    #[command(name = restrict::RESTRICT, hide = true)]
    Restrict(restrict::Options),
}

fn main() -> ExitCode {
    match Cli::parse().task {
        Task::Test(options) => stage::test(&root(), &options),
        Task::Doctor => doctor::doctor(&root()),
        Task::Clean => clean::clean(&root()),
        Task::Limits => limits::write(&root()),
        Task::Vm(options) => vm::vm(&root(), options),
        Task::Guard { command } => guard::guard(&command),
        Task::Exec { parent, command } => guard::exec(parent, &command),
        Task::Within { seconds, command } => within::within(Duration::from_secs(seconds), &command),
        Task::Restrict(options) => restrict::run(&options),
    }
}

/// The workspace's directory: where cargo says this package is now, else where it was built.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts what it builds.
fn target_dir(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
