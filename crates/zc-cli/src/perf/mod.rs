//! `zc perf`.

mod client;
mod output;
pub(crate) mod protocol;
mod serve;

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use zc::Polling;

use crate::Result;
use protocol::{Action, Test, Touch};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A strict ping-pong.
    Latency(Run),
    /// One-way messages that the receiver has processed.
    Throughput(Run),
    /// One-sided operations on memory of the server, one after the other.
    Remote {
        #[arg(long, value_enum, default_value_t = Action::Read)]
        operation: Action,
        #[command(flatten)]
        run: Run,
    },
    /// The other side alone; the client then takes `--remote`.
    Serve {
        /// Where to listen.
        #[arg(long, default_value = "zc://127.0.0.1:0")]
        uri: String,
        #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
        polling: Waiting,
        /// End when standard input ends.
        #[arg(long, hide = true)]
        child: bool,
        /// The core to run on.
        #[arg(long)]
        pin: Option<usize>,
    },
}

#[derive(clap::Args, Clone)]
pub(crate) struct Run {
    /// Where the server listens, or is to listen.
    #[arg(long, default_value = "zc://127.0.0.1:0")]
    uri: String,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 3.0)]
    duration_s: f64,
    /// Messages under way per connection (throughput).
    #[arg(long, default_value_t = 64)]
    inflight: u32,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    polling: Waiting,
    #[arg(long, value_enum, default_value_t = Touch::Ends)]
    touch: Touch,
    /// The cores of the two processes.
    #[arg(long, value_name = "SERVER,CLIENT", value_parser = pin)]
    pin: Option<(usize, usize)>,
    /// The server runs already, elsewhere.
    #[arg(long)]
    remote: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// How a side waits.
#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    Busy,
    Adaptive,
    Interrupt,
}

impl Waiting {
    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Adaptive => "adaptive",
            Self::Interrupt => "interrupt",
        }
    }

    fn fabric(self) -> Result<zc::Fabric> {
        let mut options = zc::ConnectionOptions::default();
        match self {
            Self::Busy => options.polling = Polling::Busy,
            Self::Interrupt => options.polling = Polling::Interrupt,
            Self::Adaptive => {}
        }
        Ok(zc::Fabric::auto_builder().options(options).build()?)
    }
}

fn pin(text: &str) -> std::result::Result<(usize, usize), String> {
    let (server, client) = text.split_once(',').ok_or("two cores, SERVER,CLIENT")?;
    let core = |part: &str| part.trim().parse::<usize>().map_err(|e| e.to_string());
    Ok((core(server)?, core(client)?))
}

/// Pins this process's only thread so far.
fn pin_to(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(format!("there is no core {core}").into());
    }
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).map_err(|e| format!("core {core}: {e}"))?;
    Ok(())
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Latency(run) => client::run(Test::Latency, run),
        Command::Throughput(run) => client::run(Test::Throughput, run),
        Command::Remote { operation, run } => client::run(Test::Remote(operation), run),
        Command::Serve { uri, polling, child, pin } => {
            if let Some(core) = pin {
                pin_to(core)?;
            }
            serve::run(&uri, polling, child)
        }
    }
}

impl Run {
    fn duration(&self) -> Result<Duration> {
        match Duration::try_from_secs_f64(self.duration_s) {
            Ok(d) if !d.is_zero() && d <= Duration::from_secs(3600) => Ok(d),
            _ => Err("--duration-s takes more than 0 and at most 3600 seconds".into()),
        }
    }
}
