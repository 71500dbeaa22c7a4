//! Facts about this machine and process, read from /proc and the resource limits.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit};
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cores: usize,
    numa_nodes: usize,
    memlock: Limit,
    nofile: Limit,
    hugepages_2m: Pages,
    io_uring_disabled: Option<u32>,
}

/// A resource limit; `None` is unlimited.
#[derive(Serialize)]
struct Limit {
    soft: Option<u64>,
    hard: Option<u64>,
}

#[derive(Serialize)]
struct Pages {
    total: u64,
    free: u64,
}

impl From<Rlimit> for Limit {
    fn from(limit: Rlimit) -> Self {
        Self { soft: limit.current, hard: limit.maximum }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |limit: Option<u64>| limit.map_or("unlimited".into(), |n| n.to_string());
        write!(f, "soft {}, hard {}", text(self.soft), text(self.hard))
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Machine {
    pub(crate) fn look() -> Self {
        const HUGE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let nodes = fs::read_dir("/sys/devices/system/node").map_or(1, |dir| {
            dir.flatten()
                .filter(|e| {
                    e.file_name()
                        .to_string_lossy()
                        .strip_prefix("node")
                        .is_some_and(|n| n.parse::<u32>().is_ok())
                })
                .count()
        });
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            numa_nodes: nodes.max(1),
            memlock: getrlimit(Resource::Memlock).into(),
            nofile: getrlimit(Resource::Nofile).into(),
            hugepages_2m: Pages {
                total: number(&format!("{HUGE}/nr_hugepages")).unwrap_or(0),
                free: number(&format!("{HUGE}/free_hugepages")).unwrap_or(0),
            },
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled").map(|n| n as u32),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "kernel        {}", self.kernel)?;
        writeln!(f, "cores         {}", self.cores)?;
        writeln!(f, "NUMA nodes    {}", self.numa_nodes)?;
        writeln!(f, "memlock       {} (bytes)", self.memlock)?;
        writeln!(f, "nofile        {}", self.nofile)?;
        write!(f, "hugepages 2M  {} of {} free", self.hugepages_2m.free, self.hugepages_2m.total)
    }
}

/// Seconds of CPU that this process has used, all its living threads (`/proc/self/task/*/schedstat`,
/// see proc(5)).
pub(crate) fn cpu_s() -> f64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0.0 };
    let ns: u64 = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    ns as f64 / 1e9
}
