//! The command line that the echo programs share, and how they print.

use std::future::Future;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::BoxError;
use crate::bench::Report;

/// An echo program's arguments.
#[derive(Debug, Parser)]
pub struct Args {
    /// Without one: both sides as two processes, and a table.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves until Ctrl-C.
    Server(ServerArgs),
    /// Calls a server.
    Client {
        /// Where it listens.
        uri: String,
    },
    /// Measures one point, server and client as two processes on a core each.
    Bench(BenchArgs),
}

/// Of `server`.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Where to listen.
    pub uri: String,
    /// HTTP/2 over zc as a byte stream.
    #[arg(long)]
    pub http2: bool,
    /// Stop when standard input ends.
    #[arg(long, hide = true)]
    pub child: bool,
}

/// Of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Where the server is to listen.
    #[arg(long)]
    pub uri: String,
    /// Bytes of each message.
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Calls at a time.
    #[arg(long, default_value_t = 1)]
    pub inflight: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    pub duration_s: f64,
    /// HTTP/2 over zc as a byte stream.
    #[arg(long)]
    pub http2: bool,
    /// One JSON object instead of a line of text.
    #[arg(long)]
    pub json: bool,
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Bytes of each message.
    pub size: usize,
    /// Calls at a time.
    pub inflight: usize,
    /// How long.
    pub duration: Duration,
}

impl BenchArgs {
    /// Measures the point and prints what came of it.
    ///
    /// # Errors
    /// Those of the measurement.
    pub async fn run<F>(&self, measure: impl FnOnce(Point) -> F) -> Result<(), BoxError>
    where
        F: Future<Output = Result<Report, BoxError>>,
    {
        let duration = Duration::try_from_secs_f64(self.duration_s)?;
        let mut report = measure(Point { size: self.size, inflight: self.inflight, duration }).await?;
        report.uri.clone_from(&self.uri);
        match self.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => print_row(&report),
        }
        Ok(())
    }
}

/// The first line of a table.
pub fn print_head() {
    println!(
        "{:<36} {:>9} {:>8} {:>11} {:>9} {:>9} {:>10} {:>14}",
        "", "bytes", "at once", "calls/s", "p50 us", "p99 us", "cpu us", "copied by zc"
    );
}

/// A line of it.
pub fn print_row(report: &Report) {
    println!(
        "{:<36} {:>9} {:>8} {:>11.0} {:>9.1} {:>9.1} {:>10.1} {:>14}",
        report.uri,
        report.size_bytes,
        report.inflight,
        report.calls_per_s,
        report.latency_ns.p50 as f64 / 1e3,
        report.latency_ns.p99 as f64 / 1e3,
        report.server_cpu_ns_per_call as f64 / 1e3,
        report.ledger.copied_bytes,
    );
}
