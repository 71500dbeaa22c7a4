//! Facts about this machine and process, read from /proc and the resource limits.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit};
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cores: usize,
    numa_nodes: Vec<Node>,
    memlock_bytes: Limit,
    nofile: Limit,
    hugepages: Vec<Pages>,
    io_uring_disabled: Option<u32>,
}

/// A resource limit; `None` is unlimited.
#[derive(Serialize)]
struct Limit {
    soft: Option<u64>,
    hard: Option<u64>,
}

/// A NUMA node.
#[derive(Serialize)]
struct Node {
    node: u32,
    cpus: String,
}

/// Huge pages of one size.
#[derive(Serialize)]
struct Pages {
    size_kib: u64,
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

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The entries of a directory named `prefix` and a number, with that number, in order.
fn numbered(dir: &str, prefix: &str, suffix: &str) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse::<u64>().ok();
    let mut found: Vec<_> =
        entries.filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path()))).collect();
    found.sort();
    found
}

impl Machine {
    pub(crate) fn look() -> Self {
        let nodes = numbered("/sys/devices/system/node", "node", "").into_iter().map(|(node, path)| Node {
            node: node as u32,
            cpus: fs::read_to_string(path.join("cpulist")).unwrap_or_default().trim().to_owned(),
        });
        let pages =
            numbered("/sys/kernel/mm/hugepages", "hugepages-", "kB").into_iter().map(|(size_kib, path)| {
                let count = |file: &str| number(&path.join(file)).unwrap_or(0);
                Pages { size_kib, total: count("nr_hugepages"), free: count("free_hugepages") }
            });
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            numa_nodes: nodes.collect(),
            memlock_bytes: getrlimit(Resource::Memlock).into(),
            nofile: getrlimit(Resource::Nofile).into(),
            hugepages: pages.collect(),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled".as_ref()).map(|n| n as u32),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "kernel        {}", self.kernel)?;
        writeln!(f, "cores         {}", self.cores)?;
        for Node { node, cpus } in &self.numa_nodes {
            writeln!(f, "NUMA node {node}   cpus {cpus}")?;
        }
        writeln!(f, "memlock       {} (bytes)", self.memlock_bytes)?;
        writeln!(f, "nofile        {}", self.nofile)?;
        for Pages { size_kib, total, free } in &self.hugepages {
            writeln!(f, "huge pages    {free} of {total} free, {size_kib} KiB each")?;
        }
        match self.io_uring_disabled {
            Some(0) => write!(f, "io_uring      allowed by kernel.io_uring_disabled"),
            Some(n) => write!(f, "io_uring      kernel.io_uring_disabled = {n}"),
            None => write!(f, "io_uring      this kernel has no kernel.io_uring_disabled"),
        }
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
