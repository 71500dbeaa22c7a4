//! The machine: cores, and a network where loopback behaves the same everywhere.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Result, sys};

/// Congestion control of the loopback connections. Some hosts default to one that paces, which costs
/// loopback a quarter of its request rate.
const CONGESTION_CONTROL: &str = "reno";

/// The cores of the two sides.
#[derive(Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) client: usize,
}

impl Cores {
    pub(crate) const TWO: Self = Self { server: 0, client: 1 };
    pub(crate) const SAME: Self = Self { server: 0, client: 0 };
}

/// Pins this process, which has one thread so far.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(format!("there is no core {core}").into());
    }
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| format!("core {core}: {error}").into())
}

/// Lets this thread run on every core again.
#[cfg(feature = "aeron")]
pub(crate) fn pin_to_any() {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| set.set(core));
    let _ = sched_setaffinity(None, &set);
}

/// A network namespace for the whole run, if the machine lets us; says which it became.
pub(crate) fn own_network() -> String {
    let made = sys::own_network()
        .and_then(|()| std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL));
    match made {
        Ok(()) => format!("own network namespace, TCP with {CONGESTION_CONTROL}"),
        Err(error) => format!("the host's network and its congestion control ({error})"),
    }
}

/// The processor time of a process's threads so far, nanoseconds; 0 if the kernel does not say.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(of).sum()
}
