//! The parts of a measurement, alike for every load.

use std::time::{Duration, Instant};

use crate::Result;
use crate::child::Running;
use crate::job::Job;
use crate::machine::cpu_ns;
use crate::samples::Metric;

/// Part of the time that warms up and is not counted.
const WARM_UP: f64 = 0.2;

pub(super) fn warm_up(job: &Job) -> Result<Duration> {
    Ok(job.duration()?.mul_f64(WARM_UP))
}

/// What the clocks say when counting begins.
pub(super) struct Start {
    at: Instant,
    cpu_ns: u64,
    messages: u64,
}

impl Start {
    pub(super) fn now(server: &Running, messages: u64) -> Self {
        Self { cpu_ns: cpu_ns(server.id()), at: Instant::now(), messages }
    }

    /// Messages a second since then, and the server's processor time for one.
    pub(super) fn until_now(
        &self,
        server: &Running,
        messages: u64,
        rate: Metric,
    ) -> Result<Vec<(Metric, f64)>> {
        let spent_s = self.at.elapsed().as_secs_f64();
        let cpu_ns = cpu_ns(server.id()).saturating_sub(self.cpu_ns);
        let count = match messages - self.messages {
            0 => return Err("no message came back in time".into()),
            count => count as f64,
        };
        Ok(vec![(rate, count / spent_s), (Metric::ServerCpuNs, cpu_ns as f64 / count)])
    }
}
