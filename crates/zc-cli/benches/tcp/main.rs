//! `zc perf` on `zc+tcp://127.0.0.1` against a plain tokio loop, interleaved, medians.
//!
//! ```text
//! cargo bench -p zc-cli --bench tcp                       all of it; nothing else should run
//! cargo bench -p zc-cli --bench tcp -- --rounds 9 --seconds 2 --only 64
//! ```

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

mod plain;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plain::Writes;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

struct Options {
    rounds: usize,
    seconds: f64,
    only: Option<String>,
}

/// One run's figure.
type Contender = Box<dyn Fn(&Options) -> Result<f64>>;

/// What is compared: both sides give a figure; `better` says which way is up.
struct Case {
    name: &'static str,
    target: &'static str,
    /// The ratio is zc to plain.
    zc: Contender,
    plain: Contender,
    unit: &'static str,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [serve, busy] = &args[..]
        && serve == "serve-plain"
    {
        pin(SERVER_CORE)?;
        return Ok(block_on(plain::serve(busy == "busy"))?);
    }
    let options = parse(&args)?;
    println!("{:<34} {:>12} {:>12}  {:>6} {:>17}  target", "case", "zc", "plain", "ratio", "ratios");
    for case in cases() {
        if options.only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        let (mut zc, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
            // Alternately first, so that a drift of the machine hits both alike.
            let (a, b) = if round % 2 == 0 {
                let a = (case.zc)(&options)?;
                (a, (case.plain)(&options)?)
            } else {
                let b = (case.plain)(&options)?;
                ((case.zc)(&options)?, b)
            };
            zc.push(a);
            plain.push(b);
            ratios.push(a / b);
        }
        ratios.sort_by(f64::total_cmp);
        let spread = format!("{:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1]);
        let (a, b, unit) = (median(&mut zc), median(&mut plain), case.unit);
        let ratio = median(&mut ratios);
        println!(
            "{:<34} {a:>9.0} {unit:<2} {b:>9.0} {unit:<2}  {ratio:>6.3} {spread:>17}  {}",
            case.name, case.target
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, size, polling) in [
        ("round trip 64 B, interrupt", 64, "interrupt"),
        ("round trip 64 B, busy", 64, "busy"),
        ("round trip 4 KiB, interrupt", 4 << 10, "interrupt"),
        ("round trip 1 MiB, interrupt", 1 << 20, "interrupt"),
    ] {
        cases.push(Case {
            name,
            target: "<= 1.05",
            unit: "ns",
            zc: Box::new(move |options| zc_perf(options, "latency", size, 1, polling)),
            plain: Box::new(move |options| {
                let busy = polling == "busy";
                with_plain(busy, |addr| block_on(plain::latency(addr, size, busy, options.each())))
            }),
        });
    }
    for (name, size, inflight, writes, target) in [
        ("one way 64 B x 64, a write each", 64, 64, Writes::Each, ">= 5"),
        ("one way 64 B x 64, batched", 64, 64, Writes::Batched, ">= 0.9"),
        ("one way 1 MiB x 8", 1 << 20, 8, Writes::Each, ">= 1.0"),
    ] {
        cases.push(Case {
            name,
            target,
            unit: "/s",
            zc: Box::new(move |options| zc_perf(options, "throughput", size, inflight, "interrupt")),
            plain: Box::new(move |options| {
                with_plain(false, |addr| {
                    block_on(plain::throughput(addr, size, inflight, writes, options.each()))
                })
            }),
        });
    }
    cases
}

impl Options {
    fn each(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// The figure of one run of `zc perf`.
fn zc_perf(options: &Options, test: &str, size: usize, inflight: u32, polling: &str) -> Result<f64> {
    let output = Command::new(env!("CARGO_BIN_EXE_zc"))
        .args(["perf", test, "--uri", "zc+tcp://127.0.0.1:0", "--json", "--polling", polling])
        .args(["--touch", "ends", "--pin", &format!("{SERVER_CORE},{CLIENT_CORE}")])
        .args(["--size", &size.to_string(), "--inflight", &inflight.to_string()])
        .args(["--duration-s", &options.seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("zc perf failed".into());
    }
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let figure = if test == "latency" { &json["rtt_ns"]["p50"] } else { &json["messages_per_s"] };
    let copied = json["ledger"]["copied_bytes"].as_u64().unwrap_or(u64::MAX);
    let moved = json["ledger"]["moved_bytes"].as_u64().unwrap_or(0);
    if size >= 64 << 10 && copied > 0 {
        println!("  copied by us: {copied} of {moved} bytes");
    }
    figure.as_f64().ok_or_else(|| "zc perf gave no figure".into())
}

fn with_plain<T>(busy: bool, run: impl FnOnce(&str) -> std::io::Result<T>) -> Result<T> {
    let mode = if busy { "busy" } else { "sleep" };
    let child =
        Command::new(std::env::current_exe()?).args(["serve-plain", mode]).stdout(Stdio::piped()).spawn()?;
    let mut server = Server(child);
    let stdout = server.0.stdout.take().ok_or("no output")?;
    let mut addr = String::new();
    BufReader::new(stdout).read_line(&mut addr)?;
    pin(CLIENT_CORE)?;
    Ok(run(addr.trim())?)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn block_on<T>(future: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn pin(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let mid = values.len() / 2;
    if values.len() % 2 == 1 { values[mid] } else { (values[mid - 1] + values[mid]) / 2.0 }
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { rounds: 5, seconds: 2.0, only: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} takes a value"))?;
        match arg.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--only" => options.only = Some(value.clone()),
            _ => return Err(format!("unknown option {arg}").into()),
        }
    }
    if options.rounds == 0 || !(options.seconds > 0.0 && options.seconds <= 600.0) {
        return Err("--rounds takes 1 or more, --seconds more than 0 and at most 600".into());
    }
    Ok(options)
}
