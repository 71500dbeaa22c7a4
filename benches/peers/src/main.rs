//! Other people's systems, measured beside zc: see the README.

mod child;
mod contender;
mod echo;
#[allow(clippy::all, clippy::unimplemented, unreachable_pub, dead_code, reason = "generated")]
mod echo_capnp;
mod ipc;
mod job;
mod machine;
mod place;
mod rounds;
mod rpc;
mod samples;
mod sockets;
mod sys;
mod table;
mod targets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use contender::Contender;
use job::{Job, Test};
use place::Place;
use rounds::{Outcome, Plan};
use samples::{Key, Metric};
use table::Reference;
use targets::Target;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

#[derive(Parser)]
#[command(version, about = "Other people's systems, measured beside zc")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Messages between two processes.
    Ipc(Run),
    /// Calls of an echo service.
    Rpc(Run),
    /// Echoes over TCP, by runtimes and by zc.
    Echo(Run),
    /// One point of one contender: the client.
    #[command(hide = true)]
    Point(Job),
    /// One point of one contender: the server.
    #[command(hide = true)]
    Serve(Job),
}

#[derive(Args)]
struct Run {
    /// Turns of each contender at each point.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of measuring in each turn.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// This contender only; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Messages of so many bytes only; may be repeated.
    #[arg(long)]
    size: Vec<usize>,
    /// The `zc` program; the examples are looked for beside it. Default: the release build of the checkout.
    #[arg(long)]
    zc: Option<PathBuf>,
    /// One JSON object instead of the tables.
    #[arg(long)]
    json: bool,
    /// Lists the contenders.
    #[arg(long)]
    list: bool,
}

/// What one of the comparisons consists of.
struct Comparison {
    contenders: Vec<Box<dyn Contender>>,
    sizes: &'static [usize],
    keys: fn(&[usize]) -> Vec<Key>,
    targets: Vec<Target>,
    reference: Reference,
    programs: place::Programs,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Ipc(run) => compare(run, ipc_comparison()),
        Command::Rpc(run) => compare(run, rpc_comparison()),
        Command::Echo(run) => compare(run, echo_comparison()),
        Command::Point(job) => point(&job),
        Command::Serve(job) => find(&job).and_then(|contender| contender.serve(&job)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zc-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ipc_comparison() -> Comparison {
    Comparison {
        contenders: ipc::contenders(),
        sizes: &ipc::SIZES,
        keys: ipc::keys,
        targets: ipc::targets(),
        reference: Reference::One(ipc::REFERENCE),
        programs: place::PERF,
    }
}

fn rpc_comparison() -> Comparison {
    Comparison {
        contenders: rpc::contenders(),
        sizes: &rpc::SIZES,
        keys: rpc::keys,
        targets: rpc::targets(),
        reference: Reference::One(rpc::REFERENCE),
        programs: place::EXAMPLES,
    }
}

fn echo_comparison() -> Comparison {
    Comparison {
        contenders: echo::contenders(),
        sizes: &echo::SIZES,
        keys: echo::keys,
        targets: echo::targets(),
        reference: Reference::Best(echo::PEERS),
        programs: place::PERF,
    }
}

fn compare(run: Run, comparison: Comparison) -> Result<()> {
    let mut contenders = comparison.contenders;
    if run.list {
        contenders.iter().for_each(|contender| println!("{}", contender.name()));
        return Ok(());
    }
    if let Some(unknown) = run.only.iter().find(|name| contenders.iter().all(|c| c.name() != *name)) {
        return Err(format!("there is no contender {unknown:?}; --list names them").into());
    }
    contenders
        .retain(|contender| run.only.is_empty() || run.only.iter().any(|name| name == contender.name()));
    let sizes = if run.size.is_empty() { comparison.sizes } else { &run.size };
    if sizes.contains(&0) {
        return Err("--size takes 1 byte or more".into());
    }
    let zc = place::programs(run.zc, comparison.programs)?;
    let network = machine::own_network();
    let place = Place::new()?;
    let job = Job {
        contender: String::new(),
        test: Test::RoundTrip,
        size: 0,
        inflight: 1,
        seconds: run.seconds,
        tag: place.tag().to_owned(),
        zc,
    };
    let plan = Plan { rounds: run.rounds, keys: (comparison.keys)(sizes), job };
    let outcome = plan.run(&contenders)?;
    if run.json {
        print_json(&outcome, &comparison.targets, &network);
    } else {
        let names: Vec<_> = contenders.iter().map(|contender| contender.name()).collect();
        table::print(&outcome.samples, &names, comparison.reference);
        table::print_targets(&outcome.samples, &comparison.targets);
        print_circumstances(&outcome, &network);
    }
    Ok(())
}

fn print_circumstances(outcome: &Outcome, network: &str) {
    let Outcome { counted, discarded, near, failures, .. } = outcome;
    println!(
        "\n{counted} rounds counted ({near} near, {} far), {discarded} discarded; {network}",
        counted - near
    );
    let mut causes = BTreeMap::<_, Vec<&str>>::new();
    for ((contender, point), (_, error)) in failures {
        causes.entry((contender, error)).or_default().push(point);
    }
    for ((contender, error), points) in causes {
        println!("failed: {contender}: {error}: {}", points.join("; "));
    }
}

fn print_json(outcome: &Outcome, targets: &[Target], network: &str) {
    let failure = |((contender, point), (times, error)): (&(String, String), &(usize, String))| json!({ "contender": contender, "point": point, "times": times, "error": error });
    let report = json!({
        "rounds": { "counted": outcome.counted, "near": outcome.near, "discarded": outcome.discarded },
        "network": network,
        "targets": targets.iter().map(|target| target.json(&outcome.samples)).collect::<Vec<_>>(),
        "failures": outcome.failures.iter().map(failure).collect::<Vec<_>>(),
        "samples": outcome.samples.0,
    });
    println!("{report}");
}

/// Prints the values, or the error, for the process that started this one.
fn point(job: &Job) -> Result<()> {
    let measured: std::result::Result<Vec<(Metric, f64)>, String> =
        find(job).and_then(|contender| contender.measure(job)).map_err(|error| error.to_string());
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn find(job: &Job) -> Result<Box<dyn Contender>> {
    let mut all = ipc::contenders().into_iter().chain(rpc::contenders()).chain(echo::contenders());
    all.find(|contender| contender.name() == job.contender).ok_or_else(|| "no such contender".into())
}
