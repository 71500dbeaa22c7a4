//! tonic and zc, through the `bench` of zc's own example programs: the same service on different URIs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::child::output_within;
use crate::contender::Contender;
use crate::job::{Job, Test};
use crate::samples::Metric;

/// How long a program may take beyond what it measures.
const SLACK: Duration = Duration::from_secs(10);

pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    pub(super) uri: Uri,
    /// HTTP/2 over the byte stream of a zc connection.
    pub(super) http2: bool,
}

pub(super) enum Uri {
    Fixed(&'static str),
    /// Shared memory by a name of this run.
    Shm,
    /// A socket in the directory of this run, after this prefix.
    Path(&'static str),
}

impl Uri {
    fn text(&self, job: &Job) -> Result<String> {
        match self {
            Self::Fixed(uri) => Ok((*uri).to_owned()),
            Self::Shm => Ok(format!("zc+shm://{}", job.tag)),
            Self::Path(prefix) => {
                std::fs::create_dir_all(job.directory())?;
                let socket = job.directory().join(format!("{}.sock", std::process::id()));
                Ok(format!("{prefix}{}", socket.display()))
            }
        }
    }
}

impl Contender for Program {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::Calls
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        let program = job.beside_zc(self.program);
        if self.http2 && !has_http2(&program)? {
            return Err(format!("this {} has no --http2", self.program).into());
        }
        let mut command = Command::new(program);
        command
            .args(["bench", "--json", "--uri", &self.uri.text(job)?, "--size", &job.size.to_string()])
            .args(["--inflight", &job.inflight.to_string(), "--duration-s", &job.seconds.to_string()]);
        if self.http2 {
            command.arg("--http2");
        }
        let printed = output_within(&mut command, job.duration()?.mul_f64(2.0) + SLACK)?;
        let report: Value = serde_json::from_str(&printed)?;
        let value = |metric, value: &Value| {
            value.as_f64().map(|value| (metric, value)).ok_or_else(|| format!("{metric:?} is missing").into())
        };
        [
            value(Metric::CallsPerS, &report["calls_per_s"]),
            value(Metric::CallNs, &report["latency_ns"]["p50"]),
            value(Metric::ServerCpuNs, &report["server_cpu_ns_per_call"]),
            copied_per_call(&report, job).ok_or_else(|| "no ledger".into()),
        ]
        .into_iter()
        .collect()
    }

    fn serve(&self, _job: &Job) -> Result<()> {
        Err("the program starts its own server".into())
    }
}

/// At the client. The report has the sum of what was copied, and the rate of calls.
fn copied_per_call(report: &Value, job: &Job) -> Option<(Metric, f64)> {
    let calls = report["calls_per_s"].as_f64()? * job.seconds;
    Some((Metric::CopiedBytes, report["ledger"]["copied_bytes"].as_f64()? / calls))
}

fn has_http2(program: &Path) -> Result<bool> {
    Ok(output_within(Command::new(program).args(["bench", "--help"]), SLACK)?.contains("--http2"))
}
