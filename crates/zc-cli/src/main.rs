//! `zc`: what this machine can do (`info`), whether a peer answers (`ping`), and how fast (`perf`).

mod info;
mod machine;
mod perf;
mod ping;
mod say;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Each transport: available, or why not and what would help; limits of this machine.
    Info {
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
        /// Also ask whether this receive queue can put what comes straight into memory of ours; it is restarted for that.
        #[arg(long, value_name = "INTERFACE:QUEUE", value_parser = info::queue)]
        zero_copy_receive: Option<info::Queue>,
    },
    /// Round trips to a `zc perf serve`, one a second, with the selection report.
    Ping {
        /// Where to.
        uri: String,
        /// How many; 0 means until Ctrl-C.
        #[arg(long, short, default_value_t = 0)]
        count: u64,
        /// Milliseconds between pings.
        #[arg(long, default_value_t = 1000)]
        interval_ms: u64,
    },
    /// Latency and throughput between two processes.
    Perf(perf::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Info { json, zero_copy_receive } => info::run(json, zero_copy_receive.as_ref()),
        Command::Ping { uri, count, interval_ms } => ping::run(&uri, count, interval_ms),
        Command::Perf(args) => perf::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<say::NobodyReads>() => ExitCode::SUCCESS,
        Err(error) => {
            say::complain(format_args!("zc: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One thread: what is measured is the transport, not a scheduler.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
