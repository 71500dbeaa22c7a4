//! zc itself, through `zc perf`.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::child::output_within;
use crate::contender::Contender;
use crate::job::{Job, Test};
use crate::machine::Cores;
use crate::samples::Metric;

/// How long `zc perf` may take beyond what it measures.
const SLACK: Duration = Duration::from_secs(10);

pub(crate) struct Zc {
    pub(crate) name: &'static str,
    /// By default shared memory under a name of this run.
    pub(crate) uri: Option<&'static str>,
    /// What the connection must have chosen.
    pub(crate) transport: &'static str,
    pub(crate) polling: &'static str,
    pub(crate) touch: &'static str,
    pub(crate) cores: Cores,
}

impl Zc {
    fn perf(&self, test: &str, job: &Job) -> Result<Value> {
        let Cores { server, client } = self.cores;
        let of_this_run = || format!("zc+shm://{}", job.tag);
        let mut command = Command::new(&job.zc);
        command
            .args(["perf", test, "--json", "--uri", &self.uri.map_or_else(of_this_run, str::to_owned)])
            .args(["--polling", self.polling, "--touch", self.touch])
            .args(["--pin", &format!("{server},{client}"), "--size", &job.size.to_string()])
            .args(["--duration-s", &job.seconds.to_string(), "--inflight", &job.depth().to_string()]);
        let printed = output_within(&mut command, job.duration()?.mul_f64(2.0) + SLACK)?;
        let report: Value = serde_json::from_str(&printed)?;
        match report["transport"].as_str() {
            Some(chosen) if chosen == self.transport => Ok(report),
            other => Err(format!("zc chose {other:?} instead of {}", self.transport).into()),
        }
    }
}

impl Contender for Zc {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::RoundTrip || (test == Test::OneWay && self.polling != "interrupt")
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        let figure = |value: &Value| value.as_f64().ok_or("zc perf printed no figure");
        if job.test == Test::OneWay {
            let report = self.perf("throughput", job)?;
            return Ok(vec![(Metric::OneWayPerS, figure(&report["messages_per_s"])?)]);
        }
        let report = self.perf("latency", job)?;
        let copied: f64 = ["ledger", "server_ledger"]
            .into_iter()
            .map(|side| figure(&report[side]["copied_bytes"]))
            .sum::<std::result::Result<_, _>>()?;
        let trip = (Metric::RoundTripNs, figure(&report["rtt_ns"]["p50"])?);
        Ok(vec![trip, (Metric::CopiedBytes, copied / figure(&report["messages"])?)])
    }

    fn serve(&self, _job: &Job) -> Result<()> {
        Err("zc perf starts its own server".into())
    }
}
