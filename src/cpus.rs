//! Whether there is a processor to spare for looking instead of sleeping.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread::available_parallelism;

/// Whether a receiver that looks can be overtaken by its peer: there is more than one processor, and no quota takes away
/// later what is spent on looking (of a thread that is pinned to one processor: a quota of control groups, version 2). A process that is pinned to one processor may well look: the peer is on another.
pub(crate) fn looking_pays() -> bool {
    static PAYS: OnceLock<bool> = OnceLock::new();
    *PAYS.get_or_init(|| has_several(&fs::read_to_string(ONLINE).unwrap_or_default()) && !has_quota())
}

/// Ranges of processors (Documentation/ABI/testing/sysfs-devices-system-cpu).
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Where control groups of version 2 are, and the file of this process's (Documentation/admin-guide/cgroup-v2.rst).
const GROUPS: (&str, &str) = ("/sys/fs/cgroup", "/proc/self/cgroup");

fn has_several(online: &str) -> bool {
    if online.trim().is_empty() {
        return available_parallelism().is_ok_and(|n| n.get() > 1);
    }
    online.contains(['-', ','])
}

/// The standard library counts the processors that this thread may use, and takes quotas into account, but never says less than one:
/// of a thread that is pinned to one processor it tells nothing.
fn has_quota() -> bool {
    let fewer = |mine: usize| available_parallelism().is_ok_and(|n| n.get() < mine);
    let pinned_to = rustix::thread::sched_getaffinity(None).map_or(1, |mine| mine.count() as usize);
    fewer(pinned_to) || pinned_to == 1 && is_any_limited()
}

/// Whether the control group of this process, or one around it, has a quota.
fn is_any_limited() -> bool {
    let groups = fs::read_to_string(GROUPS.1).unwrap_or_default();
    let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return false };
    let all = Path::new(GROUPS.0).join(own);
    let mut all = all.ancestors().take_while(|dir| dir.starts_with(GROUPS.0));
    all.any(|dir| fs::read_to_string(dir.join("cpu.max")).is_ok_and(|max| is_limit(&max)))
}

/// `cpu.max`: time and period in microseconds, or "max" and period.
fn is_limit(max: &str) -> bool {
    max.trim_start().starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::{has_several, is_limit};

    #[test]
    fn the_kernel_names_processors_in_ranges() {
        assert!(has_several("0-1\n") && has_several("0,2\n") && has_several("0-3,8-11\n"));
        assert!(!has_several("0\n"));
    }

    #[test]
    fn a_quota_is_a_number() {
        assert!(is_limit("50000 100000\n"));
        assert!(!is_limit("max 100000\n") && !is_limit(""));
    }
}
