//! The default bound of a pool.

/// The default bound is the memory limit divided by this.
pub const DEFAULT_POOL_DIVISOR: u64 = 4;
/// The default bound is never below this.
pub const DEFAULT_POOL_MIN_BYTES: usize = 64 << 20;
/// The default bound is never above this.
pub const DEFAULT_POOL_MAX_BYTES: usize = 16 << 30;

/// The default bound: a share of the cgroup's `memory.max`, or of the machine's memory.
pub(super) fn default_max_bytes() -> usize {
    let limit = cgroup_limit().into_iter().chain(mem_total()).min().unwrap_or(0);
    usize::try_from(limit / DEFAULT_POOL_DIVISOR)
        .unwrap_or(usize::MAX)
        .clamp(DEFAULT_POOL_MIN_BYTES, DEFAULT_POOL_MAX_BYTES)
}

/// The lowest `memory.max` between our cgroup (v2) and the root.
fn cgroup_limit() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::/"))?;
    std::path::Path::new("/sys/fs/cgroup")
        .join(path)
        .ancestors()
        .take_while(|dir| dir.starts_with("/sys/fs/cgroup"))
        .filter_map(|dir| std::fs::read_to_string(dir.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

fn mem_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
