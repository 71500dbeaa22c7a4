//! Drives calls: so many at a time, for so long, as the programs of zc do.

use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;

use crate::Result;
use crate::child::Running;
use crate::job::Job;
use crate::machine::cpu_ns;
use crate::samples::Metric;

/// Part of the time that warms up and is not counted.
const WARM_UP: f64 = 0.2;

/// Calls until the job's time is up.
pub(super) async fn run(
    job: &Job,
    server: &Running,
    call: impl AsyncFn() -> Result<()>,
) -> Result<Vec<(Metric, f64)>> {
    drive(job.inflight, job.duration()?.mul_f64(WARM_UP), &call, |_| {}).await?;
    let mut times = Histogram::<u64>::new(3)?;
    let (before, began) = (cpu_ns(server.id()), Instant::now());
    drive(job.inflight, job.duration()?, &call, |took| times.saturating_record(took)).await?;
    let calls = times.len() as f64;
    Ok(vec![
        (Metric::CallsPerS, calls / began.elapsed().as_secs_f64()),
        (Metric::CallNs, times.value_at_quantile(0.5) as f64),
        (Metric::ServerCpuNs, cpu_ns(server.id()).saturating_sub(before) as f64 / calls),
    ])
}

async fn drive(
    inflight: usize,
    duration: Duration,
    call: &impl AsyncFn() -> Result<()>,
    mut record: impl FnMut(u64),
) -> Result<()> {
    let until = Instant::now() + duration;
    let timed = || async {
        let began = Instant::now();
        call().await.map(|()| (began, Instant::now()))
    };
    let mut calls: FuturesUnordered<_> = (0..inflight).map(|_| timed()).collect();
    while let Some(done) = calls.next().await {
        let (began, ended) = done?;
        record((ended - began).as_nanos() as u64);
        if ended < until {
            calls.push(timed());
        }
    }
    Ok(())
}
